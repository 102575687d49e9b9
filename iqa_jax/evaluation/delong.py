"""AUCs of the same images: their covariance, and whether two differ."""

from __future__ import annotations

import numpy as np
from scipy import stats

from iqa_jax.aliases import Record

_Z = stats.norm.ppf(0.975)


def covariance(
  truth: np.ndarray, scores: np.ndarray, patient: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the AUCs [m] of m scores of the same images, and covariance [m, m].

  DeLong et al. 1988; with patients, Obuchowski's extension to clustered data
  (1997), which equals DeLong's where every image has its own patient.

  Args:
    truth: int [n], 0 or 1.
    scores: float [m, n], larger for class 1.
    patient: [n]; None takes every image as independent.

  Raises:
    ValueError: fewer than two images or patients of a class.
  """
  value, above, below, patients = contributions(truth, scores, patient)
  size = above.shape[1]
  mixed = above @ below.T * size / (size - 1)
  return value, (
    above @ above.T * patients[1] / (patients[1] - 1)
    + below @ below.T * patients[0] / (patients[0] - 1)
    + mixed
    + mixed.T
  )


def compare_auc(
  truth: np.ndarray,
  first: np.ndarray,
  second: np.ndarray,
  patient: np.ndarray | None = None,
) -> Record:
  """Returns DeLong's comparison of two scores of the same images.

  Returns:
    'first', 'second', 'difference' (first - second), its 95 % 'low' and 'high',
    'z' and two-sided 'p_value'; 'z' is 0 where the scores rank alike.

  Raises:
    ValueError: too few images or patients, or AUCs that differ although
      neither varies over the images (a perfect score and a constant).
  """
  (a, b), joint = covariance(truth, np.stack([first, second]), patient)
  variance = joint[0, 0] + joint[1, 1] - 2 * joint[0, 1]
  error = np.sqrt(max(variance, 0.0))
  difference = a - b
  if error <= 1e-12 < abs(difference):
    raise ValueError(
      f'the AUCs are {a:.4g} and {b:.4g}, and neither varies over the images: '
      "DeLong's test has no variance to judge the difference by"
    )
  # Below rounding there is no variance: the two rank every pair alike.
  z = difference / error if error > 1e-12 else 0.0
  return {
    'first': float(a),
    'second': float(b),
    'difference': float(difference),
    'low': float(difference - _Z * error),
    'high': float(difference + _Z * error),
    'z': float(z),
    'p_value': float(2 * stats.norm.sf(abs(z))),
  }


def contributions(
  truth: np.ndarray, scores: np.ndarray, patient: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[int, int]]:
  """Returns what each patient's images of either class add to AUCs.

  Returns:
    the AUCs [m]; of the images of class 1 and of class 0, the sums by patient
    of their placement values less the AUC, over the images of the class,
    [m, patients] each; the patients of class 0 and of class 1.

  Raises:
    ValueError: fewer than two images or patients of a class.
  """
  truth, scores = np.asarray(truth), np.atleast_2d(scores)
  positive, negative = truth == 1, truth == 0
  m, n = positive.sum(), negative.sum()
  if m < 2 or n < 2:
    raise ValueError(
      f'DeLong needs two images of each class, found {m} inadequate and {n} '
      'adequate'
    )
  if patient is None:
    column = np.arange(len(truth))
  else:
    column = np.unique(patient, return_inverse=True)[1]
  patients = (
    len(np.unique(column[negative])),
    len(np.unique(column[positive])),
  )
  if min(patients) < 2:
    raise ValueError('DeLong needs two patients of each class')
  # Placement values by midranks (Sun & Xu 2014).
  rank = np.stack([stats.rankdata(s) for s in scores])
  v10 = rank[:, positive] - [stats.rankdata(s[positive]) for s in scores]
  v01 = rank[:, negative] - [stats.rankdata(s[negative]) for s in scores]
  v10, v01 = v10 / n, 1 - v01 / m
  value = v10.mean(axis=1)

  def by_patient(values: np.ndarray, which: np.ndarray) -> np.ndarray:
    centred = (values - value[:, None]) / which.sum()
    size = column.max() + 1
    return np.stack([np.bincount(column[which], v, size) for v in centred])

  return value, by_patient(v10, positive), by_patient(v01, negative), patients
