"""Layers whose arithmetic is torchvision's: padding, pooling, normalisation.

Feature maps are NHWC. Parameters and statistics are float32 whatever the
compute type.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
import contextlib
import contextvars
import math
from typing import Any

from flax import linen as nn
import jax
from jax import lax
import jax.numpy as jnp
from jaxtyping import Float
import numpy as np

from iqa_jax.photograph.placement import Window

EPSILON = 1e-5
# PyTorch's momentum 0.1 is the weight of the new value, ours of the old one.
MOMENTUM = 0.9
# Pixels times channels in and out, from which _convolve's own gradient is
# faster (measured with jax 0.10 on 2 cores).
_LARGE = 10**8
_PORTABLE = contextvars.ContextVar('portable', default=False)

Mask = jax.Array | None


def scaled(count: int, multiplier: float) -> int:
  """Returns a channel or block count times a multiplier, at least 1."""
  return max(1, round(count * multiplier))


def conv(
  features: int,
  window: Window,
  *,
  bias: bool = False,
  dtype: jnp.dtype,
  name: str | None = None,
) -> nn.Module:
  """Returns a square convolution, padded alike on every side as torch's are.

  'SAME' would pad a strided convolution on the right and below only.
  """
  size, stride, padding = window
  if size == 1 and not bias:
    return Pointwise(features, stride, dtype, name=name)
  return nn.Conv(
    features,
    (size, size),
    strides=(stride, stride),
    padding=[(padding, padding)] * 2,
    use_bias=bias,
    dtype=dtype,
    name=name,
    conv_general_dilated=_convolve if stride == 1 else None,
  )


@contextlib.contextmanager
def portable() -> Iterator[None]:
  """What is traced in here has nothing that is tuned for the CPU.

  For formats that have no word for a choice by platform.
  """
  token = _PORTABLE.set(True)
  try:
    yield
  finally:
    _PORTABLE.reset(token)


def _by_platform(
  cpu: Callable[..., jax.Array],
  default: Callable[..., jax.Array],
  *arguments: jax.Array,
) -> jax.Array:
  """Returns `cpu` of the arguments in programs for a CPU, else `default`.

  Chosen when a program is lowered, for the platform that it is lowered for: no
  trace of the other is left in it, nor in its gradient.
  """
  if _PORTABLE.get():
    return default(*arguments)
  return lax.platform_dependent(*arguments, cpu=cpu, default=default)


def _convolve(
  x: jax.Array,
  kernel: jax.Array,
  window_strides: Sequence[int],
  padding: Sequence[tuple[int, int]],
  **options: Any,
) -> jax.Array:
  """Returns lax.conv_general_dilated, with a faster gradient of the kernel.

  Where maps are large, XLA's CPU gradient of a 3x3 kernel runs at a quarter of
  the forward pass's speed. Products of gathered windows, photograph by
  photograph, take a third to a half of its time; small maps gain nothing.
  """

  def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return lax.conv_general_dilated(
      x, kernel, window_strides, padding, **options
    )

  # On the CPU only; elsewhere the library's own is best.
  if math.prod(x.shape[1:]) * kernel.shape[-1] < _LARGE:
    return convolve(x, kernel)

  def backward(
    kept: tuple[jax.Array, jax.Array], gradient: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    x, kernel = kept
    _, to_input = jax.vjp(lambda x: convolve(x, kernel), x)
    padded = jnp.pad(x, [(0, 0), *padding, (0, 0)])
    height, width, features = gradient.shape[1:]
    rows, columns = kernel.shape[:2]

    def add(
      total: jax.Array, one: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, None]:
      image, pull = one
      beside = [image[:, j : j + width] for j in range(columns)]
      wide = jnp.concatenate(beside, -1)
      products = [
        jnp.einsum(
          'hwi,hwo->io',
          wide[i : i + height],
          pull,
          preferred_element_type=jnp.float32,
        )
        for i in range(rows)
      ]
      return total + jnp.stack(products), None

    shape = (rows, kernel.size // features // rows, features)
    total, _ = lax.scan(add, jnp.zeros(shape, jnp.float32), (padded, gradient))
    return *to_input(gradient), total.reshape(kernel.shape).astype(kernel.dtype)

  remembering = jax.custom_vjp(convolve)
  remembering.defvjp(lambda x, k: (convolve(x, k), (x, k)), backward)
  return _by_platform(remembering, convolve, x, kernel)


class Pointwise(nn.Module):
  """A 1x1 convolution without bias; on a CPU the matrix product that it is.

  XLA's CPU convolutions take 1.5 to 9 times as long for a kernel's gradient.
  Elsewhere a convolution is fused with its neighbours, and XLA's compiler for
  an H100 (jax 0.10.2) ends the process at the matrix product.

  Attributes:
    features: channels of the result.
    stride: rows and columns between the pixels that are looked at.
    dtype: compute type.
  """

  features: int
  stride: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(
    self, x: Float[jax.Array, 'b h w c']
  ) -> Float[jax.Array, 'b rows columns d']:
    shape = (1, 1, x.shape[-1], self.features)
    kernel = self.param(
      'kernel', nn.initializers.lecun_normal(), shape, jnp.float32
    )

    def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
      x = x[:, :: self.stride, :: self.stride]
      flat = x.reshape(-1, x.shape[-1]) @ kernel[0, 0]
      return flat.reshape(*x.shape[:-1], self.features)

    def convolution(x: jax.Array, kernel: jax.Array) -> jax.Array:
      return lax.conv_general_dilated(
        x,
        kernel,
        (self.stride, self.stride),
        'VALID',
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
      )

    return _by_platform(
      product, convolution, x.astype(self.dtype), kernel.astype(self.dtype)
    )


def max_pool(
  x: Float[jax.Array, 'b h w c'], window: Window
) -> Float[jax.Array, 'b rows columns c']:
  """Returns the maxima of square windows of x [b, h, w, c].

  Padding is -infinity on every side, so it never wins; the first of equal
  values gets the gradient, and NaN wins, as in torch.
  """
  size, stride, padding = window

  def pool(x: jax.Array) -> jax.Array:
    return nn.max_pool(
      x,
      window_shape=(size, size),
      strides=(stride, stride),
      padding=[(padding, padding)] * 2,
    )

  def running(x: jax.Array) -> jax.Array:
    # The gradient of XLA's pooling (select-and-scatter) takes 8 to 13 times as
    # long on a CPU as that of a running maximum over the windows' places.
    x = jnp.pad(
      x,
      [(0, 0), (padding, padding), (padding, padding), (0, 0)],
      constant_values=-jnp.inf,
    )
    ends = [length - size + 1 for length in x.shape[1:3]]
    best = jnp.full((), -jnp.inf, x.dtype)
    for i in range(size):
      for j in range(size):
        here = x[:, i : ends[0] + i : stride, j : ends[1] + j : stride]
        best = jnp.where((here > best) | jnp.isnan(here), here, best)
    return best

  return _by_platform(running, pool, x)


def adaptive_average(
  x: Float[jax.Array, 'b h w c'], size: int
) -> Float[jax.Array, 'b size size c']:
  """Returns x [b, h, w, c] averaged to [b, size, size, c].

  The cells are those of torch.nn.AdaptiveAvgPool2d: cell i covers rows
  floor(i h / size) to ceil((i + 1) h / size); they overlap or repeat where
  size does not divide h.
  """
  if x.shape[1:3] == (size, size):
    return x
  rows = jnp.asarray(_cells(x.shape[1], size), x.dtype)
  columns = jnp.asarray(_cells(x.shape[2], size), x.dtype)
  return jnp.einsum(
    'bhwc,ih,jw->bijc', x, rows, columns, precision=lax.Precision.HIGHEST
  )


def _cells(length: int, size: int) -> np.ndarray:
  """Returns the averaging weights [size, length] of every cell."""
  i = np.arange(size)[:, None]
  first, end = i * length // size, -(-(i + 1) * length // size)
  at = np.arange(length)[None]
  return ((first <= at) & (at < end)) / (end - first)


class BatchNorm(nn.Module):
  """Batch normalisation with torch's arithmetic, exact under masks.

  In training the statistics are those of all real examples on all devices:
  sums and counts are added up before dividing, so devices may hold different
  numbers of padded examples (a mean of the devices' means would be wrong). The
  running variance takes the unbiased batch variance, as torch does.

  Attributes:
    axis_name: pmap axis over which statistics are shared; None for one device.
    dtype: compute type of the result.
  """

  axis_name: str | None = None
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(
    self,
    x: Float[jax.Array, 'b *place c'],
    *,
    train: bool = False,
    mask: Mask = None,
  ) -> Float[jax.Array, 'b *place c']:
    """Normalises x [b, h, w, c]; `mask` [b] leaves examples out (0)."""
    shape = x.shape[-1:]
    scale = self.param('scale', nn.initializers.ones, shape, jnp.float32)
    bias = self.param('bias', nn.initializers.zeros, shape, jnp.float32)
    running_mean = self.variable(
      'batch_stats', 'mean', jnp.zeros, shape, jnp.float32
    )
    running_var = self.variable(
      'batch_stats', 'var', jnp.ones, shape, jnp.float32
    )
    if train:
      mean, var, count = self._batch_statistics(
        x, mask, running_mean.value, running_var.value
      )
      if not self.is_initializing():
        unbiased = var * count / jnp.maximum(count - 1, 1)
        # A batch of nothing but padding says nothing.
        weight = jnp.where(count > 0, 1 - MOMENTUM, 0.0)
        running_mean.value += weight * (mean - running_mean.value)
        running_var.value += weight * (unbiased - running_var.value)
    else:
      mean, var = running_mean.value, running_var.value
    factor = scale * lax.rsqrt(var + EPSILON)
    offset = bias - mean * factor
    return (x * factor + offset).astype(self.dtype)

  def _batch_statistics(
    self, x: jax.Array, mask: Mask, shift: jax.Array, known_var: jax.Array
  ) -> tuple[jax.Array, jax.Array, jax.Array]:
    x = x.astype(jnp.float32)
    weights = jnp.ones(x.shape[:1]) if mask is None else mask
    weights = weights.astype(jnp.float32)[:, None, None, None]
    # One pass over the map; shifted by the running mean, which is near, so
    # that the difference of the two sums doesn't cancel.
    centred = x - lax.stop_gradient(shift)
    total = (centred * weights).sum((0, 1, 2))
    square = (centred**2 * weights).sum((0, 1, 2))
    count = weights.sum() * x.shape[1] * x.shape[2]
    if self.axis_name is not None:
      total, square, count = lax.psum((total, square, count), self.axis_name)
    divisor = jnp.maximum(count, 1)
    offset = total / divisor
    var = jnp.maximum(square / divisor - offset**2, 0.0)
    # A part of nothing but padding is normalised by what is known: a variance
    # of 0 would enlarge it three hundredfold in every layer.
    return shift + offset, jnp.where(count > 0, var, known_var), count
