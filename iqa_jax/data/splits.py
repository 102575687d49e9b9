"""Which patients train, validate and test: stratified, the same everywhere.

Patients are dealt to folds in the order of a hash of their name, stratum by
stratum (whether any of their photographs is inadequate, and the camera), so
the deal depends on no library's random numbers and on no seed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
import hashlib

from absl import logging
import ml_collections
import numpy as np

from iqa_jax import errors, labels
from iqa_jax.data.records import DataError

NAMES = ('train', 'validation', 'test')


def assign(
  table: Mapping[str, np.ndarray], config: ml_collections.ConfigDict
) -> dict[str, np.ndarray]:
  """Returns the examples of each split, as sorted int64 indices.

  A dataset's own train/validation/test splits are kept; what it does not have
  is carved out of the rest by patient: fold `data.fold` of `data.folds`
  validates and, where there is no test split, the next one tests. A dataset
  that is not trained on tests with all that it has, and so do cameras that are
  chosen for the test, but for patients in train or validation: no fold needs to
  be kept apart there. Validation and test keep their natural prevalence.

  Args:
    table: 'dataset', 'split', 'image_id', 'patient_id', 'camera', 'quality',
      'grade' and 'criteria' of every example (source.Source.table).
    config: the run's; reads `data` and `task`.

  Raises:
    DataError: a split is empty, or a filter names no camera of the dataset.
    ValueError: a field of the configuration is out of range.
  """
  data = config.data
  if data.folds < 2 or not 0 <= data.fold < data.folds:
    raise errors.InvalidValue(
      f'data.fold={data.fold} is not a fold of data.folds={data.folds}'
    )
  chosen: dict[str, list[np.ndarray]] = {name: [] for name in NAMES}
  trained_on = data.name.split('+')
  tested_on = [data.test_name] if data.test_name else trained_on
  for name in dict.fromkeys([*trained_on, *tested_on]):
    indices = np.nonzero(table['dataset'] == name)[0]
    parts = _of_dataset(table, indices, data)
    if name in trained_on:
      chosen['train'].append(parts['train'])
      chosen['validation'].append(parts['validation'])
    if name in tested_on:
      learns = name in trained_on
      chosen['test'].append(_tested(table, indices, parts, config, learns))
  splits = {k: np.sort(np.concatenate(v)) for k, v in chosen.items()}
  splits = {k: v[_labelled(table, v, config)] for k, v in splits.items()}
  for name, cameras in (
    ('train', data.train_cameras),
    ('validation', data.train_cameras),
    ('test', data.test_cameras),
  ):
    splits[name] = _of_cameras(table, splits[name], cameras)
  if not data.learn_inadequate:
    splits['train'] = _adequate(table, splits['train'], data)
  splits['train'] = _balanced(table, splits['train'], config)
  if data.max_train_examples:
    splits['train'] = _first(table, splits['train'], data.max_train_examples)
  for name, indices in splits.items():
    if not len(indices):
      raise DataError(f'the {name} split of {data.name} is empty')
  if data.test_name or data.test_cameras:
    _say_what_tests(table, splits['test'], tested_on, config)
  return splits


def folds(patient: np.ndarray, stratum: np.ndarray, count: int) -> np.ndarray:
  """Returns the fold of every example, int [n]; a patient's are the same.

  Args:
    patient: [n] names.
    stratum: int [n], of the example; a patient's is the largest.
    count: number of folds.
  """
  names, where = np.unique(patient, return_inverse=True)
  strata = np.zeros(len(names), int)
  np.maximum.at(strata, where, stratum)
  order = sorted(
    range(len(names)), key=lambda i: (strata[i], _hash(str(names[i])))
  )
  dealt = np.empty(len(names), int)
  # On from stratum to stratum, so that rare ones don't all start at fold 0.
  dealt[order] = np.arange(len(names)) % count
  return dealt[where]


def _hash(name: str) -> bytes:
  return hashlib.sha256(name.encode()).digest()


def _of_dataset(
  table: Mapping[str, np.ndarray],
  indices: np.ndarray,
  data: ml_collections.ConfigDict,
) -> dict[str, np.ndarray]:
  split = table['split'][indices]
  parts = {name: indices[split == name] for name in NAMES}
  given = {name for name in NAMES if len(parts[name])}
  rest = indices[~np.isin(split, [n for n in NAMES if n != 'train'])]
  if {'validation', 'test'} <= given:
    return parts
  cameras = np.unique(table['camera'], return_inverse=True)[1][rest]
  inadequate = table['quality'][rest] == labels.INADEQUATE
  # As named in the dataset, so that the deal is the same in a mixture.
  patients = np.array(
    [
      str(p).removeprefix(f'{d}:')
      for d, p in zip(
        table['dataset'][rest], table['patient_id'][rest], strict=True
      )
    ]
  )
  fold = folds(
    patients, inadequate * (cameras.max(initial=0) + 1) +
    cameras, data.folds,
  )  # fmt: skip
  validates = fold == data.fold
  tests = np.zeros_like(validates)
  if 'test' not in given:
    tests = fold == (data.fold + 1) % data.folds
    parts['test'] = rest[tests]
  parts['validation'] = rest[validates]
  parts['train'] = rest[~validates & ~tests]
  return parts


def _tested(
  table: Mapping[str, np.ndarray],
  indices: np.ndarray,
  parts: Mapping[str, np.ndarray],
  config: ml_collections.ConfigDict,
  learns: bool,
) -> np.ndarray:
  """Returns the examples of a dataset that may test."""
  data = config.data
  if (table['split'][indices] == 'test').any():
    return parts['test']
  if not learns:
    return indices
  if not data.test_cameras:
    return parts['test']
  learnt = np.concatenate([parts['train'], parts['validation']])
  learnt = learnt[_labelled(table, learnt, config)]
  if data.train_cameras:
    by_them = np.isin(table['camera'][learnt], list(data.train_cameras))
    learnt = learnt[by_them]
  patients = table['patient_id']
  return indices[~np.isin(patients[indices], patients[learnt])]


def _say_what_tests(
  table: Mapping[str, np.ndarray],
  test: np.ndarray,
  datasets: Iterable[str],
  config: ml_collections.ConfigDict,
) -> None:
  """Logs how many of the photographs that could test do."""
  cameras = list(config.data.test_cameras)
  for name in datasets:
    every = np.nonzero(table['dataset'] == name)[0]
    every = every[_labelled(table, every, config)]
    if cameras:
      every = every[np.isin(table['camera'][every], cameras)]
    used = np.intersect1d(every, test)
    logging.info(
      '%s: %d of %d photographs%s test, of %d patients',
      name,
      len(used),
      len(every),
      f' by {", ".join(cameras)}' if cameras else '',
      len(np.unique(table['patient_id'][used])),
    )


def _labelled(
  table: Mapping[str, np.ndarray],
  indices: np.ndarray,
  config: ml_collections.ConfigDict,
) -> np.ndarray:
  if config.task.name == 'grade':
    return table['grade'][indices] >= 0
  return table['quality'][indices] >= 0


def _of_cameras(
  table: Mapping[str, np.ndarray], indices: np.ndarray, cameras: Sequence[str]
) -> np.ndarray:
  if not cameras:
    return indices
  there = np.unique(table['camera'][indices])
  unknown = [c for c in cameras if c not in there]
  if unknown:
    raise DataError(
      f'there is no camera {unknown[0]!r}; there are {", ".join(there)}'
    )
  return indices[np.isin(table['camera'][indices], list(cameras))]


def _adequate(
  table: Mapping[str, np.ndarray],
  indices: np.ndarray,
  data: ml_collections.ConfigDict,
) -> np.ndarray:
  """Returns the photographs without fault, into which faults can be put."""
  if not any(data.faults.values()):
    raise errors.InvalidValue(
      'data.learn_inadequate=False leaves nothing inadequate to learn from: '
      'give shares of simulated faults, data.faults'
    )
  good = table['quality'][indices] == labels.ADEQUATE
  return indices[good & (table['grade'][indices] <= 0)]


def _balanced(
  table: Mapping[str, np.ndarray],
  indices: np.ndarray,
  config: ml_collections.ConfigDict,
) -> np.ndarray:
  """Returns as many training examples of each class, none twice."""
  balance = config.data.balance
  errors.one_of('data.balance=', balance, ('none', 'sampling', 'subset'))
  if balance != 'subset':
    return indices
  label = table[class_column(config.task.name)][indices]
  classes, counts = np.unique(label, return_counts=True)
  smallest = counts.min()
  logging.info('balanced subset: %d of each of %s', smallest, classes.tolist())
  kept = [_first(table, indices[label == c], smallest) for c in classes]
  return np.sort(np.concatenate(kept))


def class_column(task: str) -> str:
  """Returns the column whose classes are balanced for a task."""
  return 'grade' if task == 'grade' else 'quality'


def _first(
  table: Mapping[str, np.ndarray], indices: np.ndarray, count: int
) -> np.ndarray:
  order = sorted(indices, key=lambda i: _hash(str(table['image_id'][i])))
  return np.sort(np.asarray(order[:count], np.int64))
