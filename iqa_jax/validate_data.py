"""Check a downloaded dataset before hours are spent on it.

  python -m iqa_jax.validate_data --dataset=brset --manual_dir=~/brset

Reads the labels and decodes every photograph, in parallel: columns and values
of the labels, duplicates, missing, truncated and unreadable files, sizes,
fields of view that cannot be found, patients, balance of classes and cameras.
Prints a summary and writes a CSV with a row for every labelled photograph and
one for everything wrong with the labels.

Exit codes: 0 it can be built, 1 it cannot; with --allow_missing, what is absent
or unreadable is only counted, as in a build with data.allow_missing.
"""

import os

from absl import flags

from iqa_jax import command

_DATASET = flags.DEFINE_enum('dataset', None, ['brset', 'eyeq'], 'which')
_MANUAL_DIR = flags.DEFINE_string(
  'manual_dir', None, 'the folder with the label files'
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


def examine(split, entry):
  """Returns a row (COLUMNS) on a photograph: can it be read, is there a field.

  Args:
    split: the builder's split.
    entry: a records.Entry.
  """
  from iqa_jax import labels
  from iqa_jax.data import records
  from iqa_jax.photograph import geometry, images, prepare

  about = {**records.METADATA, **entry.metadata}
  quality, grade = about['quality'], about['grade']
  row = dict.fromkeys(COLUMNS, '') | {
    'image_id': entry.image_id,
    'split': split,
    'patient_id': about['patient_id'],
    'camera': about['camera'],
    'label': (labels.GRADES[grade] if quality < 0 else labels.QUALITY[quality]),
    'status': 'missing',
    'reason': 'no such file',
  }
  if entry.path is None:
    return row
  row['path'] = os.fspath(entry.path)
  try:
    photograph = images.read(entry.path, prepare.SIZE)
  except images.ImageError as error:
    return row | {'status': error.status, 'reason': error.reason}
  found = geometry.find_field(photograph.pixels).found
  return row | {
    'status': 'ok',
    'reason': '',
    'width': photograph.width,
    'height': photograph.height,
    'field_found': int(found),
  }


def summarise(dataset, splits, rows, problems):
  """Returns the lines of the summary, and whether photographs fail.

  Args:
    dataset: 'brset' or 'eyeq'.
    splits: what the reader of the labels returned, entries by split.
    rows: what `examine` returned.
    problems: what is wrong with the labels.
  """
  import collections

  lines = [f'{len(problems)} problems with the labels']
  lines += [f'  {problem}' for problem in problems[:10]]
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


def _counts(dataset, splits):
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


def _labels_of(dataset):
  import importlib

  return importlib.import_module(f'iqa_jax.data.{dataset}.labels')


def validate(dataset, manual_dir, output, allow_missing=False):
  """Checks a dataset; returns the summary's lines and the exit code.

  Args:
    dataset: 'brset' or 'eyeq'.
    manual_dir: what the user downloaded.
    output: path of the CSV.
    allow_missing: absent or unreadable photographs are no error.

  Raises:
    DataError: a label file cannot be read at all.
  """
  import csv

  import tqdm

  from iqa_jax import run_directory
  from iqa_jax.data import records

  problems: list[str] = []
  splits = _labels_of(dataset).entries(manual_dir, problems.append)
  jobs = [(name, e) for name, entries in splits.items() for e in entries]
  rows = list(
    tqdm.tqdm(
      records.in_parallel(lambda job: examine(*job), jobs),
      'reading photographs',
      len(jobs),
      unit='photograph',
      disable=None,
    )
  )
  with run_directory.atomic_path(output) as temporary:
    with open(temporary, 'w', encoding='utf-8', newline='') as file:
      writer = csv.DictWriter(file, COLUMNS)
      writer.writeheader()
      writer.writerows(rows)
      writer.writerows(
        dict.fromkeys(COLUMNS, '') | {'status': 'label', 'reason': problem}
        for problem in problems
      )
  lines, failed = summarise(dataset, splits, rows, problems)
  breaks = bool(problems) or not rows or (failed and not allow_missing)
  lines.append(f'written: {output}')
  lines.append('A build will fail.' if breaks else 'It can be built.')
  return lines, int(breaks)


def main() -> int:
  """Validates what the flags name; returns the exit code."""
  lines, code = validate(
    _DATASET.value,
    os.path.expanduser(_MANUAL_DIR.value or ''),
    _OUTPUT.value,
    _ALLOW_MISSING.value,
  )
  print('\n'.join(lines))
  return code


if __name__ == '__main__':
  flags.mark_flags_as_required(['dataset', 'manual_dir'])
  command.run(main)
