"""Run directories in buckets: gs://, s3:// and whatever else fsspec reaches.

A run needs files that can be locked, mapped and appended to, and a bucket has
none. So it works in a local folder: the bucket's files are copied there first,
and what changed is copied back with every checkpoint and at the end. Nothing
keeps two runs from the same bucket, though.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
import contextlib
import os
import pathlib
import re
import tempfile
from typing import Any

from absl import logging

from iqa_jax import errors

# pathlib makes one slash of two.
_SCHEME = re.compile(r'[A-Za-z][A-Za-z0-9+.-]+:/')
_UNFINISHED = ('.tmp-', '.nfs')
_LOCAL = 'run.lock'


def is_remote(place: str | os.PathLike) -> bool:
  """Returns whether `place` is a URL (gs://bucket/run), and no local path."""
  return bool(_SCHEME.match(os.fspath(place)))


def refuse(**places: str | os.PathLike | None) -> None:
  """Refuses remote places where there have to be local ones.

  Raises:
    InvalidValue: one of `places`, named as in the message, is remote.
  """
  for name, place in places.items():
    if place and is_remote(place):
      raise errors.InvalidValue(
        f'{name.replace("__", ".")}={os.fspath(place)} is remote, and has to '
        'be a local or a mounted folder (gcsfuse and mount-s3 mount buckets); '
        'only run directories may be remote'
      )


@contextlib.contextmanager
def mirror(
  place: str | os.PathLike,
  *,
  only: str = '',
  leave_out: Sequence[str] = (),
  active: bool = True,
) -> Iterator[tuple[pathlib.Path, Callable[[], None]]]:
  """Gives a folder to work in that holds what `place` does.

  Args:
    place: a local folder, which is given as it is, or a URL.
    only: the one file or folder below `place` that is wanted; '' for all.
    leave_out: names of folders, at any depth, that are not.
    active: False for a process that neither reads nor writes `place`: where
      that is remote it gets an empty folder.

  Yields:
    The folder, and a function that copies what has changed in it to `place`.
    That happens at the end, too, errors or not.

  Raises:
    UserError: `place` can't be reached.
  """
  if not is_remote(place):
    yield pathlib.Path(place).expanduser(), lambda: None
    return
  url = os.fspath(place).rstrip('/')
  with tempfile.TemporaryDirectory(prefix='iqa_jax-') as temporary:
    # Named as the run is, since reports say it.
    folder = pathlib.Path(temporary) / url.rsplit('/', 1)[1]
    folder.mkdir()
    if not active:
      yield folder, lambda: None
      return
    copy = _Mirror(url, folder)
    copy.pull(only, leave_out)
    logging.debug('%s is worked on in %s', url, folder)
    try:
      yield folder, copy.push
    finally:
      copy.push()


class _Mirror:
  """A local folder and the remote one that it is a copy of."""

  def __init__(self, url: str, folder: pathlib.Path):
    import fsspec

    self._url = url
    self._folder = folder
    self._stamps: dict[str, tuple[int, int]] = {}
    try:
      self._files: Any
      self._files, self._root = fsspec.url_to_fs(url)
    except (ImportError, ValueError) as error:
      raise errors.UserError(
        f'{url} cannot be reached: {error} (gs:// and s3:// need '
        "pip install 'iqa_jax[buckets]')"
      ) from error

  def pull(self, only: str, leave_out: Sequence[str]) -> None:
    """Copies the remote files to the folder."""
    start = f'{self._root}/{only}' if only else self._root
    try:
      # What was there when another process looked need not be all.
      self._files.invalidate_cache()
      for name in self._files.find(start):
        relative = name.removeprefix(self._root).lstrip('/')
        parts = pathlib.PurePosixPath(relative).parts
        if '..' in parts or set(parts[:-1]) & set(leave_out):
          continue
        path = self._folder / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        self._files.get_file(name, str(path))
        self._stamps[relative] = _stamp(path)
    except Exception as error:  # every file system has its own
      raise errors.UserError(
        f'{self._url} cannot be read: {type(error).__name__}: {error}'
      ) from error

  def push(self) -> None:
    """Copies changed files to the remote folder and removes those removed.

    Checkpoints come last: the model, which they refer to, may be newer than
    they are, and never older.
    """
    found: dict[str, tuple[int, int]] = {}
    for path in self._folder.rglob('*'):
      with contextlib.suppress(FileNotFoundError):  # it was replaced
        unfinished = path.name.startswith(_UNFINISHED) or path.name == _LOCAL
        if path.is_file() and not unfinished:
          found[path.relative_to(self._folder).as_posix()] = _stamp(path)
    changed = [k for k, v in found.items() if self._stamps.get(k) != v]
    try:
      for name in sorted(changed, key=_turn):
        with contextlib.suppress(FileNotFoundError):
          data = (self._folder / name).read_bytes()
          self._files.pipe_file(f'{self._root}/{name}', data)
      for name in self._stamps.keys() - found.keys():
        self._files.rm_file(f'{self._root}/{name}')
    except Exception as error:  # every file system has its own
      raise errors.UserError(
        f'{self._url} cannot be written: {type(error).__name__}: {error}'
      ) from error
    self._stamps = found


def _turn(name: str) -> tuple[bool, bool, str]:
  return name.startswith('checkpoints/'), name.endswith('model.json'), name


def _stamp(path: pathlib.Path) -> tuple[int, int]:
  status = path.stat()
  return status.st_mtime_ns, status.st_size
