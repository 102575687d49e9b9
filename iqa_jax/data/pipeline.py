"""From prepared records to batches: planned in NumPy, carried out by tf.data.

A plan says which example comes when and how it is augmented. It depends on the
seed, the epoch and the training examples alone, so batches are the same at any
parallelism, on any number of processes, and from any batch on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import importlib
import math
import pathlib
from typing import Any

from absl import logging
import ml_collections
import numpy as np

from iqa_jax import errors, labels, machine, run_directory
from iqa_jax.data import building, splits
from iqa_jax.data.records import DataError
from iqa_jax.photograph import geometry, prepare

_TEXT = ('image_id', 'patient_id', 'camera', 'eye', 'sex')
_DATASETS = ('brset', 'eyeq', 'fundus_sim')
_WHOLE = np.asarray([0.0, 0.0, 1.0], np.float32)  # of a stored image
_READ = 64  # records fetched at a time


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
    # Of records seen before: looking for a field takes longer than decoding.
    self.fields: dict[tuple[int, int], geometry.Field] = {}
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


@dataclasses.dataclass(frozen=True)
class Plan:
  """The examples of an epoch in order, and what is done to each.

  Attributes:
    index: int64 [n], into the source's table.
    flip: bool [n], mirrored left to right.
    angle: float32 [n], rotation in radians.
    shrink: float32 [n], share by which the field is made smaller.
    fault: int8 [n], number of the criterion that a simulated fault breaks, -1
      for none.
    seed: uint32 [n], of that fault.
    procedural: bool [n], whether that fault is of no named kind.
    variant: int64 [n], which of an example's fixed faulty variants this is, 0
      for the photograph as it is.
    camera: int64 [n], seed of another camera that takes it again (see
      simulation/cameras.py), -1 for its own.
  """

  index: np.ndarray
  flip: np.ndarray
  angle: np.ndarray
  shrink: np.ndarray
  fault: np.ndarray
  seed: np.ndarray
  procedural: np.ndarray
  variant: np.ndarray
  camera: np.ndarray

  @property
  def view(self) -> np.ndarray:
    """int64 [n]: with the example's number, all that a cache must know."""
    return 2 * self.variant + self.flip


def finite_views(config: ml_collections.ConfigDict) -> list[int] | None:
  """Returns the views (Plan.view) that augmentation makes, None: endless."""
  data = config.data
  augment = data.augment
  if augment.rotation or augment.scale:
    return None
  if augment.cameras and not data.fault_variants:
    return None
  if any(data.faults.values()) and not data.fault_variants:
    return None
  variants = 1 + (data.fault_variants if any(data.faults.values()) else 0)
  return list(range(0, 2 * variants, 1 if data.augment.flip else 2))


def plan_train(
  source: Source,
  indices: np.ndarray,
  config: ml_collections.ConfigDict,
  epoch: int,
) -> Plan:
  """Plans one epoch of training.

  Args:
    source: the data.
    indices: the training examples.
    config: the run's; reads `seed`, `data` and `task.name`.
    epoch: counted over all phases.
  """
  data = config.data
  order = np.random.default_rng([config.seed, epoch, 2])
  index = np.asarray(indices, np.int64)
  if data.balance == 'sampling':
    label = source.table[splits.class_column(config.task.name)][index]
    _, where, sizes = np.unique(label, return_inverse=True, return_counts=True)
    weight = 1.0 / sizes[where]
    index = order.choice(index, len(index), p=weight / weight.sum())
  else:
    index = order.permutation(index)
  plan = plan_eval(source, index)
  # Drawn for every slot: an example that comes again must not look the same.
  count = len(index)
  rng = np.random.default_rng([config.seed, epoch, 1])
  plan.flip[:] = (rng.random(count) < 0.5) & data.augment.flip
  plan.angle[:] = rng.uniform(-1, 1, count) * np.deg2rad(data.augment.rotation)
  plan.shrink[:] = rng.random(count) * data.augment.scale
  if data.fault_variants:
    plan.camera[:] = _variant(source, config, 0, index)['camera']
  else:
    looks = np.random.default_rng([config.seed, epoch, 4])
    plan.camera[:] = _cameras(config, looks, count)
  if not any(data.faults.values()):
    return plan
  breakable = source.table['quality'][index] == labels.ADEQUATE
  if not data.fault_variants:
    return _with_faults(plan, breakable, _draw_faults(config, rng, count))
  # One of the example's own few faults, or none.
  faulty = breakable & (rng.random(count) < sum(data.faults.values()))
  plan.variant[:] = faulty * rng.integers(1, data.fault_variants + 1, count)
  for number in range(1, data.fault_variants + 1):
    at = plan.variant == number
    _with_faults(plan, at, _variant(source, config, number, index))
  return plan


def plan_views(
  source: Source,
  indices: np.ndarray,
  config: ml_collections.ConfigDict,
  view: int,
) -> Plan:
  """Plans one pass over examples in one of the views of `finite_views`.

  Examples that no fault is put into have no faulty variants.
  """
  variant, flip = divmod(view, 2)
  indices = np.asarray(indices, np.int64)
  if variant:
    indices = indices[source.table['quality'][indices] == labels.ADEQUATE]
  plan = plan_eval(source, indices)
  plan.flip[:] = bool(flip)
  if config.data.fault_variants:
    plan.camera[:] = _variant(source, config, variant, indices)['camera']
  if variant:
    plan.variant[:] = variant
    every = np.ones(len(indices), bool)
    _with_faults(plan, every, _variant(source, config, variant, indices))
  return plan


def planned_labels(
  source: Source,
  indices: np.ndarray,
  config: ml_collections.ConfigDict,
  epochs: int,
) -> dict[str, np.ndarray]:
  """Returns the labels that training is going to see, of whole epochs.

  Balanced sampling and simulated faults make them others than the examples'.

  Args:
    source: the data.
    indices: the training examples.
    config: as of `plan_train`.
    epochs: how many; where all are alike, the first is returned alone.

  Returns:
    'quality', 'grade' int32 [n] and 'criteria' int32 [n, 4], in the order in
    which they come.
  """
  data = config.data
  if data.balance != 'sampling' and not any(data.faults.values()):
    epochs = 1
  plans = [plan_train(source, indices, config, e) for e in range(epochs)]
  return _after_faults(
    source.table,
    np.concatenate([plan.index for plan in plans]),
    np.concatenate([plan.fault for plan in plans]),
  )


def _after_faults(
  table: Mapping[str, np.ndarray], index: np.ndarray, fault: np.ndarray
) -> dict[str, np.ndarray]:
  """Returns the labels, int32, of examples with faults as in `Plan`."""
  quality = table['quality'][index].astype(np.int32)
  grade = table['grade'][index].astype(np.int32)
  criteria = table['criteria'][index].astype(np.int32)
  hit = np.nonzero(fault >= 0)[0]
  quality[hit] = labels.INADEQUATE
  # What grade a faulty photograph would have got is not known.
  grade[hit] = labels.UNKNOWN
  criteria[hit, fault[hit]] = labels.INADEQUATE
  return {'quality': quality, 'grade': grade, 'criteria': criteria}


def _with_faults(plan: Plan, at: np.ndarray, faults: Mapping) -> Plan:
  """Writes faults, one a slot, into the slots `at` (bool) of a plan."""
  for name, values in faults.items():
    getattr(plan, name)[at] = values[at]
  return plan


def _cameras(config, rng: np.random.Generator, count: int) -> np.ndarray:
  """Returns the seeds of other cameras for `count` slots (Plan.camera)."""
  seeds = rng.integers(0, 2**32, count)
  other = rng.random(count) < config.data.augment.cameras
  return np.where(other, seeds, -1)


def _variant(source, config, number: int, index: np.ndarray) -> dict:
  """Returns fault and camera of a variant of examples, of every epoch."""
  count = len(source.table['image_id'])
  rng = np.random.default_rng([config.seed, 3, number])
  drawn = _draw_faults(
    config, rng, count, surely=any(config.data.faults.values())
  )
  looks = np.random.default_rng([config.seed, 5, number])
  drawn['camera'] = _cameras(config, looks, count)
  return {name: values[index] for name, values in drawn.items()}


def _draw_faults(
  config, rng: np.random.Generator, count: int, surely: bool = False
) -> dict[str, np.ndarray]:
  """Draws 'fault', 'seed' and 'procedural' of `count` slots (see `Plan`).

  Args:
    config: the run's; reads `data.faults`, the share of slots for each kind.
    rng: draws.
    count: of slots.
    surely: every slot gets one, whatever the shares sum to.
  """
  from iqa_jax.simulation import procedural as unnamed

  rates = dict(config.data.faults)
  if (total := sum(rates.values())) > 1:
    raise errors.InvalidValue(
      f'the rates of data.faults sum to {total:g}, over 1'
    )
  chance = rng.random(count) * (total if surely else 1.0)
  seed = rng.integers(0, 2**32, count, dtype=np.uint32)
  names, shares = zip(*unnamed.CRITERIA.items(), strict=True)
  of_procedural = rng.choice(len(names), count, p=shares)
  fault = np.full(count, -1, np.int8)
  procedural = np.zeros(count, bool)
  below = 0.0
  for name, rate in rates.items():
    hit = (chance >= below) & (chance < below + rate)
    below += rate
    if name == 'procedural':
      numbers = np.array([labels.CRITERIA.index(name) for name in names])
      fault[hit] = numbers[of_procedural[hit]]
      procedural[hit] = True
    else:
      fault[hit] = labels.CRITERIA.index(name)
  return {'fault': fault, 'seed': seed, 'procedural': procedural}


def plan_eval(source: Source, indices: np.ndarray) -> Plan:
  """Plans one pass over examples as they are, in the order given."""
  del source
  n = len(indices)
  return Plan(
    index=np.asarray(indices, np.int64),
    flip=np.zeros(n, bool),
    angle=np.zeros(n, np.float32),
    shrink=np.zeros(n, np.float32),
    fault=np.full(n, -1, np.int8),
    seed=np.zeros(n, np.uint32),
    procedural=np.zeros(n, bool),
    variant=np.zeros(n, np.int64),
    camera=np.full(n, -1, np.int64),
  )


def batches(
  source: Source,
  plan: Plan,
  *,
  image_size: int,
  batch_size: int,
  cells: int = 0,
  start_batch: int = 0,
  process_index: int = 0,
  process_count: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
  """Yields this process's share of every batch of a plan, in order.

  Args:
    source: the data.
    plan: what comes when.
    image_size: side of the images in pixels.
    batch_size: over all processes; a multiple of `process_count`.
    cells: for a head of evidence: side of the grid on which it learns where
      faults are; images then come with their field of view. 0 for other heads.
    start_batch: the first batch wanted.
    process_index: which share.
    process_count: how many shares.

  Yields:
    With b = batch_size / process_count: 'image' uint8 [b, s, s, 3]; 'mask'
    float32 [b], 0 where the last batch is padded; 'index' int64 [b];
    'quality', 'grade' int32 [b]; 'criteria' int32 [b, 4]; 'landmarks' float32
    [b, 5], see `landmarks`; 'image_id' str [b]. With `cells`, 'image' uint8
    [b, s, s, 4], the field of view as fourth channel; 'fault' uint8 [b, cells,
    cells], the share of a cell, of 255, that a fault that was put in covers;
    'cause' int32 [b, 3], see `causes`.
  """
  if batch_size % process_count:
    raise ValueError(
      f'a batch of {batch_size} does not divide over {process_count} processes'
    )
  _check_size(source, plan, image_size)
  share = batch_size // process_count
  total = math.ceil(len(plan.index) / batch_size)
  slots = [
    np.arange(first, min(first + share, len(plan.index)))
    for b in range(start_batch, total)
    for first in [b * batch_size + process_index * share]
  ]
  pictures = _image_batches(source, plan, slots, image_size, share, cells)
  for at in slots:
    found = next(pictures) if len(at) else {}
    filled = {
      key: np.zeros((share, *shape), np.uint8)
      for key, shape in _shapes(image_size, cells).items()
    }
    for key, value in found.items():
      filled[key][: len(at)] = value
    yield {**filled, **targets(source, plan, at, share)}


def _shapes(image_size: int, cells: int) -> dict[str, tuple[int, ...]]:
  if not cells:
    return {'image': (image_size, image_size, 3)}
  return {
    'image': (image_size, image_size, 4),
    'fault': (cells, cells),
  }


def _check_size(source: Source, plan: Plan, image_size: int) -> None:
  """Raises DataError if records of photographs are smaller than the input.

  The network would learn from enlarged ones, and be shown sharper ones later.
  """
  table, index = source.table, np.unique(plan.index)
  # What is drawn has no finer original.
  filed = ~table['original'][index] & (table['dataset'][index] != 'fundus_sim')
  small = index[filed & (table['size'][index] < image_size)]
  if len(small):
    raise DataError(
      f'data.image_size={image_size} is more than the '
      f'{table["size"][small[0]]} px of the prepared photographs: give '
      '--config.data.builder_config=original, or a smaller image_size'
    )


def landmarks(
  table: Mapping[str, np.ndarray],
  index: np.ndarray,
  flip: np.ndarray,
  angle: np.ndarray | float = 0.0,
  shrink: np.ndarray | float = 0.0,
) -> np.ndarray:
  """Returns where the landmarks of augmented examples are.

  Args:
    table: of a Source.
    index: int [n], the examples.
    flip: bool [n], as of `Plan`, and so are `angle` and `shrink`.
    angle: in radians.
    shrink: share by which the field is smaller.

  Returns:
    float32 [n, 5], optic disc x, y, disc diameter, fovea x, y in shares of the
    image's side; NaN where unknown.
  """
  found = table['landmarks'][index] / table['size'][index][:, None]
  smaller = 1.0 - np.asarray(shrink)
  cos, sin = smaller * np.cos(angle), smaller * np.sin(angle)
  for x, y in ((0, 1), (3, 4)):
    dx, dy = found[:, x] - 0.5, found[:, y] - 0.5
    # The inverse of what `_turn` looks pixels up with.
    found[:, x] = 0.5 + cos * dx + sin * dy
    found[:, y] = 0.5 - sin * dx + cos * dy
    found[flip, x] = 1.0 - found[flip, x]
  found[:, 2] *= smaller
  return found.astype(np.float32)


def causes(
  quality: np.ndarray,
  grade: np.ndarray,
  criteria: np.ndarray,
  fault: np.ndarray,
) -> np.ndarray:
  """Returns what is known of the local criteria, int32 [n, 3].

  In labels.LOCAL_CRITERIA's order: 0 where a photograph has no fault of a
  criterion, 1 where it has one, 2 where that was put in and its place is known,
  -1 where nothing is known. An Adequate (of EyeQ: a Good) photograph has none.

  Args:
    quality: int [n], as photographed, before a fault was put in.
    grade: int [n], likewise.
    criteria: int [n, 4], likewise.
    fault: int [n], number of the criterion whose fault was put in, or -1.
  """
  places = [labels.CRITERIA.index(name) for name in labels.LOCAL_CRITERIA]
  known = np.asarray(criteria)[:, places].astype(np.int32)
  clean = (quality == labels.ADEQUATE) & (grade <= 0)
  known = np.where((known < 0) & clean[:, None], 0, known)
  return np.where(np.asarray(fault)[:, None] == places, 2, known)


def targets(source, plan, at, share) -> dict[str, np.ndarray]:
  """Returns all of a batch but its pictures, padded to `share` examples.

  Args:
    source: the data.
    plan: what comes when.
    at: int [n], places in the plan, n <= share.
    share: examples of this process's part of a batch.
  """
  n = len(at)
  index = np.zeros(share, np.int64)
  index[:n] = plan.index[at]
  mask = np.zeros(share, np.float32)
  mask[:n] = 1.0
  table = source.table
  fault = np.full(share, -1, np.int8)
  fault[:n] = plan.fault[at]
  cause = causes(
    table['quality'][index],
    table['grade'][index],
    table['criteria'][index],
    fault,
  )
  marks = np.full((share, 5), np.nan, np.float32)
  marks[:n] = landmarks(
    table, plan.index[at], plan.flip[at], plan.angle[at], plan.shrink[at]
  )
  return {
    'mask': mask,
    'index': index,
    **_after_faults(table, index, fault),
    'cause': cause,
    'landmarks': marks,
    'image_id': table['image_id'][index],
  }


def _image_batches(
  source, plan, slots, image_size, share, cells
) -> Iterator[dict[str, np.ndarray]]:
  """Yields the pictures of each non-empty slot list (see `_shapes`)."""
  import tensorflow as tf

  order = np.concatenate([np.zeros(0, np.int64), *slots]).astype(np.int64)
  if not len(order):
    return
  box = _boxes(source.table, plan.index[order])
  original = bool(source.table['original'][plan.index[order]].any())
  through = max(image_size, prepare.SIZE)
  faulty = bool(np.any(plan.fault[order] >= 0))
  retaken = bool(np.any(plan.camera[order] >= 0))
  turned = bool(np.any(plan.angle[order]) or np.any(plan.shrink[order]))

  def fetch(indices):
    return tf.numpy_function(
      lambda i: np.array(source.read(i), dtype=object), [indices], tf.string
    )

  def decode(record, step):
    example = source._features.deserialize_example(
      record, decoders={'image': _skip()}
    )
    image = _decode(tf, example['image'], step['box'], through)
    if original:
      image = _fit(tf, image, step['box'], through)
    if cells:
      image = _with_field_and_fault(tf, image, step, source.fields)
    elif faulty:
      image = tf.cond(
        step['fault'] >= 0,
        lambda: _fault(tf, image, step),
        lambda: image,
      )
    if retaken:
      # After the fault: a camera photographs a fault with the rest.
      image = tf.cond(
        step['camera'] >= 0,
        lambda: _retake(tf, image, step['camera']),
        lambda: image,
      )
    if turned:
      image = _turn(tf, image, step['angle'], step['shrink'])
    parts = {'image': image}
    if cells:
      # A grid is a picture too, of a pixel a cell.
      fault = _resize(tf, image[..., 4:], cells)[..., 0]
      parts = {'image': image[..., :4], 'fault': fault}
    parts['image'] = _resize(tf, parts['image'], image_size)
    return {
      key: tf.ensure_shape(
        tf.cond(step['flip'], lambda v=value: v[:, ::-1], lambda v=value: v),
        _shapes(image_size, cells)[key],
      )
      for key, value in parts.items()
    }

  steps = tf.data.Dataset.from_tensor_slices(
    {
      'flip': plan.flip[order],
      'angle': plan.angle[order],
      'shrink': plan.shrink[order],
      'fault': plan.fault[order].astype(np.int32),
      'seed': plan.seed[order].astype(np.int64),
      'procedural': plan.procedural[order],
      'camera': plan.camera[order],
      'box': box,
      'index': plan.index[order],
    }
  )
  found = (
    tf.data.Dataset.from_tensor_slices(plan.index[order])
    .batch(min(_READ, share))
    .map(fetch, num_parallel_calls=2, deterministic=True)
    .unbatch()
  )
  dataset = tf.data.Dataset.zip(found, steps).map(
    decode, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
  )
  options = tf.data.Options()
  # In the shared pool, of a thread a core, those that wait for records keep
  # those that decode from running: half the speed, on and off.
  options.threading.private_threadpool_size = 2 * machine.cpu_count() + 2
  dataset = dataset.with_options(options)
  # A share may be short only where the plan ends.
  iterator = dataset.batch(share).prefetch(2).as_numpy_iterator()
  yield from iterator


def _skip():
  import tensorflow_datasets as tfds

  return tfds.decode.SkipDecoding()


def _boxes(table: Mapping[str, np.ndarray], index: np.ndarray) -> np.ndarray:
  """Returns where the prepared square lies in the stored image.

  float32 [n, 3]: left, top and side as shares of the stored image's width.
  """
  affine = table['affine'][index]
  side = affine[:, 0, 0] * table['size'][index]
  boxes = np.stack([affine[:, 0, 2], affine[:, 1, 2], side], 1)
  boxes /= table['width'][index, None]
  boxes[~table['original'][index]] = _WHOLE
  return boxes.astype(np.float32)


def _decode(tf, data, box, through: int):
  """Returns the prepared square of a stored JPEG, uint8.

  Of a record that holds all pixels it is what prepare.stored makes of them,
  but halved by the JPEG's DCT, which saves most of the decoding.
  """
  shape = tf.cast(tf.image.extract_jpeg_shape(data)[:2], tf.float32)
  ratio = tf.maximum(tf.reduce_min(shape) / (2.0 * through), 1.0)
  level = tf.cast(tf.floor(tf.math.log(ratio) / math.log(2.0)), tf.int32)
  image = tf.switch_case(
    tf.minimum(level, 3),
    [
      functools.partial(
        tf.io.decode_jpeg,
        data,
        channels=3,
        ratio=ratio,
        # As Pillow does it; TensorFlow's own choice is off by up to 8 levels.
        dct_method='INTEGER_ACCURATE',
      )
      for ratio in (1, 2, 4, 8)
    ],
  )
  decoded = tf.shape(image)
  scaled = tf.cast(decoded[1], tf.float32) * box
  left, top, side = tf.unstack(tf.cast(tf.round(scaled), tf.int32))
  x0, y0 = tf.maximum(left, 0), tf.maximum(top, 0)
  x1 = tf.minimum(left + side, decoded[1])
  y1 = tf.minimum(top + side, decoded[0])
  return tf.pad(
    image[y0:y1, x0:x1],
    [[y0 - top, top + side - y1], [x0 - left, left + side - x1], [0, 0]],
  )


def _fit(tf, image, box, through: int):
  """Brings a square cut out of a photograph to the size that records have."""

  def fit(pixels, box):
    whole = np.array_equal(box, _WHOLE)
    return pixels if whole else prepare.square(pixels, through)

  fitted = tf.numpy_function(fit, [image, box], tf.uint8)
  return tf.ensure_shape(fitted, (None, None, 3))


def _fault(tf, image, step):
  """Puts a simulated fault of a criterion into a photograph."""

  def apply(pixels, criterion, seed, procedural):
    inside = prepare.with_field(pixels)[..., 3] > 0
    return plant(pixels, inside, criterion, seed, procedural)[0]

  arguments = [image, step['fault'], step['seed'], step['procedural']]
  faulty = tf.numpy_function(apply, arguments, tf.uint8)
  return tf.ensure_shape(faulty, (None, None, 3))


def _with_field_and_fault(tf, image, step, fields):
  """Returns [n, n, 5]: the photograph, its field, and where its fault is.

  `fields` are those of records seen before, by their index and side.
  """

  def apply(pixels, index, criterion, seed, procedural):
    key = int(index), len(pixels)
    if key not in fields:
      fields[key] = geometry.find_field(pixels)
    both = prepare.with_field(pixels, fields[key])
    mask = np.zeros(pixels.shape[:2], np.float32)
    if criterion >= 0:
      inside = both[..., 3] > 0
      both[..., :3], mask = plant(pixels, inside, criterion, seed, procedural)
    fault = np.rint(255 * mask)[..., None].astype(np.uint8)
    return np.concatenate([both, fault], -1)

  arguments = [
    image,
    step['index'],
    step['fault'],
    step['seed'],
    step['procedural'],
  ]
  planes = tf.numpy_function(apply, arguments, tf.uint8)
  return tf.ensure_shape(planes, (None, None, 5))


def _retake(tf, image, seed):
  """Takes a photograph again with another camera, its field and fault too."""

  def apply(planes, seed):
    from iqa_jax.simulation import cameras

    both = planes if planes.shape[-1] > 3 else prepare.with_field(planes)
    inside = both[..., 3] > 0
    mask = both[..., 4] if both.shape[-1] > 4 else None
    rng = np.random.default_rng(seed)
    pixels, inside, mask = cameras.retake(
      both[..., :3], inside, cameras.draw(rng), rng, mask
    )
    field = 255 * inside.astype(np.uint8)
    parts = [pixels, field[..., None], mask[..., None]]
    return np.concatenate(parts, -1)[..., : planes.shape[-1]]

  taken = tf.numpy_function(apply, [image, seed], tf.uint8)
  return tf.ensure_shape(taken, (None, None, image.shape[-1]))


def plant(
  pixels: np.ndarray,
  inside: np.ndarray,
  criterion: int,
  seed: int,
  procedural: bool,
) -> tuple[np.ndarray, np.ndarray]:
  """Puts the fault that a plan names into a prepared photograph.

  Args:
    pixels: uint8 [n, n, 3].
    inside: bool [n, n], the field of view.
    criterion: number of the criterion that it breaks.
    seed: draws its kind and severity.
    procedural: whether it is of no named kind (simulation/procedural.py).

  Returns:
    The faulty photograph, and the fault's mask, float32 [n, n] in 0..1.
  """
  from iqa_jax.simulation import faults
  from iqa_jax.simulation import procedural as unnamed

  rng = np.random.default_rng(seed)
  name = labels.CRITERIA[criterion]
  if procedural:
    return unnamed.apply(pixels, inside, name, rng)
  kind = str(rng.choice(faults.KINDS[name]))
  severity = rng.uniform(faults.THRESHOLD, 1.0)
  return faults.apply(pixels, inside, kind, severity, rng)


def _turn(tf, image, angle, shrink):
  """Rotates and shrinks about the centre, bilinear, black outside."""
  # At the stored size, before the downsize: interpolation blurs, and blur is
  # a fault that the network looks for.
  middle = tf.cast(tf.shape(image)[0], tf.float32) / 2.0 - 0.5
  cos = tf.cos(angle) / (1.0 - shrink)
  sin = tf.sin(angle) / (1.0 - shrink)
  zero = tf.zeros_like(cos)
  transform = tf.stack(
    [
      cos, -sin, middle - cos * middle + sin * middle,
      sin, cos, middle - sin * middle - cos * middle,
      zero, zero,
    ]
  )  # fmt: skip
  turned = tf.raw_ops.ImageProjectiveTransformV3(
    images=tf.cast(image, tf.float32)[None],
    transforms=transform[None],
    output_shape=tf.shape(image)[:2],
    fill_value=0.0,
    interpolation='BILINEAR',
    fill_mode='CONSTANT',
  )[0]
  return tf.cast(tf.round(turned), tf.uint8)


def _resize(tf, image, size: int):
  """Brings an image to the network's size as every other path does."""
  resized = tf.numpy_function(
    lambda pixels: prepare.resize(pixels, size), [image], tf.uint8
  )
  return tf.ensure_shape(resized, (size, size, image.shape[-1]))
