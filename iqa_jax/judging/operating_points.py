"""Where the verdict turns: thresholds chosen on validation data alone.

A photograph is called Inadequate when its calibrated probability of Inadequate
reaches the threshold. An operating point is a plain JSON record, stored with
the model and applied by evaluation and export:

  {'rule': 'sensitivity', 'target': 0.95, 'threshold': 0.31,
   'chosen_on': 'validation', 'n': 900, 'n_inadequate': 120,
   'sensitivity': 0.95, 'specificity': 0.88}
"""

from __future__ import annotations

from jaxtyping import Float, Real, Shaped
import numpy as np

from iqa_jax import errors
from iqa_jax.aliases import Record
from iqa_jax.judging import calibration

RULES = ('youden', 'sensitivity', 'specificity', 'cost', 'percentile', 'fixed')


def choose(
  rule: str,
  target: float,
  truth: Shaped[np.ndarray, ' n'],
  p: Real[np.ndarray, ' n'],
  *,
  weight: Float[np.ndarray, ' n'] | None = None,
) -> Record:
  """Chooses a threshold; it lies half way between two observed scores.

  Args:
    rule: 'youden' (most sensitivity + specificity; Youden 1950);
      'sensitivity' / 'specificity' (the threshold that reaches at least
      `target` and gives the most of the other); 'cost' (least expected cost
      where a missed Inadequate costs `target` times a false alarm);
      'percentile' (calls the worst `target` % Inadequate); 'fixed' (`target`).
    target: see the rules; not read by 'youden'.
    truth: int [n] of validation, 1 inadequate, 0 adequate, others left out.
    p: float [n], calibrated p_inadequate; NaN is left out.
    weight: float [n], how many images each counts as in the curve; None: 1.

  Returns:
    The record above, 'sensitivity' and 'specificity' as reached on these
    images, None where there is no image of the class; threshold 0.5 and a
    'reason' where the data can't decide.

  Raises:
    ValueError: no such rule, or a target out of its range.
  """
  errors.one_of('operating point', rule, RULES)
  upper = {'percentile': 100.0, 'cost': np.inf}.get(rule, 1.0)
  if rule != 'youden' and not (0 <= target <= upper and np.isfinite(target)):
    raise errors.InvalidValue(
      f'{rule} takes a target of 0 to {upper}, got {target}'
    )
  truth, p = np.asarray(truth), np.asarray(p, np.float64)
  usable = np.isin(truth, (0, 1)) & np.isfinite(p)
  truth, p = truth[usable], p[usable]
  weight = np.ones(len(p)) if weight is None else weight[usable]
  point: Record = {'rule': rule}
  if rule != 'youden':
    point['target'] = float(target)
  positive, negative = (truth == 1).sum(), (truth == 0).sum()
  if rule == 'fixed':
    point |= {'threshold': float(target), 'chosen_on': 'configuration'}
  elif (rule == 'percentile' and len(p)) or (positive and negative):
    threshold = _threshold(rule, target, truth, p, weight)
    point |= {'threshold': threshold, 'chosen_on': 'validation'}
  else:
    reason = 'validation has one class only'
    point |= {'threshold': 0.5, 'chosen_on': 'nothing', 'reason': reason}
  called = p >= point['threshold']
  return {
    **point,
    'n': len(truth),
    'n_inadequate': int(positive),
    'sensitivity': float(called[truth == 1].mean()) if positive else None,
    'specificity': float(1 - called[truth == 0].mean()) if negative else None,
  }


def _threshold(
  rule: str, target: float, truth: np.ndarray, p: np.ndarray, weight: np.ndarray
) -> float:
  """Returns the threshold of a rule that looks at the data."""
  if rule == 'percentile':
    return float(np.percentile(p, 100 - target))
  thresholds, sensitivity, specificity = curve(truth, p, weight)
  # Thresholds fall along the curve. Of equally good ones take the lowest: a
  # missed fault is worse than a false alarm.
  if rule == 'sensitivity':
    best = int(np.argmax(sensitivity >= target - 1e-12))
  elif rule == 'specificity':
    best = int(np.nonzero(specificity >= target - 1e-12)[0][-1])
  elif rule == 'youden':
    best = _last_least(-sensitivity - specificity)
  else:
    missed = (1 - sensitivity) * weight[truth == 1].sum()
    alarms = (1 - specificity) * weight[truth == 0].sum()
    share = 1 / (1 + target)  # of the cost; finite whatever the target
    best = _last_least((1 - share) * missed + share * alarms)
  return float(thresholds[best])


def curve(
  truth: Shaped[np.ndarray, ' n'],
  p: Real[np.ndarray, ' n'],
  weight: Float[np.ndarray, ' n'] | None = None,
) -> tuple[
  Float[np.ndarray, ' m'], Float[np.ndarray, ' m'], Float[np.ndarray, ' m']
]:
  """Returns thresholds, falling, and sensitivity and specificity at each.

  From 'nothing is called' to 'everything is': one more than there are distinct
  scores. NaN where a class is missing.
  """
  distinct, where = np.unique(p, return_inverse=True)
  weight = np.ones(len(p)) if weight is None else weight
  positive = np.bincount(where, (truth == 1) * weight, len(distinct))[::-1]
  negative = np.bincount(where, (truth == 0) * weight, len(distinct))[::-1]
  with np.errstate(invalid='ignore', divide='ignore'):
    sensitivity = np.concatenate([[0], positive.cumsum()]) / positive.sum()
    false = np.concatenate([[0], negative.cumsum()]) / negative.sum()
  if not len(p):
    return np.ones(1), sensitivity, 1 - false
  falling = distinct[::-1]
  # Nothing reaches the first, not even a score of 1.
  first = (1 + falling[0]) / 2 if falling[0] < 1 else np.nextafter(1, 2)
  between = (falling + np.append(falling[1:], 0)) / 2
  return np.append(first, between), sensitivity, 1 - false


def uncertain_band(
  p: Real[np.ndarray, ' n'], threshold: float, share: float
) -> list[float]:
  """Returns the band [low, high] of p in which a person should look.

  Args:
    p: float [n], calibrated p_inadequate of validation; NaN is left out.
    threshold: the operating point.
    share: of the validation photographs, those nearest to the threshold in
      log-odds, that fall into the band.

  Raises:
    ValueError: `share` is not within 0..1.
  """
  if not 0 <= share <= 1:
    raise errors.InvalidValue(
      f'eval.uncertain_share={share} is not within 0 to 1'
    )
  p = np.asarray(p, np.float64)
  p = p[np.isfinite(p)]
  count = round(share * len(p))
  if not count:
    return [float(threshold), float(threshold)]
  # Wider by a hair: the furthest of them is to be inside.
  reach = np.sort(certainty(p, threshold))[count - 1] + 1e-9
  odds = calibration.log_odds(np.asarray(threshold))
  least, most = calibration.log_odds(np.array([0.0, 1.0]))
  # Certainty is clipped; what lies at its end is inside with it.
  low = 0.0 if odds - reach <= least else calibration.sigmoid(odds - reach)
  high = 1.0 if odds + reach >= most else calibration.sigmoid(odds + reach)
  return [float(low), float(high)]


def is_uncertain(p: np.ndarray, band: list[float]) -> np.ndarray:
  """Returns whether p lies in the band, bool [n]; never for an empty band."""
  low, high = band
  return (p >= low) & (p <= high) & (high > low)


def certainty(
  p: Real[np.ndarray, ' n'], threshold: float
) -> Float[np.ndarray, ' n']:
  """Returns how far p is from the threshold in log-odds, float [n]."""
  odds = calibration.log_odds(np.asarray(threshold))
  return np.abs(calibration.log_odds(p) - odds)


def coverage(
  truth: Shaped[np.ndarray, ' n'], p: Real[np.ndarray, ' n'], threshold: float
) -> tuple[Float[np.ndarray, ' m'], Float[np.ndarray, ' m']]:
  """Returns the share of images decided and the accuracy on them.

  The least certain are handed to a person first. Equally certain images are
  handed over together.

  Returns:
    coverage float [m], rising to 1, and accuracy float [m].
  """
  far = certainty(p, threshold)
  order = np.argsort(-far, kind='stable')
  right = ((p >= threshold) == (truth == 1))[order]
  last = (
    np.append(np.diff(far[order]) != 0, True) if len(far) else np.zeros(0, bool)
  )
  decided = np.arange(1, len(right) + 1)
  return (decided / max(len(right), 1))[last], (right.cumsum() / decided)[last]


def _last_least(cost: np.ndarray) -> int:
  return int(np.nonzero(cost <= cost.min() + 1e-12)[0][-1])
