"""Where the verdict turns: thresholds chosen on validation data alone.

A photograph is called Inadequate when its calibrated probability of Inadequate
reaches the threshold. An operating point is a plain JSON record, stored with
the model and applied by evaluation and export.
"""

from __future__ import annotations

from typing import Any

import numpy as np

RULES = (
  'youden',
  'sensitivity',
  'specificity',
  'cost',
  'percentile',
  'fixed',
)


def choose(
  rule: str, target: float, truth: np.ndarray, p: np.ndarray
) -> dict[str, Any]:
  """Chooses a threshold.

  Args:
    rule: 'youden' (most sensitivity + specificity; Youden 1950);
      'sensitivity' / 'specificity' (the threshold that reaches at least
      `target` and gives the most of the other); 'cost' (least expected cost
      where a missed Inadequate costs `target` times a false alarm);
      'percentile' (calls the worst `target` % Inadequate); 'fixed' (`target`).
    target: see the rules.
    truth: int [n], 1 inadequate, of validation.
    p: float [n], calibrated p_inadequate.

  Returns:
    {'rule', 'target', 'threshold', 'chosen_on'}; threshold 0.5 and a 'reason'
    where the data can't decide.

  Raises:
    ValueError: no such rule, or a target out of its range.
  """
  if rule not in RULES:
    raise ValueError(f'operating point {rule!r} is none of {RULES}')
  upper = {'percentile': 100.0, 'cost': np.inf}.get(rule, 1.0)
  if rule != 'youden' and not 0 <= target <= upper:
    raise ValueError(f'{rule} takes a target of 0 to {upper}, got {target}')
  point = {'rule': rule, 'target': float(target), 'chosen_on': 'validation'}
  if rule == 'youden':
    del point['target']
  if rule == 'fixed':
    return {**point, 'threshold': float(target), 'chosen_on': 'configuration'}
  if rule == 'percentile' and len(p):
    return {**point, 'threshold': float(np.percentile(p, 100 - target))}
  if len(np.unique(truth)) < 2:
    reason = 'validation has one class only'
    return {**point, 'threshold': 0.5, 'reason': reason}
  # Here, because export applies operating points without scikit-learn.
  from sklearn import metrics as sk

  fpr, tpr, thresholds = sk.roc_curve(truth, p, drop_intermediate=False)
  if rule == 'youden':
    best = np.argmax(tpr - fpr)
  elif rule == 'sensitivity':
    best = np.argmax(tpr >= target - 1e-12)
  elif rule == 'specificity':
    best = len(fpr) - 1 - np.argmax((1 - fpr >= target - 1e-12)[::-1])
  else:
    share = np.mean(truth)
    best = np.argmin(target * share * (1 - tpr) + (1 - share) * fpr)
  return {**point, 'threshold': _between(thresholds, best, p)}


def _between(thresholds: np.ndarray, best: int, p: np.ndarray) -> float:
  """Returns a threshold midway to the next lower score: the same verdicts on
  validation, without hanging on one photograph's exact score."""
  chosen = min(thresholds[best], 1.0)
  below = p[p < thresholds[best]]
  return float((chosen + below.max()) / 2) if len(below) else float(chosen)


def uncertain_band(
  p: np.ndarray, threshold: float, share: float
) -> list[float]:
  """Returns the band [low, high] of p in which a person should look.

  Args:
    p: float [n], calibrated p_inadequate of validation.
    threshold: the operating point.
    share: of the validation photographs, those nearest to the threshold in
      log-odds, that fall into the band.

  Raises:
    ValueError: `share` is not within 0..1.
  """
  if not 0 <= share <= 1:
    raise ValueError(f'eval.uncertain_share={share} is not within 0 to 1')
  if not share or not len(p):
    return [float(threshold), float(threshold)]
  reach = np.quantile(certainty(p, threshold), share)
  odds = _odds(threshold)
  return [float(_p(odds - reach)), float(_p(odds + reach))]


def certainty(p: np.ndarray, threshold: float) -> np.ndarray:
  """Returns how far p is from the threshold in log-odds, float [n]."""
  return np.abs(_odds(p) - _odds(threshold))


def is_uncertain(p: np.ndarray, band: list[float]) -> np.ndarray:
  """Returns whether p lies in the band, bool [n]; never for an empty band."""
  low, high = band
  return (p >= low) & (p <= high) & (high > low)


def _odds(p):
  p = np.clip(np.asarray(p, np.float64), 1e-7, 1 - 1e-7)
  return np.log(p) - np.log1p(-p)


def _p(odds):
  return 1.0 / (1.0 + np.exp(-odds))
