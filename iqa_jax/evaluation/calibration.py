"""Maps the network's probability of Inadequate to one that means what it says.

A calibration is a plain JSON record, so that it is stored with the model and
applied by the export without scikit-learn. It is fitted on validation data at
its natural prevalence.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy import optimize, special

METHODS = ('none', 'temperature', 'platt', 'isotonic')
_EPS = 1e-7


def fit(method: str, truth: np.ndarray, p: np.ndarray) -> dict[str, Any]:
  """Fits a calibration.

  Args:
    method: 'none', 'temperature' (Guo et al. 2017; one scale of the log-odds),
      'platt' (Platt 1999; scale and offset, with his smoothed targets) or
      'isotonic' (any rising function).
    truth: int [n], 1 inadequate.
    p: float [n], p_inadequate.

  Returns:
    The record that `apply` takes. With one class only, or no example, nothing
    can be fitted: method 'none' with the reason.

  Raises:
    ValueError: no such method.
  """
  if method not in METHODS:
    raise ValueError(f'calibration {method!r} is none of {METHODS}')
  if method != 'none' and len(np.unique(truth)) < 2:
    return {'method': 'none', 'reason': 'validation has one class only'}
  odds = special.logit(np.clip(np.asarray(p, np.float64), _EPS, 1 - _EPS))
  truth = np.asarray(truth, np.float64)
  if method == 'temperature':

    def loss_of(log_scale):
      z = odds * np.exp(log_scale)
      return np.mean(np.logaddexp(0, z) - truth * z)

    found = optimize.minimize_scalar(
      loss_of, bounds=(-4, 4), method='bounded', options={'xatol': 1e-8}
    )
    return {'method': method, 'temperature': float(np.exp(-found.x))}
  if method == 'platt':
    positive, n = truth.sum(), len(truth)
    target = np.where(
      truth == 1, (positive + 1) / (positive + 2), 1 / (n - positive + 2)
    )

    def loss(ab):
      z = ab[0] * odds + ab[1]
      grad = special.expit(z) - target
      value = np.mean(np.logaddexp(0, z) - target * z)
      return value, np.array([(grad * odds).mean(), grad.mean()])

    a, b = optimize.minimize(loss, [1.0, 0.0], jac=True, method='BFGS').x
    return {'method': method, 'scale': float(a), 'offset': float(b)}
  if method == 'isotonic':
    from sklearn.isotonic import IsotonicRegression

    model = IsotonicRegression(y_min=0, y_max=1, out_of_bounds='clip')
    model.fit(p, truth)
    return {
      'method': method,
      'x': model.X_thresholds_.tolist(),
      'y': model.y_thresholds_.tolist(),
    }
  return {'method': 'none'}


def apply(record: Mapping[str, Any] | None, p: np.ndarray) -> np.ndarray:
  """Returns calibrated probabilities, float64 [n].

  Args:
    record: of `fit`; None changes nothing.
    p: float [n], p_inadequate. NaN stays NaN.

  Raises:
    ValueError: the record is not one of `fit`.
  """
  p = np.asarray(p, np.float64)
  method = (record or {}).get('method', 'none')
  try:
    if record is None or method == 'none':
      return p
    odds = special.logit(np.clip(p, _EPS, 1 - _EPS))
    if method == 'temperature':
      return special.expit(odds / float(record['temperature']))
    if method == 'platt':
      return special.expit(
        float(record['scale']) * odds + float(record['offset'])
      )
    if method == 'isotonic':
      x, y = np.asarray(record['x'], float), np.asarray(record['y'], float)
      return np.where(np.isnan(p), np.nan, np.interp(p, x, y))
  except (KeyError, TypeError) as error:
    raise ValueError(f'damaged calibration record {record}: {error}') from error
  raise ValueError(f'unknown calibration method {method!r}')
