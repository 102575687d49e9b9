"""Are explanations true? Measures, and controls that any of them must beat.

Everything here is per image, so that means come with intervals and methods
compare image by image. Maps are raw ones, enlarged to the image's size.

A map that knows nothing about the network can look convincing, so each measure
is taken of three controls too: a random map, a Gaussian at the centre, and the
photograph's own edges.

A pixel removed from a photograph has to be replaced by something. Darkness and
blur are faults of a photograph themselves, so a network that judges quality
reacts to the replacement as well as to the loss: each measure names its
baseline (see perturbation.baseline), and ROAD imputes from the neighbours.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import ndimage, stats

from iqa_jax.explain import cam
from iqa_jax.explain.perturbation import Score

CONTROLS = ('random', 'centre', 'edges')
_ROAD_SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)
_ROAD_NOISE = 0.01 * 255
# Of the imputation: sweeps a level, then steps on the finest.
_SMOOTHING, _CG_STEPS = 6, 100
_AT_ONCE = 64  # images per question to the network
# A hit may miss by this share of the image's side: 15 of 224 pixels, after
# Zhang et al. 2016.
_TOLERANCE = 15 / 224


def controls(
  images: np.ndarray, cells: tuple[int, int], seed: int
) -> dict[str, np.ndarray]:
  """Returns maps [n, *cells] that know nothing of the network.

  Args:
    images: [n, h, w, 3] of 0..255.
    cells: the size of the maps they are compared with; equally coarse, so that
      no one wins by resolution.
    seed: of the random map.
  """
  rng = np.random.default_rng(seed)
  y, x = (np.linspace(-1, 1, 2 * n + 1)[1::2] for n in cells)
  centre = np.exp(-(y[:, None] ** 2 + x[None] ** 2) / (2 * 0.5**2))
  grey = np.asarray(images, np.float32).mean(-1)
  edges = np.hypot(ndimage.sobel(grey, 1), ndimage.sobel(grey, 2))
  return {
    'random': rng.random((len(images), *cells)).astype(np.float32),
    'centre': np.repeat(centre[None].astype(np.float32), len(images), 0),
    'edges': _cell_means(edges, cells),
  }


def replacement_curve(
  score: Score,
  images: np.ndarray,
  targets: np.ndarray,
  maps: np.ndarray,
  other: np.ndarray,
  *,
  steps: int = 16,
  seed: int = 0,
) -> np.ndarray:
  """Returns the scores [n, steps + 1] while pixels are replaced.

  RISE's (Petsiuk et al. 2018) deletion replaces those of the photograph by a
  baseline, its insertion those of the baseline by the photograph, both from
  the most relevant to the least. Pixels of equal relevance come in random
  order, so a constant map is a random one.

  Args:
    score: the network, usually a probability.
    images: where the curve starts, [n, h, w, 3] of 0..255.
    targets: int [n].
    maps: the relevance of the pixels, [n, h, w].
    other: where it ends, of the shape of `images`.
    steps: how many equal shares of the pixels are replaced one by one.
    seed: of the order among equals.
  """
  rng = np.random.default_rng(seed)
  bounds = np.round(np.linspace(0, maps[0].size, steps + 1))

  def frames():
    for i in range(len(images)):
      # The place of each pixel in the order: replaced once a step passes it.
      replaced = _order(maps[i], rng)[None] < bounds[:, None, None]
      frame = np.where(replaced[..., None], other[i], images[i])
      yield frame, targets[i]

  return _ask(score, frames()).reshape(len(images), steps + 1)


def _order(relevance: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """Returns each pixel's place, 0 the most relevant; equals by lot."""
  flat = relevance.ravel()
  place = np.empty(len(flat), int)
  place[np.lexsort((rng.random(len(flat)), -flat))] = np.arange(len(flat))
  return place.reshape(relevance.shape)


def _ask(score: Score, frames: Iterable[tuple[np.ndarray, int]]) -> np.ndarray:
  """Returns the scores of all frames; asks for many at a time.

  Args:
    score: the network.
    frames: pairs of images [k, h, w, 3] and the target of all k.
  """
  waiting: list[np.ndarray] = []
  targets: list[np.ndarray] = []
  found: list[np.ndarray] = []

  def flush():
    found.append(
      score(np.concatenate(waiting).astype(np.float32), np.concatenate(targets))
    )
    waiting.clear()
    targets.clear()

  for block, target in frames:
    waiting.append(block)
    targets.append(np.full(len(block), target))
    if sum(map(len, waiting)) >= _AT_ONCE:
      flush()
  if waiting:
    flush()
  return np.concatenate(found)


def area(curves: np.ndarray) -> np.ndarray:
  """Returns the area [n] under curves [n, steps + 1] over [0, 1]."""
  return (curves[:, 1:] + curves[:, :-1]).mean(1) / 2


def drop_and_increase(
  score: Score,
  images: np.ndarray,
  targets: np.ndarray,
  maps: np.ndarray,
  other: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
  """Returns what keeping only the explained part does (Chattopadhay 2018).

  Args:
    score: a probability.
    images: [n, h, w, 3] of 0..255.
    targets: int [n].
    maps: [n, h, w]; as shares of their maximum they say how much of the
      photograph is kept.
    other: what is seen instead of what is not kept.

  Returns:
    The relative fall of the score [n], 0 where it rises, and whether it rises.
  """
  share = cam.scale(maps, 'image')[..., None]
  kept = images * share + other * (1 - share)
  before = np.asarray(score(np.asarray(images, np.float32), targets))
  after = np.asarray(score(kept.astype(np.float32), targets))
  drop = np.maximum(before - after, 0) / np.maximum(before, 1e-12)
  return drop, (after > before).astype(float)


def road(
  score: Score,
  images: np.ndarray,
  targets: np.ndarray,
  maps: np.ndarray,
  *,
  shares: tuple[float, ...] = _ROAD_SHARES,
  seed: int = 0,
) -> np.ndarray:
  """Returns ROAD's combined measure [n] (Rong et al. 2022); more is better.

  Half the difference between the scores without the least and without the
  most relevant pixels, averaged over the shares removed. Removed pixels are
  imputed from their neighbours, so the shape of the hole says little.

  Args:
    score: the network, usually a probability.
    images: [n, h, w, 3] of 0..255.
    targets: int [n].
    maps: [n, h, w].
    shares: of the pixels that are removed.
    seed: of the order among equals and of the imputation's noise.
  """
  rng = np.random.default_rng(seed)

  def frames():
    for i in range(len(images)):
      rank = (_order(maps[i], rng) + 0.5) / maps[i].size
      known = np.stack(
        [rank > s for s in shares] + [rank < 1 - s for s in shares]
      )
      frame = impute(np.repeat(images[i][None], len(known), 0), known)
      noise = rng.normal(0, _ROAD_NOISE, frame.shape)
      yield np.where(known[..., None], frame, frame + noise), targets[i]

  values = _ask(score, frames()).reshape(len(images), 2, len(shares))
  most, least = values[:, 0], values[:, 1]
  return (least - most).mean(1) / 2


def impute(images: np.ndarray, known: np.ndarray) -> np.ndarray:
  """Returns images whose unknown pixels are the mean of their neighbours.

  The linear system of ROAD (Rong et al. 2022, section 4.1): direct neighbours
  weigh 1/6, diagonal ones 1/12. Solved by conjugate gradients, which a
  pyramid of averages of the known pixels starts close to the solution.

  Args:
    images: [n, h, w, c].
    known: bool [n, h, w]; at least one pixel of each image.
  """
  return np.asarray(
    _impute(jnp.asarray(images, jnp.float32), jnp.asarray(known))
  )


@jax.jit
def _impute(images, known):
  known = known[..., None]
  seen = jnp.where(known, images, 0)
  weight = _neighbours(jnp.ones((1, *images.shape[1:3], 1)))

  def system(x):
    return jnp.where(known, 0, weight * x - _neighbours(x))

  start = jnp.where(known, 0, _pyramid(seen, known.astype(jnp.float32)))
  right = jnp.where(known, 0, _neighbours(seen))
  solution, _ = jax.scipy.sparse.linalg.cg(
    system, right, start, tol=1e-4, maxiter=_CG_STEPS
  )
  return jnp.where(known, images, solution)


def _neighbours(x):
  """Returns the weighted sum of the eight neighbours, 0 beyond the edges."""
  # The 3x3 kernel [1 2 1] x [1 2 1] / 12, less its centre.
  wide = jnp.pad(x, ((0, 0), (0, 0), (1, 1), (0, 0)))
  wide = wide[:, :, :-2] + 2 * wide[:, :, 1:-1] + wide[:, :, 2:]
  tall = jnp.pad(wide, ((0, 0), (1, 1), (0, 0), (0, 0)))
  return (tall[:, :-2] + 2 * tall[:, 1:-1] + tall[:, 2:] - 4 * x) / 12


def _pyramid(values, weights):
  """Solves the system roughly, from the coarsest level to the finest.

  Args:
    values: [n, h, w, c], sums of the known pixels under each place.
    weights: [n, h, w, 1], their number.
  """
  height, width = values.shape[1:3]
  mean = values / jnp.maximum(weights, 1e-9)
  if height == width == 1:
    return mean

  def halve(x):
    x = jnp.pad(x, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)))
    n, h, w, c = x.shape
    return x.reshape(n, h // 2, 2, w // 2, 2, c).sum((2, 4))

  coarse = _pyramid(halve(values), halve(weights))
  x = jnp.repeat(jnp.repeat(coarse, 2, 1), 2, 2)[:, :height, :width]
  known = weights > 0
  x = jnp.where(known, mean, x)
  norm = _neighbours(jnp.ones((1, height, width, 1)))

  def sweep(_, x):
    return jnp.where(known, mean, _neighbours(x) / norm)

  return jax.lax.fori_loop(0, _SMOOTHING, sweep, x)


def energy(maps: np.ndarray, mask: np.ndarray) -> np.ndarray:
  """Returns the share [n] of positive evidence that lies in a region.

  Args:
    maps: [n, h, w].
    mask: [n, h, w] of 0..1.

  Returns:
    Of 0..1; NaN where a map holds no positive evidence.
  """
  positive = np.maximum(np.asarray(maps, np.float64), 0)
  total = positive.sum((1, 2))
  with np.errstate(invalid='ignore'):
    return (positive * mask).sum((1, 2)) / total


def pointing(maps: np.ndarray, mask: np.ndarray) -> np.ndarray:
  """Returns whether the strongest evidence lies in a region (1.0 or 0.0, [n]).

  The pointing game of Zhang et al. 2016, with its tolerance; NaN where a map
  holds no positive evidence.

  Args:
    maps: [n, h, w].
    mask: [n, h, w] of 0..1; the region is where it is above a half.
  """
  hits = np.full(len(maps), np.nan)
  for i in range(len(maps)):
    if maps[i].max() > 0:
      away = ndimage.distance_transform_edt(~(mask[i] > 0.5))
      place = np.unravel_index(maps[i].argmax(), maps[i].shape)
      region = (mask[i] > 0.5).any()
      hits[i] = region and away[place] <= _TOLERANCE * maps.shape[1]
  return hits


def randomised(
  model: Any, variables: Mapping[str, Any], seed: int
) -> Iterator[tuple[str, dict[str, Any]]]:
  """Yields (part, variables) with ever more of the network destroyed.

  The cascade of Adebayo et al. 2018: the head first, then one feature point
  after the other from the top. The values of each tensor are shuffled, so
  that activations keep a usual scale; an explanation of what was learnt must
  change.

  Args:
    model: a models.Classifier.
    variables: its parameters and statistics, left untouched.
    seed: of the shuffling.
  """
  rng = np.random.default_rng(seed)
  broken = jax.tree.map(np.asarray, dict(variables))
  for part in ('head', *reversed(model.points)):

    def shuffle(path, leaf, part=part):
      if part not in [key.key for key in path]:
        return leaf
      return rng.permutation(leaf.ravel()).reshape(leaf.shape)

    changed = jax.tree_util.tree_map_with_path(shuffle, broken)
    if any(
      a is not b
      for a, b in zip(
        jax.tree.leaves(broken), jax.tree.leaves(changed), strict=True
      )
    ):
      broken = changed
      yield part, broken


def spearman(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """Returns the rank correlation [n] of maps [n, h, w]; NaN if one is flat."""
  found = np.full(len(a), np.nan)
  for i in range(len(a)):
    x, y = stats.rankdata(a[i]), stats.rankdata(b[i])
    if np.ptp(x) and np.ptp(y):
      found[i] = np.corrcoef(x, y)[0, 1]
  return found


def ssim(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """Returns the structural similarity [n] of maps [n, h, w] of 0..1.

  Wang et al. 2004: Gaussian window of deviation 1.5 and 11 pixels, constants
  0.01 and 0.03, mean over the places where the window fits.
  """

  def mean(x):
    blurred = ndimage.gaussian_filter(x, (0, 1.5, 1.5), radius=(0, 5, 5))
    return blurred[:, 5:-5, 5:-5]

  a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
  mean_a, mean_b = mean(a), mean(b)
  var_a, var_b = mean(a**2) - mean_a**2, mean(b**2) - mean_b**2
  covariance = mean(a * b) - mean_a * mean_b
  c1, c2 = 0.01**2, 0.03**2
  similarity = ((2 * mean_a * mean_b + c1) * (2 * covariance + c2)) / (
    (mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)
  )
  return similarity.mean((1, 2))


def interval(
  values: np.ndarray, *, resamples: int = 2000, seed: int = 0
) -> dict[str, Any]:
  """Returns the mean of per-image values with its 95 % bootstrap interval.

  Values that are NaN (an empty map) are left out and not counted in `n`; with
  none left the mean is None, with one the bounds are.
  """
  values = np.asarray(values, np.float64)
  values = values[~np.isnan(values)]
  if not len(values):
    return {'mean': None, 'low': None, 'high': None, 'n': 0}
  if len(values) == 1:
    return {'mean': float(values[0]), 'low': None, 'high': None, 'n': 1}
  rng = np.random.default_rng(seed)
  means = values[rng.integers(0, len(values), (resamples, len(values)))].mean(1)
  low, high = np.quantile(means, [0.025, 0.975])
  return {
    'mean': float(values.mean()),
    'low': float(low),
    'high': float(high),
    'n': len(values),
  }


def compare(values: Mapping[str, np.ndarray]) -> dict[str, dict[str, Any]]:
  """Returns each map's mean and interval, and its difference to each control.

  Args:
    values: {method or control: per-image values [n]}; all of the same images,
      so that differences are paired.
  """
  table = {}
  for name, of in values.items():
    table[name] = interval(of)
    if name not in CONTROLS:
      table[name]['over'] = {
        control: interval(of - values[control])
        for control in CONTROLS
        if control in values
      }
  return table


def _cell_means(maps: np.ndarray, cells: tuple[int, int]) -> np.ndarray:
  """Returns maps [n, h, w] averaged to [n, *cells]."""
  height, width = maps.shape[1:]
  rows = np.linspace(0, height, cells[0] + 1).astype(int)[:-1]
  columns = np.linspace(0, width, cells[1] + 1).astype(int)[:-1]
  total = np.add.reduceat(np.add.reduceat(maps, rows, 1), columns, 2)
  tall = np.diff(np.append(rows, height))
  wide = np.diff(np.append(columns, width))
  return (total / (tall[:, None] * wide)).astype(np.float32)
