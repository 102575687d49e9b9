"""VGG-16 (Simonyan and Zisserman 2014, configuration D), as torchvision's."""

from __future__ import annotations

from flax import linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from iqa_jax.models import layers, pooling
from iqa_jax.photograph.placement import Window

_CONVOLUTIONS = (2, 2, 3, 3, 3)
_CHANNELS = (64, 128, 256, 512, 512)
_CONVOLUTION = Window(3, 1, 1)
_POOL = Window(2, 2, 0)


class VGG(nn.Module):
  """The convolutional part of VGG-16; runs one feature point at a time.

  Attributes:
    width: multiplies every channel count.
    depth: multiplies the number of convolutions of every block.
    dtype: compute type.
    axis_name: unused, there is no BatchNorm; all backbones take it.
  """

  width: float = 1.0
  depth: float = 1.0
  dtype: jnp.dtype = jnp.float32
  axis_name: str | None = None

  points = tuple(
    f'block{i}{suffix}' for i in range(1, 6) for suffix in ('', '_pool')
  )
  default_layer = 'block5'
  taps = ('block1', 'block2', 'block3', 'block4')
  imagenet_head = ('flatten', (4096, 4096))

  def setup(self) -> None:
    for i, (count, channels) in enumerate(
      zip(_CONVOLUTIONS, _CHANNELS, strict=True)
    ):
      block = _Block(
        convolutions=layers.scaled(count, self.depth),
        channels=layers.scaled(channels, self.width),
        dtype=self.dtype,
      )
      setattr(self, f'block{i + 1}', block)

  def __call__(
    self,
    x: Float[jax.Array, 'b h w c'],
    point: str,
    *,
    train: bool,
    mask: layers.Mask,
  ) -> Float[jax.Array, 'b rows columns d']:
    """Returns the map [b, h, w, c] of `point` from that of the one before.

    'detail' is the first convolution alone, of an image of any size.
    """
    del train, mask  # nothing here depends on them
    if point == 'detail':
      return self.block1(x, 1)
    if point.endswith('_pool'):
      return pooling.max_pool(x, _POOL)
    return getattr(self, point)(x)

  def windows(self, point: str) -> tuple[Window, ...]:
    """Returns the windows between the point before and `point`, in order."""
    if point == 'detail':
      return (_CONVOLUTION,)
    if point.endswith('_pool'):
      return (_POOL,)
    count = _CONVOLUTIONS[self.points.index(point) // 2]
    return (_CONVOLUTION,) * layers.scaled(count, self.depth)

  @staticmethod
  def from_torch(layer: str) -> str | None:
    """Returns our path of a torch layer; see `ResNet.from_torch`."""
    return _TORCH.get(layer)


class _Block(nn.Module):
  convolutions: int
  channels: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(
    self, x: Float[jax.Array, 'b h w c'], count: int | None = None
  ) -> Float[jax.Array, 'b h w d']:
    for i in range(count or self.convolutions):
      conv = layers.conv(
        self.channels,
        _CONVOLUTION,
        bias=True,
        dtype=self.dtype,
        name=f'conv{i + 1}',
      )
      x = layers.relu(conv(x))
    return x


def _feature_paths() -> dict[str, str]:
  """Maps torchvision's positions in `features` to our paths."""
  paths, position = {}, 0
  for block, count in enumerate(_CONVOLUTIONS, 1):
    for i in range(1, count + 1):
      paths[f'features.{position}'] = f'backbone/block{block}/conv{i}'
      position += 2  # the convolution and its ReLU
    position += 1  # the pooling
  return paths


_TORCH = {
  **_feature_paths(),
  # torchvision's dense layers, timm's, and the earlier work's.
  'classifier.0': 'imagenet/hidden0',
  'classifier.3': 'imagenet/hidden1',
  'classifier.6': 'imagenet/logits',
  'pre_logits.fc1': 'imagenet/hidden0',
  'pre_logits.fc2': 'imagenet/hidden1',
  'head.fc': 'imagenet/logits',
  'fc1': 'mlp/hidden0',
  'fc2': 'mlp/logits',
}
