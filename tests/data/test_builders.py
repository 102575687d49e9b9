"""The tfds builders on small downloads drawn here."""

import collections
import csv
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

from absl import flags
import numpy as np
from PIL import Image
import pytest
import tensorflow_datasets as tfds

from iqa_jax import config as config_lib
from iqa_jax import labels
from iqa_jax.data import building, pipeline, records
from iqa_jax.data import plan as plan_lib
from iqa_jax.data import source as source_lib
from iqa_jax.data.brset import brset_dataset_builder
from iqa_jax.data.eyeq import eyeq_dataset_builder
from iqa_jax.data.eyeq import labels as eyeq_labels
from iqa_jax.photograph import images
from tests.data import dummy


class _Case(tfds.testing.DatasetBuilderTestCase):
  # tfds looks at other packages' modules while it builds.
  MOCK_OUT_FORBIDDEN_OS_FUNCTIONS = False

  @classmethod
  def setUpClass(cls):
    # tfds' tests read absl's flags, which its own runner would have parsed.
    if not flags.FLAGS.is_parsed():
      flags.FLAGS(['test'])
    folder = cls.enterClassContext(tempfile.TemporaryDirectory())
    cls.EXAMPLE_DIR = folder
    cls.draw(pathlib.Path(folder))
    super().setUpClass()

  def _assertAsDataset(self, builder):
    # tfds reads ArrayRecord files as data sources only.
    sources = builder.as_data_source()
    assert sources.keys() == self.SPLITS.keys()
    names = []
    for split, source in sources.items():
      assert len(source) == self.SPLITS[split]
      for example in source:
        assert example.keys() == records.METADATA.keys() | {
          'image', 'affine', 'size', 'height', 'width', 'field_found',
        }  # fmt: skip
        assert example['image'].dtype == np.uint8
        names.append(example['image_id'])
    assert len(set(names)) == len(names)


class EyeqTest(_Case):
  DATASET_CLASS = eyeq_dataset_builder.Builder
  SPLITS = {name: len(rows) for name, rows in dummy.EYEQ.items()}
  draw = staticmethod(dummy.eyeq)


class BrsetTest(_Case):
  DATASET_CLASS = brset_dataset_builder.Builder
  SPLITS = {'train': len(dummy.BRSET)}
  draw = staticmethod(dummy.brset)


del _Case


def open_eyeq(tmp_path, **changes):
  config = config_lib.default()
  config.data.name = 'eyeq'
  config.data.manual_dir = str(tmp_path / 'download')
  config.data.data_dir = str(tmp_path / 'records')
  config.data.update(changes)
  return source_lib.open_source(config)


@pytest.fixture
def download(tmp_path):
  return dummy.eyeq(tmp_path / 'download')


def test_records_hold_what_was_downloaded(tmp_path, download):
  source = open_eyeq(tmp_path)
  table = source.table
  assert collections.Counter(table['split']) == {'train': 3, 'test': 2}
  at = {name: i for i, name in enumerate(table['image_id'])}
  i = at['10_right']
  assert table['patient_id'][i] == '10' and table['eye'][i] == 'right'
  assert table['grade'][i] == 1 and table['quality'][i] == 1
  assert (table['height'][i], table['width'][i]) == (96, 96)
  assert (table['criteria'] == -1).all() and np.isnan(table['landmarks']).all()
  image = dummy.stored(source, i)
  path = download / 'train/10_right.jpeg'
  made = records.from_file(path)
  np.testing.assert_allclose(table['affine'][i], made['affine'])
  expected = np.asarray(Image.open(made['image']))
  assert image.shape == (512, 512, 3)
  assert np.abs(image.astype(int) - expected).mean() < 1


def test_nothing_is_built_twice(tmp_path, download, monkeypatch):
  open_eyeq(tmp_path)
  monkeypatch.setattr(records, 'from_file', None)
  assert len(open_eyeq(tmp_path).table['image_id']) == 5
  # Records alone are enough.
  assert len(open_eyeq(tmp_path, manual_dir='').table['image_id']) == 5


def test_missing_photographs(tmp_path, download):
  for name in ('train/10_left', 'test/12_left'):
    (download / f'{name}.jpeg').unlink()
  with pytest.raises(
    records.DataError,
    match=r'2 of 5 labelled photographs are not in .*: 10_left, 12_left\. Put',
  ):
    open_eyeq(tmp_path)
  source = open_eyeq(tmp_path, allow_missing=True)
  assert sorted(source.table['image_id']) == ['10_right', '11_left', '13_right']
  assert source.description[0]['left_out'] == 2
  # A partial set is never used where a whole one is asked for...
  with pytest.raises(records.DataError, match=r'lack 2 photographs .*12_left'):
    open_eyeq(tmp_path)
  # ... nor when the download has become complete.
  dummy.eyeq(download)
  with pytest.raises(records.DataError, match='delete that folder'):
    open_eyeq(tmp_path, allow_missing=True)


def test_only_the_first_ten_missing_are_listed(tmp_path):
  folder = tmp_path / 'download'
  folder.mkdir()
  for split, first in (('train', 0), ('test', 50)):
    rows = [f'{i},{i + first}_left.jpeg,0,0' for i in range(20)]
    text = '\n'.join([',image,quality,DR_grade', *rows])
    (folder / f'Label_EyeQ_{split}.csv').write_text(text)
  with pytest.raises(records.DataError, match='40 of 40') as caught:
    open_eyeq(tmp_path)
  assert str(caught.value).count('_left') == 10


def test_truncated_photographs(tmp_path, download):
  path = download / 'train/11_left.jpeg'
  path.write_bytes(path.read_bytes()[:2000])
  with pytest.raises(
    records.DataError,
    match=r'1 of 5 .*11_left\.jpeg: truncated.*Download them again',
  ):
    open_eyeq(tmp_path)
  source = open_eyeq(tmp_path, allow_missing=True)
  assert '11_left' not in source.table['image_id']
  assert source.description[0]['left_out'] == 1
  with pytest.raises(
    records.DataError, match=r'lack 1 photographs .*: 11_left'
  ):
    open_eyeq(tmp_path)


def test_changed_labels_are_not_silently_ignored(tmp_path, download):
  open_eyeq(tmp_path)
  labels = download / 'Label_EyeQ_test.csv'
  labels.write_text(
    labels.read_text().replace('12_left.jpeg,0', '12_left.jpeg,2')
  )
  with pytest.raises(records.DataError, match='from other labels'):
    open_eyeq(tmp_path)


def test_errors_say_what_to_do(tmp_path):
  with pytest.raises(records.DataError, match=r'(?s)does not say.*Kaggle'):
    open_eyeq(tmp_path, manual_dir='')
  with pytest.raises(records.DataError, match='is no folder'):
    open_eyeq(tmp_path)
  (tmp_path / 'download').mkdir()
  (tmp_path / 'download/notes.txt').touch()
  with pytest.raises(records.DataError, match=r'Label_EyeQ_train\.csv cannot'):
    open_eyeq(tmp_path)
  with pytest.raises(ValueError, match="'eyq' is none of brset, csv, eyeq"):
    open_eyeq(tmp_path, name='eyq')


def test_original_keeps_the_pixels(tmp_path, download):
  source = open_eyeq(tmp_path, builder_config='original')
  assert source.table['original'].all()
  names = list(source.table['image_id'])
  [record] = source.read(np.array([names.index('10_left')]))
  assert (download / 'train/10_left.jpeg').read_bytes() in record
  image = dummy.stored(source, names.index('13_right'))
  expected = images.read(download / 'test/13_right.png').pixels
  assert np.abs(image.astype(int) - expected).mean() < 2


def test_datasets_can_be_mixed(tmp_path):
  eyeq, brset = dummy.eyeq(tmp_path / 'a'), dummy.brset(tmp_path / 'b')
  folders = f'eyeq={eyeq},brset={brset}'
  source = open_eyeq(tmp_path, name='eyeq+brset', manual_dir=folders)
  table = source.table
  assert collections.Counter(table['dataset']) == {'eyeq': 5, 'brset': 4}
  nikon = table['camera'] == 'NIKON NF5050'
  assert set(table['image_id'][nikon]) == {'img00002', 'img00003'}
  read = source.read(np.array([8, 0, 5]))
  names = [
    source.features.deserialize_example_np(r)['image_id'].decode() for r in read
  ]
  assert names == table['image_id'][[8, 0, 5]].tolist()
  # Both have a patient 1 or 12; they are two people.
  prefix = np.char.add(table['dataset'], ':')
  assert np.char.startswith(table['patient_id'], prefix).all()
  alone = open_eyeq(tmp_path, name='brset', manual_dir=str(brset))
  assert set(alone.table['patient_id']) == {'1', '2', '3'}


# `tfds` itself imports what its other commands need (Apache Beam, Croissant).
_TFDS_BUILD = """
import sys
from absl import app
from tensorflow_datasets.scripts.cli import build, cli_utils
parse = cli_utils.make_flags_parser(build.Args, description='build')
app.run(lambda arguments: arguments.execute(), flags_parser=parse)
"""


@pytest.mark.slow
def test_tfds_build_from_the_dataset_folder(tmp_path, download):
  folder = pathlib.Path(eyeq_dataset_builder.__file__).parent
  root = pathlib.Path(records.__file__).parents[2]
  command = [
    sys.executable, '-c', _TFDS_BUILD, f'--data_dir={tmp_path / "records"}',
    f'--manual_dir={download}', '--config=512',
  ]  # fmt: skip
  done = subprocess.run(
    command, cwd=folder, env={**os.environ, 'PYTHONPATH': str(root)},
    capture_output=True, text=True, check=False,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr[-2000:]
  assert (tmp_path / 'records/eyeq/512/1.1.0/dataset_info.json').exists()
  assert len(open_eyeq(tmp_path).table['image_id']) == 5


_OPEN = """
import hashlib
import sys
from absl import logging
from iqa_jax import config as config_lib
from iqa_jax.data import source as source_lib
from iqa_jax.data.fundus_sim import fundus_sim_dataset_builder as sim
sim.Builder.BUILDER_CONFIGS.append(
  sim.Config(name='tiny', description='Ten.', size=32, counts=(6, 2, 2)))
config = config_lib.default()
config.data.data_dir, config.data.builder_config = sys.argv[1], 'tiny'
logging.set_verbosity(logging.INFO)
print('ready', flush=True)
sys.stdin.readline()
source = source_lib.open_source(config)
digest = hashlib.sha256()
for name, record in zip(source.table['image_id'], source.read(range(10))):
  digest.update(str(name).encode() + record)
print('digest', len(source.table['image_id']), digest.hexdigest())
"""


@pytest.mark.slow
def test_two_processes_that_build_at_once_end_with_the_same_records(tmp_path):
  root = pathlib.Path(records.__file__).parents[2]
  command = [sys.executable, '-c', _OPEN, str(tmp_path)]
  processes = [
    subprocess.Popen(
      command,
      env={**os.environ, 'PYTHONPATH': str(root)},
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for _ in range(2)
  ]
  for process in processes:
    assert process.stdout.readline() == 'ready\n', process.stderr.read()
  for process in processes:
    process.stdin.write('\n')
    process.stdin.flush()
  # A third comes when all is there.
  ends = [process.communicate(timeout=600) for process in processes]
  late = subprocess.run(
    command,
    env={**os.environ, 'PYTHONPATH': str(root)},
    input='\n',
    capture_output=True,
    text=True,
    check=False,
  )
  ends.append((late.stdout, late.stderr))
  # tfds has more to say before.
  said = {output.splitlines()[-1] for output, _ in ends}
  assert len(said) == 1, ends
  assert said.pop().startswith('digest 10 '), ends
  built = sum('building fundus_sim' in log for _, log in ends)
  assert built == 1, ends
  folder = tmp_path / 'fundus_sim' / 'tiny'
  assert [p.name for p in folder.iterdir()] == ['2.2.0']
  assert not list(tmp_path.rglob('*incomplete*'))


def test_other_pictures_under_the_same_names_are_noticed(tmp_path, download):
  open_eyeq(tmp_path)
  path = download / 'train/10_left.jpeg'
  dummy.draw(path, 999)
  with pytest.raises(records.DataError, match='from other labels or photogr'):
    open_eyeq(tmp_path)


def test_records_outlive_their_photographs(tmp_path, download):
  open_eyeq(tmp_path)
  (download / 'train/10_left.jpeg').unlink()
  alone = 'no longer in .*: 10_left.*records alone.*leave out --config.data.man'
  with pytest.raises(records.DataError, match=alone) as caught:
    open_eyeq(tmp_path)
  assert 'delete' not in str(caught.value)
  shutil.rmtree(download)
  with pytest.raises(records.DataError, match=r'no folder.*records alone'):
    open_eyeq(tmp_path)
  assert len(open_eyeq(tmp_path, manual_dir='').table['image_id']) == 5


def test_unreadable_photographs_cost_no_work(tmp_path, download, monkeypatch):
  """All are named before the first is prepared."""
  prepared = []
  original = records.from_file
  monkeypatch.setattr(
    records,
    'from_file',
    lambda path, **more: prepared.append(path) or original(path, **more),
  )
  for name in ('train/11_left', 'test/12_left'):
    path = download / f'{name}.jpeg'
    path.write_bytes(path.read_bytes()[:2000])
  with pytest.raises(records.DataError, match=r'2 of 5 .*11_left.*12_left'):
    open_eyeq(tmp_path)
  assert not prepared
  assert len(open_eyeq(tmp_path, allow_missing=True).table['image_id']) == 3
  assert len(set(prepared)) == 3


def test_a_full_disk_is_told_before_it_is_full(tmp_path, download, monkeypatch):
  free = [100]
  monkeypatch.setattr(
    building.shutil, 'disk_usage', lambda _: type('', (), {'free': free[0]})
  )
  with pytest.raises(records.DataError, match=r'5 photographs.*0\.00 GB are'):
    open_eyeq(tmp_path)
  free[0] = 10**9
  assert len(open_eyeq(tmp_path).table['image_id']) == 5


def test_a_build_removes_what_a_killed_one_left(tmp_path, download):
  left = tmp_path / 'records/eyeq/512/incomplete.AB12CD_1.1.0'
  left.mkdir(parents=True)
  (left / 'eyeq-train.array_record-00000-of-00001').write_bytes(b'half')
  assert len(open_eyeq(tmp_path).table['image_id']) == 5
  assert not left.exists()


@pytest.mark.parametrize('damage', ['cut', 'flip', 'empty', 'other'])
def test_a_damaged_table_is_made_anew(tmp_path, download, damage):
  table = open_eyeq(tmp_path).table
  for path in (tmp_path / 'records').rglob('table-*.npz'):
    data = bytearray(path.read_bytes())
    if damage == 'cut':
      data = data[: len(data) // 2]
    elif damage == 'flip':
      data[200:260] = bytes(60)
    elif damage == 'empty':
      data = b''
    path.write_bytes(bytes(data))
    if damage == 'other':
      np.savez(path, image_id=np.zeros(2))
  again = open_eyeq(tmp_path).table
  assert again.keys() == table.keys()
  for key in table:
    np.testing.assert_array_equal(again[key], table[key])


def test_datasets_of_different_sizes_are_not_mixed(tmp_path, download):
  table = {'dataset': ['a', 'a', 'b'], 'size': [512, 512, 128]}
  table = {key: np.array(values) for key, values in table.items()}
  with pytest.raises(records.DataError, match='a 512 px, b 128 px'):
    source_lib.check_sizes(table)
  with pytest.raises(ValueError, match="'demo' is none of eyeq: 512, original"):
    open_eyeq(tmp_path, builder_config='demo')
  named = 'eyeq=original,fundus_sim=512'
  assert config_lib.of_dataset(named, 'eyeq') == 'original'
  assert config_lib.of_dataset(named, 'brset') == ''
  assert config_lib.of_dataset('/a=b/c', 'brset') == '/a=b/c'


def test_of_several_datasets_the_common_builder_config_is_meant(monkeypatch):
  built = {}

  def note(name, folder, kind, config):
    built[name] = folder, kind

  monkeypatch.setattr(source_lib, 'build', note)
  monkeypatch.setattr(source_lib, 'Source', lambda *_: None)
  config = config_lib.default()
  config.data.name = 'eyeq+fundus_sim'
  config.data.test_name = 'brset'
  config.data.manual_dir = 'eyeq=A,brset=B'
  source_lib.open_source(config)
  assert built == {
    'eyeq': ('A', '512'), 'fundus_sim': ('', '512'), 'brset': ('B', '512'),
  }  # fmt: skip
  built.clear()
  config.data.update({'name': 'fundus_sim', 'test_name': ''})
  source_lib.open_source(config)
  assert built == {'fundus_sim': ('', '')}


def write_own(folder, rows):
  with open(folder / 'labels.csv', 'w', newline='') as file:
    writer = csv.DictWriter(file, rows[0])
    writer.writeheader()
    writer.writerows(rows)


def own_of_eyeq(folder, found):
  """Writes EyeQ's entries as a label file of one's own."""
  write_own(
    folder,
    [
      {
        'path': entry.path.relative_to(folder),
        'subject': entry.metadata['patient_id'],
        'grade': labels.GRADES[entry.metadata['grade']],
        'eye': {'left': 'OS', 'right': 'OD'}[entry.metadata['eye']],
        'site': 'north' if split == 'train' else 'south',
        'split': split,
      }
      for split, entries in found.items()
      for entry in entries
    ],
  )


def test_your_own_labels_are_a_dataset_like_eyeq(tmp_path, download):
  """EyeQ's photographs, listed in a CSV, give the same records and splits."""
  own_of_eyeq(download, eyeq_labels.entries(download))
  published = open_eyeq(tmp_path).table
  source = open_eyeq(
    tmp_path, name='csv', csv={'patient': 'subject'}, image_size=64
  )
  table = source.table
  assert set(table['site']) == {'north', 'south'}
  names = [pathlib.Path(n).stem for n in table['image_id']]
  at = [names.index(n) for n in published['image_id']]
  for key in published.keys() - {'image_id', 'site', 'dataset'}:
    np.testing.assert_array_equal(table[key][at], published[key], err_msg=key)
  plan = plan_lib.plan_eval(np.arange(5))
  [batch] = pipeline.batches(source, plan, image_size=64, batch_size=5)
  assert batch['image'].shape == (5, 64, 64, 3)
  np.testing.assert_array_equal(batch['grade'], table['grade'])


def test_a_fingerprint_is_of_labels_and_files(tmp_path):
  def entry(path, grade):
    return records.Entry(path, {'image_id': 'a', 'grade': grade})

  files = {'a.jpeg': 1, 'b/a.jpeg': 1, 'c/a.jpeg': 2, 'a.png': 1}
  for name, size in files.items():
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(bytes(size))
  prints = {
    building.fingerprint({'train': [entry(path, grade)]})
    for path in (None, *(tmp_path / name for name in files))
    for grade in (0, 1)
  }
  # One that was moved is the same.
  assert len(prints) == 2 * (1 + len(files) - 1)
