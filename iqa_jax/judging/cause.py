"""Why a photograph is inadequate, as far as a model can tell.

A model may know a probability of each criterion, and (heads of evidence) which
cells show it. Pure functions over NumPy arrays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from iqa_jax import labels
from iqa_jax.judging import advice, calibration

VISIBLE_SHARE = 0.05  # of the field; what is smaller is not called the cause


class Finding(NamedTuple):
  """What is found of one criterion.

  Attributes:
    probability: that it is at fault; NaN where the model doesn't know.
    share: of the field of view that it affects; NaN likewise.
  """

  probability: float
  share: float


def shares(evidence: np.ndarray, field_share: np.ndarray) -> np.ndarray:
  """Returns the share of the field that each criterion affects, float64 [k].

  Evidence e is minus the log probability that a cell is without fault
  (models/evidence.py), so a cell's own probability of a fault is 1 - exp(-e).
  A cell is affected where that is above one half, and counts by the share of
  it that lies in the field.

  Args:
    evidence: float [g, g, k], 0 or more, not weighted by the field.
    field_share: float [g, g], 0 to 1.

  Returns:
    0 to 1; NaN where there is no field.
  """
  evidence = np.asarray(evidence, np.float64)
  inside = np.asarray(field_share, np.float64)[..., None]
  affected = evidence > np.log(2)
  total = inside.sum()
  if not total > 0:
    return np.full(evidence.shape[-1], np.nan)
  return (affected * inside).sum((0, 1)) / total


def find(
  verdict: str,
  probabilities: Mapping[str, float | None] | Sequence[float] | np.ndarray,
  evidence: np.ndarray | None = None,
  field_share: np.ndarray | None = None,
  *,
  thresholds: Mapping[str, float] | None = None,
) -> tuple[str, dict[str, Finding]]:
  """Returns the cause of a verdict, and what is found of each criterion.

  The cause is the criterion whose probability is furthest above its threshold
  (in log-odds); where none is, the one that affects most of the field, if that
  is VISIBLE_SHARE of it or more.

  Args:
    verdict: 'adequate' or 'inadequate'.
    probabilities: of a fault by criterion, of labels.CRITERIA, or three numbers
      in the order of labels.LOCAL_CRITERIA; None or NaN where the model
      doesn't know.
    evidence: float [g, g, 3] of labels.LOCAL_CRITERIA, see `shares`; None of
      models without cells.
    field_share: float [g, g]; None likewise.
    thresholds: operating points by criterion; 0.5 of those that have none.

  Returns:
    The cause: '' of an adequate photograph, and of any where the model knows
    nothing of causes; advice.UNKNOWN where it is inadequate and the model sees
    no cause. Then a Finding of every one of labels.CRITERIA.
  """
  if not isinstance(probabilities, Mapping):
    probabilities = dict(zip(labels.LOCAL_CRITERIA, probabilities, strict=True))
  known = {k: v for k, v in probabilities.items() if v is not None}
  affected: dict[str, float] = {}
  if evidence is not None and field_share is not None:
    found = shares(evidence, field_share).tolist()
    affected = dict(zip(labels.LOCAL_CRITERIA, found, strict=True))
  criteria = {
    name: Finding(
      float(known.get(name, np.nan)), float(affected.get(name, np.nan))
    )
    for name in labels.CRITERIA
  }
  nothing = np.isnan(list(criteria.values())).all()
  if verdict == labels.QUALITY[labels.ADEQUATE] or nothing:
    return '', criteria
  return _cause(criteria, thresholds or {}), criteria


def _cause(
  criteria: Mapping[str, Finding], thresholds: Mapping[str, float]
) -> str:
  def excess(name: str) -> float:
    p, threshold = criteria[name].probability, thresholds.get(name, 0.5)
    odds = calibration.log_odds(np.array([p, threshold]))
    return float(odds[0] - odds[1])

  above = [name for name in criteria if excess(name) >= 0]
  if above:
    return max(above, key=excess)
  seen = [n for n, found in criteria.items() if found.share >= VISIBLE_SHARE]
  if seen:
    return max(seen, key=lambda name: criteria[name].share)
  return advice.UNKNOWN
