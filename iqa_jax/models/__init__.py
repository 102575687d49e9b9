"""Networks by name: `create`, `init`, `normalize`; weights: `pretrained.load`.

A backbone is one file with a Flax module (`points`, `default_layer`,
`imagenet_head`, a `__call__` that runs one point) and `from_torch`, which says
where a published checkpoint's layers belong. To add one, write the file and
name it in `_BACKBONES`.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from iqa_jax.models import heads, layers, resnet, vgg
from iqa_jax.models.classifier import Classifier

_BACKBONES = {'resnet50': resnet.ResNet, 'vgg16': vgg.VGG}

# Of ImageNet's training images, RGB in [0, 1]; what the published weights and
# every fine-tuned model expect.
MEAN = np.asarray([0.485, 0.456, 0.406], np.float32)
DEVIATION = np.asarray([0.229, 0.224, 0.225], np.float32)


def names() -> tuple[str, ...]:
  """Returns the names of the backbones."""
  return tuple(sorted(_BACKBONES))


def create(
  name: str,
  num_outputs: int,
  *,
  head: str = 'linear',
  width: float = 1.0,
  depth: float = 1.0,
  dropout: float = 0.5,
  dtype: str = 'float32',
  axis_name: str | None = None,
) -> Classifier:
  """Returns a model; it holds no parameters, see `init`.

  Args:
    name: one of `names()`.
    num_outputs: number of logits.
    head: 'linear', 'mlp' or 'imagenet' (see heads.py).
    width: multiplies every channel count.
    depth: multiplies the layers of every stage.
    dropout: rate after the head's hidden layers.
    dtype: compute type, 'float32' or 'bfloat16'; parameters are float32.
    axis_name: pmap axis over which BatchNorm statistics are shared.

  Raises:
    ValueError: there is no such backbone, head or compute type.
  """
  if name not in _BACKBONES:
    raise ValueError(f'model {name!r} is none of {", ".join(names())}')
  if dtype not in ('float32', 'bfloat16'):
    raise ValueError(f'compute type {dtype!r} is none of float32, bfloat16')
  backbone = _BACKBONES[name](
    width=width, depth=depth, dtype=jnp.dtype(dtype), axis_name=axis_name
  )
  if head == 'imagenet':
    shape = backbone.imagenet_head
  elif head in heads.KINDS:
    shape = heads.KINDS[head]
  else:
    kinds = ', '.join([*heads.KINDS, 'imagenet'])
    raise ValueError(f'head {head!r} is none of {kinds}')
  pool, hidden = shape
  return Classifier(
    backbone,
    heads.Head(
      kind='linear' if shape == heads.KINDS['linear'] else head,
      pool=pool,
      hidden=tuple(layers.scaled(size, width) for size in hidden),
      num_outputs=num_outputs,
      dropout=dropout,
      dtype=jnp.dtype(dtype),
    ),
  )


def from_config(
  config: ml_collections.ConfigDict,
  num_outputs: int,
  *,
  axis_name: str | None = None,
) -> Classifier:
  """Returns the model that `config.model` describes."""
  c = config.model
  return create(
    c.name,
    num_outputs,
    head=c.head,
    width=c.width,
    depth=c.depth,
    dropout=c.dropout,
    dtype=c.dtype,
    axis_name=axis_name,
  )


def init(model: Classifier, key: jax.Array, image_size: int) -> dict[str, Any]:
  """Returns randomly initialised variables, float32 on the default device."""
  images = jnp.zeros((1, image_size, image_size, 3))
  return jax.jit(model.init)(key, images)


def normalize(images: jax.Array, dtype: jnp.dtype = jnp.float32) -> jax.Array:
  """Returns uint8 RGB images scaled to ImageNet's mean 0 and deviation 1."""
  return ((images / 255.0 - MEAN) / DEVIATION).astype(dtype)
