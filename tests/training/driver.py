"""One tiny training run in a process of its own, for tests that end it.

  python tests/training/driver.py WORKDIR [coordinator count number]

WORKDIR may be gs://... where DRIVER_BUCKET names a folder (see bucket.py).
Says 'step' before every step, and leaves the model's predictions and the last
state in WORKDIR/end<process>.npz. An interruption's exit code is its own.
"""

import os
import sys
import time

sys.path.insert(
  0,
  os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))),
)

from tests.training import memory_data

if os.environ.get('DRIVER_BUCKET'):
  from tests.training import bucket

  bucket.install(os.environ['DRIVER_BUCKET'])

# The real pipeline would import TensorFlow, which takes longer than the run.
for name in ('pipeline', 'plan'):
  sys.modules[f'iqa_jax.data.{name}'] = memory_data  # type: ignore[assignment]

from absl import logging  # noqa: E402
import jax  # noqa: E402
import numpy as np  # noqa: E402

from iqa_jax import config as config_lib  # noqa: E402
from iqa_jax import errors, inference, processes, remote, trained  # noqa: E402
from iqa_jax.training import checkpoints, loop  # noqa: E402
from iqa_jax.training import step as step_lib  # noqa: E402

COUNT, VALIDATION = 26, 7
HEARTBEAT = 10  # seconds


def small_config():
  """Two phases, one of them cached, with BatchNorm, dropout and averages."""
  c = config_lib.default()
  c.data.image_size = 32
  c.train.batch_size = c.eval.batch_size = 4
  c.train.checkpoint_every = int(os.environ.get('DRIVER_EVERY', 2))
  c.train.checkpoint_seconds = 0.0
  c.train.ema_decay = 0.9
  c.train.clip_norm = 1.0
  c.model.width, c.model.depth, c.model.head = 0.05, 0.1, 'mlp'
  optimizer = os.environ.get('DRIVER_OPTIMIZER', 'adamw')
  c.train.phases = (
    config_lib.phase(
      learns='head', epochs=3, learning_rate=1e-2, optimizer=optimizer
    ),
    config_lib.phase(
      learns='stage4+head',
      epochs=2,
      optimizer=optimizer,
      schedule='cosine',
      warmup_epochs=0.5,
      reset_optimizer=False,
    ),
  )
  return c


def main(workdir, coordinator=None, count=None, number=None):
  logging.set_verbosity(logging.INFO)
  if coordinator:
    processes.initialize(
      coordinator, int(count), int(number), heartbeat_seconds=HEARTBEAT
    )
  config = small_config()
  source = memory_data.Source(COUNT)
  splits = memory_data.split(COUNT, VALIDATION)
  for_step = step_lib.for_step

  def announced(*args, **kwargs):
    print('step', flush=True)
    return for_step(*args, **kwargs)

  step_lib.for_step = announced
  last = {}
  save = checkpoints.Store.save

  def noted(self, state, record):
    last['state'] = jax.tree.map(np.asarray, state)
    return save(self, state, record)

  checkpoints.Store.save = noted
  try:
    with (
      processes.together(),
      remote.mirror(workdir, active=jax.process_index() == 0) as (home, push),
      processes.lock(home),
    ):
      loop.train(config, home, source, splits, saved=push)
      evaluate(config, home, source, splits, last)
  except loop.Interrupted as interruption:
    logging.info('%s', interruption)
    return interruption.exit_code
  except (errors.UserError, RuntimeError) as error:
    logging.error('%s', error)
    return 1
  return 0


def evaluate(config, workdir, source, splits, last):
  """Predicts in all processes; process 0 may then need a while for a report."""
  del config
  loaded = trained.load(workdir)
  plan = memory_data.plan_eval(source, splits['validation'])
  rows = inference.predict(
    loaded,
    memory_data.batches(
      source,
      plan,
      image_size=32,
      batch_size=4,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
    ),
  )
  np.testing.assert_array_equal(rows['index'], splits['validation'])
  state = checkpoints._by_path(last['state']) if last else {}
  name = f'end{jax.process_index()}.npz'
  os.makedirs(workdir, exist_ok=True)
  np.savez(os.path.join(workdir, name), logits=rows['logits'], **state)
  if jax.process_index() == 0:
    print('report', flush=True)
    time.sleep(float(os.environ.get('DRIVER_REPORT', 0)))


if __name__ == '__main__':
  sys.exit(main(*sys.argv[1:]))
