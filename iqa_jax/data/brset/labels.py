"""Reads BRSet's label file and finds the photographs it names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
import math
import os
import pathlib

from iqa_jax import labels
from iqa_jax.aliases import Record
from iqa_jax.data import tables
from iqa_jax.data.records import DataError, Entry, refuse

# By the later and the first name.
FILES = ('labels_brset.csv', 'labels.csv')
FOLDER = 'fundus_photos'
# What the published label file holds.
PUBLISHED = {
  'photographs': 16266,
  'patients': 8524,
  'adequate': 14279,
  'inadequate': 1987,
  'inadequate image_field': 1401,
  'inadequate focus': 542,
  'inadequate illumination': 84,
  'inadequate artifacts': 57,
  'image_field alone': 1322,
  'focus alone': 470,
  'illumination alone': 58,
  'artifacts alone': 42,
  'Canon CR': 10592,
  'NIKON NF5050': 5674,
}
_ALIASES = {'illumination': ('Illuminaton', 'iluminaton', 'ilumination')}
_REQUIRED = (
  'image_id',
  'patient_id',
  'camera',
  'exam_eye',
  *labels.CRITERIA,
  'quality',
)
_CRITERION = {'1': labels.ADEQUATE, '2': labels.INADEQUATE}
_QUALITY = {'adequate': labels.ADEQUATE, 'inadequate': labels.INADEQUATE}
_EYE = {'1': 'right', '2': 'left'}
_SEX = {'1': 'male', '2': 'female'}
_SUFFIXES = ('.jpg', '.jpeg', '.png')


def find(manual_dir: str | os.PathLike) -> pathlib.Path:
  """Returns the label file in a folder.

  Raises:
    DataError: there is none.
  """
  for name in FILES:
    path = pathlib.Path(manual_dir) / name
    if path.is_file():
      return path
  raise DataError(
    f'{manual_dir} holds neither {" nor ".join(FILES)}: give the folder of '
    f'BRSet that has it beside {FOLDER}/'
  )


def read(
  path: str | os.PathLike, report: Callable[[str], None] = refuse
) -> list[Record]:
  """Reads the label file, of any version.

  Args:
    path: the file.
    report: called with what is wrong with a row, which is then left out.

  Returns:
    One dict a row with fields of records.METADATA: image_id, patient_id,
    camera, eye, sex, age, quality and criteria (a list of four).

  Raises:
    DataError: the file is no CSV with these columns, or, by default, a value
      is not as published.
  """
  rows: list[Record] = []
  seen: set[str] = set()
  for number, row in tables.read(path, _REQUIRED, _ALIASES, report):
    # Some copies name the file with its suffix.
    name = os.path.splitext(row['image_id'])[0]
    problem = _problem(row, name, seen)
    if problem:
      report(f'{path}, line {number} ({name}): {problem}')
      continue
    seen.add(name)
    rows.append(
      {
        'image_id': name,
        'patient_id': row['patient_id'],
        'camera': row['camera'],
        'eye': _EYE.get(tables.number(row['exam_eye']), ''),
        'sex': _SEX.get(tables.number(row.get('patient_sex', '')), ''),
        'age': _age(row.get('patient_age', '')),
        'quality': _QUALITY[row['quality'].lower()],
        'criteria': [
          _CRITERION[tables.number(row[c])] for c in labels.CRITERIA
        ],
      }
    )
  return rows


def _problem(row: Mapping[str, str], name: str, seen: set[str]) -> str:
  """Returns what is wrong with a row, '' for nothing."""
  if not name or os.path.basename(name) != name:
    return f'image_id {row["image_id"]!r} is no name of a photograph'
  if name in seen:
    return 'listed twice'
  if not row['patient_id']:
    return 'patient_id is empty, so it cannot be kept in one split'
  for criterion in labels.CRITERIA:
    if tables.number(row[criterion]) not in _CRITERION:
      return (
        f'{criterion} {row[criterion]!r} is neither 1 (adequate) nor 2 '
        '(inadequate)'
      )
  if row['quality'].lower() not in _QUALITY:
    return f'quality {row["quality"]!r} is neither Adequate nor Inadequate'
  failed = [c for c in labels.CRITERIA if tables.number(row[c]) == '2']
  if bool(failed) != bool(_QUALITY[row['quality'].lower()]):
    return (
      f'quality {row["quality"]} contradicts the criteria, of which '
      f'{", ".join(failed) or "none"} failed; in BRSet as published it is '
      'Inadequate exactly when one fails: correct the row'
    )
  return ''


def _age(text: str) -> int:
  try:
    age = float(text)
  except ValueError:
    return labels.UNKNOWN
  return int(age) if math.isfinite(age) and 0 <= age < 150 else labels.UNKNOWN


def entries(
  manual_dir: str | os.PathLike, report: Callable[[str], None] = refuse
) -> dict[str, list[Entry]]:
  """Returns the labelled photographs; BRSet has no official split.

  Args:
    manual_dir: the folder with the label file; the photographs lie in its
      fundus_photos/ or beside it.
    report: called with what is wrong with the labels.

  Raises:
    DataError: the label file can't be read, or, by default, anything is wrong.
  """
  folder = pathlib.Path(manual_dir)
  found = tables.photographs((folder / FOLDER, folder), _SUFFIXES)
  rows = read(find(folder), report)
  return {'train': [tables.entry(found, row) for row in rows]}
