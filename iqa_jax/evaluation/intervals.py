"""How far a number can be trusted: 95 % intervals that know about patients.

Two eyes of a patient are not two independent photographs, so patients are
resampled, not images. A resample is one row of counts, how often each patient
was drawn; every metric of all resamples then comes from matrix products over
patients or from cumulative sums over images sorted once.
"""

from __future__ import annotations

from collections.abc import Iterator
import dataclasses
import functools
from typing import Any

import numpy as np
from scipy import stats

from iqa_jax.evaluation import calibration, metrics

_CHUNK = 64  # resamples computed at a time: what fits a core's cache
_Z = stats.norm.ppf(0.975)
FEW = 10  # images of a class, or patients, below which a group can't tell
WIDE = 0.2  # an interval wider than this can't tell either


@dataclasses.dataclass(frozen=True)
class Resamples:
  """The patient-clustered bootstrap of a set of images.

  Attributes:
    patient: [n], the patient of every image.
    count: number of resamples.
    seed: of the draws.
  """

  patient: np.ndarray
  count: int = 2000
  seed: int = 0

  @functools.cached_property
  def column(self) -> np.ndarray:
    """The number of every image's patient, int [n]."""
    return np.unique(self.patient, return_inverse=True)[1]

  def chunks(self) -> Iterator[np.ndarray]:
    """Yields how often each patient was drawn, float32 [c, patients]."""
    size = int(self.column.max()) + 1
    for first in range(0, self.count, _CHUNK):
      rows = min(_CHUNK, self.count - first)
      rng = np.random.default_rng([self.seed, first])
      drawn = rng.integers(0, size, (rows, size))
      drawn += size * np.arange(rows)[:, None]
      counts = np.bincount(drawn.ravel(), minlength=rows * size)
      yield counts.reshape(rows, size).astype(np.float32)

  def by_patient(self, table: np.ndarray) -> np.ndarray:
    """Returns the sums of the rows [n, k] of each patient, [patients, k]."""
    return np.stack(
      [np.bincount(self.column, values) for values in table.T], axis=1
    ).astype(np.float32)


def binary_samples(
  truth: np.ndarray,
  p: np.ndarray,
  predicted: np.ndarray,
  resamples: Resamples,
  *,
  score: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
  """Returns every metric of `metrics.binary` in every resample, [count].

  But for the calibration line, whose interval is `calibration_line`'s. NaN
  where a resample lacks what the metric needs.

  Args:
    truth: int [n], 0 or 1.
    p: float [n], probability of class 1.
    predicted: bool [n], whether class 1 is called.
    resamples: of the images' patients.
    score: float [n], what ranks the images; None: p.
  """
  truth = np.asarray(truth)
  p = np.asarray(p, np.float64)
  cells = _one_hot(truth * 2 + np.asarray(predicted).astype(int), 4)
  clipped = calibration.clip(p)
  losses = np.stack(
    [
      np.ones(len(p)),
      -np.where(truth == 1, np.log(clipped), np.log1p(-clipped)),
      (p - truth) ** 2,
    ],
    axis=1,
  )
  gaps = _one_hot(metrics.bin_of(p), metrics.BINS) * (p - truth)[:, None]
  images = _Sorted(truth, p if score is None else score, resamples.column)
  tables = [resamples.by_patient(t) for t in (cells, losses, gaps)]
  parts = []
  for counts in resamples.chunks():
    confusion, sums, gap = (counts @ t for t in tables)
    n, log_loss, brier = sums.T
    parts.append(
      {
        **_decisions(confusion.reshape(-1, 2, 2).astype(np.float64)),
        **images.ranking(counts),
        'log_loss': log_loss / n,
        'brier': brier / n,
        'ece': np.abs(gap).sum(axis=1) / n,
      }
    )
  return _joined(parts)


def grade_samples(
  truth: np.ndarray,
  p: np.ndarray,
  predicted: np.ndarray,
  resamples: Resamples,
) -> dict[str, np.ndarray]:
  """Returns every metric of `metrics.grades` in every resample, [count]."""
  truth, k = np.asarray(truth), np.shape(p)[1]
  cells = _one_hot(truth * k + np.asarray(predicted), k * k)
  table = resamples.by_patient(cells)
  against_rest = [
    _Sorted(truth == i, p[:, i], resamples.column) for i in range(k)
  ]
  parts = []
  for counts in resamples.chunks():
    confusion = (counts @ table).reshape(-1, k, k)
    part = _classes(confusion.astype(np.float64))
    aucs = [images.auc(counts) for images in against_rest]
    part |= {f'auc_{i}': auc for i, auc in enumerate(aucs)}
    part['auc_macro'] = np.mean(aucs, axis=0)
    parts.append(part)
  return _joined(parts)


def roc_band(
  truth: np.ndarray, p: np.ndarray, resamples: Resamples, grid: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Returns pointwise 95 % bands of the ROC and the precision-recall curve.

  Two arrays [2, m]: sensitivity at the false positive rates `grid` [m], and
  precision at the sensitivities `grid`.
  """
  images = _Sorted(truth, p, resamples.column)
  tprs, precisions = [], []
  for counts in resamples.chunks():
    for tp, fp in zip(*images.cumulative(counts), strict=True):
      if not tp[-1] or not fp[-1]:
        continue
      tpr, fpr = tp / tp[-1], fp / fp[-1]
      tprs.append(np.interp(grid, np.append(0, fpr), np.append(0, tpr)))
      at = np.minimum(np.searchsorted(tpr, grid - 1e-7), len(tpr) - 1)
      precisions.append(tp[at] / np.maximum(tp[at] + fp[at], 1))
  if not tprs:
    nothing = np.full((2, len(grid)), np.nan)
    return nothing, nothing
  return (
    np.percentile(tprs, [2.5, 97.5], axis=0),
    np.percentile(precisions, [2.5, 97.5], axis=0),
  )


def percentile(samples: np.ndarray) -> tuple[float, float]:
  """Returns the 2.5th and 97.5th percentile of the finite samples [count].

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

  def spread(design, fitted):
    # Saturated scores, or such that hardly differ, leave nothing to invert.
    information = (design * (fitted * (1 - fitted))) @ design.T
    if not np.linalg.cond(information) < 1e12:
      return np.full(len(design), np.nan)
    bread = np.linalg.inv(information)
    score = design * (truth - fitted)
    sums = np.stack([np.bincount(column, row) for row in score])
    meat = sums @ sums.T * len(names) / (len(names) - 1)
    return np.sqrt(np.diag(bread @ meat @ bread))

  def around(value, error):
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


def binary(
  truth: np.ndarray,
  p: np.ndarray,
  predicted: np.ndarray,
  resamples: Resamples,
  *,
  score: np.ndarray | None = None,
) -> dict[str, tuple[float, float]]:
  """Returns the 95 % interval of every metric; see `binary_samples`."""
  if not len(truth):
    names = (*metrics.RANKING, *metrics.DECISIONS, *metrics.PROBABILITIES)
    return dict.fromkeys(names, (np.nan, np.nan))
  samples = binary_samples(truth, p, predicted, resamples, score=score)
  found = {name: percentile(values) for name, values in samples.items()}
  found |= calibration_line(truth, p, resamples.patient)
  # Where all are right the bootstrap sees no error that could be made.
  for name, kept, hits in (
    ('accuracy', np.ones(len(truth), bool), truth == predicted),
    ('sensitivity', truth == 1, predicted),
    ('specificity', truth == 0, ~np.asarray(predicted, bool)),
    ('precision', np.asarray(predicted, bool), truth == 1),
    ('negative_predictive_value', ~np.asarray(predicted, bool), truth == 0),
  ):
    if kept.any() and found[name][0] == found[name][1]:
      found[name] = proportion(hits[kept], resamples.patient[kept])[1:]
  return found


def grades(
  truth: np.ndarray,
  p: np.ndarray,
  predicted: np.ndarray,
  resamples: Resamples,
) -> dict[str, tuple[float, float]]:
  """Returns the 95 % interval of every metric of `metrics.grades`."""
  if not len(truth):
    return {}
  samples = grade_samples(truth, p, predicted, resamples)
  return {name: percentile(values) for name, values in samples.items()}


def delong(
  truth: np.ndarray,
  scores: np.ndarray,
  patient: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the AUCs [m] of m scores of the same images, and covariance [m, m].

  DeLong et al. 1988; with patients, Obuchowski's extension to clustered data
  (1997), which equals DeLong's where every image has its own patient.

  Args:
    truth: int [n], 0 or 1.
    scores: float [m, n], larger for class 1.
    patient: [n]; None takes every image as independent.

  Raises:
    ValueError: fewer than two images of a class.
  """
  truth, scores = np.asarray(truth), np.atleast_2d(scores)
  positive, negative = truth == 1, truth == 0
  m, n = positive.sum(), negative.sum()
  if m < 2 or n < 2:
    raise ValueError(
      f'DeLong needs two images of each class, found {m} inadequate and {n} '
      'adequate'
    )
  # Placement values by midranks (Sun & Xu 2014).
  rank = np.stack([stats.rankdata(s) for s in scores])
  above = np.stack([stats.rankdata(s[positive]) for s in scores])
  below = np.stack([stats.rankdata(s[negative]) for s in scores])
  v10 = (rank[:, positive] - above) / n
  v01 = 1 - (rank[:, negative] - below) / m
  auc = v10.mean(axis=1)
  if patient is None:
    column = np.arange(len(truth))
  else:
    column = np.unique(patient, return_inverse=True)[1]
  size = column.max() + 1

  def cluster_sums(values, which):
    centred = values - auc[:, None]
    return np.stack([np.bincount(column[which], v, size) for v in centred])

  a, b = cluster_sums(v10, positive), cluster_sums(v01, negative)
  with_positive = len(np.unique(column[positive]))
  with_negative = len(np.unique(column[negative]))
  mixed = a @ b.T * size / (size - 1)
  if with_positive < 2 or with_negative < 2:
    raise ValueError('DeLong needs two patients of each class')
  covariance = (
    a @ a.T * with_positive / (with_positive - 1) / m**2
    + b @ b.T * with_negative / (with_negative - 1) / n**2
    + (mixed + mixed.T) / (m * n)
  )
  return auc, covariance


def auc(
  truth: np.ndarray, score: np.ndarray, patient: np.ndarray
) -> tuple[float, float, float]:
  """Returns an AUC and its 95 % interval: Obuchowski's variance, logit scale.

  NaN where either class has fewer than two images or patients.
  """
  try:
    [value], [[variance]] = delong(truth, score, patient)
  except ValueError:
    value = metrics.ranking(truth, score)['auc']
    return float(value), np.nan, np.nan
  if not 0 < value < 1:
    return float(value), np.nan, np.nan
  at = np.log(value / (1 - value))
  half = _Z * np.sqrt(max(variance, 0.0)) / (value * (1 - value))
  low, high = calibration.sigmoid(np.array([at - half, at + half]))
  return float(value), float(low), float(high)


def compare_auc(
  truth: np.ndarray,
  first: np.ndarray,
  second: np.ndarray,
  patient: np.ndarray | None = None,
) -> dict[str, Any]:
  """Returns DeLong's comparison of two scores of the same images.

  Returns:
    'first', 'second', 'difference' (first - second), its 95 % 'low' and 'high',
    'z' and two-sided 'p_value'; 'z' is 0 where the scores rank alike.
  """
  (a, b), covariance = delong(truth, np.stack([first, second]), patient)
  variance = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
  error = np.sqrt(max(variance, 0.0))
  difference = a - b
  # Below rounding there is no variance: the two rank every pair alike.
  z = difference / error if error > 1e-12 else 0.0
  return {
    'first': float(a),
    'second': float(b),
    'difference': float(difference),
    'low': float(difference - _Z * error),
    'high': float(difference + _Z * error),
    'z': float(z),
    'p_value': float(2 * stats.norm.sf(abs(z))),
  }


def too_small(truth: np.ndarray, patient: np.ndarray) -> str:
  """Returns why a group of images can't tell anything, '' where it can."""
  counts = {
    'inadequate images': int((truth == 1).sum()),
    'adequate images': int((truth == 0).sum()),
    'patients': len(np.unique(patient)),
  }
  few = [
    f'{n} {what[:-1] if n == 1 else what}'
    for what, n in counts.items()
    if n < FEW
  ]
  return ', '.join(few)


class _Sorted:
  """Images in the order of their scores, highest first."""

  def __init__(self, truth, score, column):
    score = np.asarray(score)
    order = np.argsort(-score, kind='stable')
    self._column = column[order]
    self._truth = np.asarray(truth)[order].astype(np.float32)
    ordered = score[order]
    last = np.append(np.diff(ordered) != 0, True)
    # The last of each group of equal scores, where a threshold can lie.
    self._ends = None if last.all() else np.nonzero(last)[0]

  def cumulative(self, counts):
    """Returns true and false positives [c, g] at every threshold."""
    weight = np.take(counts, self._column, axis=1)
    # float32 counts up to 2**24 images exactly.
    tp = np.cumsum(weight * self._truth, axis=1)
    fp = np.cumsum(weight, axis=1) - tp
    if self._ends is not None:
      tp, fp = tp[:, self._ends], fp[:, self._ends]
    return tp, fp

  def auc(self, counts) -> np.ndarray:
    tp, fp = self.cumulative(counts)
    lost, gained = np.diff(fp, prepend=0), np.diff(tp, prepend=0)
    pairs = tp[:, -1].astype(np.float64) * fp[:, -1]
    return _ratio(_dot(lost, tp - gained / 2), pairs)

  def ranking(self, counts) -> dict[str, np.ndarray]:
    tp, fp = self.cumulative(counts)
    positive = tp[:, -1].astype(np.float64)
    negative = fp[:, -1].astype(np.float64)
    gained, lost = np.diff(tp, prepend=0), np.diff(fp, prepend=0)
    rows = np.arange(len(tp))
    with np.errstate(invalid='ignore', divide='ignore'):
      area = _dot(lost, tp - gained / 2)
      precise = _dot(gained, tp / np.maximum(tp + fp, 1))
      # How many thresholds keep the specificity, or miss the sensitivity.
      allowed = (1 - metrics.FIXED) * negative * (1 + 1e-6)
      kept = (fp <= allowed[:, None]).sum(axis=1)
      needed = metrics.FIXED * positive * (1 - 1e-6)
      missed = (tp < needed[:, None]).sum(axis=1)
      at_specificity = np.where(kept > 0, tp[rows, np.maximum(kept - 1, 0)], 0)
      at_sensitivity = fp[rows, np.minimum(missed, tp.shape[1] - 1)]
      found = {
        'auc': area / (positive * negative),
        'average_precision': precise / positive,
        'partial_auc': self._partial(tp, fp, lost, gained, positive, negative),
        'sensitivity_at_95_specificity': at_specificity / positive,
        'specificity_at_95_sensitivity': 1 - at_sensitivity / negative,
      }
    single = (positive == 0) | (negative == 0)
    return {k: np.where(single, np.nan, v) for k, v in found.items()}

  def _partial(self, tp, fp, lost, gained, positive, negative):
    limit = metrics.MAX_FPR
    edge = (limit * negative)[:, None]
    # No threshold beyond the first that every row has past the limit counts.
    stop = int((fp < edge).sum(axis=1).max()) + 1
    tp, fp, lost, gained = (x[:, :stop] for x in (tp, fp, lost, gained))
    width = np.clip(edge - (fp - lost), 0, lost)
    rise = np.where(lost > 0, gained * width / np.maximum(lost, 1), 0)
    area = (width * (tp - gained + rise / 2)).sum(axis=1)
    area = area / (positive * negative)
    least, most = limit**2 / 2, limit
    return 0.5 * (1 + (area - least) / (most - least))


def _one_hot(index, count):
  return (np.asarray(index)[:, None] == np.arange(count)).astype(np.float64)


def _dot(a, b):
  """Returns the sums float64 [c] of a * b [c, g]."""
  return (a * b).sum(axis=1, dtype=np.float64)


def _ratio(part, whole):
  return np.divide(
    part, whole, out=np.full(len(whole), np.nan), where=whole > 0
  )


def _joined(parts):
  return {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}


def _decisions(confusion) -> dict[str, np.ndarray]:
  common = _classes(confusion)
  both = (confusion.sum(axis=2) > 0).all(axis=1)
  renamed = {
    'sensitivity': common['recall_1'],
    'specificity': common['recall_0'],
    'precision': common['precision_1'],
    'negative_predictive_value': common['precision_0'],
    'f1': common['f1_1'],
    'f1_adequate': common['f1_0'],
  }
  needing_both = (
    'balanced_accuracy',
    'f1_macro',
    'f1_weighted',
    'mcc',
    'kappa',
  )
  return {
    'accuracy': common['accuracy'],
    **renamed,
    **{k: np.where(both, common[k], np.nan) for k in needing_both},
  }


def _classes(confusion) -> dict[str, np.ndarray]:
  """Returns the metrics of confusion matrices [c, k, k], rows the truth."""
  k = confusion.shape[1]
  hit = np.einsum('cii->ci', confusion)
  true, called = confusion.sum(axis=2), confusion.sum(axis=1)
  n = true.sum(axis=1)
  away = (np.arange(k)[:, None] - np.arange(k)) ** 2
  expected = true[:, :, None] * called[:, None, :] / n[:, None, None]
  with np.errstate(invalid='ignore', divide='ignore'):
    recall, precision = hit / true, hit / called
    f1 = 2 * hit / (true + called)
    right = hit.sum(axis=1)
    chance = (true * called).sum(axis=1)
    scale = np.sqrt(
      (n**2 - (true**2).sum(axis=1)) * (n**2 - (called**2).sum(axis=1))
    )
    covariance = right * n - chance
    several = (true > 0).sum(axis=1) > 1
    result = {
      'accuracy': right / n,
      'balanced_accuracy': np.where(several, _mean_defined(recall), np.nan),
      'f1_macro': _mean_defined(f1),
      'f1_weighted': np.where(true > 0, f1 * true, 0).sum(axis=1) / n,
      'mcc': np.where(
        several, np.where(scale > 0, covariance / scale, 0.0), np.nan
      ),
      'kappa': np.where(several, covariance / (n**2 - chance), np.nan),
      'quadratic_kappa': np.where(
        several,
        1
        - (confusion * away).sum(axis=(1, 2))
        / (expected * away).sum(axis=(1, 2)),
        np.nan,
      ),
    }
  for i in range(k):
    result[f'recall_{i}'] = recall[:, i]
    result[f'precision_{i}'] = precision[:, i]
    result[f'f1_{i}'] = f1[:, i]
  return result


def _mean_defined(values):
  defined = np.isfinite(values)
  return np.where(defined, values, 0).sum(axis=1) / defined.sum(axis=1)
