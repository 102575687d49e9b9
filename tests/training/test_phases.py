"""Which parameters learn, how fast, and what is kept between phases."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from iqa_jax import config as config_lib
from iqa_jax import models
from iqa_jax.training import phases


@pytest.fixture(scope='module')
def networks():
  made = {}
  for name in ('resnet50', 'vgg16'):
    model = models.create(name, 2, width=0.05, depth=0.1)
    made[name] = model, models.init(model, jax.random.key(0), 32)['params']
  return made


def learning(network, steps_per_epoch=4, clip_norm=0.0, **changes):
  model, params = network
  return phases.learning(
    config_lib.phase(**changes),
    params,
    model.points,
    steps_per_epoch=steps_per_epoch,
    clip_norm=clip_norm,
  )


@pytest.mark.parametrize(
  ('name', 'learns', 'parts', 'prefix'),
  [
    ('resnet50', 'head', ('head',), 'stage4'),
    ('resnet50', 'stage4+head', ('stage4', 'head'), 'stage3'),
    ('resnet50', 'stem', ('stem',), None),
    ('vgg16', 'head', ('head',), 'block5_pool'),
    ('vgg16', 'head+block5', ('block5', 'head'), 'block4_pool'),
    ('vgg16', 'backbone/block[45]/.*', ('block4', 'block5'), 'block3_pool'),
  ],
)
def test_learns_names_parts_and_the_frozen_prefix(
  networks, name, learns, parts, prefix
):
  found = learning(networks[name], learns=learns)
  assert found.parts == parts
  assert found.prefix == prefix
  flat = phases.flatten(networks[name][1])
  owners = {p.split('/')[1] if '/' in p[:9] else p for p in flat}
  assert set(parts) - {'head'} <= owners
  assert {p for p in found.paths if p.startswith('head')} == (
    {p for p in flat if p.startswith('head')} if 'head' in parts else set()
  )


def test_all_and_backbone_cover_everything(networks):
  model, params = networks['resnet50']
  flat = set(phases.flatten(params))
  assert learning((model, params), learns='all').paths == flat
  backbone = learning((model, params), learns='backbone').paths
  assert backbone == {p for p in flat if p.startswith('backbone/')}


def test_a_pattern_that_matches_nothing_lists_what_there_is(networks):
  with pytest.raises(ValueError, match=r'block5.*stem, stage1.*head'):
    learning(networks['resnet50'], learns='block5+head')
  with pytest.raises(ValueError, match='is no pattern'):
    learning(networks['resnet50'], learns='backbone/(')


@pytest.mark.parametrize('field', ['optimizer', 'schedule'])
def test_an_unknown_choice_lists_the_choices(networks, field):
  with pytest.raises(ValueError, match=f'{field} .nonsense. is none of'):
    learning(networks['vgg16'], **{field: 'nonsense'})


def test_schedules_count_updates(networks):
  rate = learning(
    networks['vgg16'],
    steps_per_epoch=4,
    epochs=3,
    warmup_epochs=1,
    learning_rate=0.8,
    schedule='cosine',
  ).schedule
  rates = [float(rate(i)) for i in range(13)]
  np.testing.assert_allclose(rates[:4], [0.2, 0.4, 0.6, 0.8], rtol=1e-6)
  # Half a cosine over the remaining eight updates.
  expected = [0.4 * (1 + np.cos(np.pi * i / 8)) for i in range(9)]
  np.testing.assert_allclose(rates[4:], expected, atol=1e-6)


def learns(network, found):
  return phases.split(network[1], found.paths)[0]


def test_stages_learn_slower_the_deeper_they_lie(networks):
  network = networks['resnet50']
  found = learning(
    network,
    optimizer='sgd',
    momentum=0.0,
    learning_rate=1.0,
    layer_decay=0.5,
    backbone_scale=0.1,
  )
  params = learns(network, found)
  grads = jax.tree.map(jnp.ones_like, params)
  changes, _ = found.optimizer.update(
    grads, found.optimizer.init(params), params
  )
  by_part = {
    path.split('/')[1 if path.startswith('backbone') else 0]: -float(
      change.ravel()[0]
    )
    for path, change in changes.items()
  }
  assert by_part == pytest.approx(
    {
      'head': 1.0,
      'stage4': 0.05,
      'stage3': 0.025,
      'stage2': 0.0125,
      'stage1': 0.00625,
      'stem': 0.003125,
    }
  )


@pytest.mark.parametrize('optimizer', ['adamw', 'adam', 'sgd'])
def test_weight_decay_spares_vectors(networks, optimizer):
  network = networks['resnet50']
  found = learning(
    network, optimizer=optimizer, weight_decay=0.1, learns='stage4'
  )
  params = {k: v + 0.3 for k, v in learns(network, found).items()}
  grads = jax.tree.map(jnp.zeros_like, params)
  changes, _ = found.optimizer.update(
    grads, found.optimizer.init(params), params
  )
  for path, change in changes.items():
    assert bool((change != 0).all()) == path.endswith('kernel'), path


def test_adam_is_optax_adam(networks):
  """The chain's parts add up to the published algorithm."""
  network = networks['vgg16']
  found = learning(
    network, optimizer='adamw', learning_rate=0.01, weight_decay=0.2
  )
  params = learns(network, found)
  decayed = jax.tree.map(lambda p: p.ndim > 1, params)
  reference = optax.adamw(0.01, weight_decay=0.2, mask=decayed)
  mine, theirs = params, params
  state, their_state = found.optimizer.init(params), reference.init(params)
  for i in range(3):
    grads = {k: jnp.sin(v * 50 + i) for k, v in params.items()}
    changes, state = found.optimizer.update(grads, state, mine)
    mine = optax.apply_updates(mine, changes)
    changes, their_state = reference.update(grads, their_state, theirs)
    theirs = optax.apply_updates(theirs, changes)
  for path in params:
    np.testing.assert_allclose(mine[path], theirs[path], rtol=1e-5, atol=1e-7)


def test_the_gradient_is_clipped_as_a_whole(networks):
  network = networks['vgg16']
  found = learning(
    network,
    clip_norm=0.5,
    optimizer='sgd',
    momentum=0.0,
    learning_rate=1.0,
  )
  params = learns(network, found)
  grads = jax.tree.map(jnp.ones_like, params)
  changes, _ = found.optimizer.update(
    grads, found.optimizer.init(params), params
  )
  norm = np.sqrt(sum(float((c**2).sum()) for c in changes.values()))
  assert norm == pytest.approx(0.5, rel=1e-5)


def test_frozen_parameters_have_no_optimizer_state(networks):
  network = networks['resnet50']
  found = learning(network, learns='head')
  params = learns(network, found)
  state = found.optimizer.init(params)
  size = sum(np.size(leaf) for leaf in jax.tree.leaves(state))
  # Two moments of every learning parameter, and counters.
  learning_size = sum(np.size(p) for p in params.values())
  assert 2 * learning_size <= size <= 2 * learning_size + 4


def test_kept_state_is_that_of_what_goes_on_learning(networks):
  network = networks['resnet50']
  first = learning(network, learns='head')
  head = learns(network, first)
  _, old = first.optimizer.update(
    jax.tree.map(jnp.ones_like, head), first.optimizer.init(head), head
  )
  second = learning(network, learns='stage4+head')
  params = learns(network, second)
  new = second.optimizer.init(params)
  kept = phases.keep_state(new, old)
  assert jax.tree.structure(kept) == jax.tree.structure(new)
  # As if the head had an optimiser of its own, and stage4 a fresh one.
  grads = jax.tree.map(jnp.ones_like, params)
  changes, _ = second.optimizer.update(grads, kept, params)
  expected, _ = first.optimizer.update({p: grads[p] for p in head}, old, head)
  fresh, _ = second.optimizer.update(grads, new, params)
  for path, change in changes.items():
    reference = expected[path] if path in head else fresh[path]
    np.testing.assert_array_equal(change, reference)
