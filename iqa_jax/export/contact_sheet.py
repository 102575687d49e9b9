"""An export as pages to browse: index.html, index-2.html, ...

Each page stands alone: thumbnails, style and script are inside. The links to
the full pictures are relative, so the output directory can be moved as a whole.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Sequence
import os
import pathlib
from typing import Any
from urllib import parse

from iqa_jax import labels, run_directory
from iqa_jax.aliases import Record
from iqa_jax.export import manifest
from iqa_jax.photograph import inputs

_NEAR = (1, 2, 3, 10, 30, 100, 300, 1000, 3000, 10_000)  # pages away

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
  records: Callable[[], Iterable[Record]],
  *,
  outputs: Sequence[str],
  target: str,
  scaling: str,
  colors: str,
  page: int,
  share: float = 1.0,
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
    share: of the photographs, failed ones too, that are shown: a fixed random
      sample.

  Photographs come by falling probability of inadequate, then those that could
  not be used.
  """
  output = pathlib.Path(output)
  cards, counts = _collected(records(), share)
  pages = [cards[i : i + page] for i in range(0, len(cards), page)] or [[]]
  template = _template()
  entries = [_entry(number, cards) for number, cards in enumerate(pages)]
  for number, these in enumerate(pages):
    for card in these:
      card['picture'] = _inlined(output, card['thumbnail'])
    text = template.render(
      cards=these,
      counts=counts,
      shown=len(cards),
      failed=counts['total'] - counts['ok'],
      entries=_near(entries, number),
      number=number,
      several=len(entries) > 1,
      target=target,
      scale=_SCALES[scaling],
      colors=colors,
      targets=sorted({c['target'] for c in these if c['target']}),
      causes=sorted({c['cause'] for c in these if c['cause']}),
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


def _template() -> Any:
  import jinja2

  return jinja2.Environment(
    loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
  ).get_template('contact_sheet.html')


def _collected(
  records: Iterable[Record], share: float
) -> tuple[list[Record], dict[str, int]]:
  """Returns the cards of the sample, in order, and counts over all records."""
  cards: list[Record] = []
  counts = {
    'total': 0, 'ok': 0, 'adequate': 0, 'inadequate': 0, 'uncertain': 0,
    'empty': 0,
  }  # fmt: skip
  for record in records:
    ok = record['status'] == 'ok'
    counts['total'] += 1
    if ok:
      counts['ok'] += 1
      counts[record['verdict']] += 1
      counts['uncertain'] += bool(record['uncertain'])
      counts['empty'] += record['empty_map']
    has_picture = not ok or manifest.THUMBNAIL in record['files']
    if has_picture and inputs.sampled(record['path'], share):
      cards.append(_card(record))
  cards.sort(key=lambda c: (c['status'] != 'ok', -c['p'], c['name']))
  return cards, counts


def _card(record: Record) -> Record:
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
    'cause': record.get('cause', ''),
    'advice': record.get('advice', ''),
    'criteria': _criteria(record),
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


def _criteria(record: Record) -> list[Record]:
  """Returns name, probability and share of the criteria that are known."""
  return [
    {
      'name': name.replace('_', ' '),
      'p': record[f'p_{name}'],
      'share': record.get(f'share_{name}'),
    }
    for name in labels.CRITERIA
    if record.get(f'p_{name}') is not None
  ]


def _p(record: Record) -> float:
  calibrated = record.get('p_calibrated')
  return float(record['p_inadequate'] if calibrated is None else calibrated)


def _entry(number: int, cards: Sequence[Record]) -> Record:
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


def _near(entries: list[Record], number: int) -> list[Record]:
  """Returns the pages that page `number` links: ends, neighbours, further.

  All would be a million links for a thousand pages.
  """
  far = {number, 0, len(entries) - 1}
  far |= {number + sign * step for step in _NEAR for sign in (-1, 1)}
  return [entries[i] for i in sorted(far) if 0 <= i < len(entries)]


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
