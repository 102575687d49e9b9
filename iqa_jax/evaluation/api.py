"""How good are these verdicts? For notebooks: `iqa.evaluate`, `iqa.plot`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
import dataclasses
import html
import math
from typing import Any, Protocol, TypeAlias

import numpy as np

from iqa_jax import errors
from iqa_jax import labels as labels_lib
from iqa_jax.aliases import Record
from iqa_jax.evaluation import assessment, given, metrics
from iqa_jax.evaluation.predictions import Predictions


class VerdictLike(Protocol):
  """What is read of a verdict, of judging.verdict.Verdict or another."""

  status: str
  verdict: str
  p_inadequate: float | None
  log_odds: float | None


Scores: TypeAlias = 'Iterable[VerdictLike] | Iterable[float] | np.ndarray'


@dataclasses.dataclass(frozen=True)
class Measure:
  """A number and how far it can be trusted.

  Attributes:
    value: None where it is undefined.
    low: lower limit of the 95 % interval, clustered by patient; None without.
    high: upper limit.
    note: why there is none, or why it can't tell.
  """

  value: float | None
  low: float | None
  high: float | None
  note: str = ''

  def __str__(self) -> str:
    return assessment.text(self.to_dict())

  def to_dict(self) -> Record:
    """Returns value, low, high and note."""
    return dataclasses.asdict(self)


class Evaluation(dict[str, Measure]):
  """The measures by name, and what they are of.

  Attributes:
    n: photographs measured.
    n_inadequate: those labelled inadequate.
    n_patients: whom they are of.
    n_failed: photographs left out because there is no verdict on them.
    n_unlabelled: left out because their label is unknown.
    confusion: [[tn, fp], [fn, tp]]; row: label.
  """

  def __init__(self, measured: Record, n_failed: int, n_unlabelled: int):
    super().__init__(
      {name: Measure(**m) for name, m in measured['metrics'].items()}
    )
    self.n: int = measured['n']
    self.n_inadequate: int = measured['n_inadequate']
    self.n_patients: int = measured['n_patients']
    self.n_failed = n_failed
    self.n_unlabelled = n_unlabelled
    self.confusion: list[list[int]] = measured['confusion']

  def to_dict(self) -> Record:
    """Returns everything as JSON has it."""
    counts = ('n', 'n_inadequate', 'n_patients', 'n_failed', 'n_unlabelled')
    return {
      **{name: getattr(self, name) for name in (*counts, 'confusion')},
      'metrics': {name: measure.to_dict() for name, measure in self.items()},
    }

  def __str__(self) -> str:
    return '\n'.join(
      [self._counts(), *(f'{metrics.TITLES[k]}: {m}' for k, m in self.items())]
    )

  def _repr_html_(self) -> str:
    rows = ''.join(
      f'<tr><td>{html.escape(metrics.TITLES[name])}</td>'
      f'<td>{html.escape(str(measure))}</td></tr>'
      for name, measure in self.items()
    )
    return f'<p>{html.escape(self._counts())}</p><table>{rows}</table>'

  def _counts(self) -> str:
    text = (
      f'{self.n} photographs of {self.n_patients} patients, '
      f'{self.n_inadequate} inadequate'
    )
    for count, what in (
      (self.n_failed, 'without a verdict'),
      (self.n_unlabelled, 'without a label'),
    ):
      text += f'; {count} {what}, left out' if count else ''
    return text


def evaluate(
  labels: Iterable[object],
  verdicts: Scores,
  *,
  patient: Iterable[object] | None = None,
  usable: str | None = None,
  threshold: float = 0.5,
  resamples: int = 2000,
) -> Evaluation:
  """Measures verdicts against labels; Inadequate is the positive class.

  Args:
    labels: one a photograph: 0 or 1, 'adequate' or 'inadequate', or EyeQ's
      grades 0, 1, 2 ('good', 'usable', 'reject'); -1, None or '' is unknown.
    verdicts: as many, of a grader, or probabilities of inadequate. Verdicts
      whose status is not 'ok' and probabilities that are not finite are left
      out, and counted.
    patient: whom each photograph is of, for the intervals; None: each of its
      own patient.
    usable: what grade 1 counts as, of labels.USABLE; given, numbers are grades.
      None: 'inadequate' where a label is a grade.
    threshold: of probabilities; verdicts have theirs.
    resamples: of the intervals' bootstrap.

  Returns:
    {'auc': Measure, 'sensitivity': Measure, ...}, see metrics.TITLES.

  Raises:
    ValueError: the lengths differ, or a label is none.

  >>> found = evaluate([0, 0, 1, 1], [0.1, 0.6, 0.7, 0.9], resamples=50)
  >>> found['auc'].value, found['specificity'].value
  (1.0, 0.5)
  """
  rows, n_failed, n_unlabelled = collect(
    labels, verdicts, patient=patient, usable=usable, threshold=threshold
  )
  return Evaluation(measure(rows, threshold, resamples), n_failed, n_unlabelled)


def measure(
  rows: Predictions, threshold: float = 0.5, resamples: int = 2000
) -> Record:
  """Returns assessment.verdict of photographs that all have a label."""
  return assessment.verdict(
    rows.quality,
    rows.ranks,
    rows.p_calibrated,
    threshold,
    rows.patient_id,
    called=rows.verdict == labels_lib.INADEQUATE,
    resamples=resamples,
  )


def collect(
  labels: Iterable[object],
  verdicts: Scores,
  *,
  patient: Iterable[object] | None = None,
  usable: str | None = None,
  threshold: float = 0.5,
) -> tuple[Predictions, int, int]:
  """Returns the photographs with verdict and label, and how many lack either.

  Arguments and errors as of `evaluate`.
  """
  said, truth = list(verdicts), qualities(labels, usable)
  who = np.arange(len(said)) if patient is None else np.array(list(patient))
  if not len(said) == len(truth) == len(who):
    raise errors.InvalidValue(
      f'{len(truth)} labels, {len(said)} verdicts and {len(who)} patients: '
      'give one of each a photograph'
    )
  read = [_read(one, threshold) for one in said]
  p, odds, called = (np.array([r[i] for r in read], float) for i in range(3))
  judged = np.isfinite(p)
  rows = Predictions(
    image_id=np.array([str(getattr(v, 'name', i)) for i, v in enumerate(said)]),
    patient_id=who,
    quality=truth,
    p_inadequate=p,
    p_calibrated=p,
    verdict=np.where(judged, called, labels_lib.UNKNOWN).astype(int),
    uncertain=np.array([bool(getattr(v, 'uncertain', False)) for v in said]),
    # Probabilities rank as they are; so do verdicts without log-odds.
    log_odds=odds if len(read) and np.isfinite(odds[judged]).all() else None,
  )
  return (
    rows[judged & (truth >= 0)],
    int((~judged).sum()),
    int((judged & (truth < 0)).sum()),
  )


def qualities(
  labels: Iterable[object], usable: str | None = None
) -> np.ndarray:
  """Returns labels as people give them as 0, 1 or -1 (unknown), int [n].

  Raises:
    ValueError: one is no label, or verdicts are mixed with grades.
  """
  said = [_label(one) for one in labels]
  numbers = np.array([number for _, number in said], int)
  kinds = {kind for kind, _ in said if kind}
  if (numbers == 2).any() or (usable is not None and 'binary' not in kinds):
    kinds.add('grade')
  if len(kinds) > 1:
    raise errors.InvalidValue('labels mix grades and adequate/inadequate')
  if kinds == {'grade'}:
    return given.qualities(numbers, usable or 'inadequate')
  if usable is not None:
    raise errors.InvalidValue(
      f'usable={usable!r} says what a grade counts as, but the labels are '
      'adequate and inadequate'
    )
  return numbers


def _label(one: object) -> tuple[str, int]:
  if one is None or one == '' or (isinstance(one, float) and math.isnan(one)):
    return '', labels_lib.UNKNOWN
  found = given.label(
    str(int(one) if isinstance(one, (bool, np.bool)) else one)
  )
  if found is None:
    raise errors.InvalidValue(
      f'label {one!r} is none of 0, 1, 2, -1, {", ".join(given.WORDS)}'
    )
  return found


def _read(one: Any, threshold: float) -> Sequence[float]:
  """Returns p of inadequate, log-odds and verdict; NaN where there is none."""
  if not hasattr(one, 'p_inadequate'):
    p = float(one)
    if math.isfinite(p) and not 0 <= p <= 1:
      raise errors.InvalidValue(f'{p} is no probability (0 to 1)')
    return p, math.nan, float(p >= threshold)
  if one.status != 'ok' or one.p_inadequate is None:
    return math.nan, math.nan, math.nan
  odds = math.nan if one.log_odds is None else float(one.log_odds)
  called = labels_lib.QUALITY.index(one.verdict)
  return float(one.p_inadequate), odds, float(called)
