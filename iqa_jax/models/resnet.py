"""ResNet-50 v1.5 (He et al. 2015; the stride in the 3x3), as torchvision's."""

from __future__ import annotations

import re

from flax import linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from iqa_jax.models import layers, pooling
from iqa_jax.photograph.placement import Window

_BLOCKS = (3, 4, 6, 3)
_CHANNELS = (64, 128, 256, 512)
_EXPANSION = 4
_STEM = (Window(7, 2, 3), Window(3, 2, 1))  # convolution, maximum
_POINTWISE = Window(1)


class ResNet(nn.Module):
  """The convolutional part of ResNet-50; runs one feature point at a time.

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

  points = ('stem', 'stage1', 'stage2', 'stage3', 'stage4')
  default_layer = 'stage4'
  taps = ('stem', 'stage1', 'stage2', 'stage3')
  # ImageNet's own head: how the map is pooled, and the hidden layers.
  imagenet_head = ('average', ())

  def setup(self) -> None:
    self.stem = _Stem(layers.scaled(64, self.width), self.dtype, self.axis_name)
    for i, (blocks, channels) in enumerate(
      zip(_BLOCKS, _CHANNELS, strict=True)
    ):
      stage = _Stage(
        blocks=layers.scaled(blocks, self.depth),
        channels=layers.scaled(channels, self.width),
        stride=_stride(i + 1),
        dtype=self.dtype,
        axis_name=self.axis_name,
      )
      setattr(self, f'stage{i + 1}', stage)

  def __call__(
    self,
    x: Float[jax.Array, 'b h w c'],
    point: str,
    *,
    train: bool,
    mask: layers.Mask,
  ) -> Float[jax.Array, 'b rows columns d']:
    """Returns the map [b, h, w, c] of `point` from that of the one before.

    'detail' is the stem too, of an image of any size.
    """
    module = self.stem if point == 'detail' else getattr(self, point)
    return module(x, train=train, mask=mask)

  def windows(self, point: str) -> tuple[Window, ...]:
    """Returns the windows between the point before and `point`, in order.

    Of the blocks those of the 3x3 convolutions; 1x1 ones look straight down,
    and so do the shortcuts, at the same cells.
    """
    if point in ('stem', 'detail'):
      return _STEM
    stage = self.points.index(point)
    blocks = layers.scaled(_BLOCKS[stage - 1], self.depth)
    return (_middle(_stride(stage)), *(_middle(1),) * (blocks - 1))

  @staticmethod
  def from_torch(layer: str) -> str | None:
    """Returns our path of a torchvision or timm layer; None if it is foreign.

    `layer1.0.conv1` becomes `backbone/stage1/block0/conv1`. Layers after the
    backbone come under the name of the head (see heads.KINDS) they are part of.
    """
    for pattern, path in _TORCH:
      if match := re.fullmatch(pattern, layer):
        return match.expand(path)
    return None


def _stride(stage: int) -> int:
  """Returns the stride of a stage's first block, counted from 1."""
  return 1 if stage == 1 else 2


def _middle(stride: int) -> Window:
  """Returns the window of a block's 3x3 convolution."""
  return Window(3, stride, 1)


class _Stem(nn.Module):
  channels: int
  dtype: jnp.dtype
  axis_name: str | None

  @nn.compact
  def __call__(
    self, x: Float[jax.Array, 'b h w c'], *, train: bool, mask: layers.Mask
  ) -> Float[jax.Array, 'b rows columns d']:
    window, pool = _STEM
    x = layers.conv(self.channels, window, dtype=self.dtype, name='conv')(x)
    norm = layers.BatchNorm(self.axis_name, self.dtype, name='norm')
    x = nn.relu(norm(x, train=train, mask=mask))
    return pooling.max_pool(x, pool)


class _Stage(nn.Module):
  blocks: int
  channels: int
  stride: int
  dtype: jnp.dtype
  axis_name: str | None

  @nn.compact
  def __call__(
    self, x: Float[jax.Array, 'b h w c'], *, train: bool, mask: layers.Mask
  ) -> Float[jax.Array, 'b rows columns d']:
    for i in range(self.blocks):
      block = _Block(
        self.channels,
        self.stride if i == 0 else 1,
        self.dtype,
        self.axis_name,
        name=f'block{i}',
      )
      x = block(x, train=train, mask=mask)
    return x


class _Block(nn.Module):
  """A bottleneck: 1x1, 3x3, 1x1, and the shortcut."""

  channels: int
  stride: int
  dtype: jnp.dtype
  axis_name: str | None

  @nn.compact
  def __call__(
    self, x: Float[jax.Array, 'b h w c'], *, train: bool, mask: layers.Mask
  ) -> Float[jax.Array, 'b rows columns d']:
    def conv(
      x: jax.Array, features: int, window: Window, name: str
    ) -> jax.Array:
      return layers.conv(features, window, dtype=self.dtype, name=name)(x)

    def norm(
      x: jax.Array, name: str, conv: layers.Pointwise | None = None
    ) -> jax.Array:
      layer = layers.BatchNorm(self.axis_name, self.dtype, name=name)
      return layer(x, train=train, mask=mask, conv=conv)

    def widening(stride: int, name: str) -> layers.Pointwise:
      return layers.Pointwise(wide, stride, self.dtype, name=name)

    wide = self.channels * _EXPANSION
    y = conv(x, self.channels, _POINTWISE, 'conv1')
    y = nn.relu(norm(y, 'norm1'))
    y = conv(y, self.channels, _middle(self.stride), 'conv2')
    y = nn.relu(norm(y, 'norm2'))
    y = norm(y, 'norm3', widening(1, 'conv3'))
    if self.stride != 1 or x.shape[-1] != wide:
      shortcut = widening(self.stride, 'shortcut_conv')
      x = norm(x, 'shortcut_norm', shortcut)
    return layers.relu(y + x)


_TORCH = (
  (r'conv1', 'backbone/stem/conv'),
  (r'bn1', 'backbone/stem/norm'),
  (r'layer(\d)\.(\d+)\.conv(\d)', r'backbone/stage\1/block\2/conv\3'),
  (r'layer(\d)\.(\d+)\.bn(\d)', r'backbone/stage\1/block\2/norm\3'),
  (
    r'layer(\d)\.(\d+)\.downsample\.0',
    r'backbone/stage\1/block\2/shortcut_conv',
  ),
  (
    r'layer(\d)\.(\d+)\.downsample\.1',
    r'backbone/stage\1/block\2/shortcut_norm',
  ),
  (r'fc', 'linear/logits'),
)
