"""How cost grows: with the batch, the image, the devices and the listed files.

A cliff would show as a jump of the cost of one image (one megapixel, one file)
from a row to the next. The network is a ResNet of a quarter of ResNet50's width
and a third of its blocks, so that the whole table takes minutes on two cores;
devices are virtual ones that share those cores, so more of them can at best
cost nothing.
"""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import tempfile

from tests.benchmarks import common

_NETWORK = {'width': 0.25, 'depth': 0.3}


def run(
  *,
  smoke: bool = False,
  repeats: int = 3,
  axes: str = 'batch,size,devices,files',
) -> list[common.Row]:
  """Returns a row for every point of the axes named."""
  points: dict[str, tuple[int, ...]] = {
    'batch': (1, 2, 4, 8, 16, 32, 64, 128, 256),
    'size': (224, 320, 448, 640, 768, 1024),
    'devices': (1, 2, 4, 8),
    'files': (100, 1000, 10_000, 100_000),
  }
  size, batch = 224, 4
  if smoke:
    points = {
      'batch': (1, 4),
      'size': (64, 96),
      'devices': (1, 2),
      'files': (100, 1000),
    }
    size, batch, repeats = 64, 2, 1
  rows: list[common.Row] = []
  for axis in axes.split(','):
    for point in points[axis]:
      if axis == 'batch':
        what = f'batch {point}'
        new = _network(point, size, repeats, point, 'ms/image', what)
      elif axis == 'size':
        megapixels = batch * point * point / 1e6
        what = f'{point} px'
        new = _network(batch, point, repeats, megapixels, 'ms/megapixel', what)
      elif axis == 'devices':
        new = [_devices(point, size, repeats)]
      else:
        new = [_files(point, repeats)]
      print(*new, sep='\n', file=sys.stderr, flush=True)
      rows += new
  return rows


def child(batch: int, size: int, repeats: int) -> None:
  """Prints the seconds of training steps as JSON; see `run`."""
  step = _training_step(batch, size)
  print(json.dumps(common.measure(step, repeats=repeats)))


def _network(batch, size, repeats, unit, name, what) -> list[common.Row]:
  return [
    common.Row(
      f'{kind}, {what}',
      [1000 * t / unit for t in common.measure(function, repeats=repeats)],
      name,
    )
    for kind, function in (
      ('Grad-CAM', _explanation(batch, size)),
      ('training step', _training_step(batch, size)),
    )
  ]


def _explanation(batch, size):
  import jax
  import numpy as np

  from iqa_jax import models, tasks
  from iqa_jax.explain import cam

  model = models.create('resnet50', 2, **_NETWORK)
  variables = models.init(model, jax.random.key(0), 64)

  @jax.jit
  def explain(variables, images, targets):
    x = models.normalize(images)
    return cam.explain(model, variables, x, targets, task=tasks.Task()).maps

  images = np.zeros((batch, size, size, 3), np.uint8)
  targets = np.ones(batch, np.int32)
  return lambda: explain(variables, images, targets)


def _training_step(batch, size):
  import jax
  import numpy as np

  from iqa_jax import config as config_lib
  from iqa_jax import devices, models, tasks
  from iqa_jax.training import phases
  from iqa_jax.training import step as step_lib

  model = models.create('resnet50', 2, **_NETWORK, axis_name=devices.AXIS)
  plain = models.create('resnet50', 2, **_NETWORK)
  variables = models.init(plain, jax.random.key(0), 64)
  learning = phases.learning(
    config_lib.phase(), variables['params'], model.points, steps_per_epoch=1
  )
  begun = step_lib.begin_phase(step_lib.create_state(variables), learning)
  held = {'state': devices.place(begun)}
  inputs = step_lib.for_step(
    {
      'image': np.zeros((batch, size, size, 3), np.uint8),
      'mask': np.ones(batch, np.float32),
      'index': np.arange(batch),
      'quality': np.arange(batch, dtype=np.int32) % 2,
      'grade': np.full(batch, -1, np.int32),
      'criteria': np.full((batch, 4), -1, np.int32),
    },
    stop=False,
    accumulate=1,
  )
  step = step_lib.make_train_step(model, tasks.Task(), learning)

  def update():
    held['state'], metrics = step(held['state'], inputs)
    return held['state'].params, metrics

  return update


def _devices(count, size, repeats) -> common.Row:
  environment = {
    **os.environ,
    'JAX_PLATFORMS': 'cpu',
    'XLA_FLAGS': f'--xla_force_host_platform_device_count={count}',
  }
  call = f'scaling.child(16, {size}, {repeats})'
  out = subprocess.run(
    [
      sys.executable,
      '-c',
      f'from tests.benchmarks import scaling; {call}',
    ],
    env=environment,
    cwd=common.ROOT,
    stdout=subprocess.PIPE,
    check=True,
  ).stdout
  return common.Row(
    f'training step, batch 16, {count} virtual devices',
    [1000 * t for t in json.loads(out)],
    'ms',
  )


def _files(count, repeats) -> common.Row:
  """Returns the cost of listing a folder of `count` names for an export."""
  from iqa_jax.photograph import inputs

  with tempfile.TemporaryDirectory() as scratch:
    folder = pathlib.Path(scratch)
    for number in range(count):
      path = folder / f'{number // 1000:04}' / f'{number:06}.jpg'
      if not number % 1000:
        path.parent.mkdir()
      path.touch()

    def find():
      found = inputs.find(str(folder), suffixes=('.jpg',))
      assert len(found.keys) == count

    times = common.measure(find, repeats=repeats)
  return common.Row(
    f'listing {count} files', [1e6 * t / count for t in times], 'us/file'
  )


if __name__ == '__main__':
  sys.exit(common.main(run))
