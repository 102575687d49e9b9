"""Evidence by design: cells that say what is wrong in them, and nothing else.

What is judged is what is shown. The feature maps of several points are brought
to one grid of cells; a small network of 1x1 convolutions looks at each cell
alone and gives, for each local criterion, the evidence that it is faulty,
minus the log probability that it is not (a noisy-or). Evidence is 0 or more,
counts only inside the field of view, may be shared with neighbours, and its
average over the field is all that the head learns of the photograph. So the
maps sum to the logit less its bias, are 0 outside the field, and need no
backward pass; Grad-CAM over them gives the same maps
(tests/models/test_evidence.py). What is thin is seen in the first layer of the
image at its whole size, of which the rest of the network sees half
(`Neck.detail`).
"""

from __future__ import annotations

from collections.abc import Sequence

from flax import linen as nn
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from iqa_jax import labels
from iqa_jax.models import grid

LOCAL = labels.LOCAL_CRITERIA
POINTS = ('cells', 'evidence')


class Neck(nn.Module):
  """From feature maps to maps of evidence; runs one point at a time.

  Attributes:
    taps: the backbone's points whose maps are looked at.
    cells: the grid is cells x cells.
    hidden: units of the hidden layer of a cell.
    num_maps: maps of evidence, of the LOCAL or of all criteria, in order.
    dtype: compute type of the hidden layer.
    spread: how far, in cells, a cell shares its evidence (`shared_around`).
    detail: whether cells also look at the backbone's first layer of the whole
      image, of which the rest of the backbone then sees half the pixels a side:
      thin and faint things at a small part of the cost of a larger image.
  """

  taps: tuple[str, ...]
  cells: int
  hidden: int
  num_maps: int = len(LOCAL)
  dtype: jnp.dtype = jnp.float32
  spread: tuple[float, ...] = ()
  detail: bool = False

  def setup(self) -> None:
    self.evidence = _Evidence(
      self.hidden, self.num_maps, self.dtype, self.spread
    )

  def gather(self, seen: Sequence[jax.Array], field: jax.Array) -> jax.Array:
    """Returns the cells' features and, as the last channel, their field share.

    As logarithms, log(1 + x), since features are 0 or more and skewed.

    Args:
      seen: `grid.features` of the detail and the taps, [b, cells, cells, c].
      field: [b, s, s] in 0..1, the field of view.

    Returns:
      float32 [b, cells, cells, channels + 1].
    """
    share = grid.shared_area(field.astype(jnp.float32)[..., None], self.cells)
    return jnp.concatenate([*map(jnp.log1p, seen), share], axis=-1)

  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns the maps of evidence [b, cells, cells, num_maps] of cells."""
    return self.evidence(x)


class _Evidence(nn.Module):
  hidden: int
  num_maps: int
  dtype: jnp.dtype
  spread: tuple[float, ...]

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    features, share = x[..., :-1], x[..., -1:].astype(jnp.float32)
    shape = features.shape[-1:]
    mean = self.variable('batch_stats', 'mean', jnp.zeros, shape)
    var = self.variable('batch_stats', 'var', jnp.ones, shape)
    features = (features - mean.value) * lax.rsqrt(var.value)
    hidden = nn.relu(
      nn.Dense(self.hidden, dtype=self.dtype, name='hidden')(features)
    )
    logits = nn.Dense(self.num_maps, name='cell')(hidden.astype(jnp.float32))
    self.sow('intermediates', 'cell_logits', logits)
    self.sow('intermediates', 'field_share', share[..., 0])
    # The average over all cells of what is returned is that over the field.
    field = jnp.maximum(share.mean((1, 2), keepdims=True), grid.FLOOR)
    maps = nn.softplus(logits) * (share / field)
    return shared_around(maps, share, self.spread) if self.spread else maps


def shared_around(
  maps: jax.Array, share: jax.Array, spread: Sequence[float]
) -> jax.Array:
  """Returns maps of evidence whose cells have shared theirs with neighbours.

  A fault that was never learned shows at its edges and here and there in it;
  single cells of clean retina look as faulty. Each cell gives equal parts of
  its evidence away by Gaussians of several widths, to cells of the field
  alone, by their share of it. So what a photograph has in all stays the same,
  and with it every logit, and nothing leaves the field.

  Args:
    maps: float32 [b, g, g, k], 0 outside the field.
    share: float32 [b, g, g, 1], of each cell that lies in the field.
    spread: standard deviations in cells; 0 is the cell itself.
  """
  at = np.arange(maps.shape[1])
  away = at[:, None] - at
  parts = []
  for deviation in spread:
    if not deviation:
      parts.append(maps)
      continue
    near = np.exp(-0.5 * (away / deviation) ** 2).astype(np.float32)
    reached = jnp.maximum(grid.weighed(share, near, near), grid.FLOOR)
    parts.append(share * grid.weighed(maps / reached, near, near))
  return sum(parts[1:], parts[0]) / len(parts)


def cell_loss(
  logits: jax.Array, truth: jax.Array, share: jax.Array
) -> jax.Array:
  """Returns each example's mean cross-entropy over its known cells [b].

  Args:
    logits: float32 [b, g, g, k] of the cells.
    truth: [b, g, g, k], the share of the cell that is faulty by each
      criterion, negative where that isn't known.
    share: [b, g, g], of the cell that lies in the field; the cell's weight.
  """
  known = (truth >= 0) * share[..., None]
  truth = jnp.clip(truth, 0.0, 1.0)
  # Written out: softplus(x) - x y.
  loss = (nn.softplus(logits) - logits * truth) * known
  count = jnp.maximum(known.sum((1, 2, 3)), 1e-6)
  return loss.sum((1, 2, 3)) / count


def ranking_loss(
  logits: jax.Array, truth: jax.Array, share: jax.Array
) -> jax.Array:
  """Returns how far faulty cells fail to stand out in each example, [b].

  The mean of log(1 + exp(clear - faulty)) over all pairs of a faulty and a
  clear cell of one photograph (RankNet, Burges et al. 2005, section 3), which
  bounds 1 - pixel AUC from above, but for a factor of log 2. What cross-entropy
  spends on how bad a photograph is as a whole, this spends on where.

  Args:
    logits: float32 [b, g, g, k] of the cells; a cell counts by the log of the
      sum of its odds.
    truth: as of `cell_loss`; criteria that aren't known of a cell stay out.
    share: as of `cell_loss`.
  """
  known = truth >= 0
  odds = jnp.where(known, logits, -jnp.inf)
  some = known.any(-1)
  # No infinity may enter where nothing is known: its gradient would be NaN.
  odds = nn.logsumexp(jnp.where(some[..., None], odds, 0.0), axis=-1)
  weight = (share * some).reshape(len(share), -1)
  faulty = jnp.clip(truth.max(-1), 0.0, 1.0).reshape(weight.shape) * weight
  clear = weight - faulty
  odds = odds.reshape(weight.shape)
  loss = nn.softplus(odds[:, None, :] - odds[:, :, None])
  pairs = jnp.maximum(faulty.sum(1) * clear.sum(1), 1e-6)
  loss = jnp.einsum(
    'bij,bi,bj->b', loss, faulty, clear, precision=lax.Precision.HIGHEST
  )
  return loss / pairs


class Head(nn.Module):
  """From the evidence of a whole photograph to the logits.

  Weights are 0 or more (`weights_of`): evidence of a fault never speaks for a
  photograph. A softmax task's first output (adequate, good) is the reference,
  its logit 0; of criteria, each logit is of its own map alone.

  Attributes:
    num_outputs: number of logits.
    num_maps: maps of evidence.
    independent: the outputs are criteria, one a map, in the maps' order.
  """

  num_outputs: int
  num_maps: int
  independent: bool = False

  kind = 'evidence'  # as of heads.Head

  def takes(self, x: jax.Array) -> jax.Array:
    """Returns the mean evidence [b, num_maps] of maps [b, h, w, num_maps]."""
    return x.astype(jnp.float32).mean((1, 2))

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """Returns logits [b, num_outputs] float32 of what `takes` returned."""
    del train
    if self.independent:
      logits = x * self._weights('weights', ()) + self._bias(
        'bias', self.num_outputs
      )
      cause = jnp.stack([logits[:, i] for i in local(self.num_maps)], 1)
    else:
      rest = self.num_outputs - 1
      weights = self._weights('weights', (rest,))
      exact = lax.Precision.HIGHEST
      logits = jnp.dot(x, weights, precision=exact) + self._bias('bias', rest)
      logits = jnp.concatenate([jnp.zeros_like(logits[:, :1]), logits], 1)
      # What is wrong, where faults that were put in taught it.
      cause = x * self._weights('cause_weights', ()) + self._bias(
        'cause_bias', self.num_maps
      )
    self.sow('intermediates', 'cause', cause)
    return logits

  def _weights(self, name: str, shape: tuple[int, ...]) -> jax.Array:
    """Returns weights [num_maps, *shape], 0 or more."""
    normal = nn.initializers.normal(0.01)
    raw = self.param(name, normal, (self.num_maps, *shape), jnp.float32)
    return weights_of(raw)

  def _bias(self, name: str, size: int) -> jax.Array:
    return self.param(name, nn.initializers.zeros, (size,), jnp.float32)


def weights_of(raw: jax.Array) -> jax.Array:
  """Returns a head's weights of its parameters.

  Few parameters that a step of Adam's changes as little as one of a cell's:
  tenfold, they keep pace.
  """
  return nn.softplus(10.0 * raw)


def local(num_maps: int) -> tuple[int, ...]:
  """Returns which of the maps are of LOCAL criteria, in LOCAL's order."""
  names = labels.CRITERIA if num_maps == len(labels.CRITERIA) else LOCAL
  return tuple(names.index(name) for name in LOCAL)
