"""Pools the folds of a cross-validation."""

from __future__ import annotations

from collections.abc import Mapping
import csv
import os
import pathlib
from typing import Any

import ml_collections
import numpy as np

from iqa_jax import labels, run_directory
from iqa_jax.evaluation import assessment, metrics, report
from iqa_jax.evaluation import breakdowns as breakdowns_lib

_TEXT = (
  'image_id',
  'dataset',
  'split',
  'patient_id',
  'camera',
  'site',
  'eye',
  'verdict',
)
_WHOLE = (
  'grade',
  'quality',
  *labels.CRITERIA,
  'field_found',
  'width',
  'height',
  'uncertain',
)


def pool(
  workdir: str | os.PathLike, count: int, config: ml_collections.ConfigDict
) -> dict[str, Any]:
  """Pools WORKDIR/fold_0 ... and writes metrics.json, figures and report.

  Each image counts once: as a test image of its fold or, where all folds share
  one test split, as a validation image of its fold (whose operating point and
  calibration it helped to choose; `pooled_on` and the notes say so).

  Args:
    workdir: the folder of the folds.
    count: their number.
    config: the configuration; reads `eval.bootstrap`.

  Returns:
    What metrics.json holds: 'folds' {metric: {'values', 'mean', 'least',
    'most', 'note'}} over the folds' test splits, 'pooled_on', and 'splits':
    {'pooled': ...} as in any metrics.json. Folds share photographs to train
    on, or to test, so their spread is no standard error and gives no interval.

  Raises:
    RunDirectoryError: a fold is missing or damaged, or folds share images.
  """
  home = pathlib.Path(workdir)
  results, tables = [], []
  for k in range(count):
    results.append(run_directory.read_json(home / f'fold_{k}' / 'metrics.json'))
    tables.append(read_predictions(home / f'fold_{k}' / 'predictions.csv'))
  split, notes = _pooled_split(tables)
  columns = {
    key: np.concatenate([t[key][t['split'] == split] for t in tables])
    for key in tables[0]
    # Raw log-odds of several models are not on one scale.
    if key != 'log_odds'
  }
  # Each fold has a model of its own: only calibrated scores are on one scale,
  # and what is drawn is what is measured.
  columns['p_inadequate'] = columns['p_calibrated']
  # A fold's verdicts are by its own operating point.
  shift = _margins(results, tables, split)
  finite = np.isfinite(shift)
  known = (columns['quality'] >= 0) & finite
  resamples = config.eval.bootstrap
  pooled = {
    'n': len(columns['quality']),
    'n_not_finite': int((~finite).sum()),
    'verdict': assessment.verdict(
      columns['quality'][known],
      columns['p_calibrated'][known],
      columns['p_calibrated'][known],
      0.5,
      columns['patient_id'][known],
      resamples=resamples,
      called=shift[known] >= 0,
    ),
    'breakdowns': breakdowns_lib.run(columns),
  }
  result = {
    'format': 1,
    'positive_class': labels.QUALITY[labels.INADEQUATE],
    'task': results[0]['task'],
    'usable': results[0]['usable'],
    'n_folds': count,
    'folds': _over_folds(results),
    'pooled_on': split,
    'notes': notes,
    'operating_point': {
      'rule': "each fold's own",
      'threshold': 0.5,
      'chosen_on': 'validation of each fold',
    },
    'splits': {'pooled': pooled},
  }
  run_directory.write_json(home / 'metrics.json', result)
  report.write(home, result, {'pooled': columns}, resamples=resamples)
  return result


def read_predictions(path: str | os.PathLike) -> dict[str, np.ndarray]:
  """Returns the columns of a predictions.csv that evaluation wrote.

  Raises:
    RunDirectoryError: it can't be read, or is none.
  """
  try:
    with open(path, encoding='utf-8', newline='') as file:
      rows = list(csv.DictReader(file))
    found: dict[str, np.ndarray] = {}
    for key in rows[0]:
      values = [row[key] for row in rows]
      if key in _TEXT:
        found[key] = np.array(values)
      else:
        found[key] = np.array(values, int if key in _WHOLE else np.float64)
    names = ['unknown', *labels.QUALITY]
    found['verdict'] = np.array([names.index(v) - 1 for v in found['verdict']])
    return found
  except (OSError, LookupError, ValueError, TypeError) as error:
    raise run_directory.RunDirectoryError(
      f'{path} is no predictions.csv of an evaluation: {error}'
    ) from error


def as_text(result: Mapping[str, Any]) -> str:
  """Returns the table of `pool` for a terminal."""
  pooled = result['splits']['pooled']['verdict']
  count = result['n_folds']
  lines = [
    f'{count} folds; positive class: Inadequate; pooled: {pooled["n"]} images, '
    f'{pooled["n_inadequate"]} Inadequate ({result["pooled_on"]} images)',
    *(f'- {note}' for note in result['notes']),
    f'{"":48} {"mean of folds (least to most)":32} pooled (95 % interval)',
  ]
  for name, fold in result['folds'].items():
    of_folds = {
      'value': fold['mean'],
      'low': fold['least'],
      'high': fold['most'],
      'note': fold['note'],
    }
    lines.append(
      f'{metrics.TITLES[name]:48} {assessment.text(of_folds):32} '
      f'{assessment.summary(pooled, name)}'
    )
  return '\n'.join(lines)


def _pooled_split(tables) -> tuple[str, list[str]]:
  for split in ('test', 'validation'):
    names = np.concatenate(
      [
        np.char.add(
          np.char.add(t['dataset'], '/')[t['split'] == split],
          t['image_id'][t['split'] == split],
        )
        for t in tables
      ]
    )
    if len(names) and len(np.unique(names)) == len(names):
      if split == 'test':
        return split, []
      return split, [
        'all folds share one test split, so the pooled results are of the '
        'validation images, which helped to choose the epoch, calibration and '
        'operating point: they flatter. The folds in the table are of the '
        'test split'
      ]
  raise run_directory.RunDirectoryError(
    'the folds share images in both their test and validation splits: they '
    'are not folds of one data set (look at data.folds and data.fold in their '
    'config.json)'
  )


def _margins(results, tables, split) -> np.ndarray:
  """Returns p_calibrated less the threshold of each image's own fold."""
  return np.concatenate(
    [
      t['p_calibrated'][t['split'] == split] - r['operating_point']['threshold']
      for r, t in zip(results, tables, strict=True)
    ]
  )


def _over_folds(results) -> dict[str, Any]:
  """Returns each metric's mean and range over the folds."""
  found = {}
  for name in (*metrics.RANKING, *metrics.DECISIONS, *metrics.PROBABILITIES):
    # An older evaluation may lack a metric.
    values = [
      r['splits']['test']['verdict']['metrics'].get(name, {}).get('value')
      for r in results
    ]
    there = [v for v in values if v is not None]
    lacking = len(values) - len(there)
    note = f'undefined in {lacking} folds' if lacking else ''
    found[name] = {
      'values': values,
      'mean': float(np.mean(there)) if there else None,
      'least': min(there, default=None),
      'most': max(there, default=None),
      'note': note if there else 'undefined in every fold',
    }
  return found
