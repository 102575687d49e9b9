"""Check a downloaded dataset before hours are spent on it.

  python -m iqa_jax.validate_data --dataset=brset --manual_dir=~/brset

Reads the labels and decodes every photograph, in parallel: columns and values
of the labels, missing, truncated and unreadable files, several files of a name,
sizes, fields of view that cannot be found, patients, balance of classes and
cameras; and photographs that are nearly the same, mirrored, turned or
compressed anew, under two patients, which may then be in two splits. Prints a
summary and writes a CSV with a row for every labelled photograph and one for
everything that was noticed or is wrong with the labels.

Exit codes: 0 it can be built, 1 it cannot; with --allow_missing, what is absent
or unreadable is only counted, as in a build with data.allow_missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import os
from types import ModuleType
from typing import TYPE_CHECKING

from absl import flags

from iqa_jax import command
from iqa_jax.aliases import Record

if TYPE_CHECKING:
  import numpy as np

  from iqa_jax.data.records import Entry

_DATASET = flags.DEFINE_enum('dataset', None, ['brset', 'csv', 'eyeq'], 'which')
_MANUAL_DIR = flags.DEFINE_string(
  'manual_dir', None, 'the folder with the label files'
)
_COLUMNS = flags.DEFINE_list(
  'columns',
  [],
  "of --dataset=csv: the label file's name and its columns, as data.csv in a "
  'configuration, e.g. file=grades.csv,patient=subject_id',
)
_OUTPUT = flags.DEFINE_string('output', 'validation.csv', 'the CSV to write')
_ALLOW_MISSING = flags.DEFINE_bool(
  'allow_missing', False, 'absent or unreadable photographs are no error'
)

COLUMNS = (
  'image_id',
  'split',
  'patient_id',
  'camera',
  'label',
  'status',
  'reason',
  'path',
  'width',
  'height',
  'field_found',
)

_NOTICES = {
  'several_files': 'photographs have several files of their name; one is used',
  'leakage': 'pairs of photographs are nearly the same under two patients, '
  'who may be one: give them one id or drop one, or a test may see what was '
  'learnt',
}


def examine(split: str, entry: Entry) -> tuple[Record, np.ndarray | None]:
  """Returns a row (COLUMNS) on a photograph, and its code (data/duplicates.py).

  The code is None where the photograph can't be read.

  Args:
    split: the builder's split.
    entry: a records.Entry.
  """
  from iqa_jax import labels
  from iqa_jax.data import duplicates, records
  from iqa_jax.photograph import images, prepare

  about = {**records.METADATA, **entry.metadata}
  quality, grade = about['quality'], about['grade']
  row = dict.fromkeys(COLUMNS, '') | {
    'image_id': entry.image_id,
    'split': split,
    'patient_id': about['patient_id'],
    'camera': about['camera'],
    'label': labels.GRADES[grade] if grade >= 0 else '',
    'status': 'missing',
    'reason': 'no such file',
  }
  if quality >= 0:
    row['label'] = labels.QUALITY[quality]
  if entry.path is None:
    return row, None
  row['path'] = os.fspath(entry.path)
  try:
    photograph = images.read(entry.path, prepare.SIZE)
  except images.ImageError as error:
    return row | {'status': error.status, 'reason': error.reason}, None
  code, field = duplicates.code(photograph.image)
  return row | {
    'status': 'ok',
    'reason': '',
    'width': photograph.width,
    'height': photograph.height,
    'field_found': int(field.found),
  }, code


def noticed(
  splits: Mapping[str, Sequence[Entry]],
  rows: Sequence[Record],
  codes: Sequence[np.ndarray | None],
) -> list[tuple[int, str, str]]:
  """Returns (row's number, status, reason) of what no build refuses.

  Several files of a name, and photographs nearly the same as one of another
  patient.

  Args:
    splits: what the reader of the labels returned, entries by split.
    rows: what `examine` returned, in the order of `splits`.
    codes: likewise; None where there is none.
  """
  from iqa_jax.data import duplicates

  found = []
  entries = [entry for of_split in splits.values() for entry in of_split]
  for number, entry in enumerate(entries):
    if entry.others:
      others = ', '.join(map(os.fspath, entry.others))
      found.append((number, 'several_files', f'{others} not used'))
  known = {i: code for i, code in enumerate(codes) if code is not None}
  there = list(known)
  for a, b, agreement in duplicates.pairs(list(known.values())):
    one, other = rows[there[a]], rows[there[b]]
    if one['patient_id'] == other['patient_id']:
      continue
    across = one['split'] != other['split']
    found.append(
      (
        there[a],
        'leakage',
        f'nearly the same ({agreement:.2f}) as {other["image_id"]} of patient '
        f'{other["patient_id"]}' + (f' in {other["split"]}' * across),
      )
    )
  return found


def summarise(
  dataset: str,
  splits: Mapping[str, Sequence[Entry]],
  rows: Sequence[Record],
  problems: Sequence[str],
  notices: Sequence[tuple[int, str, str]],
) -> tuple[list[str], bool]:
  """Returns the lines of the summary, and whether photographs fail.

  Args:
    dataset: 'brset', 'csv' or 'eyeq'.
    splits: what the reader of the labels returned, entries by split.
    rows: what `examine` returned.
    problems: what is wrong with the labels.
    notices: what `noticed` returned.
  """
  import collections

  lines = [f'{len(problems)} problems with the labels']
  lines += [f'  {problem}' for problem in problems[:10]]
  for kind, meaning in _NOTICES.items():
    those = [(rows[i], reason) for i, k, reason in notices if k == kind]
    if those:
      lines.append(f'{len(those)} {meaning}')
      lines += [
        f'  {row["image_id"]} of patient {row["patient_id"]}: {reason}'
        for row, reason in those[:10]
      ]
  counts = _counts(dataset, splits)
  published = _labels_of(dataset).PUBLISHED
  for name, count in counts.items():
    expected = published.get(name, count)
    differs = '' if count == expected else f'  (published: {expected:,})'
    lines.append(f'{name}: {count:,}{differs}')
  for camera, n in sorted(
    collections.Counter(r['camera'] for r in rows).items()
  ):
    bad = sum(
      r['camera'] == camera and r['label'] == 'inadequate' for r in rows
    )
    if camera:
      lines.append(f'inadequate of {camera}: {bad / n:.1%}')
  lines.append('photographs:')
  status = collections.Counter(r['status'] for r in rows)
  for name, n in status.most_common():
    of_it = [r['image_id'] for r in rows if r['status'] == name]
    such_as = '' if name == 'ok' else f': {", ".join(of_it[:10])}'
    lines.append(f'  {name}: {n:,}{such_as}')
  sizes = collections.Counter(
    f'{r["width"]}x{r["height"]}' for r in rows if r['status'] == 'ok'
  )
  lines.append(f'  sizes: {len(sizes)} different; most often ' + ', '.join(
    f'{size} ({n:,})' for size, n in sizes.most_common(5)
  ))  # fmt: skip
  lost = [r['image_id'] for r in rows if r['field_found'] == 0]
  lines.append(
    f'  no field of view found: {len(lost):,}'
    f'{": " if lost else ""}{", ".join(lost[:10])}; used whole'
  )
  return lines, len(rows) > status['ok']


def _counts(
  dataset: str, splits: Mapping[str, Sequence[Entry]]
) -> dict[str, int]:
  """Returns what the labels say, under the names of PUBLISHED where it is."""
  from iqa_jax import labels

  every = [e.metadata for entries in splits.values() for e in entries]
  counts = {'photographs': len(every)}
  counts['patients'] = len({m['patient_id'] for m in every})
  if dataset == 'eyeq':
    for split, entries in splits.items():
      counts[f'{split} photographs'] = len(entries)
      counts[f'{split} patients'] = len(
        {e.metadata['patient_id'] for e in entries}
      )
      for number, grade in enumerate(labels.GRADES):
        counts[f'{split} {grade}'] = sum(
          e.metadata['grade'] == number for e in entries
        )
    return counts
  for number, name in enumerate(labels.QUALITY):
    counts[name] = sum(m['quality'] == number for m in every)
  for i, criterion in enumerate(labels.CRITERIA):
    failing = [m['criteria'] for m in every if m['criteria'][i]]
    counts[f'inadequate {criterion}'] = len(failing)
    counts[f'{criterion} alone'] = sum(sum(c) == 1 for c in failing)
  for camera in sorted({m['camera'] for m in every}):
    counts[camera] = sum(m['camera'] == camera for m in every)
  return counts


def _labels_of(dataset: str) -> ModuleType:
  import importlib

  return importlib.import_module(f'iqa_jax.data.{dataset}.labels')


def validate(
  dataset: str,
  manual_dir: str,
  output: str,
  allow_missing: bool = False,
  columns: Mapping[str, str] | None = None,
) -> tuple[list[str], int]:
  """Checks a dataset; returns the summary's lines and the exit code.

  Args:
    dataset: 'brset', 'csv' or 'eyeq'.
    manual_dir: what the user downloaded.
    output: path of the CSV.
    allow_missing: absent or unreadable photographs are no error.
    columns: of 'csv', as config.data.csv.

  Raises:
    DataError: a label file cannot be read at all.
  """
  import tqdm

  from iqa_jax import machine

  problems: list[str] = []
  more = {'columns': columns} if columns else {}
  splits = _labels_of(dataset).entries(manual_dir, problems.append, **more)
  jobs = [(name, e) for name, entries in splits.items() for e in entries]
  examined = list(
    tqdm.tqdm(
      machine.in_threads(lambda job: examine(*job), jobs),
      'reading photographs',
      len(jobs),
      unit='photograph',
      disable=None,
    )
  )
  rows, codes = [row for row, _ in examined], [code for _, code in examined]
  notices = noticed(splits, rows, codes)
  _write(output, rows, notices, problems)
  lines, failed = summarise(dataset, splits, rows, problems, notices)
  breaks = bool(problems) or not rows or (failed and not allow_missing)
  lines.append(f'written: {output}')
  lines.append('A build will fail.' if breaks else 'It can be built.')
  return lines, int(breaks)


def _write(
  output: str,
  rows: Sequence[Record],
  notices: Sequence[tuple[int, str, str]],
  problems: Sequence[str],
) -> None:
  import csv

  from iqa_jax import run_directory

  with run_directory.atomic_path(output) as temporary:
    with open(temporary, 'w', encoding='utf-8', newline='') as file:
      writer = csv.DictWriter(file, COLUMNS)
      writer.writeheader()
      writer.writerows(rows)
      writer.writerows(
        rows[number] | {'status': status, 'reason': reason}
        for number, status, reason in notices
      )
      writer.writerows(
        dict.fromkeys(COLUMNS, '') | {'status': 'label', 'reason': problem}
        for problem in problems
      )


def main() -> int:
  """Validates what the flags name; returns the exit code.

  Raises:
    InvalidValue: --columns names what is none of data.csv.
  """
  from iqa_jax import config, errors

  columns = dict(part.partition('=')[::2] for part in _COLUMNS.value)
  known = ('file', *config.CSV_COLUMNS)
  for column in sorted(columns):
    errors.one_of('--columns:', column, known)
  lines, code = validate(
    _DATASET.value or '',  # a required flag
    os.path.expanduser(_MANUAL_DIR.value or ''),
    _OUTPUT.value,
    _ALLOW_MISSING.value,
    columns,
  )
  print('\n'.join(lines))
  return code


if __name__ == '__main__':
  flags.mark_flags_as_required(['dataset', 'manual_dir'])
  command.run(main)
