"""A small network for two CPU cores: patches in, residual 3x3 convolutions.

Every downsizing is a convolution whose windows do not overlap (Dosovitskiy et
al. 2020, the patch embedding; Liu et al. 2022, ConvNeXt's downsampling), so
that cells look at even shares of the picture and most of the arithmetic is on
maps of an eighth of its side. 0.9 million parameters, no published weights.
"""

from __future__ import annotations

from flax import linen as nn
import jax
import jax.numpy as jnp

from iqa_jax.models import layers
from iqa_jax.photograph.placement import Window

_CHANNELS = (32, 64, 128, 128)
_PATCHES = (4, 2, 2, 2)
_BLOCKS = (0, 2, 2, 1)
_CONVOLUTION = Window(3, 1, 1)


class Patches(nn.Module):
  """The convolutional part; runs one feature point at a time.

  Attributes:
    width: multiplies every channel count.
    depth: multiplies the number of blocks of every stage.
    dtype: compute type.
    axis_name: pmap axis of the BatchNorm statistics.
  """

  width: float = 1.0
  depth: float = 1.0
  dtype: jnp.dtype = jnp.float32
  axis_name: str | None = None

  points = ('stem', 'stage1', 'stage2', 'stage3')
  default_layer = 'stage3'
  taps = points
  imagenet_head = ('average', ())

  def setup(self):
    for point, channels, patch, blocks in zip(
      self.points, _CHANNELS, _PATCHES, _BLOCKS, strict=True
    ):
      stage = _Stage(
        patch=patch,
        channels=layers.scaled(channels, self.width),
        blocks=layers.scaled(blocks, self.depth) if blocks else 0,
        dtype=self.dtype,
        axis_name=self.axis_name,
      )
      setattr(self, point, stage)

  def __call__(
    self, x: jax.Array, point: str, *, train: bool, mask: layers.Mask
  ) -> jax.Array:
    """Returns the map [b, h, w, c] of `point` from that of the one before."""
    return getattr(self, point)(x, train=train, mask=mask)

  def windows(self, point: str) -> tuple[Window, ...]:
    """Returns the windows between the point before and `point`, in order."""
    stage = self.points.index(point)
    blocks = _BLOCKS[stage]
    count = layers.scaled(blocks, self.depth) if blocks else 0
    patch = _PATCHES[stage]
    return (Window(patch, patch), *(_CONVOLUTION,) * count)

  @staticmethod
  def from_torch(layer: str) -> str | None:
    """Returns None: nobody has published weights of this network."""
    del layer
    return None


class _Stage(nn.Module):
  patch: int
  channels: int
  blocks: int
  dtype: jnp.dtype
  axis_name: str | None

  @nn.compact
  def __call__(self, x, *, train, mask):
    def normed(x, window, name):
      conv = layers.conv(self.channels, window, dtype=self.dtype, name=name)
      norm = layers.BatchNorm(self.axis_name, self.dtype, name=f'{name}_norm')
      return norm(conv(x), train=train, mask=mask)

    x = nn.relu(normed(x, Window(self.patch, self.patch), 'patch'))
    for i in range(self.blocks):
      x = nn.relu(x + normed(x, _CONVOLUTION, f'block{i}'))
    return x
