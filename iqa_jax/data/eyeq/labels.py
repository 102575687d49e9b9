"""Reads EyeQ's label files and finds the photographs they name."""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import os
import pathlib
import re

from iqa_jax.data import tables
from iqa_jax.data.records import Entry, refuse

SPLITS = ('train', 'test')
# What the published label files hold.
PUBLISHED = {'train photographs': 12543, 'test photographs': 16249}
_NAME = re.compile(r'([0-9]+)_(left|right)')
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


def read(
  path: str | os.PathLike, report: Callable[[str], None] = refuse
) -> list[Row]:
  """Reads a label file (columns image and quality).

  Args:
    path: the file.
    report: called with what is wrong with a row, which is then left out.

  Raises:
    DataError: the file is no CSV with these columns, or, by default, a value
      is not as published.
  """
  rows: list[Row] = []
  seen: set[str] = set()
  for number, row in tables.read(path, ('image', 'quality'), report=report):
    name = os.path.splitext(row['image'])[0]
    match = _NAME.fullmatch(name)
    if not match:
      report(
        f'{path}, line {number}: image {row["image"]!r} is not named '
        'NUMBER_left or NUMBER_right as in EyePACS'
      )
    elif row['quality'] not in ('0', '1', '2'):
      report(
        f'{path}, line {number}: quality {row["quality"]!r} is none of 0 '
        '(Good), 1 (Usable), 2 (Reject)'
      )
    elif name in seen:
      report(f'{path}, line {number}: {name} is listed twice')
    else:
      seen.add(name)
      rows.append(Row(name, match[1], match[2], int(row['quality'])))
  return rows


def entries(
  manual_dir: str | os.PathLike, report: Callable[[str], None] = refuse
) -> dict[str, list[Entry]]:
  """Returns the graded photographs of each official split.

  They lie in manual_dir/<split>/ or in manual_dir itself, as downloaded
  (.jpeg) or after the authors' cropping (.png).

  Args:
    manual_dir: the folder with the label files.
    report: called with what is wrong with the labels.

  Raises:
    DataError: a label file can't be read, or, by default, anything is wrong.
  """
  folder = pathlib.Path(manual_dir)
  found: dict[str, list[Entry]] = {}
  for split in SPLITS:
    # Last where they don't belong; names are of one split alone.
    places = [
      *(folder / split, folder / f'{split}_preprocessed', folder),
      *(folder / other for other in SPLITS if other != split),
    ]
    photographs = tables.photographs(places, _SUFFIXES)
    found[split] = [
      tables.entry(photographs, dataclasses.asdict(row))
      for row in read(folder / f'Label_EyeQ_{split}.csv', report)
    ]
  train, test = (
    {e.metadata['patient_id'] for e in found[split]} for split in SPLITS
  )
  if train & test:
    report(
      f'{len(train & test)} patients are in both label files of {folder}, such '
      f'as {min(train & test)}; EyeQ as published has none'
    )
  return found
