"""Cached features are the features, and the images are left alone."""

import logging

import jax
import numpy as np
import pytest

from iqa_jax import config as config_lib
from iqa_jax import devices, machine, models
from iqa_jax.tasks import Task
from iqa_jax.training import feature_cache, phases
from iqa_jax.training import step as step_lib

SIZE = 32
SPLITS = {'train': np.arange(11), 'validation': np.arange(11, 16)}


@pytest.fixture(scope='module')
def network():
  model = models.create(
    'vgg16', 2, width=0.06, depth=0.1, head='mlp', axis_name=devices.AXIS
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


def for_phase(network, source, config, folder, prefixes, number, held=None):
  model, variables = network
  return feature_cache.for_phase(
    model,
    variables,
    source,
    config,
    prefixes,
    number,
    train=SPLITS['train'],
    validation=SPLITS['validation'],
    folder=folder,
    held=held,
  )


def build(network, memory, source, config, tmp_path, epochs=5):
  config.train.phases = (config_lib.phase(epochs=epochs),)
  return for_phase(network, source, config, tmp_path, ['block4_pool'], 0)[0]


def train(network, memory, source, config, cache, epochs=2):
  model, variables = network
  learning = phases.learning(
    config_lib.phase(learns='block5+head', optimizer='sgd'),
    variables['params'],
    model.points,
    steps_per_epoch=3,
  )
  state = step_lib.begin_phase(step_lib.create_state(variables), learning)
  state = devices.place(state)
  update = step_lib.make_train_step(
    model, Task(), learning, start=cache.prefix if cache else None
  )
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
    monkeypatch.setattr(machine, 'available_memory', lambda: 0)
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
  plan = memory.plan_eval(np.array([3, 18]))
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
  monkeypatch.setattr(memory, 'finite_views', lambda config: None)
  source = memory.Source(16)
  assert build(network, memory, source, make_config(), tmp_path) is None


def test_no_room_anywhere_is_no_failure(
  network, memory, tmp_path, monkeypatch, caplog
):
  caplog.set_level(logging.INFO)
  monkeypatch.setattr(machine, 'available_memory', lambda: 0)
  usage = feature_cache.shutil.disk_usage(tmp_path)._replace(free=0)
  monkeypatch.setattr(feature_cache.shutil, 'disk_usage', lambda _: usage)
  source = memory.Source(16)
  assert build(network, memory, source, make_config(), tmp_path) is None
  assert 'there is no room' in caplog.text


def phases_of(*epochs):
  return tuple(config_lib.phase(epochs=n) for n in epochs)


def test_phases_share_the_maps_of_the_earliest_prefix(
  network, memory, tmp_path
):
  source = memory.Source(16)
  config = make_config(phases=phases_of(4, 4, 4))
  prefixes = ['block5_pool', 'block4_pool', None]
  first, held = for_phase(network, source, config, tmp_path, prefixes, 0)
  assert (first.prefix, held.prefix) == ('block5_pool', 'block4_pool')
  reads = source.reads
  assert reads == 2 * 11 + 5
  second, held = for_phase(network, source, config, tmp_path, prefixes, 1, held)
  assert second is held
  assert source.reads == reads
  assert for_phase(network, source, config, tmp_path, prefixes, 2, held) == (
    None,
    None,
  )
  # Computed from the shared maps, they are what photographs give.
  config.train.phases = phases_of(4)
  alone, _ = for_phase(network, source, config, tmp_path, ['block5_pool'], 0)
  np.testing.assert_array_equal(alone.rows, first.rows)
  np.testing.assert_allclose(alone.maps, first.maps, rtol=1e-5, atol=1e-6)
  # A run that resumes in the second phase has the same bits.
  config.train.phases = phases_of(4, 4, 4)
  again, _ = for_phase(network, source, config, tmp_path, prefixes, 1)
  np.testing.assert_array_equal(again.maps, second.maps)


def test_a_short_phase_starts_from_the_shared_maps(network, memory, tmp_path):
  source = memory.Source(16)
  config = make_config(phases=phases_of(2, 4))
  cache, held = for_phase(
    network, source, config, tmp_path, ['block5_pool', 'block4_pool'], 0
  )
  assert cache is held
  assert cache.prefix == 'block4_pool'


def test_where_the_shared_maps_are_too_large_a_phase_has_its_own(
  network, memory, tmp_path
):
  source = memory.Source(16)
  # Room for 27 maps of 1x1x31, none for those of 2x2x31.
  config = make_config(phases=phases_of(4, 4), cache_gb=27 * 31 * 4 / 1e9)
  prefixes = ['block5_pool', 'block4_pool']
  cache, held = for_phase(network, source, config, tmp_path, prefixes, 0)
  assert cache.prefix == 'block5_pool'
  assert held is None
  assert for_phase(network, source, config, tmp_path, prefixes, 1)[0] is None


@pytest.mark.parametrize('start', ['block3_pool', 'block4', 'block4_pool'])
def test_training_from_any_frozen_point_is_training(
  network, memory, tmp_path, start
):
  source = memory.Source(16)
  config = make_config(phases=phases_of(4))
  cache, _ = for_phase(network, source, config, tmp_path, [start], 0)
  cached = train(network, memory, source, config, cache, epochs=1)
  plain = train(network, memory, source, config, None, epochs=1)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
    cached.params,
    plain.params,
  )


@pytest.mark.parametrize('head', ['linear', 'standardized'])
def test_a_head_that_averages_has_averages_cached(memory, tmp_path, head):
  """46 MB instead of 9 GB of the full EyeQ, and the same training."""
  model = models.create(
    'vgg16', 2, width=0.06, depth=0.1, head=head, axis_name=devices.AXIS
  )
  variables = models.init(model, jax.random.key(0), SIZE)
  network = model, jax.tree.map(np.asarray, variables)
  learning = phases.learning(
    config_lib.phase(learns='head'),
    variables['params'],
    model.stages,
    steps_per_epoch=3,
  )
  source, config = memory.Source(16), make_config()
  config.train.phases = (config_lib.phase(learns='head', epochs=5),)
  cache, _ = for_phase(network, source, config, tmp_path, [learning.prefix], 0)
  channels = network[1]['params']['head']['logits']['kernel'].shape[0]
  assert cache.maps.shape == (2 * 11 + 5, channels)
  plan = memory.plan_eval(np.arange(5))
  [batch] = memory.batches(source, plan, image_size=SIZE, batch_size=5)
  [cached] = cache.batches(source, plan, batch_size=5)
  maps = model.apply(
    network[1], models.normalize(batch['image']), stop=model.points[-1]
  )
  np.testing.assert_allclose(
    cached['features'], np.asarray(maps).mean((1, 2)), rtol=1e-5, atol=1e-6
  )


def test_the_full_eyeq_has_a_cache_in_its_own_config():
  """12,543 photographs for training, a fifth of them for validation."""
  config = config_lib.variant('eyeq_vgg16')
  model = models.from_config(config, 2)
  shapes = models.shapes(model, config.data.image_size)
  learning = phases.learning(
    config.train.phases[0],
    shapes['params'],
    model.stages,
    entries=model.entries,
    steps_per_epoch=1,
  )
  each = feature_cache.gigabytes(
    model, shapes, learning.prefix, config.data.image_size
  )
  count = 2 * 12_543 * 4 / 5 + 12_543 / 5
  assert count * each < config.train.cache_gb


def test_a_cache_over_budget_is_a_warning_with_the_remedy(
  network, memory, tmp_path, caplog
):
  config = make_config(cache_gb=1e-6)
  with caplog.at_level(logging.WARNING):
    assert build(network, memory, memory.Source(16), config, tmp_path) is None
  assert '--config.train.cache_gb=1 ' in caplog.text


def test_a_step_sees_a_part_of_the_cells():
  grid = np.arange(36.0).reshape(1, 6, 6, 1)
  batch = {'features': grid, 'fault': grid[..., 0], 'mask': np.ones(1)}
  seen = set()
  for step in range(20):
    thin = feature_cache.thinned(batch, 2, [0, step])
    assert thin['features'].shape == (1, 3, 3, 1)
    np.testing.assert_array_equal(thin['features'][..., 0], thin['fault'])
    again = feature_cache.thinned(batch, 2, [0, step])
    np.testing.assert_array_equal(thin['fault'], again['fault'])
    seen |= set(thin['fault'].ravel())
  assert len(seen) == 36
  whole = feature_cache.thinned(batch, 1, [0, 0])
  np.testing.assert_array_equal(whole['features'], grid)
