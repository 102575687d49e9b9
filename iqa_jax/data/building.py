"""What the builders of downloaded datasets share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import hashlib
import os
import shutil
from typing import Any

from absl import logging
import tensorflow_datasets as tfds
from tensorflow_datasets.core import shuffle
import tqdm

from iqa_jax import machine
from iqa_jax.aliases import Record
from iqa_jax.data import records
from iqa_jax.data.records import Entry
from iqa_jax.photograph import images, prepare

# For `tfds build`, which has no flag of its own for it.
ALLOW_MISSING = 'IQA_JAX_ALLOW_MISSING'
_SAMPLED = 8  # photographs that tell how much disk all will take


@dataclasses.dataclass(kw_only=True)
class Config(tfds.core.BuilderConfig):
  """Attributes: original: keep the file's pixels instead of preparing them."""

  original: bool = False


CONFIGS = [
  Config(name='512', description='Cropped to the field, square, 512 px.'),
  Config(
    name='original',
    original=True,
    description='All pixels: the file itself where it is an upright JPEG.',
  ),
]


class PhotographBuilder(
  tfds.core.GeneratorBasedBuilder,
  skip_registration=True,  # type: ignore[call-arg]
):
  """Builds labelled photographs that a person has downloaded.

  Subclasses say which entries there are (`entries`). All photographs are
  decoded once before the first is prepared. With `allow_missing` (or the
  environment variable IQA_JAX_ALLOW_MISSING=1) what is absent or unreadable is
  left out, and counted; otherwise it is an error.
  """

  BUILDER_CONFIGS = CONFIGS

  def __init__(
    self, *, allow_missing: bool | None = None, **kwargs: Any
  ) -> None:
    if allow_missing is None:
      allow_missing = os.environ.get(ALLOW_MISSING, '') not in ('', '0')
    self.allow_missing = allow_missing
    super().__init__(file_format='array_record', **kwargs)

  @staticmethod
  def entries(manual_dir: str | os.PathLike) -> dict[str, list[Entry]]:
    """Returns every labelled photograph of every split."""
    raise NotImplementedError

  def _info(self) -> tfds.core.DatasetInfo:
    return self.dataset_info_from_configs(
      features=records.features(),
      metadata=tfds.core.MetadataDict(fingerprint='', left_out=[]),
      disable_shuffling=False,
    )

  def _split_generators(
    self, dl_manager: tfds.download.DownloadManager
  ) -> dict[str, Iterator]:
    splits = self.entries(dl_manager.manual_dir)
    absent = [
      e.image_id for rows in splits.values() for e in rows if e.path is None
    ]
    if absent and not self.allow_missing:
      raise records.DataError(
        f'{len(absent)} of {sum(map(len, splits.values()))} labelled '
        f'photographs are not in {dl_manager.manual_dir}: '
        f'{", ".join(absent[:10])}{", ..." if len(absent) > 10 else ""}. '
        'Put them there, or build the part that is there with '
        f'--config.data.allow_missing=True ({ALLOW_MISSING}=1 for tfds build)'
      )
    if absent:
      logging.warning('%d photographs are absent and left out', len(absent))
    unreadable = self._unreadable(splits)
    self.info.metadata['fingerprint'] = fingerprint(splits)
    self.info.metadata['left_out'] = [*absent, *sorted(unreadable)]
    good = {
      name: [e for e in rows if e.path and e.image_id not in unreadable]
      for name, rows in splits.items()
    }
    self._check_room([e for rows in good.values() for e in rows])
    return {name: self._generate_examples(rows) for name, rows in good.items()}

  def _unreadable(self, splits: Mapping[str, Sequence[Entry]]) -> set[str]:
    """Returns which photographs can't be decoded; raises unless allowed.

    Looked for before anything is prepared: one bad file of 16,000 must not
    cost the work on those before it.
    """

    def problem(entry: Entry) -> tuple[str, images.ImageError] | None:
      assert entry.path is not None
      try:
        images.read(entry.path, prepare.SIZE)
      except images.ImageError as error:
        return entry.image_id, error
      return None

    there = [e for rows in splits.values() for e in rows if e.path is not None]
    checked = tqdm.tqdm(
      machine.in_threads(problem, there),
      'checking photographs',
      len(there),
      unit='photograph',
      disable=None,
    )
    found = dict(filter(None, checked))
    if found and not self.allow_missing:
      raise records.DataError(
        f'{len(found)} of {len(there)} photographs cannot be read: '
        f'{"; ".join(str(e) for e in list(found.values())[:10])}'
        f'{"; ..." if len(found) > 10 else ""}. Download them again, or leave '
        'out what cannot be read with --config.data.allow_missing=True'
      )
    for error in found.values():
      logging.warning('left out: %s', error)
    return set(found)

  def _check_room(self, entries: Sequence[Entry]) -> None:
    """Tells how much disk the records take; raises where there is less."""
    some = entries[:: max(len(entries) // _SAMPLED, 1)]
    if not some:
      return
    taken = [len(self._record(e)[1]['image'].getbuffer()) for e in some]
    need = sum(taken) / len(taken) * len(entries)
    # So many are sorted in files beside the records.
    sorting = need if need > shuffle.MAX_MEM_BUFFER_SIZE else 0
    free = shutil.disk_usage(self.data_dir).free
    told = (
      f'{len(entries)} photographs take {need / 1e9:.2f} GB of records'
      f'{", twice that while they are built" if sorting else ""}; '
      f'{free / 1e9:.2f} GB are free in {self.data_path.parent}'
    )
    logging.info('%s', told)
    if need + sorting > free:
      raise records.DataError(
        f'{told}: make room, or give another --config.data.data_dir'
      )

  def _record(self, entry: Entry) -> tuple[str, Record]:
    assert entry.path is not None
    return entry.image_id, records.from_file(
      entry.path,
      original=self.builder_config.original,
      **entry.metadata,
    )

  def _generate_examples(self, entries: Sequence[Entry]) -> Iterator:
    yield from machine.in_threads(self._record, entries)


def fingerprint(splits: Mapping[str, Sequence[Entry]]) -> str:
  """Returns a digest of labels, and of which photographs are there.

  Records are of these files: a run on others must not silently reuse them. A
  file is known by its suffix and size; reading all would take minutes.
  """
  digest = hashlib.sha256()
  for name in sorted(splits):
    for entry in splits[name]:
      file = None
      if entry.path is not None:
        file = entry.path.suffix.lower(), entry.path.stat().st_size
      digest.update(f'{name} {file} {dict(entry.metadata)}\n'.encode())
  return digest.hexdigest()[:16]
