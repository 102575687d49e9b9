"""The bootstrap of patients: every metric in every resample.

Two eyes of a patient are not two independent photographs, so patients are
resampled, not images. A resample is one row of counts, how often each patient
was drawn; every metric of all resamples then comes from matrix products over
patients or from cumulative sums over images sorted once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import functools

import numpy as np

from iqa_jax.evaluation import metrics
from iqa_jax.judging import calibration

_CHUNK = 64  # resamples computed at a time: what fits a core's cache


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
    )


def binary_samples(
  truth: np.ndarray,
  p: np.ndarray,
  predicted: np.ndarray,
  resamples: Resamples,
  *,
  score: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
  """Returns every metric of `metrics.binary` in every resample, [count].

  But for the calibration line, whose interval is
  `intervals.calibration_line`'s. NaN where a resample lacks what the metric
  needs.

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
  lost = np.stack([np.ones(len(p)), *losses(truth, p).values()], axis=1)
  gap, bins = p - truth, _one_hot(metrics.bin_of(p), metrics.BINS)
  gaps = np.hstack([bins * x[:, None] for x in (np.ones(len(p)), gap, gap**2)])
  images = Sorted(truth, p if score is None else score, resamples.column)
  tables = [resamples.by_patient(t) for t in (cells, lost, gaps)]
  parts = []
  for counts in resamples.chunks():
    confusion, sums, binned = (counts @ t for t in tables)
    square = metrics.squared_calibration_error(*np.split(binned, 3, axis=1))
    n, log_loss, brier = sums.T
    parts.append(
      {
        **decisions(confusion.reshape(-1, 2, 2)),
        **images.ranking(counts),
        'log_loss': log_loss / n,
        'brier': brier / n,
        'rms_calibration_error': np.sqrt(np.maximum(square, 0)),
      }
    )
  return _joined(parts)


def losses(truth: np.ndarray, p: np.ndarray) -> dict[str, np.ndarray]:
  """Returns what each image adds to the mean 'log_loss' and 'brier', [n]."""
  clipped = calibration.clip(p)
  return {
    'log_loss': -np.where(truth == 1, np.log(clipped), np.log1p(-clipped)),
    'brier': (np.asarray(p, np.float64) - truth) ** 2,
  }


def grade_samples(
  truth: np.ndarray, p: np.ndarray, predicted: np.ndarray, resamples: Resamples
) -> dict[str, np.ndarray]:
  """Returns every metric of `metrics.grades` in every resample, [count]."""
  truth, k = np.asarray(truth), np.shape(p)[1]
  cells = _one_hot(truth * k + np.asarray(predicted), k * k)
  table = resamples.by_patient(cells)
  against_rest = [
    Sorted(truth == i, p[:, i], resamples.column) for i in range(k)
  ]
  parts = []
  for counts in resamples.chunks():
    confusion = (counts @ table).reshape(-1, k, k)
    part = _classes(confusion)
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
  images = Sorted(truth, p, resamples.column)
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


class Sorted:
  """Images in the order of their scores, highest first.

  Args:
    truth: int [n], 0 or 1.
    score: float [n].
    column: int [n], the column of counts that says how often an image is there.
  """

  def __init__(self, truth: np.ndarray, score: np.ndarray, column: np.ndarray):
    score = np.asarray(score)
    order = np.argsort(-score, kind='stable')
    self._column = column[order]
    self._truth = np.asarray(truth)[order].astype(np.float32)
    ordered = score[order]
    last = np.append(np.diff(ordered) != 0, True)
    # The last of each group of equal scores, where a threshold can lie.
    self._ends = None if last.all() else np.nonzero(last)[0]

  def cumulative(self, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns true and false positives [c, g] at every threshold."""
    weight = np.take(counts, self._column, axis=1)
    # float32 counts up to 2**24 images exactly.
    tp = np.cumsum(weight * self._truth, axis=1)
    fp = np.cumsum(weight, axis=1) - tp
    if self._ends is not None:
      tp, fp = tp[:, self._ends], fp[:, self._ends]
    return tp, fp

  def auc(self, counts: np.ndarray) -> np.ndarray:
    tp, fp = self.cumulative(counts)
    lost, gained = np.diff(fp, prepend=0), np.diff(tp, prepend=0)
    pairs = tp[:, -1].astype(np.float64) * fp[:, -1]
    return _ratio(_dot(lost, tp - gained / 2), pairs)

  def ranking(self, counts: np.ndarray) -> dict[str, np.ndarray]:
    """Returns `metrics.ranking` of every row of counts [c, columns]."""
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

  def _partial(
    self,
    tp: np.ndarray,
    fp: np.ndarray,
    lost: np.ndarray,
    gained: np.ndarray,
    positive: np.ndarray,
    negative: np.ndarray,
  ) -> np.ndarray:
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


def _one_hot(index: np.ndarray, count: int) -> np.ndarray:
  return (np.asarray(index)[:, None] == np.arange(count)).astype(np.float64)


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """Returns the sums float64 [c] of a * b [c, g]."""
  return (a * b).sum(axis=1, dtype=np.float64)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
  return np.divide(
    part, whole, out=np.full(len(whole), np.nan), where=whole > 0
  )


def _joined(parts: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
  return {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}


def decisions(confusion: np.ndarray) -> dict[str, np.ndarray]:
  """Returns `metrics.decisions` of confusion matrices [c, 2, 2]."""
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


def _classes(confusion: np.ndarray) -> dict[str, np.ndarray]:
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


def _mean_defined(values: np.ndarray) -> np.ndarray:
  defined = np.isfinite(values)
  return np.where(defined, values, 0).sum(axis=1) / defined.sum(axis=1)
