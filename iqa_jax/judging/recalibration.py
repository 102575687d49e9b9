"""A model's verdicts at another site: its scores keep their order, not sense.

On another camera a network still ranks photographs well, and its probabilities
and its operating point are off. They are fitted anew from some labelled
photographs of the site, or from unlabelled ones and an assumed share of
inadequate ones. The site's log-odds are a line in the network's; few labels
say little, so the line is drawn towards the model's own.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from iqa_jax import errors
from iqa_jax.judging import calibration, operating_points
from iqa_jax.judging.operating_record import Judged, OperatingRecord

# Standard deviations, before any label is seen, of the logarithm of the slope
# and of the offset in log-odds: cameras move scores more than they stretch
# them.
_SLOPE, _OFFSET = 0.5, 3.0


def from_labels(
  saved: OperatingRecord,
  truth: np.ndarray,
  p: np.ndarray,
  *,
  share: float = 0.1,
) -> OperatingRecord:
  """Fits calibration and operating point to labelled photographs of a site.

  The maximum of the posterior of slope and offset of the log-odds, which are
  lognormal and normal around the model's own; then the model's rule for the
  operating point, by the photographs' calibrated probabilities.

  Args:
    saved: of the model, as it was trained.
    truth: int [n], 1 inadequate, 0 adequate; others count for the threshold
      and band only.
    p: float [n], p_inadequate, uncalibrated; NaN is left out.
    share: of the photographs that go to a person.

  Raises:
    ValueError: no photograph has a label.
  """
  truth, p = np.asarray(truth), np.asarray(p, np.float64)
  known = np.isfinite(p) & np.isin(truth, (0, 1))
  if not known.any():
    raise errors.InvalidValue(
      "no photograph with a verdict has a label: give the site's own, or an "
      'assumed share of inadequate photographs'
    )
  offset, slope = _line(saved, p)
  x = offset + slope * calibration.log_odds(p[known])
  more, stretch = _likeliest(x, truth[known].astype(np.float64))
  line = {
    'method': 'platt',
    'scale': stretch * slope,
    'offset': stretch * offset + more,
  }
  return _record(saved, line, p, share)


def from_rate(
  saved: OperatingRecord, p: np.ndarray, rate: float, *, share: float = 0.1
) -> OperatingRecord:
  """Fits to unlabelled photographs of which a share `rate` is inadequate.

  The offset of the log-odds alone moves, until the mean probability is `rate`.
  As good as that assumption: the verdicts call about so many inadequate.

  Args:
    saved: of the model, as it was trained.
    p: float [n], p_inadequate, uncalibrated; NaN is left out.
    rate: between 0 and 1.
    share: of the photographs that go to a person.

  Raises:
    ValueError: no such rate, or no photograph.
  """
  p = np.asarray(p, np.float64)
  if not 0 < rate < 1:
    raise errors.InvalidValue(f'a rate of {rate} is not between 0 and 1')
  seen = p[np.isfinite(p)]
  if not len(seen):
    raise errors.InvalidValue('there is no photograph with a verdict')
  offset, slope = _line(saved, p)
  x = offset + slope * calibration.log_odds(seen)
  more = calibration.fit_intercept(x, np.full(len(x), rate))
  line = {'method': 'platt', 'scale': slope, 'offset': offset + more}
  return _record(saved, line, p, share)


def on_others(
  saved: OperatingRecord,
  truth: np.ndarray,
  p: np.ndarray,
  patient: np.ndarray,
  *,
  share: float = 0.1,
  parts: int = 10,
) -> Judged:
  """Judges labelled photographs, each as fitted to other patients' alone.

  What `from_labels` reaches on photographs that it has not seen.

  Args:
    saved: of the model, as it was trained.
    truth: int [n], 0 or 1.
    p: float [n], p_inadequate, uncalibrated.
    patient: [n].
    share: see `from_labels`.
    parts: of the patients, at most; each is judged by the rest.
  """
  names, column = np.unique(patient, return_inverse=True)
  if len(names) < 2:
    raise errors.InvalidValue('photographs of two patients are needed')
  order = np.random.default_rng(0).permutation(len(names))
  part = (order % min(parts, len(names)))[column]
  found = saved.judge(p)
  judged = Judged(*(np.array(values) for values in found))
  for k in np.unique(part):
    left_out = part == k
    record = from_labels(saved, truth[~left_out], p[~left_out], share=share)
    for values, new in zip(judged, record.judge(p[left_out]), strict=True):
      values[left_out] = new
  return judged


def _line(saved: OperatingRecord, p: np.ndarray) -> tuple[float, float]:
  """Returns offset and slope of the model's own log-odds in the network's.

  Of an isotonic calibration, the line that is nearest to it.
  """
  fitted = saved.calibration or {'method': 'none'}
  if fitted['method'] == 'none':
    return 0.0, 1.0
  if fitted['method'] == 'temperature':
    return 0.0, 1 / float(fitted['temperature'])
  if fitted['method'] == 'platt':
    return float(fitted['offset']), float(fitted['scale'])
  seen = p[np.isfinite(p)]
  found = calibration.fit_line(
    calibration.log_odds(seen), calibration.apply(fitted, seen)
  )
  return found if found[1] > 0 else (0.0, 1.0)


def _likeliest(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
  """Returns offset and slope of log-odds x [n] that y [n] makes likeliest."""
  from scipy import optimize

  def cost(at: np.ndarray) -> tuple[float, np.ndarray]:
    offset, slope = at[0], np.exp(at[1])
    z = offset + slope * x
    away = calibration.sigmoid(z) - y
    value = (np.logaddexp(0, z) - y * z).sum()
    value += (offset / _OFFSET) ** 2 / 2 + (at[1] / _SLOPE) ** 2 / 2
    gradient = np.array(
      [
        away.sum() + offset / _OFFSET**2,
        slope * (away @ x) + at[1] / _SLOPE**2,
      ]
    )
    return value, gradient

  found = optimize.minimize(
    cost, np.zeros(2), jac=True, method='L-BFGS-B', bounds=[(-60, 60), (-3, 3)]
  )
  return float(found.x[0]), float(np.exp(found.x[1]))


def _record(
  saved: OperatingRecord, line: dict[str, Any], p: np.ndarray, share: float
) -> OperatingRecord:
  calibrated = calibration.apply(line, p)
  threshold = _threshold(saved, calibrated[np.isfinite(calibrated)])
  point = {
    **(saved.operating_point or {'rule': 'fixed', 'target': 0.5}),
    'threshold': threshold,
    'chosen_on': 'photographs of another site',
    'n': int(np.isfinite(p).sum()),
  }
  # What was reached on validation says nothing of this site.
  for key in ('n_inadequate', 'sensitivity', 'specificity', 'reason'):
    point.pop(key, None)
  band = operating_points.uncertain_band(calibrated, threshold, share)
  return OperatingRecord(line, point, band, saved.criteria)


def _threshold(saved: OperatingRecord, p: np.ndarray) -> float:
  """Returns the threshold on probabilities [n] by the model's own rule.

  Each photograph counts as p inadequate and 1 - p adequate ones: a few labels
  alone would make sensitivity a matter of one photograph.
  """
  point = saved.operating_point or {}
  rule, target = point.get('rule', 'fixed'), float(point.get('target', 0.5))
  if rule in ('fixed', 'percentile'):
    nobody = np.zeros(len(p), int)
    return operating_points.choose(rule, target, nobody, p)['threshold']
  twice = np.concatenate([np.ones(len(p), int), np.zeros(len(p), int)])
  return operating_points.choose(
    rule, target, twice, np.tile(p, 2), weight=np.concatenate([p, 1 - p])
  )['threshold']
