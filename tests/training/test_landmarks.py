"""A head that locates landmarks: what teaches it, on how many devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iqa_jax import config as config_lib
from iqa_jax import devices, models
from iqa_jax.models import heads
from iqa_jax.simulation import photograph
from iqa_jax.tasks import Task
from iqa_jax.training import phases
from iqa_jax.training import step as step_lib

SIZE = 64


def batch_of(images, landmarks, real):
  count = len(images)
  return {
    'image': images,
    'mask': (np.arange(count) < real).astype(np.float32),
    'index': np.arange(count),
    'quality': np.arange(count) % 2,
    'grade': np.full(count, -1),
    'criteria': np.full((count, 4), -1),
    'landmarks': landmarks,
  }


def random_batch(seed, count, real):
  rng = np.random.default_rng(seed)
  landmarks = rng.uniform(0.1, 0.9, (count, 5)).astype(np.float32)
  landmarks[1] = np.nan
  landmarks[2, 3:] = np.nan  # the fovea alone
  # Padding has no diameter to divide by.
  landmarks[real:] = 0
  images = rng.integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)
  return batch_of(images, landmarks, real)


def network(axis_name=None):
  return models.create(
    'resnet50',
    2,
    head='landmarks',
    last='stage3',
    width=0.125,
    depth=0.1,
    axis_name=axis_name,
  )


def build(learns='all', *, weight=1.0, rate=0.05, optimizer='sgd', **options):
  model = network(devices.AXIS)
  variables = models.init(model, jax.random.key(0), SIZE)
  phase = config_lib.phase(
    learns=learns, optimizer=optimizer, learning_rate=rate
  )
  learning = phases.learning(
    phase, variables['params'], model.points, steps_per_epoch=4
  )
  state = step_lib.begin_phase(step_lib.create_state(variables), learning)
  task = Task(landmark_weight=weight)
  update = step_lib.make_train_step(model, task, learning, **options)
  variables = jax.tree.map(np.asarray, variables)
  return devices.place(state), update, learning, variables


@jax.jit
def locate(variables, images):
  """Returns the landmarks, as inference has them."""
  _, state = network().apply(
    variables, models.normalize(images), mutable=['intermediates']
  )
  return heads.located(state)


def plain_loss(found, truth):
  """The landmarks' loss of each example, coordinate by coordinate."""
  losses = []
  for there, want in zip(np.asarray(found, float), truth, strict=True):
    known = [i for i in range(5) if want[i] == want[i]]
    terms = [abs(there[i] - want[i]) / want[2] for i in known]
    losses.append(sum(terms) / len(terms) if terms else 0.0)
  return np.array(losses)


def test_the_loss_is_the_mean_error_of_known_coordinates():
  batch = random_batch(0, 6, 6)
  found = np.random.default_rng(1).uniform(0, 1, (6, 5)).astype(np.float32)
  task = Task(landmark_weight=3.0)
  np.testing.assert_allclose(
    task.landmark_loss(jnp.asarray(found), batch),
    3 * plain_loss(found, batch['landmarks']),
    rtol=1e-5,
  )
  gradient = jax.grad(lambda f: task.landmark_loss(f, batch).sum())(found)
  assert np.isfinite(gradient).all()
  assert not gradient[1].any() and not gradient[2, 3:].any()
  assert (np.abs(gradient[0]) > 0).all() and (np.abs(gradient[2, :3]) > 0).all()


def test_devices_padding_and_accumulation_change_nothing():
  """10 real examples of 14 on 4 devices, against 10 on one, plainly."""
  assert jax.local_device_count() == 4
  batch = random_batch(2, 14, 10)
  state, update, learning, variables = build('stage3+head')
  model = network()
  learns, frozen = phases.split(variables['params'], learning.paths)
  shown = {key: value[:10] for key, value in batch.items()}

  def loss(learns):
    logits, kept = model.apply(
      {**variables, 'params': phases.unflatten({**frozen, **learns})},
      models.normalize(shown['image']),
      train=frozenset(learning.parts),
      mutable=['batch_stats', 'intermediates'],
    )
    labels = -jax.nn.log_softmax(logits)[jnp.arange(10), shown['quality']]
    found, want = heads.located(kept), shown['landmarks']
    # NaN gives NaN gradients, so only what is known is looked at.
    marks = sum(
      jnp.abs((found - want)[i, known]).mean() / want[i, 2]
      for i in range(10)
      if len(known := np.flatnonzero(~np.isnan(want[i])))
    )
    return labels.mean() + marks / 10, labels.mean()

  (_, expected), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(
    learns
  )
  state, metrics = update(
    state, step_lib.for_step(batch, stop=False, accumulate=1)
  )
  assert metrics['finite']
  # What is logged is comparable with the validation's loss.
  assert float(metrics['loss']) == pytest.approx(float(expected), rel=1e-4)
  after = phases.flatten(state.params)
  for path, before in learns.items():
    moved = np.asarray(after[path]) - before
    np.testing.assert_allclose(moved, -0.05 * gradient[path], atol=2e-6)
  located = {p for p in learns if p.startswith('head/locator/')}
  assert len(located) == 6
  assert all(np.abs(gradient[p]).max() > 0 for p in located)


def test_without_weight_or_landmarks_the_locator_stays():
  for weight, known in ((0.0, True), (1.0, False)):
    batch = random_batch(3, 8, 8)
    if not known:
      batch['landmarks'][:] = np.nan
    state, update, _, variables = build('head', weight=weight)
    state, metrics = update(
      state, step_lib.for_step(batch, stop=False, accumulate=1)
    )
    assert metrics['finite']
    before, after = variables['params']['head'], state.params['head']
    jax.tree.map(
      np.testing.assert_array_equal, after['locator'], before['locator']
    )
    assert (after['logits']['bias'] != before['logits']['bias']).any()


def test_learns_to_locate_better_than_the_mean_and_mirrors():
  """On new drawings; the reference is the mean of the training landmarks."""

  def draw(first, count):
    drawn = [photograph.draw(first + i, SIZE) for i in range(count)]
    marks = np.stack([d.landmarks for d in drawn]) / SIZE
    return np.stack([d.image for d in drawn]), marks.astype(np.float32)

  def mirrored(marks):
    return np.abs([1, 0, 0, 1, 0] - np.asarray(marks))

  images, marks = draw(0, 96)
  images = np.concatenate([images, images[:, :, ::-1]])
  marks = np.concatenate([marks, mirrored(marks)]).astype(np.float32)
  state, update, *_ = build(weight=3.0, rate=3e-3, optimizer='adam')
  order = np.random.default_rng(0)
  for _ in range(14):
    for at in order.permutation(192).reshape(-1, 32):
      batch = batch_of(images[at], marks[at], 32)
      inputs = step_lib.for_step(batch, stop=False, accumulate=1)
      state, _ = update(state, inputs)
  new, truth = draw(900, 48)
  variables = jax.tree.map(np.asarray, step_lib.evaluated(state))
  found = locate(variables, new)
  flipped = locate(variables, new[:, :, ::-1])

  def away(found):
    error = (np.asarray(found) - truth) / truth[:, 2:3]
    return np.median(np.hypot(error[:, 0], error[:, 1]))

  baseline = np.broadcast_to(marks.mean(0), truth.shape)
  assert away(found) < 0.5 * away(baseline)
  np.testing.assert_allclose(away(mirrored(flipped)), away(found), rtol=0.5)
