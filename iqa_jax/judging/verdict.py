"""What a grader says of one photograph, and tables of many."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
import dataclasses
import html
from typing import Any

from iqa_jax.aliases import Record
from iqa_jax.photograph.geometry import Field


@dataclasses.dataclass(frozen=True)
class Criterion:
  """What is known of one criterion of quality.

  Attributes:
    p: probability of a fault of it, 0 to 1; None where the model can't say.
    share: of the field of view that it affects, 0 to 1; None likewise.
  """

  p: float | None = None
  share: float | None = None


@dataclasses.dataclass(frozen=True)
class Verdict:
  """The verdict on one photograph, or why there is none.

  Attributes:
    name: of the photograph: its path, or what it was called.
    status: 'ok'; one of images.STATUSES for a file that can't be read;
      'not_fundus' for a picture of something else; 'not_finite' where the
      network ran over.
    reason: why the status is not 'ok', in words.
    verdict: 'adequate' or 'inadequate'; '' unless the status is 'ok'.
    p_inadequate: calibrated probability of inadequate; None without verdict.
    log_odds: of inadequate, before calibration: what ranks photographs.
    threshold: operating point: inadequate from this p_inadequate on.
    uncertain: near the operating point: have a person look.
    probabilities: of each of the model's outputs, before calibration.
    spread: standard deviation of p_inadequate between an ensemble's members.
    cause: what is wrong: a criterion's name, 'unknown' of an inadequate
      photograph without a visible cause, '' of an adequate one.
    criteria: by name, of those the model knows.
    advice: what the photographer can do about it, one sentence.
    field: the field of view, in pixels of the photograph.
    width: of the photograph in pixels, None where it can't be read.
    height: likewise.
    not_fundus: score of being no fundus photograph, 0 to 1; None where nobody
      looked.
    unlike_training: how unlike the photographs that the model learned from,
      1 at the limit; None likewise.
  """

  name: str
  status: str = 'ok'
  reason: str = ''
  verdict: str = ''
  p_inadequate: float | None = None
  log_odds: float | None = None
  threshold: float | None = None
  uncertain: bool = False
  probabilities: Mapping[str, float] = dataclasses.field(default_factory=dict)
  spread: float = 0.0
  cause: str = ''
  criteria: Mapping[str, Criterion] = dataclasses.field(default_factory=dict)
  advice: str = ''
  field: Field | None = None
  width: int | None = None
  height: int | None = None
  not_fundus: float | None = None
  unlike_training: float | None = None

  @property
  def ok(self) -> bool:
    """Whether there is a verdict."""
    return self.status == 'ok'

  def to_dict(self) -> Record:
    """Returns one flat row: numbers, texts and None, as JSON has them.

    >>> Verdict('a.jpg', 'truncated', 'ends early').to_dict()['status']
    'truncated'
    """
    row = {
      f.name: getattr(self, f.name)
      for f in dataclasses.fields(self)
      if f.name not in ('probabilities', 'criteria', 'field')
    }
    row |= {f'p_{name}': p for name, p in self.probabilities.items()}
    # Of two outputs one has the verdict's name; the calibrated one stays.
    row['p_inadequate'] = self.p_inadequate
    for name, criterion in self.criteria.items():
      row |= {f'p_{name}': criterion.p, f'share_{name}': criterion.share}
    row['field_found'] = None if self.field is None else self.field.found
    return row

  def _repr_html_(self) -> str:
    rows = ''.join(
      f'<tr><th style="text-align:left">{html.escape(key)}</th>'
      f'<td>{html.escape(_shown(value))}</td></tr>'
      for key, value in self.to_dict().items()
      if value not in (None, '', False)
    )
    return f'<table>{rows}</table>'


def table(verdicts: Iterable[Verdict]) -> Any:
  """Returns one row a verdict: a pandas DataFrame, or dicts without pandas.

  >>> rows = table([Verdict('a.jpg'), Verdict('b.jpg', 'missing')])
  >>> len(rows)
  2
  """
  rows = [verdict.to_dict() for verdict in verdicts]
  try:
    import pandas
  except ImportError:
    return rows
  return pandas.DataFrame(rows)


def _shown(value: object) -> str:
  return f'{value:.3f}' if isinstance(value, float) else str(value)
