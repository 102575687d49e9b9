"""What a download lacks is found before a build."""

import csv
import subprocess
import sys

from PIL import Image
import pytest

from iqa_jax import validate_data
from iqa_jax.data.records import DataError
from tests.data import dummy


def test_a_good_download(tmp_path):
  lines, code = validate_data.validate(
    'eyeq', dummy.eyeq(tmp_path), tmp_path / 'out.csv'
  )
  assert code == 0 and lines[-1] == 'It can be built.'
  assert 'train photographs: 3  (published: 12,543)' in lines
  assert 'train patients: 2' in lines
  with open(tmp_path / 'out.csv', newline='') as file:
    rows = list(csv.DictReader(file))
  assert [r['status'] for r in rows] == ['ok'] * 5
  assert rows[0]['width'] == '96' and rows[0]['field_found'] == '1'


def test_everything_wrong_is_listed(tmp_path):
  dummy.brset(tmp_path)
  rows = dummy.brset_rows()
  rows[0]['quality'] = 'Inadequate'
  rows.append({**rows[3], 'patient_id': 9})
  rows.append({**rows[3], 'image_id': 'img00099'})
  rows.append({**rows[3], 'image_id': 'img00098'})
  dummy.write_brset(tmp_path / 'labels_brset.csv', rows)
  photographs = tmp_path / 'fundus_photos'
  path = photographs / 'img00001.jpg'
  path.write_bytes(path.read_bytes()[:1500])
  (photographs / 'img00002.jpg').write_text('not a photograph')
  Image.new('RGB', (64, 64), 'grey').save(photographs / 'img00098.jpg')
  lines, code = validate_data.validate('brset', tmp_path, tmp_path / 'out.csv')
  text = '\n'.join(lines)
  assert code == 1 and lines[-1] == 'A build will fail.'
  assert '2 problems with the labels' in text
  assert 'img00000): quality Inadequate contradicts' in text
  assert 'img00003): listed twice' in text
  assert 'missing: 1: img00099' in text
  assert 'truncated: 1: img00001' in text
  assert 'not_an_image: 1: img00002' in text
  assert 'no field of view found: 1: img00098' in text
  with open(tmp_path / 'out.csv', newline='') as file:
    status = [r['status'] for r in csv.DictReader(file)]
  assert sorted(status) == sorted(
    ['truncated', 'not_an_image', 'ok', 'missing', 'ok', 'label', 'label']
  )
  # What is absent can be accepted; contradictory labels can't.
  assert validate_data.validate(
    'brset', tmp_path, tmp_path / 'out.csv', allow_missing=True
  )[1] == 1  # fmt: skip


def test_absent_photographs_can_be_accepted(tmp_path):
  dummy.brset(tmp_path)
  (tmp_path / 'fundus_photos/img00000.jpg').unlink()
  for accepted in (False, True):
    code = validate_data.validate(
      'brset', tmp_path, tmp_path / 'out.csv', allow_missing=accepted
    )[1]
    assert code == int(not accepted)


def test_no_labels_at_all(tmp_path):
  with pytest.raises(DataError, match='holds neither'):
    validate_data.validate('brset', tmp_path, tmp_path / 'out.csv')


def test_the_command(tmp_path):
  dummy.eyeq(tmp_path)
  (tmp_path / 'test/12_left.jpeg').unlink()
  command = [
    sys.executable, '-m', 'iqa_jax.validate_data', '--dataset=eyeq',
    f'--manual_dir={tmp_path}', f'--output={tmp_path / "out.csv"}',
  ]  # fmt: skip
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  assert done.returncode == 1, done.stderr
  assert 'missing: 1: 12_left' in done.stdout
  (tmp_path / 'Label_EyeQ_test.csv').unlink()
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  assert done.returncode == 1
  assert 'Label_EyeQ_test.csv cannot be read' in done.stdout + done.stderr
  assert 'Traceback' not in done.stderr


def rows_of(path):
  with open(path, newline='') as file:
    return list(csv.DictReader(file))


def test_photographs_of_two_patients_that_are_one_are_leakage(tmp_path):
  """An eye of the training split again in the test split, mirrored."""
  dummy.eyeq(tmp_path)
  for name in ('train/10_left', 'train/11_left'):
    dummy.draw(tmp_path / f'{name}.jpeg', 7 + len(name) * (name[7] == '1'), 256)
  with Image.open(tmp_path / 'train/11_left.jpeg') as image:
    mirrored = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
  mirrored.resize((200, 200)).save(tmp_path / 'test/12_left.jpeg', quality=60)
  lines, code = validate_data.validate('eyeq', tmp_path, tmp_path / 'out.csv')
  assert code == 0
  text = '\n'.join(lines)
  assert '1 pairs of photographs are nearly the same under two pati' in text
  assert '11_left of patient 11: nearly the same (' in text
  [row] = [r for r in rows_of(tmp_path / 'out.csv') if r['status'] == 'leakage']
  assert row['image_id'] == '11_left'
  assert 'as 12_left of patient 12 in test' in row['reason']


def test_several_files_of_a_name_are_noticed(tmp_path):
  """PNG beside JPEG, and an image in both of EyeQ's folders."""
  dummy.eyeq(tmp_path)
  dummy.draw(tmp_path / 'train/10_left.png', 1000)
  dummy.draw(tmp_path / 'train/12_left.jpeg', 1200)
  lines, code = validate_data.validate('eyeq', tmp_path, tmp_path / 'out.csv')
  assert code == 0
  assert '2 photographs have several files of their name; one is used' in lines
  several = {
    r['image_id']: r
    for r in rows_of(tmp_path / 'out.csv')
    if r['status'] == 'several_files'
  }
  assert several.keys() == {'10_left', '12_left'}
  assert several['10_left']['path'].endswith('train/10_left.jpeg')
  assert several['10_left']['reason'].endswith('10_left.png not used')
  assert several['12_left']['path'].endswith('test/12_left.jpeg')


@pytest.mark.parametrize(
  ('line', 'problem'),
  [
    ('a.png,,adequate,,', 'patient is empty'),
    (',1,adequate,,', 'path is empty'),
    ('a.png,1,fine,,', "verdict 'fine' is none of 0, 1, adequate, inadequate"),
    ('a.png,1,,4,', "grade '4' is none of 0, 1, 2, good, usable, reject"),
    ('a.png,1,,,', 'it has no label'),
    ('a.png,1,1.0,,fit', "split 'fit' is none of train"),
    ('a.png,1,0,,\na.png,1,1,,', 'listed twice'),
    ('a.png,1,0,,\nb.png,1,1,,test', 'is in train and here in test'),
  ],
)
def test_your_own_labels_are_validated(tmp_path, line, problem):
  for name in ('a.png', 'b.png'):
    dummy.draw(tmp_path / name, 1)
  header = 'path,patient,verdict,grade,split\n'
  (tmp_path / 'labels.csv').write_text(header + line + '\n')
  lines, code = validate_data.validate('csv', tmp_path, tmp_path / 'out.csv')
  assert code == 1
  assert problem in '\n'.join(lines)


def test_your_own_columns(tmp_path):
  dummy.draw(tmp_path / 'a.png', 1)
  text = 'photo,Subject,ok\na.png,1,adequate\na.png,1,1\n'
  (tmp_path / 'own.csv').write_text(text)
  command = [
    sys.executable, '-m', 'iqa_jax.validate_data', '--dataset=csv',
    f'--manual_dir={tmp_path}', f'--output={tmp_path / "out.csv"}',
    '--columns=file=own.csv,path=photo,patient=subject,verdict=ok',
  ]  # fmt: skip
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  assert 'line 3 (a.png): listed twice' in done.stdout, done.stderr
  assert rows_of(tmp_path / 'out.csv')[0]['label'] == 'adequate'
  (tmp_path / 'own.csv').write_text('photo,subject\na.png,1\n')
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  assert done.returncode == 1
  assert "no column 'ok'" in done.stderr
