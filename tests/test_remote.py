"""Run directories in a bucket in memory, and what has to be local."""

import fsspec
import numpy as np
import pytest

from iqa_jax import config as config_lib
from iqa_jax import errors, job, remote
from iqa_jax import run_directory as rd

URL = 'memory://bucket/run'


@pytest.fixture
def bucket():
  """The files of the memory, by path below bucket/run."""
  files = fsspec.filesystem('memory')

  class Bucket(dict):
    def refresh(self):
      self.clear()
      for path in files.find('/bucket/run'):
        self[path.removeprefix('/bucket/run/')] = files.cat_file(path)
      return self

  yield Bucket
  files.rm('/bucket', recursive=True)


@pytest.mark.parametrize(
  ('place', 'expected'),
  [
    ('gs://b/run', True),
    ('s3://b', True),
    # What pathlib makes of one.
    ('gs:/b/run', True),
    ('/home/a', False),
    ('runs/a:b', False),
    ('', False),
  ],
)
def test_urls_are_told_from_paths(place, expected):
  assert remote.is_remote(place) == expected


def test_what_changes_in_the_folder_changes_in_the_bucket(bucket):
  with remote.mirror(URL) as (folder, push):
    assert folder.name == 'run'
    assert list(folder.iterdir()) == []
    (folder / 'checkpoints' / '1').mkdir(parents=True)
    (folder / 'checkpoints' / '1' / 'state').write_text('one')
    (folder / 'history.csv').write_text('a')
    (folder / '.tmp-half').write_text('half of a file')
    push()
    assert bucket().refresh() == {
      'checkpoints/1/state': b'one',
      'history.csv': b'a',
    }
  with remote.mirror(URL) as (folder, push):
    assert (folder / 'history.csv').read_text() == 'a'
    (folder / 'checkpoints' / '1' / 'state').unlink()
    (folder / 'checkpoints' / '2').write_text('two')
    (folder / 'history.csv').write_text('ab')
  assert bucket().refresh() == {'checkpoints/2': b'two', 'history.csv': b'ab'}
  with remote.mirror(URL, leave_out=('checkpoints',)) as (folder, _):
    assert [p.name for p in folder.iterdir()] == ['history.csv']
  # What was not asked for is left alone.
  assert len(bucket().refresh()) == 2


def test_an_error_does_not_lose_what_was_done(bucket):
  with pytest.raises(ZeroDivisionError):
    with remote.mirror(URL) as (folder, _):
      (folder / 'history.csv').write_text('a')
      1 / 0  # noqa: B018
  assert bucket().refresh() == {'history.csv': b'a'}


def test_a_checkpoint_never_comes_before_its_model(bucket, monkeypatch):
  """Killed in between, the model may be newer than that, and not older."""
  files = type(fsspec.filesystem('memory'))
  order = []
  write = files.pipe_file

  def note(self, path, *args, **kwargs):
    order.append(path.removeprefix('/bucket/run/'))
    return write(self, path, *args, **kwargs)

  monkeypatch.setattr(files, 'pipe_file', note)
  with remote.mirror(URL) as (folder, _):
    for name in ('checkpoints/9/state', 'model/model.json', 'model/v.bin'):
      (folder / name).parent.mkdir(parents=True, exist_ok=True)
      (folder / name).write_text(name)
  assert order == ['model/v.bin', 'model/model.json', 'checkpoints/9/state']


def test_a_model_is_read_from_a_bucket(bucket):
  variables = {'params': {'a': np.arange(3, dtype=np.float32)}}
  with remote.mirror(URL) as (folder, _):
    digest = rd.save_model(folder, variables, {'step': 7})
    rd.write_text(folder / 'config.json', '{}')
  saved = rd.load_model(URL)
  assert (saved.digest, saved.record['step']) == (digest, 7)
  np.testing.assert_array_equal(saved.variables['params']['a'], [0, 1, 2])
  assert rd.read_config(URL) == '{}'
  with pytest.raises(rd.RunDirectoryError, match='no trained model'):
    rd.load_model(f'{URL}/elsewhere')


def test_a_process_that_has_no_part_in_it_gets_an_empty_folder(bucket):
  with remote.mirror(URL) as (folder, _):
    (folder / 'a').write_text('a')
  with remote.mirror(URL, active=False) as (folder, push):
    assert list(folder.iterdir()) == []
    (folder / 'b').write_text('b')
    push()
  assert list(bucket().refresh()) == ['a']


@pytest.mark.parametrize('url', ['nowhere://bucket/run', 'https://x/run'])
def test_what_cannot_be_reached_is_one_line(url, monkeypatch):
  def absent(*_, **__):
    raise ImportError('install x')

  if url.startswith('https'):
    monkeypatch.setattr(fsspec, 'url_to_fs', absent)
  with pytest.raises(errors.UserError, match=url) as refused:
    with remote.mirror(url):
      pass
  assert '\n' not in str(refused.value)


@pytest.mark.parametrize(
  'field', ['data.data_dir', 'data.manual_dir', 'data.test_manual_dir']
)
def test_data_have_to_be_local(tmp_path, field):
  config = config_lib.default()
  config.update_from_flattened_dict({field: 'gs://bucket/data'})
  with pytest.raises(errors.InvalidValue, match=f'{field}=gs://bucket/data'):
    job.run(config, str(tmp_path / 'run'))
  assert not (tmp_path / 'run').exists()


def test_a_cache_of_programs_has_to_be_local(tmp_path):
  with pytest.raises(errors.InvalidValue, match='compilation_cache=s3://b'):
    job.run(
      config_lib.default(), str(tmp_path / 'run'), compilation_cache='s3://b'
    )


def test_files_are_not_written_into_a_folder_named_as_a_bucket(
  tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(errors.InvalidValue, match='is remote'):
    rd.write_text('gs://bucket/metrics.json', '{}')
  assert list(tmp_path.iterdir()) == []
