"""An export as pages to browse: index.html, index-2.html, ...

Each page stands alone: thumbnails, style and script are inside. The links to
the full pictures are relative, so the output directory can be moved as a whole.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Mapping, Sequence
import os
import pathlib
from typing import Any
from urllib import parse

from iqa_jax import run_directory

_SCALES = {
  'image': 'from none to the most in each photograph: colours of two '
  'photographs do not compare',
  'logit': 'on one scale of logits for all photographs',
  'dataset': 'on one scale for all photographs',
}
_REASONS = {
  'missing': 'file missing',
  'permission': 'no permission',
  'not_an_image': 'not an image',
  'truncated': 'truncated',
  'unreadable': 'unreadable',
  'too_large': 'too large',
  'too_small': 'too small',
  'crashed': 'decoder crashed',
  'timeout': 'took too long',
  'not_finite': 'network overflow',
}


def write(
  output: str | os.PathLike,
  records: Callable[[], Iterable[Mapping[str, Any]]],
  *,
  outputs: Sequence[str],
  target: str,
  scaling: str,
  colors: str,
  page: int,
) -> int:
  """Writes the contact sheet of an export; returns the number of pages.

  Args:
    output: the output directory, with the thumbnails that records name.
    records: gives the export's records.
    outputs: names of the logits.
    target: what was explained.
    scaling: what the colours mean, see export.SCALINGS.
    colors: the colour map's name.
    page: photographs a page.

  Photographs come by falling probability of inadequate, then those that could
  not be used.
  """
  import jinja2

  output = pathlib.Path(output)
  cards: list[dict[str, Any]] = []
  counts = {
    'total': 0, 'ok': 0, 'adequate': 0, 'inadequate': 0, 'uncertain': 0,
    'empty': 0,
  }  # fmt: skip
  for record in records():
    counts['total'] += 1
    if record['status'] == 'ok':
      counts['ok'] += 1
      counts[record['verdict']] += 1
      counts['uncertain'] += bool(record['uncertain'])
      counts['empty'] += record['empty_map']
    if record['status'] != 'ok' or 'thumbnail' in record['files']:
      cards.append(_card(record))
  cards.sort(key=lambda c: (c['status'] != 'ok', -c['p'], c['name']))
  pages = [cards[i : i + page] for i in range(0, len(cards), page)] or [[]]
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  template = environment.get_template('contact_sheet.html')
  entries = [_entry(number, cards) for number, cards in enumerate(pages)]
  shown = sum(c['status'] == 'ok' for c in cards)
  for number, these in enumerate(pages):
    for card in these:
      card['picture'] = _inlined(output, card['thumbnail'])
    text = template.render(
      cards=these,
      counts=counts,
      shown=shown,
      failed=counts['total'] - counts['ok'],
      entries=entries,
      number=number,
      target=target,
      scale=_SCALES[scaling],
      colors=colors,
      targets=sorted({c['target'] for c in these if c['target']}),
      statuses=sorted({(c['status'], c['reason_short']) for c in these}),
      names=', '.join(outputs),
    )
    run_directory.write_text(output / entries[number]['file'], text)
    for card in these:
      del card['picture']
  kept = {entry['file'] for entry in entries}
  for old in output.glob('index-*.html'):
    if old.name not in kept:
      old.unlink()
  return len(pages)


def _card(record: Mapping[str, Any]) -> dict[str, Any]:
  """Returns what a page shows of a record."""
  ok = record['status'] == 'ok'
  files = record.get('files', {})
  opened = next((files[k][0] for k in ('panel', 'overlay') if k in files), '')
  return {
    'name': _printable(record['path']),
    'status': record['status'],
    'reason': _printable(record.get('reason') or ''),
    'reason_short': 'usable' if ok else _REASONS.get(
      record['status'], record['status'].replace('_', ' ')
    ),
    'verdict': record.get('verdict', ''),
    'p': _p(record) if ok else -1.0,
    'calibrated': record.get('p_calibrated') is not None,
    'threshold': record.get('operating_point'),
    'uncertain': bool(record.get('uncertain')),
    'target': record.get('target', ''),
    'source': f'{record.get("method")}, {record.get("layer")}',
    'empty': bool(record.get('empty_map')),
    'in_field': record.get('evidence_in_field'),
    'field_share': record.get('field_share'),
    'field_found': bool(record.get('field_found')),
    'size': f'{record["width"]} × {record["height"]}' if ok else '',
    'thumbnail': files['thumbnail'][0] if ok else '',
    'link': parse.quote(opened),
  }  # fmt: skip


def _p(record: Mapping[str, Any]) -> float:
  calibrated = record.get('p_calibrated')
  return float(record['p_inadequate'] if calibrated is None else calibrated)


def _entry(number: int, cards: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """Returns a page's file name, and what of it the other pages say."""
  p = [card['p'] for card in cards if card['status'] == 'ok']
  failed = sum(card['status'] != 'ok' for card in cards)
  about = f'{p[0]:.2f} to {p[-1]:.2f}' if p else ''
  if failed:
    about += f'{", " if p else ""}{failed} not usable'
  return {
    'file': 'index.html' if number == 0 else f'index-{number + 1}.html',
    'number': number + 1,
    'about': about,
    'failed': failed,
  }


def _inlined(output: pathlib.Path, name: str) -> str:
  """Returns a thumbnail as a data URI; '' when it is gone."""
  if not name:
    return ''
  try:
    data = (output / name).read_bytes()
  except FileNotFoundError:
    return ''
  return 'data:image/jpeg;base64,' + base64.b64encode(data).decode('ascii')


def _printable(text: str) -> str:
  """Returns text that can be encoded; file names may hold any bytes."""
  return text.encode('utf-8', 'backslashreplace').decode('utf-8')
