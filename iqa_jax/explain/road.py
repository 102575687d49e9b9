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
# Of the imputation: sweeps a level, then steps on the finest.
_SMOOTHING, _CG_STEPS = 6, 100


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
  weigh 1/6, diagonal ones 1/12. Solved by conjugate gradients, which a
  pyramid of averages of the known pixels starts close to the solution.

  Args:
    images: [n, h, w, c].
    known: bool [n, h, w]; at least one pixel of each image.
  """
  known = known[..., None]
  seen = jnp.where(known, images, 0)
  weight = _neighbours(jnp.ones((1, *images.shape[1:3], 1)))

  def system(x: jax.Array) -> jax.Array:
    return jnp.where(known, 0, weight * x - _neighbours(x))

  start = jnp.where(known, 0, _pyramid(seen, known.astype(jnp.float32)))
  right = jnp.where(known, 0, _neighbours(seen))
  solution, _ = jax.scipy.sparse.linalg.cg(
    system, right, start, tol=1e-4, maxiter=_CG_STEPS
  )
  return jnp.where(known, images, solution)


def _neighbours(x: Float[jax.Array, 'n h w c']) -> Float[jax.Array, 'n h w c']:
  """Returns the weighted sum of the eight neighbours, 0 beyond the edges."""
  # The 3x3 kernel [1 2 1] x [1 2 1] / 12, less its centre.
  wide = jnp.pad(x, ((0, 0), (0, 0), (1, 1), (0, 0)))
  wide = wide[:, :, :-2] + 2 * wide[:, :, 1:-1] + wide[:, :, 2:]
  tall = jnp.pad(wide, ((0, 0), (1, 1), (0, 0), (0, 0)))
  return (tall[:, :-2] + 2 * tall[:, 1:-1] + tall[:, 2:] - 4 * x) / 12


def _pyramid(
  values: Float[jax.Array, 'n h w c'], weights: Float[jax.Array, 'n h w 1']
) -> Float[jax.Array, 'n h w c']:
  """Solves the system roughly, from the coarsest level to the finest.

  Args:
    values: [n, h, w, c], sums of the known pixels under each place.
    weights: [n, h, w, 1], their number.
  """
  height, width = values.shape[1:3]
  mean = values / jnp.maximum(weights, 1e-9)
  if height == width == 1:
    return mean

  def halve(x: jax.Array) -> jax.Array:
    x = jnp.pad(x, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)))
    n, h, w, c = x.shape
    return x.reshape(n, h // 2, 2, w // 2, 2, c).sum((2, 4))

  coarse = _pyramid(halve(values), halve(weights))
  x = jnp.repeat(jnp.repeat(coarse, 2, 1), 2, 2)[:, :height, :width]
  known = weights > 0
  x = jnp.where(known, mean, x)
  norm = _neighbours(jnp.ones((1, height, width, 1)))

  def sweep(_: int, x: jax.Array) -> jax.Array:
    return jnp.where(known, mean, _neighbours(x) / norm)

  return jax.lax.fori_loop(0, _SMOOTHING, sweep, x)
