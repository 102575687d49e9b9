"""Pools the folds of a cross-validation."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import os
import pathlib

import ml_collections
import numpy as np

from iqa_jax import labels, run_directory
from iqa_jax.aliases import Record
from iqa_jax.evaluation import (
  assessment,
  breakdowns,
  metrics,
  predictions,
  report,
)
from iqa_jax.evaluation.predictions import Predictions


def pool(
  workdir: str | os.PathLike, count: int, config: ml_collections.ConfigDict
) -> Record:
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
  results = [
    run_directory.read_json(home / f'fold_{k}' / 'metrics.json')
    for k in range(count)
  ]
  parts, split, notes = read(home, count)
  pooled = predictions.concatenate(parts)
  # Each fold has a model of its own: only calibrated scores are on one scale,
  # and what is drawn is what is measured.
  pooled = dataclasses.replace(
    pooled, p_inadequate=pooled.p_calibrated, log_odds=None
  )
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
    'splits': {'pooled': _measure(pooled, config.eval.bootstrap)},
  }
  run_directory.write_json(home / 'metrics.json', result)
  report.write(
    home, result, {'pooled': pooled}, resamples=config.eval.bootstrap
  )
  return result


def read(
  workdir: str | os.PathLike, count: int
) -> tuple[list[Predictions], str, list[str]]:
  """Returns each fold's images, those in which folds share none.

  Args:
    workdir: the folder of the folds.
    count: their number.

  Returns:
    A fold's `Predictions` each, the split that they are of, and what to know
    of it.

  Raises:
    RunDirectoryError: a fold is missing or damaged, or folds share images.
  """
  home = pathlib.Path(workdir)
  tables = [
    predictions.read(home / f'fold_{k}' / 'predictions.csv')
    for k in range(count)
  ]
  split, notes = _pooled_split(tables)
  return [t[t.split == split] for t in tables], split, notes


def _measure(pooled: Predictions, resamples: int) -> Record:
  judged = pooled[pooled.judged]
  return {
    'n': len(pooled),
    'n_not_finite': int((~np.isfinite(pooled.p_calibrated)).sum()),
    'verdict': assessment.verdict(
      judged.quality,
      judged.ranks,
      judged.p_calibrated,
      0.5,
      judged.patient_id,
      resamples=resamples,
      # By each fold's own operating point.
      called=judged.verdict == labels.INADEQUATE,
    ),
    'breakdowns': breakdowns.run(pooled),
  }


def as_text(result: Record) -> str:
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


def _pooled_split(tables: Sequence[Predictions]) -> tuple[str, list[str]]:
  """Returns the split in which folds share no image, and what to know of it."""
  for split in ('test', 'validation'):
    names = [name for t in tables for name in t[t.split == split].names]
    if names and len(set(names)) == len(names):
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


def _over_folds(results: Sequence[Record]) -> Record:
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
