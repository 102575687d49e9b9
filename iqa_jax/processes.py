"""Several processes, one run: joining them, and what they agree on.

`initialize` comes before anything that touches a device. A cluster announces
itself by environment variables:

  Slurm          srun with more than one task
  Open MPI       mpirun with more than one process; from version 5 on it keeps
                 to itself where process 0 is, so over several machines
                 JAX_COORDINATOR_ADDRESS has to say it
  Cloud TPU      a TPU VM (its metadata says which worker it is)
  Kubernetes     JAX_COORDINATOR_ADDRESS and JAX_NUM_PROCESSES; the process
  and others     number is JAX_PROCESS_ID or, in an indexed Job or JobSet,
                 JOB_COMPLETION_INDEX

or the command line does (--coordinator_address, --num_processes,
--process_id). A machine that merely looks like part of a cluster, as one with a
TPU does, goes on alone, with a warning, where nobody names peers. A process
whose peer has died is ended by JAX with a message once the peer has been silent
for `HEARTBEAT_SECONDS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
import contextlib
import glob
import importlib.util
import json
import os
from typing import Any, TypeVar
import zlib

from absl import logging
from flax import traverse_util
import jax
import numpy as np

from iqa_jax import errors, run_directory
from iqa_jax.aliases import PyTree

_T = TypeVar('_T')

HEARTBEAT_SECONDS = 60
# Where JAX looks for a port, too: the end of the ephemeral ones.
_FIRST_PORT, _PORTS = 61440, 4096
_FOREVER_MS = 7 * 24 * 3600 * 1000
_LOOKS_LIKE_TPU = 'its TPU'
_VARIABLES = 'JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID'


def initialize(
  coordinator_address: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
  *,
  heartbeat_seconds: int = HEARTBEAT_SECONDS,
) -> None:
  """Joins this process to the others of its run, if there are others.

  Args:
    coordinator_address: HOST:PORT of process 0; None asks the environment.
    num_processes: how many processes the run has; likewise.
    process_id: which of them this is, from 0; likewise.
    heartbeat_seconds: after so much silence a peer counts as dead.

  Raises:
    ValueError: only some of the three are given.
    UserError: the others could not be reached.
  """
  name = None
  given: list[Any] = [coordinator_address, num_processes, process_id]
  if given == [None] * 3:
    given = _from_variables(os.environ)
  if None in given:
    if given != [None] * 3:
      raise errors.InvalidValue(
        'a run of several processes needs all of --coordinator_address, '
        f'--num_processes and --process_id (or {_VARIABLES}); got {given}'
      )
    name = announced(os.environ)
    if name is None:
      return
    logging.info('joining the processes that %s announces', name)
  address, count, number = given
  rank = os.environ.get('OMPI_COMM_WORLD_LOCAL_RANK')  # its GPU, as in JAX
  try:
    jax.distributed.initialize(
      coordinator_address=address,
      num_processes=count,
      process_id=number,
      local_device_ids=[int(rank)] if address and rank else None,
      cluster_detection_method='deactivate' if address else None,
      heartbeat_timeout_seconds=heartbeat_seconds,
      # The first to fail must not wait minutes for those that hang.
      shutdown_timeout_seconds=heartbeat_seconds,
    )
  except (RuntimeError, ValueError, OSError) as error:
    # JAX asks a TPU's metadata server, which a TPU need not have.
    if name == _LOOKS_LIKE_TPU and isinstance(error, ValueError | OSError):
      logging.warning(
        'this machine has a TPU, but nothing says that it belongs to several '
        '(%s): going on alone. If it does, set %s',
        error,
        _VARIABLES,
      )
      return
    raise errors.UserError(
      'this process could not join the others '
      f'({address or "address from the environment"}): {error}'
    ) from error


def announced(environment: Mapping[str, str]) -> str | None:
  """Returns the name of the cluster that the environment announces, if any."""
  tasks = int(environment.get('SLURM_NTASKS', 1))
  if 'SLURM_STEP_NODELIST' in environment and tasks > 1:
    return 'Slurm'
  if int(environment.get('OMPI_COMM_WORLD_SIZE', 1)) > 1:
    return 'Open MPI'
  if ',' in environment.get('TPU_WORKER_HOSTNAMES', ''):
    return 'Cloud TPU'
  on_tpu = glob.glob('/dev/accel*') or os.path.exists('/dev/vfio/0')
  if on_tpu and importlib.util.find_spec('libtpu'):
    return _LOOKS_LIKE_TPU
  return None


def _from_variables(environment: Mapping[str, str]) -> list[Any]:
  def first(*names: str) -> str | None:
    return next((environment[n] for n in names if n in environment), None)

  number = first(
    'JAX_PROCESS_ID', 'JOB_COMPLETION_INDEX', 'OMPI_COMM_WORLD_RANK'
  )
  address = first('JAX_COORDINATOR_ADDRESS')
  count = first('JAX_NUM_PROCESSES', 'OMPI_COMM_WORLD_SIZE')
  if address is None and _one_machine_of_open_mpi_5(environment):
    # The same in all of them, and another in the job beside this one.
    job = zlib.crc32(environment.get('PMIX_NAMESPACE', '').encode())
    address = f'localhost:{_FIRST_PORT + job % _PORTS}'
  if address is None:
    # An indexed Job alone is no cluster: exports are arrays of such jobs.
    return [None] * 3
  return [
    address,
    None if count is None else int(count),
    None if number is None else int(number),
  ]


def _one_machine_of_open_mpi_5(environment: Mapping[str, str]) -> bool:
  """Returns whether mpirun started several processes here, and no others.

  Of version 5, that is: where older ones say more, JAX understands it.
  """
  size = environment.get('OMPI_COMM_WORLD_SIZE', '1')
  return (
    size != '1'
    and size == environment.get('OMPI_COMM_WORLD_LOCAL_SIZE')
    and 'OMPI_MCA_orte_hnp_uri' not in environment
  )


@contextlib.contextmanager
def lock(workdir: str | os.PathLike) -> Iterator[None]:
  """Holds the run directory for this run; process 0 has it in its hands.

  Raises:
    RunDirectoryError: another run is writing there (in every process).
  """
  with contextlib.ExitStack() as stack:
    first(lambda: stack.enter_context(run_directory.lock(workdir)))
    yield


@contextlib.contextmanager
def together() -> Iterator[None]:
  """Lets no process go before all have done what is inside.

  One that ends by itself waits for the others `HEARTBEAT_SECONDS` and then
  gives them up, while process 0 may write a report for longer. A process that
  raises doesn't wait: the others are ended as if it had died.
  """
  yield
  if jax.process_count() > 1:
    from orbax.checkpoint import multihost

    # Not a collective of devices: those have timeouts of their own.
    everybody = multihost.get_barrier_sync_fn(
      processes=set(range(jax.process_count()))
    )
    everybody(key='iqa_jax.end', timeout_ms=_FOREVER_MS)


def first(function: Callable[[], _T]) -> _T | None:
  """Calls `function` in process 0 alone; returns its value there, else None.

  Raises:
    RunDirectoryError: in the other processes, where process 0 raised a
      UserError or an OSError; there it is raised as it is.
  """
  value, refusal = None, None
  if jax.process_index() == 0:
    try:
      value = function()
    except (errors.UserError, OSError) as error:
      refusal = error
  message = broadcast_json(str(refusal) if refusal else None)
  if message is not None:
    raise refusal or run_directory.RunDirectoryError(message)
  return value


def load_model(workdir: str | os.PathLike) -> run_directory.SavedModel:
  """Returns a run's best model in every process; process 0 alone reads it.

  Raises:
    RunDirectoryError: as of run_directory.load_model, in every process.
  """
  saved = first(lambda: run_directory.load_model(workdir))
  if jax.process_count() == 1:
    assert saved is not None
    return saved
  flat, head = {}, None
  if saved is not None:
    flat = traverse_util.flatten_dict(saved.variables, sep='/')
    layout = {k: (v.shape, str(v.dtype)) for k, v in flat.items()}
    head = (saved.record, saved.digest, layout)
  record, digest, layout = broadcast_json(head)
  sent = broadcast(
    {k: flat.get(k, np.zeros(*layout[k])) for k in sorted(layout)}
  )
  variables = {k: np.asarray(v) for k, v in sent.items()}
  return run_directory.SavedModel(
    traverse_util.unflatten_dict(variables, sep='/'), record, digest
  )


def broadcast_json(value: Any) -> Any:
  """Returns process 0's `value` (anything JSON) in every process."""
  if jax.process_count() == 1:
    return value
  from jax.experimental import multihost_utils

  data = np.frombuffer(json.dumps(value).encode(), np.uint8)
  size = int(multihost_utils.broadcast_one_to_all(np.int32(len(data))))
  if jax.process_index() != 0:
    data = np.zeros(size, np.uint8)
  received = np.asarray(multihost_utils.broadcast_one_to_all(data), np.uint8)
  return json.loads(received.tobytes().decode())


def broadcast(tree: PyTree) -> PyTree:
  """Returns process 0's arrays in every process; shapes are the same there."""
  if jax.process_count() == 1:
    return tree
  from jax.experimental import multihost_utils

  return multihost_utils.broadcast_one_to_all(tree)


def gather(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Returns every process's arrays [n, ...] stacked as [processes, n, ...].

  Shapes and dtypes must be the same in all processes.
  """
  if jax.process_count() == 1:
    return {key: np.asarray(value)[None] for key, value in arrays.items()}
  from jax.experimental import multihost_utils

  stacked = {}
  for key, value in arrays.items():
    value = np.ascontiguousarray(value)
    # As bytes: JAX would narrow 64-bit numbers on the way.
    raw = value.reshape(len(value), -1).view(np.uint8)
    raw = np.asarray(multihost_utils.process_allgather(raw))
    stacked[key] = raw.view(value.dtype).reshape(-1, *value.shape)
  return stacked
