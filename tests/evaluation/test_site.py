"""A model recalibrated to a folder of photographs is a run like any other."""

import csv
import subprocess
import sys

import numpy as np
from PIL import Image
import pytest

import iqa_jax as iqa
from iqa_jax import errors, run_directory
from iqa_jax.evaluation import site
from iqa_jax.judging import calibration, recalibration
from tests.export import export_material


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  """Returns a run, a folder of 12 photographs, labels.csv, and log-odds."""
  home = tmp_path_factory.mktemp('site')
  run = home / 'run'
  export_material.make_run(
    run,
    calibration={'method': 'platt', 'scale': 40.0, 'offset': 0.3},
    operating_point={'rule': 'youden', 'threshold': 0.55, 'flip_tta': False},
    uncertain_band=[0.5, 0.6],
  )
  photos = home / 'photos'
  photos.mkdir()
  rng = np.random.default_rng(5)
  for i in range(12):
    name = photos / f'{i // 2}_{("left", "right")[i % 2]}.png'
    Image.fromarray(export_material.fundus(rng)).save(name)
  (photos / 'torn.jpg').write_bytes(b'\xff\xd8\xff')
  files = sorted(photos.glob('*.png'))
  odds = np.array(
    [v.log_odds for v in iqa.load(run, check_fundus=False).judge(files)]
  )
  truth = (odds > np.sort(odds)[4]).astype(int)
  truth[[0, 1]] ^= 1
  with open(home / 'labels.csv', 'w', newline='') as file:
    rows = [
      (f.stem, ('adequate', 'inadequate')[t])
      for f, t in zip(files, truth, strict=True)
    ]
    # Two of them nobody labelled.
    csv.writer(file).writerows([('image', 'quality'), *rows[:-2]])
  return run, photos, home / 'labels.csv', files, odds, truth[:-2]


def test_labels_make_a_run_that_judges_by_them(made, tmp_path):
  run, photos, labels, files, odds, truth = made
  new = tmp_path / 'new'
  done = subprocess.run(
    [
      *(sys.executable, '-m', 'iqa_jax.recalibrate', f'--workdir={run}'),
      *(f'--images={photos}', f'--labels={labels}', f'--output={new}'),
      '--nocheck_fundus',
    ],
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  shown = done.stdout
  assert '13 photographs, 1 without a verdict; 10 labelled' in shown
  assert 'Sensitivity' in shown and ' to ' in shown
  saved = iqa.load(run, check_fundus=False).members[0].judges
  # The two without a label count for the threshold.
  known = np.append(truth, [-1, -1])
  expected = recalibration.from_labels(saved, known, calibration.sigmoid(odds))
  grader = iqa.load(new, check_fundus=False)
  found = grader.members[0]
  assert found.digest == iqa.load(run, check_fundus=False).members[0].digest
  assert found.judges.calibration == pytest.approx(expected.calibration)
  for verdict, one in zip(grader.judge(files), odds, strict=True):
    p = expected.judge(calibration.sigmoid(np.array([one])))
    assert verdict.p_inadequate == pytest.approx(p.p_calibrated[0], abs=1e-5)
  record = run_directory.read_json(new / 'model' / 'model.json')
  origin = record['recalibrated_from']
  assert origin['sha256'] == found.digest and origin['labelled'] == 10
  assert origin['operating_point']['threshold'] == 0.55
  report = run_directory.read_json(new / 'recalibration.json')
  # Verdicts of before are those of the run itself.
  called = np.array(
    [
      v.verdict == 'inadequate'
      for v in iqa.load(run, check_fundus=False).judge(files[:-2])
    ]
  )
  assert report['before']['sensitivity']['value'] == pytest.approx(
    called[truth == 1].mean()
  )
  assert (
    report['after']['log_loss']['value']
    < (report['before']['log_loss']['value'])
  )
  with pytest.raises(run_directory.RunDirectoryError, match='already holds'):
    site.run(str(run), str(photos), str(new), rate=0.2)


def test_a_rate_is_reported_with_a_warning(made, tmp_path):
  run, photos, *_ = made
  result = site.run(
    str(run), str(photos), str(tmp_path / 'new'), rate=0.25, check_fundus=False
  )
  grader = iqa.load(tmp_path / 'new', check_fundus=False)
  p = [v.p_inadequate for v in grader.judge(sorted(photos.glob('*.png')))]
  assert np.mean(p) == pytest.approx(0.25, abs=1e-4)
  assert 'no photograph is labelled' in site.as_text(result)
  origin = grader.members[0].record['recalibrated_from']
  assert origin['rate'] == 0.25


def test_labels_of_other_photographs_are_refused(made, tmp_path):
  run, photos, *_ = made
  (tmp_path / 'l.csv').write_text('image,quality\n0_left,0\n9_left,1\n')
  with pytest.raises(errors.UserError, match=r'1 of 2 labelled.*9_left'):
    site.run(
      str(run),
      str(photos),
      str(tmp_path / 'new'),
      labels_file=str(tmp_path / 'l.csv'),
    )
