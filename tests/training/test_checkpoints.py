"""States on disk: what comes back, and what happens to damaged ones."""

import gc
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iqa_jax import run_directory
from iqa_jax.training import checkpoints

# Orbax leaves coroutines behind when it fails to read an array.
pytestmark = pytest.mark.filterwarnings(
  'ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning',
  'ignore:coroutine .* was never awaited:RuntimeWarning',
)


@pytest.fixture(autouse=True)
def leftovers_end_with_their_test():
  yield
  gc.collect()


def state(number):
  return {
    'a/b': jnp.arange(1000.0).reshape(10, 100) + number,
    'c': (jnp.int32(number), {'d.e': jnp.zeros(3, bool)}),
  }


def save(workdir, *numbers):
  with checkpoints.Store(workdir) as store:
    for number in numbers:
      store.save(state(number), {'number': number, 'list': [1.5, None]})


def restore(workdir):
  with checkpoints.Store(workdir) as store:
    return store.restore(lambda record: state(0))


def same(found, number):
  jax.tree.map(np.testing.assert_array_equal, found[0], state(number))
  assert found[1] == {'number': number, 'list': [1.5, None]}


def test_the_latest_two_are_kept(tmp_path):
  assert restore(tmp_path) is None
  save(tmp_path, 1, 2, 3)
  assert len(list((tmp_path / 'checkpoints').iterdir())) == 2
  same(restore(tmp_path), 3)
  # Numbers go on in the next process.
  save(tmp_path, 4)
  same(restore(tmp_path), 4)


def array_files(folder: pathlib.Path) -> list[pathlib.Path]:
  found = [p for p in (folder / 'state').rglob('d/*') if p.is_file()]
  assert found
  return found


def flip_bits(folder):
  for path in array_files(folder):
    data = bytearray(path.read_bytes())
    for at in range(0, len(data), 50):
      data[at] ^= 16
    path.write_bytes(bytes(data))


def cut_short(folder):
  for path in array_files(folder):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty_record(folder):
  for path in (folder / 'record').iterdir():
    path.write_bytes(b'')


def lose_a_part(folder):
  (folder / 'state' / 'manifest.ocdbt').unlink()


@pytest.mark.parametrize(
  'damage', [flip_bits, cut_short, empty_record, lose_a_part]
)
def test_a_damaged_checkpoint_is_named_and_passed_over(
  tmp_path, damage, caplog
):
  save(tmp_path, 1, 2)
  damage(tmp_path / 'checkpoints' / '1')
  same(restore(tmp_path), 1)
  assert f'{tmp_path}/checkpoints/1 is damaged' in caplog.text
  assert 'the one before it is used' in caplog.text
  # What is saved next is newer than the damaged one.
  save(tmp_path, 7)
  same(restore(tmp_path), 7)


def test_a_digest_sees_what_orbax_does_not(tmp_path, monkeypatch):
  save(tmp_path, 1)
  with monkeypatch.context() as m:
    # Other values under the old digest.
    m.setattr(checkpoints, '_digest', lambda arrays: 17)
    save(tmp_path, 2)
  same(restore(tmp_path), 1)


def test_no_intact_checkpoint_is_an_error_not_a_new_start(tmp_path):
  save(tmp_path, 1, 2)
  for number in ('0', '1'):
    flip_bits(tmp_path / 'checkpoints' / number)
  with pytest.raises(run_directory.RunDirectoryError, match='delete that fold'):
    restore(tmp_path)


def test_a_half_written_checkpoint_is_no_checkpoint(tmp_path):
  save(tmp_path, 1, 2)
  folder = tmp_path / 'checkpoints'
  os.rename(folder / '1', folder / '1.orbax-checkpoint-tmp')
  same(restore(tmp_path), 1)


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
  (tmp_path / 'checkpoints').write_text('a file is in the way')
  with pytest.raises(run_directory.RunDirectoryError, match='cannot be opened'):
    checkpoints.Store(tmp_path)


def test_a_failed_save_is_told_and_the_one_before_is_left(
  tmp_path, monkeypatch
):
  save(tmp_path, 1)

  def full(*args, **kwargs):
    raise OSError(28, 'No space left on device')

  with pytest.raises(run_directory.RunDirectoryError, match='No space left'):
    with checkpoints.Store(tmp_path) as store:
      monkeypatch.setattr(store._manager, 'save', full)
      store.save(state(2), {})
  same(restore(tmp_path), 1)
