"""A network whose reasons are known: it sees bright spots and nothing else."""

import jax
import jax.numpy as jnp
import numpy as np

from iqa_jax import config as config_lib
from iqa_jax import models, tasks, trained
from iqa_jax.models import heads
from iqa_jax.photograph.placement import Placement
from iqa_jax.studies import photographs as photographs_lib

SIZE = 64
CELL = 4  # pixels
BIAS = -1.0


class BrightSpots:
  """logit(inadequate) = gain * mean of what is brighter than 3/4, + bias.

  Its only feature map holds that brightness above 3/4, cell by cell, so the
  true explanation is the map itself.
  """

  points = ('map',)
  default_layer = 'map'
  takes_field = False
  head = heads.Head('linear', *heads.KINDS['linear'], num_outputs=2)

  def placement(self, point):
    assert point == 'map'
    return Placement(CELL / 2, CELL)

  def apply(self, variables, x, *, start=None, stop=None, mutable=None):
    if start is None:
      light = (x * models.DEVIATION + models.MEAN).mean(-1)
      n, h, w = light.shape
      over = jax.nn.relu(light - 0.75)
      cells = over.reshape(n, h // CELL, CELL, w // CELL, CELL)
      x = cells.mean((2, 4))[..., None]
    if stop is not None:
      return (x, {'intermediates': {'map': (x,)}}) if mutable else x
    gain = variables['params']['head']['gain']
    logits = jnp.stack(
      [0 * x.sum((1, 2, 3)), gain[0] * x.mean((1, 2, 3)) + BIAS], axis=1
    )
    if len(gain) != 2:
      # One output a criterion: all but artifacts say no.
      rest = jnp.full_like(logits[:, :1], -6.0)
      logits = jnp.concatenate([rest, rest, rest, logits[:, 1:]], axis=1)
    return (logits, {'intermediates': {}}) if mutable else logits


def loaded(task: str = 'quality') -> trained.Trained:
  """Returns the network as if it had been trained."""
  size = 4 if task == 'criteria' else 2
  return trained.Trained(
    model=BrightSpots(),
    variables={'params': {'head': {'gain': np.full(size, 1000.0, np.float32)}}},
    task=tasks.Task(task),
    config=config_lib.default(),
    record={'operating_point': {'threshold': 0.5}},
    digest='constructed',
    image_size=SIZE,
  )


def photographs(count: int, **fields) -> photographs_lib.Photographs:
  """Returns even, brown fields of view: adequate, right eyes."""
  y, x = np.mgrid[:SIZE, :SIZE] + 0.5 - SIZE / 2
  inside = np.hypot(x, y) < 0.48 * SIZE
  rng = np.random.default_rng(0)
  images = np.zeros((count, SIZE, SIZE, 3), np.uint8)
  images[:, inside] = (150, 80, 50)
  noise = rng.integers(0, 20, images.shape).astype(np.uint8)
  images += noise * inside[..., None]
  known = {
    'ids': np.asarray([f'made-{i}' for i in range(count)]),
    'images': images,
    'inside': np.repeat(inside[None], count, 0),
    'quality': np.zeros(count, int),
    'grade': np.full(count, -1),
    'criteria': np.zeros((count, 4), int),
    'eyes': np.full(count, 'right'),
    'landmarks': np.tile([44.0, 32.0, 9.0, 20.0, 34.0], (count, 1)),
    'patients': np.full(count, ''),
    'skipped': (),
    'source': 'constructed',
  }
  return photographs_lib.Photographs(**(known | fields))
