"""ROAD: removed pixels are guessed from their neighbours (Rong et al. 2022).

So the shape of the hole says little about what was removed.
"""

from __future__ import annotations

from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Integer, Real
import numpy as np

from iqa_jax.explain.faithfulness import order
from iqa_jax.explain.perturbation import Perturber

SHARES = (0.3, 0.7)  # of the pixels; the paper has nine
_NOISE = 0.01 * 255
# Of the imputation: sweeps a level of the first guess; V-cycles after it, and
# the steps of damped Jacobi before and after each level of one.
_SWEEPS, _CYCLES, _SMOOTHING, _DAMPING = 6, 6, 2, 0.75
_KERNEL = np.array([[1, 2, 1], [2, 0, 2], [1, 2, 1]], np.float32) / 12


def road(
  ask: Perturber,
  images: Real[np.ndarray, 'n h w c'],
  targets: Integer[np.ndarray, ' n'],
  maps: Real[np.ndarray, 'n h w'],
  *,
  shares: tuple[float, ...] = SHARES,
  seed: int = 0,
) -> Float[np.ndarray, ' n']:
  """Returns ROAD's combined measure [n] (Rong et al. 2022); more is better.

  Half the difference between the scores without the least and without the
  most relevant pixels, averaged over the shares removed. Removed pixels are
  imputed from their neighbours, so the shape of the hole says little.

  Args:
    ask: the network, usually a probability.
    images: [n, h, w, c] of 0..255; beyond the third channel nothing changes.
    targets: int [n].
    maps: [n, h, w].
    shares: of the pixels that are removed.
    seed: of the order among equals.
  """
  rng = np.random.default_rng(seed)

  def frames() -> Iterator[tuple[int, np.ndarray]]:
    for i in range(len(images)):
      rank = (order(maps[i], rng) + 0.5) / maps[i].size
      yield from ((i, rank > s) for s in shares)
      yield from ((i, rank < 1 - s) for s in shares)

  found = ask(imputed, (images,), targets, frames())
  most, least = found.reshape(len(images), 2, len(shares)).swapaxes(0, 1)
  return (least - most).mean(1) / 2


def imputed(
  images: Float[jax.Array, 'b h w c'],
  known: Bool[jax.Array, 'b h w'],
  numbers: Integer[jax.Array, ' b'],
) -> Float[jax.Array, 'b h w c']:
  """Returns images [b, h, w, c] whose unknown pixels are guessed, with noise.

  Args:
    images: of 0..255; only the first three channels change.
    known: bool [b, h, w].
    numbers: int [b], seeds of the noise.
  """
  colour = images[..., :3]
  keys = jax.vmap(jax.random.key)(numbers)
  noise = jax.vmap(lambda k: jax.random.normal(k, colour.shape[1:]))(keys)
  filled = impute(colour, known) + _NOISE * noise
  colour = jnp.where(known[..., None], colour, filled)
  return jnp.concatenate([colour, images[..., 3:]], -1)


@jax.jit
def impute(
  images: Float[jax.Array, 'n h w c'], known: Bool[jax.Array, 'n h w']
) -> Float[jax.Array, 'n h w c']:
  """Returns images whose unknown pixels are the mean of their neighbours.

  The linear system of ROAD (Rong et al. 2022, section 4.1): direct neighbours
  weigh 1/6, diagonal ones 1/12. Solved by multigrid (Briggs et al. 2000,
  chapter 3): from the coarsest level to the finest once, then V-cycles, until
  what is left is small beside the noise that `imputed` adds.

  Args:
    images: [n, h, w, c].
    known: bool [n, h, w]; at least one pixel of each image.
  """
  x, known = jnp.moveaxis(images, -1, 1), known[:, None]
  unknown = 1.0 - known
  x = jnp.where(known, x, _pyramid(x * known, known.astype(jnp.float32)))
  weight = _weight(x)

  def cycle(_: int, x: jax.Array) -> jax.Array:
    return x + _correction(unknown * (_neighbours(x) - weight * x), unknown)

  return jnp.moveaxis(jax.lax.fori_loop(0, _CYCLES, cycle, x), 1, -1)


def _neighbours(x: Float[jax.Array, 'n c h w']) -> Float[jax.Array, 'n c h w']:
  """Returns the weighted sum of the eight neighbours, 0 beyond the edges."""
  n, c, h, w = x.shape
  found = jax.lax.conv_general_dilated(
    x.reshape(n * c, 1, h, w), jnp.asarray(_KERNEL)[None, None], (1, 1), 'SAME',
    precision=jax.lax.Precision.HIGHEST,
  )  # fmt: skip
  return found.reshape(n, c, h, w)


def _weight(x: jax.Array) -> Float[jax.Array, '1 1 h w']:
  """Returns what the neighbours weigh together: 1, less at the edges."""
  return _neighbours(jnp.ones((1, 1, *x.shape[2:])))


def _correction(
  residual: Float[jax.Array, 'n c h w'], unknown: Float[jax.Array, 'n 1 h w']
) -> Float[jax.Array, 'n c h w']:
  """Returns a V-cycle's guess of what a residual lacks, 0 where all is known.

  Of a coarse pixel that has a known one under it nothing is asked, without
  which the cycle would diverge in narrow holes.
  """
  weight = _weight(residual)
  rate = _DAMPING * unknown / weight

  def left(x: jax.Array) -> jax.Array:
    return residual + _neighbours(x) - weight * x

  def smooth(_: int, x: jax.Array) -> jax.Array:
    return x + rate * left(x)

  x = jax.lax.fori_loop(1, _SMOOTHING, smooth, rate * residual)
  height, width = residual.shape[2:]
  if min(height, width) > 2:
    # Bilinear between the levels, [1 2 1] x [1 2 1] / 16 of doubled pixels.
    share = 3 * weight + 1
    fine = unknown * left(x) / share
    coarse = _halve(unknown, 1.0) == 4
    fine = _halve(3 * _neighbours(fine) + fine) * coarse
    found = _correction(fine, coarse.astype(jnp.float32))
    found = _double(found, height, width)
    x += unknown * (3 * _neighbours(found) + found) / share
  return jax.lax.fori_loop(0, _SMOOTHING, smooth, x)


def _halve(
  x: Float[jax.Array, 'n c h w'], beyond: float = 0.0
) -> Float[jax.Array, 'n c h2 w2']:
  """Returns the sums of 2 x 2 pixels, `beyond` outside the picture."""
  n, c, h, w = x.shape
  pads = ((0, 0), (0, 0), (0, h % 2), (0, w % 2))
  x = jnp.pad(x, pads, constant_values=beyond)
  return x.reshape(n, c, (h + 1) // 2, 2, (w + 1) // 2, 2).sum((3, 5))


def _double(
  x: Float[jax.Array, 'n c h2 w2'], height: int, width: int
) -> Float[jax.Array, 'n c h w']:
  return jnp.repeat(jnp.repeat(x, 2, 2), 2, 3)[:, :, :height, :width]


def _pyramid(
  values: Float[jax.Array, 'n c h w'], weights: Float[jax.Array, 'n 1 h w']
) -> Float[jax.Array, 'n c h w']:
  """Solves the system roughly, from the coarsest level to the finest.

  Args:
    values: [n, c, h, w], sums of the known pixels under each place.
    weights: [n, 1, h, w], their number.
  """
  height, width = values.shape[2:]
  mean, known = values / jnp.maximum(weights, 1e-9), weights > 0
  if height == width == 1:
    return mean
  coarse = _pyramid(_halve(values), _halve(weights))
  x = jnp.where(known, mean, _double(coarse, height, width))
  weight = _weight(x)

  def sweep(_: int, x: jax.Array) -> jax.Array:
    return jnp.where(known, mean, _neighbours(x) / weight)

  return jax.lax.fori_loop(0, _SWEEPS, sweep, x)
