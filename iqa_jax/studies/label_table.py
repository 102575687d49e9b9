"""What a CSV file says of photographs: verdicts, eyes, patients, landmarks."""

from __future__ import annotations

from collections.abc import Mapping
import os
import pathlib
import re
from typing import Any

from iqa_jax import errors
from iqa_jax import labels as L
from iqa_jax.data import tables
from iqa_jax.photograph import images

_NAMES = ('image_id', 'path', 'image', 'image_path', 'filename', 'file')
_LANDMARKS = ('disc_x', 'disc_y', 'disc_diameter', 'fovea_x', 'fovea_y')
_VERDICTS = {'': -1, '-1': -1, 'adequate': 0, '0': 0, 'inadequate': 1, '1': 1}
_EYES = {'left': 'left', 'l': 'left', 'right': 'right', 'r': 'right'}
_EYEPACS = re.compile(r'(\d+)_(left|right)')


def read(
  path: str | os.PathLike, split: str = '', usable: str = 'inadequate'
) -> dict[str, dict[str, Any]]:
  """Returns what a CSV file says of photographs, by their names' stems.

  Columns: one of image_id, path, image, image_path, filename, file; any of
  quality, focus, illumination, image_field, artifacts (0 or adequate, 1 or
  inadequate), grade (0 to 2), eye, patient_id, disc_x, disc_y, disc_diameter,
  fovea_x, fovea_y. EyeQ's own files (whose quality is the grade) are known by
  their column DR_grade, EyePACS's names (13_left) tell eye and patient.

  Args:
    path: the file.
    split: keep rows whose column `split` says so only; '' for all.
    usable: what grade 1 counts as, see labels.USABLE.

  Returns:
    {stem: 'quality', 'grade', 'criteria' [4] (-1 where unknown), 'eye',
    'patient' ('' where unknown), 'landmarks' [5] in pixels of the file (NaN)}

  Raises:
    ValueError: a label is not understood.
  """
  rows: dict[str, dict[str, Any]] = {}
  for line, row in tables.read(path, ()):
    name = next((row[n] for n in _NAMES if row.get(n)), '')
    if not name:
      raise errors.InvalidValue(
        f'{path}, line {line}: no column names the photograph; expected one '
        f'of {", ".join(_NAMES)}'
      )
    if split and row.get('split') != split:
      continue
    key = stem(pathlib.PurePosixPath(name).name)
    rows[key] = _known(row, key, usable, f'{path}, line {line}')
  return rows


def _known(
  row: Mapping[str, str], name: str, usable: str, where: str
) -> dict[str, Any]:
  """Returns what a row says of the photograph `name`."""
  if any(column.lower() == 'dr_grade' for column in row):
    row = {**row, 'grade': row.get('quality', ''), 'quality': ''}
  named = _EYEPACS.fullmatch(name)
  patient, eye = named.groups() if named else ('', '')

  def verdict(column: str) -> int:
    value = row.get(column, '').lower()
    if value not in _VERDICTS:
      raise errors.InvalidValue(
        f'{where}: {column} is {value!r}, expected 0 or adequate, 1 or '
        'inadequate, or nothing'
      )
    return _VERDICTS[value]

  grade = row.get('grade', '')
  if grade not in ('', '-1', '0', '1', '2'):
    raise errors.InvalidValue(
      f'{where}: grade is {grade!r}, expected 0, 1, 2 or nothing'
    )
  known: dict[str, Any] = {
    'quality': verdict('quality'),
    'grade': int(grade or L.UNKNOWN),
    'criteria': [verdict(name) for name in L.CRITERIA],
    'eye': _EYES.get(row.get('eye', eye).lower(), ''),
    'patient': row.get('patient_id', '') or patient,
    'landmarks': [float(row.get(n) or 'nan') for n in _LANDMARKS],
  }
  if known['quality'] == L.UNKNOWN:
    known['quality'] = L.quality_of_grade(known['grade'], usable)
  return known


def stem(name: str) -> str:
  """Returns a file's name without the ending of an image."""
  stem, suffix = os.path.splitext(name)
  return stem if suffix.lower() in images.SUFFIXES else name
