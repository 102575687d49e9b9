"""Layers whose arithmetic is torchvision's: padding and normalisation.

Feature maps are NHWC. Parameters and statistics are float32 whatever the
compute type.
"""

from __future__ import annotations

from collections.abc import Sequence
import math
from typing import Any

from flax import linen as nn
import jax
from jax import lax
import jax.numpy as jnp
from jaxtyping import Float

from iqa_jax.models import platforms
from iqa_jax.photograph.placement import Window

EPSILON = 1e-5
# PyTorch's momentum 0.1 is the weight of the new value, ours of the old one.
MOMENTUM = 0.9
# Pixels times channels in and out, from which _convolve's own gradient is
# faster (measured with jax 0.10 on 2 cores).
_LARGE = 10**8

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
  return platforms.by_platform(convolve, x, kernel, cpu=remembering)


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

  def __call__(
    self, x: Float[jax.Array, 'b h w c']
  ) -> Float[jax.Array, 'b rows columns d']:
    return _pointwise(x, self.kernel(x.shape[-1]), self.stride, self.dtype)

  @nn.compact
  def kernel(self, channels: int) -> Float[jax.Array, '1 1 c d']:
    """Returns the parameter, for maps of so many channels."""
    shape = (1, 1, channels, self.features)
    return self.param(
      'kernel', nn.initializers.lecun_normal(), shape, jnp.float32
    )


def _pointwise(
  x: jax.Array, kernel: jax.Array, stride: int, dtype: jnp.dtype
) -> jax.Array:
  def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    x = x[:, ::stride, ::stride]
    flat = x.reshape(-1, x.shape[-1]) @ kernel[0, 0]
    return flat.reshape(*x.shape[:-1], kernel.shape[-1])

  def convolution(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return lax.conv_general_dilated(
      x,
      kernel,
      (stride, stride),
      'VALID',
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )

  return platforms.by_platform(
    convolution, x.astype(dtype), kernel.astype(dtype), cpu=product
  )


def relu(x: Float[jax.Array, 'b *place c']) -> Float[jax.Array, 'b *place c']:
  """Returns max(x, 0); on a TPU or GPU the gradient looks at the result.

  That one is kept anyway, what it was made of is not.
  """

  def from_result(x: jax.Array) -> jax.Array:
    function = jax.custom_jvp(nn.relu)
    function.defjvps(lambda change, y, x: jnp.where(y > 0, change, 0))
    return function(x)

  def kept(x: jax.Array) -> jax.Array:
    # Without the barrier XLA asks x > 0 instead, and keeps both.
    function = jax.custom_vjp(lambda x: lax.optimization_barrier(nn.relu(x)))
    function.defvjp(
      lambda x: (y := function(x), y),
      lambda y, change: (jnp.where(y > 0, change, 0),),
    )
    return function(x)

  return platforms.by_platform(nn.relu, x, tpu=from_result, cuda=kept)


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
    conv: Pointwise | None = None,
  ) -> Float[jax.Array, 'b *cells d']:
    """Normalises x [b, h, w, c]; `mask` [b] leaves examples out (0).

    Of `conv`, x's convolution by it is normalised. In training on a TPU, which
    is bound by bytes, that one is never seen: its statistics follow from the
    products of x's channels, and normalising is part of the kernel.
    """
    kernel, shape, stride = None, x.shape[-1:], 1
    if conv is not None:
      kernel, shape = conv.kernel(x.shape[-1]), (conv.features,)
      stride = conv.stride
    scale = self.param('scale', nn.initializers.ones, shape, jnp.float32)
    bias = self.param('bias', nn.initializers.zeros, shape, jnp.float32)
    running_mean = self.variable(
      'batch_stats', 'mean', jnp.zeros, shape, jnp.float32
    )
    running_var = self.variable(
      'batch_stats', 'var', jnp.ones, shape, jnp.float32
    )
    known = running_mean.value, running_var.value
    weights = jnp.ones(x.shape[:1]) if mask is None else mask
    weights = weights.astype(jnp.float32)[:, None, None, None]

    def plain(x: jax.Array, kernel: Any, scale: Any, bias: Any) -> Any:
      y = x if kernel is None else _pointwise(x, kernel, stride, self.dtype)
      statistics = *known, jnp.zeros(())
      if train:
        statistics = self._statistics(_sums(y, weights, known[0]), *known)
      factor, offset = _affine(scale, bias, *statistics[:2])
      return (y * factor + offset).astype(self.dtype), statistics

    def folded(x: jax.Array, kernel: Any, scale: Any, bias: Any) -> Any:
      x = x[:, ::stride, ::stride]
      sums = _sums_of_product(x, kernel[0, 0], weights, known[0])
      statistics = self._statistics(sums, *known)
      factor, offset = _affine(scale, bias, *statistics[:2])
      y = _pointwise(x, kernel * factor, 1, self.dtype)
      return (y + offset).astype(self.dtype), statistics

    arguments = x, kernel, scale, bias
    if train and kernel is not None:
      y, statistics = platforms.by_platform(plain, *arguments, tpu=folded)
    else:
      y, statistics = plain(*arguments)
    if train and not self.is_initializing():
      mean, var, count = statistics
      unbiased = var * count / jnp.maximum(count - 1, 1)
      # A batch of nothing but padding says nothing.
      weight = jnp.where(count > 0, 1 - MOMENTUM, 0.0)
      running_mean.value += weight * (mean - running_mean.value)
      running_var.value += weight * (unbiased - running_var.value)
    return y

  def _statistics(
    self,
    sums: tuple[jax.Array, jax.Array, jax.Array],
    shift: jax.Array,
    known_var: jax.Array,
  ) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns mean, variance and count over all devices, of `_sums`."""
    if self.axis_name is not None:
      sums = lax.psum(sums, self.axis_name)
    total, square, count = sums
    divisor = jnp.maximum(count, 1)
    offset = total / divisor
    var = jnp.maximum(square / divisor - offset**2, 0.0)
    # A part of nothing but padding is normalised by what is known: a variance
    # of 0 would enlarge it three hundredfold in every layer.
    return shift + offset, jnp.where(count > 0, var, known_var), count


def _affine(
  scale: jax.Array, bias: jax.Array, mean: jax.Array, var: jax.Array
) -> tuple[jax.Array, jax.Array]:
  factor = scale * lax.rsqrt(var + EPSILON)
  return factor, bias - mean * factor


def _sums(
  x: jax.Array, weights: jax.Array, shift: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Returns the sums of x - shift and of its squares [c], and the count."""
  # One pass over the map; shifted by the running mean, which is near, so
  # that the difference of the two sums doesn't cancel.
  centred = x.astype(jnp.float32) - lax.stop_gradient(shift)
  total = (centred * weights).sum((0, 1, 2))
  square = (centred**2 * weights).sum((0, 1, 2))
  return total, square, weights.sum() * x.shape[1] * x.shape[2]


def _sums_of_product(
  x: jax.Array, kernel: jax.Array, weights: jax.Array, shift: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Returns `_sums` of x @ kernel, without the product."""
  exact = lax.Precision.HIGHEST
  real = x * weights.astype(x.dtype)
  count = weights.sum() * x.shape[1] * x.shape[2]
  mean = real.astype(jnp.float32).sum((0, 1, 2)) / jnp.maximum(count, 1)
  half = jnp.einsum(
    'bhwi,bhwj->ij',
    lax.stop_gradient(real),
    x,
    precision=exact,
    preferred_element_type=jnp.float32,
  )
  # Of equal value; in this form the gradient is one product and not two.
  products = half + half.T - lax.stop_gradient(half)
  spread = products - count * mean[:, None] * mean
  centre = jnp.dot(mean, kernel, precision=exact) - lax.stop_gradient(shift)
  square = (kernel * jnp.dot(spread, kernel, precision=exact)).sum(0)
  return count * centre, square + count * centre**2, count
