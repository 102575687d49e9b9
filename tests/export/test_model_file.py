"""One file of a model, read by others: ONNX Runtime, and jax.export."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iqa_jax import config as config_lib
from iqa_jax import errors, models, run_directory, trained
from iqa_jax.export import model_file
from iqa_jax.judging import calibration
from iqa_jax.tasks import Task

SIZE = 48
CASES = [
  ('resnet50', 'linear', 'quality', 'none'),
  ('resnet50', 'landmarks', 'criteria', 'platt'),
  ('resnet50', 'evidence', 'criteria', 'none'),
  ('resnet50', 'standardized', 'quality', 'temperature'),
  ('vgg16', 'linear', 'grade', 'none'),
  ('vgg16', 'mlp', 'quality', 'isotonic'),
  ('vgg16', 'evidence', 'quality', 'platt'),
]
CALIBRATIONS = {
  'none': {'method': 'none'},
  'temperature': {'method': 'temperature', 'temperature': 1.7},
  'platt': {'method': 'platt', 'scale': 0.8, 'offset': -0.3},
  'isotonic': {
    'method': 'isotonic', 'x': [0.1, 0.4, 0.6, 0.9], 'y': [0.05, 0.3, 0.3, 1.0],
  },
}  # fmt: skip


def make(folder, network, head, task, calibrated, flip=False):
  config = config_lib.default()
  config.data.image_size = SIZE
  config.task.name = task
  config.model.name, config.model.head = network, head
  config.model.width, config.model.depth = 0.1, 0.3
  config.model.cells, config.model.cell_units = 4, 5
  config.model.cell_spread = (0.0, 0.8)
  config.model.detail = head == 'evidence' and network == 'vgg16'
  outputs = Task(name=task).outputs
  model = models.from_config(config, len(outputs))
  variables = models.init(model, jax.random.key(1), SIZE)
  record = {
    'config': json.loads(config_lib.to_json(config)),
    'outputs': list(outputs),
    'image_size': SIZE,
    'calibration': CALIBRATIONS[calibrated],
    'operating_point': {'threshold': 0.3, 'flip_tta': flip},
  }
  return run_directory.save_model(
    folder, jax.tree.map(np.asarray, variables), record
  )


def photographs(channels, count=3):
  rng = np.random.default_rng(0)
  return rng.integers(0, 256, (count, SIZE, SIZE, channels), dtype=np.uint8)


def assert_close(found, expected, tolerance=1e-5):
  for name, a, b in zip(model_file.OUTPUTS, found, expected, strict=True):
    assert a.shape == b.shape, name
    b = np.asarray(b)
    np.testing.assert_allclose(
      a, b, rtol=0, atol=tolerance * np.abs(b).max(), err_msg=name
    )


@pytest.mark.parametrize(('network', 'head', 'task', 'calibrated'), CASES)
def test_onnx_runtime_says_what_jax_says(
  network, head, task, calibrated, tmp_path
):
  pytest.importorskip('onnx', reason='the extra `onnx` is not installed')
  runtime = pytest.importorskip('onnxruntime', reason='likewise')
  flip = calibrated == 'temperature'
  digest = make(tmp_path, network, head, task, calibrated, flip)
  file = tmp_path / 'model.onnx'
  about = model_file.save(tmp_path, file, 'onnx')
  session = runtime.InferenceSession(file)
  (entry,) = session.get_inputs()
  assert entry.name == model_file.INPUT and entry.type == 'tensor(uint8)'
  assert entry.shape == ['batch', SIZE, SIZE, about['channels']]
  kept = session.get_modelmeta().custom_metadata_map
  assert kept['checkpoint_sha256'] == digest
  assert json.loads(kept['outputs']) == list(Task(name=task).outputs)
  assert json.loads(kept['operating_point']) == 0.3

  model = trained.load(tmp_path)
  function = jax.jit(model_file.program(model))
  for count in (3, 1):
    images = photographs(about['channels'], count)
    found = session.run(list(model_file.OUTPUTS), {entry.name: images})
    expected = function(images)
    assert_close(found, expected)
    np.testing.assert_allclose(
      found[2], model.p_inadequate(np.asarray(expected[0])), rtol=1e-4
    )
    assert found[3].any()


def test_a_stablehlo_file_is_for_every_platform(tmp_path):
  make(tmp_path, 'resnet50', 'linear', 'quality', 'platt')
  file = tmp_path / 'model.stablehlo'
  model_file.save(tmp_path, file, 'stablehlo')
  back = jax.export.deserialize(bytearray(file.read_bytes()))
  assert back.platforms == ('cpu', 'cuda', 'tpu')
  images = photographs(3)
  function = jax.jit(model_file.program(trained.load(tmp_path)))
  assert_close(back.call(images), function(images))
  about = json.loads((tmp_path / 'model.stablehlo.json').read_text())
  assert about['results'] == list(model_file.OUTPUTS)
  assert about['outputs'] == ['adequate', 'inadequate']


@pytest.mark.parametrize('method', CALIBRATIONS)
def test_calibration_is_that_of_the_record(method):
  p = np.linspace(0, 1, 41).astype(np.float32)
  record = CALIBRATIONS[method]
  found = model_file.calibrated(record, jnp.asarray(p))
  np.testing.assert_allclose(
    found, calibration.apply(record, p), rtol=1e-5, atol=1e-6
  )


def test_what_can_not_be_translated_is_one_line(tmp_path):
  pytest.importorskip('onnx', reason='the extra `onnx` is not installed')
  make(tmp_path, 'resnet50', 'linear', 'quality', 'none')
  with pytest.raises(errors.UserError, match='nearer to the output'):
    model_file.save(tmp_path, tmp_path / 'm', 'onnx', layer='stage3')
  with pytest.raises(errors.UserError, match='none of predicted'):
    model_file.save(tmp_path, tmp_path / 'm', 'onnx', target='cat')
