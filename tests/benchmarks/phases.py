"""What freezing saves: the step's FLOPs and memory by phase, and the schedule.

The schedule is the earlier work's: VGG16 with its dense head, 10 epochs of the
head, then 20 with the last convolutional block, at 224 px. It is run whole,
with the feature cache and without, on few photographs (drawn in memory, so
that reading them costs neither side anything); validation is on a fifth of
them. PyTorch's figures for the same step are in `train_step`.
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
import time
from typing import Any

from tests.benchmarks import _material, common

_LAST = {'resnet50': 'stage4', 'vgg16': 'block5'}


@dataclasses.dataclass(frozen=True)
class _Plan:
  index: Any
  flip: Any

  @property
  def view(self):
    return self.flip.astype(int)


class _Drawn:
  """Photographs of noise: the interface of data/ that training sees."""

  def __init__(self, count: int, size: int):
    import numpy as np

    rng = np.random.default_rng(0)
    self._images = rng.integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    quality = np.arange(count) % 2
    self.table = {
      'image_id': np.array([f'image_{i}' for i in range(count)]),
      'quality': quality,
      'grade': quality * 2,
      'criteria': np.repeat(quality[:, None], 4, axis=1),
    }

  @staticmethod
  def finite_views(config):
    return [0, 1] if config.data.augment.flip else [0]

  @staticmethod
  def plan_train(source, indices, config, epoch):
    import numpy as np

    rng = np.random.default_rng([config.seed, epoch])
    return _Plan(rng.permutation(indices), rng.random(len(indices)) < 0.5)

  @staticmethod
  def plan_eval(indices):
    import numpy as np

    return _Plan(np.asarray(indices), np.zeros(len(indices), bool))

  @staticmethod
  def planned_labels(source, indices, config, epochs):
    keys = ('quality', 'grade', 'criteria')
    return {key: source.table[key][indices] for key in keys}

  @staticmethod
  def plan_views(source, indices, config, view):
    import numpy as np

    return _Plan(np.asarray(indices), np.full(len(indices), bool(view)))

  @staticmethod
  def targets(source, plan, at, share):
    import numpy as np

    index = np.zeros(share, np.int64)
    index[: len(at)] = plan.index[at]
    return {
      'mask': (np.arange(share) < len(at)).astype(np.float32),
      'index': index,
      **{k: v[index] for k, v in source.table.items()},
      'landmarks': np.full((share, 5), np.nan, np.float32),
    }

  @staticmethod
  def batches(source, plan, *, image_size, batch_size, start_batch=0, **_):
    import numpy as np

    for first in range(start_batch * batch_size, len(plan.index), batch_size):
      at = np.arange(first, min(first + batch_size, len(plan.index)))
      images = np.zeros((batch_size, *source._images.shape[1:]), np.uint8)
      images[: len(at)] = source._images[plan.index[at]]
      flip = np.flatnonzero(plan.flip[at])
      images[flip] = images[flip][:, :, ::-1]
      yield {'image': images, **_Drawn.targets(source, plan, at, batch_size)}


def _compiled_step(name: str, learns: str, batch: int, size: int, cached: bool):
  """Returns GFLOPs and the peak memory in MB of a phase's compiled step."""
  import jax
  import numpy as np

  from iqa_jax import config as config_lib
  from iqa_jax import devices, models
  from iqa_jax.tasks import Task
  from iqa_jax.training import phases
  from iqa_jax.training import step as step_lib

  head = 'mlp' if name == 'vgg16' else 'linear'
  model = models.create(name, 2, head=head, axis_name=devices.AXIS)
  variables = models.init(model, jax.random.key(0), size)
  learning = phases.learning(
    config_lib.phase(learns=learns, optimizer='adam'),
    variables['params'],
    model.stages,
    steps_per_epoch=10,
  )
  state = step_lib.begin_phase(step_lib.create_state(variables), learning)
  start = learning.prefix if cached else None
  inputs: dict[str, Any] = {
    'mask': np.ones(batch, np.float32),
    'index': np.arange(batch),
    'quality': np.zeros(batch, np.int32),
    'grade': np.zeros(batch, np.int32),
    'criteria': np.zeros((batch, 4), np.int32),
  }
  if start is None:
    inputs['image'] = np.zeros((batch, size, size, 3), np.uint8)
  else:
    maps = jax.eval_shape(
      lambda v, x: model.apply(v, x, stop=start),
      variables,
      jax.ShapeDtypeStruct((batch, size, size, 3), np.float32),
    )
    inputs['features'] = np.zeros(maps.shape, maps.dtype)
  step: Any = step_lib.make_train_step(model, Task(), learning, start=start)
  compiled = step.lower(
    devices.place(state), step_lib.for_step(inputs, stop=False, accumulate=1)
  ).compile()
  cost, memory = compiled.cost_analysis(), compiled.memory_analysis()
  cost = cost[0] if isinstance(cost, list) else cost
  peak = (
    memory.argument_size_in_bytes
    + memory.output_size_in_bytes
    + memory.temp_size_in_bytes
    - memory.alias_size_in_bytes
  )
  return cost['flops'] / 1e9, peak / 1e6


def _schedule(images: int, size: int, width: float, cache_gb: float):
  """Returns a function that runs the schedule: (wall, processor) seconds."""
  import numpy as np

  from iqa_jax import config as config_lib
  from iqa_jax.training import feature_cache, loop
  from iqa_jax.training import run as run_lib

  config = config_lib.default()
  config.data.image_size = size
  config.model.name, config.model.head = 'vgg16', 'mlp'
  config.model.width = width
  config.train.cache_gb = cache_gb
  config.train.batch_size = config.eval.batch_size = images
  source = _Drawn(images + images // 4, size)
  pipeline: Any = source
  feature_cache.pipeline = pipeline
  for module in (loop, run_lib, feature_cache):
    module.plan_lib = pipeline
  splits = {
    'train': np.arange(images),
    'validation': np.arange(images, images + images // 4),
  }

  def run(epochs: tuple[int, int]) -> tuple[float, float]:
    config.train.phases = tuple(
      config_lib.phase(
        learns=learns, epochs=n, optimizer='adam', learning_rate=rate
      )
      for learns, n, rate in (
        ('head', epochs[0], 1e-5),
        ('block5+head', epochs[1], 1e-6),
      )
    )
    with tempfile.TemporaryDirectory() as workdir:
      start = time.perf_counter(), time.process_time()
      loop.train(config, workdir, source, splits)
      return time.perf_counter() - start[0], time.process_time() - start[1]

  return run


def run(
  *,
  smoke: bool = False,
  images: int = 16,
  batch: int = 32,
  size: int = 224,
  schedule: str = 'cached uncached',
  steps: bool = True,
) -> list[common.Row]:
  """Measures the compiled steps and the schedule.

  Args:
    smoke: smallest sizes.
    images: training photographs of the schedule, one batch an epoch.
    batch: examples of the compiled steps.
    size: side of the images in pixels.
    schedule: which sides of the schedule to run; '' for neither.
    steps: whether to look at the compiled steps.
  """
  width = 1.0
  if smoke:
    images, batch, size, width = 4, 2, 64, 0.05
  rows = []
  for name, last in _LAST.items() if steps else ():
    for learns, cached in (
      ('head', True),
      ('head', False),
      (f'{last}+head', True),
      (f'{last}+head', False),
      ('all', False),
    ):
      where = f'{learns} learns' + (', from cached maps' if cached else '')
      # XLA counts what a loop over photographs does once.
      flops, _ = _compiled_step(name, learns, 1, size, cached)
      step = f'step, {name} {size} px'
      rows.append(common.Row(f'{step}, batch 1, {where}', [flops], 'GFLOPs'))
      _, peak = _compiled_step(name, learns, batch, size, cached)
      step = f'step memory, {name} {size} px'
      rows.append(common.Row(f'{step}, batch {batch}, {where}', [peak], 'MB'))
  if schedule:
    rows += _schedule_rows(images, size, width, schedule.split())
  return rows


def _schedule_rows(
  images: int, size: int, width: float, sides: list[str]
) -> list[common.Row]:
  # Each side compiles its programs once, outside the measured time.
  folder = tempfile.mkdtemp()
  _material.cache_compilations(folder)
  seconds = {}
  for name in sides:
    cached = name == 'cached'
    schedule = _schedule(images, size, width, 4.0 if cached else 0.0)
    schedule((3, 3) if cached else (1, 1))
    seconds[name] = schedule((10, 20))
  what = f'30-epoch schedule, {images} images of {size} px'
  note = 'both include validation, checkpoints and saving the best model'
  rows = []
  # Processor time is what a busy machine doesn't stretch.
  for i, kind in enumerate(('', ', processor time')):
    for name, values in seconds.items():
      row = common.Row(f'{what}, {name}{kind}', [values[i]], 's', note=note)
      rows.append(row)
    if len(seconds) == 2:
      gain = seconds['uncached'][i] / seconds['cached'][i]
      what_gain = f'{what}: speed-up{kind}'
      rows.append(
        common.Row(what_gain, [gain], 'x', target='at least 5x', note=note)
      )
  return rows


if __name__ == '__main__':
  sys.exit(common.main(run))
