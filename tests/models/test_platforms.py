"""What is tuned for the CPU is in the CPU's programs only.

Lowering for a GPU or a TPU needs neither one nor its compiler.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iqa_jax import config as config_lib
from iqa_jax import devices, inference, models
from iqa_jax.explain import cam
from iqa_jax.models import layers, platforms
from iqa_jax.photograph.placement import Window
from iqa_jax.tasks import Task
from iqa_jax.training import phases
from iqa_jax.training import step as step_lib

SIZE, BATCH = 32, 2
# Their last phase, besides all layers: the last stage with the head.
NETWORKS = {'resnet50': 'stage4+head', 'vgg16': 'block5+head'}
OPERATIONS = (
  'convolution',
  'dot_general',
  'reduce_window',
  'select_and_scatter',
)


def lowered(traced, platform):
  """Returns how often each operation is in the program for a platform."""
  text = traced.lower(lowering_platforms=(platform,)).as_text()
  return {
    name: len(re.findall(rf'stablehlo\.{name}\b', text)) for name in OPERATIONS
  }


@functools.cache
def built(name, dtype='bfloat16', head='linear'):
  model = models.create(
    name, 2, width=0.05, depth=0.3, dtype=dtype, axis_name=devices.AXIS,
    head=head,
  )  # fmt: skip
  return model, models.shapes(model, SIZE)


def training(name, learns):
  """Returns the traced update of a phase, on one device."""
  model, shapes = built(name)
  learning = phases.learning(
    config_lib.phase(learns=learns),
    shapes['params'],
    model.stages,
    steps_per_epoch=1,
  )
  state = jax.eval_shape(
    lambda v: step_lib.begin_phase(step_lib.create_state(v), learning), shapes
  )
  spec = jax.ShapeDtypeStruct
  batch = {
    'image': spec((1, BATCH, SIZE, SIZE, 3), jnp.uint8),
    'mask': spec((1, BATCH), jnp.float32),
    'index': spec((1, BATCH), jnp.int32),
    'quality': spec((1, BATCH), jnp.int32),
    'grade': spec((1, BATCH), jnp.int32),
    'criteria': spec((1, BATCH, 4), jnp.int32),
    'stop': spec((1,), jnp.float32),
  }
  # shard_map is what pmap is inside, and can be lowered for others.
  with devices.using(jax.devices()[:1], way='shard_map'):
    return step_lib.make_train_step(model, Task(), learning).trace(state, batch)


def predicting(name):
  model, shapes = built(name)
  images = jax.ShapeDtypeStruct((1, BATCH, SIZE, SIZE, 3), jnp.uint8)
  with devices.using(jax.devices()[:1], way='shard_map'):
    predictor = inference.make_predictor(model, Task(), flip_tta=True)
    return predictor.trace(shapes, images)


def explaining(name):
  model, shapes = built(name)
  task = Task()

  def step(variables, pixels):
    choose = functools.partial(cam.choose_targets, task, 'predicted')
    x = models.normalize(pixels)
    return cam.explain(
      model, variables, x, choose, task=task, methods=cam.METHODS
    )

  images = jax.ShapeDtypeStruct((BATCH, SIZE, SIZE, 3), jnp.uint8)
  return jax.jit(step).trace(shapes, images)


@pytest.mark.parametrize('name', NETWORKS)
def test_every_step_is_lowered_for_every_platform_as_suits_it(name):
  _, shapes = built(name)
  kernels = [leaf for leaf in jax.tree.leaves(shapes) if leaf.ndim == 4]
  pools = 1 if name == 'resnet50' else 5
  steps = {
    'all': training(name, 'all'),
    'last': training(name, NETWORKS[name]),
    'head': training(name, 'head'),
    'predict': predicting(name),
    'explain': explaining(name),
  }
  for what, traced in steps.items():
    views = 2 if what == 'predict' else 1
    for platform in ('cuda', 'tpu'):
      found = lowered(traced, platform)
      assert found['convolution'] >= views * len(kernels), (what, found)
      assert found['reduce_window'] == views * pools, (what, found)
    on_cpu = lowered(traced, 'cpu')
    assert on_cpu['reduce_window'] == 0, (what, on_cpu)
    assert on_cpu['select_and_scatter'] == 0, (what, on_cpu)
  whole = lowered(steps['all'], 'tpu')
  # All kernels' gradients, and all maps' but the images'.
  assert whole['convolution'] == 3 * len(kernels) - 1
  assert whole['select_and_scatter'] == pools
  pointwise = sum(leaf.shape[:2] == (1, 1) for leaf in kernels)
  on_cpu = lowered(steps['all'], 'cpu')
  assert on_cpu['convolution'] == whole['convolution'] - 3 * pointwise


@pytest.mark.parametrize('stride', [1, 2])
def test_a_1x1_convolution_is_the_same_product_everywhere(stride):
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=(2, 7, 5, 6)), jnp.float32)
  layer = layers.conv(4, Window(1, stride), dtype=jnp.float32)
  variables = layer.init(jax.random.key(0), x)
  back = jnp.asarray(rng.normal(size=layer.apply(variables, x).shape))

  def gradients(variables, x):
    y, pull = jax.vjp(layer.apply, variables, x)
    return y, pull(back)

  tuned = jax.jit(gradients)(variables, x)
  with platforms.portable():
    plain = jax.jit(lambda *a: gradients(*a))(variables, x)
  by_hand = np.einsum(
    'bhwi,io->bhwo',
    np.float64(x)[:, ::stride, ::stride],
    np.float64(variables['params']['kernel'][0, 0]),
  )
  np.testing.assert_allclose(tuned[0], by_hand, rtol=1e-5, atol=1e-5)
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5),
    tuned,
    plain,
  )


def normalised(stride, dtype, platform, devices=1):
  """Returns what a normalised 1x1 convolution is where tuned for a platform.

  That is (results, statistics, gradients) of examples of which some are
  padding that must not be seen.
  """
  rng = np.random.default_rng(0)
  # As after a ReLU, and far from 0, where sums of squares would cancel.
  x = np.maximum(rng.normal(3, 2, (8, 7, 5, 6)), 0).astype(np.float32)
  mask = np.ones(8, np.float32)
  mask[[3, 4, 5]] = 0  # of four devices the third has nothing else
  x[mask == 0] = 1e4
  axis = None if devices == 1 else 'batch'
  conv = layers.Pointwise(4, stride, dtype)
  layer = layers.BatchNorm(axis, dtype)

  def apply(params, stats, x, mask):
    kernel = conv.bind({'params': params['conv']})
    return layer.apply(
      {'params': params['norm'], 'batch_stats': stats},
      x,
      train=True,
      mask=mask,
      conv=kernel,
      mutable=['batch_stats'],
    )

  params = {
    'conv': {'kernel': rng.normal(size=(1, 1, 6, 4)).astype(np.float32)},
    'norm': {
      'scale': rng.normal(size=4).astype(np.float32),
      'bias': rng.normal(size=4).astype(np.float32),
    },
  }
  stats = {'mean': np.full(4, 20.0, np.float32), 'var': np.ones(4, np.float32)}
  y_shape = (8, -(-7 // stride), -(-5 // stride), 4)
  weight = rng.normal(size=y_shape).astype(np.float32)
  weight *= mask[:, None, None, None]

  def run(x, mask, weight):
    def loss(params, x):
      y, new = apply(params, stats, x, mask)
      return (y * weight).sum(), (y, new['batch_stats'])

    gradient = jax.grad(loss, (0, 1), has_aux=True)
    (to_params, to_x), (y, new) = gradient(params, x)
    if axis:
      to_params = jax.lax.psum(to_params, axis)
    return y, new, to_params, to_x

  arguments = x.astype(dtype), mask, weight
  with platforms.portable(platform):
    if not axis:
      found = jax.jit(run)(*arguments)
    else:
      split = [a.reshape(devices, -1, *a.shape[1:]) for a in arguments]
      y, new, to_params, to_x = jax.pmap(run, axis_name=axis)(*split)
      new, to_params = jax.tree.map(lambda a: a[0], (new, to_params))
      joined = [a.reshape(-1, *a.shape[2:]) for a in (y, to_x)]
      found = joined[0], new, to_params, joined[1]
  return jax.tree.map(np.float32, found), (x, mask, params)


@pytest.mark.parametrize('devices', [1, 4])
@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize('stride', [1, 2])
def test_a_tpu_normalises_unseen_convolutions_to_the_same_numbers(
  stride, dtype, devices
):
  found, (x, mask, params) = normalised(stride, dtype, 'tpu', devices)
  expected, _ = normalised(stride, dtype, '')
  tolerance = 2e-5 if dtype == jnp.float32 else 3e-2

  def close(found, expected):
    scale = np.abs(expected[mask > 0] if len(expected) == 8 else expected).max()
    found, expected = found / scale, expected / scale
    np.testing.assert_allclose(found, expected, atol=tolerance)

  real = mask > 0
  close(found[0][real], expected[0][real])
  jax.tree.map(close, found[1:3], expected[1:3])
  close(found[3], expected[3])
  # By hand, in float64, from the real examples alone.
  y = np.float64(x)[real, ::stride, ::stride] @ params['conv']['kernel'][0, 0]
  norm, flat = params['norm'], y.reshape(-1, 4)
  y = (y - flat.mean(0)) / np.sqrt(flat.var(0) + 1e-5)
  close(found[0][real], y * norm['scale'] + norm['bias'])
  close(found[1]['mean'], 18 + 0.1 * flat.mean(0))
  close(found[1]['var'], 0.9 + 0.1 * flat.var(0, ddof=1))


def test_wide_convolutions_stay_unseen_in_a_tpus_training_only():
  _, shapes = built('resnet50')
  names = jax.tree_util.tree_flatten_with_path(shapes['params'])[0]
  wide = [p for p, _ in names if p[-2].key in ('conv3', 'shortcut_conv')]
  traced = training('resnet50', 'all')
  with platforms.portable():
    plain = lowered(training('resnet50', 'all'), 'cuda')
  assert lowered(traced, 'cuda') == plain
  # The products of a map's channels and their gradient.
  extra = lowered(traced, 'tpu')['dot_general'] - plain['dot_general']
  assert len(wide) == 9 and extra >= 2 * len(wide)
  predict = predicting('resnet50')
  assert lowered(predict, 'tpu') == lowered(predict, 'cuda')


def test_a_gpu_remembers_what_vgg_s_relu_gave_and_scatters_nothing():
  traced = training('vgg16', 'all')
  assert lowered(traced, 'cuda')['select_and_scatter'] == 0
  assert lowered(traced, 'tpu')['select_and_scatter'] == 5
  text = traced.lower(lowering_platforms=('cuda',)).as_text()
  _, shapes = built('vgg16')
  convolutions = sum(leaf.ndim == 4 for leaf in jax.tree.leaves(shapes))
  barriers = text.count('stablehlo.optimization_barrier')
  assert barriers == convolutions
  for platform in ('cpu', 'tpu'):
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert 'optimization_barrier' not in text


def test_portable_programs_leave_no_choice():
  layer = layers.conv(4, Window(1), dtype=jnp.float32)
  x = jnp.ones((1, 3, 3, 2))
  variables = layer.init(jax.random.key(0), x)
  with platforms.portable():
    jaxpr = str(jax.make_jaxpr(layer.apply)(variables, x))
  assert 'platform_index' not in jaxpr and 'conv_general_dilated' in jaxpr
  assert 'platform_index' in str(jax.make_jaxpr(layer.apply)(variables, x))
