"""What is blamed for a step that is not finite is what caused it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iqa_jax import config as config_lib
from iqa_jax import models
from iqa_jax.tasks import Task
from iqa_jax.training import diagnosis, phases

SIZE = 32


@pytest.fixture(scope='module')
def network():
  model = models.create('resnet50', 2, width=0.06, depth=0.1, axis_name='batch')
  variables = models.init(model, jax.random.key(0), SIZE)
  learning = phases.learning(
    config_lib.phase(learns='all'),
    variables['params'],
    model.stages,
    steps_per_epoch=1,
  )
  return model, jax.tree.map(np.asarray, variables), learning


def make_batch(features=None):
  rng = np.random.default_rng(0)
  batch = {
    'mask': np.array([1, 1, 1, 0], np.float32),
    'image_id': np.array(['a', 'b', 'c', '']),
    'quality': np.array([0, 1, 0, 0]),
    'grade': np.full(4, -1),
    'criteria': np.full((4, 4), -1),
  }
  if features is None:
    batch['image'] = rng.integers(0, 256, (4, SIZE, SIZE, 3), dtype=np.uint8)
  else:
    batch['features'] = features
  return batch


def blame(network, batch, *, variables=None, task=None, start=None):
  model, own, learning = network
  return diagnosis.of_step(
    model, task or Task(), learning, variables or own, batch, start=start
  )


def changed(variables, path, value):
  flat = phases.flatten(variables)
  assert path in flat
  flat[path] = np.full_like(flat[path], value)
  return phases.unflatten(flat)


def test_a_parameter_that_was_not_finite_before(network):
  path = 'params/backbone/stage2/block0/conv1/kernel'
  broken = changed(network[1], path, np.nan)
  assert blame(network, make_batch(), variables=broken) == (
    f'{path} was not finite before it'
  )


def test_the_layer_where_it_begins(network):
  path = 'params/backbone/stage3/block0/norm1/scale'
  broken = changed(network[1], path, 3e38)
  told = blame(network, make_batch(), variables=broken)
  assert 'stage3' in told and 'every image' in told
  assert 'stage2' not in told and 'stage4' not in told


def test_only_a_photograph_that_gives_it_by_itself_is_named(network):
  model, variables, _ = network
  x = models.normalize(make_batch()['image'])
  features = np.asarray(model.apply(variables, x, stop='stage2')).copy()
  features[1] = 3e38  # finite, but no layer can take it
  told = blame(network, make_batch(features), start='stage2')
  assert told.endswith(' of b'), told


def test_padding_is_not_looked_at(network):
  model, variables, _ = network
  x = models.normalize(make_batch()['image'])
  features = np.asarray(model.apply(variables, x, stop='stage2')).copy()
  features[3] = np.nan
  assert 'neither the loss' in blame(
    network, make_batch(features), start='stage2'
  )


def test_a_gradient_is_named_by_its_parameter(network):
  class Steep(Task):
    """Finite everywhere; its slope is not where the logits are not 0."""

    def loss(self, logits, batch):
      @jax.custom_jvp
      def steep(x):
        return x

      steep.defjvp(lambda p, t: (p[0], t[0] * jnp.inf))
      return steep(logits[:, 0]), jnp.ones(len(logits))

  told = blame(network, make_batch(), task=Steep())
  assert 'gradient' in told and 'head/logits' in told
