"""Joining processes: what announces a cluster, and real processes at work."""

import concurrent.futures
import json
import signal
import time

import numpy as np
import pytest

from iqa_jax import devices, errors, processes
from tests.training import spawn


@pytest.mark.parametrize(
  ('environment', 'cluster'),
  [
    ({}, None),
    ({'SLURM_NTASKS': '4'}, None),  # sbatch or salloc without srun
    ({'SLURM_NTASKS': '4', 'SLURM_STEP_NODELIST': 'n[1-2]'}, 'Slurm'),
    ({'SLURM_NTASKS': '1', 'SLURM_STEP_NODELIST': 'n1'}, None),
    ({'OMPI_COMM_WORLD_SIZE': '2'}, 'Open MPI'),
    ({'TPU_WORKER_HOSTNAMES': 'a,b'}, 'Cloud TPU'),
    ({'TPU_WORKER_HOSTNAMES': 'a'}, None),
    ({'KUBERNETES_SERVICE_HOST': 'x', 'JOB_COMPLETION_INDEX': '1'}, None),
  ],
)
def test_clusters_announce_themselves(environment, cluster):
  assert processes.announced(environment) == cluster


@pytest.fixture
def joined(monkeypatch):
  calls = []
  monkeypatch.setattr(
    processes.jax.distributed, 'initialize', lambda **k: calls.append(k)
  )
  alone(monkeypatch)
  return calls


def alone(monkeypatch):
  for name in ('JAX_COORDINATOR_ADDRESS', 'SLURM_STEP_NODELIST'):
    monkeypatch.delenv(name, raising=False)


def test_alone_nothing_is_joined(joined):
  processes.initialize()
  assert joined == []


def test_variables_of_an_indexed_job_are_read(joined, monkeypatch):
  monkeypatch.setenv('JAX_COORDINATOR_ADDRESS', 'job-0.job:1234')
  monkeypatch.setenv('JAX_NUM_PROCESSES', '4')
  monkeypatch.setenv('JOB_COMPLETION_INDEX', '3')
  processes.initialize()
  assert joined[0]['coordinator_address'] == 'job-0.job:1234'
  assert (joined[0]['num_processes'], joined[0]['process_id']) == (4, 3)


def test_half_an_address_is_refused(joined):
  with pytest.raises(ValueError, match='needs all of'):
    processes.initialize('localhost:1', num_processes=2)
  assert joined == []


def test_who_cannot_be_reached_is_named(monkeypatch):
  def refuse(**_):
    raise RuntimeError('deadline exceeded')

  monkeypatch.setattr(processes.jax.distributed, 'initialize', refuse)
  with pytest.raises(errors.UserError, match=r'node7:1234.*deadline exceeded'):
    processes.initialize('node7:1234', 2, 1)


@pytest.mark.parametrize(
  ('error', 'goes_on'),
  [
    # What JAX raises where it finds no cluster, where there is no metadata
    # server, and where the server named peers, of whom one is absent.
    (ValueError('coordinator_address should be defined.'), True),
    (OSError('metadata.google.internal: name or service not known'), True),
    (RuntimeError('Failed to recognize coordinator address t1v-0'), False),
  ],
)
def test_a_tpu_that_nobody_counts_among_several_goes_on_alone(
  monkeypatch, caplog, error, goes_on
):
  def refuse(**_):
    raise error

  alone(monkeypatch)
  monkeypatch.delenv('TPU_WORKER_HOSTNAMES', raising=False)
  monkeypatch.setattr(processes.glob, 'glob', lambda _: ['/dev/accel0'])
  monkeypatch.setattr(processes.importlib.util, 'find_spec', lambda _: True)
  monkeypatch.setattr(processes.jax.distributed, 'initialize', refuse)
  if goes_on:
    processes.initialize()
    assert 'going on alone' in caplog.text
  else:
    with pytest.raises(errors.UserError, match='t1v-0'):
      processes.initialize()


def open_mpi_5(monkeypatch, **changes):
  alone(monkeypatch)
  variables = {
    'OMPI_COMM_WORLD_SIZE': '4',
    'OMPI_COMM_WORLD_LOCAL_SIZE': '4',
    'OMPI_COMM_WORLD_RANK': '2',
    'OMPI_COMM_WORLD_LOCAL_RANK': '2',
    'PMIX_NAMESPACE': 'prterun-node-7@1',
    **changes,
  }
  for name, value in variables.items():
    monkeypatch.setenv(name, value)


def test_processes_of_open_mpi_5_meet_on_their_machine(joined, monkeypatch):
  for rank in '02':
    open_mpi_5(monkeypatch, OMPI_COMM_WORLD_RANK=rank)
    processes.initialize()
  open_mpi_5(monkeypatch, PMIX_NAMESPACE='prterun-node-8@1')
  processes.initialize()
  first, second, other = (call['coordinator_address'] for call in joined)
  assert first == second != other
  assert first.startswith('localhost:')
  assert [call['process_id'] for call in joined] == [0, 2, 2]
  assert [call['num_processes'] for call in joined] == [4] * 3
  assert joined[0]['local_device_ids'] == [2]


def test_open_mpi_5_over_machines_is_told_where_process_0_is(
  joined, monkeypatch
):
  open_mpi_5(monkeypatch, OMPI_COMM_WORLD_LOCAL_SIZE='2')
  monkeypatch.setenv('JAX_COORDINATOR_ADDRESS', 'node7:1234')
  processes.initialize()
  assert joined[0]['coordinator_address'] == 'node7:1234'
  assert (joined[0]['num_processes'], joined[0]['process_id']) == (4, 2)


def read(path):
  with np.load(path) as saved:
    return dict(saved)


def start_several(workdir, cache, *others, count=2, devices=2):
  """Starts processes; `others` are the work directories of those but 0."""
  address = f'localhost:{spawn.free_port()}'
  return [
    spawn.start(folder, address, count, i, devices=devices, cache=cache)
    for i, folder in enumerate((workdir, *(others or [workdir] * (count - 1))))
  ]


def finish_all(several):
  """Returns when each ended, its exit code and its output."""

  def finish(process):
    code, output = spawn.finish(process)
    return time.monotonic(), code, output

  with concurrent.futures.ThreadPoolExecutor(len(several)) as pool:
    return list(pool.map(finish, several))


@pytest.mark.slow
def test_several_processes_train_as_one_device(tmp_path, monkeypatch):
  # Adam divides by the gradient's size, and so makes much of rounding errors
  # where it is all but zero.
  monkeypatch.setenv('DRIVER_OPTIMIZER', 'sgd')
  cache = tmp_path / 'cache'
  (tmp_path / 'one').mkdir()
  code, output = spawn.finish(spawn.start(tmp_path / 'one', cache=cache))
  assert code == 0, output
  expected = read(tmp_path / 'one' / 'end0.npz')
  one = history(tmp_path / 'one')
  for way, count in [*((way, 2) for way in devices.WAYS), ('pmap', 4)]:
    monkeypatch.setenv('IQA_PARALLEL', way)
    name = f'{way}{count}'
    # Two share a run directory; four have one each.
    folders = [tmp_path / name] * count
    if count == 4:
      folders[1:] = [tmp_path / f'{name}-{i}' for i in range(1, count)]
    for _, code, output in finish_all(
      start_several(
        folders[0], cache, *folders[1:], count=count, devices=4 // count
      )
    ):
      assert code == 0, output
    several = history(folders[0])
    assert len(one) == len(several) == 5
    for a, b in zip(one, several, strict=True):
      assert a['phase'] == b['phase']
      for key in ('train_loss', 'validation_loss', 'validation_auc'):
        assert a[key] == pytest.approx(b[key], abs=1e-5), (name, key, a, b)
    for number, folder in enumerate(folders):
      found = read(folder / f'end{number}.npz')
      assert set(found) == set(expected)
      for key in found:
        np.testing.assert_allclose(
          found[key],
          expected[key],
          rtol=1e-5,
          atol=1e-5,
          err_msg=f'{name} {key}',
        )


def history(folder):
  lines = (folder / 'history.jsonl').read_text().splitlines()
  return [json.loads(line) for line in lines]


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """A run of two that was never stopped, and the programs it compiled."""
  folder = tmp_path_factory.mktemp('whole')
  with pytest.MonkeyPatch.context() as patch:
    # Longer than a process waits by itself for others that are still at work.
    patch.setenv('DRIVER_REPORT', '13')
    two = start_several(
      folder / 'a', folder / 'cache', folder / 'nothing' / 'b'
    )
    for _, code, output in finish_all(two):
      assert code == 0, output
  return folder / 'a', folder / 'cache'


@pytest.mark.slow
def test_machines_that_share_nothing_end_together(whole):
  """However long process 0 writes its report."""
  workdir, _ = whole
  other = workdir.parent / 'nothing' / 'b'
  # The second had the model to predict with, and keeps nothing of the run.
  first = read(workdir / 'end0.npz')['logits']
  np.testing.assert_array_equal(first, read(other / 'end1.npz')['logits'])
  assert [p.name for p in other.iterdir()] == ['end1.npz']


@pytest.mark.slow
def test_whoever_dies_wherever_the_others_end_and_the_same_command_goes_on(
  whole, tmp_path, monkeypatch
):
  workdir, cache = whole
  monkeypatch.setenv('DRIVER_RECORDS', str(tmp_path / 'records'))
  monkeypatch.setenv('DRIVER_HEARTBEAT', '5')
  for dies in ('build', 'cache:0', 'step:1', 'report:0'):
    monkeypatch.setenv('DRIVER_DIES', dies)
    ended = finish_all(start_several(tmp_path / 'run', cache))
    (_, killed, _), (seconds, code, output) = sorted(ended)
    assert killed == -signal.SIGKILL, ended
    assert seconds - min(ended)[0] < 60
    assert code not in (0, None, -signal.SIGKILL)
    expected = ('another task died', 'unhealthy', 'coordination service')
    assert any(text in output for text in expected), (dies, output)
  monkeypatch.setenv('DRIVER_DIES', '')
  for _, code, output in finish_all(start_several(tmp_path / 'run', cache)):
    assert code == 0, output
    assert not {'build', 'cache', 'step'} & set(output.splitlines())
  for name in ('history.jsonl', 'history.csv'):
    found = (tmp_path / 'run' / name).read_text()
    assert found == (workdir / name).read_text()
  logits, expected = (
    read(run / 'end0.npz')['logits'] for run in (tmp_path / 'run', workdir)
  )
  np.testing.assert_array_equal(logits, expected)


@pytest.mark.slow
def test_a_signal_to_one_process_stops_both_at_the_same_step(tmp_path):
  first, second = start_several(tmp_path, tmp_path / 'cache')
  for line in second.stdout:
    if line.startswith('step'):
      break
  second.terminate()
  codes_and_outputs = [spawn.finish(p) for p in (first, second)]
  said = set()
  for code, output in codes_and_outputs:
    assert code == 143, output
    lines = [x for x in output.splitlines() if 'training saved at step' in x]
    said.add(lines[0].rsplit('step', 1)[1])
  assert len(said) == 1
