"""Pooling as torchvision's; feature maps are NHWC."""

from __future__ import annotations

from collections.abc import Callable

from flax import linen as nn
import jax
from jax import lax
import jax.numpy as jnp
from jaxtyping import Float
import numpy as np

from iqa_jax.models import platforms
from iqa_jax.photograph.placement import Window


def max_pool(
  x: Float[jax.Array, 'b h w c'], window: Window
) -> Float[jax.Array, 'b rows columns c']:
  """Returns the maxima of square windows of x [b, h, w, c].

  Padding is -infinity on every side, so it never wins; the first of equal
  values gets the gradient, and NaN wins, as in torch.
  """
  size, stride, padding = window

  def pool(x: jax.Array) -> jax.Array:
    return nn.max_pool(
      x,
      window_shape=(size, size),
      strides=(stride, stride),
      padding=[(padding, padding)] * 2,
    )

  def running(x: jax.Array) -> jax.Array:
    # The gradient of XLA's pooling (select-and-scatter) takes 8 to 13 times as
    # long on a CPU as that of a running maximum over the windows' places.
    x = jnp.pad(
      x,
      [(0, 0), (padding, padding), (padding, padding), (0, 0)],
      constant_values=-jnp.inf,
    )
    ends = [length - size + 1 for length in x.shape[1:3]]
    best = jnp.full((), -jnp.inf, x.dtype)
    for i in range(size):
      for j in range(size):
        here = x[:, i : ends[0] + i : stride, j : ends[1] + j : stride]
        best = jnp.where((here > best) | jnp.isnan(here), here, best)
    return best

  if size == stride and not padding:
    return platforms.by_platform(
      pool, x, cpu=running, cuda=_tiled_max(pool, size)
    )
  return platforms.by_platform(pool, x, cpu=running)


def _tiled_max(
  pool: Callable[[jax.Array], jax.Array], size: int
) -> Callable[[jax.Array], jax.Array]:
  """Returns `pool` of windows that do not overlap, with a gradient of its own.

  XLA's for a GPU looks for places, as int32, and scatters to them; here every
  pixel asks whether it is the first that won its window.
  """

  def backward(
    kept: tuple[jax.Array, jax.Array], gradient: jax.Array
  ) -> tuple[jax.Array]:
    x, best = kept
    b, rows, columns, channels = best.shape
    tiles = x[:, : rows * size, : columns * size].reshape(
      b, rows, size, columns, size, channels
    )
    first = jnp.zeros(best.shape, jnp.int8)
    for place in reversed(range(size * size)):
      here = tiles[:, :, place // size, :, place % size]
      first = jnp.where((here == best) | jnp.isnan(here), place, first)
    places = jnp.arange(size * size).reshape(size, 1, size, 1)
    whole = jnp.where(
      places == first[:, :, None, :, None], gradient[:, :, None, :, None], 0
    ).reshape(b, rows * size, columns * size, channels)
    beyond = [(0, n - m) for n, m in zip(x.shape, whole.shape, strict=True)]
    return (jnp.pad(whole, beyond),)

  function = jax.custom_vjp(pool)
  function.defvjp(lambda x: ((best := pool(x)), (x, best)), backward)
  return function


def adaptive_average(
  x: Float[jax.Array, 'b h w c'], size: int
) -> Float[jax.Array, 'b size size c']:
  """Returns x [b, h, w, c] averaged to [b, size, size, c].

  The cells are those of torch.nn.AdaptiveAvgPool2d: cell i covers rows
  floor(i h / size) to ceil((i + 1) h / size); they overlap or repeat where
  size does not divide h.
  """
  if x.shape[1:3] == (size, size):
    return x
  rows = jnp.asarray(_cells(x.shape[1], size), x.dtype)
  columns = jnp.asarray(_cells(x.shape[2], size), x.dtype)
  return jnp.einsum(
    'bhwc,ih,jw->bijc', x, rows, columns, precision=lax.Precision.HIGHEST
  )


def _cells(length: int, size: int) -> np.ndarray:
  """Returns the averaging weights [size, length] of every cell."""
  i = np.arange(size)[:, None]
  first, end = i * length // size, -(-(i + 1) * length // size)
  at = np.arange(length)[None]
  return ((first <= at) & (at < end)) / (end - first)
