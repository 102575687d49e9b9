"""What turns the last feature map into logits.

  linear        global average, then one linear layer
  standardized  the same with each channel brought to mean 0 and deviation 1
                over the training split (training/standardization.py): for a
                new head on a frozen trunk
  mlp           the earlier work's: flatten -> 512 -> ReLU -> dropout -> outputs
  imagenet      the network's own: ResNet-50's is the linear one, VGG-16's is
                flatten -> 4096 -> 4096 -> outputs, dropout after each ReLU

Heads that flatten average the map to 7x7 first, as torchvision's VGG-16 does,
so they take images of any size; at 224 px nothing changes.
"""

from __future__ import annotations

from flax import linen as nn
import jax
import jax.numpy as jnp

from iqa_jax.models import layers

# Name: how the map is pooled, and the sizes of the hidden layers.
KINDS: dict[str, tuple[str, tuple[int, ...]]] = {
  'linear': ('average', ()),
  'standardized': ('standardized', ()),
  'mlp': ('flatten', (512,)),
}
_CELLS = 7


class Head(nn.Module):
  """Pools a feature map and applies dense layers.

  Attributes:
    kind: the name under which checkpoints know these layers.
    pool: 'average', 'standardized' or 'flatten'.
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

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """Returns logits [b, num_outputs] float32 of a map x [b, h, w, c]."""
    if self.pool == 'average':
      x = x.astype(jnp.float32).mean((1, 2))
    elif self.pool == 'standardized':
      x = x.astype(jnp.float32).mean((1, 2))
      shape = x.shape[1:]
      mean = self.variable('batch_stats', 'mean', jnp.zeros, shape)
      var = self.variable('batch_stats', 'var', jnp.ones, shape)
      x = (x - mean.value) * jax.lax.rsqrt(var.value)
    else:
      x = layers.adaptive_average(x, _CELLS)
      # Checkpoints number the inputs of the first layer channel by channel.
      x = x.transpose(0, 3, 1, 2).reshape(x.shape[0], -1)
    for i, size in enumerate(self.hidden):
      x = nn.Dense(size, dtype=self.dtype, name=f'hidden{i}')(x)
      x = nn.Dropout(self.dropout, deterministic=not train)(nn.relu(x))
    x = x.astype(jnp.float32)
    return nn.Dense(self.num_outputs, name='logits')(x)
