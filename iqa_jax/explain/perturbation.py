"""Perturbed photographs, and explanations that need nothing else.

`Perturber` is the one place where photographs are changed and looked at again:
what is kept of them goes to the device as a mask, where the picture is put
together and judged, always in batches of one size. Occlusion and RISE see the
network from outside only, so they check the maps of cam.py; both return signed
maps, positive where the photograph speaks for the target.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
import functools
import itertools

import jax
import jax.numpy as jnp
from jaxtyping import Float, Integer, Real, Shaped
import numpy as np
from scipy import ndimage

from iqa_jax import devices, errors
from iqa_jax.explain import scaling

# (images float32 [b, h, w, c] of 0..255, targets int [b]) -> float [b], in
# JAX; c is 3, or 4 of networks that take the field of view.
Score = Callable[[jax.Array, jax.Array], jax.Array]
# (arrays' rows [b, ...]..., masks [b, h, w], numbers [b]) -> images.
Compose = Callable[..., jax.Array]

# What stands where the photograph has been taken away. Darkness and blur are
# themselves faults of a photograph, so none of them is neutral: say which.
BASELINES = ('zero', 'blur', 'mean')
OCCLUSION_CELLS, RISE_MASKS = 14, 512
_BLUR = 0.05  # standard deviation, as a share of the image's side
_CHUNK = 64  # masks of RISE held at a time


class Perturber:
  """Scores perturbed photographs, in batches of one size on the device.

  Args:
    score: the network; a jax.tree_util.Partial where it holds weights.
    batch_size: frames at a time.
    tick: called with the number of frames whenever some are done.
  """

  def __init__(
    self,
    score: Score,
    *,
    batch_size: int = 16,
    tick: Callable[[int], object] = lambda count: None,
  ):
    whole = isinstance(score, jax.tree_util.Partial)
    self._score = score if whole else jax.tree_util.Partial(score)
    self._batch_size, self._tick = batch_size, tick

  def __call__(
    self,
    compose: Compose,
    arrays: tuple[np.ndarray, ...],
    targets: Integer[np.ndarray, ' n'],
    frames: Iterable[tuple[int, np.ndarray]],
  ) -> Float[np.ndarray, ' frames']:
    """Returns the scores of all frames, in order, float32.

    Args:
      compose: a pure function that makes frames (`blend`, road.imputed).
      arrays: what it makes them of, [n, ...] each.
      targets: int [n].
      frames: (which of the n photographs, mask [h, w]), one a frame.
    """
    placed = tuple(jnp.asarray(a, jnp.float32) for a in arrays)
    wanted = jnp.asarray(targets, jnp.int32)
    frames, size = iter(frames), self._batch_size
    found: list[np.ndarray] = []

    def begun() -> Iterator[tuple[jax.Array, int]]:
      numbers = np.arange(size)
      while rows := list(itertools.islice(frames, size)):
        count = len(rows)
        rows += rows[:1] * (size - count)
        which = np.asarray([i for i, _ in rows], np.int32)
        masks = np.stack([mask for _, mask in rows])
        scores = _scores(
          compose, self._score, placed, which, wanted, masks, numbers
        )
        yield scores, count
        numbers = numbers + size

    for scores, count in devices.ahead(begun(), 1):
      found.append(np.asarray(scores)[:count])
      self._tick(count)
    return np.concatenate(found) if found else np.zeros(0, np.float32)

  def plain(
    self,
    images: Real[np.ndarray, 'n h w c'],
    targets: Integer[np.ndarray, ' n'],
  ) -> Float[np.ndarray, ' n']:
    """Returns the scores [n] of images [n, h, w, c] as they are."""
    whole = np.ones(images.shape[1:3], bool)
    frames = ((i, whole) for i in range(len(images)))
    return self(blend, (images, images), targets, frames)


@functools.partial(jax.jit, static_argnums=0)
def _scores(
  compose: Compose,
  score: Score,
  arrays: tuple[jax.Array, ...],
  which: jax.Array,
  targets: jax.Array,
  masks: jax.Array,
  numbers: jax.Array,
) -> jax.Array:
  frames = compose(*(a[which] for a in arrays), masks, numbers)
  return score(frames, targets[which])


def blend(
  images: Float[jax.Array, 'b h w c'],
  other: Float[jax.Array, 'b h w c'],
  keep: Shaped[jax.Array, 'b h w'],
  numbers: Integer[jax.Array, ' b'],
) -> Float[jax.Array, 'b h w c']:
  """Returns `images` as far as `keep` [b, h, w] of 0..1 says, else `other`."""
  del numbers
  keep = keep[..., None].astype(jnp.float32)
  return keep * images + (1 - keep) * other


def baseline(
  images: Real[np.ndarray, 'n h w c'],
  inside: Shaped[np.ndarray, 'n h w'],
  kind: str,
) -> Float[np.ndarray, 'n h w c']:
  """Returns images with nothing left to see in them, float32.

  Args:
    images: [n, h, w, c] of 0..255; beyond the third channel (the field of view)
      nothing changes.
    inside: bool [n, h, w], the field of view.
    kind: 'zero' (black), 'blur' (Gaussian, a twentieth of the side) or 'mean'
      (the mean colour of the field, everywhere in the field; black outside).

  Raises:
    ValueError: no such baseline.
  """
  errors.one_of('baseline', kind, BASELINES)
  images = np.asarray(images, np.float32)
  colour, rest = images[..., :3], images[..., 3:]
  if kind == 'zero':
    empty = np.zeros_like(colour)
  elif kind == 'blur':
    sigma = _BLUR * images.shape[1]
    empty = ndimage.gaussian_filter(colour, (0, sigma, sigma, 0))
  else:
    weights = np.asarray(inside, np.float32)[..., None]
    total = np.maximum(weights.sum((1, 2), keepdims=True), 1)
    empty = weights * ((colour * weights).sum((1, 2), keepdims=True) / total)
  return np.concatenate([empty, rest], -1)


def occlusion(
  ask: Perturber,
  images: Real[np.ndarray, 'n h w c'],
  targets: Integer[np.ndarray, ' n'],
  fill: Real[np.ndarray, 'n h w c'],
  *,
  cells: int = OCCLUSION_CELLS,
  window: float = 2.0,
) -> Float[np.ndarray, 'n cells cells']:
  """Returns how much the score falls when a window is covered.

  Args:
    ask: the network, from outside.
    images: [n, h, w, c] of 0..255.
    targets: int [n].
    fill: what covers, of the shape of `images` (see `baseline`).
    cells: the map's cells along each side.
    window: the window's side in cells; it is centred on its cell.

  Returns:
    float32 [n, cells, cells]. Zeiler and Fergus 2014, section 4.2.
  """
  size = images.shape[1:3]
  centres = (np.arange(cells) + 0.5) / cells
  reach = window / (2 * cells)
  ends = np.stack(
    [np.maximum(centres - reach, 0), np.minimum(centres + reach, 1)], 1
  )
  rows, columns = (np.round(ends * length).astype(int) for length in size)
  keep = np.ones((1 + cells * cells, *size), bool)
  for cell in range(cells * cells):
    top, bottom = rows[cell // cells]
    left, right = columns[cell % cells]
    keep[1 + cell, top:bottom, left:right] = False
  frames = ((i, mask) for i in range(len(images)) for mask in keep)
  found = ask(blend, (images, fill), targets, frames).reshape(len(images), -1)
  return (found[:, :1] - found[:, 1:]).reshape(-1, cells, cells)


def rise(
  ask: Perturber,
  images: Real[np.ndarray, 'n h w c'],
  targets: Integer[np.ndarray, ' n'],
  fill: Real[np.ndarray, 'n h w c'],
  *,
  masks: int = RISE_MASKS,
  cells: int = 7,
  keep: float = 0.5,
  seed: int = 0,
) -> Float[np.ndarray, 'n h w']:
  """Returns the mean score when a pixel is kept, less the mean of all scores.

  Petsiuk et al. 2018, equation 6, with the observed instead of the expected
  number of masks that keep a pixel; subtracting the mean score makes the map
  signed and leaves the ranking of the pixels as it is.

  Args:
    ask: the network, from outside.
    images: [n, h, w, c] of 0..255.
    targets: int [n].
    fill: what stands where a mask removes, of the shape of `images`.
    masks: how many random masks.
    cells: the random grid's cells along each side.
    keep: the probability that a cell is kept.
    seed: of the masks, which are the same for all images.

  Returns:
    float32 [n, h, w].
  """
  size, count = images.shape[1:3], len(images)
  rng = np.random.default_rng(seed)
  maps = np.zeros((count, *size), np.float64)
  kept = np.zeros(size, np.float64)
  scores = np.zeros(count)
  for first in range(0, masks, _CHUNK):
    mask = _rise_masks(rng, min(_CHUNK, masks - first), size, cells, keep)
    kept += mask.sum(0)
    frames = ((i, one) for i in range(count) for one in mask)
    values = ask(blend, (images, fill), targets, frames).astype(np.float64)
    values = values.reshape(count, len(mask))
    maps += np.tensordot(values, mask, 1)
    scores += values.sum(1)
  maps /= np.maximum(kept, 1e-9)
  return (maps - scores[:, None, None] / masks).astype(np.float32)


def _rise_masks(
  rng: np.random.Generator,
  count: int,
  size: tuple[int, int],
  cells: int,
  keep: float,
) -> np.ndarray:
  """Returns smooth random masks [count, *size] of 0..1, randomly shifted."""
  cell = [-(-length // cells) for length in size]
  grid = (rng.random((count, cells + 1, cells + 1)) < keep).astype(np.float32)
  large = scaling.enlarge(grid, ((cells + 1) * cell[0], (cells + 1) * cell[1]))
  top = rng.integers(0, cell[0], count)
  left = rng.integers(0, cell[1], count)
  return np.stack(
    [
      m[t : t + size[0], x : x + size[1]]
      for m, t, x in zip(large, top, left, strict=True)
    ]
  )
