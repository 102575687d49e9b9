"""From a probability to a verdict: what a trained model judges by.

One record holds the calibration, the operating point and the uncertain band;
evaluation fits it, model.json stores it, and whoever judges applies it.
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
from typing import Any, NamedTuple

import numpy as np

from iqa_jax import errors, labels
from iqa_jax.judging import calibration, operating_points

# What model.json holds of how verdicts are made.
FIELDS = ('calibration', 'operating_point', 'uncertain_band')
# Beside them, of the task criteria.
CRITERIA_POINTS = 'criteria_operating_points'
_UNCHOSEN = 0.5  # the threshold of a model that nobody chose one for


class Judged(NamedTuple):
  """Verdicts on photographs.

  Attributes:
    p_calibrated: float64 [n], the probability of Inadequate.
    verdict: int [n], labels.ADEQUATE or labels.INADEQUATE; labels.UNKNOWN
      without a finite probability.
    uncertain: bool [n]: a person should look; without a finite probability
      always.
  """

  p_calibrated: np.ndarray
  verdict: np.ndarray
  uncertain: np.ndarray


@dataclasses.dataclass(frozen=True)
class OperatingRecord:
  """How a model's probability of Inadequate becomes a verdict.

    record = OperatingRecord.from_model(model_json)
    p, verdict, uncertain = record.judge(p_inadequate)

  Attributes:
    calibration: a record of `calibration.fit`; None changes nothing.
    operating_point: a record of `operating_points.choose`; None: 0.5.
    uncertain_band: [low, high] of calibrated probabilities; None: nothing is
      uncertain.
    criteria: of the task criteria, {criterion: operating point} on the
      criterion's own probability, uncalibrated; None for other tasks.
  """

  calibration: Mapping[str, Any] | None = None
  operating_point: Mapping[str, Any] | None = None
  uncertain_band: list[float] | None = None
  criteria: Mapping[str, Mapping[str, Any]] | None = None

  @classmethod
  def from_model(cls, record: Mapping[str, Any]) -> OperatingRecord:
    """Returns what model.json (or metrics.json) says of verdicts.

    Raises:
      ValueError: a field is damaged; absent ones are None.
    """
    found = cls(
      calibration=record.get('calibration'),
      operating_point=record.get('operating_point'),
      uncertain_band=record.get('uncertain_band'),
      criteria=record.get(CRITERIA_POINTS),
    )
    try:
      for name in found.criteria or {}:
        found.criterion_threshold(name)
      found.judge(np.array([0.5]))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
      raise errors.InvalidValue(
        'damaged calibration, operating point or uncertain band: '
        f'{type(error).__name__}: {error}'
      ) from error
    return found

  @classmethod
  def fit(
    cls,
    truth: np.ndarray,
    p: np.ndarray,
    *,
    method: str,
    rule: str,
    target: float,
    share: float,
  ) -> OperatingRecord:
    """Fits all three on validation data.

    Args:
      truth: int [n], 1 inadequate, 0 adequate; others count for the band only.
      p: float [n], p_inadequate; NaN is left out.
      method: of `calibration.fit`.
      rule: of `operating_points.choose`.
      target: of that rule.
      share: of `operating_points.uncertain_band`.

    Returns:
      The record; 'reason' in `calibration` or `operating_point` where the data
      could not decide.
    """
    fitted = calibration.fit(method, truth, p)
    p = calibration.apply(fitted, p)
    point = operating_points.choose(rule, target, truth, p)
    band = operating_points.uncertain_band(p, point['threshold'], share)
    return cls(fitted, point, band)

  @property
  def threshold(self) -> float:
    """The calibrated probability from which on the verdict is Inadequate."""
    point = self.operating_point
    return _UNCHOSEN if point is None else float(point['threshold'])

  @property
  def flip_tta(self) -> bool:
    """Whether the operating point is one of flip-averaged logits."""
    return bool((self.operating_point or {}).get('flip_tta'))

  def criterion_threshold(self, name: str) -> float:
    """The probability of a criterion's fault from which on it is called."""
    point = (self.criteria or {}).get(name, {})
    return float(point.get('threshold', _UNCHOSEN))

  @property
  def raw_threshold(self) -> float:
    """The operating point on the uncalibrated probability; inf if never."""
    p = 1 / (1 + np.exp(-np.linspace(-40, 40, 400_001)))
    reached = calibration.apply(self.calibration, p) >= self.threshold
    return float(p[reached.argmax()]) if reached.any() else np.inf

  def judge(self, p_inadequate: np.ndarray) -> Judged:
    """Judges photographs.

    Args:
      p_inadequate: float [n] (or any shape), the network's, uncalibrated.
    """
    p = calibration.apply(self.calibration, p_inadequate)
    finite = np.isfinite(p)
    verdict = np.where(p >= self.threshold, labels.INADEQUATE, labels.ADEQUATE)
    uncertain = ~finite
    if self.uncertain_band is not None:
      uncertain |= operating_points.is_uncertain(p, self.uncertain_band)
    return Judged(p, np.where(finite, verdict, labels.UNKNOWN), uncertain)

  def to_dict(self) -> dict[str, Any]:
    """Returns the fields of model.json, those that there are."""
    values = {
      **{key: getattr(self, key) for key in FIELDS},
      CRITERIA_POINTS: self.criteria,
    }
    return {key: value for key, value in values.items() if value is not None}
