"""Means of what is measured of photographs, with intervals that hold.

A patient's photographs are alike, so intervals count patients. Few patients
and skewed values (an area under a curve near 1, a ratio) make the percentiles
of a bootstrap too narrow: what these cover is measured by `python -m
tests.benchmarks coverage_means`.
"""

from __future__ import annotations

import numpy as np

from iqa_jax.aliases import Record
from iqa_jax.evaluation import intervals

ANY = (-np.inf, np.inf)  # differences
SHARE = (0.0, 1.0)
RATIO = (0.0, np.inf)


def mean(
  values: np.ndarray, patient: np.ndarray, bounds: tuple[float, float] = ANY
) -> Record:
  """Returns the mean of values and its 95 % interval, clustered by patient.

  Student's t on the variance between patients; where the values are bounded,
  on the scale of the logit or (no upper bound) the logarithm, so that it stays
  inside. Where all values are at a bound no variance can be seen: then as many
  patients as could be missed in one of 40 samples (1 - 0.025**(1 / patients),
  Clopper and Pearson 1934) may lie at the other bound.

  Args:
    values: float [n]; NaN where nothing could be measured, left out.
    patient: [n], whom they are of.
    bounds: of the values: ANY, SHARE or RATIO.

  Returns:
    'mean', 'low', 'high' (None where there is nothing to tell them from),
    'n' and 'n_patients' of what was not left out.
  """
  values = np.asarray(values, np.float64)
  known = ~np.isnan(values)
  values = values[known]
  column = np.unique(np.asarray(patient)[known], return_inverse=True)[1]
  n, count = len(values), int(column.max(initial=-1)) + 1
  found: Record = {
    'mean': float(values.mean()) if n else None,
    'low': None,
    'high': None,
    'n': n,
    'n_patients': count,
  }
  if count < 2:
    return found
  middle = float(values.mean())
  away = np.bincount(column, values - middle) / n
  error = float(np.sqrt((away @ away) * count / (count - 1)))
  low, high = bounds
  unseen = 1 - 0.025 ** (1 / count)
  if np.isinf(low):
    half = intervals.student(away, count) * error
    ends = middle - half, middle + half
  elif middle <= low:
    ends = low, low + unseen * (high - low)
  elif middle >= high:
    ends = high - unseen * (high - low), high
  else:
    half = intervals.student(away, count) * error
    ends = intervals.bent(middle, half, bounds)
  known_ends = [float(e) if np.isfinite(e) else None for e in ends]
  return found | {'low': known_ends[0], 'high': known_ends[1]}


def share(hits: np.ndarray, patient: np.ndarray) -> Record:
  """Returns a share and its 95 % interval, as `mean` does.

  Wilson's, clustered by patient through the design effect (see
  intervals.proportion).

  Args:
    hits: [n] of 0, 1 or NaN (left out).
    patient: [n], whom they are of.
  """
  hits = np.asarray(hits, np.float64)
  known = ~np.isnan(hits)
  patient = np.asarray(patient)[known]
  value, low, high = intervals.proportion(hits[known], patient)
  found = (value, low, high) if known.any() else (None, None, None)
  return {
    **dict(zip(('mean', 'low', 'high'), found, strict=True)),
    'n': int(known.sum()),
    'n_patients': len(np.unique(patient)),
  }
