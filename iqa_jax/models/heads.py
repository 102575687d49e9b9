"""What turns the last feature map into logits.

  linear        global average, then one linear layer
  standardized  the same with each channel brought to mean 0 and deviation 1
                over the training split (training/standardization.py): for a
                new head on a frozen trunk
  landmarks     as linear; beside the logits it says where the optic disc and
                the fovea are, and how large the disc is (`located`)
  mlp           the earlier work's: flatten -> 512 -> ReLU -> dropout -> outputs
  imagenet      the network's own: ResNet-50's is the linear one, VGG-16's is
                flatten -> 4096 -> 4096 -> outputs, dropout after each ReLU

Heads that flatten average the map to 7x7 first, as torchvision's VGG-16 does,
so they take images of any size; at 224 px nothing changes.
"""

from __future__ import annotations

from typing import NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from iqa_jax.aliases import Variables
from iqa_jax.models import pooling

# Name: how the map is pooled, and the sizes of the hidden layers.
KINDS: dict[str, tuple[str, tuple[int, ...]]] = {
  'linear': ('average', ()),
  'standardized': ('standardized', ()),
  'landmarks': ('landmarks', ()),
  'mlp': ('flatten', (512,)),
}
_CELLS = 7
_SOWN = 'landmarks'
_HIDDEN = 64  # of the landmarks' last correction


class Found(NamedTuple):
  """What a pass tells beside the logits; None of heads that don't.

  Attributes:
    landmarks: float32 [b, 5], see `located`.
    cells: (logits [b, g, g, k], field share [b, g, g]) of the cells.
    cause: float32 [b, 3], logits of a fault by local criterion.
  """

  landmarks: jax.Array | None
  cells: tuple[jax.Array, jax.Array] | None
  cause: jax.Array | None


def found(state: Variables) -> Found:
  """Returns what a pass told; `state` as of `located`."""
  kept = state.get('intermediates', {})
  cells = kept.get('neck', {}).get('evidence')
  cause = kept.get('head', {}).get('cause')
  return Found(
    landmarks=located(state),
    cells=cells and (cells['cell_logits'][0], cells['field_share'][0]),
    cause=cause[0] if cause else None,
  )


def located(state: Variables) -> Float[jax.Array, 'b 5'] | None:
  """Returns the landmarks that a pass through a model has found.

  Args:
    state: what `apply` returned beside its result with mutable=[...,
      'intermediates'].

  Returns:
    float32 [b, 5]: optic disc x, y, disc diameter, fovea x, y, in shares of
    the image's side; None of heads that locate nothing.
  """
  found = state.get('intermediates', {}).get('head', {}).get(_SOWN)
  return found[0] if found else None


class Head(nn.Module):
  """Pools a feature map and applies dense layers.

  Attributes:
    kind: the name under which checkpoints know these layers.
    pool: 'average', 'standardized', 'landmarks' (averages too) or 'flatten'.
    hidden: sizes of the hidden layers.
    num_outputs: number of logits.
    dropout: rate after each hidden layer.
    dtype: compute type of the hidden layers; the logits are float32.
  """

  kind: str
  pool: str
  hidden: tuple[int, ...]
  num_outputs: int
  dropout: float = 0.5
  dtype: jnp.dtype = jnp.float32

  def takes(self, x: Float[jax.Array, 'b h w c']) -> Float[jax.Array, 'b ...']:
    """Returns what the head takes in of the last map x [b, h, w, c].

    Of a head that only averages, the averages [b, c] float32, a thousandth of
    the map; of one that flattens, [b, 7, 7, c]; else the map itself.
    """
    if self.pool in ('average', 'standardized'):
      return x.astype(jnp.float32).mean((1, 2))
    if self.pool == 'flatten':
      return pooling.adaptive_average(x, _CELLS)
    return x

  @nn.compact
  def __call__(
    self, x: Float[jax.Array, 'b ...'], *, train: bool
  ) -> Float[jax.Array, 'b outputs']:
    """Returns logits [b, num_outputs] float32 of what `takes` returned."""
    if self.pool == 'landmarks':
      self.sow('intermediates', _SOWN, Locator(name='locator')(x))
      x = x.astype(jnp.float32).mean((1, 2))
    elif self.pool == 'standardized':
      shape = x.shape[1:]
      mean = self.variable('batch_stats', 'mean', jnp.zeros, shape)
      var = self.variable('batch_stats', 'var', jnp.ones, shape)
      x = (x - mean.value) * jax.lax.rsqrt(var.value)
    elif self.pool == 'flatten':
      # Checkpoints number the inputs of the first layer channel by channel.
      x = x.transpose(0, 3, 1, 2).reshape(x.shape[0], -1)
    for i, size in enumerate(self.hidden):
      x = nn.Dense(size, dtype=self.dtype, name=f'hidden{i}')(x)
      x = nn.Dropout(self.dropout, deterministic=not train)(nn.relu(x))
    x = x.astype(jnp.float32)
    return nn.Dense(self.num_outputs, name='logits')(x)


class Locator(nn.Module):
  """Optic disc and fovea by spatial soft-argmax (Levine et al. 2016)."""

  @nn.compact
  def __call__(self, x: Float[jax.Array, 'b h w c']) -> Float[jax.Array, 'b 5']:
    """Returns landmarks [b, 5], see `located`, of a map x [b, h, w, c]."""
    b, h, w, c = x.shape
    x = x.astype(jnp.float32).reshape(b, h * w, c)
    columns, rows = jnp.meshgrid(
      (jnp.arange(w) + 0.5) / w, (jnp.arange(h) + 0.5) / h
    )
    grid = jnp.stack([columns.ravel(), rows.ravel()], 1)
    share = jax.nn.softmax(nn.Dense(2, name='heat')(x), axis=1)
    exact = jax.lax.Precision.HIGHEST
    points = jnp.einsum('bpk,pc->bkc', share, grid, precision=exact)
    # What is seen there, and where that is, says how far off they are: between
    # cells, beyond the last one, or, of a fovea in the dark, one disc's place
    # and side away.
    seen = jnp.einsum('bpk,bpc->bkc', share, x, precision=exact)
    known = jnp.concatenate([seen, 2 * points - 1], 2).reshape(b, -1)
    known = nn.relu(nn.Dense(_HIDDEN, name='hidden')(known))
    # From no correction at all, whatever the scale of the map.
    fine = nn.Dense(5, kernel_init=nn.initializers.zeros, name='fine')(known)
    points += fine[:, :4].reshape(b, 2, 2)
    # About a seventh of a 45 degree field.
    diameter = nn.softplus(fine[:, 4:] - 1.9)
    return jnp.concatenate([points[:, 0], diameter, points[:, 1]], 1)
