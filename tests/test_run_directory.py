"""A run directory is read safely, whatever was done to it."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from iqa_jax import run_directory as rd

VARIABLES = {
  'params': {'head': {'kernel': np.arange(6, dtype=np.float32).reshape(2, 3)}},
  'batch_stats': {'backbone': {'stem': {'mean': np.ones(3, np.float32)}}},
}


def test_a_model_round_trips_and_replaces_the_one_before(tmp_path):
  rd.save_model(tmp_path, VARIABLES, {'step': 1})
  second = {'params': {'a': np.zeros(2, np.float32)}, 'batch_stats': {}}
  digest = rd.save_model(tmp_path, second, {'step': 2})
  rd.update_model_record(tmp_path, operating_point={'threshold': 0.3})
  loaded = rd.load_model(tmp_path)
  assert loaded.digest == digest
  assert loaded.record['step'] == 2
  assert loaded.record['operating_point'] == {'threshold': 0.3}
  np.testing.assert_array_equal(loaded.variables['params']['a'], [0, 0])
  assert len(list((tmp_path / 'model').iterdir())) == 2


@pytest.mark.parametrize('damage', ['cut', 'flip', 'gone', 'record', 'none'])
def test_a_damaged_model_is_named(tmp_path, damage):
  rd.save_model(tmp_path, VARIABLES, {})
  weights = next((tmp_path / 'model').glob('variables-*'))
  data = bytearray(weights.read_bytes())
  if damage == 'cut':
    weights.write_bytes(data[: len(data) // 2])
  elif damage == 'flip':
    data[-3] ^= 1
    weights.write_bytes(data)
  elif damage == 'gone':
    weights.unlink()
  elif damage == 'record':
    (tmp_path / 'model' / 'model.json').write_text('{"format": 1')
  else:
    assert rd.load_model(tmp_path).variables['params']['head']
    return
  with pytest.raises(rd.RunDirectoryError, match='model'):
    rd.load_model(tmp_path)


def test_a_record_cannot_point_outside_its_directory(tmp_path):
  rd.save_model(tmp_path / 'secret', VARIABLES, {})
  weights = next((tmp_path / 'secret' / 'model').glob('variables-*'))
  rd.save_model(tmp_path / 'run', VARIABLES, {})
  path = tmp_path / 'run' / 'model' / 'model.json'
  record = json.loads(path.read_text())
  path.write_text(json.dumps({**record, 'weights': f'../../{weights}'}))
  (tmp_path / 'run' / 'model' / weights.name).unlink()
  with pytest.raises(rd.RunDirectoryError):
    rd.load_model(tmp_path / 'run')


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path):
  path = tmp_path / 'metrics.json'
  rd.write_json(path, {'auc': 0.5})
  with pytest.raises(ValueError):
    rd.write_json(path, {'auc': float('nan')})
  assert rd.read_json(path) == {'auc': 0.5}
  assert os.listdir(tmp_path) == ['metrics.json']


def test_a_second_process_is_refused_until_the_first_has_ended(tmp_path):
  code = (
    'import sys\nfrom iqa_jax import run_directory as rd\n'
    'with rd.lock(sys.argv[1]):\n  print("held", flush=True)\n  input()\n'
  )
  with subprocess.Popen(
    [sys.executable, '-c', code, str(tmp_path)],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
    cwd=pathlib.Path(__file__).parents[1],
  ) as holder:
    assert holder.stdout is not None
    assert holder.stdout.readline() == 'held\n'
    with pytest.raises(rd.RunDirectoryError, match=f'process {holder.pid}'):
      with rd.lock(tmp_path):
        pass
    holder.kill()
  with rd.lock(tmp_path):
    pass
