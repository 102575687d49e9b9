"""Explanations without gradients: cover parts of the photograph, and look.

They see the network from outside only, so they check the maps of cam.py. Both
take a `Score`, any function from images to numbers, and return signed maps:
positive where the photograph speaks for the target.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import ndimage

from iqa_jax import errors
from iqa_jax.explain import cam

# (images float32 [n, h, w, 3] of 0..255, targets int [n]) -> float [n].
Score = Callable[[np.ndarray, np.ndarray], np.ndarray]

# What stands where the photograph has been taken away. Darkness and blur are
# themselves faults of a photograph, so none of them is neutral: say which.
BASELINES = ('zero', 'blur', 'mean')
_BLUR = 0.05  # standard deviation, as a share of the image's side
_CHUNK = 64


def baseline(images: np.ndarray, inside: np.ndarray, kind: str) -> np.ndarray:
  """Returns images [n, h, w, 3] with nothing left to see in them.

  Args:
    images: [n, h, w, 3] of 0..255.
    inside: bool [n, h, w], the field of view.
    kind: 'zero' (black), 'blur' (Gaussian, a twentieth of the side) or 'mean'
      (the mean colour of the field, everywhere in the field; black outside).

  Raises:
    ValueError: no such baseline.
  """
  images = np.asarray(images, np.float32)
  if kind == 'zero':
    return np.zeros_like(images)
  if kind == 'blur':
    sigma = _BLUR * images.shape[1]
    return ndimage.gaussian_filter(images, (0, sigma, sigma, 0))
  if kind == 'mean':
    weights = np.asarray(inside, np.float32)[..., None]
    total = np.maximum(weights.sum((1, 2), keepdims=True), 1)
    return weights * ((images * weights).sum((1, 2), keepdims=True) / total)
  raise errors.InvalidValue(
    f'baseline {kind!r} is none of {", ".join(BASELINES)}'
  )


def occlusion(
  score: Score,
  images: np.ndarray,
  targets: np.ndarray,
  fill: np.ndarray,
  *,
  cells: int = 14,
  window: float = 2.0,
) -> np.ndarray:
  """Returns how much the score falls when a window is covered.

  Args:
    score: the network, from outside.
    images: [n, h, w, 3] of 0..255.
    targets: int [n].
    fill: what covers, of the shape of `images` (see `baseline`).
    cells: the map's cells along each side.
    window: the window's side in cells; it is centred on its cell.

  Returns:
    float32 [n, cells, cells]. Zeiler and Fergus 2014, section 4.2.
  """
  height, width = images.shape[1:3]
  centres = (np.arange(cells) + 0.5) / cells
  reach = window / (2 * cells)
  low = np.maximum(centres - reach, 0)
  high = np.minimum(centres + reach, 1)
  rows = np.stack([np.round(low * height), np.round(high * height)], 1)
  columns = np.stack([np.round(low * width), np.round(high * width)], 1)
  maps = np.empty((len(images), cells * cells), np.float32)
  before = score(np.asarray(images, np.float32), targets)
  for i, image in enumerate(np.asarray(images, np.float32)):
    for first in range(0, cells * cells, _CHUNK):
      block = range(first, min(first + _CHUNK, cells * cells))
      covered = np.repeat(image[None], len(block), 0)
      for number, cell in enumerate(block):
        top, bottom = rows[cell // cells].astype(int)
        left, right = columns[cell % cells].astype(int)
        covered[number, top:bottom, left:right] = fill[
          i, top:bottom, left:right
        ]
      after = score(covered, np.repeat(targets[i], len(block)))
      maps[i, first : first + len(block)] = before[i] - after
  return maps.reshape(-1, cells, cells)


def rise(
  score: Score,
  images: np.ndarray,
  targets: np.ndarray,
  fill: np.ndarray,
  *,
  masks: int = 512,
  cells: int = 7,
  keep: float = 0.5,
  seed: int = 0,
) -> np.ndarray:
  """Returns the mean score when a pixel is kept, less the mean of all scores.

  Petsiuk et al. 2018, equation 6, with the observed instead of the expected
  number of masks that keep a pixel; subtracting the mean score makes the map
  signed and leaves the ranking of the pixels as it is.

  Args:
    score: the network, from outside.
    images: [n, h, w, 3] of 0..255.
    targets: int [n].
    fill: what stands where a mask removes, of the shape of `images`.
    masks: how many random masks.
    cells: the random grid's cells along each side.
    keep: the probability that a cell is kept.
    seed: of the masks, which are the same for all images.

  Returns:
    float32 [n, h, w].
  """
  size = images.shape[1:3]
  rng = np.random.default_rng(seed)
  maps = np.zeros((len(images), *size), np.float64)
  kept = np.zeros(size, np.float64)
  scores = np.zeros(len(images))
  for first in range(0, masks, _CHUNK):
    count = min(_CHUNK, masks - first)
    mask = _rise_masks(rng, count, size, cells, keep)
    kept += mask.sum(0)
    for i in range(len(images)):
      light = mask[..., None]
      seen = images[i] * light + fill[i] * (1 - light)
      values = np.asarray(
        score(seen.astype(np.float32), np.repeat(targets[i], count)), np.float64
      )
      maps[i] += np.einsum('m,mhw->hw', values, mask)
      scores[i] += values.sum()
  maps /= np.maximum(kept, 1e-9)
  return (maps - scores[:, None, None] / masks).astype(np.float32)


def _rise_masks(rng, count, size, cells, keep):
  """Returns smooth random masks [count, *size] of 0..1, randomly shifted."""
  cell = [-(-length // cells) for length in size]
  grid = (rng.random((count, cells + 1, cells + 1)) < keep).astype(np.float32)
  large = cam.enlarge(grid, tuple((cells + 1) * c for c in cell))
  top = rng.integers(0, cell[0], count)
  left = rng.integers(0, cell[1], count)
  return np.stack(
    [
      m[t : t + size[0], x : x + size[1]]
      for m, t, x in zip(large, top, left, strict=True)
    ]
  )
