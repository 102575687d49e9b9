"""Prepared records of one or more datasets, built where they are missing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import contextlib
import fcntl
import functools
import hashlib
import importlib
import pathlib
from typing import Any

from absl import logging
import ml_collections
import numpy as np

from iqa_jax import errors, labels, run_directory
from iqa_jax.data import building
from iqa_jax.data.records import DataError

_TEXT = ('image_id', 'patient_id', 'camera', 'eye', 'sex')
_DATASETS = ('brset', 'eyeq', 'fundus_sim')


def builder_class(name: str) -> type:
  """Returns the tfds builder of a dataset.

  Raises:
    ValueError: there is no such dataset.
  """
  if name not in _DATASETS:
    raise errors.InvalidValue(
      f'data.name={name!r} is none of {", ".join(_DATASETS)}'
    )
  module = importlib.import_module(
    f'iqa_jax.data.{name}.{name}_dataset_builder'
  )
  return module.Builder


class Source:
  """Prepared records of one or more datasets, by random access.

  Attributes:
    table: arrays over all examples: 'dataset', 'split', 'image_id',
      'patient_id', 'camera', 'eye', 'sex' str; 'age', 'quality', 'grade',
      'field_found', 'size', 'height', 'width' int64; 'original' bool;
      'criteria' int64 [n, 4]; 'affine' float64 [n, 2, 3]; 'landmarks' float32
      [n, 5]. 'quality' is the verdict by `config.task.usable`.
    description: facts for the report: where from, how many, what is missing.
  """

  def __init__(self, builders: Sequence[Any], usable: str = 'inadequate'):
    from array_record.python import array_record_data_source

    tables, self._readers, self._starts = [], [], []
    self._features = builders[0].info.features
    self.description: list[dict[str, Any]] = []
    start = 0
    for builder in builders:
      for split, info in builder.info.splits.items():
        reader = array_record_data_source.ArrayRecordDataSource(
          [str(p) for p in info.filepaths]
        )
        table = _read_table(builder, split, reader)
        self._readers.append(reader)
        self._starts.append(start)
        tables.append(table)
        start += len(reader)
      self.description.append(_describe(builder))
    self.table: dict[str, np.ndarray] = {
      key: np.concatenate([t[key] for t in tables]) for key in tables[0]
    }
    graded = self.table['grade'] >= 0
    self.table['quality'][graded] = [
      labels.quality_of_grade(g, usable) for g in self.table['grade'][graded]
    ]

  def read(self, indices: np.ndarray) -> list[bytes]:
    """Returns the serialised records of the examples."""
    found: list[bytes] = [b''] * len(indices)
    which = np.searchsorted(self._starts, indices, side='right') - 1
    for k in np.unique(which):
      at = np.nonzero(which == k)[0]
      local = [int(indices[i]) - self._starts[k] for i in at]
      for i, record in zip(
        at, self._readers[k].__getitems__(local), strict=True
      ):
        found[i] = record
    return found

  def images(self, indices: np.ndarray) -> Iterator[np.ndarray]:
    """Yields the stored images of examples, uint8 [h, w, 3], in order."""
    for index in indices:
      [record] = self.read(np.asarray([index]))
      yield self._features.deserialize_example_np(record)['image']


def open_source(
  config: ml_collections.ConfigDict,
  name: str | None = None,
  manual_dir: str | None = None,
) -> Source:
  """Opens the datasets that a run needs and builds those that are missing.

  Args:
    config: the run's; reads `data` and `task.usable`.
    name: dataset(s) joined by '+'; None for `data.name` and `data.test_name`.
    manual_dir: where the downloaded files lie; None for the configuration's.

  Raises:
    DataError: files are missing, damaged, or not those of existing records.
    ValueError: no such dataset or builder configuration.
  """
  data = config.data
  manual = manual_dir if manual_dir is not None else data.manual_dir
  names = [(n, manual) for n in (name or data.name).split('+')]
  if name is None and data.test_name and data.test_name not in dict(names):
    names.append((data.test_name, data.test_manual_dir or manual))
  return Source(
    [_built(n, folder, config) for n, folder in names], config.task.usable
  )


def _built(name: str, manual_dir: str, config):
  kind = builder_class(name)
  arguments: dict[str, Any] = {}
  if issubclass(kind, building.PhotographBuilder):
    arguments['allow_missing'] = config.data.allow_missing
    folder = pathlib.Path(manual_dir).expanduser() if manual_dir else None
  else:
    folder = None
  root = pathlib.Path(config.data.data_dir or '~/tensorflow_datasets')
  root = root.expanduser()
  make = functools.partial(
    kind,
    data_dir=str(root),
    config=config.data.builder_config or None,
    **arguments,
  )
  if folder is not None and not (folder.is_dir() and any(folder.iterdir())):
    raise DataError(f'data.manual_dir={folder} is no folder, or an empty one')
  builder = make()
  if not builder.is_prepared():
    root.mkdir(parents=True, exist_ok=True)
    with _only_one(root / f'.{name}.lock'):
      builder = make()  # anew: another process may have built it meanwhile
      if not builder.is_prepared():
        _build(builder, folder)
        return builder
  if arguments:
    _check_complete(builder, config.data.allow_missing)
  _check_same_files(builder, folder)
  return builder


@contextlib.contextmanager
def _only_one(path: pathlib.Path) -> Iterator[None]:
  """Waits until no other process holds the lock of `path`."""
  with open(path, 'w', encoding='utf-8') as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    yield


def _build(builder, folder) -> None:
  import tensorflow_datasets as tfds

  name = builder.name
  if folder is None and isinstance(builder, building.PhotographBuilder):
    raise DataError(
      f'{name} has not been built in {builder.data_dir}, and '
      '--config.data.manual_dir does not say where its files lie.\n'
      f'{builder.MANUAL_DOWNLOAD_INSTRUCTIONS}'
    )
  logging.info('building %s in %s', name, builder.data_dir)
  builder.download_and_prepare(
    download_config=tfds.download.DownloadConfig(
      manual_dir=str(folder) if folder else None, try_download_gcs=False
    )
  )


def _check_complete(builder, allow_missing: bool) -> None:
  left_out = list((builder.info.metadata or {}).get('left_out', ()))
  if left_out and not allow_missing:
    raise DataError(
      f'the records in {builder.data_dir} lack {len(left_out)} photographs '
      f'that were absent or unreadable: {", ".join(left_out[:10])}. Accept '
      'that with --config.data.allow_missing=True, or complete the photographs '
      'and delete that folder to build again'
    )


def _check_same_files(builder, folder) -> None:
  if folder is None:
    return
  wanted = building.fingerprint(builder.entries(folder))
  built = (builder.info.metadata or {}).get('fingerprint')
  if built and built != wanted:
    raise DataError(
      f'the records in {builder.data_dir} were built from other labels or '
      f'photographs than those in {folder}: delete that folder to build '
      'again, or give another --config.data.data_dir'
    )


def _describe(builder) -> dict[str, Any]:
  metadata = dict(builder.info.metadata or {})
  return {
    'dataset': builder.name,
    'version': str(builder.version),
    'builder_config': builder.builder_config.name,
    'splits': {k: int(v.num_examples) for k, v in builder.info.splits.items()},
    'left_out': len(metadata.get('left_out', ())),
    'fingerprint': metadata.get('fingerprint', ''),
  }


def _read_table(builder, split: str, reader) -> dict[str, np.ndarray]:
  """Returns a split's metadata, kept beside the records once it was read."""
  paths = builder.info.splits[split].filepaths
  stamp = [(p.name, p.stat().length) for p in paths]
  key = hashlib.sha256(repr(stamp).encode()).hexdigest()[:12]
  cached = pathlib.Path(builder.data_dir) / f'table-{split}-{key}.npz'
  try:
    with np.load(cached, allow_pickle=False) as saved:
      return dict(saved)
  except (OSError, ValueError):
    pass
  table = _scan(builder, reader)
  count = len(table['image_id'])
  table['dataset'] = np.full(count, builder.name)
  table['split'] = np.full(count, split)
  original = getattr(builder.builder_config, 'original', False)
  table['original'] = np.full(count, original)
  try:
    with run_directory.atomic_path(cached) as temporary:
      with open(temporary, 'wb') as file:
        np.savez(file, **table)  # type: ignore[arg-type]
  except OSError:
    logging.info('%s is read-only; its table is read anew each time', cached)
  return table


def _scan(builder, reader) -> dict[str, np.ndarray]:
  import tensorflow as tf
  import tensorflow_datasets as tfds

  features = builder.info.features

  def metadata(record):
    example = features.deserialize_example(
      record, decoders={'image': tfds.decode.SkipDecoding()}
    )
    return {k: v for k, v in example.items() if k != 'image'}

  rows: list[dict[str, np.ndarray]] = []
  for first in range(0, len(reader), 256):
    batch = reader.__getitems__(
      list(range(first, min(first + 256, len(reader))))
    )
    chunk = tf.data.Dataset.from_tensor_slices(batch).map(metadata).batch(256)
    rows.extend(chunk.as_numpy_iterator())
  table = {k: np.concatenate([r[k] for r in rows]) for k in rows[0]}
  for key in _TEXT:
    table[key] = np.array([v.decode() for v in table[key]], dtype=str)
  return table
