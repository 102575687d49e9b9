"""What is measured of a verdict. Positive class: Inadequate (class 1).

scikit-learn computes whatever it has. A measure that the data does not define
(one class only, no prediction) is None, never a made-up number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
import warnings

import numpy as np
from scipy import special
import sklearn.exceptions
import sklearn.linear_model
from sklearn import metrics as sk

Value = float | None
_EPS = 1e-7


def ranking(truth: np.ndarray, score: np.ndarray) -> dict[str, Value]:
  """Returns what depends on the order of the scores alone.

  Args:
    truth: int [n], 1 inadequate.
    score: float [n], larger for inadequate.

  Returns:
    auc; average_precision (of Inadequate); partial_auc (over false positive
    rates up to 0.1, standardised as by McClish 1989);
    sensitivity_at_95_specificity and specificity_at_95_sensitivity.
  """
  names = (
    'auc',
    'average_precision',
    'partial_auc',
    'sensitivity_at_95_specificity',
    'specificity_at_95_sensitivity',
  )
  if len(np.unique(truth)) < 2:
    return dict.fromkeys(names)
  fpr, tpr, _ = sk.roc_curve(truth, score, drop_intermediate=False)
  values = (
    sk.roc_auc_score(truth, score),
    sk.average_precision_score(truth, score),
    sk.roc_auc_score(truth, score, max_fpr=0.1),
    tpr[fpr <= 0.05 + 1e-12].max(),
    1.0 - fpr[tpr >= 0.95 - 1e-12].min(),
  )
  return dict(zip(names, map(float, values), strict=True))


def decisions(truth: np.ndarray, verdict: np.ndarray) -> dict[str, Any]:
  """Returns what depends on the verdicts.

  Args:
    truth: int [n], 1 inadequate.
    verdict: int [n], likewise.

  Returns:
    accuracy, balanced_accuracy, sensitivity, specificity, precision, f1,
    f1_adequate, f1_macro, f1_weighted, mcc, kappa; confusion [[tn, fp],
    [fn, tp]]; majority_accuracy, what calling all of them the commoner class
    would reach.
  """
  names = (
    'accuracy', 'balanced_accuracy', 'sensitivity', 'specificity',
    'precision', 'f1', 'f1_adequate', 'f1_macro', 'f1_weighted', 'mcc',
    'kappa', 'majority_accuracy',
  )  # fmt: skip
  result: dict[str, Any] = dict.fromkeys(names)
  confusion = sk.confusion_matrix(truth, verdict, labels=[0, 1])
  result['confusion'] = confusion.tolist()
  n = len(truth)
  if not n:
    return result
  (tn, fp), (fn, tp) = confusion
  result['accuracy'] = float((tn + tp) / n)
  result['majority_accuracy'] = float(max(tn + fp, fn + tp) / n)
  result['sensitivity'] = _ratio(tp, tp + fn)
  result['specificity'] = _ratio(tn, tn + fp)
  result['precision'] = _ratio(tp, tp + fp)
  if len(np.unique(truth)) < 2:
    return result

  def f1(average, positive=1):
    return sk.f1_score(
      truth, verdict, average=average, pos_label=positive, zero_division=0.0
    )

  result['balanced_accuracy'] = sk.balanced_accuracy_score(truth, verdict)
  result['f1'] = f1('binary')
  result['f1_adequate'] = f1('binary', 0)
  result['f1_macro'] = f1('macro')
  result['f1_weighted'] = f1('weighted')
  result['mcc'] = sk.matthews_corrcoef(truth, verdict)
  result['kappa'] = sk.cohen_kappa_score(truth, verdict)
  return {
    k: float(v) if isinstance(v, np.floating) else v for k, v in result.items()
  }


def calibration(truth: np.ndarray, p: np.ndarray) -> dict[str, Value]:
  """Returns how well probabilities of Inadequate mean what they say.

  Args:
    truth: int [n], 1 inadequate.
    p: float [n] in 0..1.

  Returns:
    log_loss (natural log, p kept 1e-7 from 0 and 1), brier, ece (15 bins of
    equal width, Guo et al. 2017), calibration_slope and
    calibration_intercept (logistic regression on the log-odds, 1 and 0 where
    perfect; Cox 1958; the intercept with the slope held at 1).
  """
  names = (
    'log_loss', 'brier', 'ece', 'calibration_slope', 'calibration_intercept',
  )  # fmt: skip
  if not len(truth):
    return dict.fromkeys(names)
  p = np.clip(np.asarray(p, np.float64), _EPS, 1 - _EPS)
  result: dict[str, Value] = {
    'log_loss': float(sk.log_loss(truth, p, labels=[0, 1])),
    'brier': float(np.mean((p - truth) ** 2)),
    'ece': expected_calibration_error(truth, p),
    'calibration_slope': None,
    'calibration_intercept': None,
  }
  if len(np.unique(truth)) == 2:
    odds = special.logit(p)
    if np.ptp(odds) > 0:
      with warnings.catch_warnings():
        # Perfectly separated classes have no finite slope.
        warnings.simplefilter('error', sklearn.exceptions.ConvergenceWarning)
        try:
          fit = sklearn.linear_model.LogisticRegression(
            C=np.inf, max_iter=1000, tol=1e-6
          ).fit(odds[:, None], truth)
          result['calibration_slope'] = float(fit.coef_[0, 0])
        except sklearn.exceptions.ConvergenceWarning:
          pass
    result['calibration_intercept'] = _offset(truth, odds)
  return result


def _offset(truth, odds) -> float:
  """Returns b where mean(sigmoid(odds + b)) is the prevalence (Newton)."""
  b = 0.0
  for _ in range(100):
    p = special.expit(odds + b)
    step = (truth.mean() - p.mean()) / max((p * (1 - p)).mean(), 1e-12)
    b += float(np.clip(step, -2, 2))
    if abs(step) < 1e-10:
      break
  return b


def expected_calibration_error(
  truth: np.ndarray, p: np.ndarray, bins: int = 15
) -> float:
  """Returns the mean of |share inadequate - mean p| over bins of p."""
  which = np.minimum((p * bins).astype(int), bins - 1)
  counts = np.bincount(which, minlength=bins)
  gap = np.bincount(which, truth - p, minlength=bins)
  return float(np.abs(gap).sum() / counts.sum())


def multiclass(
  truth: np.ndarray, predicted: np.ndarray, names: tuple[str, ...]
) -> dict[str, Any]:
  """Returns the measures of more than two ordered classes (EyeQ's grades).

  Args:
    truth: int [n].
    predicted: int [n].
    names: of the classes, in order.

  Returns:
    accuracy, balanced_accuracy, f1_macro, f1_weighted, f1 (per class), mcc,
    kappa, quadratic_kappa, confusion (rows: truth), majority_accuracy.
  """
  classes = list(range(len(names)))
  confusion = sk.confusion_matrix(truth, predicted, labels=classes)
  if not len(truth):
    return {'confusion': confusion.tolist()}

  def f1(average):
    return sk.f1_score(
      truth, predicted, labels=classes, average=average, zero_division=0.0
    )

  result: dict[str, Any] = {
    'accuracy': float(sk.accuracy_score(truth, predicted)),
    'majority_accuracy': float(np.bincount(truth).max() / len(truth)),
    'f1_macro': float(f1('macro')),
    'f1_weighted': float(f1('weighted')),
    'f1': dict(zip(names, map(float, f1(None)), strict=True)),
    'confusion': confusion.tolist(),
    'balanced_accuracy': None,
    'mcc': None,
    'kappa': None,
    'quadratic_kappa': None,
  }
  if len(np.unique(truth)) > 1:
    present = confusion.sum(1) > 0
    recall = confusion.diagonal()[present] / confusion.sum(1)[present]
    result['balanced_accuracy'] = float(recall.mean())
    result['mcc'] = float(sk.matthews_corrcoef(truth, predicted))
    result['kappa'] = float(sk.cohen_kappa_score(truth, predicted))
    result['quadratic_kappa'] = float(
      sk.cohen_kappa_score(truth, predicted, weights='quadratic')
    )
  return result


def verdict_metrics(
  truth: np.ndarray, p: np.ndarray, threshold: float
) -> dict[str, Any]:
  """Returns all measures of the binary verdict p >= threshold."""
  return {
    'n': len(truth),
    'n_inadequate': int(np.sum(truth)),
    'threshold': float(threshold),
    **ranking(truth, p),
    **decisions(truth, (p >= threshold).astype(int)),
    **calibration(truth, p),
  }


def _ratio(part, whole) -> Value:
  return float(part / whole) if whole else None
