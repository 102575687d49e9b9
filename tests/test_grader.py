"""The API: one grader, the same numbers however a photograph is handed over."""

import itertools
import subprocess
import sys

import numpy as np
from PIL import Image
import pytest

import iqa_jax as iqa
from iqa_jax import errors, models, trained
from iqa_jax.judging import calibration
from iqa_jax.photograph import images, prepare
from tests.export import export_material
from tests.photograph import dicom

CALIBRATION = {'method': 'platt', 'scale': 40.0, 'offset': 0.3}
POINT = {'threshold': 0.55, 'rule': 'fixed'}


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  folder = tmp_path_factory.mktemp('run')
  export_material.make_run(
    folder,
    calibration=CALIBRATION,
    operating_point=POINT,
    uncertain_band=[0.5, 0.6],
  )
  return folder


@pytest.fixture(scope='module')
def grader(run):
  return iqa.load(run, batch_size=4, check_fundus=False)


@pytest.fixture(scope='module')
def pixels():
  rng = np.random.default_rng(5)
  return [export_material.fundus(rng) for _ in range(7)]


def expected(run, pixels):
  """Returns logits and calibrated probability, by the network alone."""
  member = trained.load(run)
  image = prepare.photograph(pixels, member.image_size).image[None]
  logits = np.asarray(
    member.model.apply(member.variables, models.normalize(image))
  )[0].astype(np.float64)
  odds = logits[1] - logits[0]
  p = calibration.sigmoid(CALIBRATION['scale'] * odds + CALIBRATION['offset'])
  return odds, float(p)


def test_a_verdict_is_the_networks(run, grader, pixels):
  for one in pixels[:3]:
    verdict = grader.judge(one)
    odds, p = expected(run, one)
    assert verdict.ok
    assert verdict.log_odds == pytest.approx(odds, abs=1e-5)
    assert verdict.p_inadequate == pytest.approx(p, abs=1e-4)
    assert verdict.verdict == ('inadequate' if p >= 0.55 else 'adequate')
    assert verdict.uncertain == (0.5 <= p <= 0.6)
    assert verdict.threshold == 0.55
    assert sum(verdict.probabilities.values()) == pytest.approx(1)


def test_every_way_of_handing_it_over_is_the_same(grader, pixels, tmp_path):
  one = pixels[0]
  picture = Image.fromarray(one)
  picture.save(tmp_path / 'a.png')
  picture.save(tmp_path / 'a.tif')
  dicom.save(tmp_path / 'a.dcm', one)
  ways = [
    one,
    picture,
    tmp_path / 'a.png',
    str(tmp_path / 'a.tif'),
    (tmp_path / 'a.png').read_bytes(),
    tmp_path / 'a.dcm',
    iqa.read(one, name='a'),
  ]
  found = [grader.judge(way).log_odds for way in ways]
  assert len(set(found)) == 1
  listed = [verdict.log_odds for verdict in grader.judge(ways)]
  np.testing.assert_allclose(listed, found[0], atol=1e-5)


def test_many_in_order_with_what_cannot_be_read(grader, pixels, tmp_path):
  paths = []
  for i, one in enumerate(pixels):
    paths.append(tmp_path / f'{i}.png')
    Image.fromarray(one).save(paths[-1])
  (tmp_path / 'torn.jpg').write_bytes(b'\xff\xd8\xff\xe0 torn')
  paths.insert(2, tmp_path / 'torn.jpg')
  paths.insert(5, tmp_path / 'absent.jpg')
  verdicts = list(grader.judge(iter(paths)))
  assert [v.name for v in verdicts] == [str(p) for p in paths]
  assert [i for i, v in enumerate(verdicts) if not v.ok] == [2, 5]
  assert verdicts[5].status == 'missing' and verdicts[5].verdict == ''
  assert verdicts[2].status in images.STATUSES and verdicts[2].reason
  whole = [v for v in verdicts if v.ok]
  for verdict, one in zip(whole, pixels, strict=True):
    alone = grader.judge(one)
    assert verdict.log_odds == pytest.approx(alone.log_odds, abs=1e-5)
    assert (verdict.width, verdict.height) == (180, 130)


def test_judging_is_lazy(grader, pixels):
  taken = []

  def endless():
    for i in itertools.count():
      taken.append(i)
      yield pixels[i % len(pixels)]

  first = list(itertools.islice(grader.judge(endless()), 6))
  assert all(v.ok for v in first) and len(taken) < 40


def test_the_export_says_the_same(run, grader, pixels, tmp_path):
  import csv

  paths = []
  for i, one in enumerate(pixels):
    paths.append(tmp_path / 'photos' / f'{i}.jpg')
    paths[-1].parent.mkdir(exist_ok=True)
    Image.fromarray(one).save(paths[-1], quality=90)
  output = tmp_path / 'out'
  subprocess.run(
    export_material.command(
      run, paths[0].parent, output, '--nocontact_sheet', '--batch_size=4'
    ),
    env=export_material.environment(),
    check=True,
    capture_output=True,
  )
  with open(output / 'manifest.csv', encoding='utf-8') as file:
    rows = list(csv.DictReader(file))
  assert len(rows) == len(paths)
  for row, verdict in zip(rows, grader.judge(paths), strict=True):
    assert row['verdict'] == verdict.verdict
    assert float(row['p_calibrated']) == pytest.approx(
      verdict.p_inadequate, abs=1e-5
    )
    assert bool(int(row['uncertain'])) == verdict.uncertain


def test_an_ensemble_averages(tmp_path, run, grader, pixels):
  export_material.make_run(
    tmp_path, size=40, head_scale=5.0, operating_point={'threshold': 0.45}
  )
  other = iqa.load(tmp_path, check_fundus=False)
  both = iqa.load([run, tmp_path], check_fundus=False)
  for one in pixels[:2]:
    parts = [g.judge(one).p_inadequate for g in (grader, other)]
    verdict = both.judge(one)
    assert verdict.p_inadequate == pytest.approx(np.mean(parts), abs=1e-6)
    assert verdict.spread == pytest.approx(np.std(parts), abs=1e-6)
    assert verdict.threshold == pytest.approx(0.5)


def test_models_of_different_tasks_are_no_ensemble(tmp_path, run):
  export_material.make_run(tmp_path, task='grade')
  with pytest.raises(errors.InvalidValue, match='one task'):
    iqa.load([run, tmp_path])


def test_an_explanation_is_of_the_verdict_and_lies_on_its_photograph(
  grader, pixels
):
  photo = iqa.read(pixels[1], name='eye')
  found = grader.explain(photo, method='hirescam', target='margin')
  other = grader.explain(photo, method='hirescam', target='adequate_margin')
  np.testing.assert_allclose(found.raw, -other.raw, atol=1e-6)
  # Behind an average and one linear layer a map sums to the score, less bias.
  assert found.raw.sum() == pytest.approx(found.verdict.log_odds, abs=1e-4)
  assert found.verdict == grader.judge(photo)
  laid = found.on_photograph()
  assert laid.shape == (photo.height, photo.width)
  assert laid.dtype == np.float32
  assert found.overlay().size == photo.image.size
  axis = iqa.plot.overlay(found)
  assert axis.images[0].get_array().shape == (photo.height, photo.width, 3)
  assert found._repr_png_().startswith(b'\x89PNG')
  assert found.to_dict()['target'] == 'margin'


def test_what_is_explained_by_default_is_the_verdict(grader, pixels):
  together = grader.explain(pixels)
  for one, other in zip(pixels, together, strict=True):
    found = grader.explain(one)
    np.testing.assert_allclose(found.raw, other.raw, atol=1e-6)
    margin = {'inadequate': 'margin', 'adequate': 'adequate_margin'}
    assert found.target == margin[found.verdict.verdict]


def test_mistakes_name_the_remedy(grader, pixels, tmp_path):
  with pytest.raises(errors.InvalidValue, match='gradcam'):
    grader.explain(pixels[0], method='gradcamm')
  with pytest.raises(errors.InvalidValue, match='margin'):
    grader.explain(pixels[0], target='blur')
  with pytest.raises(images.ImageError, match='no such file'):
    grader.explain(tmp_path / 'absent.jpg')
  with pytest.raises(errors.InvalidValue, match='uint8'):
    iqa.read(np.zeros((100, 100, 3), np.float32))
  with pytest.raises(errors.UserError, match='no trained model'):
    iqa.load(tmp_path)


def test_a_table_has_a_row_each(grader, pixels):
  rows = iqa.table(grader.judge(pixels[:2] + [np.zeros((40, 40, 3), 'u1')]))
  assert len(rows) == 3
  columns = rows.columns if hasattr(rows, 'columns') else rows[0]
  assert {'name', 'status', 'verdict', 'p_inadequate'} <= set(columns)


def test_importing_it_is_quick_and_imports_nothing_heavy():
  code = (
    'import sys, time; start = time.perf_counter(); import iqa_jax;'
    'seconds = time.perf_counter() - start;'
    'heavy = {"jax", "tensorflow", "numpy", "PIL"} & set(sys.modules);'
    'assert not heavy, heavy; assert seconds < 0.3, seconds;'
    'assert "load" in dir(iqa_jax); iqa_jax.read'
  )
  subprocess.run([sys.executable, '-c', code], check=True)


def test_judging_and_explaining_import_no_tensorflow(run):
  code = (
    'import sys, numpy as np, iqa_jax as iqa;'
    f'grader = iqa.load({str(run)!r});'
    'grader.explain(np.full((64, 64, 3), 90, np.uint8)).overlay();'
    'assert "tensorflow" not in sys.modules'
  )
  subprocess.run([sys.executable, '-c', code], check=True)
