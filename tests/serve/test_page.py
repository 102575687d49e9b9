"""The page in a real browser: drop, see, switch, save."""

import csv
import io
import os
import shutil
import threading
import time

import numpy as np
from PIL import Image
import pytest

import iqa_jax as iqa
from tests.export import export_material

uvicorn = pytest.importorskip('uvicorn', reason='needs the extra serve')
sync_api = pytest.importorskip(
  'playwright.sync_api', reason='needs playwright of the extra tests'
)
CHROMIUM = shutil.which('chromium') or shutil.which('google-chrome')
pytestmark = pytest.mark.skipif(not CHROMIUM, reason='needs chromium')

DONE = '#list li.adequate, #list li.inadequate, #list li.failed'
DROP = """([data, names]) => {
  const transfer = new DataTransfer();
  data.forEach((text, i) => {
    const bytes = Uint8Array.from(atob(text), c => c.charCodeAt(0));
    transfer.items.add(new File([bytes], names[i]));
  });
  return transfer;
}"""


@pytest.fixture(scope='module')
def address(tmp_path_factory):
  from iqa_jax.serve import app as web

  folder = tmp_path_factory.mktemp('run')
  export_material.make_run(folder, operating_point={'threshold': 0.5})
  app = web.create(
    iqa.load(folder, batch_size=2, check_fundus=False), name='tiny'
  )
  server = uvicorn.Server(
    uvicorn.Config(app, port=0, log_level='error', ws='none')
  )
  thread = threading.Thread(target=server.run)
  thread.start()
  while not server.started:
    time.sleep(0.05)
  port = server.servers[0].sockets[0].getsockname()[1]
  yield f'http://127.0.0.1:{port}/'
  server.should_exit = True
  thread.join()


@pytest.fixture(scope='module')
def page(address):
  with sync_api.sync_playwright() as playwright:
    browser = playwright.chromium.launch(
      executable_path=CHROMIUM,
      args=[
        *('--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run'),
        *('--disable-background-networking', '--disable-component-update'),
        '--disable-sync',
      ],
    )
    page = browser.new_page(locale='en-GB')
    page.faults = []
    page.on('pageerror', lambda fault: page.faults.append(fault))
    page.goto(address)
    yield page
    browser.close()


@pytest.mark.slow
def test_drop_see_switch_and_save(page):
  import base64

  rng = np.random.default_rng(4)
  data = []
  for _ in range(3):
    file = io.BytesIO()
    Image.fromarray(export_material.fundus(rng)).save(file, 'JPEG')
    data.append(base64.b64encode(file.getvalue()).decode())
  data.append(base64.b64encode(b'no photograph').decode())
  names = ['a.jpg', 'b.jpg', '=c,"d".jpg', 'text.jpg']
  transfer = page.evaluate_handle(DROP, [data, names])
  page.dispatch_event('body', 'drop', {'dataTransfer': transfer})
  page.locator(DONE).nth(3).wait_for(timeout=60_000)

  assert page.locator('#list li.failed').count() == 1
  assert page.locator('#verdict').inner_text() in ('Adequate', 'Inadequate')
  assert page.locator('#photograph').evaluate('i => i.naturalWidth') == 180
  assert page.locator('#map').is_visible()

  page.keyboard.press('o')
  assert not page.locator('#map').is_visible()
  page.keyboard.press('o')
  page.locator('#opacity').fill('30')
  opacity = page.locator('#map').evaluate('i => i.style.opacity')
  assert opacity == '0.3'

  page.locator('#list li').nth(0).click()
  page.keyboard.press('ArrowDown')
  assert page.locator('#list li').nth(1).get_attribute('aria-selected') == (
    'true'
  )
  page.locator('#list li').nth(3).click()
  assert page.locator('#verdict').inner_text() == 'Cannot be judged'
  assert 'not_an_image' in page.locator('#p').inner_text()
  page.locator('#language').click()
  assert page.locator('#verdict').inner_text() == 'Não pode ser avaliada'

  with page.expect_download() as download:
    page.locator('#save').click()
  with open(download.value.path(), encoding='utf-8-sig', newline='') as file:
    rows = list(csv.DictReader(file))
  # What a spreadsheet would take for a formula is text.
  assert [r['name'] for r in rows] == [
    'a.jpg',
    'b.jpg',
    '\'=c,"d".jpg',
    'text.jpg',
  ]
  assert [r['status'] for r in rows] == ['ok', 'ok', 'ok', 'not_an_image']
  assert all(0 <= float(r['p_inadequate']) <= 1 for r in rows[:3])
  assert not page.faults
  os.unlink(download.value.path())
