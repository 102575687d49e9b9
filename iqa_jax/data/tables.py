"""Reads CSV files as people have them: BOM, CRLF, other capitals, junk."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
import csv
import difflib
import os
import pathlib

from iqa_jax.aliases import Record
from iqa_jax.data.records import DataError, Entry, refuse


def read(
  path: str | os.PathLike,
  required: Sequence[str],
  aliases: Mapping[str, Sequence[str]] | None = None,
  report: Callable[[str], None] = refuse,
) -> Iterator[tuple[int, dict[str, str]]]:
  """Yields (line number, row) of a CSV file with a header.

  Args:
    path: the file, UTF-8 with or without BOM.
    required: columns that must be there.
    aliases: other spellings of a column, by the name it shall have.
    report: called with what is wrong with a row, which is then left out.

  Raises:
    DataError: the file is missing, no CSV, or lacks a column.
  """
  spelled = {
    other.lower(): name
    for name, others in (aliases or {}).items()
    for other in (name, *others)
  }
  try:
    with open(path, encoding='utf-8-sig', newline='') as file:
      reader = csv.DictReader(file, strict=True)
      columns = [
        spelled.get(c.strip().lower(), c.strip())
        for c in reader.fieldnames or ()
      ]
      for name in required:
        if name not in columns:
          near = difflib.get_close_matches(name, columns, 1)
          hint = f'; the nearest is {near[0]!r}' if near else ''
          raise DataError(
            f'{path} has no column {name!r}{hint}; it has: '
            f'{", ".join(columns) or "nothing"}'
          )
      if len(set(columns)) < len(columns):
        twice = next(c for c in columns if columns.count(c) > 1)
        raise DataError(f'{path} has two columns {twice!r}')
      reader.fieldnames = columns
      for row in reader:
        short = [name for name in required if row[name] is None]
        if short:
          report(
            f'{path}, line {reader.line_num}: too few fields, {short[0]} is '
            'missing'
          )
          continue
        yield (
          reader.line_num,
          {k: (v or '').strip() for k, v in row.items() if k is not None},
        )
  except OSError as error:
    raise DataError(f'{path} cannot be read: {error.strerror}') from error
  except UnicodeDecodeError as error:
    raise DataError(f'{path} is not UTF-8 text: {error}') from error
  except csv.Error as error:
    raise DataError(f'{path} is not a CSV file: {error}') from error


def photographs(
  folders: Sequence[str | os.PathLike], suffixes: Sequence[str]
) -> dict[str, list[pathlib.Path]]:
  """Returns the photographs in folders by name without suffix.

  Args:
    folders: of several files of a name those of earlier folders come first,
      and within a folder those whose suffix does; folders that don't exist are
      skipped.
    suffixes: in lower case, with the dot.
  """
  found: dict[str, list[pathlib.Path]] = {}
  for folder in map(pathlib.Path, folders):
    if folder.is_dir():
      for entry in sorted(os.scandir(folder), key=lambda e: e.name):
        name, suffix = os.path.splitext(entry.name)
        if suffix.lower() in suffixes:
          found.setdefault(name, []).append(pathlib.Path(entry.path))
  return found


def entry(
  found: Mapping[str, Sequence[pathlib.Path]], metadata: Record
) -> Entry:
  """Returns a labelled photograph with its files of `photographs`."""
  paths = found.get(metadata['image_id'], ())
  return Entry(paths[0] if paths else None, metadata, tuple(paths[1:]))


def number(text: str) -> str:
  """Returns a whole number as spreadsheets leave it alone: 1 for 1.0."""
  return text[:-2] if text.endswith('.0') else text
