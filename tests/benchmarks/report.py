"""What an evaluation takes beyond prediction: 16,249 photographs, simulated.

Calibration, operating points, all metrics with their intervals, breakdowns,
predictions.csv, figures and report of `evaluate.run`, with simulated logits in
a network's place; no photographs with maps. Beside it `score`, on the
predictions.csv of that run.
"""

from __future__ import annotations

from collections.abc import Callable
import pathlib
import resource
import sys
import tempfile
import time

import numpy as np

from tests.benchmarks import common

_PATIENTS = 8524


def run(
  *,
  smoke: bool = False,
  photographs: int = 16249,
  resamples: int = 2000,
) -> list[common.Row]:
  """Times evaluations of each task and a score, once each."""
  from iqa_jax.evaluation import evaluate, foreign_scores, scoring
  from tests.evaluation import simulated

  if smoke:
    photographs, resamples = 400, 20
  index = np.arange(photographs)
  validation = photographs // 4
  rows = []
  with tempfile.TemporaryDirectory() as folder, simulated.no_network() as make:
    for task in ('quality', 'grade', 'criteria'):
      home = pathlib.Path(folder, task)
      config, _, source, _ = make(
        home, task, photographs + 2 * validation, bootstrap=resamples
      )
      patient = (np.arange(len(source.table['eye'])) * _PATIENTS) // photographs
      source.table['patient_id'] = np.array([f'p{i:05d}' for i in patient])
      splits = {
        'test': index,
        'validation': photographs + index[:validation],
        'train': photographs + validation + index[:validation],
      }
      what = f'{photographs} photographs, {resamples} resamples'
      rows += _timed(
        f'evaluation of {task} beyond prediction, {what}, and a quarter as '
        'many for validation',
        lambda c=config, h=home, s=source, p=splits: evaluate.run(c, h, s, p),
        'under 120 s',
      )
    given = str(home / 'predictions.csv')
    options = foreign_scores.Options(resamples=resamples)
    scored = str(home / 'scored')
    rows += _timed(
      f'score, {what}',
      lambda: scoring.run(given, given, options, output=scored),
    )
  most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
  rows.append(common.Row('most memory of all these', [most], 'MB'))
  return rows


def _timed(
  name: str, function: Callable[[], object], target: str = ''
) -> list[common.Row]:
  begun = time.process_time()
  seconds = common.seconds(function)
  used = time.process_time() - begun
  return [
    common.Row(name, [seconds], 's', target=target),
    common.Row(f'{name}: processor time', [used], 's'),
  ]


if __name__ == '__main__':
  sys.exit(common.main(run))
