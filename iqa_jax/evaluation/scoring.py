"""The predictions of any system beside labels: read, aligned, measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import difflib
import math
import pathlib
import re
from typing import Any

import numpy as np

from iqa_jax import errors, labels, run_directory
from iqa_jax.data import records, tables
from iqa_jax.evaluation import (
  assessment,
  breakdowns,
  delong,
  intervals,
  metrics,
  resampling,
)

_NAMES = (
  *('image_id', 'image_name', 'image', 'filename', 'file_name', 'file'),
  *('name', 'path', 'id'),
)
_SCORES = (
  *('p_inadequate', 'inadequate', 'p_reject', 'reject', 'probability'),
  *('score', 'p', 'prob'),
)
_LABELS = ('quality', 'label', 'grade', 'target', 'class')
_PATIENTS = ('patient_id', 'patient', 'subject_id', 'subject')
_EXTENSION = re.compile(
  r'\.(jpe?g|png|tiff?|bmp|gif|webp|dcm|ppm)$', re.IGNORECASE
)
_EYEPACS = re.compile(r'(\d+)_(left|right)')
_WORDS = {
  'adequate': ('binary', labels.ADEQUATE),
  'inadequate': ('binary', labels.INADEQUATE),
  'good': ('grade', 0),
  'usable': ('grade', 1),
  'reject': ('grade', 2),
}
_SHOWN = 3  # names in a message


class ScoringError(errors.UserError):
  """A file can't be scored; the message says which row and what to do."""


@dataclasses.dataclass(frozen=True)
class _Table:
  """A CSV file: its columns as text, and the line each row stands on."""

  path: str
  columns: dict[str, list[str]]
  lines: list[int]
  names: list[str]

  def column(self, wanted: Sequence[str]) -> str | None:
    """Returns the file's own spelling of the first column it has."""
    own = {name.lower(): name for name in self.columns}
    return next((own[w.lower()] for w in wanted if w.lower() in own), None)

  def where(self, row: int) -> str:
    return f'{self.path}, line {self.lines[row]} ({self.names[row]})'


@dataclasses.dataclass(frozen=True)
class _Scores:
  """What a system says: rows in the order of its file.

  Attributes:
    p: float [n], probability of inadequate: what is judged.
    ranks: float [n], what ranks (uncalibrated).
    ranked_by: what `ranks` are, 'p_inadequate' or 'log_odds'.
    grades: float [n, 3] or None.
    threshold: of the verdict.
    used: which columns, in words.
  """

  p: np.ndarray
  ranks: np.ndarray
  grades: np.ndarray | None
  threshold: float
  used: str
  normalised: np.ndarray | None = None
  ranked_by: str = 'p_inadequate'


def run(
  predictions: str,
  labels_file: str,
  *,
  compare: str | None = None,
  output: str | None = None,
  usable: str = 'inadequate',
  threshold: float | None = None,
  split: str = 'test',
  score_column: str | None = None,
  label_column: str | None = None,
  patient_column: str | None = None,
  resamples: int = 2000,
) -> dict[str, Any]:
  """Scores a system's predictions; the flags are those of iqa_jax.score.

  Returns:
    'positive_class', 'files', 'notes' (what was assumed), 'splits' with the
    one split 'scored' as in metrics.json, and with `compare` 'comparison':
    'auc' (DeLong), 'auc_clustered' (Obuchowski) and 'metrics', the paired
    differences with intervals. metrics.json, figures and report are written to
    `output`.

  Raises:
    ScoringError: a file can't be read, aligned or understood.
  """
  notes: list[str] = []
  truth_table = _read(labels_file, split, notes)
  table = _read(predictions, split, notes)
  scores = _scores(table, usable, threshold, score_column)
  kind, label = _labels(truth_table, label_column, scores.grades is not None)
  order = _align(table, truth_table)
  patient = _patients(truth_table, table, order, patient_column, notes)
  rows = np.arange(len(label))
  grade = np.where(label >= 0, label, labels.UNKNOWN)
  if kind == 'grade':
    quality = np.array([labels.quality_of_grade(g, usable) for g in grade], int)
    notes.append(
      'labels are grades: '
      + ', '.join(f'{i} {name}' for i, name in enumerate(labels.GRADES))
      + f'; Usable counts as {usable}'
      + (' (left out)' if usable == 'exclude' else '')
    )
  else:
    if usable != 'inadequate':
      if scores.grades is None or score_column:
        raise ScoringError(
          f'--usable={usable} says what grade 1 counts as, but the labels of '
          f'{labels_file} are adequate and inadequate, no grades (no 2 among '
          'them): leave it out, or name the column of grades by --label_column '
          '(a column called grade, or the words good, usable, reject, are '
          'always taken as grades)'
        )
      notes.append(
        f'the labels are no grades: Usable counts as {usable} in the scores '
        'only'
      )
    quality, grade = grade, np.full(len(label), labels.UNKNOWN)
  kept = rows[quality >= 0]
  if not len(kept):
    raise ScoringError(f'{labels_file} labels no image as adequate or not')
  if len(kept) < len(rows):
    notes.append(f'{len(rows) - len(kept)} images carry no verdict: left out')
  notes.append(f'score: {scores.used}')

  ours = order[kept]
  scored: dict[str, Any] = {
    'n': len(kept),
    'n_not_finite': 0,
    'verdict': assessment.verdict(
      quality[kept],
      scores.ranks[ours],
      scores.p[ours],
      scores.threshold,
      patient[kept],
      resamples=resamples,
    ),
  }
  if scores.normalised is not None and scores.grades is not None:
    scored['normalised'] = metrics.ranking(
      quality[kept], scores.normalised[ours]
    )
    notes.append(
      'rows of scores do not sum to 1 (from '
      f'{scores.grades.sum(axis=1).min():.2f} to '
      f'{scores.grades.sum(axis=1).max():.2f}); they were used as they are: '
      f'AUC {scored["verdict"]["metrics"]["auc"]["value"]:.4f}, after '
      f'normalising each row {scored["normalised"]["auc"]:.4f}'
      if np.isfinite(scored['normalised']['auc'])
      else 'rows of scores do not sum to 1; they were used as they are'
    )
    scored['normalised'] = {
      k: v if math.isfinite(v) else None
      for k, v in scored['normalised'].items()
    }
  graded = grade >= 0
  if scores.grades is not None and graded.any():
    scored['grade'] = assessment.grades(
      grade[graded],
      scores.grades[order[graded]],
      patient[graded],
      resamples=resamples,
    )
  columns = {
    **_attributes(truth_table, kept),
    'image_id': np.array(truth_table.names)[kept],
    'patient_id': patient[kept],
    'quality': quality[kept],
    'grade': grade[kept],
    'p_inadequate': scores.p[ours],
    'p_calibrated': scores.p[ours],
    scores.ranked_by: scores.ranks[ours],
    'verdict': (scores.p[ours] >= scores.threshold).astype(int),
    'uncertain': np.zeros(len(kept), int),
  }
  scored['breakdowns'] = breakdowns.run(columns)
  result: dict[str, Any] = {
    'format': 1,
    'positive_class': labels.QUALITY[labels.INADEQUATE],
    'task': 'grade' if 'grade' in scored else 'quality',
    'usable': usable,
    'files': {
      'predictions': pathlib.Path(predictions).name,
      'labels': pathlib.Path(labels_file).name,
    },
    'notes': notes,
    'operating_point': {
      'rule': 'fixed',
      'threshold': scores.threshold,
      'chosen_on': 'configuration',
    },
    'splits': {'scored': scored},
  }
  if compare:
    other_table = _read(compare, split, notes)
    other = _scores(other_table, usable, threshold, score_column)
    theirs = _align(other_table, truth_table)[kept]
    result['files']['compare'] = pathlib.Path(compare).name
    notes.append(f'score of the other system: {other.used}')
    columns['p_compared'] = other.ranks[theirs]
    result['comparison'] = _compare(
      quality[kept],
      (scores, ours),
      (other, theirs),
      patient[kept],
      resamples,
    )
  if output:
    run_directory.write_json(pathlib.Path(output) / 'metrics.json', result)
    from iqa_jax.evaluation import report

    report.write(output, result, {'scored': columns})
  return result


def as_text(result: Mapping[str, Any]) -> str:
  """Returns the tables of `run` for a terminal."""
  scored = result['splits']['scored']
  verdict = scored['verdict']
  lines = [
    f'{verdict["n"]} images of {verdict["n_patients"]} patients, '
    f'{verdict["n_inadequate"]} Inadequate',
    'Positive class: Inadequate. In brackets: 95 % interval, by patients.',
    *(f'- {note}' for note in result['notes']),
  ]
  if 'grade' in scored:
    lines += ['', f'Three grades ({", ".join(scored["grade"]["classes"])})']
    lines += _rows(scored['grade'])
    lines += ['  confusion (row: label, column: called)']
    lines += [
      f'    {name:10}' + ''.join(f'{n:8d}' for n in row)
      for name, row in zip(
        scored['grade']['classes'], scored['grade']['confusion'], strict=True
      )
    ]
  lines += ['', f'Verdict, Inadequate from p = {verdict["threshold"]:.4g} on']
  lines += _rows(verdict)
  (tn, fp), (fn, tp) = verdict['confusion']
  lines += [
    '  confusion (row: label, column: called)',
    f'    adequate   {tn:8d}{fp:8d}',
    f'    inadequate {fn:8d}{tp:8d}',
  ]
  for row in scored['breakdowns']['worst']:
    if row['clearly']:
      lines.append(
        f'  clearly below all images: {row["measure"]} of {row["breakdown"]} '
        f'{row["group"]!r}, {assessment.text(row)} against {row["overall"]:.3f}'
      )
  if 'comparison' in result:
    lines += ['', *_comparison_text(result)]
  return '\n'.join(lines)


def _rows(assessed) -> list[str]:
  rows = []
  for name, measure in assessed['metrics'].items():
    stem, _, group = name.rpartition('_')
    title = metrics.TITLES.get(name)
    if title is None:
      title = f'{metrics.SHORT.get(stem, stem)} of {group}'
    base = assessed['majority'].get(name)
    shown = '-' if base is None else f'{base:.4f}'
    rows.append(f'  {title:52} {assessment.text(measure, 4):30} {shown}')
  return [f'  {"":52} {"":30} majority', *rows]


def _comparison_text(result) -> list[str]:
  comparison = result['comparison']
  lines = [
    f'{result["files"]["predictions"]} - {result["files"]["compare"]}, paired'
  ]
  for key, title in (
    ('auc', 'AUC (DeLong)'),
    ('auc_clustered', 'AUC (DeLong, clustered by patient)'),
  ):
    found = comparison[key]
    if 'reason' in found:
      lines.append(f'  {title}: {found["reason"]}')
      continue
    lines.append(
      f'  {title:52} {found["difference"]:+.4f} ({found["low"]:+.4f} to '
      f'{found["high"]:+.4f}), p = {found["p_value"]:.3g}'
    )
  for name, measure in comparison['metrics'].items():
    lines.append(f'  {metrics.TITLES[name]:52} {assessment.text(measure, 4)}')
  return lines


def _compare(truth, first, second, patient, resamples) -> dict[str, Any]:
  def compared(by):
    try:
      return delong.compare_auc(
        truth, first[0].ranks[first[1]], second[0].ranks[second[1]], by
      )
    except ValueError as error:
      return {'reason': str(error)}

  values, samples = [], []
  for scores, order in (first, second):
    p, ranks = scores.p[order], scores.ranks[order]
    called = p >= scores.threshold
    values.append(
      {**metrics.binary(truth, p, called), **metrics.ranking(truth, ranks)}
    )
    # The same draws for both: the differences are paired.
    draws = resampling.Resamples(patient, resamples)
    samples.append(
      resampling.binary_samples(truth, p, called, draws, score=ranks)
    )
  differences = {}
  for name in samples[0]:
    low, high = intervals.percentile(samples[0][name] - samples[1][name])
    value = values[0][name] - values[1][name]
    differences[name] = {
      **assessment.entry(value, low, high, metrics.reason(truth, value)),
      'of_each': [v[name] if np.isfinite(v[name]) else None for v in values],
    }
  return {
    'auc': compared(None),
    'auc_clustered': compared(patient),
    'metrics': differences,
  }


def _read(path, split, notes) -> _Table:
  try:
    rows = list(tables.read(path, ()))
  except records.DataError as error:
    raise ScoringError(str(error)) from error
  if not rows:
    raise ScoringError(f'{path} has no rows')
  columns = {key: [row.get(key, '') for _, row in rows] for key in rows[0][1]}
  lines = [line for line, _ in rows]
  table = _Table(str(path), columns, lines, [''] * len(lines))
  if 'split' in columns and split in columns['split']:
    kept = [i for i, s in enumerate(columns['split']) if s == split]
    if len(kept) < len(lines):
      notes.append(f'{pathlib.Path(path).name}: rows of split {split!r}')
    columns = {k: [v[i] for i in kept] for k, v in columns.items()}
    lines = [lines[i] for i in kept]
    table = _Table(str(path), columns, lines, [''] * len(lines))
  column = _wanted(table, None, _NAMES, 'image names')
  names = columns[column]
  empty = [line for line, name in zip(lines, names, strict=True) if not name]
  if empty:
    raise ScoringError(f'{path}, line {empty[0]}: the image name is empty')
  table = dataclasses.replace(table, names=names)
  _refuse_twice(table, names)
  return table


def _wanted(table: _Table, chosen, candidates, what: str) -> str:
  column = table.column([chosen] if chosen else candidates)
  if column is not None:
    return column
  near = [
    match
    for wanted in ([chosen] if chosen else candidates)
    for match in difflib.get_close_matches(
      wanted, [c for c in table.columns if c], 1, 0.7
    )
  ]
  hint = f'; the nearest is {near[0]!r}' if near else ''
  expected = repr(chosen) if chosen else f'any of {", ".join(candidates)}'
  raise ScoringError(
    f'{table.path} has no column of {what} ({expected}){hint}; it has: '
    f'{", ".join(c or "(unnamed)" for c in table.columns) or "nothing"}'
  )


def _refuse_twice(table: _Table, keys: Sequence[str]) -> None:
  first: dict[str, int] = {}
  for row, key in enumerate(keys):
    if key in first:
      raise ScoringError(
        f'{table.path} has {key!r} twice, in lines {table.lines[first[key]]} '
        f'and {table.lines[row]}: keep one of them'
      )
    first[key] = row


def _stem(name: str) -> str:
  return _EXTENSION.sub('', re.split(r'[/\\]', name)[-1])


def _align(table: _Table, truth: _Table) -> np.ndarray:
  """Returns the row of `table` for every row of `truth`, int [n]."""
  ours, theirs = list(table.names), list(truth.names)
  if set(ours) != set(theirs):
    ours, theirs = [_stem(n) for n in ours], [_stem(n) for n in theirs]
    _refuse_twice(table, ours)
    _refuse_twice(truth, theirs)
  for having, lacking, these, those in (
    (truth, table, theirs, ours),
    (table, truth, ours, theirs),
  ):
    absent = sorted(set(these) - set(those))
    if absent:
      more = f' and {len(absent) - _SHOWN} more' if len(absent) > _SHOWN else ''
      raise ScoringError(
        f'{len(absent)} of {len(these)} images of {having.path} are missing '
        f'from {lacking.path}: {", ".join(absent[:_SHOWN])}{more}; give files '
        'of the same images'
      )
  row = {name: i for i, name in enumerate(ours)}
  return np.array([row[name] for name in theirs])


def _numbers(
  table: _Table, column: str, *, probability: bool = True
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


def _scores(table: _Table, usable, threshold, chosen) -> _Scores:
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
    _wanted(table, None, (missing.capitalize(), f'p_{missing}'), 'scores')
  column = _wanted(table, chosen, _SCORES, 'scores')
  p = _numbers(table, column)
  at = 0.5 if threshold is None else threshold
  return _Scores(p, p, grades, at, f'column {column} of {_base(table)}')


def _own_scores(table: _Table, threshold, grades) -> _Scores:
  p = _numbers(table, str(table.column(['p_calibrated'])))
  raw = table.column(['log_odds', 'p_inadequate'])
  by_odds = raw is not None and raw.lower() == 'log_odds'
  ranks = _numbers(table, raw, probability=not by_odds) if raw else p
  used = f'column p_calibrated of {_base(table)}, ranked by {raw}'
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
  return _Scores(p, ranks, grades, threshold, used, ranked_by=ranked_by)


def _grade_scores(table, grades, columns, usable, threshold) -> _Scores:
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
  return _Scores(p, p, grades, at, f'{used} of {_base(table)}', normalised)


def _base(table: _Table) -> str:
  return pathlib.Path(table.path).name


def _labels(table: _Table, chosen, graded: bool) -> tuple[str, np.ndarray]:
  """Returns 'grade' or 'binary', and labels int [n], -1 unknown."""
  if chosen is None and graded and table.column(['grade']):
    column = str(table.column(['grade']))
  else:
    column = _wanted(table, chosen, _LABELS, 'labels')
  kinds, found = set(), np.empty(len(table.lines), int)
  for i, text in enumerate(table.columns[column]):
    kind, value = _WORDS.get(text.lower(), ('', None))
    if value is None and re.fullmatch(r'-?\d{1,9}(\.0*)?', text):
      value = int(float(text))
    if value is None or value not in (labels.UNKNOWN, 0, 1, 2):
      raise ScoringError(
        f'{table.where(i)}: {column} is {text!r}, none of 0, 1, 2, -1, '
        f'{", ".join(_WORDS)}'
      )
    kinds |= {kind} - {''}
    found[i] = value
  if len(kinds) > 1:
    raise ScoringError(
      f'{table.path}: {column} mixes grades and adequate/inadequate'
    )
  if kinds:
    return kinds.pop(), found
  if (found == 2).any() or graded or column.lower() == 'grade':
    return 'grade', found
  return 'binary', found


def _patients(truth, table, order, chosen, notes) -> np.ndarray:
  column = chosen and _wanted(truth, chosen, (), 'patients')
  column = column or truth.column(_PATIENTS)
  if column:
    notes.append(f'patients: column {column} of {_base(truth)}')
    return np.array(truth.columns[column])
  column = table.column(_PATIENTS)
  if column:
    notes.append(f'patients: column {column} of {_base(table)}')
    return np.array(table.columns[column])[order]
  found = [_EYEPACS.fullmatch(_stem(name)) for name in truth.names]
  if all(found):
    notes.append('patients: from the names (NUMBER_left, NUMBER_right)')
    return np.array([match[1] for match in found if match])
  notes.append('patients are unknown: each image counts as its own')
  return np.arange(len(truth.names)).astype(str)


def _attributes(truth: _Table, kept) -> dict[str, np.ndarray]:
  """Returns camera, eye and criteria where the labels' file has them."""
  found: dict[str, np.ndarray] = {}
  for name in ('camera', 'eye'):
    column = truth.column([name])
    if column:
      found[name] = np.array(truth.columns[column])[kept]
  if 'eye' not in found:
    sides = [_EYEPACS.fullmatch(_stem(truth.names[i])) for i in kept]
    if all(sides):
      found['eye'] = np.array([match[2] for match in sides if match])
  return found
