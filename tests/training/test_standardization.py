"""The scale of a standardized head, with the cache's maps and without."""

import jax
import numpy as np
import pytest

from iqa_jax import config as config_lib
from iqa_jax import devices, models, trained
from iqa_jax.training import feature_cache, loop, standardization
from iqa_jax.training import run as run_lib

SIZE, TRAIN = 32, np.arange(11)


@pytest.fixture(scope='module')
def network():
  model = models.create(
    *('vgg16', 2),
    **{'width': 0.06, 'depth': 0.1, 'head': 'standardized'},
    axis_name=devices.AXIS,
  )
  variables = models.init(model, jax.random.key(0), SIZE)
  return model, jax.tree.map(np.asarray, variables)


def make_config():
  config = config_lib.default()
  config.data.image_size = SIZE
  config.train.batch_size, config.eval.batch_size = 4, 6
  return config


@pytest.mark.parametrize('prefix', [None, 'block4_pool', 'block5_pool'])
def test_mean_and_variance_of_the_training_split(
  network, memory, tmp_path, prefix
):
  """Against all of it at once, from photographs and from any cached point."""
  model, variables = network
  source = memory.Source(16)
  config = make_config()
  cache = None
  if prefix:
    config.train.phases = (config_lib.phase(epochs=9),)
    cache, _ = feature_cache.for_phase(
      *(model, variables, source, config, [prefix], 0),
      train=TRAIN,
      validation=np.arange(11, 16),
      folder=tmp_path,
    )
  before = source.reads
  fitted = standardization.fit(
    model, variables, source, np.repeat(TRAIN, 2), config, cache
  )
  assert source.reads - before == (0 if prefix else len(TRAIN))
  images = np.stack([source.image(i, SIZE) for i in TRAIN])
  maps = model.apply(variables, models.normalize(images), stop=model.points[-1])
  features = np.asarray(maps, np.float64).mean((1, 2))
  head = fitted['batch_stats']['head']
  np.testing.assert_allclose(head['mean'], features.mean(0), rtol=1e-5)
  variance = features.var(0)
  np.testing.assert_allclose(
    head['var'], np.where(variance > 1e-8, variance, 1), rtol=1e-3, atol=1e-8
  )
  assert (variance > 1e-8).sum() > 5
  # It is measured once.
  again = standardization.fit(model, fitted, None, TRAIN, config, None)
  assert again is fitted


def test_a_run_with_a_cache_sends_each_view_through_the_trunk_once(
  memory, tmp_path
):
  config = make_config()
  config.model.update(name='vgg16', width=0.06, depth=0.1, head='standardized')
  config.train.phases = (config_lib.phase(learns='head', epochs=4),)
  source = memory.Source(16)
  splits = memory.split(16, 5)
  loop.train(config, tmp_path, source, splits)
  assert source.reads == 2 * 11 + 5
  loaded = trained.load(tmp_path)
  start = loaded.variables['params']
  fresh = run_lib.Run(config, tmp_path, source, splits).initial_variables()
  expected = standardization.fit(
    loaded.model, {**fresh, 'params': start}, source, TRAIN, config
  )
  assert np.any(expected['batch_stats']['head']['mean'])
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7),
    loaded.variables['batch_stats'],
    expected['batch_stats'],
  )
