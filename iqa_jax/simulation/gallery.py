"""Draw simulated fundus photographs for people to judge.

  python -m iqa_jax.simulation.gallery --output=gallery
  python -m iqa_jax.simulation.gallery --output=gallery \
    --real=~/eyeq/train --photographs=20

Writes contact sheets: adequate.png, faults.png (every fault at rising
severity; it counts as inadequate from 0.5 on), image_field.png (with the three
measured distances) and, with --real, beside_real.png, simulated and real
photographs side by side. --photographs writes that many single files and
labels.csv, as if downloaded, to try the export on; --pixel_labels writes what
each of their pixels is, as iqa_jax.evaluate_explanations reads it.
"""

from __future__ import annotations

from collections.abc import Sequence
import csv
import pathlib
from typing import TYPE_CHECKING

from absl import app, flags
import tqdm

from iqa_jax import command, errors

if TYPE_CHECKING:
  from matplotlib.figure import Figure
  import numpy as np

_OUTPUT = flags.DEFINE_string('output', None, 'folder to write to')
_REAL = flags.DEFINE_string('real', None, 'folder of real photographs')
_PHOTOGRAPHS = flags.DEFINE_integer(
  'photographs', 0, 'single photographs to write', lower_bound=0
)
_PIXEL_LABELS = flags.DEFINE_string(
  'pixel_labels', None, 'folder for an indexed PNG of each of --photographs'
)
_SIZE = flags.DEFINE_integer('size', 256, 'side in pixels', lower_bound=64)
_SEED = flags.DEFINE_integer('seed', 0, 'of the first', lower_bound=0)
_SEVERITIES = (0.15, 0.3, 0.5, 0.75, 1.0)


def main() -> None:
  if not _OUTPUT.value:
    raise app.UsageError('--output is needed')
  output = pathlib.Path(_OUTPUT.value).expanduser()
  output.mkdir(parents=True, exist_ok=True)
  if _PHOTOGRAPHS.value:
    _write_photographs(output, _PHOTOGRAPHS.value, _SIZE.value, _SEED.value)
    return
  sheets = {
    'adequate': _adequate,
    'faults': _faults,
    'image_field': _image_field,
  }
  for name, draw in sheets.items():
    figure = draw(_SIZE.value, _SEED.value)
    figure.savefig(output / f'{name}.png', dpi=100)
  if _REAL.value:
    real = pathlib.Path(_REAL.value).expanduser()
    figure = _beside_real(real, _SIZE.value, _SEED.value)
    figure.savefig(output / 'beside_real.png', dpi=100)
  print(f'{output}: {", ".join(sorted(p.name for p in output.glob("*.png")))}')


def _sheet(
  images: Sequence[np.ndarray],
  titles: Sequence[str],
  columns: int,
  headline: str,
) -> Figure:
  """Returns a matplotlib figure of images in rows."""
  from matplotlib import figure as figures

  rows = -(-len(images) // columns)
  sheet = figures.Figure(
    figsize=(1.9 * columns, 2.1 * rows + 0.5), layout='constrained'
  )
  sheet.suptitle(headline)
  for axes in (places := sheet.subplots(rows, columns, squeeze=False)).flat:
    axes.axis('off')
  for axes, image, title in zip(places.flat, images, titles, strict=False):
    axes.imshow(image)
    axes.set_title(title, fontsize=7)
  return sheet


def _adequate(size: int, seed: int) -> Figure:
  from iqa_jax.simulation import photograph

  drawn = [photograph.draw(seed + i, size) for i in range(24)]
  titles = [f'{d.eye}, {d.camera}, {d.age:.0f} years' for d in drawn]
  return _sheet(
    [d.image for d in drawn],
    titles,
    8,
    'Simulated: adequate by all four criteria, distractors included',
  )


def _faults(size: int, seed: int) -> Figure:
  import numpy as np

  from iqa_jax.simulation import faults, photograph

  images, titles = [], []
  for i, kind in enumerate(tqdm.tqdm(faults.CRITERION, 'faults', disable=None)):
    clean = photograph.draw(seed + i, size, distractors=False)
    for severity in _SEVERITIES:
      # The same random numbers at every severity: only that changes.
      rng = np.random.default_rng(seed + i)
      image, _ = faults.apply(clean.image, clean.inside, kind, severity, rng)
      images.append(image)
      titles.append(f'{kind} {severity:g}')
  return _sheet(
    images,
    titles,
    2 * len(_SEVERITIES),
    f'Simulated faults by severity; inadequate from {faults.THRESHOLD:g} on',
  )


def _image_field(size: int, seed: int) -> Figure:
  from iqa_jax.simulation import photograph

  drawn = [
    photograph.draw(
      seed + i,
      size,
      broken=('image_field',) if i % 2 else (),
      distractors=False,
    )
    for i in range(16)
  ]
  titles = []
  for d in drawn:
    m = d.measurement
    verdict = 'adequate' if m.adequate else 'INADEQUATE'
    titles.append(
      f'{verdict}: nasal {m.nasal:.1f}, temporal {m.temporal:.1f},\n'
      f'arcades {m.superior:.1f} and {m.inferior:.1f} DD'
    )
  return _sheet(
    [d.image for d in drawn],
    titles,
    8,
    'Simulated: the image field measured (disc diameters; '
    '1, 2 and 2 are needed)',
  )


def _beside_real(folder: pathlib.Path, size: int, seed: int) -> Figure:
  from iqa_jax.photograph import geometry, images
  from iqa_jax.simulation import photograph

  files = sorted(
    p for p in folder.rglob('*') if p.suffix.lower() in images.SUFFIXES
  )
  if not files:
    raise errors.UserError(f'there is no photograph in {folder}')
  files = files[:: max(1, len(files) // 12)][:12]
  shown, titles = [], []
  for i, path in enumerate(files):
    shown.append(geometry.prepare(images.read(path).pixels, size).image)
    titles.append('real')
    broken = ((), (), ('focus',), ('illumination',))[i % 4]
    shown.append(photograph.draw(seed + i, size, broken=broken).image)
    titles.append('simulated')
  return _sheet(shown, titles, 8, 'Real and simulated photographs')


def _write_photographs(
  output: pathlib.Path, count: int, size: int, seed: int
) -> None:
  from PIL import Image

  from iqa_jax import labels
  from iqa_jax.simulation import photograph, pixel_labels

  told = _PIXEL_LABELS.value and pathlib.Path(_PIXEL_LABELS.value).expanduser()
  if told:
    told.mkdir(parents=True, exist_ok=True)
  rows = []
  for i in tqdm.trange(count, desc='drawing', unit='photograph', disable=None):
    name = None if i % 2 else labels.CRITERIA[i // 2 % 4]
    drawn = photograph.draw(
      seed + i, size, broken=(name,) if name else (), patient=seed + i
    )
    file = f'simulated_{seed + i:07d}.jpg'
    Image.fromarray(drawn.image).save(output / file, quality=95)
    if told:
      pixels = pixel_labels.of_drawn(drawn)
      pixel_labels.write((told / file).with_suffix('.png'), pixels)
    rows.append(
      [file, labels.QUALITY[drawn.quality], drawn.eye]
      + [labels.QUALITY[c] for c in drawn.criteria]
    )
  with open(output / 'labels.csv', 'w', encoding='utf-8', newline='') as text:
    writer = csv.writer(text)
    writer.writerow(['image', 'quality', 'eye', *labels.CRITERIA])
    writer.writerows(rows)
  print(f'{output}: {count} simulated photographs and labels.csv')


if __name__ == '__main__':
  command.run(main)
