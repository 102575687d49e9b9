"""How cost grows: with the batch, the image, the devices and the listed files.

A cliff would show as a jump of the cost of one image (one megapixel, one file)
from a row to the next. The network is a ResNet50 of a quarter width, so that
the whole table takes minutes on two cores; devices are virtual ones that share
those cores, so more of them can at best cost nothing.
"""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import tempfile

from tests.benchmarks import common

_WIDTH = 0.25


def run(*, smoke: bool = False, repeats: int = 3) -> list[common.Row]:
  """Returns a row for every point of the four axes."""
  batches = (1, 2, 4, 8, 16, 32, 64, 128, 256)
  sizes = (224, 320, 448, 512, 640, 768, 896, 1024)
  devices = (1, 2, 4, 8)
  files = (100, 1000, 10_000, 100_000)
  size, batch = 224, 4
  if smoke:
    batches, sizes, devices, files = (1, 4), (64, 96), (1, 2), (100, 1000)
    size, batch, repeats = 64, 2, 1
  rows = []
  for count in batches:
    rows += _point(count, size, repeats, count, 'ms/image', f'batch {count}')
  for side in sizes:
    unit = batch * side * side / 1e6
    rows += _point(batch, side, repeats, unit, 'ms/megapixel', f'{side} px')
  for count in devices:
    environment = {
      **os.environ,
      'JAX_PLATFORMS': 'cpu',
      'XLA_FLAGS': f'--xla_force_host_platform_device_count={count}',
    }
    out = subprocess.run(
      [
        sys.executable,
        '-c',
        'from tests.benchmarks import scaling; '
        f'scaling.child(16, {size}, {repeats})',
      ],
      env=environment,
      cwd=common.ROOT,
      stdout=subprocess.PIPE,
      check=True,
    ).stdout
    times = json.loads(out)
    rows.append(
      common.Row(
        f'training step, batch 16, {count} virtual devices',
        [1000 * t for t in times],
        'ms',
      )
    )
  return rows + _files(files, repeats)


def child(batch: int, size: int, repeats: int) -> None:
  """Prints the seconds of training steps as JSON; see `run`."""
  step = _training_step(batch, size)
  print(json.dumps(common.measure(step, repeats=repeats)))


def _point(batch, size, repeats, unit, name, what) -> list[common.Row]:
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

  model = models.create('resnet50', 2, width=_WIDTH)
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
  from iqa_jax import models, tasks
  from iqa_jax.training import phases
  from iqa_jax.training import step as step_lib

  model = models.create('resnet50', 2, width=_WIDTH, axis_name=step_lib.AXIS)
  plain = models.create('resnet50', 2, width=_WIDTH)
  variables = models.init(plain, jax.random.key(0), 64)
  learning = phases.learning(
    config_lib.phase(), variables['params'], model.points, steps_per_epoch=1
  )
  begun = step_lib.begin_phase(step_lib.create_state(variables), learning)
  held = {'state': step_lib.place(begun)}
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


def _files(counts, repeats) -> list[common.Row]:
  """Returns the cost of listing a folder of `count` names for an export."""
  rows = []
  with tempfile.TemporaryDirectory() as scratch:
    for count in counts:
      folder = pathlib.Path(scratch) / str(count)
      for number in range(count):
        path = folder / f'{number // 1000:04}' / f'{number:06}.jpg'
        if not number % 1000:
          path.parent.mkdir(parents=True)
        path.touch()
      rows.append(_listing(folder, count, repeats))
  return rows


def _listing(folder, count, repeats) -> common.Row:
  from iqa_jax.explain import inputs

  def find():
    found = inputs.find(str(folder), suffixes=('.jpg',))
    assert len(found.keys) == count

  times = common.measure(find, repeats=repeats)
  return common.Row(
    f'listing {count} files', [1e6 * t / count for t in times], 'us/file'
  )


if __name__ == '__main__':
  sys.exit(common.main(run))
