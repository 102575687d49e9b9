"""One tiny training run in a process of its own, for tests that end it.

  python tests/training/driver.py WORKDIR [coordinator count number]

WORKDIR may be gs://... where DRIVER_BUCKET names a folder (see bucket.py).
Says where it is: 'step' before every step, 'cache' and 'evaluation' before
every batch of these, 'report' in process 0 at its end and, where DRIVER_RECORDS
names a folder to build in, 'build' in the process that does. With
DRIVER_DIES=step:1 process 1 kills itself there; with DRIVER_DIES=build the
first that builds does.
Leaves the model's predictions and the last state in WORKDIR/end<process>.npz.
An interruption's exit code is its own.
"""

import os
import pathlib
import signal
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
from iqa_jax.data import source as source_lib  # noqa: E402
from iqa_jax.training import checkpoints, feature_cache, loop  # noqa: E402
from iqa_jax.training import step as step_lib  # noqa: E402

COUNT, VALIDATION = 26, 7
HEARTBEAT = int(os.environ.get('DRIVER_HEARTBEAT', 10))  # seconds


def reached(place):
  """Says where this process is, or dies there."""
  if os.environ.get('DRIVER_DIES') == f'{place}:{jax.process_index()}':
    os.kill(os.getpid(), signal.SIGKILL)
  print(place, flush=True)


class Builder:
  """In place of a tfds builder: its records are one file, made slowly."""

  BUILDER_CONFIGS = ()
  name = 'one'

  def __init__(self, data_dir, config):
    del config
    self.data_dir = pathlib.Path(data_dir)
    self.data_path = self.data_dir / self.name / '1.0.0'

  def is_prepared(self):
    return (self.data_dir / 'records').exists()

  def download_and_prepare(self, download_config):
    del download_config
    reached('build')
    begun = self.data_dir / 'begun'
    if os.environ.get('DRIVER_DIES') == 'build' and not begun.exists():
      begun.touch()
      os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(1)
    (self.data_dir / 'records').touch()


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
  read = feature_cache.read

  def announced(*args, **kwargs):
    reached('step')
    return for_step(*args, **kwargs)

  def announced_read(source, plan, config, cache, **kwargs):
    for batch in read(source, plan, config, cache, **kwargs):
      if cache is None:
        reached('cache')
      yield batch

  step_lib.for_step = announced
  feature_cache.read = announced_read
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
      if os.environ.get('DRIVER_RECORDS'):
        config.data.data_dir = os.environ['DRIVER_RECORDS']
        source_lib.builder_class = lambda _: Builder
        source_lib.build('one', '', '', config)
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
  plan = memory_data.plan_eval(splits['validation'])
  batches = memory_data.batches(
    source,
    plan,
    image_size=32,
    batch_size=4,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
  )

  def announced():
    for batch in batches:
      reached('evaluation')
      yield batch

  rows = inference.predict(loaded, announced())
  np.testing.assert_array_equal(rows['index'], splits['validation'])
  state = checkpoints._by_path(last['state']) if last else {}
  name = f'end{jax.process_index()}.npz'
  os.makedirs(workdir, exist_ok=True)
  np.savez(os.path.join(workdir, name), logits=rows['logits'], **state)
  if jax.process_index() == 0:
    reached('report')
    time.sleep(float(os.environ.get('DRIVER_REPORT', 0)))


if __name__ == '__main__':
  sys.exit(main(*sys.argv[1:]))
