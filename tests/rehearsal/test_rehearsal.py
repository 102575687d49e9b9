"""Stand-ins are what is published; what runs through them is measured."""

import collections
import pathlib
import sys

import numpy as np
from PIL import Image
import pytest

from iqa_jax import errors, labels
from iqa_jax.data.brset import labels as brset_labels
from iqa_jax.data.eyeq import labels as eyeq_labels
from iqa_jax.photograph import images
from tests.rehearsal import downloads, drawing, stages
from tests.test_launch import flags_of


def test_brset_has_the_published_counts_and_quirks(tmp_path):
  shots = downloads.write('brset', tmp_path, 1)
  rows = brset_labels.read(tmp_path / 'labels_brset.csv')
  criteria = np.array([row['criteria'] for row in rows])
  alone = criteria.sum(1) == 1
  bad = np.array([row['quality'] for row in rows])
  camera = np.array([row['camera'] for row in rows])
  found = {
    'photographs': len(rows),
    'patients': len({row['patient_id'] for row in rows}),
    'adequate': int((bad == 0).sum()),
    'inadequate': int((bad == 1).sum()),
    'Canon CR': int((camera == 'Canon CR').sum()),
    'NIKON NF5050': int((camera == 'NIKON NF5050').sum()),
  }
  for i, name in enumerate(labels.CRITERIA):
    found[f'inadequate {name}'] = int(criteria[:, i].sum())
    found[f'{name} alone'] = int((criteria[:, i] & alone).sum())
  assert found == brset_labels.PUBLISHED
  shares = [f'{bad[camera == name].mean():.3f}' for name in downloads.CAMERAS]
  assert shares == ['0.088', '0.186']
  text = (tmp_path / 'labels_brset.csv').read_bytes()
  assert text.startswith(b'\xef\xbb\xbfimage_id') and b'\r\n' in text
  ages = np.array([row['age'] for row in rows])
  assert 0.2 < (ages == labels.UNKNOWN).mean() < 0.5
  assert 55 < ages[ages > 0].mean() < 60
  # Both eyes of a patient fail together more often than by chance.
  eyes = collections.defaultdict(list)
  for row in rows:
    eyes[row['patient_id']].append(row['quality'])
  pairs = np.array([e for e in eyes.values() if len(e) == 2])
  assert pairs.all(1).mean() > 2 * bad.mean() ** 2
  assert sum(shot.truncated for shot in shots) == 16
  by_path = {shot.path: shot for shot in shots}
  for row in rows[:200]:
    shot = by_path[f'fundus_photos/{row["image_id"]}.jpg']
    assert shot.eye == row['eye'] and str(shot.patient) == row['patient_id']
    assert [int(c in shot.broken) for c in labels.CRITERIA] == row['criteria']


def test_a_tenth_of_brset_has_a_tenth_of_everything(tmp_path):
  downloads.write('brset', tmp_path, 0.1)
  rows = brset_labels.read(tmp_path / 'labels_brset.csv')
  assert len(rows) == pytest.approx(1626.6, rel=0.01)
  assert sum(r['quality'] for r in rows) == pytest.approx(198.7, rel=0.05)


@pytest.mark.parametrize('scale', [1, 0.1])
def test_eyeq_has_the_published_grades(tmp_path, scale):
  downloads.write('eyeq', tmp_path, scale)
  found = eyeq_labels.entries(tmp_path)
  for split, entries in found.items():
    grades = np.bincount([e.metadata['grade'] for e in entries])
    expected = scale * np.array(downloads.GRADES[split])
    np.testing.assert_allclose(grades, expected, rtol=0 if scale == 1 else 0.03)


def test_eyeq_keeps_the_published_files_rows(tmp_path, shared):
  published = shared / 'data' / 'eyeq_labels'
  downloads.write('eyeq', tmp_path, 1, published)
  for split in eyeq_labels.SPLITS:
    name = f'Label_EyeQ_{split}.csv'
    ours, theirs = (
      {r.image_id: r.grade for r in eyeq_labels.read(folder / name)}
      for folder in (tmp_path, published)
    )
    assert ours == theirs


def test_scale_is_a_share(tmp_path):
  with pytest.raises(errors.InvalidValue, match='scale=2'):
    downloads.write('brset', tmp_path, 2)


def shot(name, **changes):
  given = {
    **{'path': name, 'seed': 1, 'patient': 1, 'eye': 'left', 'style': 0},
    **{'broken': ('focus',), 'size': (700, 600)},
  }
  return downloads.Shot(**{**given, **changes})


def test_photographs_are_drawn_once_at_their_size(tmp_path, capsys):
  there = tmp_path / 'a' / 'one.jpeg'
  there.parent.mkdir()
  there.write_bytes(b'as it was')
  shots = [
    shot('a/one.jpeg'),
    shot('b/two.jpeg', seed=2),
    shot('b/cut.jpeg', truncated=True),
  ]
  drawing.draw_all(tmp_path, shots, processes=1)
  assert there.read_bytes() == b'as it was'
  with Image.open(tmp_path / 'b' / 'two.jpeg') as image:
    assert image.size == (700, 600)
    pixels = np.asarray(image).astype(int)
  assert pixels[:, :40].mean() < 6 < pixels[:, 350].mean()
  with pytest.raises(images.ImageError):
    images.read(tmp_path / 'b' / 'cut.jpeg', 512)
  assert not list(tmp_path.rglob('*.partial'))
  assert '1 there already' in capsys.readouterr().err


def test_a_full_disk_is_told_before_it_is_full(tmp_path, monkeypatch):
  monkeypatch.setattr(drawing, '_FIRST', 1)
  monkeypatch.setattr(
    drawing.shutil, 'disk_usage', lambda _: type('', (), {'free': 10})
  )
  shots = [shot(f'{i}.jpeg', seed=i) for i in range(3)]
  with pytest.raises(drawing.DiskFull, match=r'0\.0 GB free'):
    drawing.draw_all(tmp_path, shots, processes=1)


def test_estimate_is_its_formula():
  text = drawing.estimate([(0.5, 10**6), (1.5, 3 * 10**6)], 4, 600, 2)
  assert '600 x 1.00 / 2 = 5.0 minutes' in text
  assert '2.00 MB: 1.20 GB' in text


def test_a_stage_is_measured(tmp_path):
  command = (
    'import pathlib, time; block = bytearray(300_000_000); '
    f'pathlib.Path({str(tmp_path / "made")!r}).write_bytes(bytes(10**6)); '
    'time.sleep(1); begun = time.process_time()\n'
    'while time.process_time() < begun + 0.5: pass'
  )
  found = stages.measure(
    [sys.executable, '-c', command], tmp_path, tmp_path / 'log'
  )
  assert 1.5 < found['seconds'] < 60
  assert 0.5 < found['cpu'] < 1.5
  assert 0.28 < found['memory_gb'] < 0.5
  assert found['disk_gb'] == pytest.approx(0.001)
  with pytest.raises(stages.StageFailed, match='exit code 3'):
    stages.measure(
      [sys.executable, '-c', 'raise SystemExit(3)'], tmp_path, tmp_path / 'log'
    )


def test_growth_and_extrapolation():
  counts = (100, 400)
  assert stages.growth((3.0, 12.0), counts) == pytest.approx(1)
  assert stages.growth((1.0, 16.0), counts) == pytest.approx(2)
  # 10 s to start and 0.02 s each.
  costs = (12.0, 18.0)
  assert stages.extrapolated(costs, counts, 10_000) == pytest.approx(210)
  counts = (100, 400, 1600)
  linear = [10 + 0.02 * n for n in counts]
  assert stages.growth(linear, counts) == pytest.approx(1)
  square = [10 + 1e-4 * n**2 for n in counts]
  assert stages.growth(square, counts) > 1.7


def test_table_shows_what_grows_too_fast_and_needs_too_much():
  def result(photographs, seconds, memory):
    row = {'cpu': photographs / 100, 'seconds': seconds, 'disk_gb': 0.0}
    stages_of_it = {'score': row | {'memory_gb': memory}}
    return {'photographs': photographs, 'stages': stages_of_it}

  text = stages.table('brset', [result(400, 32.0, 5.0), result(100, 2.0, 1.0)])
  assert '| score | s | 2 | 32 | 2.00! |' in text
  assert '| score | s of processors | 1 | 4 | 1.00 | 163 | 1e+04 |' in text
  assert 'GB memory (over 4)' in text
  assert 'simulated' in text


def test_stages_are_commands_that_take_their_flags():
  for dataset in downloads.DATASETS:
    home = pathlib.Path('home')
    for name, command in stages.stages(dataset, 'data', home, 1, 3).items():
      used = {a.lstrip('-').partition('=')[0] for a in command[3:]}
      used = {flag for flag in used if not flag.startswith('config.')}
      assert used <= flags_of(command[2]), name
