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

from collections.abc import Mapping
from typing import Any

import numpy as np

from iqa_jax import errors

METHODS = ('none', 'temperature', 'platt', 'isotonic')
_EPS = 1e-7
_TEMPERATURES = (0.05, 20.0)


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


def fit(method: str, truth: np.ndarray, p: np.ndarray) -> dict[str, Any]:
  """Fits a calibration.

  Args:
    method: 'none', 'temperature' (Guo et al. 2017; one scale of the log-odds),
      'platt' (Platt 1999; scale and offset, with his smoothed targets) or
      'isotonic' (any rising function, kept from 0 and 1 by one imagined image
      of either class: a log loss of infinity says nothing).
    truth: int [n], 1 inadequate, 0 adequate; others are left out.
    p: float [n], p_inadequate; NaN is left out.

  Returns:
    The record that `apply` takes. Where nothing can be fitted (one class only,
    scores that don't rise with it), method 'none' with a 'reason'.

  Raises:
    ValueError: no such method.
  """
  if method not in METHODS:
    raise errors.InvalidValue(f'calibration {method!r} is none of {METHODS}')
  if method == 'none':
    return {'method': 'none'}
  truth, p = np.asarray(truth), np.asarray(p, np.float64)
  usable = np.isfinite(p) & np.isin(truth, (0, 1))
  truth, p = truth[usable].astype(np.float64), p[usable]
  if len(np.unique(truth)) < 2:
    return _none('validation has one class only')
  odds = log_odds(p)
  if method == 'temperature':
    return {'method': method, 'temperature': _temperature(odds, truth)}
  if method == 'platt':
    positive, negative = truth.sum(), (1 - truth).sum()
    smooth = np.where(
      truth > 0, (positive + 1) / (positive + 2), 1 / (negative + 2)
    )
    offset, scale = fit_line(odds, smooth)
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


def apply(record: Mapping[str, Any] | None, p: np.ndarray) -> np.ndarray:
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


def _none(reason: str) -> dict[str, Any]:
  return {'method': 'none', 'reason': reason}


def fit_line(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
  """Returns intercept and slope of the logistic regression of y on x.

  Args:
    x: float [n].
    y: float [n] in [0, 1].

  Returns:
    The maximum of the likelihood; (NaN, NaN) where there is none, that is
    where x is constant or separates y.
  """
  x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
  low, high = x[y < 0.5], x[y >= 0.5]
  hard = np.isin(y, (0, 1)).all()
  if not len(low) or not len(high) or np.ptp(x) == 0:
    return np.nan, np.nan
  if hard and (low.max() <= high.min() or high.max() <= low.min()):
    return np.nan, np.nan
  design = np.stack([np.ones_like(x), x])
  weight = _newton(design, np.zeros_like(x), y)
  return float(weight[0]), float(weight[1])


def fit_intercept(x: np.ndarray, y: np.ndarray) -> float:
  """Returns the intercept of the logistic regression of y with slope 1 on x.

  NaN where y is of one class only.
  """
  y = np.asarray(y, np.float64)
  if not 0 < y.mean() < 1:
    return np.nan
  x = np.asarray(x, np.float64)
  return float(_newton(np.ones((1, len(x))), x, y)[0])


def _newton(design, offset, y) -> np.ndarray:
  """Maximises the likelihood of y ~ sigmoid(offset + weight @ design)."""
  weight = np.zeros(len(design))

  def loss(weight):
    z = offset + weight @ design
    return (np.logaddexp(0, z) - y * z).sum()

  value = loss(weight)
  for _ in range(100):
    p = sigmoid(offset + weight @ design)
    gradient = design @ (p - y)
    hessian = (design * (p * (1 - p))) @ design.T
    hessian += 1e-12 * np.trace(hessian) * np.eye(len(design)) + 1e-300
    step = np.linalg.solve(hessian, gradient)
    # Halved until it helps: plain Newton overshoots from a flat start.
    for halving in range(40):
      trial = weight - step * 0.5**halving
      better = loss(trial)
      if better <= value:
        break
    else:
      return weight
    moved = np.abs(trial - weight).max()
    weight, value = trial, better
    if moved < 1e-10 * (1 + np.abs(weight).max()):
      break
  return weight


def _temperature(odds, truth) -> float:
  from scipy import optimize

  signed = np.where(truth > 0, odds, -odds)
  low, high = np.log(_TEMPERATURES)
  result = optimize.minimize_scalar(
    lambda log_t: np.logaddexp(0, -signed * np.exp(-log_t)).mean(),
    bounds=(low, high),
    method='bounded',
    options={'xatol': 1e-9},
  )
  return float(np.exp(result.x))
