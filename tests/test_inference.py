"""Predictions of a saved model: every image once, on any number of devices."""

import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from iqa_jax import config as config_lib
from iqa_jax import inference, models, run_directory, trained

SIZE = 32


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  folder = tmp_path_factory.mktemp('run')
  config = config_lib.default()
  config.data.image_size = SIZE
  config.model.width, config.model.depth = 0.06, 0.1
  model = models.from_config(config, 2)
  variables = models.init(model, jax.random.key(0), SIZE)
  run_directory.save_model(
    folder,
    jax.tree.map(np.asarray, variables),
    {
      'config': json.loads(config_lib.to_json(config)),
      'outputs': ['adequate', 'inadequate'],
      'image_size': SIZE,
    },
  )
  return folder


@pytest.fixture(scope='module')
def photographs():
  rng = np.random.default_rng(0)
  return rng.integers(0, 256, (11, SIZE, SIZE, 3), dtype=np.uint8)


def batches(images, size):
  for first in range(0, len(images), size):
    part = images[first : first + size]
    extra = size - len(part)
    yield {
      'image': np.concatenate([part, np.zeros((extra, *part.shape[1:]), 'u1')]),
      'mask': np.array([1.0] * len(part) + [0.0] * extra, np.float32),
      'index': np.arange(first, first + size),
      'image_id': np.array([f'photograph {i}' for i in range(size)]),
    }


def reference(loaded, images):
  return np.asarray(
    loaded.model.apply(
      jax.tree.map(np.asarray, loaded.variables), models.normalize(images)
    )
  )


@pytest.mark.parametrize('size', [3, 4, 16])
def test_every_image_once_in_order(workdir, photographs, size):
  loaded = trained.load(workdir)
  rows = inference.predict(loaded, batches(photographs, size))
  assert rows['index'].tolist() == list(range(11))
  assert rows['image_id'][1] == 'photograph 1'
  expected = reference(loaded, photographs)
  np.testing.assert_allclose(rows['logits'], expected, rtol=1e-4, atol=1e-5)
  odds = expected[:, 1] - expected[:, 0]
  np.testing.assert_allclose(
    rows['p_inadequate'], 1 / (1 + np.exp(-odds)), rtol=1e-4
  )
  assert (rows['spread'] == 0).all()


def test_mirror_images_are_averaged_in(workdir, photographs):
  loaded = trained.load(workdir)
  rows = inference.predict(loaded, batches(photographs, 4), flip_tta=True)
  views = [
    reference(loaded, view) for view in (photographs, photographs[:, :, ::-1])
  ]
  np.testing.assert_allclose(
    rows['logits'], np.mean(views, axis=0), rtol=1e-4, atol=1e-5
  )
  p = [np.asarray(loaded.task.p_inadequate(view)) for view in views]
  np.testing.assert_allclose(rows['spread'], np.std(p, axis=0), atol=1e-5)
  assert (rows['spread'] > 0).any()


def test_views_are_those_of_the_operating_point(workdir, photographs, tmp_path):
  point = {'operating_point': {'threshold': 0.5, 'flip_tta': True}}
  copy_with(workdir, tmp_path, **point)
  loaded = trained.load(tmp_path)
  told = inference.predict(loaded, batches(photographs, 4), flip_tta=True)
  rows = inference.predict(loaded, batches(photographs, 4))
  np.testing.assert_array_equal(rows['logits'], told['logits'])
  one = inference.predict(loaded, batches(photographs, 4), flip_tta=False)
  assert not np.allclose(one['logits'], told['logits'])


def test_the_last_maps_give_the_same_logits(workdir, photographs):
  loaded = trained.load(workdir)
  maps = loaded.model.apply(
    jax.tree.map(np.asarray, loaded.variables),
    models.normalize(photographs),
    stop='stage3',
  )
  predictor = inference.make_predictor(
    loaded.model, loaded.task, start='stage3'
  )
  [batch] = batches(photographs, 11)
  batch['features'] = np.asarray(maps)
  rows = inference.predict_with(
    predictor, loaded.variables, loaded.task, [batch]
  )
  np.testing.assert_allclose(
    rows['logits'], reference(loaded, photographs), rtol=1e-4, atol=1e-5
  )


def test_nothing_to_predict_is_an_error(workdir):
  with pytest.raises(ValueError, match='nothing to predict'):
    inference.predict(trained.load(workdir), [])


def copy_with(workdir, target, **fields):
  saved = run_directory.load_model(workdir)
  run_directory.save_model(target, saved.variables, {**saved.record, **fields})


def test_a_record_of_another_model_names_the_tensor(workdir, tmp_path):
  record = run_directory.load_model(workdir).record
  record['config']['model']['head'] = 'mlp'
  copy_with(workdir, tmp_path, config=record['config'])
  with pytest.raises(run_directory.RunDirectoryError, match='params/head/hid'):
    trained.load(tmp_path)


@pytest.mark.parametrize(
  'fields',
  [
    {'config': {'nonsense': 1}},
    {'config': 3},
    {'image_size': 'large'},
    {'config': {'model': {'name': 'resnet51'}}},
    {'config': {'task': {'name': 'taste'}}},
  ],
)
def test_a_record_that_makes_no_sense_is_named(workdir, tmp_path, fields):
  copy_with(workdir, tmp_path, **fields)
  with pytest.raises(
    run_directory.RunDirectoryError, match='does not describe a model'
  ):
    trained.load(tmp_path)


def test_tensorflow_and_orbax_stay_out():
  """They take seconds to import, which every export would pay for."""
  code = (
    'import sys, iqa_jax.inference;'
    'print(sorted({"tensorflow", "orbax", "tensorflow_datasets"} &'
    ' set(sys.modules)))'
  )
  found = subprocess.run(
    [sys.executable, '-c', code],
    capture_output=True,
    text=True,
    check=True,
    cwd=pathlib.Path(__file__).parent.parent,
  )
  assert found.stdout.strip() == '[]'
