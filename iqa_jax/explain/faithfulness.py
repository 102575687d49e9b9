"""Are explanations true? Measures, and controls that any of them must beat.

Everything here is per image, so that means come with intervals and methods
compare image by image. Maps are raw ones, enlarged to the image's size.

A map that knows nothing about the network can look convincing, so each measure
is taken of three controls too, all inside the field of view: a random map, a
Gaussian at the centre, and the photograph's own edges.

A pixel removed from a photograph has to be replaced by something. Darkness and
blur are faults of a photograph themselves, so a network that judges quality
reacts to the replacement as well as to the loss: each measure names its
baseline (see perturbation.baseline), and ROAD (road.py) imputes from the
neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator

import jax
from jaxtyping import Bool, Float, Integer, Real, Shaped
import numpy as np
from scipy import ndimage, stats

from iqa_jax.aliases import Variables
from iqa_jax.explain import scaling
from iqa_jax.explain.perturbation import Perturber, blend
from iqa_jax.models.classifier import Classifier

CONTROLS = ('random', 'centre', 'edges')
# A hit may miss by this share of the image's side: 15 of 224 pixels, after
# Zhang et al. 2016.
_TOLERANCE = 15 / 224


def controls(
  images: Real[np.ndarray, 'n h w c'],
  inside: Bool[np.ndarray, 'n h w'],
  cells: tuple[int, int],
  seed: int,
) -> dict[str, Float[np.ndarray, 'n h w']]:
  """Returns maps [n, h, w] that know nothing of the network.

  All are 0 outside the field of view, where there is nothing to find.

  Args:
    images: [n, h, w, 3] of 0..255.
    inside: bool [n, h, w], the field of view.
    cells: the size of the maps they are compared with; equally coarse, so that
      no one wins by resolution.
    seed: of the random map.
  """
  rng = np.random.default_rng(seed)
  size = inside.shape[1:]
  noise = rng.random((len(images), *cells)).astype(np.float32)
  y, x = (np.arange(n) + 0.5 for n in size)
  area = np.maximum(inside.sum((1, 2)), 1)
  cy = (inside * y[:, None]).sum((1, 2)) / area
  cx = (inside * x).sum((1, 2)) / area
  away = np.hypot(
    y[:, None] - cy[:, None, None], x - cx[:, None, None]
  ) / np.sqrt(area / np.pi).reshape(-1, 1, 1)
  grey = np.asarray(images, np.float32).mean(-1)
  edges = np.hypot(ndimage.sobel(grey, 1), ndimage.sobel(grey, 2))
  # The rim of the field is no edge of what it shows.
  deep = ndimage.binary_erosion(inside, np.ones((1, 5, 5)))
  found = {
    'random': scaling.enlarge(noise, size),
    'centre': np.exp(-(away**2) / (2 * 0.5**2)),
    'edges': scaling.enlarge(_cell_means(edges * deep, cells), size),
  }
  return {
    name: (maps * inside).astype(np.float32) for name, maps in found.items()
  }


def replacement_curves(
  ask: Perturber,
  images: Real[np.ndarray, 'n h w c'],
  targets: Integer[np.ndarray, ' n'],
  maps: Real[np.ndarray, 'n h w'],
  other: Real[np.ndarray, 'n h w c'],
  *,
  ends: tuple[Float[np.ndarray, ' n'], Float[np.ndarray, ' n']],
  steps: int = 3,
  seed: int = 0,
) -> tuple[Float[np.ndarray, 'n points'], Float[np.ndarray, 'n points']]:
  """Returns the scores while pixels are deleted, and while they are inserted.

  RISE's (Petsiuk et al. 2018) deletion replaces those of the photograph by a
  baseline, its insertion those of the baseline by the photograph, both from
  the most relevant to the least. Pixels of equal relevance come in random
  order, so a constant map is a random one.

  Args:
    ask: the network, usually a probability.
    images: [n, h, w, c] of 0..255.
    targets: int [n].
    maps: the relevance of the pixels, [n, h, w].
    other: the baseline, of the shape of `images`.
    ends: the scores [n] of `images` and of `other` (Perturber.plain).
    steps: how many equal shares of the pixels are replaced one by one.
    seed: of the order among equals.

  Returns:
    float32 [n, steps + 1] each.
  """
  rng = np.random.default_rng(seed)
  bounds = np.round(np.linspace(0, maps[0].size, steps + 1))[1:-1]

  def frames() -> Iterator[tuple[int, np.ndarray]]:
    for i in range(len(images)):
      place = order(maps[i], rng)
      yield from ((i, place >= bound) for bound in bounds)
      yield from ((i, place < bound) for bound in bounds)

  found = ask(blend, (images, other), targets, frames())
  between = found.reshape(len(images), 2, steps - 1)
  whole, nothing = (np.asarray(e, np.float32)[:, None] for e in ends)
  return (
    np.concatenate([whole, between[:, 0], nothing], 1),
    np.concatenate([nothing, between[:, 1], whole], 1),
  )


def order(
  relevance: Real[np.ndarray, 'h w'], rng: np.random.Generator
) -> Integer[np.ndarray, 'h w']:
  """Returns each pixel's place, 0 the most relevant; equals by lot."""
  flat = relevance.ravel()
  place = np.empty(len(flat), int)
  place[np.lexsort((rng.random(len(flat)), -flat))] = np.arange(len(flat))
  return place.reshape(relevance.shape)


def area(curves: Float[np.ndarray, 'n m']) -> Float[np.ndarray, ' n']:
  """Returns the area [n] under curves [n, steps + 1] over [0, 1]."""
  return (curves[:, 1:] + curves[:, :-1]).mean(1) / 2


def drop_and_increase(
  ask: Perturber,
  images: Real[np.ndarray, 'n h w c'],
  targets: Integer[np.ndarray, ' n'],
  maps: Real[np.ndarray, 'n h w'],
  other: Real[np.ndarray, 'n h w c'],
  *,
  before: Float[np.ndarray, ' n'],
) -> tuple[Float[np.ndarray, ' n'], Float[np.ndarray, ' n']]:
  """Returns what keeping only the explained part does (Chattopadhay 2018).

  Args:
    ask: the network; a probability.
    images: [n, h, w, c] of 0..255.
    targets: int [n].
    maps: [n, h, w]; as shares of their maximum they say how much of the
      photograph is kept.
    other: what is seen instead of what is not kept.
    before: the scores [n] of `images`.

  Returns:
    The relative fall of the score [n], 0 where it rises, and whether it rises.
  """
  keep = positive_share(maps)
  after = ask(blend, (images, other), targets, enumerate(keep))
  drop = np.maximum(before - after, 0) / np.maximum(before, 1e-12)
  return drop, (after > before).astype(float)


def positive_share(
  maps: Real[np.ndarray, 'n h w'],
) -> Float[np.ndarray, 'n h w']:
  """Returns positive evidence over its maximum, float32 [n, h, w] of 0..1.

  However small it is; 0 of an empty map.
  """
  positive = np.maximum(np.nan_to_num(np.asarray(maps, np.float64)), 0)
  most = positive.max((1, 2), keepdims=True)
  return (positive / np.where(most > 0, most, 1)).astype(np.float32)


def energy(
  maps: Real[np.ndarray, 'n h w'], mask: Shaped[np.ndarray, 'n h w']
) -> Float[np.ndarray, ' n']:
  """Returns the share [n] of positive evidence that lies in a region.

  Args:
    maps: [n, h, w].
    mask: [n, h, w] of 0..1.

  Returns:
    Of 0..1; 0 where a map holds no positive evidence: it has missed.
  """
  positive = np.maximum(np.asarray(maps, np.float64), 0)
  total = positive.sum((1, 2))
  return (positive * mask).sum((1, 2)) / np.where(total > 0, total, 1)


def pointing(
  maps: Real[np.ndarray, 'n h w'], mask: Shaped[np.ndarray, 'n h w']
) -> Float[np.ndarray, ' n']:
  """Returns whether the strongest evidence lies in a region (1.0 or 0.0, [n]).

  The pointing game of Zhang et al. 2016, with its tolerance. A map without
  positive evidence has missed.

  Args:
    maps: [n, h, w].
    mask: [n, h, w] of 0..1; the region is where it is above a half.
  """
  hits = np.zeros(len(maps))
  for i in range(len(maps)):
    if maps[i].max() > 0:
      row, column = np.unravel_index(maps[i].argmax(), maps[i].shape)
      rows, columns = np.nonzero(mask[i] > 0.5)
      away = np.hypot(rows - row, columns - column).min(initial=np.inf)
      hits[i] = away <= _TOLERANCE * maps.shape[1]
  return hits


def randomised(
  model: Classifier, variables: Variables, seed: int
) -> Iterator[tuple[str, Variables]]:
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

    def shuffle(
      path: tuple[jax.tree_util.DictKey, ...],
      leaf: np.ndarray,
      part: str = part,
    ) -> np.ndarray:
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


def spearman(
  a: Real[np.ndarray, 'n h w'], b: Real[np.ndarray, 'n h w']
) -> Float[np.ndarray, ' n']:
  """Returns the rank correlation [n] of maps [n, h, w]; NaN if one is flat."""
  found = np.full(len(a), np.nan)
  for i in range(len(a)):
    x, y = stats.rankdata(a[i]), stats.rankdata(b[i])
    if np.ptp(x) and np.ptp(y):
      found[i] = np.corrcoef(x, y)[0, 1]
  return found


def ssim(
  a: Real[np.ndarray, 'n h w'], b: Real[np.ndarray, 'n h w']
) -> Float[np.ndarray, ' n']:
  """Returns the structural similarity [n] of maps [n, h, w] of 0..1.

  Wang et al. 2004: Gaussian window of deviation 1.5 and 11 pixels, constants
  0.01 and 0.03, mean over the places where the window fits.
  """

  def mean(x: np.ndarray) -> np.ndarray:
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


def _cell_means(
  maps: Float[np.ndarray, 'n h w'], cells: tuple[int, int]
) -> Float[np.ndarray, 'n rows columns']:
  """Returns maps [n, h, w] averaged to [n, *cells]."""
  height, width = maps.shape[1:]
  rows = np.linspace(0, height, cells[0] + 1).astype(int)[:-1]
  columns = np.linspace(0, width, cells[1] + 1).astype(int)[:-1]
  total = np.add.reduceat(np.add.reduceat(maps, rows, 1), columns, 2)
  tall = np.diff(np.append(rows, height))
  wide = np.diff(np.append(columns, width))
  return (total / (tall[:, None] * wide)).astype(np.float32)
