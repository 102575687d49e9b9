"""What the builders of downloaded datasets share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import hashlib
import os

from absl import logging
import tensorflow_datasets as tfds

from iqa_jax.data import records
from iqa_jax.data.records import Entry
from iqa_jax.photograph import images

# For `tfds build`, which has no flag of its own for it.
ALLOW_MISSING = 'IQA_JAX_ALLOW_MISSING'


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

  Subclasses say which entries there are (`entries`). With `allow_missing` (or
  the environment variable IQA_JAX_ALLOW_MISSING=1) what is absent or
  unreadable is left out, and counted; otherwise it is an error.
  """

  BUILDER_CONFIGS = CONFIGS

  def __init__(self, *, allow_missing: bool | None = None, **kwargs):
    if allow_missing is None:
      allow_missing = os.environ.get(ALLOW_MISSING, '') not in ('', '0')
    self.allow_missing = allow_missing
    super().__init__(file_format='array_record', **kwargs)

  @staticmethod
  def entries(manual_dir: str | os.PathLike) -> dict[str, list[Entry]]:
    """Returns every labelled photograph of every split."""
    raise NotImplementedError

  def _info(self):
    return self.dataset_info_from_configs(
      features=records.features(),
      metadata=tfds.core.MetadataDict(fingerprint='', left_out=[]),
      disable_shuffling=False,
    )

  def _split_generators(self, dl_manager):
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
    self.info.metadata['fingerprint'] = fingerprint(splits)
    self.info.metadata['left_out'] = list(absent)
    return {
      name: self._generate_examples([e for e in rows if e.path is not None])
      for name, rows in splits.items()
    }

  def _generate_examples(self, entries: Sequence[Entry]) -> Iterator:
    original = self.builder_config.original

    def record(entry):
      assert entry.path is not None
      try:
        return entry, records.from_file(
          entry.path, original=original, **entry.metadata
        )
      except images.ImageError as error:
        return entry, error

    for entry, made in records.in_parallel(record, entries):
      if isinstance(made, images.ImageError):
        if not self.allow_missing:
          raise records.DataError(
            f'{made}. Download it again, or leave out what cannot be read '
            'with --config.data.allow_missing=True; '
            'python -m iqa_jax.validate_data lists all of them'
          ) from made
        logging.warning('left out: %s', made)
        self.info.metadata['left_out'].append(entry.image_id)
        continue
      yield entry.image_id, made


def fingerprint(splits: Mapping[str, Sequence[Entry]]) -> str:
  """Returns a digest of labels and of which photographs are there.

  Records are of these files: a run on others must not silently reuse them.
  """
  digest = hashlib.sha256()
  for name in sorted(splits):
    for entry in splits[name]:
      there = entry.path is not None
      digest.update(f'{name} {there} {dict(entry.metadata)}\n'.encode())
  return digest.hexdigest()[:16]
