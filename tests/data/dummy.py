"""Downloads as a user has them, of simulated photographs."""

import csv
import pathlib

import numpy as np
from PIL import Image

from iqa_jax.simulation import photograph

EYEQ = {
  'train': [(10, 'left', 0), (10, 'right', 1), (11, 'left', 2)],
  'test': [(12, 'left', 0), (13, 'right', 2)],
}
# Patient, camera, exam_eye and the criteria (2 = inadequate).
BRSET = [
  (1, 'Canon CR', 1, (1, 1, 1, 1)),
  (1, 'Canon CR', 2, (2, 1, 1, 1)),
  (2, 'NIKON NF5050', 1, (1, 1, 2, 1)),
  (3, 'NIKON NF5050', 2, (1, 1, 1, 1)),
]
BRSET_COLUMNS = [
  *('image_id', 'patient_id', 'camera', 'patient_age', 'patient_sex'),
  *('exam_eye', 'optic_disc', 'focus', 'iluminaton', 'image_field'),
  *('artifacts', 'quality'),
]


def draw(path: pathlib.Path, seed: int, size: int = 96) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  drawn = photograph.draw(seed, size, distractors=False)
  Image.fromarray(drawn.image).save(path, quality=95)


def eyeq(folder: pathlib.Path) -> pathlib.Path:
  """Makes an EyeQ download: a .png in test, .jpeg elsewhere."""
  for split, rows in EYEQ.items():
    lines = [',image,quality,DR_grade']
    for i, (patient, eye, grade) in enumerate(rows):
      name = f'{patient}_{eye}'
      suffix = '.png' if name == '13_right' else '.jpeg'
      draw(folder / split / f'{name}{suffix}', 100 * patient + i)
      lines.append(f'{i},{name}.jpeg,{grade},0')
    (folder / f'Label_EyeQ_{split}.csv').write_text('\n'.join(lines) + '\n')
  return folder


def brset_rows() -> list[dict]:
  return [
    {
      'image_id': f'img{i:05d}',
      'patient_id': patient,
      'camera': camera,
      'patient_age': '' if i == 2 else 40 + i,
      'patient_sex': 1 + i % 2,
      'exam_eye': eye,
      'optic_disc': 'bv' if i == 1 else 1,
      **dict(zip(BRSET_COLUMNS[7:11], criteria, strict=True)),
      'quality': 'Inadequate' if 2 in criteria else 'Adequate',
    }
    for i, (patient, camera, eye, criteria) in enumerate(BRSET)
  ]


def write_brset(path: pathlib.Path, rows: list[dict]) -> None:
  """Writes a label file as published: BOM and CRLF."""
  with open(path, 'w', encoding='utf-8-sig', newline='') as file:
    writer = csv.DictWriter(file, BRSET_COLUMNS, lineterminator='\r\n')
    writer.writeheader()
    writer.writerows(rows)


def brset(folder: pathlib.Path) -> pathlib.Path:
  """Makes a BRSet download."""
  rows = brset_rows()
  for i, row in enumerate(rows):
    draw(folder / 'fundus_photos' / f'{row["image_id"]}.jpg', i)
  write_brset(folder / 'labels_brset.csv', rows)
  return folder


def stored(source, index: int) -> np.ndarray:
  """Returns the stored image of an example, uint8 [h, w, 3]."""
  [record] = source.read(np.array([index]))
  return source.features.deserialize_example_np(record)['image']
