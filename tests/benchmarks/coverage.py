"""How often 95 % intervals hold the truth: at least 93 % of the time?

Patients with two eyes each, whose labels and scores are correlated (0.5), a
quarter of the images Inadequate; binormal scores whose metrics are known
exactly. Beside ours the percentiles of the same resamples. One figure a metric
and number of patients: over AUCs of 0.85, 0.95 and 0.99. An interval that is
not given (too few images) is not counted.
"""

from __future__ import annotations

from collections.abc import Iterable
import sys
from typing import NamedTuple

import numpy as np
from scipy import special, stats

from tests.benchmarks import common

PREVALENCE = 0.25
AUCS = (0.85, 0.95, 0.99)
_CORRELATION = 0.5


class Images(NamedTuple):
  """Images of patients with two eyes, the left before the right.

  Attributes:
    truth: int [n], 1 Inadequate.
    score: float [n].
    p: float [n], the calibrated probability of Inadequate.
    called: bool [n], at the threshold of 95 % specificity.
    patient: int [n].
  """

  truth: np.ndarray
  score: np.ndarray
  p: np.ndarray
  called: np.ndarray
  patient: np.ndarray


def draw(
  rng: np.random.Generator, patients: int, auc: float, missed: float = 0.0
) -> Images:
  """Returns simulated images; those 'missed' of class 1 rank below all."""
  shared = np.sqrt(_CORRELATION) * rng.normal(size=(2, patients, 1))
  own = np.sqrt(1 - _CORRELATION) * rng.normal(size=(2, patients, 2))
  label, noise = (shared + own).reshape(2, -1)
  truth = (label > stats.norm.isf(PREVALENCE)).astype(int)
  apart = _apart(auc)
  score = noise + apart * truth
  lost = (truth == 1) & (rng.random(len(truth)) < missed)
  score = np.where(lost, score - 100, score)
  odds = special.logit(PREVALENCE) + apart * (score - apart / 2)
  return Images(
    truth,
    score,
    special.expit(odds),
    score >= stats.norm.isf(0.05),
    np.repeat(np.arange(patients), 2),
  )


def truth_of(auc: float) -> dict[str, float]:
  """Returns the metrics of infinitely many images, by quadrature."""
  from iqa_jax.evaluation import metrics

  apart = _apart(auc)
  at = np.linspace(-10, 14, 200_001)
  found, false = stats.norm.sf(at - apart), stats.norm.sf(at)
  precision = 1 / (1 + false * (1 - PREVALENCE) / (found * PREVALENCE))
  rate = np.linspace(0, metrics.MAX_FPR, 200_001)
  area = np.trapezoid(stats.norm.sf(stats.norm.isf(rate) - apart), rate)
  least, most = metrics.MAX_FPR**2 / 2, metrics.MAX_FPR
  at_fixed = stats.norm.sf(stats.norm.isf(1 - metrics.FIXED) - apart)
  odds = special.logit(PREVALENCE) + apart * (at - apart / 2)
  p = special.expit(odds)
  ones = stats.norm.pdf(at - apart) * PREVALENCE
  zeros = stats.norm.pdf(at) * (1 - PREVALENCE)
  sensitivity = stats.norm.sf(stats.norm.isf(0.05) - apart)
  both = np.array([[0.95, 0.05], [1 - sensitivity, sensitivity]])
  cells = both * [[1 - PREVALENCE], [PREVALENCE]]
  (tn, fp), (fn, tp) = cells
  margins = np.sqrt(np.prod([*cells.sum(axis=0), *cells.sum(axis=1)]))
  chance = cells.sum(axis=1) @ cells.sum(axis=0)
  f1, f1_adequate = 2 * tp / (2 * tp + fp + fn), 2 * tn / (2 * tn + fp + fn)
  return {
    'auc': auc,
    'average_precision': np.trapezoid(
      precision * stats.norm.pdf(at - apart), at
    ),
    'partial_auc': 0.5 * (1 + (area - least) / (most - least)),
    # Equal variances: the curve is its own mirror image.
    'sensitivity_at_95_specificity': at_fixed,
    'specificity_at_95_sensitivity': at_fixed,
    'accuracy': tp + tn,
    'balanced_accuracy': np.mean([0.95, sensitivity]),
    'sensitivity': sensitivity,
    'specificity': 0.95,
    'precision': tp / (tp + fp),
    'negative_predictive_value': tn / (tn + fn),
    'f1': f1,
    'f1_adequate': f1_adequate,
    'f1_macro': (f1 + f1_adequate) / 2,
    'f1_weighted': PREVALENCE * f1 + (1 - PREVALENCE) * f1_adequate,
    'mcc': (tp * tn - fp * fn) / margins,
    'kappa': (tp + tn - chance) / (1 - chance),
    'log_loss': -np.trapezoid(
      ones * special.log_expit(odds) + zeros * special.log_expit(-odds), at
    ),
    'brier': np.trapezoid(ones * (1 - p) ** 2 + zeros * p**2, at),
    'rms_calibration_error': 0.0,
    'calibration_slope': 1.0,
    'calibration_intercept': 0.0,
  }


def covered(
  patients: int, auc: float, repeats: int, resamples: int, seed: int = 0
) -> dict[str, tuple[float, float, float]]:
  """Returns by metric how often its interval holds the truth, in percent.

  Returns:
    {metric: (ours, percentiles of the resamples, ours not given)}
  """
  from iqa_jax.evaluation import intervals, resampling

  known = truth_of(auc)
  ours: dict[str, list[bool]] = {name: [] for name in known}
  theirs: dict[str, list[bool]] = {name: [] for name in known}
  for images in several(patients, auc, repeats, seed):
    truth, score, p, called, patient = images
    draws = resampling.Resamples(patient, resamples)
    limits = intervals.binary(truth, p, called, draws, score=score)
    samples = resampling.binary_samples(truth, p, called, draws, score=score)
    for name, value in known.items():
      if np.isfinite(limits[name][0]):
        ours[name].append(_holds(limits[name], value))
      if name in samples:
        limit = intervals.percentile(samples[name])
        theirs[name].append(_holds(limit, value))
  return {
    name: (
      _percent(ours[name]),
      _percent(theirs[name]),
      100 * (1 - len(ours[name]) / repeats),
    )
    for name in known
  }


def several(
  patients: int, auc: float, repeats: int, seed: int = 0, missed: float = 0.0
) -> Iterable[Images]:
  """Yields images with at least two patients of each class."""
  rng = np.random.default_rng([seed, patients, round(1000 * auc)])
  while repeats:
    images = draw(rng, patients, auc, missed)
    classes = (images.patient[images.truth == i] for i in (0, 1))
    if all(len(np.unique(who)) > 1 for who in classes):
      repeats -= 1
      yield images


def auc_covered(
  patients: int, auc: float, repeats: int, seed: int = 0, missed: float = 0.0
) -> float:
  """Returns how often an AUC's interval holds the truth, in percent."""
  from iqa_jax.evaluation import intervals

  # A missed one is below all images of class 0.
  true = auc * (1 - missed)
  return _percent(
    [
      _holds(intervals.auc(i.truth, i.score, i.patient)[1:], true)
      for i in several(patients, auc, repeats, seed, missed)
    ]
  )


def run(
  *, smoke: bool = False, repeats: int = 400, resamples: int = 400
) -> list[common.Row]:
  """Counts how often intervals hold the truth."""
  if smoke:
    repeats, resamples = 3, 30
  rows = []
  for patients in (34, 100, 400):
    each = [covered(patients, auc, repeats, resamples) for auc in AUCS]
    for name in each[0]:
      given = [c[name] for c in each if np.isfinite(c[name][0])]
      if not given:
        continue
      peer = [c[1] for c in given if np.isfinite(c[1])]
      without = max(c[2] for c in given)
      rows.append(
        common.Row(
          f'{name}, {patients} patients',
          [c[0] for c in given],
          '%',
          peer='percentiles' if peer else '',
          peer_values=peer,
          target='93 %',
          note=f'up to {without:.0f} % have none' if without > 1 else '',
        )
      )
    rows.append(
      common.Row(
        f'auc, {patients} patients, 2, 5, 10 and 20 % of class 1 missed',
        [
          auc_covered(patients, 1 - 1e-12, repeats, missed=missed)
          for missed in (0.02, 0.05, 0.1, 0.2)
        ],
        '%',
        target='93 %',
      )
    )
  return rows


def _apart(auc: float) -> float:
  return float(np.sqrt(2) * stats.norm.ppf(auc))


def _holds(limits: tuple[float, float], value: float) -> bool:
  return limits[0] - 1e-9 <= value <= limits[1] + 1e-9


def _percent(held: list[bool]) -> float:
  return 100 * float(np.mean(held)) if held else np.nan


if __name__ == '__main__':
  sys.exit(common.main(run))
