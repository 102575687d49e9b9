"""The devices of a run: what lies where, and how a function runs on all.

Everything that names pmap is here. A function for one device, over arrays with
a leading device axis, becomes one for all of them by `parallel`, in one of two
ways that give the same results (tests/test_devices.py): `jax.pmap`, or
`jax.jit` of `jax.shard_map`, into which pmap may one day be retired. The
environment variable IQA_PARALLEL chooses.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import contextlib
import functools
import os
from typing import TypeVar

import jax
from jax.experimental import multihost_utils
import numpy as np

from iqa_jax import errors
from iqa_jax.aliases import PyTree

_T = TypeVar('_T')

AXIS = 'batch'
WAYS = ('pmap', 'shard_map')
_P = jax.sharding.PartitionSpec
_CPU_PASS = 8  # photographs a device

# Read once: programs of one process are all made the same way.
_way = os.environ.get('IQA_PARALLEL', 'pmap')
# Instead of those that JAX finds; see `using`.
_chosen: Sequence[jax.Device] | None = None


@contextlib.contextmanager
def using(
  devices: Sequence[jax.Device] | None = None, *, way: str | None = None
) -> Iterator[None]:
  """Functions made in here are for other devices, or made the other way.

  Args:
    devices: of a topology, say, that programs are compiled for but don't run
      on (jax.experimental.topologies); None for those that JAX finds.
    way: one of WAYS; None for that of the environment.
  """
  global _chosen, _way
  before = _chosen, _way
  _chosen, _way = devices, way or _way
  try:
    yield
  finally:
    _chosen, _way = before


def local_count() -> int:
  """Returns how many devices this process has."""
  return jax.local_device_count()


def parallel(
  function: Callable,
  *,
  in_axes: tuple[int | None, ...],
  out_axes: PyTree = 0,
  donate_argnums: int | tuple[int, ...] = (),
  local: bool = True,
) -> Callable[..., PyTree]:
  """Returns `function` run on every device at once, compiled.

  Within it AXIS names the devices, for `lax.psum` and its kin.

  Args:
    function: of one device, over trees of arrays.
    in_axes: 0 of arguments with a leading axis over this process's devices,
      None of those that are the same on every device.
    out_axes: likewise of the results, one for all or a tuple.
    donate_argnums: the arguments whose memory the results may take.
    local: this process's devices alone, so that processes needn't keep step;
      False for those of all processes.

  Returns:
    A compiled function, which can be lowered (`.lower(...)`) where the run has
    one process.

  Raises:
    ValueError: IQA_PARALLEL names no way.
  """
  errors.one_of('IQA_PARALLEL=', _way, WAYS)
  devices = _chosen
  if devices is None:
    devices = jax.local_devices() if local else jax.devices()
  if _way == 'pmap':
    every = None if devices == jax.devices() else devices
    return jax.pmap(
      function,
      axis_name=AXIS,
      in_axes=in_axes,
      out_axes=out_axes,
      devices=every,
      donate_argnums=donate_argnums,
    )
  return _shard_mapped(function, devices, in_axes, out_axes, donate_argnums)


def _shard_mapped(
  function: Callable,
  devices: Sequence[jax.Device],
  in_axes: tuple[int | None, ...],
  out_axes: PyTree,
  donate_argnums: int | tuple[int, ...],
) -> Callable[..., PyTree]:
  """Returns `parallel`'s function as jit of shard_map."""

  def specs(axes: PyTree) -> PyTree:
    return jax.tree.map(
      lambda axis: _P() if axis is None else _P(AXIS),
      axes,
      is_leaf=lambda axis: axis is None,
    )

  def moved(
    tree: PyTree, axes: PyTree, move: Callable[[jax.Array], jax.Array]
  ) -> PyTree:
    if isinstance(axes, tuple):
      pairs = zip(tree, axes, strict=True)
      return tuple(moved(part, axis, move) for part, axis in pairs)
    return tree if axes is None else jax.tree.map(move, tree)

  def one(*arguments: PyTree) -> PyTree:
    results = function(*moved(arguments, in_axes, lambda x: x[0]))
    return moved(results, out_axes, lambda x: x[None])

  mesh = jax.sharding.Mesh(np.asarray(devices), (AXIS,))
  into, out = specs(in_axes), specs(out_axes)
  shardings = tuple(jax.sharding.NamedSharding(mesh, s) for s in into)
  compiled = jax.jit(
    # As in pmap, a gradient is this device's alone until it is summed.
    jax.shard_map(
      one, mesh=mesh, in_specs=into, out_specs=out, check_vma=False
    ),
    in_shardings=shardings,
    donate_argnums=donate_argnums,
  )
  if jax.process_count() == 1:
    return compiled

  @functools.wraps(function)
  def of_processes(*arguments: PyTree) -> PyTree:
    if all(d.process_index == jax.process_index() for d in devices):
      return compiled(*jax.device_put(arguments, shardings))
    # Each process gives and gets its own part, as with pmap.
    whole = multihost_utils.host_local_array_to_global_array(
      arguments, mesh, into
    )
    return multihost_utils.global_array_to_host_local_array(
      compiled(*whole), mesh, out
    )

  return of_processes


def place(tree: PyTree) -> PyTree:
  """Returns `tree` replicated over this process's devices.

  Donating arrays that were never placed fails in runs of several processes.
  """
  mesh = jax.sharding.Mesh(np.asarray(jax.local_devices()), (AXIS,))
  return jax.device_put(tree, jax.sharding.NamedSharding(mesh, _P()))


def shard(
  batch: Mapping[str, np.ndarray | jax.Array], *, parts: int = 1
) -> dict[str, np.ndarray]:
  """Splits a host batch over the local devices.

  Args:
    batch: arrays [b, ...] with 'mask' [b] float32, 1 for real examples.
    parts: the share of a device is to be divisible by this.

  Returns:
    Arrays [devices, b', ...]. Where `b` does not divide, masked examples fill
    up the last devices.
  """
  devices = local_count()
  extra = -len(batch['mask']) % (devices * parts)

  def split(value: np.ndarray | jax.Array) -> np.ndarray:
    value = np.asarray(value)
    if extra:
      padding = np.zeros((extra, *value.shape[1:]), value.dtype)
      value = np.concatenate([value, padding])
    return value.reshape(devices, -1, *value.shape[1:])

  return {key: split(value) for key, value in batch.items()}


def joined(results: PyTree, count: int) -> PyTree:
  """Returns the first `count` rows of results [devices, b', ...], as NumPy."""

  def join(result: jax.Array) -> np.ndarray:
    return np.asarray(result).reshape(-1, *result.shape[2:])[:count]

  return jax.tree.map(join, results)


def ahead(begun: Iterable[_T], count: int) -> Iterator[_T]:
  """Yields what is being computed, each after `count` more have begun.

  So the host makes the next batches while the devices compute.
  """
  waiting: deque[_T] = deque()
  for one in begun:
    waiting.append(one)
    if len(waiting) > count:
      yield waiting.popleft()
  yield from waiting


def batch_size(asked: int = 0) -> int:
  """Returns photographs a batch for explaining, over this process's devices.

  Args:
    asked: the wish, made divisible by the devices; 0 for 8 a device on a CPU,
      32 elsewhere.
  """
  devices = jax.local_devices()
  each = _CPU_PASS if devices[0].platform == 'cpu' else 32
  size = asked or each * len(devices)
  return -(-size // len(devices)) * len(devices)


def pass_size(asked: int) -> int:
  """Returns photographs a forward pass, over all processes' devices.

  Args:
    asked: the wish, divisible by the devices. A CPU takes at most 8 a device:
      more of them leave its cache, and take VGG16 a fifth more time each.
  """
  if jax.local_devices()[0].platform != 'cpu':
    return asked
  return min(asked, _CPU_PASS * jax.device_count())


def use_compilation_cache(folder: str) -> None:
  """Keeps compiled programs in `folder` between runs; '' for nowhere.

  Raises:
    UserError: others could plant compiled code there.
  """
  if not folder:
    return
  folder = os.path.expanduser(folder)
  os.makedirs(folder, mode=0o700, exist_ok=True)
  if os.stat(folder).st_mode & 0o022:
    raise errors.UserError(
      f'{folder} is writable by others, who could plant compiled code in '
      'it: chmod 700 it or give another --compilation_cache'
    )
  jax.config.update('jax_compilation_cache_dir', folder)
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 1.0)
