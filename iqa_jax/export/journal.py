"""What an export has done: a journal while it runs, one a shard.

An append-only file, a JSON line a finished photograph, synced to disk;
whatever ends the process, the lines before stay, and the next run goes on
behind them. Shards never write to the same file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
import fcntl
import json
import os
import pathlib
import time
from typing import IO

from iqa_jax import errors
from iqa_jax.aliases import Record
from iqa_jax.export.manifest import KINDS, PAGES, THUMBNAIL

_FORMAT = 1
_FOLDER = 'journal'
_SYNC_SECONDS = 1.0  # between writes of the journal


class ManifestError(errors.UserError):
  """An output directory holds another export, is in use, or is unfinished."""


class Journal:
  """One shard's journal, locked for this process while it is open.

  Only where each photograph's line begins is held in memory.

  Attributes:
    finished: whether the shard's last run went to its end.
  """

  def __init__(
    self,
    output: str | os.PathLike,
    shard: int,
    settings: Record,
    *,
    overwrite: bool = False,
  ):
    """Opens or begins the journal of `settings['num_shards']` shards.

    Args:
      output: the output directory.
      shard: this shard's index.
      settings: all that outputs depend on, JSON values.
      overwrite: begin anew where other settings were used; what that export
        left (manifests, pages, pictures) is removed first.

    Raises:
      ManifestError: another process writes this shard, or the directory holds
        an export of other settings.
    """
    folder = pathlib.Path(output) / _FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    path = _path(output, shard, settings['num_shards'])
    # Unbuffered: what a full disk refuses must not linger and be tried again.
    self._file = open(path, 'ab', buffering=0)
    self._reader = open(path, 'rb')
    self.finished = False
    self._offsets: dict[str, int] = {}
    try:
      _lock(self._file, path)
      for other in sorted(folder.glob('shard-*.jsonl')):
        self._check(other, settings, overwrite, own=other == path)
      self._scan()
      if not self._file.seek(0, os.SEEK_END):
        self._write([{'format': _FORMAT, 'settings': dict(settings)}])
    except BaseException:
      self.close()
      raise

  def _check(
    self,
    path: pathlib.Path,
    settings: Record,
    overwrite: bool,
    own: bool,
  ) -> None:
    try:
      with open(path, 'rb') as file:
        saved = _header(file)
    except FileNotFoundError:
      return
    if own and saved is None:
      self._file.truncate(0)  # killed while it wrote the first line
    if saved is None or saved == settings:
      return
    if not overwrite:
      raise ManifestError(
        f'{path.parent.parent} holds an export of other settings:\n'
        + '\n'.join(f'  {line}' for line in _differences(saved, settings))
        + '\ngive another --output, or --overwrite to replace it'
      )
    with open(path, 'ab') as file:
      if not own:
        _lock(file, path)
      _withdraw(path)
      if own:
        self._file.truncate(0)
      else:
        path.unlink()

  def _scan(self) -> None:
    """Reads where the lines begin; cuts off a line that was half written."""
    self._reader.seek(0)
    end = 0
    for line in self._reader:
      record = _parse(line)
      if record is None:
        if not line.endswith(b'\n'):
          break
      elif 'path' in record:
        self._offsets[record['path']] = end
        if record.get('status') == 'removed':
          del self._offsets[record['path']]
        self.finished = False
      elif 'finished' in record:
        self.finished = True
      end += len(line)
    self._file.truncate(end)

  def __contains__(self, key: str) -> bool:
    return key in self._offsets

  def __len__(self) -> int:
    return len(self._offsets)

  def keys(self) -> list[str]:
    """Returns the keys of all photographs in the journal, sorted."""
    return sorted(self._offsets)

  def read(self, key: str) -> Record:
    """Returns the record of a photograph."""
    self._reader.seek(self._offsets[key])
    record = _parse(self._reader.readline())
    assert record is not None
    return record

  def append(self, records: Sequence[Record]) -> None:
    """Adds finished photographs, and waits until they are on the disk."""
    if records:
      self.finished = False
      offsets = self._write(records)
      for record, offset in zip(records, offsets, strict=True):
        self._offsets[record['path']] = offset

  def forget(self, keys: Iterable[str]) -> None:
    """Drops photographs that are no longer asked for."""
    gone = [key for key in keys if key in self._offsets]
    self.append([{'path': key, 'status': 'removed'} for key in gone])
    for key in gone:
      del self._offsets[key]

  def finish(self) -> None:
    """Says that nothing is left to do."""
    if not self.finished:
      self._write([{'finished': len(self._offsets)}])
      self.finished = True

  def _write(self, records: Iterable[Record]) -> list[int]:
    start = offset = self._file.seek(0, os.SEEK_END)
    offsets, lines = [], []
    for record in records:
      line = json.dumps(record, allow_nan=False).encode() + b'\n'
      offsets.append(offset)
      offset += len(line)
      lines.append(line)
    data = memoryview(b''.join(lines))
    try:
      while data:
        data = data[self._file.write(data) :]
      os.fsync(self._file.fileno())
    except OSError:
      self._file.truncate(start)
      raise
    return offsets

  def close(self) -> None:
    """Lets other processes have the journal."""
    self._reader.close()
    self._file.close()

  def __enter__(self) -> Journal:
    return self

  def __exit__(self, *unused: object) -> None:
    self.close()


def remove(output: str | os.PathLike, record: Record) -> None:
  """Removes a photograph's pictures and arrays, those that are there.

  Only what lies where an export writes: a journal may be anyone's.
  """
  for name, _ in record.get('files', {}).values():
    first, *rest = pathlib.PurePosixPath(name).parts
    if first in (*KINDS, THUMBNAIL) and '..' not in rest:
      pathlib.Path(output, name).unlink(missing_ok=True)


class Ledger:
  """Brings finished records to a journal, many at a time.

  Attributes:
    failed: how many were not ok.
  """

  def __init__(self, output: pathlib.Path, journal: Journal):
    self.failed = 0
    self._output = output
    self._journal = journal
    self._finished: list[Record] = []
    self._synced = time.perf_counter()

  def add(self, record: Record) -> None:
    """Takes a finished photograph's record."""
    self.failed += record['status'] != 'ok'
    key = record['path']
    before = self._journal.read(key) if key in self._journal else {}
    if record != before:
      self._finished.append(record)
    if record['status'] != 'ok':
      remove(self._output, before)
    if time.perf_counter() - self._synced > _SYNC_SECONDS:
      self.sync()

  def sync(self) -> None:
    """Writes what is finished to the journal."""
    finished, self._finished = self._finished, []
    self._journal.append(finished)
    self._synced = time.perf_counter()


def _withdraw(journal: pathlib.Path) -> None:
  """Removes what an export has left beside its journal.

  The journal goes last, so that a run that is killed here does it again.
  """
  output = journal.parent.parent
  for pattern in PAGES:
    for path in output.glob(pattern):
      path.unlink(missing_ok=True)
  with open(journal, 'rb') as file:
    for line in file:
      remove(output, _parse(line) or {})


def open_finished(
  output: str | os.PathLike, num_shards: int
) -> tuple[list[Journal], Record]:
  """Opens the journals of all shards, to be merged; and their settings.

  Raises:
    ManifestError: a shard is missing or unfinished.
  """
  settings = None
  for shard in range(num_shards):
    path = _path(output, shard, num_shards)
    try:
      with open(path, 'rb') as file:
        settings = settings or _header(file)
    except FileNotFoundError:
      settings = None
    if settings is None:
      raise ManifestError(
        f'shard {shard} of {num_shards} has not run: {path} '
        f'{"is empty" if path.exists() else "is missing"}'
      )
  assert settings is not None
  journals: list[Journal] = []
  try:
    for shard in range(num_shards):
      journals.append(Journal(output, shard, settings))
      if not journals[-1].finished:
        raise ManifestError(
          f'shard {shard} of {num_shards} is unfinished ({len(journals[-1])} '
          'photographs done): run it again, then merge'
        )
  except BaseException:
    for journal in journals:
      journal.close()
    raise
  return journals, settings


def merged(journals: Sequence[Journal]) -> Iterator[Record]:
  """Yields all records of several journals, sorted by their keys."""
  holder = {key: journal for journal in journals for key in journal.keys()}
  for key in sorted(holder):
    yield holder[key].read(key)


def _path(
  output: str | os.PathLike, shard: int, num_shards: int
) -> pathlib.Path:
  name = f'shard-{shard:05d}-of-{num_shards:05d}.jsonl'
  return pathlib.Path(output) / _FOLDER / name


def _lock(file: IO[bytes], path: pathlib.Path) -> None:
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    raise ManifestError(
      f'{path} is in use: another process exports this shard; wait for it or '
      'give another --output'
    ) from None


def _parse(line: bytes) -> Record | None:
  """Returns a line's object; None when it is torn or damaged."""
  if not line.endswith(b'\n'):
    return None
  try:
    value = json.loads(line)
  except (ValueError, RecursionError):
    return None
  return value if isinstance(value, dict) else None


def _header(file: IO[bytes]) -> Record | None:
  record = _parse(file.readline())
  if record is None or record.get('format') != _FORMAT:
    return None
  return record.get('settings')


def _differences(saved: Record, settings: Record) -> list[str]:
  return [
    f'{name}: {saved.get(name)!r} there, {settings.get(name)!r} now'
    for name in sorted(saved.keys() | settings.keys())
    if saved.get(name) != settings.get(name)
  ]
