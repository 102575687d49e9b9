"""Is a photograph like those that a model learned from?

Another camera's is a fundus photograph all the same, but nobody knows the
model's error rates there. What is familiar is fitted to a run's training
photographs (`fit`) and kept in its model.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from iqa_jax import errors
from iqa_jax.judging.features import NAMES

# What a camera gives its photographs, whatever they show.
_FAMILIAR = tuple(
  NAMES.index(name)
  for name in (
    'red_mean', 'red_std', 'blue_mean', 'blue_std', 'saturation_mean',
    'chroma_narrow', 'light_mean', 'light_std', 'light_p98', 'band_rms_0',
    'band_rms_1', 'band_rms_2', 'chroma_rms_0', 'light_ring0', 'light_ring3',
  )
)  # fmt: skip


def fit(rows: np.ndarray, flagged: float = 0.015) -> dict[str, Any]:
  """Returns what is familiar to a run, as a record for its model.json.

  A Gaussian with a shrunk covariance (Ledoit and Wolf 2004) of these
  features; its threshold is that of photographs left out of the fit.

  Args:
    rows: float [n, len(NAMES)], `features` of training photographs.
    flagged: share of such photographs that may be called unlike them.

  Raises:
    InvalidValue: fewer than 20 photographs.
  """
  from sklearn.covariance import LedoitWolf

  rows = np.asarray(rows, np.float64)[:, _FAMILIAR]
  if len(rows) < 20:
    raise errors.InvalidValue(
      f'{len(rows)} photographs do not say what is familiar; 20 are needed'
    )
  folds = np.arange(len(rows)) % 5
  apart = np.empty(len(rows))
  for fold in range(5):
    apart[folds == fold] = _distance(
      rows[folds == fold], *_gaussian(LedoitWolf(), rows[folds != fold])
    )
  mean, deviation, precision = _gaussian(LedoitWolf(), rows)
  return {
    'names': [NAMES[i] for i in _FAMILIAR],
    'mean': mean.tolist(),
    'deviation': deviation.tolist(),
    'precision': precision.tolist(),
    'threshold': float(np.quantile(apart, 1 - flagged)),
    'flagged': flagged,
    'n': len(rows),
  }


def _gaussian(
  model: Any, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  mean, deviation = rows.mean(0), rows.std(0) + 1e-6
  model.fit((rows - mean) / deviation)
  return mean, deviation, model.precision_


def _distance(
  rows: np.ndarray,
  mean: np.ndarray,
  deviation: np.ndarray,
  precision: np.ndarray,
) -> np.ndarray:
  z = (rows - mean) / deviation
  return np.sqrt(np.maximum(np.einsum('ni,ij,nj->n', z, precision, z), 0))


def unlike(row: np.ndarray, record: Mapping[str, Any]) -> tuple[float, bool]:
  """Returns how unlike the training photographs one is, and whether to say so.

  Args:
    row: float [len(NAMES)], its `features`.
    record: of `fit`.

  Returns:
    The Mahalanobis distance over the record's threshold (1 is the threshold),
    and whether it is beyond.

  Raises:
    InvalidValue: the record is of other features.
  """
  if list(record['names']) != [NAMES[i] for i in _FAMILIAR]:
    raise errors.InvalidValue(
      'the run was trained with other statistics of its photographs; '
      'evaluate it again'
    )
  arrays = [np.asarray(record[k]) for k in ('mean', 'deviation', 'precision')]
  values = np.asarray(row, np.float64)[None, list(_FAMILIAR)]
  distance = float(_distance(values, *arrays)[0])
  share = distance / float(record['threshold'])
  return share, share > 1
