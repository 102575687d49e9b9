"""Training states on disk: orbax writes them, a digest vouches for them.

The latest two states are kept; the best model is not among them but in the
run directory's model/, so keeping the best never costs the latest. Every save
holds the arrays of the state by path, and a JSON record of where the run was.

State is the same in every process: process 0 alone reads and writes, and hands
what it read to the others, so the run directory need not be shared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent import futures
import os
import pathlib
import time
from types import TracebackType
from typing import TYPE_CHECKING
import zlib

from absl import logging
import jax
import numpy as np
import orbax.checkpoint as ocp

from iqa_jax import processes, run_directory
from iqa_jax.aliases import PyTree, Record

if TYPE_CHECKING:
  from logging import LogRecord

_KEEP = 2
_NEWS = ('WARNING', 'ERROR', 'CRITICAL')


def _quiet(record: LogRecord) -> bool:
  # Orbax tells thirty lines about every save; only its warnings are news.
  return record.levelname in _NEWS or 'orbax' not in record.pathname


class Damaged(run_directory.RunDirectoryError):
  """A checkpoint is not what was written."""


class Store:
  """The checkpoints of one run directory, numbered in the order of writing.

  Use as a context manager; leaving waits for the last save.
  """

  def __init__(
    self, workdir: str | os.PathLike, saved: Callable[[], None] = lambda: None
  ):
    """Opens (process 0: and creates) `workdir`/checkpoints.

    Args:
      workdir: the run directory.
      saved: called after every save, in the background, too.

    Raises:
      RunDirectoryError: it cannot be created.
    """
    logging.get_absl_logger().addFilter(_quiet)
    self.folder = pathlib.Path(workdir).absolute() / 'checkpoints'
    self._manager: ocp.CheckpointManager | None = None
    self._last = -1
    self._after = saved
    self._saved = time.monotonic()
    self._worker = futures.ThreadPoolExecutor(1, 'checkpoint')
    self._saving: futures.Future | None = None
    if jax.process_index() != 0:
      return
    try:
      self.folder.mkdir(parents=True, exist_ok=True)
      self._manager = ocp.CheckpointManager(
        self.folder,
        options=ocp.CheckpointManagerOptions(
          max_to_keep=_KEEP,
          create=False,
          cleanup_tmp_directories=True,
          enable_async_checkpointing=False,
          multiprocessing_options=ocp.options.MultiprocessingOptions(
            primary_host=0,
            active_processes={0},
            barrier_sync_key_prefix='iqa_jax',
          ),
        ),
      )
      self._last = max(self._manager.all_steps(), default=-1)
    except OSError as error:
      raise run_directory.RunDirectoryError(
        f'{self.folder} cannot be opened for checkpoints: {error}'
      ) from error

  def __enter__(self) -> Store:
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    traceback: TracebackType | None,
  ) -> None:
    try:
      self.wait()
    except run_directory.RunDirectoryError as failure:
      if error is None:
        raise
      logging.error('%s', failure)
    finally:
      self._worker.shutdown()
      if self._manager is not None:
        self._manager.close()

  def save(self, state: PyTree, record: Record) -> None:
    """Saves a state in the background; its arrays are copied first.

    Args:
      state: pytree of arrays, replicated.
      record: JSON, handed back by `restore`.

    Raises:
      RunDirectoryError: the save before this one failed.
    """
    self.wait()
    if self._manager is None:
      return
    arrays = _by_path(state)
    self._saved = time.monotonic()
    self._last += 1
    self._saving = self._worker.submit(
      self._write, self._last, arrays, dict(record)
    )

  @property
  def age(self) -> float:
    """Seconds since the last save, since the start where there is none."""
    return time.monotonic() - self._saved

  def wait(self) -> None:
    """Waits for the last save.

    Raises:
      RunDirectoryError: it failed. What was saved before is intact.
    """
    saving, self._saving = self._saving, None
    if saving is None:
      return
    try:
      saving.result()
    except Exception as error:  # orbax and TensorStore raise many kinds
      raise run_directory.RunDirectoryError(
        f'no checkpoint could be written to {self.folder}: {error}. Is the '
        'disk full or read-only? What was saved before is intact; the same '
        'command resumes from it'
      ) from error

  def _write(
    self, number: int, arrays: dict[str, np.ndarray], record: Record
  ) -> None:
    assert self._manager is not None
    record = {**record, 'digest': _digest(arrays)}
    self._manager.save(
      number,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(arrays), record=ocp.args.JsonSave(record)
      ),
      force=True,
    )
    self._after()

  def restore(
    self, template: Callable[[Record], PyTree]
  ) -> tuple[PyTree, Record] | None:
    """Returns the latest intact state and its record, None if none was saved.

    Damaged checkpoints are named in the log and passed over.

    Args:
      template: makes, of a record, a state of the structure, shapes and
        dtypes that were saved then.

    Raises:
      RunDirectoryError: there are checkpoints, but no intact one.
    """
    found, problem = None, None
    if self._manager is not None:
      try:
        found = self._latest(template)
      except run_directory.RunDirectoryError as error:
        problem = error
    told = processes.broadcast_json(
      [found[1] if found else None, str(problem) if problem else None]
    )
    if told[1] is not None:
      raise problem or run_directory.RunDirectoryError(told[1])
    if told[0] is None:
      return None
    state = found[0] if found else template(told[0])
    return processes.broadcast(state), told[0]

  def _latest(
    self, template: Callable[[Record], PyTree]
  ) -> tuple[PyTree, Record] | None:
    assert self._manager is not None
    steps = sorted(self._manager.all_steps(), reverse=True)
    for number in steps:
      try:
        return self._read(number, template)
      except Damaged as error:
        logging.warning('%s; the one before it is used', error)
    if steps:
      raise run_directory.RunDirectoryError(
        f'no checkpoint in {self.folder} is intact '
        f'({", ".join(map(str, steps))}); delete that folder to start again'
      )
    return None

  def _read(
    self, number: int, template: Callable[[Record], PyTree]
  ) -> tuple[PyTree, Record]:
    assert self._manager is not None
    name = f'checkpoint {self.folder / str(number)}'
    try:
      record = self._manager.restore(
        number, args=ocp.args.Composite(record=ocp.args.JsonRestore())
      ).record
      digest = record.pop('digest')
      state = template(record)
      arrays = _by_path(state)
      restored = self._manager.restore(
        number,
        args=ocp.args.Composite(
          state=ocp.args.StandardRestore(
            {key: np.empty_like(value) for key, value in arrays.items()}
          )
        ),
      ).state
    except Exception as error:  # whatever orbax makes of damaged bytes
      text = (str(error).splitlines() or [''])[0]
      raise Damaged(
        f'{name} is damaged or incomplete ({type(error).__name__}: {text})'
      ) from error
    if _digest(restored) != digest:
      raise Damaged(f'{name} is damaged: its arrays are not what was saved')
    leaves = [restored[key] for key in arrays]
    return jax.tree.unflatten(jax.tree.structure(state), leaves), record


def _by_path(tree: PyTree) -> dict[str, np.ndarray]:
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  # Copies: the step that follows donates what it is given.
  return {jax.tree_util.keystr(path): np.array(leaf) for path, leaf in leaves}


def _digest(arrays: Mapping[str, np.ndarray]) -> int:
  """Returns a checksum of names, types, shapes and values; damage, not malice.

  Orbax vouches for the files being complete, not for every byte in them.
  """
  total = 0
  for key in sorted(arrays):
    value = np.ascontiguousarray(arrays[key])
    head = f'{key} {value.dtype} {np.shape(arrays[key])}'
    total = zlib.crc32(head.encode(), total)
    total = zlib.crc32(value.reshape(-1).view(np.uint8).data, total)
  return total
