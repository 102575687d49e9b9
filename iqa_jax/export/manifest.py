"""What people open of an export: the manifest, a row a photograph.

Made of the journal (journal.py), atomically.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
import csv
import os

from iqa_jax import run_directory
from iqa_jax.aliases import Record
from iqa_jax.explain import ruler

KINDS = ('overlay', 'contour', 'panel', 'npz')
THUMBNAIL = 'thumbnail'  # the contact sheet's

# The manifests, whole or of a shard, and the contact sheet.
PAGES = (
  'manifest.csv',
  'manifest-[0-9]*-of-[0-9]*.csv',
  'index.html',
  'index-[0-9]*.html',
)

# A spreadsheet takes text that begins like this for a formula.
_FORMULA = ('=', '+', '-', '@', '\t', '\r')


def columns(logits: Sequence[str], criteria: Sequence[str] = ()) -> list[str]:
  """Returns the manifest's columns.

  Args:
    logits: the model's outputs.
    criteria: those that it knows something of.
  """
  names = [
    'path',
    'status',
    'reason',
    'width',
    'height',
    'field_found',
    'not_fundus',
    'unlike_training',
    *(f'logit_{name}' for name in logits),
    *(f'p_{name}' for name in logits),
    'p_inadequate',
    'p_calibrated',
    'operating_point',
    'verdict',
    'uncertain',
    *(('cause', 'advice') if criteria else ()),
    *(f'p_{name}' for name in criteria),
    *(f'share_{name}' for name in criteria),
    'target',
    'method',
    'layer',
    'raw_min',
    'raw_max',
    'raw_sum',
    'evidence_in_field',
    'field_share',
    'empty_map',
    *ruler.COLUMNS,
    *KINDS,
    'checkpoint',
    'runtime',
  ]
  # Of two classes p_inadequate is both an output's and the verdict's.
  return list(dict.fromkeys(names))


def write(
  path: str | os.PathLike,
  records: Iterable[Record],
  logits: Sequence[str],
  criteria: Sequence[str] = (),
) -> int:
  """Writes the manifest atomically and returns its number of rows."""
  names = columns(logits, criteria)
  count = 0
  with (
    run_directory.atomic_path(path) as temporary,
    open(
      temporary, 'w', encoding='utf-8', errors='backslashreplace', newline=''
    ) as file,
  ):
    writer = csv.writer(file)
    writer.writerow(names)
    for record in records:
      writer.writerow([_cell(record.get(name)) for name in names])
      count += 1
  return count


def _cell(value: object) -> str:
  if value is None:
    return ''
  if isinstance(value, bool):
    return str(int(value))
  if isinstance(value, float):
    return f'{value:.7g}'
  text = str(value)
  if isinstance(value, str) and text.startswith(_FORMULA):
    # The same file to every program that opens it, no formula to any sheet.
    return f'./{text}'
  return text
