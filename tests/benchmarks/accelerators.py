"""What XLA's TPU and GPU compilers make of our steps, on a machine without one.

Compiled, not run: whether a step compiles, what a device holds, how many bytes
it moves, how much all devices exchange, and the time that a published peak and
bandwidth allow at best. Two throw-away environments beside the project's own:

  python3 -m venv TPU && TPU/bin/pip install -e . 'jax[tpu]'     # 0.2 GB more
  python3 -m venv GPU && GPU/bin/pip install -e . 'jax[cuda13]'  # 4.6 GB more
  TPU/bin/python -m tests.benchmarks.accelerators --targets=v5e:2x2
  GPU/bin/python -m tests.benchmarks.accelerators --targets=h100:1

The default is a part of the grid; every axis is a flag. A cell is a process of
its own: a compiler that aborts ends a cell, not the table. Several GPUs get the
flags that launch/ starts them with, the peer too.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import pathlib
import re
import resource
import subprocess
import sys
import time
from typing import Any

from tests.benchmarks import common

# Published, of one device: memory, bytes/s, bfloat16 FLOP/s, and bytes/s of
# the links to others in one direction.
_DEVICES = {
  'v5e': (16e9, 819e9, 197e12, 100e9),
  'v6e': (32e9, 1640e9, 918e12, 224e9),
  'v4': (32e9, 1228e9, 275e12, 150e9),
  'h100': (80e9, 3350e9, 989e12, 450e9),
}
_LAST = {'resnet50': 'stage4+head', 'vgg16': 'block5+head'}
_PATIENCE = 1800
_BYTES = {'bf16': 2, 'f16': 2, 'pred': 1, 's8': 1, 'u8': 1, 's64': 8, 'u64': 8}
# What moves nothing.
_FREE = ('bitcast', 'constant', 'get-tuple-element', 'parameter', 'tuple')


@dataclasses.dataclass(frozen=True)
class Cell:
  """One program.

  Attributes:
    target: 'v5e:2x2', a TPU and its topology, or 'h100:8'.
    network: 'resnet50', 'vgg16', or 'peer' for Flax's example of ResNet-50.
    phase: 'all', 'last' (stage) or 'head' learn; 'evaluate', 'explain'.
    size: of the images, in pixels.
    dtype: compute type.
    batch: images a device.
  """

  target: str
  network: str
  phase: str
  size: int
  dtype: str
  batch: int


def run(
  *,
  smoke: bool = False,
  targets: str = 'v5e:2x2',
  networks: str = 'peer,resnet50,vgg16',
  phases: str = 'all',
  sizes: str = '224',
  dtypes: str = 'bfloat16',
  batch: int = 64,
) -> list[common.Row]:
  """Prints the table; raises SystemExit if a cell did not compile.

  Args:
    smoke: compile nothing.
    targets: 'v5e:16x16,h100:8' and so on.
    networks: see Cell; and so are phases, sizes and dtypes.
    phases: likewise.
    sizes: likewise.
    dtypes: likewise.
    batch: images a device.
  """
  axes = (targets, networks, phases, sizes)
  cells = [
    Cell(target, network, phase, int(size), dtype, batch)
    for target, network, phase, size, dtype in itertools.product(
      *(axis.split(',') for axis in (*axes, dtypes))
    )
    if network != 'peer' or phase == 'all'
  ]
  rows = []
  print(
    '| compiled, not run | memory a device: temporary + arguments (GB) | '
    'largest batch a device, about | TFLOP | GB moved | GB all-reduced | at '
    'least (ms) | compiled in (CPU s) |\n'
    '| --- | --- | --- | --- | --- | --- | --- | --- |'
  )
  for cell in cells[: 0 if smoke else None]:
    rows.append(dataclasses.asdict(cell) | _in_a_process(cell))
    print(line(cell, rows[-1]), flush=True)
  if any('failed' in row for row in rows):
    raise SystemExit('a cell did not compile')
  return []


def line(cell: Cell, row: dict[str, Any]) -> str:
  """Returns a row of the Markdown table."""
  what = (
    f'{cell.target}, {cell.network}, {cell.phase}, {cell.size} px, '
    f'{cell.dtype}, {cell.batch} a device'
  )
  if 'failed' in row:
    return f'| {what} | **{row["failed"]}** | | | | | | |'
  limits = _DEVICES[cell.target.partition(':')[0]]
  memory = row['temporary'] + row['arguments']
  fits = '' if memory <= limits[0] else f' **of {limits[0] / 1e9:.0f}**'
  seconds = roofline(row, limits)
  return (
    f'| {what} | {row["temporary"] / 1e9:.2f} + {row["arguments"] / 1e9:.2f}'
    f'{fits} | {largest_batch(cell, row, limits[0])} | '
    f'{row["flops"] / 1e12:.3f} | {row["bytes"] / 1e9:.1f} | '
    f'{row["exchanged"] / 1e9:.3f} | {1e3 * seconds:.1f} | '
    f'{row["compile_seconds"]:.0f} |'
  )


def largest_batch(cell: Cell, row: dict[str, Any], memory: float) -> int:
  """Returns the images a device that fit, as temporary memory grows by them."""
  return int((memory - row['arguments']) / (row['temporary'] / cell.batch))


def roofline(row: dict[str, Any], limits: tuple[float, ...]) -> float:
  """Returns the seconds that a step takes at least.

  The longer of memory and arithmetic; to that, where several devices exchange
  sums around a ring, 2 (n - 1) / n times their size through one link, as if
  none of it were hidden behind arithmetic. With a fixed batch a device (weak
  scaling) only that factor grows with n, from 1 at 2 devices to 2; with a
  fixed batch of all (strong), the first term falls as 1 / n.
  """
  _, bandwidth, peak, link = limits
  n = row['devices']
  here = max(row['bytes'] / bandwidth, row['flops'] / peak)
  return here + 2 * (n - 1) / n * row['exchanged'] / link


def _in_a_process(cell: Cell) -> dict[str, Any]:
  command = [sys.executable, '-m', 'tests.benchmarks.accelerators']
  command.append('--cell=' + json.dumps(dataclasses.asdict(cell)))
  environment = os.environ | {
    'JAX_PLATFORMS': 'cpu',
    'TPU_SKIP_MDS_QUERY': '1',
    'TPU_WORKER_HOSTNAMES': 'localhost',
    'JAX_SKIP_CUDA_CONSTRAINTS_CHECK': '1',
  }
  kind, _, count = cell.target.partition(':')
  if kind == 'h100' and count != '1':
    flags = [_launch_flags(), os.environ.get('XLA_FLAGS', '')]
    environment['XLA_FLAGS'] = ' '.join(flags)
  try:
    done = subprocess.run(
      command, env=environment, capture_output=True, text=True,
      timeout=_PATIENCE, check=False,
    )  # fmt: skip
  except subprocess.TimeoutExpired:
    return {'failed': f'not compiled in {_PATIENCE} s'}
  if done.returncode < 0:
    return {'failed': 'the compiler aborts', 'message': done.stderr[-2000:]}
  if done.returncode:
    last = done.stderr.strip().rpartition('\n')[2]
    return {'failed': last[:200].replace('|', '/')}
  return json.loads(done.stdout.strip().rpartition('\n')[2])


def _launch_flags() -> str:
  """Returns the XLA flags with which launch/ starts several GPUs."""
  shell = '. launch/lib.sh --dry-run >/dev/null; echo "$MULTI_GPU_FLAGS"'
  return subprocess.run(
    ['bash', '-c', shell],
    cwd=common.ROOT,
    capture_output=True,
    text=True,
    check=True,
  ).stdout.strip()


def compiled(cell: Cell) -> dict[str, Any]:
  """Compiles a cell here; returns what the compiler says, in bytes and FLOP."""
  there = _topology(cell.target)
  function, arguments = _program(cell, there)
  start = time.process_time()
  program = function.lower(*arguments).compile()
  # Compilers work in threads; process_time counts them.
  seconds = time.process_time() - start
  memory, cost = program.memory_analysis(), program.cost_analysis() or {}
  cost = cost[0] if isinstance(cost, (list, tuple)) else cost
  text = program.as_text()
  return {
    'devices': len(there),
    'device': there[0].device_kind,
    'temporary': memory.temp_size_in_bytes,
    'arguments': memory.argument_size_in_bytes,
    # A GPU's compiler says neither; and bytes are what binds.
    'flops': cost.get('flops', 0.0),
    'bytes': cost.get('bytes accessed') or moved(text),
    'exchanged': all_reduced(text),
    'copies': len(re.findall(r' (?:copy|transpose)\(', text)),
    'compile_seconds': seconds,
    'compiler_memory': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1e3,
  }


def all_reduced(text: str) -> int:
  """Returns the bytes that a compiled program sums over its devices."""
  found = re.findall(r'= (.*?) all-reduce(?:-start)?\(', text)
  return sum(map(_size, found))


def moved(text: str) -> int:
  """Returns the bytes that a compiled program's kernels read and write."""
  sizes: dict[str, int] = {}
  total = 0
  entry = text[text.index('\nENTRY ') :]
  for name, shapes, kind, rest in re.findall(
    r'^ +(?:ROOT )?(%[\w.-]+) = (.+?) ([\w-]+)\((.*)$', entry, re.M
  ):
    sizes[name] = _size(shapes)
    if kind not in _FREE:
      read = re.findall(r'%[\w.-]+', rest.partition('), ')[0])
      total += sizes[name] + sum(sizes.get(one, 0) for one in read)
  return total


def _size(shapes: str) -> int:
  """Returns the bytes of one or several shapes as XLA writes them."""
  total = 0
  for dtype, dimensions in re.findall(r'(\w+)\[([\d,]*)\]', shapes):
    sides = map(int, filter(None, dimensions.split(',')))
    total += _BYTES.get(dtype, 4) * math.prod(sides)
  return total


def _topology(target: str) -> list[Any]:
  from jax.experimental import topologies

  kind, _, shape = target.partition(':')
  if kind != 'h100':
    found = topologies.get_topology_desc(
      topology_name=f'{kind}:{shape}', platform='tpu',
      **({'chips_per_host_bounds': [1, 1, 1]} if shape == '1x1' else {}),
    )  # fmt: skip
    return list(found.devices)
  beside = common.ROOT.parent / 'shared'
  shared = pathlib.Path(os.environ.get('IQA_SHARED', beside))
  config = shared / 'accelerators' / 'h100_target_config.txt'
  found = topologies.get_topology_desc(
    platform='cuda',
    topology=f'1x1x{shape}',
    target_config=config.read_text(),
  )
  return list(found.devices)


def _program(cell: Cell, there: list[Any]) -> tuple[Any, tuple[Any, ...]]:
  """Returns a function that can be lowered, and its arguments' shapes."""
  import functools

  import jax
  import jax.numpy as jnp
  import optax

  from iqa_jax import config as config_lib
  from iqa_jax import devices, inference, models, tasks
  from iqa_jax.explain import cam
  from iqa_jax.training import phases
  from iqa_jax.training import step as step_lib

  n, b, of = len(there), cell.batch, jax.ShapeDtypeStruct
  with devices.using(there, way='shard_map'):
    if cell.network == 'peer':
      from tests.benchmarks import peer_accelerators

      step, state = peer_accelerators.make(
        cell.size, cell.dtype, devices.AXIS, optax.adamw(1e-3)
      )
      images = of((n, b, cell.size, cell.size, 3), jnp.float32)
      made = devices.parallel(
        step, in_axes=(None, 0, 0), out_axes=(None, None), donate_argnums=0
      )
      return made, (state, images, of((n, b), jnp.int32))
    model = models.create(
      cell.network, 2, dtype=cell.dtype, axis_name=devices.AXIS
    )
    shapes, task = models.shapes(model, cell.size), tasks.Task()
    images = of((n, b, cell.size, cell.size, 3), jnp.uint8)
    if cell.phase == 'evaluate':
      return inference.make_predictor(model, task), (shapes, images)
    if cell.phase == 'explain':

      def explain(variables, pixels):
        choose = functools.partial(cam.choose_targets, task, 'predicted')
        x = models.normalize(pixels)
        found = cam.explain(model, variables, x, choose, task=task)
        return found.logits, found.maps

      return devices.parallel(explain, in_axes=(None, 0)), (shapes, images)
    learning = phases.learning(
      config_lib.phase(
        learns={'last': _LAST[cell.network]}.get(cell.phase, cell.phase),
        learning_rate=1e-3,
      ),
      shapes['params'],
      model.stages,
      steps_per_epoch=100,
    )
    state = jax.eval_shape(
      lambda v: step_lib.begin_phase(step_lib.create_state(v), learning), shapes
    )
    batch = {
      'image': images,
      'mask': of((n, b), jnp.float32),
      'index': of((n, b), jnp.int32),
      'quality': of((n, b), jnp.int32),
      'grade': of((n, b), jnp.int32),
      'criteria': of((n, b, 4), jnp.int32),
      'stop': of((n,), jnp.float32),
    }
    return step_lib.make_train_step(model, task, learning), (state, batch)


if __name__ == '__main__':
  if len(sys.argv) == 2 and sys.argv[1].startswith('--cell='):
    print(json.dumps(compiled(Cell(**json.loads(sys.argv[1][7:])))))
  else:
    sys.exit(common.main(run))
