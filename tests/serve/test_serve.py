"""The local page's server: the grader's answers, and nothing but answers."""

import base64
import concurrent.futures
import io
import json
import threading
import time

import numpy as np
from PIL import Image
import pytest

import iqa_jax as iqa
from tests.export import export_material

fastapi = pytest.importorskip('fastapi', reason='needs the extra serve')

from starlette.testclient import TestClient  # noqa: E402

from iqa_jax.serve import app as web  # noqa: E402


@pytest.fixture(scope='module')
def grader(tmp_path_factory):
  folder = tmp_path_factory.mktemp('run')
  export_material.make_run(folder, operating_point={'threshold': 0.5})
  return iqa.load(folder, batch_size=4, check_fundus=False)


@pytest.fixture(scope='module')
def photographs():
  rng = np.random.default_rng(2)
  files = []
  for _ in range(6):
    data = io.BytesIO()
    Image.fromarray(export_material.fundus(rng)).save(data, 'PNG')
    files.append(data.getvalue())
  return files


@pytest.fixture(scope='module')
def client(grader):
  with TestClient(
    web.create(grader, name='tiny'), base_url='http://127.0.0.1'
  ) as client:
    yield client


def test_a_verdict_is_the_graders(client, grader, photographs):
  data = photographs[0]
  expected = grader.judge(data)
  by_body = client.post('/v1/judge?name=eye.png', content=data).json()
  by_form = client.post(
    '/v1/judge', files={'file': ('eye.png', data, 'image/png')}
  ).json()
  assert by_body == by_form
  row = by_body['verdict']
  assert row['name'] == 'eye.png' and row['verdict'] == expected.verdict
  assert row['p_inadequate'] == pytest.approx(expected.p_inadequate, abs=1e-6)


def test_pictures_lie_where_the_map_does(client, grader, photographs):
  answer = client.post('/v1/explain', content=photographs[1]).json()
  found = grader.explain(photographs[1])
  [shown] = answer['maps']
  assert shown['target'] == found.target

  def picture(url):
    return Image.open(io.BytesIO(base64.b64decode(url.split(',')[1])))

  below = picture(answer['photograph'])
  layer = np.asarray(picture(shown['picture']))
  assert layer.shape == (below.height, below.width, 4)
  evidence = np.maximum(found.on_photograph(), 0)
  strong = evidence > 0.8 * evidence.max()
  assert layer[..., 3][strong].min() > 200
  assert layer[..., 3][evidence == 0].max(initial=0) < 40


@pytest.mark.parametrize(
  'data, status',
  [
    (b'', 'not_an_image'),
    (b'no picture at all', 'not_an_image'),
    (b'\x89PNG\r\n\x1a\n' + bytes(30), None),
  ],
)
def test_what_is_no_photograph_gets_a_reason(client, data, status):
  answer = client.post('/v1/explain?name=x', content=data)
  assert answer.status_code == 200
  row = answer.json()['verdict']
  assert row['status'] != 'ok' and row['reason'] and row['name'] == 'x'
  assert status in (None, row['status'])


def test_uploads_are_bounded(grader, photographs):
  limits = web.Limits(upload=1000)
  app = web.create(grader, name='t', limits=limits)
  with TestClient(app) as client:
    assert client.post('/v1/judge', content=bytes(20_000)).status_code == 413

    def chunks():  # without a length that could be believed
      for _ in range(40):
        yield bytes(1000)

    assert client.post('/v1/judge', content=chunks()).status_code == 413
    form = {'file': ('x.png', bytes(20_000))}
    assert client.post('/v1/judge', files=form).status_code == 413


def test_a_token_is_asked_for_and_other_names_are_refused(grader, photographs):
  app = web.create(grader, name='t', token='secret', hosts=('127.0.0.1',))
  with TestClient(app, base_url='http://127.0.0.1') as client:
    for headers in ({}, {'Authorization': 'Bearer guess'}):
      answer = client.post('/v1/judge', content=photographs[0], headers=headers)
      assert answer.status_code == 401
    headers = {'Authorization': 'Bearer secret'}
    assert client.get('/v1/model', headers=headers).json()['name'] == 't'
    # A page elsewhere whose name was pointed here (DNS rebinding).
    headers['Host'] = 'evil.example'
    assert client.get('/v1/model', headers=headers).status_code == 400


def test_many_at_once_with_faulty_files_among_them(client, grader, photographs):
  expected = [grader.judge(p).p_inadequate for p in photographs]
  files = [*photographs, b'torn', photographs[0][:200]]

  def ask(i):
    answer = client.post(f'/v1/judge?name={i}', content=files[i % 8])
    while answer.status_code == 503:
      time.sleep(0.05)
      answer = client.post(f'/v1/judge?name={i}', content=files[i % 8])
    return answer.json()['verdict']

  with concurrent.futures.ThreadPoolExecutor(16) as pool:
    rows = list(pool.map(ask, range(80)))
  for i, row in enumerate(rows):
    assert row['name'] == str(i)
    if i % 8 < 6:
      assert row['p_inadequate'] == pytest.approx(expected[i % 8], abs=1e-5)
    else:
      assert row['status'] != 'ok' and row['p_inadequate'] is None


def test_too_many_are_told_to_come_back(photographs):
  begun, go_on = threading.Event(), threading.Event()

  class Slow:
    members, outputs, threshold, image_size = (), ('a', 'b'), 0.5, 48
    batch_size = 1

    def prepare(self, photo):
      pass

    def judge(self, photos):
      begun.set()
      go_on.wait(20)
      return (iqa.Verdict(p.name) for p in photos)

    def explain(self, photos):
      raise NotImplementedError

  app = web.create(Slow(), name='slow', limits=web.Limits(waiting=1))
  with (
    TestClient(app) as client,
    concurrent.futures.ThreadPoolExecutor(1) as pool,
  ):
    first = pool.submit(client.post, '/v1/judge', content=photographs[0])
    assert begun.wait(20)
    refused = client.post('/v1/judge', content=photographs[0])
    go_on.set()
    assert refused.status_code == 503 and refused.headers['Retry-After']
    assert first.result().json()['verdict']['status'] == 'ok'
    again = client.post('/v1/judge', content=photographs[0])
    assert again.status_code == 200


def test_the_page_asks_nobody_else_and_speaks_two_languages(client):
  page = client.get('/')
  assert "default-src 'none'" in page.headers['Content-Security-Policy']
  assert 'http://' not in page.text and 'https://' not in page.text
  texts = json.loads(
    page.text.split('const TEXTS = ', 1)[1].split(';\nconst $', 1)[0]
  )
  assert set(texts['en']) == set(texts['pt'])
  schema = client.get('/openapi.json').json()
  body = schema['paths']['/v1/judge']['post']['requestBody']['content']
  assert {'image/*', 'multipart/form-data'} <= set(body)
