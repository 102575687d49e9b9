"""Real processes, ended by signals at random moments, and run again."""

import random
import re
import shutil
import signal
import time

import numpy as np
import pytest

from iqa_jax import run_directory
from tests.training import spawn

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """A run that was never stopped, and the compiled programs it left."""
  folder = tmp_path_factory.mktemp('whole')
  cache = folder / 'cache'
  workdir = folder / 'run'
  code, output = spawn.finish(spawn.start(workdir, cache=cache))
  assert code == 0, output
  return workdir, cache, output.splitlines().count('step')


def wait_for_steps(process, count):
  """Reads the output up to the count-th step; False if it ended before."""
  for line in process.stdout:
    count -= line == 'step\n'
    if count == 0:
      return True
  return False


def same_run(a, b) -> None:
  for name in ('history.jsonl', 'history.csv'):
    assert (a / name).read_text() == (b / name).read_text()
  models = [run_directory.load_model(run) for run in (a, b)]
  for model in models:
    del model.record['config']['train']['checkpoint_every']
  assert models[0].digest == models[1].digest
  assert models[0].record == models[1].record
  with np.load(a / 'end0.npz') as one, np.load(b / 'end0.npz') as other:
    assert set(one) == set(other)
    for key in one:
      np.testing.assert_array_equal(one[key], other[key], err_msg=key)


def test_killed_ten_times_it_ends_as_if_never_stopped(whole, tmp_path):
  workdir, cache, _ = whole
  rng = random.Random(0)
  kills = done = 0
  while kills < 10:
    process = spawn.start(tmp_path / 'run', cache=cache)
    # Far enough, on average, to pass a phase and several epochs in ten.
    if wait_for_steps(process, rng.randint(1, 8)):
      time.sleep(rng.random() * 0.2)
      process.kill()
      kills += 1
    else:
      done += 1
      assert done == 1, 'a finished run trained again'
      shutil.rmtree(tmp_path / 'run')
    process.communicate()
  process = spawn.start(tmp_path / 'run', cache=cache)
  code, output = spawn.finish(process)
  assert code == 0, output
  same_run(workdir, tmp_path / 'run')


def test_killed_in_a_bucket_it_ends_as_if_never_stopped(
  whole, tmp_path, monkeypatch
):
  workdir, cache, _ = whole
  monkeypatch.setenv('DRIVER_BUCKET', str(tmp_path))
  process = spawn.start('gs://bucket/run', cache=cache)
  # In the second phase, whose model is then in the bucket too.
  assert wait_for_steps(process, 18)
  process.kill()
  process.communicate()
  assert (tmp_path / 'bucket' / 'run' / 'model' / 'model.json').exists()
  code, output = spawn.finish(spawn.start('gs://bucket/run', cache=cache))
  assert code == 0, output
  assert 'resuming at step' in output
  same_run(workdir, tmp_path / 'bucket' / 'run')


@pytest.mark.parametrize(
  ('name', 'code', 'every'),
  [
    ('SIGTERM', 143, 1),
    ('SIGTERM', 143, 2),
    ('SIGTERM', 143, 1000),
    ('SIGINT', 130, 2),
  ],
)
def test_signals_save_and_leave(
  whole, tmp_path, monkeypatch, name, code, every
):
  """However often steps are looked at, and whatever else is saved."""
  monkeypatch.setenv('DRIVER_EVERY', str(every))
  workdir, cache, steps = whole
  process = spawn.start(tmp_path / 'run', cache=cache)
  assert wait_for_steps(process, 3)
  process.send_signal(getattr(signal, name))
  found, output = spawn.finish(process)
  assert found == code, output
  saved = int(re.search(r'training saved at step (\d+)', output)[1])
  assert saved >= 3
  found, output = spawn.finish(spawn.start(tmp_path / 'run', cache=cache))
  assert found == 0, output
  # Not a step is lost, or made twice.
  assert saved + output.splitlines().count('step') == steps
  same_run(workdir, tmp_path / 'run')


def test_a_second_run_in_the_same_directory_is_refused(whole, tmp_path):
  _, cache, _ = whole
  first = spawn.start(tmp_path / 'run', cache=cache)
  assert wait_for_steps(first, 1)
  # On a busy machine it would end before the second begins.
  first.send_signal(signal.SIGSTOP)
  code, output = spawn.finish(spawn.start(tmp_path / 'run', cache=cache))
  first.send_signal(signal.SIGCONT)
  assert code == 1
  assert 'is in use by another run' in output
  code, output = spawn.finish(first)
  assert code == 0, output


def test_a_full_disk_is_named_and_spares_what_was_saved(whole, tmp_path):
  workdir, cache, _ = whole
  process = spawn.start(tmp_path / 'run', cache=cache)
  assert wait_for_steps(process, 8)
  process.kill()
  process.communicate()
  code, output = spawn.finish(
    spawn.start(tmp_path / 'run', cache=cache, largest_file=200_000)
  )
  assert code == 1, output
  assert 'Is the disk full' in output
  code, output = spawn.finish(spawn.start(tmp_path / 'run', cache=cache))
  assert code == 0, output
  assert 'resuming at step' in output
  same_run(workdir, tmp_path / 'run')
