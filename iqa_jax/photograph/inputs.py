"""Which photographs are to be exported, and what their outputs are called.

A photograph's key is its path relative to the root of its listing (the folder
it was found in, or the list's folder). Standard library only.
"""

from __future__ import annotations

from collections.abc import Iterator
import csv
import dataclasses
import glob
import hashlib
import os
import pathlib
import re

from iqa_jax import errors

_COLUMNS = (
  'path', 'image', 'image_path', 'filename', 'file', 'file_name', 'image_id',
)  # fmt: skip
_MAX_FOLDERS = 6


class InputError(errors.InvalidValue):
  """There is nothing to export, or the list can't be read."""


@dataclasses.dataclass(frozen=True)
class Listing:
  """What is to be exported.

  Attributes:
    root: absolute path that keys are relative to.
    keys: sorted, each once.
    ignored: files of the folder whose names say that they are no images.
    repeated: entries of a list that named a photograph again.
  """

  root: str
  keys: list[str]
  ignored: int = 0
  repeated: int = 0


def find(
  images: str, root: str | None = None, suffixes: tuple[str, ...] = ()
) -> Listing:
  """Lists the photographs that `images` names.

  Args:
    images: a folder (searched recursively, through links too), a file, a glob
      pattern (** for any folders), or a CSV list with a column `path`,
      `image`, `image_path`, `filename`, `file` or `image_id`.
    root: what the list's paths are relative to; None for the list's folder.
    suffixes: lower-case endings of images; of a folder others are ignored, in
      a list an image_id may lack its ending.

  Raises:
    InputError: nothing there, or a list that can't be read.
  """
  images = os.path.expanduser(images)
  if os.path.isdir(images):
    return _of_folder(os.path.abspath(images), suffixes)
  if images.lower().endswith('.csv') and not glob.has_magic(images):
    return _of_list(images, root, suffixes)
  if os.path.lexists(images):
    folder, name = os.path.split(os.path.abspath(images))
    return Listing(folder, [name])
  if glob.has_magic(images):
    return _of_pattern(images)
  raise InputError(f'--images={images}: there is no such file or folder')


def _of_folder(root: str, suffixes: tuple[str, ...]) -> Listing:
  keys: list[str] = []
  ignored = 0
  seen: set[tuple[int, int]] = set()

  def walk(folder: str, prefix: str) -> Iterator[str]:
    nonlocal ignored
    try:
      status = os.stat(folder)
      # Links may lead back to where we are.
      if (status.st_dev, status.st_ino) in seen:
        return
      seen.add((status.st_dev, status.st_ino))
      entries = sorted(os.scandir(folder), key=lambda e: e.name)
    except OSError:
      # Kept as an input of its own: it becomes a row that says why.
      yield prefix.rstrip('/') or '.'
      return
    for entry in entries:
      key = prefix + entry.name
      if _is_folder(entry):
        yield from walk(entry.path, f'{key}/')
      elif entry.name.lower().endswith(suffixes):
        yield key
      else:
        ignored += 1

  keys.extend(walk(root, ''))
  if not keys:
    raise InputError(
      f'{root} holds no photographs: none of its {ignored} files ends in '
      f'{", ".join(suffixes)}'
    )
  return Listing(root, sorted(keys), ignored)


def _is_folder(entry: os.DirEntry[str]) -> bool:
  try:
    return entry.is_dir()
  except OSError:
    return False  # a link that leads to itself


def _of_pattern(pattern: str) -> Listing:
  found = [
    p
    for p in glob.iglob(pattern, recursive=True, include_hidden=False)
    if not os.path.isdir(p)
  ]
  if not found:
    raise InputError(f'--images={pattern}: no file matches the pattern')
  fixed = pathlib.PurePath(pattern).parts
  count = next(i for i, part in enumerate(fixed) if glob.has_magic(part))
  root = os.path.abspath(os.path.join('', *fixed[:count]) or '.')
  keys = {os.path.relpath(os.path.abspath(p), root) for p in found}
  return Listing(root, sorted(keys))


def _of_list(path: str, root: str | None, suffixes: tuple[str, ...]) -> Listing:
  base = os.path.abspath(root or os.path.dirname(os.path.abspath(path)))
  keys: list[str] = []
  try:
    with open(path, encoding='utf-8-sig', newline='') as file:
      reader = csv.DictReader(file)
      names = {(n or '').strip().lower(): n for n in reader.fieldnames or []}
      column = next((names[c] for c in _COLUMNS if c in names), None)
      if column is None:
        raise InputError(
          f'{path}: no column names the photographs; found '
          f'{", ".join(map(repr, names)) or "no header"}, expected one of '
          f'{", ".join(_COLUMNS)}'
        )
      for row in reader:
        value = (row[column] or '').strip()
        if not value or '\0' in value:
          raise InputError(
            f'{path}, line {reader.line_num}: column {column!r} holds no path'
          )
        keys.append(_spelt(base, _with_suffix(base, value, suffixes)))
  except (OSError, UnicodeDecodeError, csv.Error) as error:
    raise InputError(f'{path} is not a CSV list: {error}') from error
  if not keys:
    raise InputError(f'{path} lists no photograph')
  unique = sorted(set(keys))
  return Listing(base, unique, repeated=len(keys) - len(unique))


def _with_suffix(base: str, value: str, suffixes: tuple[str, ...]) -> str:
  """Returns the path of a list's entry, which may be a bare image id."""
  if value.lower().endswith(suffixes) or os.path.lexists(
    os.path.join(base, value)
  ):
    return value
  for suffix in suffixes:
    if os.path.lexists(os.path.join(base, value + suffix)):
      return value + suffix
  return value


def _spelt(base: str, value: str) -> str:
  """Returns the one spelling of a path: relative to `base` where it is below.

  Behind a link '..' is the parent of where it leads, so it is resolved only
  where that makes no difference.
  """
  absolute = os.path.join(base, value)
  plain = os.path.normpath(absolute)
  if '..' in pathlib.PurePath(value).parts:
    try:
      if not os.path.samefile(
        os.path.dirname(absolute), os.path.dirname(plain)
      ):
        return value
    except OSError:
      return value
  below = os.path.join(base, '')
  if plain.startswith(below):
    return plain.removeprefix(below)
  return plain if os.path.isabs(value) else os.path.normpath(value)


def in_shard(key: str, index: int, count: int) -> bool:
  """Returns whether a photograph belongs to shard `index` of `count`.

  By its name, so that it stays there when the folder changes.
  """
  return count == 1 or _number(key) % count == index


def sampled(key: str, share: float) -> bool:
  """Returns whether a photograph is in a fixed random sample of that share."""
  return share >= 1 or _number(f'sample:{key}') < share * 2**64


def _number(text: str) -> int:
  return int.from_bytes(_digest(text)[:8], 'big')


def _digest(text: str) -> bytes:
  return hashlib.sha256(text.encode('utf-8', 'surrogateescape')).digest()


def output_name(key: str) -> str:
  """Returns the relative path, without ending, of a photograph's outputs.

  Folders and name stay recognisable; a digest of the key keeps photographs
  apart whose names agree but for their ending, or after unusual characters are
  replaced. It never leaves the output directory, whatever the key.
  """
  folders, _, name = key.replace('\\', '/').rpartition('/')
  parts = [_plain(p, 40) for p in folders.split('/') if p not in ('', '.')]
  stem = _plain(name.rpartition('.')[0] or name, 80)
  parts = parts if len(parts) <= _MAX_FOLDERS else []
  return '/'.join([*parts, f'{stem}-{_digest(key).hex()[:12]}'])


def _plain(part: str, limit: int) -> str:
  """Returns a file name that is harmless to shells, browsers and disks."""
  kept = re.sub(r'[^\w.-]+', '_', part).lstrip('.-') or '_'
  kept = kept.encode('utf-8', 'replace')[:limit].decode('utf-8', 'ignore')
  return kept.rstrip('.') or '_'
