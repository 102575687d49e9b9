"""What a CSV file says: the scores of any system, and labels.

Columns are found by their names.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import math

import numpy as np

from iqa_jax import labels
from iqa_jax.evaluation import given
from iqa_jax.evaluation.foreign import ScoringError, Table, wanted_column

_SCORES = (
  *('p_inadequate', 'inadequate', 'p_reject', 'reject', 'probability'),
  *('score', 'p', 'prob'),
)
_LABELS = ('quality', 'label', 'grade', 'target', 'class')


@dataclasses.dataclass(frozen=True)
class Options:
  """How files are to be read; the flags of iqa_jax.score.

  Attributes:
    usable: what EyeQ's Usable counts as, of labels.USABLE.
    threshold: Inadequate is called from this probability on; None: 0.5, or
      the verdicts of a predictions.csv of iqa_jax.
    split: which rows of files that have a column 'split'.
    score_column: the probability of Inadequate; None: found by its name.
    label_column: the label; None: found.
    patient_column: of the labels' file; None: found.
    resamples: of the intervals' bootstrap.
  """

  usable: str = 'inadequate'
  threshold: float | None = None
  split: str = 'test'
  score_column: str | None = None
  label_column: str | None = None
  patient_column: str | None = None
  resamples: int = 2000


@dataclasses.dataclass(frozen=True)
class Scores:
  """What a system says: rows in the order of its file.

  Attributes:
    p: float [n], probability of inadequate: what is judged.
    ranks: float [n], what ranks (uncalibrated).
    ranked_by: what `ranks` are, 'p_inadequate' or 'log_odds'.
    grades: float [n, 3] or None.
    threshold: of the verdict.
    used: which columns, in words.
    normalised: float [n], p where the grades' scores are made to sum to 1;
      None where they do, or are not there.
  """

  p: np.ndarray
  ranks: np.ndarray
  grades: np.ndarray | None
  threshold: float
  used: str
  normalised: np.ndarray | None = None
  ranked_by: str = 'p_inadequate'


def read_scores(table: Table, options: Options) -> Scores:
  """Returns what a system says.

  Raises:
    ScoringError: there is no column of scores, or a value is no probability.
  """
  usable, threshold = options.usable, options.threshold
  chosen = options.score_column
  of_grades = [table.column([g, f'p_{g}']) for g in labels.GRADES]
  grades = None
  if all(of_grades):
    grades = np.stack([_numbers(table, str(c)) for c in of_grades], axis=1)
  if chosen is None and table.column(['p_calibrated']):
    return _own_scores(table, threshold, grades)
  if chosen is None and grades is not None:
    return _grade_scores(table, grades, of_grades, usable, threshold)
  if chosen is None and any(of_grades[:2]):
    missing = labels.GRADES[[bool(c) for c in of_grades].index(False)]
    wanted_column(table, None, (missing.capitalize(), f'p_{missing}'), 'scores')
  column = wanted_column(table, chosen, _SCORES, 'scores')
  p = _numbers(table, column)
  at = 0.5 if threshold is None else threshold
  return Scores(p, p, grades, at, f'column {column} of {table.base}')


def _own_scores(
  table: Table, threshold: float | None, grades: np.ndarray | None
) -> Scores:
  """Returns the scores of a predictions.csv of iqa_jax."""
  p = _numbers(table, str(table.column(['p_calibrated'])))
  raw = table.column(['log_odds', 'p_inadequate'])
  by_odds = raw is not None and raw.lower() == 'log_odds'
  ranks = _numbers(table, raw, probability=not by_odds) if raw else p
  used = f'column p_calibrated of {table.base}, ranked by {raw}'
  if threshold is None:
    verdicts = np.array(table.columns.get('verdict', [''] * len(p)))
    called, passed = verdicts == 'inadequate', verdicts == 'adequate'
    threshold = 0.5
    if (called | passed).all():
      low = p[passed].max(initial=0.0)
      high = p[called].min(initial=1.0)
      if low >= high and passed.any() and called.any():
        raise ScoringError(
          f'{table.path}: the verdicts are no threshold on p_calibrated '
          f'(adequate up to {low:.6g}, inadequate from {high:.6g}); give '
          '--threshold'
        )
      threshold = float((low + high) / 2)
      used += '; the verdicts of the file'
  ranked_by = 'log_odds' if by_odds else 'p_inadequate'
  return Scores(p, ranks, grades, threshold, used, ranked_by=ranked_by)


def _grade_scores(
  table: Table,
  grades: np.ndarray,
  columns: Sequence[str | None],
  usable: str,
  threshold: float | None,
) -> Scores:
  """Returns p of Inadequate of scores [n, 3] of the three grades."""
  good, _, reject = grades.T
  total = grades.sum(axis=1)
  if usable == 'inadequate':
    p, used = 1 - good, f'1 - {columns[0]}'
    above, below = total - good, total
  elif usable == 'adequate':
    p, used = reject, str(columns[2])
    above, below = reject, total
  else:
    p, used = reject, str(columns[2])
    above, below = reject, good + reject
  proper = np.allclose(total, 1, atol=1e-3)
  normalised = None
  if not proper or usable == 'exclude':
    if (below == 0).any():
      row = int(np.argmax(below == 0))
      raise ScoringError(f'{table.where(row)}: all scores are 0')
    normalised = above / below
  if proper and usable == 'exclude':
    p, normalised = normalised, None
    used = f'{columns[2]} / ({columns[0]} + {columns[2]})'
  at = 0.5 if threshold is None else threshold
  return Scores(p, p, grades, at, f'{used} of {table.base}', normalised)


def _numbers(
  table: Table, column: str, *, probability: bool = True
) -> np.ndarray:
  """Returns a column of probabilities, or of finite numbers, float64 [n]."""
  found = np.empty(len(table.lines))
  for i, text in enumerate(table.columns[column]):
    try:
      found[i] = float(text)
    except ValueError:
      raise ScoringError(
        f'{table.where(i)}: {column} is {text!r}, not a number'
      ) from None
    if not math.isfinite(found[i]) and not probability:
      raise ScoringError(
        f'{table.where(i)}: {column} is {text}, not a finite number'
      )
    # A NaN is in no range.
    if probability and not 0 <= found[i] <= 1:
      raise ScoringError(
        f'{table.where(i)}: {column} is {text}, not a probability (0 to 1)'
      )
  return found


def read_labels(
  table: Table, chosen: str | None, graded: bool
) -> tuple[str, np.ndarray]:
  """Returns 'grade' or 'binary', and labels int [n], -1 unknown.

  Args:
    table: the labels' file.
    chosen: its column; None: found.
    graded: whether numbers are grades though none is 2: the system gives such.

  Raises:
    ScoringError: there is no such column, or a value is no label.
  """
  if chosen is None and graded and table.column(['grade']):
    column = str(table.column(['grade']))
  else:
    column = wanted_column(table, chosen, _LABELS, 'labels')
  kinds, found = set(), np.empty(len(table.lines), int)
  for i, text in enumerate(table.columns[column]):
    label = given.label(text)
    if label is None:
      raise ScoringError(
        f'{table.where(i)}: {column} is {text!r}, none of 0, 1, 2, -1, '
        f'{", ".join(given.WORDS)}'
      )
    kinds |= {label[0]} - {''}
    found[i] = label[1]
  if len(kinds) > 1:
    raise ScoringError(
      f'{table.path}: {column} mixes grades and adequate/inadequate'
    )
  if kinds:
    return kinds.pop(), found
  if (found == 2).any() or graded or column.lower() == 'grade':
    return 'grade', found
  return 'binary', found
