"""Reads EyeQ's label files and finds the photographs they name."""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import os
import pathlib
import re

from iqa_jax.data import tables
from iqa_jax.data.records import DataError

SPLITS = ('train', 'test')
# The authors' cropping is known to fail on these; ours is checked on them.
HARD_TO_CROP = (
  '15337_left',
  '40764_right',
  '13227_left',
  '26250_left',
  '5371_left',
)
_NAME = re.compile(r'(\d+)_(left|right)')
_SUFFIXES = ('.jpeg', '.png', '.jpg')


@dataclasses.dataclass(frozen=True)
class Row:
  """One graded photograph.

  Attributes:
    image_id: its name without suffix, such as 13_left.
    patient_id: the digits of the name.
    eye: 'left' or 'right'.
    grade: 0 Good, 1 Usable, 2 Reject.
  """

  image_id: str
  patient_id: str
  eye: str
  grade: int


def label_file(manual_dir: str | os.PathLike, split: str) -> pathlib.Path:
  """Returns where a split's label file is expected."""
  return pathlib.Path(manual_dir) / f'Label_EyeQ_{split}.csv'


def read(path: str | os.PathLike) -> list[Row]:
  """Reads a label file (columns image and quality).

  Raises:
    DataError: the file, a column or a value is not as published.
  """
  rows, seen = [], set()
  for number, row in tables.read(path, ('image', 'quality')):
    name = pathlib.PurePosixPath(row['image']).stem
    match = _NAME.fullmatch(name)
    if not match:
      raise DataError(
        f'{path}, line {number}: image {row["image"]!r} is not named '
        'NUMBER_left or NUMBER_right as in EyePACS'
      )
    if row['quality'] not in ('0', '1', '2'):
      raise DataError(
        f'{path}, line {number}: quality {row["quality"]!r} is none of 0 '
        '(Good), 1 (Usable), 2 (Reject)'
      )
    if name in seen:
      raise DataError(f'{path}, line {number}: {name} is listed twice')
    seen.add(name)
    rows.append(Row(name, match[1], match[2], int(row['quality'])))
  return rows


def find_photographs(
  manual_dir: str | os.PathLike, split: str
) -> Mapping[str, pathlib.Path]:
  """Returns the photographs of a split by name without suffix.

  They lie in manual_dir/<split>/ or in manual_dir itself, as downloaded
  (.jpeg) or after the authors' cropping (.png).
  """
  found: dict[str, pathlib.Path] = {}
  for folder in (
    pathlib.Path(manual_dir) / split,
    pathlib.Path(manual_dir) / f'{split}_preprocessed',
    pathlib.Path(manual_dir),
  ):
    if folder.is_dir():
      for entry in sorted(os.scandir(folder), key=lambda e: e.name):
        name, suffix = os.path.splitext(entry.name)
        if suffix.lower() in _SUFFIXES:
          found.setdefault(name, pathlib.Path(entry.path))
  return found
