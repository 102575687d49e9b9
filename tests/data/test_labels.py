"""Label files: what is published, what people make of it, and junk."""

import collections

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
import pytest

from iqa_jax import labels as vocabulary
from iqa_jax.data import tables
from iqa_jax.data.brset import labels as brset
from iqa_jax.data.csv import labels as own
from iqa_jax.data.eyeq import labels as eyeq
from iqa_jax.data.records import DataError
from tests.data import dummy

FUZZ = settings(
  max_examples=1000,
  deadline=None,
  derandomize=True,
  suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def test_eyeq_as_published(shared):
  rows = {
    split: eyeq.read(shared / f'data/eyeq_labels/Label_EyeQ_{split}.csv')
    for split in eyeq.SPLITS
  }
  for split, of_split in rows.items():
    assert len(of_split) == eyeq.PUBLISHED[f'{split} photographs']
  # The paper's table 1.
  assert collections.Counter(r.grade for r in rows['train']) == {
    0: 8347, 1: 1876, 2: 2320,
  }  # fmt: skip
  patients = [{r.patient_id for r in rows[s]} for s in eyeq.SPLITS]
  assert not patients[0] & patients[1]
  names = {r.image_id for of_split in rows.values() for r in of_split}
  assert len(names) == 28792


def test_eyeq_finds_jpeg_and_png_in_every_layout(tmp_path):
  dummy.eyeq(tmp_path)
  (tmp_path / 'test/12_left.jpeg').rename(tmp_path / '12_left.jpeg')
  found = eyeq.entries(tmp_path)
  assert [e.path.name for e in found['test']] == [
    '12_left.jpeg',
    '13_right.png',
  ]
  assert found['train'][1].metadata == {
    'image_id': '10_right', 'patient_id': '10', 'eye': 'right', 'grade': 1,
  }  # fmt: skip


def test_eyeq_patient_in_both_splits_is_refused(tmp_path):
  dummy.eyeq(tmp_path)
  with open(tmp_path / 'Label_EyeQ_test.csv', 'a') as file:
    file.write('2,11_right.jpeg,0,0\n')
  with pytest.raises(DataError, match='1 patients are in both'):
    eyeq.entries(tmp_path)


@pytest.mark.parametrize(
  ('line', 'problem'),
  [
    ('0,13.jpeg,0,0', r"line 2: image '13\.jpeg' is not named NUMBER_left"),
    ('0,../13_left.jpeg,0,0', 'is not named'),
    ('0,1٣_left.jpeg,0,0', 'is not named'),
    ('0,13_left.jpeg,3,0', "line 2: quality '3' is none of 0"),
    ('0,13_left.jpeg', 'line 2: too few fields, quality is missing'),
    (
      '0,13_left.jpeg,1,0\n1,13_left.png,1,0',
      'line 3: 13_left is listed twice',
    ),
  ],
)
def test_eyeq_names_the_row(tmp_path, line, problem):
  path = tmp_path / 'labels.csv'
  path.write_text(f',image,quality,DR_grade\n{line}\n', encoding='utf-8')
  with pytest.raises(DataError, match=problem):
    eyeq.read(path)


@pytest.mark.parametrize(
  'spelling', ['iluminaton', 'Illuminaton', 'illumination', 'Illumination']
)
def test_brset_of_every_version(tmp_path, spelling):
  path = tmp_path / 'labels.csv'
  dummy.write_brset(path, dummy.brset_rows())
  path.write_bytes(path.read_bytes().replace(b'iluminaton', spelling.encode()))
  rows = brset.read(path)
  assert path.read_bytes()[:3] == b'\xef\xbb\xbf'
  assert b'\r\n' in path.read_bytes()
  assert rows[2] == {
    'image_id': 'img00002',
    'patient_id': '2',
    'camera': 'NIKON NF5050',
    'eye': 'right',
    'sex': 'male',
    'age': vocabulary.UNKNOWN,
    'quality': vocabulary.INADEQUATE,
    'criteria': [0, 0, 1, 0],
  }
  assert rows[1]['eye'] == 'left' and rows[1]['sex'] == 'female'
  assert rows[1]['age'] == 41


@pytest.mark.parametrize(
  ('change', 'problem'),
  [
    ({'focus': 3}, "img00001.*focus '3' is neither 1"),
    ({'artifacts': ''}, "artifacts '' is neither"),
    ({'quality': 'good'}, "quality 'good' is neither Adequate nor"),
    ({'quality': 'Adequate'}, 'contradicts the criteria, of which focus'),
    ({'image_id': 'img00000'}, 'listed twice'),
    ({'image_id': '../img00000'}, 'is no name'),
    ({'patient_id': ''}, 'patient_id is empty'),
  ],
)
def test_brset_names_the_row(tmp_path, change, problem):
  rows = dummy.brset_rows()
  rows[1] |= change
  path = tmp_path / 'labels.csv'
  dummy.write_brset(path, rows)
  with pytest.raises(DataError, match=f'line 3 .*{problem}'):
    brset.read(path)
  reports = []
  assert len(brset.read(path, reports.append)) == 3
  assert len(reports) == 1


def test_missing_column_names_the_nearest(tmp_path):
  path = tmp_path / 'labels.csv'
  dummy.write_brset(path, dummy.brset_rows())
  path.write_bytes(path.read_bytes().replace(b'image_field', b'image_feild'))
  with pytest.raises(DataError, match="'image_field'; the nearest is 'image_f"):
    brset.read(path)


def test_brset_without_label_file(tmp_path):
  with pytest.raises(DataError, match=r'labels_brset\.csv nor labels\.csv'):
    brset.entries(tmp_path)


_CELL = st.one_of(
  st.text(max_size=6),
  st.sampled_from(['1', '2', '0', '1_left', 'Adequate', '1.0', 'nan', 'inf']),
)
_HEADERS = st.sampled_from(
  [
    *('image,quality', '', '\ufeffimage,quality', 'path,patient,verdict'),
    ','.join(dummy.BRSET_COLUMNS),
  ]
)


@FUZZ
@given(
  header=_HEADERS,
  rows=st.lists(st.lists(_CELL, max_size=13), max_size=4),
  tail=st.binary(max_size=12),
)
def test_junk_raises_nothing_but_data_errors(tmp_path, header, rows, tail):
  text = '\n'.join([header, *(','.join(row) for row in rows)])
  path = tmp_path / 'labels.csv'
  path.write_bytes(text.encode('utf-8', 'surrogatepass') + tail)

  def read_own(path, report):
    return own.entries(path.parent, report)

  for read in (eyeq.read, brset.read, read_own):
    reports = []
    try:
      for row in read(path, reports.append):
        assert row
    except DataError as error:
      assert str(path) in str(error)
    assert all(str(path) in report for report in reports)


def test_a_missing_file_is_named(tmp_path):
  with pytest.raises(
    DataError, match=r'none\.csv cannot be read: No such file'
  ):
    list(tables.read(tmp_path / 'none.csv', ()))


def test_the_sample_of_eyeq_as_your_own_labels(shared, tmp_path):
  """README's worked example: the same photographs, patients and splits."""
  folder = shared / 'data/eyeq_sample'
  published = eyeq.entries(folder)
  lines = ['photograph,patient,eye,quality,split']
  for split, entries in published.items():
    for entry in entries:
      about = entry.metadata
      grade = vocabulary.GRADES[about['grade']]
      lines.append(
        f'{entry.path},{about["patient_id"]},{about["eye"]},{grade},{split}'
      )
  (tmp_path / 'labels.csv').write_text('\n'.join(lines) + '\n')
  columns = {'path': 'photograph', 'grade': 'quality'}
  found = own.entries(tmp_path, columns=columns)
  assert {k: len(v) for k, v in found.items()} == {'train': 161, 'test': 68}
  for split, entries in published.items():
    for ours, theirs in zip(found[split], entries, strict=True):
      assert ours.path == theirs.path
      for key in ('patient_id', 'eye', 'grade'):
        assert ours.metadata[key] == theirs.metadata[key]


def test_verdicts_follow_from_criteria(tmp_path):
  (tmp_path / 'labels.csv').write_text(
    'path,patient,Verdict,focus,illumination,image_field,artifacts\n'
    'a.png,1,,adequate,0,0,0\n'
    'b.png,1,,1,,,\n'
    'c.png,2,,0,,,\n'
    'd.png,3,Adequate,,,,\n'
  )
  rows = [e.metadata for e in own.entries(tmp_path)['train']]
  assert [row['quality'] for row in rows] == [0, 1, -1, 0]
  assert rows[1]['criteria'] == [1, -1, -1, -1]
  with pytest.raises(DataError, match='no column of labels: verdict, grade'):
    (tmp_path / 'labels.csv').write_text('path,patient\na.png,1\n')
    own.entries(tmp_path)
  with pytest.raises(DataError, match="no column 'site_name'"):
    own.entries(tmp_path, columns={'site': 'site_name'})
