"""A whole fine-tuning step, everything learning, against PyTorch on a CPU.

  python -m tests.benchmarks.train_step

float32, 224 px, batch 8; forward, backward and AdamW update, of images already
in memory. PyTorch is measured in its default layout and in channels_last; the
faster one is the peer.
"""

import contextlib
import statistics
import sys

from tests.benchmarks import common


def run(
  *,
  smoke: bool = False,
  networks: str = 'resnet50,vgg16',
  size: int = 224,
  batch: int = 8,
  repeats: int = 5,
) -> list[common.Row]:
  """Returns a row of images/s for every network."""
  if smoke:
    size, batch, repeats = 32, 2, 1
  rows = []
  for name in networks.split(','):
    ours = _ours(name, size, batch)
    times, note = {}, ''
    try:
      with contextlib.ExitStack() as stack:
        functions = {'ours': ours}
        for layout in ('default layout', 'channels_last'):
          peer = stack.enter_context(common.Peer('peer_train_step'))
          peer(
            'prepare',
            model=name,
            size=size,
            batch=batch,
            channels_last=layout == 'channels_last',
          )
          functions[f'PyTorch, {layout}'] = lambda peer=peer: peer('step')
        times = common.alternate(functions, repeats=repeats)
    except common.PeerAbsent as reason:
      times = {'ours': common.measure(ours, repeats=repeats)}
      note = str(reason)
    mine = times.pop('ours')
    peer_name = min(
      times, key=lambda key: statistics.median(times[key]), default=''
    )
    rows.append(
      common.Row(
        f'training step {name} {size} px, batch {batch}',
        common.rates(batch, mine),
        'images/s',
        peer=peer_name,
        peer_values=common.rates(batch, times.get(peer_name, [])),
        note=note,
      )
    )
  return rows


def _ours(name, size, batch):
  import jax
  import numpy as np

  from iqa_jax import config as config_lib
  from iqa_jax import devices, models, tasks
  from iqa_jax.training import phases
  from iqa_jax.training import step as step_lib

  model = models.create(name, 2, head='imagenet', axis_name=devices.AXIS)
  variables = models.init(model, jax.random.key(0), size)
  learning = phases.learning(
    config_lib.phase(learning_rate=1e-4),
    variables['params'],
    model.points,
    steps_per_epoch=1000,
  )
  state = step_lib.begin_phase(step_lib.create_state(variables), learning)
  rng = np.random.default_rng(0)
  inputs = step_lib.for_step(
    {
      'image': rng.integers(0, 256, (batch, size, size, 3), np.uint8),
      'mask': np.ones(batch, np.float32),
      'index': np.arange(batch, dtype=np.int32),
      'quality': np.arange(batch, dtype=np.int32) % 2,
      'grade': np.full(batch, -1, np.int32),
      'criteria': np.full((batch, 4), -1, np.int32),
    },
    stop=False,
    accumulate=1,
  )
  step = step_lib.make_train_step(model, tasks.Task(), learning)
  held = {'state': devices.place(state)}

  def one():
    held['state'], metrics = step(held['state'], inputs)
    # The next step needs this one's state: wait for all of it.
    return jax.block_until_ready((held['state'], metrics))

  return one


if __name__ == '__main__':
  sys.exit(common.main(run))
