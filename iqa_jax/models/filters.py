"""A trunk that learns nothing: light, colour and contrast by scale, in cells.

Every cell of 16 pixels is described by what it is lit by and by how much
detail it holds at five scales (differences of binomial blurs; Burt & Adelson
1983), by itself, with its neighbours, and beside the whole photograph. Without
parameters there is nothing that drawings could teach wrongly, and a head of
evidence learns on cached cells in minutes on two CPU cores.
"""

from __future__ import annotations

from flax import linen as nn
import jax
import jax.numpy as jnp

from iqa_jax.models import layers
from iqa_jax.photograph.placement import Window

CELL = 16  # pixels
_SCALES = 5
# As models.normalize scales images.
_MEAN = (0.485, 0.456, 0.406)
_DEVIATION = (0.229, 0.224, 0.225)
_LEAST = 2e-3  # of full light: what is less is alike
_DARK = 0.015  # of full light: outside the field, or as good as


class Filters(nn.Module):
  """The filters; one feature point.

  Attributes:
    width: unused, nothing is learned; all backbones take it.
    depth: likewise.
    dtype: of the result; filters run in float32.
    axis_name: likewise unused.
  """

  width: float = 1.0
  depth: float = 1.0
  dtype: jnp.dtype = jnp.float32
  axis_name: str | None = None

  points = ('filters',)
  default_layer = 'filters'
  taps = points
  imagenet_head = ('average', ())

  @nn.compact
  def __call__(
    self, x: jax.Array, point: str, *, train: bool, mask: layers.Mask
  ) -> jax.Array:
    """Returns the map [b, h / 16, w / 16, c] of normalised images [b, h, w, 3].

    What is beyond a multiple of 16 pixels is left out.
    """
    del point, train, mask  # there is one point, and nothing depends on them
    height, width = (side // CELL * CELL for side in x.shape[1:3])
    x = x[:, :height, :width].astype(jnp.float32)
    pixels = x * jnp.asarray(_DEVIATION) + jnp.asarray(_MEAN)
    own = _described(jnp.clip(pixels, 0.0, 1.0))
    lit = _pooled(pixels.mean(-1, keepdims=True), CELL) > _DARK
    share = jnp.where(lit, 1.0, 1e-3)
    share /= share.sum((1, 2), keepdims=True)
    mean = (own * share).sum((1, 2), keepdims=True)
    spread = jnp.sqrt(((own - mean) ** 2 * share).sum((1, 2), keepdims=True))
    whole = [jnp.broadcast_to(part, own.shape) for part in (mean, spread)]
    features = jnp.concatenate([own, _beside(own), *whole], -1)
    # A head of evidence takes logarithms, of what is 0 or more.
    return jnp.expm1(features).astype(self.dtype)

  def windows(self, point: str) -> tuple[Window, ...]:
    """Returns the windows between the image and `point`."""
    del point
    return (Window(CELL, CELL),)

  @staticmethod
  def from_torch(layer: str) -> str | None:
    """Returns None: there are no weights to publish."""
    del layer
    return None


def _described(pixels: jax.Array) -> jax.Array:
  """Returns each cell's own features, [b, h', w', 38]."""
  light = pixels.mean(-1, keepdims=True)
  green = pixels[..., 1:2]
  plane = jnp.concatenate(
    [light, pixels[..., :1] - green, pixels[..., 2:] - green], -1
  )
  parts = [
    _log(_pooled(pixels, CELL)),
    _log(-_greatest(-_pooled(light, 2), CELL // 2)),
    _log(_greatest(_pooled(light, 2), CELL // 2)),
  ]
  for scale in range(_SCALES):
    side = CELL >> scale
    soft = _blurred(plane)
    band = plane - soft
    up, down = nn.relu(band[..., :1]), nn.relu(-band[..., :1])
    size = jnp.concatenate([up, down, jnp.abs(band[..., 1:])], -1)
    parts.append(_log(_pooled(size, side)))
    if scale < 3:
      across = jnp.abs(
        jnp.diff(soft[..., :1], axis=2, append=soft[:, :, -1:, :1])
      )
      along = jnp.abs(
        jnp.diff(soft[..., :1], axis=1, append=soft[:, -1:, :, :1])
      )
      steps = jnp.concatenate([across, along], -1)
      parts.append(_log(_pooled(steps, side)))
      parts.append(_log(_greatest(jnp.abs(band[..., :1]), side)))
    if side > 1:
      plane = _pooled(soft, 2)
  return jnp.concatenate(parts, -1)


def _log(x: jax.Array) -> jax.Array:
  return jnp.log1p(jnp.maximum(x, 0.0) / _LEAST)


def _pooled(x: jax.Array, side: int) -> jax.Array:
  """Returns x [b, h, w, c] averaged over squares of `side` pixels."""
  b, h, w, c = x.shape
  return x.reshape(b, h // side, side, w // side, side, c).mean((2, 4))


def _greatest(x: jax.Array, side: int) -> jax.Array:
  b, h, w, c = x.shape
  return x.reshape(b, h // side, side, w // side, side, c).max((2, 4))


def _blurred(x: jax.Array) -> jax.Array:
  """Returns x blurred by the binomial 1 2 1, edges repeated."""
  for axis in (1, 2):
    pad = [(0, 0)] * 4
    pad[axis] = (1, 1)
    wide = jnp.pad(x, pad, mode='edge')
    n = x.shape[axis]
    before, here, after = (
      jax.lax.slice_in_dim(wide, i, i + n, axis=axis) for i in range(3)
    )
    x = (before + 2 * here + after) / 4
  return x


def _beside(x: jax.Array) -> jax.Array:
  """Returns the mean over each cell's 3 x 3 neighbours, edges repeated."""
  wide = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode='edge')
  h, w = x.shape[1:3]
  total = jnp.zeros_like(x)
  for i in range(3):
    for j in range(3):
      total += wide[:, i : i + h, j : j + w]
  return total / 9
