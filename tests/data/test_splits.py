"""Splits: no patient in two, stratified, the same everywhere."""

import hashlib

import numpy as np
import pytest

from iqa_jax import config as config_lib
from iqa_jax import labels
from iqa_jax.data import splits
from iqa_jax.data.records import DataError


def patients_table(count=8524, seed=0):
  """A dataset with BRSet's numbers: 1-4 photographs each, two cameras."""
  rng = np.random.default_rng(seed)
  repeat = rng.integers(1, 4, count)
  nikon = rng.random(count) < 0.35
  fragile = rng.random(count) < np.where(nikon, 0.3, 0.14)
  where = np.repeat(np.arange(count), repeat)
  n = len(where)
  quality = (fragile[where] & (rng.random(n) < 0.6)).astype(np.int64)
  return {
    'dataset': np.full(n, 'brset'),
    'split': np.full(n, 'train'),
    'image_id': np.array([f'img{i:05d}' for i in range(n)]),
    'patient_id': np.array([str(p) for p in where]),
    'camera': np.where(nikon[where], 'NIKON NF5050', 'Canon CR'),
    'quality': quality,
    'grade': np.full(n, labels.UNKNOWN),
    'criteria': np.repeat(quality[:, None], 4, 1),
  }


@pytest.fixture(scope='module')
def table():
  return patients_table()


def brset_config(**changes):
  config = config_lib.default()
  config.data.name = 'brset'
  config.data.update(changes)
  return config


@pytest.mark.parametrize('fold', range(5))
def test_no_patient_crosses(table, fold):
  assert len(np.unique(table['patient_id'])) == 8524
  parts = splits.assign(table, brset_config(fold=fold))
  patients = [set(table['patient_id'][parts[k]]) for k in splits.NAMES]
  assert not patients[0] & patients[1]
  assert not patients[0] & patients[2]
  assert not patients[1] & patients[2]
  joined = np.sort(np.concatenate([parts[k] for k in splits.NAMES]))
  np.testing.assert_array_equal(joined, np.arange(len(table['quality'])))


def test_every_fold_has_the_same_prevalence_of_each_camera(table):
  # Dealt by stratum, a fold's patients differ by one at most; photographs by
  # what their patients have.
  prevalence = {}
  for fold in range(5):
    chosen = splits.assign(table, brset_config(fold=fold))['validation']
    for camera in np.unique(table['camera']):
      of_it = chosen[table['camera'][chosen] == camera]
      prevalence[fold, camera] = table['quality'][of_it].mean()
      whole = table['quality'][table['camera'] == camera].mean()
      assert abs(prevalence[fold, camera] - whole) < 0.015
      assert abs(len(of_it) / (table['camera'] == camera).sum() - 0.2) < 0.02


def test_patients_are_dealt_evenly_within_each_stratum(table):
  strata = table['quality'] * 2 + (table['camera'] == 'Canon CR')
  fold = splits.folds(table['patient_id'], strata, 5)
  patients, first = np.unique(table['patient_id'], return_index=True)
  largest = np.zeros(len(patients), int)
  np.maximum.at(largest, np.searchsorted(patients, table['patient_id']), strata)
  for stratum in range(4):
    counts = np.bincount(fold[first][largest == stratum], minlength=5)
    assert np.ptp(counts) <= 1


def test_the_deal_is_the_same_on_every_machine():
  # By arithmetic: NumPy may change what its generators draw.
  i = np.arange(3000)
  patient = i * 2 // 3
  table = {
    'dataset': np.full(3000, 'brset'),
    'split': np.full(3000, 'train'),
    'image_id': np.array([f'img{k:05d}' for k in i]),
    'patient_id': np.array([str(p) for p in patient]),
    'camera': np.where(patient % 3, 'Canon CR', 'NIKON NF5050'),
    'quality': (i * 7919 % 100 < 12).astype(np.int64),
  }
  parts = splits.assign(table, brset_config())
  digest = hashlib.sha256()
  for name in splits.NAMES:
    digest.update('\n'.join(table['image_id'][parts[name]]).encode())
  # Another digest means that results published before can't be repeated.
  assert digest.hexdigest()[:16] == 'd95e419b7d17b053'


def test_the_order_of_rows_does_not_matter(table):
  order = np.random.default_rng(1).permutation(len(table['quality']))
  shuffled = {k: v[order] for k, v in table.items()}
  for name in splits.NAMES:
    a = table['image_id'][splits.assign(table, brset_config())[name]]
    b = shuffled['image_id'][splits.assign(shuffled, brset_config())[name]]
    assert set(a) == set(b)


def test_folds_cover_everyone_once(table):
  tested = np.concatenate(
    [splits.assign(table, brset_config(fold=f))['test'] for f in range(5)]
  )
  np.testing.assert_array_equal(np.sort(tested), np.arange(len(tested)))
  assert len(tested) == len(table['quality'])


def test_official_test_split_is_kept(table):
  official = np.where(
    np.char.str_len(table['patient_id']) == 4, 'test', 'train'
  )
  with_test = {**table, 'split': official}
  parts = splits.assign(with_test, brset_config())
  np.testing.assert_array_equal(
    parts['test'], np.nonzero(official == 'test')[0]
  )
  assert len(parts['validation']) / (official == 'train').sum() == (
    pytest.approx(0.2, abs=0.02)
  )


def test_balanced_subset_is_of_training_only(table):
  natural = splits.assign(table, brset_config())
  balanced = splits.assign(table, brset_config(balance='subset'))
  for name in ('validation', 'test'):
    np.testing.assert_array_equal(natural[name], balanced[name])
  counts = np.bincount(table['quality'][balanced['train']])
  assert counts[0] == counts[1] == table['quality'][natural['train']].sum()
  assert len(np.unique(balanced['train'])) == len(balanced['train'])
  assert set(balanced['train']) <= set(natural['train'])


def test_cameras_can_be_held_out(table):
  parts = splits.assign(
    table,
    brset_config(train_cameras=('Canon CR',), test_cameras=('NIKON NF5050',)),
  )
  for name, camera in (
    ('train', 'Canon CR'),
    ('validation', 'Canon CR'),
    ('test', 'NIKON NF5050'),
  ):
    assert set(table['camera'][parts[name]]) == {camera}
  # Every one of that camera, but of patients who were learnt from.
  learnt = np.concatenate([parts['train'], parts['validation']])
  nikon = table['camera'] == 'NIKON NF5050'
  assert not np.isin(
    table['patient_id'][nikon], table['patient_id'][learnt]
  ).any()
  np.testing.assert_array_equal(parts['test'], np.nonzero(nikon)[0])
  with pytest.raises(DataError, match="no camera 'Nikon'; there are Canon CR"):
    splits.assign(table, brset_config(test_cameras=('Nikon',)))


def test_another_camera_tests_no_patient_that_was_learnt_from(table, caplog):
  # Every tenth patient was photographed by both cameras.
  both = np.char.endswith(table['patient_id'], '7')
  mixed = {**table, 'camera': table['camera'].copy()}
  mixed['camera'][both & (np.arange(len(both)) % 2 == 0)] = 'NIKON NF5050'
  mixed['camera'][both & (np.arange(len(both)) % 2 == 1)] = 'Canon CR'
  config = brset_config(
    train_cameras=('Canon CR',), test_cameras=('NIKON NF5050',)
  )
  with caplog.at_level('INFO'):
    parts = splits.assign(mixed, config)
  patients = {k: set(mixed['patient_id'][v]) for k, v in parts.items()}
  assert not patients['test'] & (patients['train'] | patients['validation'])
  learnt = patients['train'] | patients['validation']
  nikon = np.nonzero(mixed['camera'] == 'NIKON NF5050')[0]
  expected = [i for i in nikon if mixed['patient_id'][i] not in learnt]
  assert 0 < len(expected) < len(nikon)
  np.testing.assert_array_equal(parts['test'], expected)
  assert (
    f'brset: {len(expected)} of {len(nikon)} photographs by NIKON NF5050 test'
  ) in caplog.text


def test_a_smaller_training_set_tests_the_same_photographs(table):
  cameras = {
    'train_cameras': ('Canon CR',),
    'test_cameras': ('NIKON NF5050', 'Canon CR'),
  }
  whole = splits.assign(table, brset_config(**cameras))
  for changes in ({'max_train_examples': 100}, {'balance': 'subset'}):
    small = splits.assign(table, brset_config(**cameras, **changes))
    np.testing.assert_array_equal(small['test'], whole['test'])


def test_all_of_another_dataset_tests(table, caplog):
  n = len(table['quality'])
  both = {k: np.concatenate([v, v]) for k, v in table.items()}
  both['dataset'] = np.repeat(['eyeq', 'brset'], n)
  config = brset_config(name='eyeq', test_name='brset')
  with caplog.at_level('INFO'):
    parts = splits.assign(both, config)
  np.testing.assert_array_equal(parts['test'], np.arange(n, 2 * n))
  assert f'brset: {n} of {n} photographs test' in caplog.text
  # One that publishes a test split is tested on that, as everyone does.
  both['split'] = both['split'].astype('U10')
  both['split'][n : n + 40] = 'test'
  parts = splits.assign(both, config)
  np.testing.assert_array_equal(parts['test'], np.arange(n, n + 40))


def test_other_dataset_tests(table):
  n = len(table['quality'])
  both = {k: np.concatenate([v, v]) for k, v in table.items()}
  both['dataset'] = np.repeat(['brset', 'eyeq'], n)
  parts = splits.assign(both, brset_config(test_name='eyeq'))
  assert set(both['dataset'][parts['test']]) == {'eyeq'}
  for name in ('train', 'validation'):
    assert set(both['dataset'][parts[name]]) == {'brset'}


@pytest.mark.parametrize(
  ('changes', 'error', 'message'),
  [
    ({'fold': 5}, ValueError, 'data.fold=5 is not a fold'),
    ({'folds': 1}, ValueError, 'data.folds=1'),
    ({'balance': 'x'}, ValueError, "data.balance='x' is none of"),
    ({'name': 'eyeq'}, DataError, 'train split of eyeq is empty'),
  ],
)
def test_errors(table, changes, error, message):
  with pytest.raises(error, match=message):
    splits.assign(table, brset_config(**changes))


def test_in_a_mixture_each_dataset_is_dealt_as_alone(table):
  """Though the source names its patients by dataset there."""
  n = len(table['quality'])
  both = {k: np.concatenate([v, v]) for k, v in table.items()}
  both['dataset'] = np.repeat(['brset', 'own'], n)
  named = np.char.add(np.char.add(both['dataset'], ':'), both['patient_id'])
  both['patient_id'] = named
  mixed = splits.assign(both, brset_config(name='brset+own'))
  alone = splits.assign(table, brset_config())
  for name in splits.NAMES:
    expected = np.concatenate([alone[name], n + alone[name]])
    np.testing.assert_array_equal(mixed[name], expected)


def test_limit_of_training_examples(table):
  small = splits.assign(table, brset_config(max_train_examples=100))['train']
  large = splits.assign(table, brset_config(max_train_examples=300))['train']
  assert len(small) == 100
  assert set(small) < set(large)


def test_training_can_do_without_real_inadequate_photographs(table):
  config = brset_config(learn_inadequate=False)
  with pytest.raises(ValueError, match='nothing inadequate to learn from'):
    splits.assign(table, config)
  config.data.faults.procedural = 0.5
  without, all_ = (splits.assign(table, c) for c in (config, brset_config()))
  good = all_['train'][table['quality'][all_['train']] == labels.ADEQUATE]
  np.testing.assert_array_equal(without['train'], good)
  for name in ('validation', 'test'):
    np.testing.assert_array_equal(without[name], all_[name])


def test_usable_photographs_are_not_taken_for_faultless():
  table = patients_table(60)
  table['dataset'][:] = 'eyeq'
  table['grade'] = np.arange(len(table['quality'])) % 3
  table['quality'] = np.where(table['grade'] == 2, 1, 0)
  config = config_lib.default()
  config.data.name = 'eyeq'
  config.task.usable = 'adequate'
  config.data.faults.focus = 0.1
  config.data.learn_inadequate = False
  train = splits.assign(table, config)['train']
  assert (table['grade'][train] == 0).all()
