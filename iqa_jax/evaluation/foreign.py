"""CSV files as people have them: read, aligned by the images' names.

Whatever can't be understood is told with its file and line.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import difflib
import pathlib
import re

import numpy as np

from iqa_jax import errors
from iqa_jax.data import records, tables

_NAMES = (
  *('image_id', 'image_name', 'image', 'filename', 'file_name', 'file'),
  *('name', 'path', 'id'),
)
_PATIENTS = ('patient_id', 'patient', 'subject_id', 'subject')
_EXTENSION = re.compile(
  r'\.(jpe?g|png|tiff?|bmp|gif|webp|dcm|ppm)$', re.IGNORECASE
)
_EYEPACS = re.compile(r'(\d+)_(left|right)')
_SHOWN = 3  # names in a message


class ScoringError(errors.UserError):
  """A file can't be scored; the message says which row and what to do."""


@dataclasses.dataclass(frozen=True)
class Table:
  """A CSV file: its columns as text, and the line each row stands on."""

  path: str
  columns: dict[str, list[str]]
  lines: list[int]
  names: list[str]

  def column(self, wanted: Sequence[str]) -> str | None:
    """Returns the file's own spelling of the first column it has."""
    own = {name.lower(): name for name in self.columns}
    return next((own[w.lower()] for w in wanted if w.lower() in own), None)

  @property
  def base(self) -> str:
    """The file's name without its folder."""
    return pathlib.Path(self.path).name

  def where(self, row: int) -> str:
    """Returns where a row stands, for messages."""
    return f'{self.path}, line {self.lines[row]} ({self.names[row]})'


def read(path: str, split: str, notes: list[str]) -> Table:
  """Reads a CSV file with a column of image names.

  Args:
    path: of the file.
    split: of its rows, where a column 'split' has it.
    notes: what is assumed is appended.

  Raises:
    ScoringError: it can't be read, has no rows or no names, or a name twice.
  """
  try:
    rows = list(tables.read(path, ()))
  except records.DataError as error:
    raise ScoringError(str(error)) from error
  if not rows:
    raise ScoringError(f'{path} has no rows')
  columns = {key: [row.get(key, '') for _, row in rows] for key in rows[0][1]}
  lines = [line for line, _ in rows]
  table = Table(str(path), columns, lines, [''] * len(lines))
  if 'split' in columns and split in columns['split']:
    kept = [i for i, s in enumerate(columns['split']) if s == split]
    if len(kept) < len(lines):
      notes.append(f'{pathlib.Path(path).name}: rows of split {split!r}')
    columns = {k: [v[i] for i in kept] for k, v in columns.items()}
    lines = [lines[i] for i in kept]
    table = Table(str(path), columns, lines, [''] * len(lines))
  column = wanted_column(table, None, _NAMES, 'image names')
  names = columns[column]
  empty = [line for line, name in zip(lines, names, strict=True) if not name]
  if empty:
    raise ScoringError(f'{path}, line {empty[0]}: the image name is empty')
  table = dataclasses.replace(table, names=names)
  _refuse_twice(table, names)
  return table


def wanted_column(
  table: Table, chosen: str | None, candidates: Sequence[str], what: str
) -> str:
  """Returns the file's spelling of a column.

  Args:
    table: the file.
    chosen: the column's name; None: the first of `candidates`.
    candidates: usual names.
    what: the column holds, for the message.

  Raises:
    ScoringError: it has none; the nearest name is told.
  """
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


def _refuse_twice(table: Table, keys: Sequence[str]) -> None:
  first: dict[str, int] = {}
  for row, key in enumerate(keys):
    if key in first:
      raise ScoringError(
        f'{table.path} has {key!r} twice, in lines {table.lines[first[key]]} '
        f'and {table.lines[row]}: keep one of them'
      )
    first[key] = row


def stem(name: str) -> str:
  """Returns an image's name without folder and extension."""
  return _EXTENSION.sub('', re.split(r'[/\\]', name)[-1])


def align(table: Table, truth: Table) -> np.ndarray:
  """Returns the row of `table` for every row of `truth`, int [n].

  Raises:
    ScoringError: they are not of the same images.
  """
  ours, theirs = list(table.names), list(truth.names)
  if set(ours) != set(theirs):
    ours, theirs = [stem(n) for n in ours], [stem(n) for n in theirs]
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


def patients(
  truth: Table,
  table: Table,
  order: np.ndarray,
  chosen: str | None,
  notes: list[str],
) -> np.ndarray:
  """Returns whom the images of `truth` are of, str [n].

  Args:
    truth: the labels' file.
    table: the predictions' file.
    order: of `align`.
    chosen: the column of the labels' file; None: found, in either file, or
      from EyePACS's names; otherwise each image is its own patient.
    notes: which it was is appended.
  """
  column = chosen and wanted_column(truth, chosen, (), 'patients')
  column = column or truth.column(_PATIENTS)
  if column:
    notes.append(f'patients: column {column} of {truth.base}')
    return np.array(truth.columns[column])
  column = table.column(_PATIENTS)
  if column:
    notes.append(f'patients: column {column} of {table.base}')
    return np.array(table.columns[column])[order]
  found = [_EYEPACS.fullmatch(stem(name)) for name in truth.names]
  if all(found):
    notes.append('patients: from the names (NUMBER_left, NUMBER_right)')
    return np.array([match[1] for match in found if match])
  notes.append('patients are unknown: each image counts as its own')
  return np.arange(len(truth.names)).astype(str)


def cameras(truth: Table, kept: np.ndarray) -> np.ndarray | None:
  """Returns the cameras of some rows, where the labels' file has them."""
  column = truth.column(['camera'])
  return np.array(truth.columns[column])[kept] if column else None


def eyes(truth: Table, kept: np.ndarray) -> np.ndarray | None:
  """Returns the eyes of some rows, by the labels' file or EyePACS's names."""
  column = truth.column(['eye'])
  if column:
    return np.array(truth.columns[column])[kept]
  sides = [_EYEPACS.fullmatch(stem(truth.names[i])) for i in kept]
  if not all(sides):
    return None
  return np.array([match[2] for match in sides if match])
