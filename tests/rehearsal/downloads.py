"""What stand-in downloads hold: label files as published, and what to draw.

The counts are the published ones (data/*/labels.py and the data READMEs).
What is not published is assumed here and says so: which faults fail together,
how often both eyes of a patient fail, pixel sizes within the published range,
missing ages, the values of columns that this software does not read.
"""

from __future__ import annotations

from collections.abc import Sequence
import csv
import dataclasses
import pathlib
from typing import Any

import numpy as np

from iqa_jax import errors, labels

DATASETS = ('brset', 'eyeq')
# The faults that fail together add up to the published counts of each
# criterion and of each alone; how they are paired is assumed.
FAULTS: dict[tuple[str, ...], int] = {
  ('image_field',): 1322,
  ('focus',): 470,
  ('illumination',): 58,
  ('artifacts',): 42,
  ('image_field', 'focus'): 57,
  ('image_field', 'illumination'): 13,
  ('image_field', 'artifacts'): 7,
  ('focus', 'illumination'): 8,
  ('focus', 'artifacts'): 5,
  ('illumination', 'artifacts'): 3,
  ('image_field', 'focus', 'illumination'): 2,
}
_BOTH_EYES = 0.4  # of Inadequate photographs the other eye's is too; assumed
_TRUNCATED = 0.001
BRSET_COLUMNS = (
  *('image_id', 'patient_id', 'camera', 'patient_age', 'comorbidities'),
  *('diabetes_time_y', 'insuline', 'patient_sex', 'exam_eye', 'diabetes'),
  *('nationality', 'optic_disc', 'vessels', 'macula', 'DR_SDRG', 'DR_ICDR'),
  *('focus', 'iluminaton', 'image_field', 'artifacts', 'quality'),
)


@dataclasses.dataclass(frozen=True)
class Camera:
  """Attributes: patients with two photographs and with one; Inadequate
  photographs; the simulator's style; (width, height), as likely each (of
  sizes only the range is published)."""

  pairs: int
  singles: int
  inadequate: int
  style: int
  sizes: tuple[tuple[int, int], ...]


# 10,592 and 5,674 photographs, 8.8 % and 18.6 % Inadequate, 8,524 patients.
CAMERAS = {
  'Canon CR': Camera(5041, 510, 932, 0, ((2984, 2304), (2304, 1728))),
  'NIKON NF5050': Camera(2701, 272, 1055, 1, ((1444, 1444), (951, 874))),
}
GRADES = {'train': (8347, 1876, 2320), 'test': (8471, 4558, 3220)}
# Of EyePACS there are many; how often each is assumed.
EYEPACS = (
  *((4752, 3168), (3888, 2592), (3888, 2592), (3504, 2336), (2592, 1944)),
  *((2560, 1920), (2592, 1728), (2048, 1536), (1600, 1200)),
)


@dataclasses.dataclass(frozen=True)
class Shot:
  """A photograph to draw.

  Attributes:
    path: in the download.
    seed: of the photograph.
    patient: seed of the patient.
    eye: 'left' or 'right'.
    style: number of the simulator's camera.
    broken: criteria that it fails.
    size: width and height in pixels.
    truncated: only the first part of the file is there.
  """

  path: str
  seed: int
  patient: int
  eye: str
  style: int
  broken: tuple[str, ...]
  size: tuple[int, int]
  truncated: bool = False


def write(
  dataset: str,
  folder: pathlib.Path,
  scale: float,
  published: pathlib.Path | None = None,
) -> list[Shot]:
  """Writes the label files; returns what to draw, in an order of no meaning.

  Args:
    dataset: of DATASETS.
    folder: of the download, made when missing.
    scale: share of the patients, over 0 and at most 1.
    published: folder of EyeQ's published label files; None: grades of the
      published counts are dealt to patients of no name.

  Raises:
    InvalidValue: `scale` is none.
  """
  if not 0 < scale <= 1:
    raise errors.InvalidValue(f'--scale={scale} is not over 0 and at most 1')
  folder.mkdir(parents=True, exist_ok=True)
  if dataset == 'brset':
    shots = _brset(folder, scale)
  else:
    shots = _eyeq(folder, scale, published)
  rng = np.random.default_rng([5, len(shots)])
  shuffled = [shots[i] for i in rng.permutation(len(shots))]
  cut = max(round(_TRUNCATED * len(shots)), 1)
  return [
    dataclasses.replace(shot, truncated=i >= len(shots) - cut)
    for i, shot in enumerate(shuffled)
  ]


def kept(patients: Sequence[Any], scale: float) -> list[Any]:
  """Returns an even share of patients that lie sorted by what they have."""
  count = max(round(scale * len(patients)), 1)
  return [
    patients[int((i + 0.5) * len(patients) / count)] for i in range(count)
  ]


def _brset(folder, scale) -> list[Shot]:
  rng = np.random.default_rng(1)
  faults = [kinds for kinds, n in FAULTS.items() for _ in range(n)]
  faults = [faults[i] for i in rng.permutation(len(faults))]
  patients = []
  for name, camera in CAMERAS.items():
    taken, faults = faults[: camera.inadequate], faults[camera.inadequate :]
    patients += [(name, eyes) for eyes in _eyes(camera, taken)]
  patients.sort()
  patients = kept(patients, scale)
  rows, shots = [], []
  for number, which in enumerate(rng.permutation(len(patients)), 1):
    name, eyes = patients[which]
    camera = CAMERAS[name]
    about = _about(rng)
    sides = (1, 2) if len(eyes) == 2 else (int(rng.integers(1, 3)),)
    for side, broken in zip(sides, eyes, strict=True):
      seed = len(rows) + 1
      image = f'img{seed:05d}'
      failed = {n: 1 + (n in broken) for n in labels.CRITERIA}
      rows.append(
        {
          **dict.fromkeys(BRSET_COLUMNS, 1),
          **about,
          'image_id': image,
          'patient_id': number,
          'camera': name,
          'exam_eye': side,
          # The published file has such slips.
          'optic_disc': 'bv' if seed % 4000 == 7 else 1 + (seed % 5 == 0),
          **{n: failed[n] for n in ('focus', 'image_field', 'artifacts')},
          'iluminaton': failed['illumination'],
          'quality': 'Inadequate' if broken else 'Adequate',
        }
      )
      size = camera.sizes[number % len(camera.sizes)]
      eye = 'right' if side == 1 else 'left'
      path = f'fundus_photos/{image}.jpg'
      shots.append(Shot(path, seed, number, eye, camera.style, broken, size))
  with open(
    folder / 'labels_brset.csv', 'w', encoding='utf-8-sig', newline=''
  ) as file:
    writer = csv.DictWriter(file, BRSET_COLUMNS, lineterminator='\r\n')
    writer.writeheader()
    writer.writerows(rows)
  return shots


def _eyes(camera, faults) -> list[tuple[tuple[str, ...], ...]]:
  """Returns of each of a camera's patients what each photograph fails."""
  both = round(_BOTH_EYES * len(faults)) // 2
  eyes = [(faults[2 * i], faults[2 * i + 1]) for i in range(both)]
  rest = faults[2 * both :]
  single = len(rest) * camera.singles // (2 * camera.pairs + camera.singles)
  eyes += [(kinds, ()) for kinds in rest[single:]]
  eyes += [((), ())] * (camera.pairs - len(eyes))
  alone = [(kinds,) for kinds in rest[:single]]
  return eyes + alone + [((),)] * (camera.singles - single)


def _about(rng) -> dict[str, Any]:
  """Returns a patient's columns: mean age 57.6 and 61.8 % women, published."""
  age = int(np.clip(rng.normal(57.6, 17), 5, 97))
  diabetic = rng.random() < 0.16
  return {
    # A third is missing (assumed); a few are no numbers.
    'patient_age': rng.choice(
      [age, '', 'NA', f'{age}.0', 'O'], p=[0.6, 0.3, 0.03, 0.06, 0.01]
    ),
    'comorbidities': 'diabetes1, hypertension' if diabetic else '',
    'diabetes_time_y': rng.choice(['Não', '8', '1O', '']) if diabetic else '',
    'insuline': rng.choice(['yes', 'no']) if diabetic else '',
    'patient_sex': 2 if rng.random() < 0.618 else 1,
    'diabetes': 'yes' if diabetic else 'no',
    'nationality': 'Brazil',
    'DR_SDRG': int(diabetic),
    'DR_ICDR': int(diabetic),
  }


def _eyeq(folder, scale, published) -> list[Shot]:
  rng = np.random.default_rng(2)
  shots = []
  for split, counts in GRADES.items():
    (folder / split).mkdir(exist_ok=True)
    eyes = _published(published, split) if published else (
      _dealt(rng, split, counts)
    )  # fmt: skip
    patients: dict[int, list[tuple[str, int, str]]] = {}
    for patient, *row in eyes:
      patients.setdefault(patient, []).append(tuple(row))
    order = sorted(
      patients.items(), key=lambda p: ([row[1] for row in p[1]], p[0])
    )
    chosen = sorted(kept(order, scale))
    lines = [',image,quality,DR_grade']
    for patient, rows in chosen:
      size = EYEPACS[int(rng.integers(len(EYEPACS)))]
      for eye, grade, retinopathy in rows:
        name = f'{patient}_{eye}.jpeg'
        lines.append(f'{len(lines) - 1},{name},{grade},{retinopathy}')
        # Usable has a fault, Reject two.
        broken = rng.choice(labels.LOCAL_CRITERIA, grade, replace=False)
        shots.append(
          Shot(
            path=f'{split}/{name}',
            seed=2 * patient + (eye == 'right'),
            patient=patient,
            eye=eye,
            style=patient % 2,
            broken=tuple(map(str, broken)),
            size=size,
          )
        )
    path = folder / f'Label_EyeQ_{split}.csv'
    path.write_text('\n'.join(lines) + '\n', encoding='utf-8')
  return shots


def _published(folder, split):
  """Yields (patient, eye, grade, DR grade) of a published label file."""
  with open(
    folder / f'Label_EyeQ_{split}.csv', encoding='utf-8-sig', newline=''
  ) as file:
    for row in csv.DictReader(file):
      patient, eye = pathlib.Path(row['image']).stem.split('_')
      yield int(patient), eye, int(row['quality']), row['DR_grade']


def _dealt(rng, split, counts):
  """Yields likewise: both eyes mostly alike, as assumed."""
  grades = np.repeat(np.arange(3), counts)
  moved = np.flatnonzero(rng.random(len(grades)) < 0.5)
  grades[moved] = grades[rng.permutation(moved)]
  first = 10 if split == 'train' else 1_000_000
  for i, grade in enumerate(grades):
    yield first + i // 2, ('left', 'right')[i % 2], int(grade), '0'
