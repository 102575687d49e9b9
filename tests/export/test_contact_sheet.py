"""The contact sheet, as a browser sees it."""

from __future__ import annotations

import html.parser
import json
import pathlib
import shutil
import subprocess

import numpy as np
from PIL import Image
import pytest

from iqa_jax.export import contact_sheet

EVIL = '<script>alert("1")</script>"\'><img src=x onerror=alert(2)>.jpg'


def record(name: str, p: float, **more):
  return {
    'path': name,
    'status': 'ok',
    'reason': '',
    'width': 300,
    'height': 200,
    'field_found': True,
    'field_share': 0.7,
    'evidence_in_field': 0.8,
    'p_inadequate': p,
    'p_calibrated': p,
    'operating_point': 0.5,
    'verdict': 'inadequate' if p >= 0.5 else 'adequate',
    'uncertain': 0.4 <= p <= 0.6,
    'target': 'focus' if p >= 0.5 else 'margin',
    'method': 'gradcam',
    'layer': 'stage4',
    'empty_map': False,
    'files': {
      'panel': [f'panel/{round(1000 * p)} %.jpg', 1],
      'thumbnail': ['thumbnail/x.jpg', 1],
    },
    **more,
  }


def failure(name: str, status: str, reason: str):
  return {'path': name, 'status': status, 'reason': reason}


RECORDS = [
  record('b.jpg', 0.9),
  record('a.jpg', 0.1),
  record(EVIL, 0.55),
  record('眼底\udcff.jpg', 0.3, empty_map=True, evidence_in_field=None),
  failure('cut.jpg', 'truncated', 'image file is truncated <b>'),
  record('c.jpg', 0.7, target='artifacts'),
]


@pytest.fixture
def sheet(tmp_path):
  pixels = np.full((32, 64, 3), 90, np.uint8)
  (tmp_path / 'thumbnail').mkdir()
  Image.fromarray(pixels).save(tmp_path / 'thumbnail/x.jpg')
  return tmp_path


def write(
  folder: pathlib.Path, records=RECORDS, page: int = 100, share: float = 1.0
) -> int:
  return contact_sheet.write(
    folder,
    lambda: iter(records),
    outputs=['focus', 'illumination'],
    target='predicted',
    scaling='image',
    colors='viridis',
    page=page,
    share=share,
  )


class _Reader(html.parser.HTMLParser):
  """Collects tags, attributes and text, as a browser would parse them."""

  def __init__(self, text: str):
    super().__init__()
    self.tags: list[tuple[str, dict[str, str | None]]] = []
    self.text = ''
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))

  def handle_data(self, data):
    self.text += data


def test_page_stands_alone_and_names_are_only_text(sheet):
  assert write(sheet) == 1
  source = (sheet / 'index.html').read_text('utf-8')
  page = _Reader(source)
  cards = [a for _, a in page.tags if 'card' in (a.get('class') or '').split()]
  assert [c['data-name'] for c in cards] == [
    'b.jpg', 'c.jpg', EVIL, '眼底\\udcff.jpg', 'a.jpg', 'cut.jpg',
  ]  # fmt: skip
  assert sum(tag == 'script' for tag, _ in page.tags) == 1
  assert not any('onerror' in attrs for _, attrs in page.tags)
  for tag, attrs in page.tags:
    assert not (attrs.get('src') or '').startswith('http')
    if tag == 'img':
      assert attrs['src'].startswith('data:image/jpeg;base64,')
      assert attrs['alt']
    assert tag not in ('link', 'iframe')
  assert 'panel/900%20%25.jpg' in source
  assert 'Research use only, not a medical device' in page.text
  assert 'image file is truncated <b>' in page.text


def test_card_says_the_cause_and_what_to_do(sheet):
  told = {'cause': 'image_field', 'advice': 'Centre <b> it.',
          'p_focus': 0.25, 'share_focus': 0.1,
          'p_image_field': 0.75}  # fmt: skip
  write(sheet, [record('a.jpg', 0.9, **told), record('b.jpg', 0.1)])
  page = _Reader((sheet / 'index.html').read_text())
  text = ' '.join(page.text.split())
  assert 'image field Centre <b> it.' in text
  assert '0.25 · 10 %' in text and '0.75' in text
  assert text.count('Centre') == 1
  options = [a.get('value') for tag, a in page.tags if tag == 'option']
  assert 'image_field' in options


def test_empty_map_is_commented(sheet):
  write(sheet)
  text = ' '.join(_Reader((sheet / 'index.html').read_text()).text.split())
  assert (
    text.count('Empty map: nothing in gradcam, stage4 speaks for this') == 1
  )


def test_pages_and_what_was_there_before(sheet):
  assert write(sheet, page=2) == 3
  assert (sheet / 'index-3.html').exists()
  first = (sheet / 'index.html').read_text()
  assert 'href="index-3.html"' in first and 'aria-current' in first
  assert write(sheet, page=4) == 2
  assert not (sheet / 'index-3.html').exists()
  assert write(sheet, records=[]) == 1


def test_sample_is_said_to_be_one(sheet):
  without = {**record('z.jpg', 0.2), 'files': {}}
  write(sheet, [*RECORDS, *[without] * 20])
  text = ' '.join(_Reader((sheet / 'index.html').read_text()).text.split())
  assert 'a random sample of 6 photographs' in text


def test_sample_is_one_of_failed_photographs_too(sheet):
  records = [failure(f'{i}.jpg', 'missing', '') for i in range(2000)]
  records += [record(f'{i}.png', i / 2000) for i in range(2000)]
  assert write(sheet, records, page=10_000, share=0.05) == 1
  page = _Reader((sheet / 'index.html').read_text())
  cards = [a for _, a in page.tags if 'card' in (a.get('class') or '').split()]
  failed = sum(c['data-status'] == 'missing' for c in cards)
  assert 60 < failed < 140 and 60 < len(cards) - failed < 140
  text = ' '.join(page.text.split())
  assert f'a random sample of {len(cards)} photographs' in text
  assert '2,000 not usable' in text


def test_many_pages_name_few_others_and_all_are_within_reach(sheet):
  records = [failure(f'{i:04}.jpg', 'missing', '') for i in range(700)]
  assert write(sheet, records, page=1) == 700
  links = {}
  for path in sheet.glob('index*.html'):
    tags = _Reader(path.read_text()).tags
    links[path.name] = {
      a['href'] for tag, a in tags if tag == 'a' and 'index' in a['href']
    }
  assert max(map(len, links.values())) < 30
  reached, edge = {'index.html'}, {'index.html'}
  for _ in range(8):
    edge = set().union(*(links[name] for name in edge)) - reached
    reached |= edge
  assert len(reached) == 700


@pytest.fixture(scope='session')
def chromium():
  found = shutil.which('chromium') or shutil.which('google-chrome')
  if not found:
    pytest.skip('no chromium here')
  return found


def browse(chromium, sheet, tmp_path, steps: str, fragment: str = ''):
  """Returns what the last expression of `steps` is in a real browser."""
  source = (sheet / 'index.html').read_text('utf-8')
  probe = (
    "<script>const seen = () => [...document.querySelectorAll('.card')]"
    '.filter(c => getComputedStyle(c).display !== "none")'
    '.map(c => c.dataset.name);'
    'const set = (n, v) => { const e = form.elements.namedItem(n);'
    'e.value = v; e.dispatchEvent(new Event("input", {bubbles: true})); };'
    'window.onload = () => { document.title = JSON.stringify((() => {'
    f'{steps} }})()); }};</script>'
  )
  copy = sheet / 'probe.html'
  copy.write_text(source.replace('</body>', probe + '</body>'), 'utf-8')
  done = subprocess.run(
    [
      chromium,
      '--headless',
      '--no-sandbox',
      '--disable-gpu',
      '--no-first-run',
      '--disable-background-networking',
      '--disable-component-update',
      '--disable-sync',
      f'--user-data-dir={tmp_path / "profile"}',
      '--dump-dom',
      f'file://{copy}{fragment}',
    ],
    capture_output=True,
    text=True,
    timeout=90,
    check=True,
  )
  title = done.stdout.split('<title>')[1].split('</title>')[0]
  return json.loads(html.unescape(title))


def test_filters_and_sorts_in_a_browser(chromium, sheet, tmp_path):
  write(sheet)
  steps = """
    const out = {all: seen()};
    out.alerts = document.querySelectorAll('[onerror]').length;
    set('verdict', 'inadequate'); out.inadequate = seen();
    set('verdict', 'uncertain'); out.uncertain = seen();
    set('verdict', ''); set('low', '0.2'); set('high', '0.6');
    out.range = seen();
    set('low', ''); set('high', '');
    set('target', 'artifacts'); out.target = seen(); set('target', '');
    set('status', 'failed'); out.failed = seen();
    set('status', 'truncated'); out.truncated = seen();
    set('status', 'empty'); out.empty = seen(); set('status', '');
    set('name', 'A.J'); out.named = seen(); set('name', '');
    set('sort', 'p'); out.rising = seen();
    set('sort', 'name'); out.names = seen();
    set('sort', 'edge'); out.edge = seen()[0];
    out.count = document.getElementById('count').value;
    set('name', 'nothing'); out.none = !document.getElementById('none').hidden;
    return out;
  """
  found = browse(chromium, sheet, tmp_path, steps)
  other = '眼底\\udcff.jpg'
  assert found == {
    'all': ['b.jpg', 'c.jpg', EVIL, other, 'a.jpg', 'cut.jpg'],
    'alerts': 0,
    'inadequate': ['b.jpg', 'c.jpg', EVIL],
    'uncertain': [EVIL],
    'range': [EVIL, other],
    'target': ['c.jpg'],
    'failed': ['cut.jpg'],
    'truncated': ['cut.jpg'],
    'empty': [other],
    'named': ['a.jpg'],
    'rising': ['a.jpg', other, EVIL, 'c.jpg', 'b.jpg', 'cut.jpg'],
    'names': found['names'],
    'edge': EVIL,
    'count': '6 of 6',
    'none': True,
  }
  assert sorted(found['names']) == sorted(found['all'])
  assert found['names'].index('a.jpg') < found['names'].index('b.jpg')


def test_filter_comes_with_the_address(chromium, sheet, tmp_path):
  """So that it is kept from page to page."""
  write(sheet, page=5)
  steps = """
    return [seen(), document.querySelector('nav a').getAttribute('href')];
  """
  found = browse(chromium, sheet, tmp_path, steps, '#verdict=adequate&sort=p')
  assert found == [
    ['a.jpg', '眼底\\udcff.jpg'],
    'index.html#verdict=adequate&sort=p',
  ]
