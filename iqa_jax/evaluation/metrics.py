"""What the scores are worth: one number a metric, by scikit-learn.

Truth is 0 (adequate) or 1 (inadequate), and Inadequate is the positive class
of every metric unless its name says otherwise. A metric that the images can't
give (one class only, nothing called inadequate) is NaN; `reason` says why.
"""

from __future__ import annotations

from collections.abc import Sequence
import math

import numpy as np
from sklearn import metrics as sk

from iqa_jax import labels
from iqa_jax.judging import calibration

BINS = 15  # of equal width, for the calibration error
MAX_FPR = 0.1  # up to which the partial AUC looks
FIXED = 0.95  # specificity (sensitivity) at which the other one is given

RANKING = (
  'auc',
  'average_precision',
  'partial_auc',
  'sensitivity_at_95_specificity',
  'specificity_at_95_sensitivity',
)
DECISIONS = (
  'accuracy',
  'balanced_accuracy',
  'sensitivity',
  'specificity',
  'precision',
  'negative_predictive_value',
  'f1',
  'f1_adequate',
  'f1_macro',
  'f1_weighted',
  'mcc',
  'kappa',
)
PROBABILITIES = (
  'log_loss',
  'brier',
  'rms_calibration_error',
  'calibration_slope',
  'calibration_intercept',
)
# The least and the most that a metric can be, where it isn't 0 to 1.
RANGES = {
  'mcc': (-1.0, 1.0),
  'kappa': (-1.0, 1.0),
  'quadratic_kappa': (-1.0, 1.0),
  'log_loss': (0.0, math.inf),
  'calibration_slope': (-math.inf, math.inf),
  'calibration_intercept': (-math.inf, math.inf),
}
TITLES = {
  'auc': 'ROC AUC',
  'average_precision': 'Average precision',
  'partial_auc': f'Partial AUC (FPR ≤ {MAX_FPR:g}, standardised)',
  'sensitivity_at_95_specificity': 'Sensitivity at 95 % specificity',
  'specificity_at_95_sensitivity': 'Specificity at 95 % sensitivity',
  'accuracy': 'Accuracy',
  'balanced_accuracy': 'Balanced accuracy',
  'sensitivity': 'Sensitivity (recall of Inadequate)',
  'specificity': 'Specificity (recall of Adequate)',
  'precision': 'Precision of Inadequate (PPV)',
  'negative_predictive_value': 'Precision of Adequate (NPV)',
  'f1': 'F1 of Inadequate',
  'f1_adequate': 'F1 of Adequate',
  'f1_macro': 'F1, macro',
  'f1_weighted': 'F1, weighted',
  'mcc': 'Matthews correlation',
  'kappa': "Cohen's kappa",
  'quadratic_kappa': 'Quadratic kappa',
  'auc_macro': 'ROC AUC, mean of one against the rest',
  'log_loss': 'Log loss',
  'brier': 'Brier score',
  'rms_calibration_error': f'RMS calibration error ({BINS} bins, debiased)',
  'calibration_slope': 'Calibration slope',
  'calibration_intercept': 'Calibration intercept',
}

SHORT = {  # of one class of several
  'precision': 'Precision',
  'recall': 'Recall',
  'f1': 'F1',
  'auc': 'ROC AUC against the rest',
}


def title(name: str, between: str) -> str:
  """Returns a metric's title; of a class's, with what stands before the class.

  >>> title('recall_good', ' of ')
  'Recall of good'
  """
  stem, _, group = name.rpartition('_')
  return TITLES.get(name) or f'{SHORT.get(stem, stem)}{between}{group}'


def binary(
  truth: np.ndarray,
  p: np.ndarray,
  predicted: np.ndarray,
  *,
  score: np.ndarray | None = None,
) -> dict[str, float]:
  """Returns RANKING, DECISIONS and PROBABILITIES of one binary judgement.

  Args:
    truth: int [n], 0 or 1.
    p: float [n] in [0, 1], the probability of class 1.
    predicted: bool [n], whether class 1 is called.
    score: float [n], what ranks the images; None: p.
  """
  return {
    **ranking(truth, p if score is None else score),
    **decisions(truth, predicted),
    **probabilities(truth, p),
  }


def ranking(truth: np.ndarray, score: np.ndarray) -> dict[str, float]:
  """Returns the RANKING metrics, which no threshold enters.

  Args:
    truth: int [n], 0 or 1.
    score: float [n], larger for class 1; any monotone scale.

  The partial AUC is McClish's standardised one (1989) over false positive
  rates up to MAX_FPR. Sensitivity at 95 % specificity is the largest that an
  observed threshold of at least that specificity reaches, and the reverse.
  """
  if not _both(truth):
    return dict.fromkeys(RANKING, np.nan)
  fpr, tpr, _ = sk.roc_curve(truth, score, drop_intermediate=False)
  close = 1e-9  # 0.05 has no exact float
  return {
    'auc': float(sk.roc_auc_score(truth, score)),
    'average_precision': float(sk.average_precision_score(truth, score)),
    'partial_auc': float(sk.roc_auc_score(truth, score, max_fpr=MAX_FPR)),
    'sensitivity_at_95_specificity': float(tpr[fpr <= 1 - FIXED + close].max()),
    'specificity_at_95_sensitivity': float(1 - fpr[tpr >= FIXED - close].min()),
  }


def decisions(truth: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
  """Returns the DECISIONS metrics of bool verdicts [n]."""
  truth, predicted = np.asarray(truth), np.asarray(predicted).astype(int)
  if not len(truth):
    return dict.fromkeys(DECISIONS, np.nan)
  precision, recall, f1, images = sk.precision_recall_fscore_support(
    truth, predicted, labels=[0, 1], zero_division=np.nan
  )
  found = dict.fromkeys(DECISIONS, np.nan) | {
    'accuracy': np.mean(truth == predicted),
    'sensitivity': recall[1],
    'specificity': recall[0],
    'precision': precision[1],
    'negative_predictive_value': precision[0],
    'f1': f1[1],
    'f1_adequate': f1[0],
  }
  if _both(truth):
    found |= {
      'balanced_accuracy': recall.mean(),
      'f1_macro': f1.mean(),
      'f1_weighted': np.average(f1, weights=images),
      'mcc': sk.matthews_corrcoef(truth, predicted),
      'kappa': sk.cohen_kappa_score(truth, predicted),
    }
  return {name: float(value) for name, value in found.items()}


def probabilities(truth: np.ndarray, p: np.ndarray) -> dict[str, float]:
  """Returns the PROBABILITIES metrics of p [n].

  Log loss clips p to [1e-7, 1 - 1e-7]. Slope: of the logistic regression of
  truth on log-odds (Cox 1958), 1 is ideal, below 1 is overconfident.
  Intercept: of the same with the slope held at 1 ("calibration in the large"),
  0 is ideal, above 0 says that p is too low (Van Calster et al. 2016).
  """
  truth, p = np.asarray(truth), np.asarray(p, np.float64)
  if not len(truth):
    return dict.fromkeys(PROBABILITIES, np.nan)
  odds = calibration.log_odds(p)
  return {
    'log_loss': float(sk.log_loss(truth, calibration.clip(p), labels=[0, 1])),
    'brier': float(np.mean((p - truth) ** 2)),
    'rms_calibration_error': rms_calibration_error(truth, p),
    'calibration_slope': calibration.fit_line(odds, truth)[1],
    'calibration_intercept': calibration.fit_intercept(odds, truth),
  }


def rms_calibration_error(truth: np.ndarray, p: np.ndarray) -> float:
  """Returns the root mean square of share of class 1 - mean p over BINS.

  Bins weigh as many images as they have. Debiased after Kumar et al. 2019
  (Verified Uncertainty Calibration): the plain mean of |share - mean p|, the
  expected calibration error of Guo et al. 2017, is far from 0 for a perfectly
  calibrated forecaster of few images, and no bootstrap surrounds it. 0 where
  no more than chance is seen.
  """
  which = bin_of(p)
  gap = np.asarray(p, np.float64) - np.asarray(truth)
  sums = (np.bincount(which, x, BINS) for x in (np.ones(len(gap)), gap, gap**2))
  square = squared_calibration_error(*sums)
  return float(np.sqrt(np.maximum(square, 0.0)))


def squared_calibration_error(
  count: np.ndarray, gap: np.ndarray, square: np.ndarray
) -> np.ndarray:
  """Returns the unbiased estimate of the mean squared gap over bins [...].

  The mean product of two different images' gaps of a bin, by the bins' size;
  below 0 where chance makes it so. A bin of one image says nothing: 0.

  Args:
    count: [..., bins], images of each bin.
    gap: [..., bins], sums of p - truth over them.
    square: [..., bins], sums of (p - truth)**2.
  """
  product = (gap**2 - square) / np.maximum(count - 1, 1)
  return np.where(count > 1, product, 0).sum(axis=-1) / count.sum(axis=-1)


def bin_of(p: np.ndarray) -> np.ndarray:
  """Returns the bin 0..BINS-1 of each probability; 1.0 is in the last."""
  return np.minimum((np.asarray(p) * BINS).astype(int), BINS - 1)


def grades(
  truth: np.ndarray, p: np.ndarray, predicted: np.ndarray
) -> dict[str, float]:
  """Returns the metrics of three or more ordered classes.

  Args:
    truth: int [n], 0..k-1.
    p: float [n, k], a score a class; rows need not sum to 1.
    predicted: int [n].

  Returns:
    accuracy, balanced_accuracy, f1_macro, f1_weighted, mcc, kappa,
    quadratic_kappa, auc_macro, and of each class i: precision_i, recall_i,
    f1_i, auc_i (against the rest).
  """
  truth, predicted = np.asarray(truth), np.asarray(predicted)
  classes = list(range(np.shape(p)[1]))
  names = [
    *('accuracy', 'balanced_accuracy', 'f1_macro', 'f1_weighted', 'mcc'),
    *('kappa', 'quadratic_kappa', 'auc_macro'),
    *(
      f'{m}_{i}' for m in ('precision', 'recall', 'f1', 'auc') for i in classes
    ),
  ]
  if not len(truth):
    return dict.fromkeys(names, np.nan)
  several = len(np.unique(truth)) > 1
  kappa, quadratic = (
    sk.cohen_kappa_score(truth, predicted, weights=weights)
    if several
    else np.nan
    for weights in (None, 'quadratic')
  )
  precision, recall, f1, _ = sk.precision_recall_fscore_support(
    truth, predicted, labels=classes, zero_division=np.nan
  )
  averages = {
    kind: sk.f1_score(
      truth, predicted, labels=classes, average=kind, zero_division=np.nan
    )
    for kind in ('macro', 'weighted')
  }
  aucs = [
    sk.roc_auc_score(truth == i, p[:, i]) if _both(truth == i) else np.nan
    for i in classes
  ]
  result = {
    'accuracy': sk.accuracy_score(truth, predicted),
    'balanced_accuracy': np.nanmean(recall) if several else np.nan,
    'f1_macro': averages['macro'],
    'f1_weighted': averages['weighted'],
    'mcc': sk.matthews_corrcoef(truth, predicted) if several else np.nan,
    'kappa': kappa,
    'quadratic_kappa': quadratic,
    'auc_macro': np.mean(aucs),
  }
  for i in classes:
    result |= {
      f'precision_{i}': precision[i],
      f'recall_{i}': recall[i],
      f'f1_{i}': f1[i],
      f'auc_{i}': aucs[i],
    }
  return {name: float(result[name]) for name in names}


def confusion(
  truth: np.ndarray, predicted: np.ndarray, count: int = 2
) -> np.ndarray:
  """Returns int64 [count, count]: row the truth, column what is called."""
  cell = np.asarray(truth) * count + np.asarray(predicted).astype(int)
  return np.bincount(cell, minlength=count * count).reshape(count, count)


def majority(
  truth: np.ndarray, reference: np.ndarray, count: int = 2
) -> dict[str, float]:
  """Returns the metrics of always giving the commonest class.

  Args:
    truth: int [n], the images evaluated.
    reference: int [m], where the commonest class and the prevalences come from
      (the training split).
    count: number of classes.

  Returns:
    `binary` or, of more than two classes, `grades`; the calibration line of a
    constant probability is NaN.
  """
  share = np.bincount(reference, minlength=count) / max(len(reference), 1)
  called = np.full(len(truth), share.argmax())
  if count > 2:
    return grades(truth, np.tile(share, (len(truth), 1)), called)
  return binary(truth, np.full(len(truth), share[1]), called)


def reason(
  truth: np.ndarray, value: float, names: Sequence[str] = labels.QUALITY
) -> str:
  """Returns why a metric of these images is undefined, '' where it is not."""
  if np.isfinite(value):
    return ''
  if not len(truth):
    return 'no image'
  absent = [n for i, n in enumerate(names) if not np.any(truth == i)]
  if absent:
    return f'no {absent[0]} image'
  return 'the ratio has no cases, or no finite value'


def _both(truth: np.ndarray) -> bool:
  truth = np.asarray(truth)
  return bool((truth == 1).any() and (truth == 0).any())
