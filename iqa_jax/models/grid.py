"""A grid of cells over a photograph, and what feature maps show in each.

Cells share the photograph evenly; features look where their network's windows
do (photograph/placement.py), and count by the area that both have in common.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from flax import linen as nn
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from iqa_jax.photograph.placement import Placement, Window, evenly

FLOOR = 1e-3  # of the field's share: a photograph without a field has no map


def features(
  x: jax.Array,
  cells: int | tuple[int, int],
  placement: Placement | None,
  size: Sequence[int],
) -> jax.Array:
  """Returns what a feature map shows in each cell, float32 and 0 or more.

  Of every channel the average over the cell and, of maps that are finer than
  the grid, the largest value in it, by which a hair is told from a shade.

  Args:
    x: [b, h, w, c]; the rest as of `shared_area`.
    cells: of the grid, along each side of the picture, or its height and width.
    placement: where the features look.
    size: height and width of the picture in pixels.

  Returns:
    [b, cells, cells, c], or of finer maps [b, cells, cells, 2 c].
  """
  x = nn.relu(x.astype(jnp.float32))
  average = shared_area(x, cells, placement, size)
  if x.shape[1] <= average.shape[1]:
    return average
  return jnp.concatenate([average, largest(x, cells, placement, size)], -1)


def features_by_strips(
  layer: Callable[[jax.Array], jax.Array],
  x: jax.Array,
  cells: int,
  window: Window,
) -> jax.Array:
  """Returns `features` of layer(x), a strip of a photograph at a time.

  The layer's map of a whole batch is never stored: a CPU pools each strip
  while it lies in its cache, in half of the time.

  Args:
    layer: a convolution by `window`, and what follows it pixel by pixel.
    x: images [b, h, w, c]; cells divide h and w (`in_strips`).
    cells: of the grid, along each side.
    window: of stride 1, padded so that the map is as large as the image.
  """
  b, h, w, channels = x.shape
  rows = 2 if cells % 2 == 0 else 1  # of cells in a strip; two are fastest
  high, strips, beyond = h // cells * rows, cells // rows, window.padding
  padded = jnp.pad(x, [(0, 0), (beyond, beyond), (0, 0), (0, 0)])

  def one(number: jax.Array) -> jax.Array:
    photograph, strip = number // strips, number % strips
    start = (photograph, strip * high, 0, 0)
    part = lax.dynamic_slice(padded, start, (1, high + 2 * beyond, w, channels))
    seen = layer(part)[:, beyond : beyond + high]
    return features(seen, (rows, cells), None, seen.shape[1:3])

  found = lax.map(one, jnp.arange(b * strips))
  return found.reshape(b, cells, cells, -1)


def in_strips(
  windows: Sequence[Window], cells: int, size: Sequence[int]
) -> bool:
  """Returns whether `features_by_strips` serves such a layer and picture."""
  same = [w for w in windows if w.stride == 1 and w.size == 2 * w.padding + 1]
  fits = all(side % cells == 0 and side > cells for side in size)
  return len(same) == len(windows) == 1 and fits


def shared_area(
  x: jax.Array,
  cells: int | tuple[int, int],
  placement: Placement | None = None,
  size: Sequence[int] = (1, 1),
) -> jax.Array:
  """Returns x [b, h, w, c] averaged over cells, [b, cells, cells, c].

  A feature counts by the area that the square in which it looks has in common
  with the cell, so grids needn't divide each other.

  Args:
    x: feature maps.
    cells: of the grid, along each side of the picture, or its height and width.
    placement: where the features look, in pixels; None: they share the
      picture evenly.
    size: height and width of the picture in pixels.
  """
  shape, placed = _shape(cells), _placed(x, placement, size)
  if (blocks := _blocks(x, shape, placed, size)) is not None:
    return blocks.mean((2, 4))
  rows, columns = (
    jnp.asarray(_overlap(s, n, count, p), x.dtype)
    for s, n, count, p in zip(size, x.shape[1:3], shape, placed, strict=True)
  )
  return weighed(x, rows, columns)


def largest(
  x: jax.Array,
  cells: int | tuple[int, int],
  placement: Placement | None = None,
  size: Sequence[int] = (1, 1),
) -> jax.Array:
  """Returns the largest of x [b, h, w, c] in each cell, [b, cells, cells, c].

  Of all features that look into it; arguments as of `shared_area`.
  """
  shape, placed = _shape(cells), _placed(x, placement, size)
  if (blocks := _blocks(x, shape, placed, size)) is not None:
    return blocks.max((2, 4))
  grid = zip(size, shape, placed, strict=True)
  for axis, (side, count, looks) in enumerate(grid, 1):
    length = x.shape[axis]
    overlap = _overlap(side, length, count, looks)
    # Those that look elsewhere are passed over for the one that looks most.
    nearest = overlap.argmax(1)[:, None]
    near = np.where(overlap > 1e-6, np.arange(length), nearest)
    most = int((overlap > 1e-6).sum(1).max())
    # In order of what they share, so that the first `most` are all that look.
    order = np.argsort(-overlap, axis=1, kind='stable')[:, :most]
    chosen = np.take_along_axis(near, order, axis=1)
    x = jnp.take(x, chosen, axis=axis).max(axis + 1)
  return x


def _shape(cells: int | tuple[int, int]) -> tuple[int, int]:
  return (cells, cells) if isinstance(cells, int) else cells


def _placed(
  x: jax.Array, placement: Placement | None, size: Sequence[int]
) -> list[Placement]:
  """Returns where rows and columns of x [b, h, w, c] look."""
  lengths = zip(size, x.shape[1:3], strict=True)
  return [placement or evenly(side, count) for side, count in lengths]


def _blocks(
  x: jax.Array,
  shape: tuple[int, int],
  placed: list[Placement],
  size: Sequence[int],
) -> jax.Array | None:
  """Returns x as [b, rows, n, columns, m, c]; None if cells cut features."""
  b, *lengths, c = x.shape
  grid = zip(size, lengths, shape, placed, strict=True)
  for side, length, count, placement in grid:
    if length % count or placement != evenly(side, length):
      return None
  (rows, columns), (h, w) = shape, lengths
  return x.reshape(b, rows, h // rows, columns, w // columns, c)


def inside(
  x: jax.Array, field: jax.Array, placement: Placement | None
) -> jax.Array:
  """Returns a map x [b, h, w, c] whose average is that inside the field.

  Features count by their share of the field, over the field's share of all.

  Args:
    x: a feature map.
    field: [b, s, s] in 0..1, the field of view.
    placement: as of `shared_area`.
  """
  # Which feature each pixel belongs to, by rows and by columns.
  rows, columns = (
    jnp.asarray(_overlap(s, n, s, placement or evenly(s, n)).T, jnp.float32)
    for s, n in zip(field.shape[1:], x.shape[1:3], strict=True)
  )
  rows, columns = (r / r.sum(1, keepdims=True) for r in (rows, columns))
  share = jnp.einsum(
    'bhw,ih,jw->bij', field, rows, columns, precision=lax.Precision.HIGHEST
  )
  mean = jnp.maximum(share.mean((1, 2), keepdims=True), FLOOR)
  return x * (share / mean)[..., None].astype(x.dtype)


def weighed(
  x: jax.Array, rows: jax.typing.ArrayLike, columns: jax.typing.ArrayLike
) -> jax.Array:
  """Returns x [b, h, w, c] summed by weights [i, h], [j, w]: [b, i, j, c]."""
  return jnp.einsum(
    'bhwc,ih,jw->bijc', x, rows, columns, precision=lax.Precision.HIGHEST
  )


def _overlap(
  side: float, length: int, cells: int, placement: Placement
) -> np.ndarray:
  """Returns the share [cells, length] of each cell that each feature covers."""
  edges = np.arange(cells + 1) * side / cells
  first = placement.offset + placement.stride * (np.arange(length) - 0.5)
  last = first + placement.stride
  # The outermost look after what lies beyond them.
  first[0], last[-1] = min(first[0], 0.0), max(last[-1], side)
  common = np.minimum(edges[1:, None], last) - np.maximum(
    edges[:-1, None], first
  )
  common = np.maximum(common, 0.0)
  return common / common.sum(1, keepdims=True)
