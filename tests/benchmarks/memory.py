"""Memory: export over many photographs, and what a training step needs.

Export must stay flat from its first photographs to its last. A training step
must hold the parameters, the optimiser state of what learns and one batch, and
beside them only gradients of what learns and the activations that these need:
both come from XLA's memory analysis of the compiled step.
"""

from __future__ import annotations

import pathlib
import subprocess
import sys
import tempfile
import time

from tests.benchmarks import _material, common

MB = 2**20


def run(
  *,
  smoke: bool = False,
  images: int = 10_000,
  batch: int = 16,
  parts: str = 'training,export',
) -> list[common.Row]:
  """Measures training (ResNet50, 224 px) and export (narrow, 64 px)."""
  if smoke:
    images, batch = 60, 4
  width, size = (0.125, 64) if smoke else (1.0, 224)
  rows: list[common.Row] = []
  for part in parts.split(','):
    if part == 'export':
      rows += _export(images)
    else:
      for learns in ('head', 'stage4+head', 'all'):
        rows += _training(learns, width, size, batch)
  return rows


def _bytes(tree) -> int:
  import jax

  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _training(learns, width, size, batch) -> list[common.Row]:
  import jax
  import numpy as np

  from iqa_jax import config as config_lib
  from iqa_jax import devices, models, tasks
  from iqa_jax.training import phases
  from iqa_jax.training import step as step_lib

  model = models.create('resnet50', 2, width=width, axis_name=devices.AXIS)
  variables = models.init(
    models.create('resnet50', 2, width=width), jax.random.key(0), size
  )
  learning = phases.learning(
    config_lib.phase(learns=learns),
    variables['params'],
    model.points,
    steps_per_epoch=1,
  )
  state = step_lib.begin_phase(step_lib.create_state(variables), learning)
  inputs = step_lib.for_step(
    {
      'image': np.zeros((batch, size, size, 3), np.uint8),
      'mask': np.ones(batch, np.float32),
      'index': np.arange(batch),
      'quality': np.zeros(batch, np.int32),
      'grade': np.zeros(batch, np.int32),
      'criteria': np.zeros((batch, 4), np.int32),
    },
    stop=False,
    accumulate=1,
  )
  step = step_lib.make_train_step(model, tasks.Task(), learning)
  found = step.lower(state, inputs).compile().memory_analysis()

  forward = jax.jit(
    lambda v, x: model.apply(
      v, models.normalize(x), stop=learning.prefix or model.points[-1]
    )
  )
  passing = (
    forward.lower(variables, inputs['image'][0])
    .compile()
    .memory_analysis()
    .temp_size_in_bytes
  )
  learned, frozen = phases.split(variables['params'], learning.paths)

  def loss(learned):
    x = np.zeros((batch, size, size, 3), np.float32)
    plain = models.create('resnet50', 2, width=width)
    params = phases.unflatten({**frozen, **learned})
    rest = {'params': params, 'batch_stats': variables['batch_stats']}
    if learning.prefix:
      x = jax.lax.stop_gradient(plain.apply(rest, x, stop=learning.prefix))
    out, _ = plain.apply(
      rest,
      x,
      start=learning.prefix,
      train=frozenset(learning.parts),
      mutable=['batch_stats'],
      rngs={'dropout': jax.random.key(0)},
    )
    return out.sum()

  kept = [
    leaf
    for leaf in jax.tree.leaves(
      jax.eval_shape(lambda p: jax.vjp(loss, p)[1], learned)
    )
    if leaf.shape[:1] == (batch,)
  ]
  what = f'ResNet50 width {width:g}, {size} px, batch {batch}, {learns} learns'
  parts = {
    'parameters': _bytes(variables),
    'optimiser': _bytes(state.opt_state),
    'batch': _bytes(inputs),
  }
  return [
    common.Row(
      f'held between steps: {what}',
      [found.argument_size_in_bytes / MB],
      'MB',
      'parameters + optimiser state + batch',
      [sum(parts.values()) / MB],
      'no more',
      ', '.join(f'{name} {b / MB:.1f} MB' for name, b in parts.items())
      + f'; {found.alias_size_in_bytes / MB:.1f} MB updated in place',
    ),
    common.Row(
      f'during a step: {what}',
      [found.temp_size_in_bytes / MB],
      'MB',
      'gradients + activations kept for them + forward pass',
      [(_bytes(learned) + _bytes(kept) + passing) / MB],
      note=f'gradients {_bytes(learned) / MB:.1f} MB, activations that '
      f'autodiff keeps, before XLA fuses, {_bytes(kept) / MB:.1f} MB, '
      f'the forward pass alone (up to what learns) {passing / MB:.1f} MB',
    ),
  ]


def _export(images: int) -> list[common.Row]:
  with tempfile.TemporaryDirectory() as scratch:
    folder = pathlib.Path(scratch)
    _material.photographs(folder / 'images', images, 96)
    _material.random_run(folder / 'run', width=0.125, image_size=64)
    command = [
      sys.executable,
      '-m',
      'iqa_jax.export_heatmaps',
      f'--workdir={folder / "run"}',
      f'--images={folder / "images"}',
      f'--output={folder / "output"}',
      '--outputs=overlay,npz',
      '--progress=false',
    ]
    process = subprocess.Popen(command, cwd=common.ROOT)
    samples: list[tuple[int, float]] = []
    while process.poll() is None:
      time.sleep(0.25)
      samples.append(
        (_exported(folder / 'output'), common.resident(process.pid))
      )
    if process.returncode:
      raise RuntimeError(f'export ended with code {process.returncode}')
    done = _exported(folder / 'output')
  return _flatness(samples, done)


def _exported(output: pathlib.Path) -> int:
  """Returns how many photographs an export's journals say are done."""
  return sum(
    journal.read_bytes().count(b'\n')
    for journal in output.glob('journal/*.jsonl')
  )


def _flatness(samples, done) -> list[common.Row]:
  """Returns the resident memory of every twentieth of an export."""
  rows = []
  share = max(done // 20, 1)
  for first in range(0, done, share):
    last = min(first + share, done)
    within = [mb for n, mb in samples if first < n <= last and n < done]
    if within:
      rows.append(
        common.Row(f'export, photographs {first} to {last}', within, 'MB')
      )
  sheet = [mb for n, mb in samples if n == done and mb]
  if sheet:
    rows.append(common.Row('export, manifest and contact sheet', sheet, 'MB'))
  return rows


if __name__ == '__main__':
  sys.exit(common.main(run))
