"""Reads a label file of your own and finds the photographs it names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
import os
import pathlib

from iqa_jax import config as config_lib
from iqa_jax import labels
from iqa_jax.aliases import Record
from iqa_jax.data import tables
from iqa_jax.data.records import DataError, Entry, refuse

PUBLISHED: dict[str, int] = {}  # nothing
_LABELS = ('verdict', 'grade', *labels.CRITERIA)
_VERDICT = {
  '': labels.UNKNOWN,
  '0': labels.ADEQUATE,
  '1': labels.INADEQUATE,
  **{name: number for number, name in enumerate(labels.QUALITY)},
}
_GRADE = {
  '': labels.UNKNOWN,
  **{str(number): number for number in range(3)},
  **{name: number for number, name in enumerate(labels.GRADES)},
}
_EYE = {'r': 'right', 'od': 'right', 'l': 'left', 'os': 'left'}
_SPLIT = {'': 'train', 'val': 'validation', 'valid': 'validation'}


def entries(
  manual_dir: str | os.PathLike,
  report: Callable[[str], None] = refuse,
  columns: Mapping[str, str] | None = None,
) -> dict[str, list[Entry]]:
  """Returns the labelled photographs of each split that the file names.

  Args:
    manual_dir: the folder that paths are relative to.
    report: called with what is wrong with the labels; a row that is wrong is
      then left out.
    columns: `config.data.csv`: 'file' and the columns' names by what they hold;
      None for the default.

  Raises:
    DataError: the label file can't be read, or, by default, anything is wrong.
  """
  columns = dict(config_lib.default().data.csv) | dict(columns or {})
  folder = pathlib.Path(manual_dir)
  file = folder / columns['file']
  names = config_lib.CSV_COLUMNS
  # A column that the user has named must be there.
  needed = [
    columns[name]
    for name in names
    if name in ('path', 'patient') or columns[name] != name
  ]
  found: dict[str, list[Entry]] = {}
  split_of: dict[str, str] = {}
  seen: set[str] = set()
  spellings: dict[str, tuple[str, ...]] = {columns[n]: () for n in names}
  for number, read in tables.read(file, needed, spellings, report):
    row = {n: read[columns[n]] for n in names if columns[n] in read}
    if not any(name in row for name in _LABELS):
      raise DataError(
        f'{file} has no column of labels: {", ".join(_LABELS)}, or '
        'another named with --config.data.csv'
      )
    name = os.path.normpath(row['path']) if row['path'] else ''
    split = row.get('split', '').lower()
    split = _SPLIT.get(split, split)
    problem = _problem(row, name, split, seen, split_of)
    if problem:
      report(f'{file}, line {number} ({name or "no path"}): {problem}')
      continue
    seen.add(name)
    split_of[row['patient']] = split
    path = folder / name
    found.setdefault(split, []).append(
      Entry(path if path.exists() else None, _metadata(row, name))
    )
  return found


def _metadata(row: Mapping[str, str], name: str) -> Record:
  eye = row.get('eye', '').lower()
  eye = _EYE.get(eye, eye)
  return {
    'image_id': name,
    'patient_id': row['patient'],
    'camera': row.get('camera', ''),
    'site': row.get('site', ''),
    'eye': eye if eye in _EYE.values() else '',
    'grade': _label(row, 'grade'),
    'quality': _quality(row),
    'criteria': _criteria(row),
  }


def _label(row: Mapping[str, str], column: str) -> int:
  values = _GRADE if column == 'grade' else _VERDICT
  return values[tables.number(row.get(column, '')).lower()]


def _criteria(row: Mapping[str, str]) -> list[int]:
  return [_label(row, name) for name in labels.CRITERIA]


def _quality(row: Mapping[str, str]) -> int:
  """Returns the verdict, of a row without one what its criteria say."""
  verdict, criteria = _label(row, 'verdict'), _criteria(row)
  if verdict != labels.UNKNOWN or _label(row, 'grade') != labels.UNKNOWN:
    return verdict
  if labels.INADEQUATE in criteria:
    return labels.INADEQUATE
  return labels.UNKNOWN if labels.UNKNOWN in criteria else labels.ADEQUATE


def _problem(
  row: Mapping[str, str],
  name: str,
  split: str,
  seen: set[str],
  split_of: Mapping[str, str],
) -> str:
  """Returns what is wrong with a row, '' for nothing."""
  if not name:
    return 'path is empty'
  if name in seen:
    return 'listed twice'
  if not row['patient']:
    return 'patient is empty, so it cannot be kept in one split'
  if split not in ('train', 'validation', 'test'):
    return f'split {row["split"]!r} is none of train, validation, test'
  if split_of.get(row['patient'], split) != split:
    return (
      f'patient {row["patient"]} is in {split_of[row["patient"]]} and here in '
      f'{split}: patients may not cross splits'
    )
  for column in _LABELS:
    values = _GRADE if column == 'grade' else _VERDICT
    if tables.number(row.get(column, '')).lower() not in values:
      allowed = ', '.join(filter(None, values))
      return f'{column} {row[column]!r} is none of {allowed}, or empty'
  if all(_label(row, c) == labels.UNKNOWN for c in _LABELS):
    return 'it has no label'
  failed = [c for c in labels.CRITERIA if _label(row, c) == labels.INADEQUATE]
  if failed and _label(row, 'verdict') == labels.ADEQUATE:
    return f'verdict adequate contradicts {", ".join(failed)}'
  return ''
