"""Breakdowns find the group that was made to fail, and don't cry wolf."""

import numpy as np
import pytest

from iqa_jax import labels
from iqa_jax.evaluation import breakdowns
from tests.evaluation import simulated


def columns(n=2000, seed=0):
  """Verdicts that are right nine times out of ten, whoever it is."""
  rng = np.random.default_rng(seed)
  truth = (rng.random(n) < 0.4).astype(int)
  right = rng.random(n) < 0.9
  called = np.where(right, truth, 1 - truth)
  fault = rng.integers(0, 4, n)
  p = np.where(called == 1, 0.6, 0.1) + 0.3 * rng.random(n)
  return {
    'image_id': np.arange(n).astype(str),
    'patient_id': (np.arange(n) // 2).astype(str),
    'quality': truth,
    'verdict': called,
    'p_inadequate': p,
    'p_calibrated': p,
    'camera': rng.choice(['A', 'B'], n).astype('<U8'),
    'site': np.where(np.arange(n) % 3, 'north', 'south'),
    'eye': np.where(np.arange(n) % 2, 'right', 'left'),
    'grade': np.where(truth, rng.integers(1, 3, n), 0),
    'field_found': np.ones(n, int),
    'width': rng.choice([1000, 2000, 3000], n),
    'height': np.full(n, 1000),
    **{name: truth * (fault == i) for i, name in enumerate(labels.CRITERIA)},
  }


def of(found, breakdown, group):
  [row] = [
    g
    for g in found['groups']
    if (g['breakdown'], g['group']) == (breakdown, group)
  ]
  return row


def test_counts_add_up_and_shares_are_those_of_the_group():
  c = columns()
  found = breakdowns.run(simulated.predictions(c))
  for name in ('camera', 'site', 'eye', 'grade', 'field', 'size'):
    rows = [g for g in found['groups'] if g['breakdown'] == name]
    assert sum(g['n'] for g in rows) == 2000, name
    assert sum(g['n_inadequate'] for g in rows) == c['quality'].sum()
  inside = (c['camera'] == 'A') & (c['quality'] == 1)
  assert of(found, 'camera', 'A')['sensitivity']['value'] == pytest.approx(
    c['verdict'][inside].mean()
  )
  usable = c['grade'] == 1
  assert of(found, 'grade', 'usable')['sensitivity']['value'] == pytest.approx(
    c['verdict'][usable].mean()
  )


def test_recall_by_sole_failing_criterion():
  c = columns()
  c['focus'][c['illumination'] == 1] = 1
  found = breakdowns.run(simulated.predictions(c))
  assert of(found, 'fault', 'illumination alone')['n'] == 0
  alone = (c['focus'] == 1) & (c['illumination'] == 0)
  row = of(found, 'fault', 'focus alone')
  assert row['n'] == alone.sum()
  assert row['sensitivity']['value'] == pytest.approx(
    c['verdict'][alone].mean()
  )
  assert of(found, 'fault', 'several')['n'] == c['illumination'].sum()


def test_the_group_that_fails_is_named_first():
  c = columns()
  weak = (c['camera'] == 'B') & (c['quality'] == 1)
  c['verdict'][np.flatnonzero(weak)[::2]] = 0
  first = breakdowns.run(simulated.predictions(c))['worst'][0]
  assert (first['breakdown'], first['group']) == ('camera', 'B')
  assert first['measure'] == 'sensitivity' and first['clearly']


def test_a_group_that_is_all_right_is_not_imprecise():
  c = columns()
  c['p_inadequate'] = np.where(
    c['camera'] == 'A', c['quality'], c['p_inadequate']
  )
  auc = of(breakdowns.run(simulated.predictions(c)), 'camera', 'A')['auc']
  assert auc['value'] == 1 and 'imprecise' not in auc['note']
  # An interval, or a note that there is none.
  assert (auc['low'] is None) == ('no interval' in auc['note'])


def test_equal_groups_are_seldom_called_clearly_worse():
  rows = [
    w['clearly']
    for seed in range(20)
    for w in breakdowns.run(simulated.predictions(columns(600, seed)))['worst']
    if w['breakdown'] in ('camera', 'eye')
  ]
  assert np.mean(rows) < 0.1


def test_a_small_group_is_told_to_be_small_and_never_named():
  c = columns()
  c['camera'][:8] = 'rare'
  c['verdict'][:8] = 1 - c['quality'][:8]
  found = breakdowns.run(simulated.predictions(c))
  row = of(found, 'camera', 'rare')
  assert row['accuracy']['value'] == 0
  assert row['accuracy']['note'] == 'too small to tell: 4 patients'
  assert 'too small to tell' in row['auc']['note']
  assert all(w['group'] != 'rare' for w in found['worst'])


def test_a_camera_that_gives_the_label_away_is_a_shortcut():
  c = columns()
  c['camera'] = np.where(c['quality'] == 1, 'A', 'B')
  by_name = {
    s['breakdown']: s
    for s in breakdowns.run(simulated.predictions(c))['shortcuts']
  }
  assert by_name['camera']['auc']['value'] == 1
  assert by_name['eye']['auc']['value'] == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize('sizes', [[512], [512, 1024], [1, 2, 3, 4]])
def test_sizes_are_split_where_they_can_be(sizes):
  c = columns()
  c['width'] = np.resize(sizes, 2000)
  rows = [
    g
    for g in breakdowns.run(simulated.predictions(c))['groups']
    if g['breakdown'] == 'size'
  ]
  assert sum(g['n'] for g in rows) == 2000
  assert len(rows) == min(len(sizes), 3)


def test_no_image_and_unlabelled_images():
  c = {k: v[:10] for k, v in columns().items()}
  c['quality'] = np.full(10, labels.UNKNOWN)
  found = breakdowns.run(simulated.predictions(c))
  assert found['overall']['n'] == 0 and found['worst'] == []
