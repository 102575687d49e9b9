"""What each pixel of a photograph is, and how well a map ranks them.

One indexed PNG a photograph, of its stem, as in FunPiQ (MICCAI 2026): 0
background, 1 good, 2 usable, 3 bad. Planted and simulated faults are told in
the same way (simulation.pixel_labels), so that all are measured alike.
"""

from __future__ import annotations

import os
import pathlib

import numpy as np
from PIL import Image
from sklearn import metrics

from iqa_jax import errors
from iqa_jax.explain import scaling
from iqa_jax.simulation.pixel_labels import BACKGROUND, BAD, GOOD, USABLE

_ASPECT = 0.01  # relative difference of aspect ratios that is still rounding
_GRID = 112  # rankings look at about so many pixels along a side
_LEAST = 10  # pixels of either kind, of that grid


def path(folder: pathlib.Path, photograph: str | os.PathLike) -> pathlib.Path:
  """Returns where the pixels of a photograph are told: FOLDER/STEM.png."""
  return folder / f'{pathlib.Path(photograph).stem}.png'


def read(file: str | os.PathLike) -> np.ndarray:
  """Returns what the pixels are, uint8 [h, w].

  Raises:
    UserError: the file is no indexed or grey PNG of 0 to 3.
  """
  with Image.open(file) as image:
    if image.mode not in ('P', 'L', '1', 'I', 'I;16'):
      raise errors.UserError(
        f'{file}: expected an indexed PNG, one number a pixel; found '
        f'mode {image.mode}'
      )
    labels = np.asarray(image)
  if labels.max() > BAD:
    raise errors.UserError(
      f'{file}: expected 0 background, 1 good, 2 usable, 3 bad; found '
      f'{labels.max()}'
    )
  return labels.astype(np.uint8)


def prepared(
  labels: np.ndarray, photograph: tuple[int, int], affine: np.ndarray, size: int
) -> np.ndarray:
  """Returns what the pixels of the prepared photograph are, [size, size].

  Each is what the pixel is that its centre lies in; beyond the photograph it
  is background.

  Args:
    labels: uint8 [h, w], of the photograph's size or of its shape.
    photograph: width and height of the photograph.
    affine: prepared pixels -> pixels of the photograph, geometry.Prepared's.
    size: side of the prepared photograph.

  Raises:
    UserError: the labels are of another shape than the photograph.
  """
  width, height = photograph
  scale = np.asarray([labels.shape[1] / width, labels.shape[0] / height])
  if abs(scale[0] / scale[1] - 1) > _ASPECT:
    raise errors.UserError(
      f'pixel labels of {labels.shape[1]} x {labels.shape[0]} pixels are not '
      f'of a photograph of {width} x {height}'
    )
  at = np.arange(size) + 0.5
  x = (affine[0, 0] * at + affine[0, 2]) * scale[0]
  y = (affine[1, 1] * at + affine[1, 2]) * scale[1]
  return nearest(labels, x, y)


def nearest(
  labels: np.ndarray, x: np.ndarray, y: np.ndarray | None = None
) -> np.ndarray:
  """Returns labels [len(y), len(x)] at points; background beyond the edges.

  Args:
    labels: uint8 [h, w].
    x: of the points, in continuous pixels.
    y: likewise; None: the same.
  """
  columns = np.floor(x).astype(int)
  rows = columns if y is None else np.floor(y).astype(int)
  h, w = labels.shape
  there = ((rows >= 0) & (rows < h))[:, None] & (columns >= 0) & (columns < w)
  found = labels[np.clip(rows, 0, h - 1)][:, np.clip(columns, 0, w - 1)]
  return np.where(there, found, BACKGROUND).astype(np.uint8)


def rank(maps: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
  """Returns how well maps rank the pixels of the field, per photograph.

  Equal values are ties: a constant map's area under the curve is 0.5. An empty
  map (no positive evidence), or one that is not finite, is a constant one.
  Looked at are pixels of a regular grid, about 112 along a side.

  Args:
    maps: [n, h, w], as large as the photographs.
    labels: uint8 [n, h, w], what the pixels are.

  Returns:
    'auc' and 'average_precision' of bad against good pixels (usable ones left
    out), 'auc_usable' and 'average_precision_usable' of usable and bad ones
    against good ones, and 'bad', the share of bad ones among those that the
    first two look at; float [n], NaN without enough pixels of both kinds.
  """
  step = max(1, round(labels.shape[1] / _GRID))
  first = step // 2
  thin = np.asarray(maps)[:, first::step, first::step]
  dense = labels[:, first::step, first::step]
  status = scaling.status(maps)
  names = ('auc', 'average_precision', 'auc_usable', 'average_precision_usable')
  found = {name: np.full(len(maps), np.nan) for name in (*names, 'bad')}
  for i in range(len(maps)):
    values = thin[i] if status[i] == 'ok' else np.zeros_like(thin[i])
    for suffix, threshold in (('', BAD), ('_usable', USABLE)):
      wrong = dense[i] >= threshold
      seen = wrong | (dense[i] == GOOD)
      # Both are the same where no pixel is merely usable, as in planted faults.
      if threshold == BAD or (dense[i] == USABLE).any():
        area, precision = _curves(wrong[seen], values[seen])
      found[f'auc{suffix}'][i] = area
      found[f'average_precision{suffix}'][i] = precision
      if not suffix and np.isfinite(area):
        found['bad'][i] = wrong[seen].mean()
  return found


def _curves(wrong: np.ndarray, values: np.ndarray) -> tuple[float, float]:
  """Returns the areas under the ROC and the precision-recall curve.

  Both of one sorting, scikit-learn's; the second as average_precision_score
  has it: precision, weighted by what each threshold adds to recall.
  """
  bad, good = int(wrong.sum()), int((~wrong).sum())
  if min(bad, good) < _LEAST:
    return np.nan, np.nan
  false, true, _ = metrics.roc_curve(wrong, values, drop_intermediate=False)
  hits, alarms = true[1:] * bad, false[1:] * good
  precision = hits / (hits + alarms)
  return float(metrics.auc(false, true)), float(np.diff(true) @ precision)
