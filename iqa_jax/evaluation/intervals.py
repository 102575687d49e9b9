"""How far a number can be trusted: 95 % intervals that know about patients.

Shares by Wilson's interval, AUCs by the clustered variance of DeLong and
Obuchowski, everything else by the bootstrap of `resampling`: its standard
error, on a scale on which the metric's bounds are infinitely far away, because
the percentiles of the resamples themselves miss a metric near its bound. What
they cover is measured by `python -m tests.benchmarks coverage`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy import stats

from iqa_jax.evaluation import delong, metrics, resampling
from iqa_jax.judging import calibration

_Z = stats.norm.ppf(0.975)
# Patients of a class, below which one in twenty of it can't be seen.
_TWENTIETH = round(1 / (1 - metrics.FIXED))
_FIXED_ON = {
  'sensitivity_at_95_specificity': 0,
  'specificity_at_95_sensitivity': 1,
}
Interval = tuple[float, float]
_NOTHING: Interval = (np.nan, np.nan)


def percentile(samples: np.ndarray) -> tuple[float, float]:
  """Returns the 2.5th and 97.5th percentile of the finite samples [count].

  Of differences, which have no bound nearby.

  (NaN, NaN) where more than a twentieth are undefined: what is left would be
  those resamples that happened to flatter.
  """
  finite = samples[np.isfinite(samples)]
  if len(finite) < 0.95 * len(samples) or not len(finite):
    return np.nan, np.nan
  low, high = np.percentile(finite, [2.5, 97.5])
  return float(low), float(high)


def proportion(
  hit: np.ndarray, patient: np.ndarray
) -> tuple[float, float, float]:
  """Returns a share and its 95 % interval, clustered by patient.

  Wilson's interval (1927) at the effective sample size: the images over the
  design effect, which is the patient-robust variance over the binomial one,
  at least 1. Where all or none hit, no variance can be seen and the
  effective size is the number of patients. Unlike a bootstrap it does not
  collapse to a point there.

  Args:
    hit: bool [n].
    patient: [n].
  """
  n = len(hit)
  if not n:
    return np.nan, np.nan, np.nan
  share = float(np.mean(hit))
  column = np.unique(patient, return_inverse=True)[1]
  clusters = int(column.max()) + 1
  size = float(clusters)
  if 0 < share < 1 and clusters > 1:
    residual = np.bincount(column, np.asarray(hit) - share)
    robust = (residual**2).sum() / n**2 * clusters / (clusters - 1)
    effect = robust / (share * (1 - share) / n)
    size = n / max(effect, 1.0)
  centre = (share + _Z**2 / (2 * size)) / (1 + _Z**2 / size)
  half = (
    _Z
    / (1 + _Z**2 / size)
    * np.sqrt(share * (1 - share) / size + _Z**2 / (4 * size**2))
  )
  low, high = max(centre - half, 0.0), min(centre + half, 1.0)
  return share, min(float(low), share), max(float(high), share)


def calibration_line(
  truth: np.ndarray, p: np.ndarray, patient: np.ndarray
) -> dict[str, tuple[float, float]]:
  """Returns 95 % intervals of calibration_slope and calibration_intercept.

  Wald's, with the variance of Huber's sandwich clustered by patient.
  """
  odds, truth = calibration.log_odds(p), np.asarray(truth)
  names, column = np.unique(patient, return_inverse=True)
  nothing = (np.nan, np.nan)
  if len(names) < 2:
    return {'calibration_slope': nothing, 'calibration_intercept': nothing}

  def spread(design: np.ndarray, fitted: np.ndarray) -> np.ndarray:
    # Saturated scores, or such that hardly differ, leave nothing to invert.
    information = (design * (fitted * (1 - fitted))) @ design.T
    if not np.linalg.cond(information) < 1e12:
      return np.full(len(design), np.nan)
    bread = np.linalg.inv(information)
    score = design * (truth - fitted)
    sums = np.stack([np.bincount(column, row) for row in score])
    meat = sums @ sums.T * len(names) / (len(names) - 1)
    return np.sqrt(np.diag(bread @ meat @ bread))

  def around(value: float, error: float) -> Interval:
    if not np.isfinite(value):
      return nothing
    return float(value - _Z * error), float(value + _Z * error)

  ones = np.ones((1, len(odds)))
  level = calibration.fit_intercept(odds, truth)
  intercept, slope = calibration.fit_line(odds, truth)
  line = np.concatenate([ones, odds[None]])
  return {
    'calibration_slope': around(
      slope,
      spread(line, calibration.sigmoid(intercept + slope * odds))[1]
      if np.isfinite(slope)
      else np.nan,
    ),
    'calibration_intercept': around(
      level,
      spread(ones, calibration.sigmoid(level + odds))[0]
      if np.isfinite(level)
      else np.nan,
    ),
  }


def calibration_error(
  truth: np.ndarray, p: np.ndarray, patient: np.ndarray
) -> Interval:
  """Returns the 95 % interval of the RMS calibration error.

  Of its square, which is unbiased and may be below 0, by the jackknife over
  patients; then the root of what is above 0.
  """
  who = resampling.Resamples(patient)
  gap = np.asarray(p, np.float64) - truth
  bins = metrics.bin_of(p)[:, None] == np.arange(metrics.BINS)
  sums = [
    who.by_patient(bins * x[:, None]) for x in (np.ones(len(gap)), gap, gap**2)
  ]
  size = len(sums[0])
  if size < 2:
    return _NOTHING
  square = metrics.squared_calibration_error(*(t.sum(axis=0) for t in sums))
  without = metrics.squared_calibration_error(
    *(t.sum(axis=0) - t for t in sums)
  )
  away = (without - without.mean()) * np.sqrt((size - 1) / size)
  half = student(away, size) * np.sqrt(away @ away)
  low, high = np.sqrt(np.maximum([square - half, square + half], 0))
  return float(low), float(high)


def binary(
  truth: np.ndarray,
  p: np.ndarray,
  predicted: np.ndarray,
  resamples: resampling.Resamples,
  *,
  score: np.ndarray | None = None,
) -> dict[str, Interval]:
  """Returns the 95 % interval of every metric of `metrics.binary`.

  Of sensitivity at a fixed specificity, and the reverse, none where fewer than
  20 patients have the class whose rate is fixed. Where a metric is 1, see
  `unseen`.

  Args:
    truth: int [n], 0 or 1.
    p: float [n], probability of class 1.
    predicted: bool [n], whether class 1 is called.
    resamples: of the images' patients.
    score: float [n], what ranks the images; None: p.
  """
  if not len(truth):
    names = (*metrics.RANKING, *metrics.DECISIONS, *metrics.PROBABILITIES)
    return dict.fromkeys(names, _NOTHING)
  truth, called = np.asarray(truth), np.asarray(predicted, bool)
  score = p if score is None else score
  patient = resamples.patient
  values = {
    **metrics.binary(truth, p, called),
    **metrics.ranking(truth, score),
  }
  # A perfect one may have come out as 0.9999999999999999.
  values = {name: round(value, 12) for name, value in values.items()}
  samples = resampling.binary_samples(truth, p, called, resamples, score=score)
  quantiles = dict.fromkeys(
    samples, _auc_quantile([truth == 1], [score], patient)
  )
  for name, losses in resampling.losses(truth, p).items():
    away = resamples.by_patient((losses - losses.mean())[:, None])[:, 0]
    quantiles[name] = student(away, len(away))
  found = {
    name: _bounded(
      values[name],
      drawn,
      quantiles[name],
      metrics.RANGES.get(name, (0.0, 1.0)),
    )
    for name, drawn in samples.items()
  }
  found |= _extremes(values, truth, patient)
  for name, kept, hits in (
    ('accuracy', np.ones(len(truth), bool), truth == called),
    ('sensitivity', truth == 1, called),
    ('specificity', truth == 0, ~called),
    ('precision', called, truth == 1),
    ('negative_predictive_value', ~called, truth == 0),
  ):
    found[name] = proportion(hits[kept], patient[kept])[1:]
  found['auc'] = auc(truth, score, patient)[1:]
  found['rms_calibration_error'] = calibration_error(truth, p, patient)
  return found | calibration_line(truth, p, patient)


def _extremes(
  values: Mapping[str, float], truth: np.ndarray, patient: np.ndarray
) -> dict[str, Interval]:
  """Returns the intervals of metrics at an end of their range, or too few."""
  found: dict[str, Interval] = {}
  at_least = unseen(truth, patient)
  for name, low in at_least.items():
    if values[name] == 1:
      found[name] = (low, 1.0)
    elif values[name] == 0 and name in _FIXED_ON:
      found[name] = (0.0, 1 - low)
  for name, fixed in _FIXED_ON.items():
    if len(np.unique(patient[truth == fixed])) < _TWENTIETH:
      found[name] = _NOTHING
  return found


def grades(
  truth: np.ndarray,
  p: np.ndarray,
  predicted: np.ndarray,
  resamples: resampling.Resamples,
) -> dict[str, Interval]:
  """Returns the 95 % interval of every metric of `metrics.grades`."""
  if not len(truth):
    return {}
  truth, called = np.asarray(truth), np.asarray(predicted)
  patient, classes = resamples.patient, range(np.shape(p)[1])
  values = metrics.grades(truth, p, called)
  samples = resampling.grade_samples(truth, p, called, resamples)
  quantile = _auc_quantile(
    [truth == i for i in classes], [p[:, i] for i in classes], patient
  )
  found = {
    name: _bounded(
      values[name], drawn, quantile, metrics.RANGES.get(name, (0.0, 1.0))
    )
    for name, drawn in samples.items()
  }
  found['accuracy'] = proportion(truth == called, patient)[1:]
  for i in classes:
    for name, kept, hits in (
      (f'recall_{i}', truth == i, called == i),
      (f'precision_{i}', called == i, truth == i),
    ):
      found[name] = proportion(hits[kept], patient[kept])[1:]
    found[f'auc_{i}'] = auc(truth == i, p[:, i], patient)[1:]
  return found


def unseen(truth: np.ndarray, patient: np.ndarray) -> dict[str, float]:
  """Returns the least that ranking and decisions could be where none err.

  No error among k patients still allows a share of 1 - 0.025**(1 / k) of them
  (Clopper & Pearson 1934; about 3.7 / k): each metric is given as it is when
  that share of either class lies at the wrong end of the other, whichever is
  worse. Of sensitivity (specificity) at a fixed rate, and of no other, the
  class alone whose share it is. NaN without both classes.
  """
  truth = np.asarray(truth)
  rows = []
  for label, wrong_end in ((1, -1), (0, 2)):
    inside = truth == label
    share = 1 - 0.025 ** (1 / max(len(np.unique(patient[inside])), 1))
    # Every image twice: where it is, and moved, weighing 1 - share and share.
    weight = np.concatenate([1 - share * inside, share * inside])
    twice = np.tile(truth, 2)
    apart = truth + np.arange(len(truth)) / (2 * len(truth))  # no ties
    score = np.concatenate([apart, np.where(inside, wrong_end, apart)])
    images = resampling.Sorted(twice, score, np.arange(len(twice)))
    cells = twice * 2 + (score >= 1)
    rows.append(
      {
        **resampling.decisions(np.bincount(cells, weight, 4).reshape(1, 2, 2)),
        **images.ranking(weight[None].astype(np.float32)),
      }
    )
  found = {
    name: float(min(rows[0][name][0], rows[1][name][0])) for name in rows[0]
  }
  for name, fixed in _FIXED_ON.items():
    found[name] = float(rows[fixed][name][0])
  return found


def auc(
  truth: np.ndarray, score: np.ndarray, patient: np.ndarray
) -> tuple[float, float, float]:
  """Returns an AUC and its 95 % interval.

  Obuchowski's variance on the logit scale, and Student's t of as many degrees
  of freedom as that variance has (Satterthwaite 1946): near 1 few patients
  make all of it. At 1, where there is none, as `unseen` says. NaN where either
  class has fewer than two images or patients.
  """
  truth = np.asarray(truth).astype(int)
  try:
    [value], [[variance]] = delong.covariance(truth, score, patient)
  except ValueError:
    value = metrics.ranking(truth, score)['auc']
    return float(value), np.nan, np.nan
  if value == 1:
    return 1.0, unseen(truth, patient)['auc'], 1.0
  if value == 0:
    return 0.0, 0.0, 1 - unseen(truth, patient)['auc']
  error = np.sqrt(max(variance, 0.0))
  quantile = _auc_quantile([truth == 1], [score], patient)
  return float(value), *bent(value, error * quantile, (0.0, 1.0))


def _auc_quantile(
  truths: list[np.ndarray], scores: list[np.ndarray], patient: np.ndarray
) -> float:
  """Returns Student's 97.5th percentile for metrics of a ranking.

  Of the mean of the AUCs of several rankings. The other metrics depend on the
  same few images that are hard to tell as AUC does.
  """
  parts, few = [], len(np.unique(patient))
  for truth, score in zip(truths, scores, strict=True):
    try:
      _, above, below, patients = delong.contributions(truth, score, patient)
    except ValueError:
      continue
    parts.append(above[0] + below[0])
    few = min(few, *patients)
  return student(np.mean(parts, axis=0) if parts else np.zeros(1), few)


def student(away: np.ndarray, few: int) -> float:
  """Returns Student's 97.5th percentile for a sum of contributions.

  Its degrees of freedom are those of the estimated variance (Satterthwaite
  1946): 2 variance^2 / Var(variance), at most the patients less 1.

  Args:
    away: float [patients], contributions around 0.
    few: the patients of the rarer class.
  """
  square, fourth = (away**2).sum(), (away**4).sum()
  degrees = float(max(few - 1, 1))
  spread = fourth - square**2 / len(away)
  if spread > 1e-9 * fourth:
    degrees = min(degrees, 2 * square**2 / spread)
  return float(stats.t.ppf(0.975, degrees))


def _bounded(
  value: float, samples: np.ndarray, quantile: float, bounds: Interval
) -> Interval:
  """Returns the interval of a metric by the spread of its resamples [count].

  (NaN, NaN) where more than a twentieth are undefined: what is left would be
  those resamples that happened to flatter.
  """
  finite = samples[np.isfinite(samples)]
  if len(finite) < 0.95 * len(samples) or len(finite) < 2:
    return _NOTHING
  return bent(value, quantile * float(finite.std(ddof=1)), bounds)


def bent(value: float, half: float, bounds: Interval) -> Interval:
  """Returns value -+ half, bent so that it stays inside the bounds.

  On the scale of log((value - low) / (high - value)), or of the logarithm
  where there is no upper bound. At a bound, a point.
  """
  low, high = bounds
  if not np.isfinite(value):
    return _NOTHING
  if not low < value < high:
    return float(value), float(value)
  if np.isinf(high):
    step = np.exp(half / (value - low))
    return float(low + (value - low) / step), float(low + (value - low) * step)
  width = high - low
  at = np.log((value - low) / (high - value))
  step = half * width / ((value - low) * (high - value))
  ends = calibration.sigmoid(np.array([at - step, at + step]))
  return float(low + width * ends[0]), float(low + width * ends[1])
