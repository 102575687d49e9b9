"""What some labels of another camera bring: recalibration, simulated.

A camera on which the network's log-odds are shifted and stretched at random
(normal, deviation 3; lognormal, 0.3): balanced accuracy on 5,000 other
photographs of it before, after 20, 50 and 100 labels, after 100 photographs
without labels with the true and with half the true rate, and at best (all
5,000 labelled). Nothing here is a photograph.
"""

from __future__ import annotations

import sys

import numpy as np
from scipy import special

from tests.benchmarks import common

_RATE = 0.25


def camera(
  rng: np.random.Generator, auc_distance: float = 3.3
) -> tuple[float, float, float]:
  """Returns shift and stretch of a camera's log-odds, and the classes' gap."""
  return rng.normal(0, 3), float(np.exp(rng.normal(0, 0.3))), auc_distance


def draw(
  rng: np.random.Generator, count: int, at: tuple[float, float, float]
) -> tuple[np.ndarray, np.ndarray]:
  """Returns labels [n] and the network's probabilities [n] at a camera."""
  shift, stretch, gap = at
  truth = (rng.random(count) < _RATE).astype(int)
  odds = gap * (rng.normal(0, 1, count) + gap * (truth - 0.5))
  return truth, special.expit(stretch * (odds + special.logit(_RATE)) + shift)


def run(*, smoke: bool = False, repeats: int = 100) -> list[common.Row]:
  """Measures balanced accuracy before and after."""
  from iqa_jax.judging import recalibration
  from iqa_jax.judging.operating_record import OperatingRecord

  saved = OperatingRecord(
    {'method': 'none'}, {'rule': 'youden', 'threshold': _RATE}
  )
  found: dict[str, list[float]] = {}
  for seed in range(3 if smoke else repeats):
    rng = np.random.default_rng(seed)
    at = camera(rng)
    truth, p = draw(rng, 5000, at)
    records = {'before': saved}
    for count in (20, 50, 100):
      few = draw(rng, count, at)
      records[f'{count} labels'] = recalibration.from_labels(saved, *few)
    for name, rate in (('the true', _RATE), ('half the true', _RATE / 2)):
      records[f'100 unlabelled, {name} rate'] = recalibration.from_rate(
        saved, few[1], rate
      )
    records['all labelled'] = recalibration.from_labels(saved, truth, p)
    for name, record in records.items():
      verdict = record.judge(p).verdict
      each = [(verdict[truth == c] == c).mean() for c in (0, 1)]
      found.setdefault(name, []).append(100 * float(np.mean(each)))
  return [
    common.Row(f'balanced accuracy, {name}', values, '%')
    for name, values in found.items()
  ]


if __name__ == '__main__':
  sys.exit(common.main(run))
