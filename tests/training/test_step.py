"""The pmapped step against plain JAX on one device, and what it keeps safe."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from iqa_jax import config as config_lib
from iqa_jax import devices, models
from iqa_jax.models import heads
from iqa_jax.tasks import Task
from iqa_jax.training import phases
from iqa_jax.training import step as step_lib

SIZE = 32


def make_batch(rng, count, real, offset=0):
  mask = (np.arange(count) < real).astype(np.float32)
  return {
    'image': rng.integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8),
    'mask': mask,
    'index': np.arange(count) + offset,
    'quality': rng.integers(0, 2, count),
    'grade': np.full(count, -1),
    'criteria': np.full((count, 4), -1),
    'landmarks': np.full((count, 5), np.nan, np.float32),
  }


def setup(name, learns, *, head='linear', task=None, **options):
  model = models.create(
    name, 2, width=0.06, depth=0.1, head=head, axis_name=devices.AXIS
  )
  variables = models.init(model, jax.random.key(0), SIZE)
  # Copies on the host: the step donates what it is given.
  variables = jax.tree.map(np.asarray, variables)
  phase = config_lib.phase(
    learns=learns, optimizer='sgd', learning_rate=0.05, weight_decay=0.01
  )
  learning = phases.learning(
    phase, variables['params'], model.stages, steps_per_epoch=3, clip_norm=1.0
  )
  state = step_lib.begin_phase(
    step_lib.create_state(variables),
    learning,
    ema=options.get('ema_decay', 0) > 0,
  )
  update = step_lib.make_train_step(model, task or Task(), learning, **options)
  return devices.place(state), update, learning, variables


def train(state, update, batches, accumulate=1):
  for batch in batches:
    inputs = step_lib.for_step(batch, stop=False, accumulate=accumulate)
    state, metrics = update(state, inputs)
  return state, metrics


def reference(name, learns, variables, learning, batches, task):
  """The same training written plainly: no pmap, no shards, no padding."""
  model = models.create(name, 2, width=0.06, depth=0.1)
  params, stats = variables['params'], variables.get('batch_stats', {})
  learns, frozen = phases.split(params, learning.paths)
  opt_state = learning.optimizer.init(learns)

  def loss(learns, stats, batch):
    tree = phases.unflatten({**frozen, **learns})
    logits, changed = model.apply(
      {'params': tree, 'batch_stats': stats},
      models.normalize(batch['image']),
      train=learning.parts,
      mutable=['batch_stats'],
    )
    each, weight = task.loss(logits, batch)
    mean = (each * weight).sum() / weight.sum()
    return mean, changed.get('batch_stats', stats)

  @jax.jit
  def update(learns, stats, opt_state, batch):
    (_, stats), grads = jax.value_and_grad(loss, has_aux=True)(
      learns, stats, batch
    )
    changes, opt_state = learning.optimizer.update(grads, opt_state, learns)
    return optax.apply_updates(learns, changes), stats, opt_state

  for batch in batches:
    real = batch['mask'] > 0
    shown = {key: value[real] for key, value in batch.items()}
    learns, stats, opt_state = update(learns, stats, opt_state, shown)
  return phases.unflatten({**frozen, **learns}), stats


def assert_close(found, expected, tolerance):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(
      a, b, rtol=tolerance, atol=tolerance
    ),
    found,
    expected,
  )


@pytest.mark.parametrize(
  ('name', 'learns'),
  [('resnet50', 'all'), ('vgg16', 'block5+head')],
)
def test_four_devices_train_as_one_would(name, learns):
  """Uneven batches: 10 and 7 real examples of 10, on 4 devices."""
  assert jax.local_device_count() == 4
  rng = np.random.default_rng(0)
  batches = [make_batch(rng, 10, 10), *(make_batch(rng, 10, 7),) * 2]
  task = Task(class_weights=(0.5, 2.0), label_smoothing=0.1)
  state, update, learning, variables = setup(name, learns, task=task)
  state, _ = train(state, update, batches)
  params, stats = reference(name, learns, variables, learning, batches, task)
  assert_close(state.params, params, 1e-5)
  assert_close(state.batch_stats, stats, 1e-5)
  moved = [
    path
    for path, value in phases.flatten(state.params).items()
    if (value != phases.flatten(variables['params'])[path]).any()
  ]
  assert set(moved) <= learning.paths
  assert len(moved) > 0.9 * len(learning.paths)


@pytest.mark.parametrize('real', [13, 12, 3])
def test_parts_of_nothing_but_padding_change_nothing(real):
  """Four parts of 16 on 4 devices; with 3 real ones the last part is empty."""
  rng = np.random.default_rng(0)
  batch = make_batch(rng, 16, real)
  state, update, learning, variables = setup('resnet50', 'all', accumulate=4)
  state, metrics = train(state, update, [batch], accumulate=4)
  assert metrics['finite']

  model = models.create('resnet50', 2, width=0.06, depth=0.1)
  learns, frozen = phases.split(variables['params'], learning.paths)

  def loss(learns, stats, part):
    logits, changed = model.apply(
      {'params': phases.unflatten({**frozen, **learns}), 'batch_stats': stats},
      models.normalize(part['image']),
      train=True,
      mutable=['batch_stats'],
    )
    return Task().loss(logits, part)[0].sum(), changed['batch_stats']

  gradient = jax.grad(loss, has_aux=True)
  total, stats = jax.tree.map(np.zeros_like, learns), variables['batch_stats']
  for k in range(4):
    rows = [i for i in range(k, 16, 4) if i < real]
    if rows:
      part = {key: value[rows] for key, value in batch.items()}
      grads, stats = gradient(learns, stats, part)
      total = jax.tree.map(np.add, total, grads)
  mean = jax.tree.map(lambda g: g / real, total)
  optimizer = learning.optimizer
  changes, _ = optimizer.update(mean, optimizer.init(learns), learns)
  expected = optax.apply_updates(learns, changes)
  assert_close(state.batch_stats, stats, 1e-5)
  # A part of a single cell has no variance: its gradient is mere rounding.
  if real > 3:
    assert_close(phases.flatten(state.params), {**frozen, **expected}, 1e-4)


def test_averaged_weights_come_with_averaged_statistics():
  rng = np.random.default_rng(0)
  batches = [make_batch(rng, 8, 8) for _ in range(3)]
  state, update, _, variables = setup('resnet50', 'all', ema_decay=0.5)
  expected = phases.flatten(variables['batch_stats'])
  for number, batch in enumerate(batches):
    state, _ = train(state, update, [batch])
    decay = min(0.5, (1 + number) / (10 + number))
    live = phases.flatten(jax.tree.map(np.asarray, state.batch_stats))
    expected = {
      path: decay * expected[path] + (1 - decay) * live[path] for path in live
    }
  found = phases.flatten(step_lib.evaluated(state)['batch_stats'])
  assert_close(found, expected, 1e-6)
  differ = [p for p in live if not np.allclose(live[p], found[p])]
  assert len(differ) == len(live)


def test_statistics_that_stop_learning_take_their_average():
  rng = np.random.default_rng(0)
  state, update, _, variables = setup('resnet50', 'all', ema_decay=0.9)
  state, _ = train(state, update, [make_batch(rng, 8, 8)] * 2)
  averages = step_lib.evaluated(state)['batch_stats']['backbone']
  live = jax.tree.map(np.asarray, state.batch_stats)['backbone']
  later = phases.learning(
    config_lib.phase(learns='stage4+head'),
    variables['params'],
    learning_points('resnet50'),
    steps_per_epoch=3,
  )
  stats = step_lib.begin_phase(state, later, ema=True).batch_stats['backbone']
  assert_close(stats['stage1'], averages['stage1'], 0)
  assert_close(stats['stage4'], live['stage4'], 0)


def learning_points(name):
  return models.create(name, 2).stages


def test_frozen_batchnorm_keeps_its_statistics():
  rng = np.random.default_rng(0)
  state, update, _, variables = setup('resnet50', 'stage4+head')
  state, _ = train(state, update, [make_batch(rng, 8, 8)])
  before, after = variables['batch_stats'], state.batch_stats
  for stage, values in before['backbone'].items():
    same = all(
      (a == b).all()
      for a, b in zip(
        jax.tree.leaves(values),
        jax.tree.leaves(after['backbone'][stage]),
        strict=True,
      )
    )
    assert same == (stage != 'stage4'), stage


def test_accumulation_is_a_big_batch():
  rng = np.random.default_rng(1)
  batches = [make_batch(rng, 21, 21), make_batch(rng, 21, 13)]
  ends = []
  for accumulate in (1, 3):
    state, update, *_ = setup('vgg16', 'all', head='mlp', accumulate=accumulate)
    state, metrics = train(state, update, batches, accumulate)
    counts = {k: metrics[k] for k in ('known', 'right')}
    ends.append((state.params, counts, state.weight_sum, metrics['loss']))
  assert ends[0][1]['known'] == 13
  assert float(ends[0][2]) == 34
  assert_close(ends[1], ends[0], 1e-5)


def test_dropout_knows_the_example_not_its_place():
  """A batch in another order, with padding between, drops the same units."""
  rng = np.random.default_rng(2)
  batch = make_batch(rng, 8, 8)
  order = rng.permutation(8)
  other = {key: value[order] for key, value in batch.items()}
  other = {
    key: np.concatenate([value, value[:5]]) for key, value in other.items()
  }
  other['mask'][8:] = 0
  ends = []
  for shown in (batch, other):
    state, update, *_ = setup('vgg16', 'head', head='mlp')
    state, metrics = train(state, update, [shown])
    ends.append((state.params, metrics['loss']))
  assert_close(ends[1], ends[0], 1e-6)
  state, update, *_ = setup('vgg16', 'head', head='mlp', seed=1)
  _, metrics = train(state, update, [batch])
  assert abs(float(metrics['loss']) - float(ends[0][1])) > 1e-4


def test_the_loss_is_the_mean_over_real_labelled_examples():
  rng = np.random.default_rng(3)
  batch = make_batch(rng, 9, 7)
  batch['quality'][2] = -1
  model = models.create('vgg16', 2, width=0.06, depth=0.1)
  state, update, _, variables = setup('vgg16', 'head')
  logits = model.apply(variables, models.normalize(batch['image']))
  shown = [i for i in range(7) if i != 2]
  right = (np.asarray(logits).argmax(1) == batch['quality'])[shown].sum()
  expected = optax.softmax_cross_entropy_with_integer_labels(
    logits[jnp.array(shown)], batch['quality'][shown]
  ).mean()
  state, metrics = train(state, update, [batch])
  assert float(metrics['loss']) == pytest.approx(float(expected), rel=1e-5)
  assert (int(metrics['known']), int(metrics['right'])) == (6, right)
  assert 0 < right < 6
  assert float(state.weight_sum) == 6
  assert float(state.loss_sum) == pytest.approx(6 * float(expected), rel=1e-5)


def test_nothing_of_a_step_that_is_not_finite_is_applied():
  rng = np.random.default_rng(4)
  state, update, *_ = setup('resnet50', 'stage4+head', ema_decay=0.5)
  state, metrics = train(state, update, [make_batch(rng, 8, 8)])
  assert metrics['finite']
  before = jax.tree.map(np.asarray, state)
  bad = make_batch(rng, 8, 8)
  # An overflow inside the network: a parameter that no image survives.
  broken = phases.flatten(state.params)
  path = 'head/logits/kernel'
  broken[path] = broken[path].at[0, 0].set(jnp.inf)
  state = devices.place(state.replace(params=phases.unflatten(broken)))
  state, metrics = train(state, update, [bad])
  assert not metrics['finite']
  state, metrics = train(state, update, [make_batch(rng, 8, 8)])
  assert not metrics['finite']
  after = jax.tree.map(np.asarray, state)
  assert not after.finite
  assert after.step == before.step == 1
  for name in ('batch_stats', 'opt_state', 'ema', 'loss_sum', 'weight_sum'):
    jax.tree.map(
      np.testing.assert_array_equal,
      getattr(after, name),
      getattr(before, name),
    )


def test_averages_follow_the_weights():
  rng = np.random.default_rng(5)
  state, update, learning, variables = setup('vgg16', 'head', ema_decay=0.9)
  expected = phases.split(variables['params'], learning.paths)[0]
  for i in range(3):
    state, _ = train(state, update, [make_batch(rng, 4, 4)])
    decay = min(0.9, (1 + i) / (10 + i))
    now = phases.flatten(state.params)
    expected = {
      path: decay * old + (1 - decay) * now[path]
      for path, old in expected.items()
    }
  assert_close(state.ema, expected, 1e-6)
  shown = phases.flatten(step_lib.evaluated(state)['params'])
  assert_close({p: shown[p] for p in expected}, expected, 1e-6)


def test_what_stops_learning_keeps_its_average():
  """Otherwise later phases would build on weights that nobody evaluated."""
  rng = np.random.default_rng(6)
  state, update, _, variables = setup('vgg16', 'block5+head', ema_decay=0.9)
  state, _ = train(state, update, [make_batch(rng, 4, 4)] * 2)
  evaluated = jax.tree.map(np.asarray, step_lib.evaluated(state)['params'])
  model = models.create('vgg16', 2, width=0.06, depth=0.1)
  head = phases.learning(
    config_lib.phase(learns='head'),
    variables['params'],
    model.points,
    steps_per_epoch=3,
  )
  state = step_lib.begin_phase(state, head, ema=True)
  assert set(state.ema) == head.paths
  jax.tree.map(
    np.testing.assert_array_equal,
    step_lib.evaluated(state)['params'],
    evaluated,
  )
  jax.tree.map(
    np.testing.assert_array_equal,
    state.params['backbone'],
    evaluated['backbone'],
  )


def test_one_process_that_wishes_to_stop_is_heard():
  rng = np.random.default_rng(7)
  state, update, *_ = setup('vgg16', 'head')
  for wish in (False, True):
    inputs = step_lib.for_step(make_batch(rng, 4, 4), stop=wish, accumulate=1)
    state, metrics = update(state, inputs)
    assert bool(metrics['stop']) == wish


def test_evidence_learns_on_four_devices_as_on_one():
  """Verdict, cells and causes in one loss; 7 real examples of 10."""
  model = models.create(
    'vgg16', 2, width=0.06, depth=0.1, head='evidence', cells=4, cell_units=5,
    axis_name=devices.AXIS,
  )  # fmt: skip
  variables = models.init(model, jax.random.key(0), SIZE)
  variables = jax.tree.map(np.asarray, variables)
  learning = phases.learning(
    config_lib.phase(learns='all', optimizer='sgd', learning_rate=0.1),
    variables['params'],
    model.stages,
    steps_per_epoch=1,
    entries=model.entries,
  )
  assert learning.prefix is None
  rng = np.random.default_rng(0)
  batch = make_batch(rng, 10, 7)
  field = rng.integers(0, 2, (10, SIZE, SIZE, 1), dtype=np.uint8) * 255
  batch['image'] = np.concatenate([batch['image'], field], -1)
  batch['cause'] = rng.integers(-1, 3, (10, 3)).astype(np.int32)
  batch['fault'] = rng.integers(0, 256, (10, 4, 4), dtype=np.uint8)
  task = Task(cell_weight=2.0, ranking_weight=1.5, cause_weight=0.7)
  update = step_lib.make_train_step(model, task, learning)
  state = step_lib.begin_phase(step_lib.create_state(variables), learning)
  state, metrics = train(devices.place(state), update, [batch])

  def plain(params):
    real = {key: value[:7] for key, value in batch.items()}
    logits, kept = model.apply(
      {**variables, 'params': params},
      models.normalize(real['image']),
      mutable=['intermediates'],
    )
    label = task.loss(logits, real)[0]
    more = task.evidence_loss(heads.found(kept), real)
    return (label + more).mean(), label.mean()

  gradient, label = jax.grad(plain, has_aux=True)(variables['params'])
  assert float(metrics['loss']) == pytest.approx(float(label), rel=1e-5)
  expected = jax.tree.map(
    lambda p, g: p - 0.1 * g, variables['params'], gradient
  )
  assert_close(state.params, expected, 1e-5)
  moved = jax.tree.map(
    lambda a, b: bool((np.asarray(a) != b).any()),
    state.params,
    variables['params'],
  )
  assert all(jax.tree.leaves(moved))


def test_verdicts_can_be_kept_from_teaching_cells():
  model = models.create(
    'vgg16', 2, width=0.06, depth=0.1, head='evidence', cells=4, cell_units=5,
    axis_name=devices.AXIS,
  )  # fmt: skip
  variables = jax.tree.map(
    np.asarray, models.init(model, jax.random.key(0), SIZE)
  )
  learning = phases.learning(
    config_lib.phase(
      learns='evidence+head', optimizer='sgd', learning_rate=0.1
    ),
    variables['params'],
    model.stages,
    steps_per_epoch=1,
    entries=model.entries,
  )
  rng = np.random.default_rng(0)
  batch = make_batch(rng, 8, 8)
  field = np.full((8, SIZE, SIZE, 1), 255, np.uint8)
  batch['image'] = np.concatenate([batch['image'], field], -1)
  batch['cause'] = np.full((8, 3), 1, np.int32)  # known, but not where
  batch['fault'] = np.zeros((8, 4, 4), np.uint8)
  moved = {}
  for teaches in (True, False):
    task = Task(cell_weight=1.0, verdict_teaches_cells=teaches)
    update = step_lib.make_train_step(model, task, learning)
    state = step_lib.begin_phase(step_lib.create_state(variables), learning)
    state, _ = train(devices.place(state), update, [batch])
    moved[teaches] = {
      part: any(
        (np.asarray(a) != b).any()
        for a, b in zip(
          jax.tree.leaves(state.params[part]),
          jax.tree.leaves(variables['params'][part]),
          strict=True,
        )
      )
      for part in ('neck', 'head')
    }
  assert moved == {
    True: {'neck': True, 'head': True},
    False: {'neck': False, 'head': True},
  }
