"""The networks against torch's values, Keras' VGG-16 and themselves."""

import functools
import os
import pathlib
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from iqa_jax import config as config_lib
from iqa_jax import models
from iqa_jax.models import heads, layers, platforms, pooling, pretrained
from iqa_jax.photograph.placement import Window
from tests.models import reference

GOLDEN = np.load(pathlib.Path(__file__).parent / 'golden.npz')
WIDTH = 0.125
PARAMETERS = {
  'resnet50': 25_557_032,
  'vgg16': 138_357_544,
}
# Every kind of layer and every point, and little else.
SMALL = {'width': 0.0625, 'depth': 0.3}


@functools.cache
def built(name, num_outputs=1000, head='imagenet', **kwargs):
  """Returns a model and the shapes of its variables."""
  model = models.create(name, num_outputs, head=head, **kwargs)
  return model, models.shapes(model, 64)


def torch_names(model, shapes):
  """Returns {our path: (torch name, torch shape)} of a model's variables."""
  backbone, kind = model.backbone, model.head.kind
  places = {backbone.from_torch(n): n for n in _torch_layers(model)}
  found = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
    collection, *place, last = [p.key for p in path]
    layer = places['/'.join(place).replace('head/', f'{kind}/')]
    name = {'mean': 'running_mean', 'var': 'running_var', 'bias': 'bias'}
    shape = list(leaf.shape)
    if len(shape) == 4:
      shape = [shape[3], shape[2], *shape[:2]]
    found['/'.join((collection, *place, last))] = (
      f'{layer}.{name.get(last, "weight")}',
      shape[::-1] if len(shape) == 2 else shape,
    )
  return found


def _torch_layers(model):
  yield from ('conv1', 'bn1', 'fc', 'fc1', 'fc2')
  for i in range(32):
    yield f'features.{i}'
  if model.head.kind == 'imagenet':
    yield from ('classifier.0', 'classifier.3', 'classifier.6')
  for stage, blocks in enumerate((3, 4, 6, 3), 1):
    for block in range(blocks):
      for part in (
        *(f'{kind}{i}' for kind in ('conv', 'bn') for i in (1, 2, 3)),
        *('downsample.0', 'downsample.1'),
      ):
        yield f'layer{stage}.{block}.{part}'


def reference_variables(model, shapes, tmp_path):
  """Returns the reference weights, converted as any checkpoint is."""
  import safetensors.numpy

  weights = reference.weights(dict(torch_names(model, shapes).values()))
  path = tmp_path / 'weights.safetensors'
  safetensors.numpy.save_file(weights, path)
  zeros = jax.tree.map(lambda leaf: np.zeros((), leaf.dtype), shapes)
  del weights
  variables, record = pretrained.load(path, model, _broadcast(zeros, shapes))
  os.unlink(path)
  assert not record['initialised'] and not record['unused']
  return variables


def _broadcast(values, shapes):
  return jax.tree.map(lambda v, s: np.broadcast_to(v, s.shape), values, shapes)


def relative_error(actual, expected):
  return np.abs(actual - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize('name', models.names())
def test_parameter_count(name):
  _, shapes = built(name)
  counts = [leaf.size for leaf in jax.tree.leaves(shapes['params'])]
  assert sum(counts) == PARAMETERS[name]


@pytest.mark.parametrize('name', models.names())
def test_gives_torchvision_logits_and_maps(name, tmp_path):
  model, shapes = built(name)
  variables = reference_variables(model, shapes, tmp_path)
  logits, state = jax.jit(
    functools.partial(model.apply, mutable='intermediates')
  )(variables, reference.images(224, 224))
  expected = GOLDEN[f'{name}/224x224/logits']
  assert logits.dtype == jnp.float32
  assert relative_error(logits, expected) < 1e-4
  assert set(state['intermediates']) == set(model.points)
  for point in model.points:
    (value,) = state['intermediates'][point]
    crop = value[:1, :: value.shape[1] // 6, :: value.shape[2] - 1, :4]
    assert relative_error(crop, GOLDEN[f'{name}/224x224/{point}/values']) < 1e-4
    np.testing.assert_allclose(
      [value.mean(), value.std()],
      GOLDEN[f'{name}/224x224/{point}/moments'],
      rtol=1e-4,
    )


@pytest.mark.parametrize('size', [(64, 64), (97, 65), (160, 256), (33, 40)])
@pytest.mark.parametrize('name', models.names())
def test_gives_torch_logits_at_any_size(name, size, tmp_path):
  model, shapes = built(name, 10, width=WIDTH)
  variables = reference_variables(model, shapes, tmp_path)
  logits = jax.jit(model.apply)(variables, reference.images(*size))
  expected = GOLDEN[f'{name}/{size[0]}x{size[1]}/logits']
  assert relative_error(logits, expected) < 1e-4


@pytest.mark.parametrize('size', [224, 160])
def test_gives_the_logits_of_the_earlier_work(size, tmp_path):
  model, shapes = built('vgg16', 2, 'mlp', width=WIDTH)
  variables = reference_variables(model, shapes, tmp_path)
  logits = jax.jit(model.apply)(variables, reference.images(size, size))
  expected = GOLDEN[f'earlier/{size}x{size}/logits']
  assert relative_error(logits, expected) < 1e-4


@pytest.mark.parametrize('name', models.names())
def test_trains_as_torch_does(name, tmp_path):
  model, shapes = built(name, 10, width=WIDTH)
  variables = reference_variables(model, shapes, tmp_path)
  train = frozenset(model.points)  # without the head's dropout

  def loss(params):
    logits, state = model.apply(
      {**variables, 'params': params},
      reference.images(64, 64, count=4),
      train=train,
      mutable=['batch_stats'],
    )
    labels = jnp.asarray([0, 3, 9, 3])
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return losses.mean(), state

  (value, state), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(
    variables['params']
  )
  golden = {
    key.removeprefix(f'{name}/train/'): GOLDEN[key]
    for key in GOLDEN
    if key.startswith(f'{name}/train/')
  }
  np.testing.assert_allclose(value, golden.pop('loss'), rtol=1e-4)
  named = torch_names(model, shapes)
  tree = {'params': gradients, **state}
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    torch_name, _ = named['/'.join(p.key for p in path)]
    kind = 'statistics' if path[0].key == 'batch_stats' else 'gradient'
    expected = golden.pop(f'{kind}/{torch_name}')
    np.testing.assert_allclose(
      jnp.linalg.norm(leaf.ravel()), expected, rtol=2e-3, err_msg=torch_name
    )
  assert not golden, 'torch has tensors that we have not'


def test_keras_vgg16_agrees():
  keras = pytest.importorskip('keras')
  model, _ = built('vgg16')
  witness = keras.applications.VGG16(
    include_top=False, weights=None, input_shape=(48, 40, 3)
  )
  params = {}
  for layer in witness.layers:
    if not layer.weights:
      continue
    block, _, position = layer.name.partition('_conv')
    name = f'{layer.name}.weight'
    kernel, bias = (
      reference.weights({name: list(w.shape)})[name] / 9
      if len(w.shape) == 4
      else np.full(w.shape, 0.01)
      for w in layer.weights
    )
    layer.set_weights([kernel, bias])
    params.setdefault(block, {})[f'conv{position}'] = {
      'kernel': kernel,
      'bias': bias,
    }
  images = reference.images(48, 40)
  ours = jax.jit(functools.partial(model.apply, stop='block5_pool'))(
    {'params': {'backbone': params}}, images
  )
  assert relative_error(ours, witness(images).numpy()) < 1e-4


@pytest.mark.parametrize(
  'name, head',
  [('resnet50', 'linear'), ('resnet50', 'mlp'), ('vgg16', 'imagenet')],
)
def test_runs_from_any_point_to_any_point(name, head):
  model, _ = built(name, 3, head, **SMALL)
  variables = models.init(model, jax.random.key(0), 64)
  images = reference.images(64, 48)
  whole, state = model.apply(variables, images, mutable='intermediates')
  assert whole.shape == (2, 3)
  for point in model.points:
    (sown,) = state['intermediates'][point]
    half = model.apply(variables, images, stop=point)
    np.testing.assert_array_equal(half, sown)
    rest = model.apply(variables, half, start=point)
    np.testing.assert_allclose(rest, whole, rtol=1e-5, atol=1e-6)
  first, last = model.points[0], model.points[-1]
  middle = model.apply(variables, images, stop=first)
  np.testing.assert_allclose(
    model.apply(variables, middle, start=first, stop=last),
    model.apply(variables, images, stop=last),
    rtol=1e-5,
    atol=1e-6,
  )
  assert model.default_layer in model.points


@pytest.mark.parametrize(
  'last, layer', [('block4_pool', 'block4'), ('block3', 'block3')]
)
def test_a_shortened_network_ends_and_explains_at_its_last_point(last, layer):
  model = models.create('vgg16', 2, last=last, **SMALL)
  assert (model.points[-1], model.default_layer) == (last, layer)
  variables = models.init(model, jax.random.key(0), 64)
  assert 'block5' not in variables['params']['backbone']


def test_the_landmarks_head_is_the_linear_one_that_also_locates():
  linear, _ = built('resnet50', 3, 'linear', **SMALL)
  model, _ = built('resnet50', 3, 'landmarks', **SMALL)
  variables = models.init(model, jax.random.key(0), 64)
  head = variables['params']['head']
  channels = head['logits']['kernel'].shape[0]
  counts = {
    name: sum(leaf.size for leaf in jax.tree.leaves(part))
    for name, part in head['locator'].items()
  }
  assert counts == {
    'heat': 2 * (channels + 1),
    'hidden': 64 * (2 * channels + 4 + 1),
    'fine': 5 * (64 + 1),
  }
  images = reference.images(64, 64)
  logits, state = model.apply(variables, images, mutable='intermediates')
  plain = dict(variables['params'], head={'logits': head['logits']})
  np.testing.assert_array_equal(
    logits, linear.apply({**variables, 'params': plain}, images)
  )
  found = heads.located(state)
  assert (found.shape, found.dtype) == ((2, 5), 'float32')
  _, state = linear.apply(
    {**variables, 'params': plain}, images, mutable='intermediates'
  )
  assert heads.located(state) is None


def test_landmarks_are_where_the_heat_is_in_shares_of_the_side():
  x = np.zeros((3, 4, 8, 3), np.float32)
  x[0, 2, 6, 0] = x[1, 0, 1, 0] = 1.0  # a disc
  x[0, 1, 3, 1] = x[1, 3, 7, 1] = 1.0  # a fovea
  x[2, :, 5, 0] = x[2, 2:, 0, 1] = 1.0  # spread out: their middles
  locator = heads.Locator()
  params = locator.init(jax.random.key(0), x)['params']
  params['heat']['kernel'] = jnp.array([[30.0, 0], [0, 30.0], [0, 0]])
  found = np.asarray(locator.apply({'params': params}, x))
  expected = [
    [6.5 / 8, 2.5 / 4, 3.5 / 8, 1.5 / 4],
    [1.5 / 8, 0.5 / 4, 7.5 / 8, 3.5 / 4],
    [5.5 / 8, 0.5, 0.5 / 8, 3 / 4],
  ]
  np.testing.assert_allclose(found[:, [0, 1, 3, 4]], expected, atol=1e-5)
  assert (found[:, 2] > 0).all()


def test_names_what_is_wrong():
  model, _ = built('vgg16', 2, 'linear', **SMALL)
  variables = models.init(model, jax.random.key(0), 32)
  images = reference.images(32, 32)
  with pytest.raises(ValueError, match="no feature point 'stage1'"):
    model.apply(variables, images, stop='stage1')
  with pytest.raises(ValueError, match="no feature point 'block6'"):
    model.apply(variables, images, train=frozenset({'block6'}))
  with pytest.raises(ValueError, match='block1 comes before block2'):
    model.apply(variables, images, start='block2', stop='block1')
  with pytest.raises(ValueError, match='31x40 is too small'):
    model.apply(variables, images[:, :31].repeat(2, 2)[:, :, :40])
  with pytest.raises(ValueError, match="'resnet5' is none of resnet50"):
    models.create('resnet5', 2)
  with pytest.raises(ValueError, match=r"'dense' is none of .*imagenet"):
    models.create('vgg16', 2, head='dense')
  with pytest.raises(ValueError, match='float16'):
    models.create('vgg16', 2, dtype='float16')
  with pytest.raises(ValueError, match="last 'stage3' is none of block1, "):
    models.create('vgg16', 2, last='stage3')


def test_multipliers_and_config():
  config = config_lib.default()
  config.model.update(
    name='resnet50',
    head='mlp',
    last='stage4',
    width=0.25,
    depth=0.4,
    dropout=0.2,
    dtype='bfloat16',
  )
  model = models.from_config(config, 2, axis_name='batch')
  assert model.backbone.axis_name == 'batch'
  assert model.head.dropout == 0.2
  shapes = models.shapes(model, 32)
  backbone = shapes['params']['backbone']
  blocks = [len(backbone[f'stage{i}']) for i in (1, 2, 3, 4)]
  assert blocks == [1, 2, 2, 1]
  assert backbone['stage4']['block0']['conv3']['kernel'].shape[-1] == 512
  assert shapes['params']['head']['hidden0']['kernel'].shape == (512 * 49, 128)
  assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {
    jnp.dtype('float32')
  }


@pytest.mark.parametrize('name', models.names())
def test_bfloat16_is_close(name):
  model, _ = built(name, 4, 'linear', **SMALL)
  half, _ = built(name, 4, 'linear', **SMALL, dtype='bfloat16')
  variables = models.init(model, jax.random.key(1), 64)
  images = reference.images(64, 64)
  train = frozenset(model.points)
  for kwargs in ({}, {'train': train, 'mutable': ['batch_stats']}):
    expected, actual = (
      jax.jit(functools.partial(m.apply, **kwargs))(variables, images)
      for m in (model, half)
    )
    if kwargs:
      (expected, stats), (actual, half_stats) = expected, actual
      assert jax.tree.all(
        jax.tree.map(lambda a: a.dtype == jnp.float32, half_stats)
      )
      for a, b in zip(*map(jax.tree.leaves, (half_stats, stats)), strict=True):
        np.testing.assert_allclose(a, b, rtol=0.1, atol=0.05)
    assert actual.dtype == jnp.float32
    assert relative_error(actual, expected) < 0.05
  assert half.apply(variables, images, stop=half.points[0]).dtype == 'bfloat16'


def test_init_follows_the_key_and_keeps_the_scale():
  model, _ = built('resnet50', 2, 'linear', width=0.25, depth=0.3)
  first, same, other = (
    models.init(model, jax.random.key(k), 64) for k in (0, 0, 1)
  )
  jax.tree.map(np.testing.assert_array_equal, first, same)
  # A weakly typed state would compile the training step twice.
  assert not any(leaf.aval.weak_type for leaf in jax.tree.leaves(first))
  kernel = first['params']['backbone']['stage3']['block0']['conv2']['kernel']
  assert (
    kernel != other['params']['backbone']['stage3']['block0']['conv2']['kernel']
  ).all()
  np.testing.assert_allclose(
    kernel.std(), np.sqrt(2 / (9 * kernel.shape[-1])), rtol=0.02
  )
  logits = jax.jit(model.apply)(first, reference.images(64, 64))
  assert 1e-4 < np.abs(logits).max() < 10


@pytest.mark.parametrize('platform', ['cpu', 'cuda', 'tpu'])
@pytest.mark.parametrize('window', [(3, 2, 1), (2, 2, 0), (3, 3, 0)])
def test_max_pool_is_xla_s_with_ties_and_nan(window, platform):
  size, stride, padding = window
  rng = np.random.default_rng(0)
  # Few values: most windows hold their maximum more than once.
  x = rng.integers(0, 4, (2, 11, 13, 5)).astype(np.float32)

  def theirs(x):
    return nn.max_pool(
      x, (size, size), (stride, stride), [(padding, padding)] * 2
    )

  ours = functools.partial(pooling.max_pool, window=Window(*window))
  expected, pull = jax.vjp(theirs, x)
  weight = rng.integers(-8, 8, expected.shape).astype(np.float32)
  with platforms.portable(platform):
    actual, our_pull = jax.vjp(ours, x)
    np.testing.assert_array_equal(actual, expected)
    np.testing.assert_array_equal(our_pull(weight)[0], pull(weight)[0])
    place = (0, size, size, 1)  # in the second window of both axes
    x[place] = np.nan
    actual, our_pull = jax.vjp(ours, x)
  assert np.isnan(actual[0, 1, 1, 1])
  if platform != 'tpu':  # there XLA's own
    assert our_pull(weight)[0][place] != 0


@pytest.mark.parametrize('platform', ['', 'cuda', 'tpu'])
def test_relu_has_the_gradient_of_what_is_above_zero(platform):
  x = jnp.asarray([[-2.0, -0.0, 0.0, 0.5, 3.0, jnp.inf]])
  with platforms.portable(platform):
    y, pull = jax.vjp(layers.relu, x)
  np.testing.assert_array_equal(y, [[0, 0, 0, 0.5, 3, np.inf]])
  np.testing.assert_array_equal(
    pull(jnp.full_like(x, 5))[0], [[0] * 3 + [5] * 3]
  )


@pytest.mark.parametrize('padding', [0, 1])
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_a_convolution_has_xla_s_gradients(monkeypatch, dtype, padding):
  monkeypatch.setattr(layers, '_LARGE', 0)
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=(3, 9, 12, 5)), dtype)
  kernel = jnp.asarray(rng.normal(size=(3, 3, 5, 7)), dtype)
  settings = {
    'window_strides': (1, 1),
    'padding': [(padding, padding)] * 2,
    'dimension_numbers': ('NHWC', 'HWIO', 'NHWC'),
  }
  theirs: Any
  theirs, ours = (
    functools.partial(convolve, **settings)
    for convolve in (jax.lax.conv_general_dilated, layers._convolve)
  )
  expected, pull = jax.vjp(theirs, x, kernel)
  actual, our_pull = jax.vjp(ours, x, kernel)
  np.testing.assert_array_equal(actual, expected)
  weight = jnp.asarray(rng.normal(size=expected.shape), dtype)
  close = 1e-5 if dtype == 'float32' else 0.02
  for mine, other in zip(our_pull(weight), pull(weight), strict=True):
    assert mine.dtype == other.dtype
    mine, other = np.asarray(mine, np.float32), np.asarray(other, np.float32)
    np.testing.assert_allclose(
      mine, other, rtol=close, atol=close * np.abs(other).max()
    )


def test_normalize():
  images = np.random.default_rng(0).integers(0, 256, (2, 5, 4, 3), np.uint8)
  expected = (images / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
  np.testing.assert_allclose(models.normalize(images), expected, atol=1e-6)


def test_only_the_named_parts_train():
  model, _ = built('resnet50', 2, 'mlp', **SMALL)
  variables = models.init(model, jax.random.key(0), 64)
  images = reference.images(64, 64)

  def statistics(train):
    apply = functools.partial(model.apply, train=train, mutable=['batch_stats'])
    rngs = {'dropout': jax.random.key(0)}
    _, state = jax.jit(apply)(variables, images, rngs=rngs)
    return state['batch_stats']['backbone']

  old = variables['batch_stats']['backbone']
  for train, changed in (
    (False, set()),
    (frozenset({'stage4', 'head'}), {'stage4'}),
    (True, set(model.points)),
  ):
    new = statistics(train)
    same = jax.tree.map(lambda a, b: bool((a == b).all()), new, old)
    for point in model.points:
      assert any(jax.tree.leaves(same[point])) == (point not in changed)

  def logits(train, key):
    return model.apply(
      variables,
      jnp.ones((2, 7, 7, 128)),
      start='stage4',
      train=train,
      rngs={'dropout': jax.random.key(key)},
    )

  head = frozenset({'head'})
  assert (logits(head, 0) != logits(head, 1)).any()
  np.testing.assert_array_equal(logits(False, 0), logits(False, 1))


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_batch_norm_is_exact_under_uneven_masks_over_devices(dtype):
  if jax.device_count() < 4:
    pytest.skip('needs 4 devices')
  rng = np.random.default_rng(0)
  # Far from 0, where a mean of squares less a squared mean would cancel.
  x = rng.normal(30, 2, (16, 5, 3, 4)).astype(np.float32)
  mask = np.ones(16, np.float32)
  mask[[3, 8, 9, 10, 12, 13, 14, 15]] = 0  # 1, 0, 3 and 4 of each device's 4
  x[mask == 0] = 1e4  # must not be seen
  weight = rng.normal(size=x.shape).astype(np.float32)
  real = x[mask > 0]

  def run(layer, params, stats, x, mask, weight):
    def loss(params, x):
      y, state = layer.apply(
        {'params': params, 'batch_stats': stats},
        x,
        train=True,
        mask=mask,
        mutable=['batch_stats'],
      )
      return (y * weight * mask[:, None, None, None]).sum(), (y, state)

    gradients, (y, state) = jax.grad(loss, (0, 1), has_aux=True)(params, x)
    return gradients, y, state['batch_stats']

  one = layers.BatchNorm(dtype=dtype)
  many = layers.BatchNorm(axis_name='batch', dtype=dtype)
  variables = one.init(jax.random.key(0), x)
  params, stats = variables['params'], variables['batch_stats']
  params['scale'] = rng.normal(size=4).astype(np.float32)
  stats['mean'] += 28.0
  x = x.astype(dtype)
  (grad_params, grad_x), y, new = run(one, params, stats, x, mask, weight)

  split = [a.reshape(4, 4, *a.shape[1:]) for a in (x, mask, weight)]
  (many_params, many_x), many_y, many_new = jax.pmap(
    functools.partial(run, many),
    axis_name='batch',
    in_axes=(None, None, 0, 0, 0),
  )(params, stats, *split)
  tolerance = 1e-5 if dtype == jnp.float32 else 2e-2
  close = functools.partial(
    np.testing.assert_allclose, rtol=tolerance, atol=tolerance
  )
  close(np.float32(many_y).reshape(x.shape), np.float32(y))
  close(np.float32(many_x).reshape(x.shape), np.float32(grad_x))
  for key in ('scale', 'bias'):
    close(many_params[key].sum(0), grad_params[key], atol=1e-2)
  for key in ('mean', 'var'):
    for device in range(4):
      close(many_new[key][device], new[key])
  if dtype == jnp.float32:
    # By hand, in float64, from the real examples alone: torch's momentum 0.1.
    flat = real.astype(np.float64).reshape(-1, 4)
    close(new['mean'], 0.9 * 28 + 0.1 * flat.mean(0))
    close(new['var'], 0.9 + 0.1 * flat.var(0, ddof=1))


def test_batch_norm_survives_a_batch_of_padding():
  layer = layers.BatchNorm()
  x = jnp.ones((2, 3, 3, 4))
  variables = layer.init(jax.random.key(0), x)
  y, state = layer.apply(
    variables, x, train=True, mask=jnp.zeros(2), mutable=['batch_stats']
  )
  assert np.isfinite(y).all()
  jax.tree.map(
    np.testing.assert_array_equal,
    state['batch_stats'],
    variables['batch_stats'],
  )
