"""photographs: labels as people write them, files that can't be read."""

import dataclasses
import subprocess
import sys

import numpy as np
from PIL import Image
import pytest

from iqa_jax.data.records import DataError
from iqa_jax.photograph import prepare
from iqa_jax.studies import label_table, photographs, places
from tests.explain import constructed


@pytest.fixture
def folder(tmp_path):
  """Six photographs at twice the size, the last of them damaged."""
  made = constructed.photographs(6).images.repeat(2, 1).repeat(2, 2)
  for i, image in enumerate(made):
    Image.fromarray(image).save(tmp_path / f'{i}_left.jpeg', quality=95)
  data = (tmp_path / '5_left.jpeg').read_bytes()
  (tmp_path / '5_left.jpeg').write_bytes(data[: len(data) // 3])
  return tmp_path


def _write(folder, text):
  path = folder / 'labels.csv'
  path.write_text(text)
  return path


def test_labels_are_read_and_landmarks_follow_the_photograph(folder):
  labels = _write(
    folder,
    'image_id,quality,grade,focus,image_field,eye,disc_x,disc_y,'
    'disc_diameter,fovea_x,fovea_y\n'
    '0_left.jpeg,adequate,,0,adequate,left,88,64,18,40,68\n'
    '1_left,inadequate,,1,inadequate,R,,,,,\n'
    '3_left,,2,,,,,,,,\n'
    '5_left,1,,,,,,,,,\n',
  )
  found = photographs.read(str(folder), 64, labels=labels)
  assert list(found.ids) == ['0_left', '1_left', '3_left']
  assert found.images.shape == (3, 64, 64, 3) and found.inside.any((1, 2)).all()
  np.testing.assert_array_equal(found.quality, [0, 1, 1])
  np.testing.assert_array_equal(found.grade, [-1, -1, 2])
  np.testing.assert_array_equal(found.criteria[:, 0], [0, 1, -1])
  np.testing.assert_array_equal(found.criteria[:, 2], [0, 1, -1])
  assert list(found.eyes) == ['left', 'right', '']
  # The field fills the prepared frame: 0.96 of 128 pixels are now 64.
  expected = (np.asarray([88, 64, 40, 68]) - 64) / 0.96 / 2 + 32
  np.testing.assert_allclose(found.landmarks[0, [0, 1, 3, 4]], expected, atol=1)
  np.testing.assert_allclose(found.landmarks[0, 2], 18 / 1.92, rtol=0.05)
  assert np.isnan(found.landmarks[1:]).all()
  [(name, reason)] = found.skipped
  assert name == '5_left' and reason.startswith('truncated')


def test_a_lot_is_even_over_the_labels(folder):
  labels = _write(
    folder, 'image,quality\n0_left,0\n1_left,0\n2_left,0\n3_left,0\n4_left,1\n'
  )
  for seed in range(5):
    found = photographs.read(str(folder), 32, labels=labels, limit=2, seed=seed)
    assert sorted(found.quality) == [0, 1]
  # Without labels everything is taken, and nothing is known.
  found = photographs.read(str(folder), 32)
  assert len(found) == 5 and set(found.quality) == {-1}


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('image,quality\n0_left,good\n', "line 2: quality is 'good', expected 0"),
    ('image,grade\n0_left,3\n', "line 2: grade is '3', expected 0, 1, 2"),
    ('name,quality\n0_left,0\n', 'line 2: no column names the photograph'),
    ('image,quality\nother,0\n', 'none of the 6 photographs of'),
  ],
)
def test_wrong_labels_say_where_and_what(folder, text, message):
  with pytest.raises(ValueError, match=message):
    photographs.read(str(folder), 32, labels=_write(folder, text))


def test_missing_labels_and_photographs_say_so(folder, tmp_path_factory):
  with pytest.raises(DataError, match=r'labels.csv cannot be read'):
    photographs.read(str(folder), 32, labels=folder / 'labels.csv')
  empty = tmp_path_factory.mktemp('empty')
  with pytest.raises(ValueError, match='holds no photographs'):
    photographs.read(str(empty), 32)
  (empty / 'a.jpg').write_bytes(b'no')
  with pytest.raises(ValueError, match=r'none of 1 photographs can be read'):
    photographs.read(str(empty), 32)
  with pytest.raises(ValueError, match='labels without images'):
    photographs.choose(constructed.loaded(), empty, labels='x.csv')


def test_drawn_photographs_are_the_same_again_and_balanced():
  found, again = (photographs.drawn(10, 48, seed=3) for _ in range(2))
  np.testing.assert_array_equal(found.images, again.images)
  assert list(found.quality) == [0, 1] * 5
  np.testing.assert_array_equal(found.criteria.max(1), found.quality)
  # Each criterion in turn, and the tenth fails two.
  np.testing.assert_array_equal(found.criteria[1:8:2], np.eye(4, dtype=int))
  assert found.criteria[9].sum() == 2
  other = photographs.drawn(10, 48, seed=13)
  assert not (other.images[0] == found.images[0]).all()


def test_drawings_of_a_run_are_those_of_its_records(tmp_path):
  from iqa_jax.data.fundus_sim import fundus_sim_dataset_builder as builder
  from iqa_jax.simulation import photograph

  sizes = {c.name: c.size for c in builder.Builder.BUILDER_CONFIGS}
  assert list(photograph.SIZES.items()) == list(sizes.items())
  run = constructed.loaded()
  for name, size in (('', 128), ('512', 512)):
    run.config.data.builder_config = name
    [image] = photographs.choose(run, tmp_path, limit=1).images
    drawn = photograph.draw(photographs._FIRST_SEED, size).image
    np.testing.assert_array_equal(image, prepare.resize(drawn, len(image)))


def test_the_disc_is_found_where_it_can_be_seen():
  found = photographs.drawn(24, 128).take(slice(0, None, 2))
  near = 0
  for i in range(len(found)):
    x, y = places.estimate_disc(found.images[i], found.inside[i])
    away = np.hypot(x - found.landmarks[i, 0], y - found.landmarks[i, 1])
    near += away < 0.5 * found.landmarks[i, 2]
  assert near >= 10


def test_a_run_without_its_files_says_what_to_give(tmp_path):
  run = constructed.loaded()
  run.config.data.name = 'eyeq'
  run.config.data.manual_dir = str(tmp_path / 'gone')
  with pytest.raises(ValueError, match='give --images'):
    photographs.choose(run, tmp_path, limit=0)


def test_the_test_photographs_of_a_run_are_found(folder, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('run')
  (workdir / 'predictions.csv').write_text(
    'image_id,split,quality,grade\n0_left,test,0,0\n1_left,validation,0,0\n'
    '2_left,test,1,2\n'
  )
  run = constructed.loaded()
  run.config.data.name = 'eyeq'
  run.config.data.manual_dir = str(folder)
  found = photographs.choose(run, workdir, limit=0)
  assert list(found.ids) == ['0_left', '2_left']
  assert list(found.quality) == [0, 1]


def test_eyeqs_own_label_files_tell_grade_eye_and_patient(tmp_path):
  path = tmp_path / 'Label_EyeQ_train.csv'
  path.write_text(
    ',image,quality,DR_grade\n0,13_left.jpeg,0,0\n1,13_right.jpeg,1,0\n'
    '2,x.jpeg,2,0\n'
  )
  found = label_table.read(path)
  assert [row['grade'] for row in found.values()] == [0, 1, 2]
  assert [row['quality'] for row in found.values()] == [0, 1, 1]
  assert [row['patient'] for row in found.values()] == ['13', '13', '']
  assert [row['eye'] for row in found.values()] == ['left', 'right', '']
  adequate = label_table.read(path, usable='adequate')
  assert [row['quality'] for row in adequate.values()] == [0, 0, 1]


def test_who_is_unknown_is_a_patient_of_their_own():
  drawn = photographs.drawn(3, 32, drawn_at=64)
  known = dataclasses.replace(drawn, patients=np.asarray(['a', 'a', '']))
  assert list(known.people) == ['a', 'a', known.ids[2]]


def test_simulated_photographs_are_written_with_their_pixels(tmp_path):
  done = subprocess.run(
    [
      *(sys.executable, '-m', 'iqa_jax.simulation.gallery', '--size=96'),
      *(f'--output={tmp_path / "all"}', '--photographs=2'),
      f'--pixel_labels={tmp_path / "pixels"}',
    ],
    capture_output=True,
    text=True,
    check=False,
  )
  assert not done.returncode, done.stderr
  found = photographs.read(
    str(tmp_path / 'all'),
    64,
    labels=tmp_path / 'all' / 'labels.csv',
    pixel_labels=tmp_path / 'pixels',
  )
  assert len(found) == 2
  assert ((found.truth > 0) == found.inside).mean() > 0.95
