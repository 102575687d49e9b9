"""README's first picture: faults put into photographs, and who finds them.

  python -m tests.benchmarks.maps_figure --evidence=RUN --pooled=RUN \
    --photographs=a.jpg,b.jpg --figure=maps.jpg

Each row is a photograph with one fault put in (outlined), the evidence of a
head of evidence, and Grad-CAM of a pooled head, both for 'inadequate'. Nothing
is chosen by its result: faults and places are drawn from the seed.
"""

from __future__ import annotations

import pathlib
import sys

import numpy as np
from PIL import Image, ImageDraw

import iqa_jax as iqa
from iqa_jax.explain import overlay
from iqa_jax.photograph import prepare
from iqa_jax.simulation import faults, unfamiliar
from tests.benchmarks import common

SIDE = 512
SHOWN = 300
KINDS = ('reflection', 'partial_defocus', 'lashes', 'writing', 'drops', 'hair')


def run(
  *,
  evidence: str = '',
  pooled: str = '',
  photographs: str = '',
  figure: str = 'maps.jpg',
  seed: int = 3,
  smoke: bool = False,
) -> list[common.Row]:
  """Draws the picture; nothing where no run is named."""
  del smoke
  if not evidence:
    print('name --evidence and --pooled runs and --photographs')
    return []
  graders = [iqa.load(run, check_fundus=False) for run in (evidence, pooled)]
  files = photographs.split(',')
  rows = []
  for i, kind in enumerate(KINDS):
    clean = iqa.read(files[i % len(files)])
    pixels = prepare.photograph(clean.image, SIDE).image
    rows.append(_row(kind, pixels, graders, np.random.default_rng([seed, i])))
  _sheet(rows).save(pathlib.Path(figure), quality=88)
  return []


def _row(kind, pixels, graders, rng) -> list[tuple[str, Image.Image]]:
  inside = prepare.with_field(pixels)[..., 3] > 0
  if kind in faults.CRITERION:
    faulty, mask = faults.apply(pixels, inside, kind, 0.8, rng)
  else:
    faulty, mask = unfamiliar.apply(pixels, inside, kind, rng)
  outlined = overlay.contour(
    Image.fromarray(faulty),
    (np.asarray(mask, np.float32) > 0.25).astype(np.float32),
    np.eye(2, 3),
    SIDE,
    overlay.Look(colors='inferno'),
    levels=(0.5,),
  )
  cells = [(f'{kind.replace("_", " ")}, put in', outlined)]
  for grader, name in zip(graders, ('evidence', 'Grad-CAM'), strict=True):
    before, after = grader.explain([pixels, faulty], target='margin')
    p = [e.verdict.p_inadequate for e in (before, after)]
    cells.append(
      (f'{name}: P {p[0]:.2f} to {p[1]:.2f}', after.overlay(opacity=0.75))
    )
  return cells


def _sheet(rows) -> Image.Image:
  """Returns the rows in two columns of three pictures each."""
  gap, words = 8, 26
  wide, high = SHOWN + gap, SHOWN + words + gap
  half = -(-len(rows) // 2)
  sheet = Image.new(
    'RGB', (2 * 3 * wide + 3 * gap, half * high + gap), overlay.PAPER
  )
  pen = ImageDraw.Draw(sheet)
  for number, cells in enumerate(rows):
    left = gap + (number // half) * (3 * wide + gap)
    top = gap + (number % half) * high
    for column, (text, picture) in enumerate(cells):
      at = left + column * wide
      pen.text((at, top), text, fill=overlay.INK, font=overlay.typeface(15))
      sheet.paste(picture.resize((SHOWN, SHOWN)), (at, top + words))
  return sheet


if __name__ == '__main__':
  sys.exit(common.main(run))
