"""Networks by name: `create`, `init`, `normalize`; weights: `pretrained.load`.

A backbone is one file with a Flax module (`points`, `default_layer`,
`imagenet_head`, a `__call__` that runs one point) and `from_torch`, which says
where a published checkpoint's layers belong. To add one, write the file and
name it in `_BACKBONES`.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float, Real
import ml_collections
import numpy as np

from iqa_jax import errors
from iqa_jax.aliases import Record
from iqa_jax.models import evidence, heads, layers, resnet, vgg
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
  last: str | None = None,
  width: float = 1.0,
  depth: float = 1.0,
  dropout: float = 0.5,
  dtype: str = 'float32',
  axis_name: str | None = None,
  taps: tuple[str, ...] = (),
  cells: int = 28,
  cell_units: int = 128,
  cell_spread: tuple[float, ...] = (),
  detail: bool = False,
  independent: bool = False,
  field_pooling: bool = False,
) -> Classifier:
  """Returns a model; it holds no parameters, see `init`.

  Args:
    name: one of `names()`.
    num_outputs: number of logits.
    head: one of heads.KINDS, 'imagenet', or 'evidence'.
    last: the feature point that the head follows, what lies beyond it is left
      out; None or '' for the backbone's last.
    width: multiplies every channel count.
    depth: multiplies the layers of every stage.
    dropout: rate after the head's hidden layers.
    dtype: compute type, 'float32' or 'bfloat16'; parameters are float32.
    axis_name: pmap axis over which BatchNorm statistics are shared.
    taps: the points that a head of evidence looks at; () for the backbone's
      own choice. What lies beyond the last of them is left out.
    cells: side of the grid of evidence.
    cell_units: hidden units of a cell.
    cell_spread: how far a cell shares its evidence (evidence.shared_around).
    detail: cells see the whole image, the backbone half of it (evidence.Neck).
    independent: the outputs are criteria, each judged by itself.
    field_pooling: the last map is averaged inside the field of view only.

  Raises:
    ValueError: there is no such backbone, point, head or compute type.
  """
  errors.one_of('model', name, names())
  errors.one_of('compute type', dtype, ('float32', 'bfloat16'))
  backbone = _BACKBONES[name](
    width=width, depth=depth, dtype=jnp.dtype(dtype), axis_name=axis_name
  )
  if head == 'evidence':
    taps = taps or backbone.taps
    for tap in taps:
      errors.one_of('tap', tap, backbone.points)
    taps = tuple(sorted(taps, key=backbone.points.index))
    num_maps = num_outputs if independent else len(evidence.LOCAL)
    if min(cell_spread, default=0.0) < 0:
      raise errors.InvalidValue(f'cell_spread={cell_spread} is less than 0')
    neck = evidence.Neck(
      taps, cells, cell_units, num_maps, jnp.dtype(dtype), cell_spread, detail
    )
    top = evidence.Head(num_outputs, num_maps, independent)
    return Classifier(backbone, top, taps[-1], neck)
  if detail:
    raise errors.InvalidValue(f'the head {head!r} has no cells to see detail')
  if last:
    errors.one_of('last', last, backbone.points)
  kinds = heads.KINDS | {'imagenet': backbone.imagenet_head}
  errors.one_of('head', head, [*kinds, 'evidence'])
  pool, hidden = shape = kinds[head]
  if field_pooling and pool not in ('average', 'standardized'):
    raise errors.InvalidValue(
      f'the head {head!r} does not average, so it has no use for field_pooling'
    )
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
    last or None,
    field_pooling=field_pooling,
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
    last=c.last,
    width=c.width,
    depth=c.depth,
    dropout=c.dropout,
    dtype=c.dtype,
    axis_name=axis_name,
    taps=tuple(c.taps),
    cells=c.cells,
    cell_units=c.cell_units,
    cell_spread=tuple(c.cell_spread),
    detail=c.detail,
    independent=config.task.name == 'criteria',
    field_pooling=c.field_pooling,
  )


def inputs(config: ml_collections.ConfigDict) -> Record:
  """Returns what a run's model takes beside colours, for pipeline.batches.

  'field': bool, whether images come with their field of view; 'cells': int, the
  side of the grid on which faults are learned, 0 for none.
  """
  evident = config.model.head == 'evidence'
  return {
    'field': evident or config.model.field_pooling,
    'cells': config.model.cells if evident else 0,
  }


def shapes(model: Classifier, image_size: int) -> Record:
  """Returns the ShapeDtypeStruct of every variable, computing nothing."""
  images = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
  return jax.eval_shape(model.init, jax.random.key(0), images)


@functools.partial(jax.jit, static_argnums=(0, 2))
def init(model: Classifier, key: jax.Array, image_size: int) -> Record:
  """Returns randomly initialised variables, float32 on the default device.

  Convolutions are drawn after He et al. (2015, eq. 14, over the outputs),
  dense layers with deviation 0.01; biases are 0.
  """
  tree = shapes(model, image_size)
  kernels = [leaf.size for leaf in jax.tree.leaves(tree) if leaf.ndim > 1]
  # All at once: fifty generators take XLA longer to compile than the network.
  normal = jax.random.normal(key, (sum(kernels),))
  parts = iter(jnp.split(normal, np.cumsum(kernels)[:-1]))

  def draw(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> jax.Array:
    if leaf.ndim == 1:
      one = path[-1].key in ('scale', 'var')
      # A dtype, or they are weakly typed and step 2 compiles all over again.
      return jnp.full(leaf.shape, float(one), leaf.dtype)
    deviation = 0.01
    if leaf.ndim == 4:
      deviation = np.sqrt(2 * leaf.shape[2] / leaf.size)
    return next(parts).reshape(leaf.shape) * np.float32(deviation)

  return jax.tree_util.tree_map_with_path(draw, tree)


def normalize(
  images: Real[jax.Array, 'b h w c'],
) -> Float[jax.Array, 'b h w c']:
  """Returns uint8 images as the networks take them.

  Args:
    images: RGB [b, h, w, 3], or RGB and the field of view as a fourth channel.

  Returns:
    float32: RGB scaled to ImageNet's mean 0 and deviation 1; the field scaled
    to 0..1.
  """
  scaled = images / 255.0
  colour = (scaled[..., :3] - MEAN) / DEVIATION
  return jnp.concatenate([colour, scaled[..., 3:]], -1)
