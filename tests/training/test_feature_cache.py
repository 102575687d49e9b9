"""Cached features are the features, and the images are left alone."""

import logging

import jax
import numpy as np
import pytest

from iqa_jax import config as config_lib
from iqa_jax import models
from iqa_jax.tasks import Task
from iqa_jax.training import feature_cache, phases
from iqa_jax.training import step as step_lib

SIZE = 32
SPLITS = {'train': np.arange(11), 'validation': np.arange(11, 16)}


@pytest.fixture(scope='module')
def network():
  model = models.create(
    'vgg16', 2, width=0.06, depth=0.1, head='mlp', axis_name=step_lib.AXIS
  )
  variables = models.init(model, jax.random.key(0), SIZE)
  return model, jax.tree.map(np.asarray, variables)


def make_config(**train):
  config = config_lib.default()
  config.data.image_size = SIZE
  config.train.batch_size, config.eval.batch_size = 4, 6
  for key, value in train.items():
    config.train[key] = value
  return config


def build(network, memory, source, config, tmp_path, epochs=5):
  model, variables = network
  return feature_cache.build(
    model,
    variables,
    'block4_pool',
    source,
    config,
    train=SPLITS['train'],
    validation=SPLITS['validation'],
    epochs=epochs,
    folder=tmp_path,
  )


def train(network, memory, source, config, cache, epochs=2):
  model, variables = network
  learning = phases.learning(
    config_lib.phase(learns='block5+head', optimizer='sgd'),
    variables['params'],
    model.points,
    steps_per_epoch=3,
  )
  state = step_lib.begin_phase(step_lib.create_state(variables), learning)
  state = step_lib.place(state)
  update = step_lib.make_train_step(model, Task(), learning)
  for epoch in range(epochs):
    plan = memory.plan_train(source, SPLITS['train'], config, epoch)
    if cache is None:
      batches = memory.batches(source, plan, image_size=SIZE, batch_size=4)
    else:
      batches = cache.batches(source, plan, batch_size=4)
    for batch in batches:
      inputs = step_lib.for_step(batch, stop=False, accumulate=1)
      state, _ = update(state, inputs)
  return state


@pytest.mark.parametrize('in_file', [False, True])
def test_cached_training_is_training(
  network, memory, tmp_path, monkeypatch, in_file
):
  source = memory.Source(16)
  config = make_config()
  if in_file:
    monkeypatch.setattr(feature_cache, '_free_memory', lambda: 0)
  cache = build(network, memory, source, config, tmp_path)
  assert isinstance(cache.maps, np.memmap) == in_file
  assert not list(tmp_path.iterdir())
  # Each example in both views, validation in one.
  assert source.reads == 2 * 11 + 5
  cached = train(network, memory, source, config, cache)
  assert source.reads == 2 * 11 + 5
  plain = train(network, memory, source, config, None)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
    cached.params,
    plain.params,
  )
  assert float(cached.loss_sum) == pytest.approx(float(plain.loss_sum))


def test_batches_are_those_of_the_pipeline(network, memory, tmp_path):
  source = memory.Source(16)
  config = make_config()
  cache = build(network, memory, source, config, tmp_path)
  plan = memory.plan_train(source, SPLITS['train'], config, 3)
  ours = list(cache.batches(source, plan, batch_size=4, start_batch=1))
  theirs = list(
    memory.batches(source, plan, image_size=SIZE, batch_size=4, start_batch=1)
  )
  assert len(ours) == len(theirs) == 2
  for a, b in zip(ours, theirs, strict=True):
    assert set(a) - {'features'} == set(b) - {'image'}
    real = b['mask'] > 0
    for key in set(a) - {'features'}:
      np.testing.assert_array_equal(a[key][real], b[key][real], err_msg=key)
    np.testing.assert_array_equal(a['mask'], b['mask'])


def test_what_was_not_cached_is_an_error(network, memory, tmp_path):
  source = memory.Source(20)
  cache = build(network, memory, source, make_config(), tmp_path)
  plan = memory.plan_eval(source, np.array([3, 18]))
  with pytest.raises(KeyError, match='example 18'):
    list(cache.batches(source, plan, batch_size=4))


@pytest.mark.parametrize(
  ('change', 'epochs', 'reason'),
  [
    ({'cache_gb': 0.0}, 5, 'cache_gb is 0'),
    ({'cache_gb': 1e-6}, 5, 'over the budget'),
    ({}, 2, 'hardly more than once'),
  ],
)
def test_without_a_cache_the_log_says_why(
  network, memory, tmp_path, caplog, change, epochs, reason
):
  caplog.set_level(logging.INFO)
  source = memory.Source(16)
  config = make_config(**change)
  assert build(network, memory, source, config, tmp_path, epochs) is None
  assert reason in caplog.text
  assert source.reads == 0


def test_endless_augmentation_is_not_cached(
  network, memory, tmp_path, monkeypatch
):
  monkeypatch.setattr(memory, 'finite_augmentations', lambda config: None)
  source = memory.Source(16)
  assert build(network, memory, source, make_config(), tmp_path) is None


def test_no_room_anywhere_is_no_failure(
  network, memory, tmp_path, monkeypatch, caplog
):
  caplog.set_level(logging.INFO)
  monkeypatch.setattr(feature_cache, '_free_memory', lambda: 0)
  usage = feature_cache.shutil.disk_usage(tmp_path)._replace(free=0)
  monkeypatch.setattr(feature_cache.shutil, 'disk_usage', lambda _: usage)
  source = memory.Source(16)
  assert build(network, memory, source, make_config(), tmp_path) is None
  assert 'there is no room' in caplog.text
