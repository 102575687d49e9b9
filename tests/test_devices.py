"""pmap, and jit of shard_map: two ways that give the same."""

import functools
import os

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import pytest

from iqa_jax import config as config_lib
from iqa_jax import devices, errors, inference, models
from iqa_jax.explain import cam
from iqa_jax.tasks import Task
from iqa_jax.training import phases
from iqa_jax.training import step as step_lib

SIZE = 32


def both(run):
  """Returns what `run` returns made in each of the ways."""
  results = []
  for way in devices.WAYS:
    with devices.using(way=way):
      results.append(jax.tree.map(np.asarray, run()))
  return results


def assert_same(pair, tolerance=1e-6):
  jax.tree.map(
    functools.partial(
      np.testing.assert_allclose, rtol=tolerance, atol=tolerance
    ),
    *pair,
  )


@pytest.fixture(scope='module')
def photographs():
  return np.random.default_rng(0).integers(0, 256, (10, SIZE, SIZE, 3), 'u1')


@pytest.fixture(scope='module')
def network():
  model = models.create(
    'resnet50', 2, width=0.06, depth=0.1, axis_name=devices.AXIS
  )
  variables = models.init(model, jax.random.key(0), SIZE)
  return model, jax.tree.map(np.asarray, variables)


def test_a_training_step_is_the_same_both_ways(network, photographs):
  """10 examples on 4 devices: sums, statistics and gradients over all."""
  assert jax.local_device_count() == 4
  model, variables = network
  learning = phases.learning(
    config_lib.phase(optimizer='sgd', learning_rate=0.05),
    variables['params'],
    model.stages,
    steps_per_epoch=1,
  )
  batch = {
    'image': photographs,
    'mask': np.ones(10, np.float32),
    'index': np.arange(10),
    'quality': np.arange(10) % 2,
    'grade': np.full(10, -1),
    'criteria': np.full((10, 4), -1),
  }

  def run():
    state = step_lib.begin_phase(step_lib.create_state(variables), learning)
    state = devices.place(state)
    update = step_lib.make_train_step(model, Task(), learning)
    for _ in range(2):
      inputs = step_lib.for_step(batch, stop=True, accumulate=1)
      state, metrics = update(state, inputs)
    assert state.step.shape == ()
    return state.params, state.batch_stats, metrics

  pair = both(run)
  assert_same(pair)
  params, _, metrics = pair[1]
  assert metrics['stop'] == 4 and metrics['known'] == 10
  moved = jax.tree.map(lambda a, b: (a != b).any(), params, variables['params'])
  assert all(jax.tree.leaves(moved))


def test_predictions_are_the_same_both_ways(network, photographs):
  model, variables = network
  task = Task()
  batch = {
    'image': photographs,
    'mask': np.ones(10, np.float32),
    'index': np.arange(10),
    'image_id': np.arange(10).astype(str),
  }

  def run():
    predictor = inference.make_predictor(model, task, flip_tta=True)
    placed = devices.place(variables)
    rows = inference.predict_with(predictor, placed, task, [batch])
    return {key: rows[key] for key in ('logits', 'spread')}

  pair = both(run)
  assert pair[0]['logits'].shape == (10, 2)
  assert_same(pair)


def test_explanations_are_the_same_both_ways(network, photographs):
  model, variables = network
  task = Task()

  def step(variables, pixels):
    choose = functools.partial(cam.choose_targets, task, 'predicted')
    x = models.normalize(pixels)
    return cam.explain(model, variables, x, choose, task=task).maps

  def run():
    shares = devices.shard({'image': photographs, 'mask': np.ones(10)})
    explained = devices.parallel(step, in_axes=(None, 0))
    maps = explained(devices.place(variables), shares['image'])
    return devices.joined(maps, 10)

  pair = both(run)
  assert pair[0]['gradcam'].shape == (10, 1, 1)
  assert_same(pair)


def test_results_with_and_without_a_device_axis():
  def function(offset, x):
    total = lax.psum(x.sum(), devices.AXIS)
    return x + offset, total

  def run():
    made = devices.parallel(function, in_axes=(None, 0), out_axes=(0, None))
    return made(
      jnp.float32(1.0), np.arange(12.0, dtype=np.float32).reshape(4, 3)
    )

  for moved, total in both(run):
    np.testing.assert_array_equal(moved, np.arange(12.0).reshape(4, 3) + 1)
    assert total == 66


def test_a_way_that_does_not_exist_is_refused():
  with devices.using(way='vmap'), pytest.raises(errors.UserError, match='vmap'):
    devices.parallel(lambda x: x, in_axes=(0,))


def test_batches_divide_over_the_devices():
  assert devices.batch_size() == 8 * 4
  assert devices.batch_size(5) == 8
  assert [devices.pass_size(n) for n in (16, 64)] == [16, 8 * 4]


def test_a_folder_that_others_can_write_is_no_cache(tmp_path):
  folder = tmp_path / 'cache'
  folder.mkdir()
  os.chmod(folder, 0o777)
  with pytest.raises(errors.UserError, match='writable by others'):
    devices.use_compilation_cache(str(folder))
