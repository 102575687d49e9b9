"""ResNet-50's training step as Flax's imagenet example has it: the peer.

Written anew: a bottleneck network of nn.Conv and nn.BatchNorm with statistics
averaged over the devices, cross-entropy, gradients averaged; the optimiser is
handed in. https://github.com/google/flax/tree/main/examples/imagenet
"""

from __future__ import annotations

import functools
from typing import Any

from flax import linen as nn
import jax
from jax import lax
import jax.numpy as jnp
import optax

_BLOCKS = (3, 4, 6, 3)


class ResNet50(nn.Module):
  """Takes normalised images [b, h, w, 3]; gives float32 logits."""

  outputs: int
  dtype: Any
  axis_name: str

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    conv = functools.partial(nn.Conv, use_bias=False, dtype=self.dtype)
    norm = functools.partial(
      nn.BatchNorm,
      use_running_average=not train,
      momentum=0.9,
      epsilon=1e-5,
      dtype=self.dtype,
      axis_name=self.axis_name,
    )
    x = conv(64, (7, 7), (2, 2), padding=[(3, 3)] * 2)(x)
    x = nn.relu(norm()(x))
    x = nn.max_pool(x, (3, 3), strides=(2, 2), padding='SAME')
    for stage, blocks in enumerate(_BLOCKS):
      width = 64 * 2**stage
      for block in range(blocks):
        stride = (2, 2) if stage and not block else (1, 1)
        y = nn.relu(norm()(conv(width, (1, 1))(x)))
        y = nn.relu(norm()(conv(width, (3, 3), stride)(y)))
        y = norm()(conv(4 * width, (1, 1))(y))
        if y.shape != x.shape:
          x = norm()(conv(4 * width, (1, 1), stride)(x))
        x = nn.relu(x + y)
    x = jnp.mean(x, axis=(1, 2))
    return nn.Dense(self.outputs, dtype=self.dtype)(x).astype(jnp.float32)


def make(
  size: int, dtype: str, axis_name: str, optimizer: optax.GradientTransformation
) -> tuple[Any, Any]:
  """Returns (step(state, images [b, s, s, 3], labels [b]), state's shapes)."""
  model = ResNet50(2, jnp.dtype(dtype), axis_name)
  plain = ResNet50(2, jnp.dtype(dtype), None)
  shapes = jax.eval_shape(
    lambda: plain.init(
      jax.random.key(0), jnp.zeros((1, size, size, 3)), train=False
    )
  )

  def init(variables):
    opt_state = optimizer.init(variables['params'])
    return variables['params'], variables['batch_stats'], opt_state

  def step(state, images, labels):
    params, stats, opt_state = state

    def loss(params):
      logits, changed = model.apply(
        {'params': params, 'batch_stats': stats},
        images.astype(jnp.dtype(dtype)),
        train=True,
        mutable=['batch_stats'],
      )
      each = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
      return each.mean(), changed['batch_stats']

    (value, new), grads = jax.value_and_grad(loss, has_aux=True)(params)
    grads = lax.pmean(grads, axis_name)
    changes, opt_state = optimizer.update(grads, opt_state, params)
    state = optax.apply_updates(params, changes), new, opt_state
    return state, lax.pmean(value, axis_name)

  return step, jax.eval_shape(init, shapes)
