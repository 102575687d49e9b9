"""Runs are compared photograph by photograph, by camera and criterion."""

import dataclasses

import numpy as np
import pytest
from scipy import special
from sklearn import metrics as sk

from iqa_jax import labels, run_directory
from iqa_jax.evaluation import comparison, predictions
from tests.evaluation import simulated


def judged(noise, seed, count=600):
  """Returns simulated predictions of the same photographs, test split."""
  source = simulated.Source(count)
  table = source.table
  rng = np.random.default_rng(seed)
  odds = 4.0 * table['quality'] - 2 + rng.normal(0, noise, count)
  p = special.expit(odds)
  rows = simulated.predictions(
    {
      **{k: table[k] for k in ('image_id', 'patient_id', 'camera', 'dataset')},
      **{k: table[k] for k in ('quality', 'criteria')},
      'split': np.full(count, 'test'),
      'p_inadequate': p,
      'p_calibrated': p,
      'log_odds': odds,
      'verdict': (p >= 0.5).astype(int),
    }
  )
  return dataclasses.replace(rows, criteria=table['criteria'])


def write(folder, rows, folds=0):
  """Writes a run, or the folds of a cross-validation; returns its path."""
  if not folds:
    predictions.write(folder / 'predictions.csv', [rows])
    return str(folder)
  fold = np.arange(len(rows)) // 2 % folds
  for k in range(folds):
    predictions.write(
      folder / f'fold_{k}' / 'predictions.csv', [rows[fold == k]]
    )
  run_directory.write_json(folder / 'metrics.json', {'n_folds': folds})
  return str(folder)


@pytest.mark.parametrize('folds', [0, 5])
def test_each_run_is_compared_with_the_first_by_group(tmp_path, folds):
  first, worse, same = judged(2, 1), judged(4, 2), judged(2, 1)
  shuffled = worse[np.random.default_rng(0).permutation(len(worse))]
  paths = [
    write(tmp_path / 'first', first, folds),
    write(tmp_path / 'worse', shuffled if not folds else worse, folds),
    write(tmp_path / 'same', same, folds),
  ]
  result = comparison.run(paths, tmp_path / 'out', 'simulated')
  assert result['arms'] == ['first', 'worse', 'same']
  groups = {g['group']: g for g in result['groups']}
  assert set(groups) == {
    'all',
    'camera Canon CR',
    'camera NIKON NF5050',
    *labels.CRITERIA,
  }
  for name, group in groups.items():
    inside = np.ones(len(first), bool)
    if name.startswith('camera'):
      inside = first.camera == name.removeprefix('camera ')
    elif name != 'all':
      failing = first.criteria[:, labels.CRITERIA.index(name)] == 1
      inside = failing | (first.quality == 0)
    truth = first.quality[inside]
    a, b = (
      sk.roc_auc_score(truth, rows.log_odds[inside]) for rows in (first, worse)
    )
    assert group['n'] == inside.sum()
    np.testing.assert_allclose(group['arms'][0]['auc']['value'], a)
    found, none = group['against_first']
    np.testing.assert_allclose(found['difference'], b - a)
    assert none['difference'] == 0 and none['p_value'] == 1
  whole = groups['all']['against_first'][0]
  assert whole['low'] < whole['difference'] < whole['high'] < 0
  # Two comparisons, of which the other is far from any difference.
  np.testing.assert_allclose(whole['p_holm'], 2 * whole['p_value'])
  assert len(whole['of_folds']) == max(folds, 1)
  text = (tmp_path / 'out' / 'report.md').read_text()
  assert '- simulated' in text
  rows = [line.split(' | ') for line in text.splitlines() if ' | ' in line]
  assert len(rows) == 2 + 3 * len(groups)
  nikon = next(r for r in rows if 'NIKON' in r[0] and r[4] == 'worse')
  shown = groups['camera NIKON NF5050']['against_first'][0]['difference']
  assert nikon[8].startswith(f'{shown:+.4f} (')


def test_interval_of_a_difference_is_that_of_resampled_patients(tmp_path):
  first, other = judged(2, 1), judged(2.5, 2)
  paths = [write(tmp_path / 'a', first), write(tmp_path / 'b', other)]
  result = comparison.run(paths, tmp_path / 'out')
  found = result['groups'][0]['against_first'][0]
  rng, drawn = np.random.default_rng(0), []
  for _ in range(200):
    patients = rng.integers(0, len(first) // 2, len(first) // 2)
    rows = np.concatenate([2 * patients, 2 * patients + 1])
    drawn.append(
      sk.roc_auc_score(first.quality[rows], other.log_odds[rows])
      - sk.roc_auc_score(first.quality[rows], first.log_odds[rows])
    )
  width = 2 * 1.96 * np.std(drawn)
  np.testing.assert_allclose(found['high'] - found['low'], width, rtol=0.15)


def test_runs_of_other_photographs_or_labels_are_refused(tmp_path):
  rows = judged(2, 1)
  first = write(tmp_path / 'a', rows)
  fewer = write(tmp_path / 'b', rows[:-3])
  with pytest.raises(run_directory.RunDirectoryError, match='3 are in one'):
    comparison.run([first, fewer], tmp_path / 'out')
  other = dataclasses.replace(rows, quality=1 - rows.quality)
  with pytest.raises(run_directory.RunDirectoryError, match='other labels'):
    comparison.run([first, write(tmp_path / 'c', other)], tmp_path / 'out')
