"""Maps the network's probability of Inadequate to one that means what it says.

A calibration is a plain JSON record, fitted on the validation split at its
natural prevalence, stored with the model and applied by NumPy alone:

  {'method': 'none'}
  {'method': 'temperature', 'temperature': T}        sigmoid(odds / T)
  {'method': 'platt', 'scale': a, 'offset': b}       sigmoid(a * odds + b)
  {'method': 'isotonic', 'x': [...], 'y': [...]}     y(p), linear in between

odds are the log-odds log(p / (1 - p)) of the network's p_inadequate.
"""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Float, Real, Shaped
import numpy as np

from iqa_jax import errors
from iqa_jax.aliases import Record

METHODS = ('none', 'temperature', 'platt', 'isotonic')
_EPS = 1e-7
_TEMPERATURES = (0.05, 20.0)
_STEEPEST = 1e12  # slope in standard deviations; beyond it, separation


def clip(p: np.ndarray) -> np.ndarray:
  """Returns p as float64 in [1e-7, 1 - 1e-7]; NaN stays NaN."""
  return np.clip(np.asarray(p, np.float64), _EPS, 1 - _EPS)


def log_odds(p: np.ndarray) -> np.ndarray:
  """Returns log(p / (1 - p)), float64, of p clipped to [1e-7, 1 - 1e-7]."""
  p = clip(p)
  return np.log(p) - np.log1p(-p)


def sigmoid(x: np.ndarray) -> np.ndarray:
  """Returns 1 / (1 + exp(-x)), float64, without overflow."""
  x = np.asarray(x, np.float64)
  small = np.exp(-np.abs(x))
  return np.where(x >= 0, 1.0, small) / (1.0 + small)


def fit(
  method: str, truth: Shaped[np.ndarray, ' n'], p: Real[np.ndarray, ' n']
) -> Record:
  """Fits a calibration.

  Args:
    method: 'none', 'temperature' (Guo et al. 2017; one scale of the log-odds),
      'platt' (Platt 1999; scale and offset), both with Platt's smoothed
      targets, so that few or separable images don't say 'sure', or 'isotonic'
      (any rising function, kept from 0 and 1 by one imagined image
      of either class: a log loss of infinity says nothing).
    truth: int [n], 1 inadequate, 0 adequate; others are left out.
    p: float [n], p_inadequate; NaN is left out.

  Returns:
    The record that `apply` takes. Where nothing can be fitted (one class only,
    scores that don't rise with it, a temperature beyond 0.05 to 20), method
    'none' with a 'reason'.

  Raises:
    ValueError: no such method.
  """
  errors.one_of('calibration', method, METHODS)
  if method == 'none':
    return {'method': 'none'}
  truth, p = np.asarray(truth), np.asarray(p, np.float64)
  usable = np.isfinite(p) & np.isin(truth, (0, 1))
  truth, p = truth[usable].astype(np.float64), p[usable]
  if len(np.unique(truth)) < 2:
    return _none('validation has one class only')
  odds = log_odds(p)
  if method == 'temperature':
    return _temperature(odds, _smooth(truth))
  if method == 'platt':
    offset, scale = fit_line(odds, _smooth(truth))
    if not scale > 0:
      return _none('the scores of validation do not rise with the class')
    return {'method': method, 'scale': scale, 'offset': offset}
  from sklearn.isotonic import IsotonicRegression

  n = len(truth)
  step = IsotonicRegression(
    y_min=1 / (n + 2), y_max=(n + 1) / (n + 2), out_of_bounds='clip'
  ).fit(p, truth)
  return {
    'method': method,
    'x': step.X_thresholds_.tolist(),
    'y': step.y_thresholds_.tolist(),
  }


def apply(record: Record | None, p: np.ndarray) -> np.ndarray:
  """Returns calibrated probabilities, float64 [n].

  Args:
    record: of `fit`, as it is or read back from JSON; None changes nothing.
    p: float [n], p_inadequate. NaN stays NaN.

  Raises:
    ValueError: the record is not one of `fit`.
  """
  p = np.asarray(p, np.float64)
  record = {'method': 'none'} if record is None else record
  try:
    method = record['method']
    if method == 'none':
      return p
    if method == 'temperature':
      return sigmoid(log_odds(p) / float(record['temperature']))
    if method == 'platt':
      return sigmoid(
        float(record['scale']) * log_odds(p) + float(record['offset'])
      )
    if method == 'isotonic':
      x, y = np.asarray(record['x'], float), np.asarray(record['y'], float)
      return np.where(np.isnan(p), np.nan, np.interp(p, x, y))
  except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
    raise errors.InvalidValue(
      f'damaged calibration record {record}: {error}'
    ) from error
  raise errors.InvalidValue(f'unknown calibration method {method!r}')


def _none(reason: str) -> Record:
  return {'method': 'none', 'reason': reason}


def fit_line(
  x: Float[np.ndarray, ' n'], y: Real[np.ndarray, ' n']
) -> tuple[float, float]:
  """Returns intercept and slope of the logistic regression of y on x.

  For every slope the intercept has a bracketed root, and the likelihood at
  that intercept is concave in the slope: its derivative's root is bracketed
  by doubling.

  Args:
    x: float [n], finite.
    y: float [n] in [0, 1].

  Returns:
    The maximum of the likelihood; (NaN, NaN) where there is none, that is
    where x is constant or separates y, or where float64 can't tell it from
    such.
  """
  x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
  # A label between 0 and 1 is some of either class.
  low, high = x[y < 1], x[y > 0]
  nothing = np.nan, np.nan
  if not len(low) or not len(high):
    return nothing
  if low.max() <= high.min() or high.max() <= low.min():
    return nothing
  centre, unit = x.mean(), x.std()
  scaled = (x - centre) / unit

  def climb(slope: float) -> float:
    level = fit_intercept(slope * scaled, y)
    return scaled @ (sigmoid(level + slope * scaled) - y)

  bound = 1.0
  while climb(-bound) > 0 or climb(bound) < 0:
    bound *= 2
    if bound > _STEEPEST:
      return nothing
  scaled_slope = _root(climb, -bound, bound)
  slope = scaled_slope / unit
  level = fit_intercept(scaled_slope * scaled, y)
  return float(level - slope * centre), float(slope)


def fit_intercept(
  x: Float[np.ndarray, ' n'], y: Real[np.ndarray, ' n']
) -> float:
  """Returns the intercept of the logistic regression of y with slope 1 on x.

  Args:
    x: float [n], finite.
    y: float [n] in [0, 1].

  Returns:
    The root of sum(sigmoid(intercept + x) - y); NaN where y is of one class
    only.
  """
  x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
  if not len(y) or not 0 < y.mean() < 1:
    return np.nan
  # At these ends every fitted probability is below, or above, the mean of y.
  level = np.log(y.mean()) - np.log1p(-y.mean())
  return _root(
    lambda intercept: (sigmoid(intercept + x) - y).sum(),
    level - x.max() - 1,
    level - x.min() + 1,
  )


def _root(rising: Callable[[float], float], low: float, high: float) -> float:
  """Returns the root of a rising function between low and high."""
  from scipy import optimize

  return float(optimize.brentq(rising, low, high, xtol=1e-13, maxiter=1000))


def _smooth(truth: np.ndarray) -> np.ndarray:
  """Returns Platt's targets (1999): k of k images say (k + 1) / (k + 2)."""
  positive, negative = truth.sum(), (1 - truth).sum()
  return np.where(
    truth > 0, (positive + 1) / (positive + 2), 1 / (negative + 2)
  )


def _temperature(odds: np.ndarray, y: np.ndarray) -> Record:
  """Returns the record of the temperature that makes y [n] likeliest."""
  lowest, highest = _TEMPERATURES

  def climb(sharpness: float) -> float:
    return odds @ (sigmoid(sharpness * odds) - y)

  if climb(1 / highest) >= 0:
    return _none(
      f'the temperature that fits validation is above {highest:g}: the scores '
      'hardly rise with the class; they are left as they are'
    )
  if climb(1 / lowest) <= 0:
    return _none(
      f'the temperature that fits validation is below {lowest:g}: the scores '
      'hardly differ; they are left as they are'
    )
  sharpness = _root(climb, 1 / highest, 1 / lowest)
  return {'method': 'temperature', 'temperature': 1 / sharpness}
