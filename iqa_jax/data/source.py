"""Prepared records of one or more datasets, built where they are missing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import contextlib
import fcntl
import functools
import hashlib
import importlib
import pathlib
from types import ModuleType
from typing import Any

from absl import logging
import ml_collections
import numpy as np

from iqa_jax import config as config_lib
from iqa_jax import errors, labels, run_directory
from iqa_jax.aliases import Record
from iqa_jax.data import building, records
from iqa_jax.data.records import DataError
from iqa_jax.photograph import geometry

_TEXT = ('image_id', 'patient_id', 'camera', 'site', 'eye', 'sex')
_DATASETS = ('brset', 'csv', 'eyeq', 'fundus_sim')
_COMMON_CONFIG = '512'  # every dataset has it; fundus_sim's own default hasn't
_RECORDS_ALONE = (
  '. To go on from the records alone, which hold all that a run needs, leave '
  'out --config.data.manual_dir'
)


def builder_class(name: str) -> type:
  """Returns the tfds builder of a dataset.

  Raises:
    ValueError: there is no such dataset.
  """
  errors.one_of('data.name=', name, _DATASETS)
  module = importlib.import_module(
    f'iqa_jax.data.{name}.{name}_dataset_builder'
  )
  return module.Builder


class Source:
  """Prepared records of one or more datasets, by random access.

  Attributes:
    table: arrays over all examples: 'dataset', 'split', 'image_id',
      'patient_id', 'camera', 'site', 'eye', 'sex' str; 'age', 'quality',
      'grade', 'field_found', 'size', 'height', 'width' int64; 'original' bool;
      'criteria' int64 [n, 4]; 'affine' float64 [n, 2, 3]; 'landmarks' float32
      [n, 5]. 'quality' is the verdict, of a photograph that has but a
      grade by `usable`; of several datasets 'patient_id' begins with
      'DATASET:'.
    features: of the records (records.features).
    description: facts for the report: where from, how many, what is missing.
  """

  def __init__(self, builders: Sequence[Any], usable: str = 'inadequate'):
    from array_record.python import array_record_data_source

    tables, self._readers, self._starts = [], [], []
    # Of records seen before: looking for a field takes longer than decoding.
    self.fields: dict[tuple[int, int], geometry.Field] = {}
    self.features = builders[0].info.features
    self.description: list[Record] = []
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
    check_sizes(self.table)
    grade, quality = self.table['grade'], self.table['quality']
    graded = (grade >= 0) & (quality == labels.UNKNOWN)
    quality[graded] = [
      labels.quality_of_grade(g, usable) for g in grade[graded]
    ]
    if len(builders) > 1:
      # Two datasets may number their patients alike.
      each = zip(self.table['dataset'], self.table['patient_id'], strict=True)
      self.table['patient_id'] = np.array([f'{d}:{p}' for d, p in each])

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


@functools.cache
def tensorflow() -> ModuleType:
  """Returns TensorFlow, which reads here: the accelerators are JAX's alone.

  A build of it that sees them would take all of their memory.
  """
  import tensorflow as tf

  for kind in ('GPU', 'TPU'):
    try:
      tf.config.set_visible_devices([], kind)
    except RuntimeError:  # somebody is using it already, and them
      logging.warning('TensorFlow was in use before and may hold a %s', kind)
  return tf


def open_source(config: ml_collections.ConfigDict) -> Source:
  """Opens the datasets that a run needs and builds those that are missing.

  Args:
    config: the run's; reads `data` and `task.usable`.

  Raises:
    DataError: files are missing, damaged, or not those of existing records.
    ValueError: no such dataset or builder configuration.
  """
  tensorflow()  # before the builders come upon it
  data = config.data
  folders = {
    name: config_lib.of_dataset(data.manual_dir, name)
    for name in data.name.split('+')
  }
  if data.test_name and data.test_name not in folders:
    folders[data.test_name] = config_lib.of_dataset(
      data.test_manual_dir or data.manual_dir, data.test_name
    )
  kind = config_lib.of_dataset(data.builder_config, '')
  if not kind and len(folders) > 1:
    kind = _COMMON_CONFIG
  builders = [
    build(
      name,
      folder,
      config_lib.of_dataset(data.builder_config, name) or kind,
      config,
    )
    for name, folder in folders.items()
  ]
  return Source(builders, config.task.usable)


def build(
  name: str,
  manual_dir: str,
  builder_config: str,
  config: ml_collections.ConfigDict,
) -> Any:
  kind = builder_class(name)
  arguments: Record = {}
  folder = None
  if issubclass(kind, building.PhotographBuilder):
    arguments['allow_missing'] = config.data.allow_missing
    folder = pathlib.Path(manual_dir).expanduser() if manual_dir else None
  if name == 'csv':
    arguments['columns'] = dict(config.data.csv)
  names = [c.name for c in kind.BUILDER_CONFIGS]  # type: ignore[attr-defined]
  if builder_config and builder_config not in names:
    raise errors.InvalidValue(
      f'data.builder_config={builder_config!r} is none of {name}: '
      f'{", ".join(names)}'
    )
  root = pathlib.Path(config.data.data_dir or '~/tensorflow_datasets')
  root = root.expanduser()
  make = functools.partial(
    kind, data_dir=str(root), config=builder_config or None, **arguments
  )
  builder = make()
  if folder is not None and not (folder.is_dir() and any(folder.iterdir())):
    raise DataError(
      f'data.manual_dir={folder} is no folder, or an empty one'
      + (_RECORDS_ALONE if builder.is_prepared() else '')
    )
  if not builder.is_prepared():
    root.mkdir(parents=True, exist_ok=True)
    with _only_one(root / f'.{name}.lock'):
      builder = make()  # anew: another process may have built it meanwhile
      if not builder.is_prepared():
        _prepare(builder, folder)
        return builder
  if arguments:
    _check_complete(builder, config.data.allow_missing)
  if folder is not None:
    _check_same_files(builder, folder)
  return builder


@contextlib.contextmanager
def _only_one(path: pathlib.Path) -> Iterator[None]:
  """Waits until no other process holds the lock of `path`."""
  with open(path, 'w', encoding='utf-8') as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    yield


def _prepare(builder: Any, folder: pathlib.Path | None) -> None:
  import tensorflow_datasets as tfds

  name = builder.name
  if folder is None and isinstance(builder, building.PhotographBuilder):
    raise DataError(
      f'{name} has not been built in {builder.data_dir}, and '
      '--config.data.manual_dir does not say where its files lie.\n'
      f'{builder.MANUAL_DOWNLOAD_INSTRUCTIONS}'
    )
  logging.info('building %s in %s', name, builder.data_dir)
  # What a build leaves that was killed; this process has the lock.
  for left in builder.data_path.parent.glob('incomplete.*'):
    logging.info('removing %s', left)
    left.rmtree()
  builder.download_and_prepare(
    download_config=tfds.download.DownloadConfig(
      manual_dir=str(folder) if folder else None, try_download_gcs=False
    )
  )


def _check_complete(builder: Any, allow_missing: bool) -> None:
  left_out = list((builder.info.metadata or {}).get('left_out', ()))
  if left_out and not allow_missing:
    raise DataError(
      f'the records in {builder.data_dir} lack {len(left_out)} photographs '
      f'that were absent or unreadable: {", ".join(left_out[:10])}. Accept '
      'that with --config.data.allow_missing=True, or complete the photographs '
      'and delete that folder to build again'
    )


def _check_same_files(builder: Any, folder: pathlib.Path) -> None:
  entries = builder.entries(folder)
  metadata = builder.info.metadata or {}
  if metadata.get('fingerprint') == building.fingerprint(entries):
    return
  absent = {e.image_id for rows in entries.values() for e in rows if not e.path}
  removed = sorted(absent - set(metadata.get('left_out', ())))
  if removed:
    raise DataError(
      f'{len(removed)} photographs that the records in {builder.data_dir} were '
      f'built from are no longer in {folder}: {", ".join(removed[:10])}'
      f'{_RECORDS_ALONE}'
    )
  raise DataError(
    f'the records in {builder.data_dir} were built from other labels or '
    f'photographs than those in {folder}: give another '
    '--config.data.data_dir, or delete that folder to build again'
    f'{_RECORDS_ALONE}'
  )


def check_sizes(table: dict[str, np.ndarray]) -> None:
  """Raises DataError if some records were prepared at another size."""
  sizes = {
    str(name): int(table['size'][table['dataset'] == name][0])
    for name in np.unique(table['dataset'])
  }
  if len(set(sizes.values())) > 1:
    raise DataError(
      'the datasets were prepared at different sizes, which a network could '
      f'tell apart: {", ".join(f"{k} {v} px" for k, v in sizes.items())}; give '
      'each a builder config of one size, e.g. --config.data.builder_config='
      f'{",".join(f"{k}=512" for k in sizes)}'
    )


def _describe(builder: Any) -> Record:
  metadata = dict(builder.info.metadata or {})
  return {
    'dataset': builder.name,
    'version': str(builder.version),
    'builder_config': builder.builder_config.name,
    'splits': {k: int(v.num_examples) for k, v in builder.info.splits.items()},
    'left_out': len(metadata.get('left_out', ())),
    'fingerprint': metadata.get('fingerprint', ''),
  }


def _read_table(builder: Any, split: str, reader: Any) -> dict[str, np.ndarray]:
  """Returns a split's metadata, kept beside the records once it was read."""
  paths = builder.info.splits[split].filepaths
  stamp = [(p.name, p.stat().length) for p in paths]
  key = hashlib.sha256(repr(stamp).encode()).hexdigest()[:12]
  cached = pathlib.Path(builder.data_dir) / f'table-{split}-{key}.npz'
  saved = _saved_table(cached, len(reader))
  if saved is not None:
    return saved
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


def _saved_table(
  path: pathlib.Path, count: int
) -> dict[str, np.ndarray] | None:
  """Returns a table that `_read_table` has kept, None where there is none."""
  if not path.exists():
    return None
  try:
    with np.load(path, allow_pickle=False) as saved:
      table = dict(saved)
    if all(len(table[key]) == count for key in (*records.METADATA, 'original')):
      return table
    problem = 'it has other columns or rows'
  except Exception as error:  # a damaged archive raises anything
    problem = str(error)
  logging.warning('%s is damaged (%s): made anew', path, problem)
  return None


def _scan(builder: Any, reader: Any) -> dict[str, np.ndarray]:
  import tensorflow_datasets as tfds

  tf = tensorflow()
  features = builder.info.features

  def metadata(record: Any) -> Record:
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
