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
