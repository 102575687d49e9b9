"""What storing photographs as JPEG does to the labels' evidence.

On a folder of EyeQ's layout: the prepared photograph before it is stored and
after, by measures that need no network, beside how much photographs differ by
themselves. `--quality=75 --chroma=2` shows what a careless choice would do.
"""

from __future__ import annotations

import io
import sys

from tests.benchmarks import common


def run(
  *,
  smoke: bool = False,
  folder: str = '',
  quality: int = 0,
  chroma: int = 0,
  size: int = 512,
) -> list[common.Row]:
  """Measures every photograph of `folder` (default: the shared sample).

  Args:
    smoke: few photographs.
    folder: of EyeQ's layout.
    quality: JPEG quality; 0 for what iqa_jax stores.
    chroma: 0 keeps chroma at full resolution, 2 halves it both ways.
    size: of the network's input, to which both are resized before they are
      measured.
  """
  import os

  import numpy as np
  from PIL import Image
  from sklearn import metrics

  from iqa_jax import machine
  from iqa_jax.data import records
  from iqa_jax.data.eyeq import labels
  from iqa_jax.photograph import images, prepare

  shared = os.environ.get('IQA_SHARED', str(common.ROOT.parent / 'shared'))
  splits = labels.entries(folder or f'{shared}/data/eyeq_sample')
  entries = [e for rows in splits.values() for e in rows if e.path]
  if smoke:
    entries = entries[:: len(entries) // 12]

  def stored(pixels):
    if not quality:
      return np.asarray(Image.open(records.encode(pixels)))
    file = io.BytesIO()
    Image.fromarray(pixels).save(
      file, 'JPEG', quality=quality, subsampling=chroma
    )
    return np.asarray(Image.open(file))

  def measured(entry):
    photograph = images.read(entry.path)
    prepared = prepare.stored(photograph.image, prepare.SIZE)
    inside = prepared.inside
    before, after = (
      prepare.resize(pixels, size)
      for pixels in (prepared.image, stored(prepared.image))
    )
    if size != prepare.SIZE:
      inside = np.asarray(Image.fromarray(inside).resize((size, size)))
    off = np.abs(before.astype(float) - after)[inside]
    return (
      _evidence(before, inside),
      _evidence(after, inside),
      [off.mean(), np.quantile(off, 0.999)],
    )

  results = list(machine.in_threads(measured, entries))
  before, after, off = (np.array(r) for r in zip(*results, strict=True))
  bad = [e.metadata['grade'] > 0 for e in entries]
  rows = [
    common.Row('mean difference of a pixel', list(off[:, 0]), 'levels'),
    common.Row('99.9 % quantile of it', list(off[:, 1]), 'levels'),
  ]
  for i, name in enumerate(_NAMES):
    change = np.abs(after[:, i] - before[:, i]) / before[:, i].std()
    rows.append(
      common.Row(f'{name}: change', list(change), 'SD between photographs')
    )
    auc = [metrics.roc_auc_score(bad, x[:, i]) for x in (before, after)]
    auc = [max(a, 1 - a) for a in auc]
    rows.append(
      common.Row(
        f'{name}: AUC for Usable or Reject, stored',
        auc[1:],
        'x',
        peer='not stored',
        peer_values=auc[:1],
      )
    )
  return rows


_NAMES = (
  'sharpness (log SD of the Laplacian)',
  'brightness (mean green)',
  'contrast (SD of green)',
  'hue (mean red - blue)',
)


def _evidence(image, inside):
  import numpy as np
  from scipy import ndimage

  # The rim is the sharpest edge of all and is no evidence.
  core = ndimage.binary_erosion(inside, iterations=len(image) // 40)
  level = image.astype(np.float64)
  green = level[..., 1]
  return [
    np.log(ndimage.laplace(green)[core].std() + 0.1),
    green[core].mean(),
    green[core].std(),
    (level[..., 0] - level[..., 2])[core].mean(),
  ]


if __name__ == '__main__':
  sys.exit(common.main(run))
