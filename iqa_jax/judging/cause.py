"""Why a photograph is inadequate, as far as a model can tell.

A model may know a probability of each criterion, and (heads of evidence) which
cells show it. Pure functions over NumPy arrays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jaxtyping import Float
import numpy as np

from iqa_jax import labels
from iqa_jax.judging import advice, calibration
from iqa_jax.judging.verdict import Criterion

VISIBLE_SHARE = 0.05  # of the field; what is smaller is not called the cause


def shares(
  evidence: Float[np.ndarray, 'g g k'], field_share: Float[np.ndarray, 'g g']
) -> Float[np.ndarray, ' k']:
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
  evidence: Float[np.ndarray, 'g g k'] | None = None,
  field_share: Float[np.ndarray, 'g g'] | None = None,
  *,
  thresholds: Mapping[str, float] | None = None,
) -> tuple[str, dict[str, Criterion]]:
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
    no cause. Then every one of labels.CRITERIA that the model knows
    something of.
  """
  if not isinstance(probabilities, Mapping):
    probabilities = dict(zip(labels.LOCAL_CRITERIA, probabilities, strict=True))
  affected: dict[str, float] = {}
  if evidence is not None and field_share is not None:
    found = shares(evidence, field_share).tolist()
    affected = dict(zip(labels.LOCAL_CRITERIA, found, strict=True))
  told = {
    name: Criterion(_known(probabilities.get(name)), _known(affected.get(name)))
    for name in labels.CRITERIA
  }
  criteria = {k: c for k, c in told.items() if c != Criterion()}
  if verdict != labels.QUALITY[labels.INADEQUATE] or not criteria:
    return '', criteria
  return _cause(criteria, thresholds or {}), criteria


def _known(value: float | None) -> float | None:
  return None if value is None or np.isnan(value) else float(value)


def _cause(
  criteria: Mapping[str, Criterion], thresholds: Mapping[str, float]
) -> str:
  excess: dict[str, float] = {}
  for name, criterion in criteria.items():
    if criterion.p is not None:
      bounds = np.array([criterion.p, thresholds.get(name, 0.5)])
      p, threshold = calibration.log_odds(bounds)
      excess[name] = p - threshold
  above = [name for name in excess if excess[name] >= 0]
  if above:
    return max(above, key=lambda name: excess[name])
  share = {name: criterion.share or 0.0 for name, criterion in criteria.items()}
  largest = max(share, key=lambda name: share[name])
  return largest if share[largest] >= VISIBLE_SHARE else advice.UNKNOWN
