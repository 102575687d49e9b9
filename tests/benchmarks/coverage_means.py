"""How often 95 % intervals of means hold the truth: at least 93 % of the time?

What studies of explanations measure, of few patients with two correlated
photographs (0.5) each: areas under a curve, energies over an area, differences
and hits, with known means. Beside ours the percentiles of a bootstrap over
photographs, which is what `evaluate_explanations` had before.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from scipy import special, stats

from tests.benchmarks import common

PATIENTS = (5, 12, 24)
_CORRELATION = 0.5


def distributions() -> dict[str, tuple[Any, tuple[float, float]]]:
  """Returns {name: (distribution, bounds of means.mean)}."""
  from iqa_jax.evaluation import means

  return {
    'difference, normal': (stats.norm(0.1, 0.2), means.ANY),
    'difference, heavy tails': (stats.laplace(0.1, 0.2), means.ANY),
    'pixel AUC about 0.8': (stats.beta(8, 2), means.SHARE),
    'pixel AUC about 0.93': (stats.beta(20, 1.5), means.SHARE),
    'energy over area, skewed': (stats.gamma(2, scale=2), means.RATIO),
    'energy over area, very skewed': (stats.lognorm(0.7), means.RATIO),
  }


def draw(
  rng: np.random.Generator, patients: int
) -> tuple[np.ndarray, np.ndarray]:
  """Returns ranks uniform in 0..1 of two photographs a patient, and whose."""
  shared = np.sqrt(_CORRELATION) * rng.normal(size=(patients, 1))
  own = np.sqrt(1 - _CORRELATION) * rng.normal(size=(patients, 2))
  return special.ndtr(shared + own).ravel(), np.repeat(np.arange(patients), 2)


def of_means(
  name: str, patients: int, repeats: int, seed: int = 0
) -> tuple[float, float]:
  """Returns how often a mean's interval holds it: ours, percentiles', in %."""
  from iqa_jax.evaluation import means

  distribution, bounds = distributions()[name]
  rng = np.random.default_rng([seed, patients])
  held = np.zeros((repeats, 2), bool)
  for i in range(repeats):
    ranks, who = draw(rng, patients)
    values = distribution.ppf(ranks)
    found = means.mean(values, who, bounds)
    rows = rng.integers(0, len(values), (200, len(values)))
    low, high = np.percentile(values[rows].mean(1), [2.5, 97.5])
    held[i, 0] = found['low'] <= distribution.mean() <= found['high']
    held[i, 1] = low <= distribution.mean() <= high
  ours, theirs = 100 * held.mean(0)
  return float(ours), float(theirs)


def of_hits(
  share: float, patients: int, repeats: int, seed: int = 0
) -> tuple[float, float]:
  """Returns how often a share's interval holds it: ours, percentiles', in %."""
  from iqa_jax.evaluation import means

  rng = np.random.default_rng([seed, patients, round(100 * share)])
  held = np.zeros((repeats, 2), bool)
  for i in range(repeats):
    ranks, who = draw(rng, patients)
    found = means.share(ranks < share, who)
    rows = rng.integers(0, len(ranks), (200, len(ranks)))
    drawn = (ranks < share)[rows].mean(1)
    low, high = np.percentile(drawn, [2.5, 97.5])
    held[i, 0] = found['low'] <= share <= found['high']
    held[i, 1] = low <= share <= high
  ours, theirs = 100 * held.mean(0)
  return float(ours), float(theirs)


def run(*, smoke: bool = False, repeats: int = 2000) -> list[common.Row]:
  """Counts how often intervals hold the truth."""
  if smoke:
    repeats = 5
  rows = []
  for patients in PATIENTS:
    cases = {
      name: of_means(name, patients, repeats) for name in distributions()
    } | {
      f'hits, {share:.0%}': of_hits(share, patients, repeats)
      for share in (0.5, 0.8, 0.95)
    }
    for name, (ours, theirs) in cases.items():
      rows.append(
        common.Row(
          f'{name}, {patients} patients',
          [ours],
          '%',
          peer='percentiles',
          peer_values=[theirs],
          target='93 %',
        )
      )
  return rows


if __name__ == '__main__':
  sys.exit(common.main(run))
