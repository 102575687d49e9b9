"""cam: exact against pytorch-grad-cam, the same in any batch, and cheap."""

import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iqa_jax import models, tasks
from iqa_jax.explain import cam, scaling
from tests.models import reference, test_models

_SIZE = 64


@dataclasses.dataclass(frozen=True)
class _Logits:
  """A task whose scores are the logits, as for ImageNet's classes."""

  def scores(self, logits):
    return logits


def network(name='vgg16', *, task=None, head='linear', dtype='float32'):
  """Returns a narrow, shallow network with random statistics, and images."""
  task = task or tasks.Task()
  model = models.create(
    name, task.num_outputs, head=head, width=0.125, depth=0.34, dtype=dtype
  )
  shapes = models.shapes(model, _SIZE)
  rng = np.random.default_rng(0)

  def draw(path, leaf):
    kind = path[-1].key
    if kind in ('scale', 'var'):
      value = rng.uniform(0.5, 1.5, leaf.shape)
    else:
      fan_in = np.prod(leaf.shape[:-1]) if kind == 'kernel' else 100
      value = rng.standard_normal(leaf.shape) * np.sqrt(2 / fan_in)
    return value.astype(leaf.dtype)

  variables = jax.tree_util.tree_map_with_path(draw, shapes)
  # Smooth at two scales, as photographs are.
  coarse = rng.standard_normal((4, 3, 8, 8))
  images = scaling.enlarge(coarse, (_SIZE, _SIZE)).transpose(0, 2, 3, 1)
  images += 0.1 * rng.standard_normal(images.shape)
  return model, variables, images, task


@functools.cache
def _explainer(model, task, **kwargs):
  return jax.jit(functools.partial(cam.explain, model, task=task, **kwargs))


def _agree(a, b, tolerance):
  a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
  assert a.shape == b.shape
  assert np.abs(a - b).max() <= tolerance * np.abs(b).max()


@pytest.mark.parametrize('name', ['resnet50', 'vgg16'])
def test_maps_equal_those_of_pytorch_grad_cam(name, shared, tmp_path):
  expected = np.load(shared / 'reference' / f'{name}_reference.npz')
  model, shapes = test_models.built(name)
  variables = test_models.reference_variables(model, shapes, tmp_path)
  explain = _explainer(model, _Logits(), methods=cam.METHODS)
  found = explain(
    variables, reference.images(224, 224), expected['224x224/classes']
  )

  _agree(found.logits, expected['224x224/logits'], 1e-4)
  # What the reference calls raw has been through the ReLU.
  raw = np.maximum(found.maps['gradcam'], 0)
  _agree(raw, expected['224x224/gradcam_raw'], 1e-4)
  as_theirs = cam.placed(model, None, 'pytorch_grad_cam')
  for method in cam.METHODS:
    scaled = scaling.scale(
      found.maps[method], 'image', (224, 224), placement=as_theirs
    )
    published = expected[f'224x224/{method}_scaled'].astype(np.float32)
    differences = [np.abs(scaled - published).max((1, 2))]
    if method == 'eigencam':
      negated = scaling.scale(
        -found.maps[method], 'image', (224, 224), placement=as_theirs
      )
      differences.append(np.abs(negated - published).max((1, 2)))
    assert np.min(differences, axis=0).max() <= 2e-3, method
  if name == 'resnet50':
    assert list(scaling.status(found.maps['gradcam'])) == ['ok', 'empty']


@pytest.mark.parametrize('name', ['resnet50', 'vgg16'])
def test_signed_maps_of_every_layer_equal_pytorch_grad_cams(name, tmp_path):
  golden = np.load(pathlib.Path(__file__).parent / 'cam_golden.npz')
  layers = {'resnet50': ('stage2', 'stage4'), 'vgg16': ('block4', 'block5')}
  model, shapes = test_models.built(name, 10, width=test_models.WIDTH)
  variables = test_models.reference_variables(model, shapes, tmp_path)
  explain = _explainer(
    model, _Logits(), layer=layers[name], methods=cam.METHODS
  )
  found = explain(variables, reference.images(96, 64), np.asarray([3, 7]))
  assert (golden[f'{name}/hirescam/{layers[name][0]}'] < 0).any()
  for method in cam.METHODS:
    for layer, maps in zip(layers[name], found.maps[method], strict=True):
      expected = golden[f'{name}/{method}/{layer}']
      if method == 'eigencam':
        sign = np.sign((maps * expected).sum((1, 2), keepdims=True))
        expected = expected * sign
      for ours, theirs in zip(maps, expected, strict=True):
        _agree(ours, theirs, 1e-4)
  several = scaling.scale(found.maps['gradcam'], 'image', (96, 64))
  np.testing.assert_allclose(
    several[:, ::5, ::5], golden[f'{name}/several'], atol=1e-4
  )


@pytest.mark.parametrize('name', models.names())
def test_each_image_is_explained_as_if_alone(name):
  model, variables, images, task = network(name)
  explain = _explainer(model, task, methods=cam.METHODS)
  targets = np.asarray([0, 1, 2, 1])  # adequate, inadequate, margin, ...
  together = explain(variables, images, targets)
  for i in range(len(images)):
    alone = explain(variables, images[i : i + 1], targets[i : i + 1])
    for method in cam.METHODS:
      # 1e-6 but for rounding: XLA adds in another order on a busy machine, and
      # 1.1e-6 was seen there.
      _agree(together.maps[method][i], alone.maps[method][0], 3e-6)
  # And the target matters: another one gives another map.
  other = explain(variables, images, 1 - np.minimum(targets, 1))
  assert not np.allclose(together.maps['gradcam'], other.maps['gradcam'])


def test_padding_does_not_reach_the_other_images():
  model, variables, images, task = network('resnet50')
  explain = _explainer(model, task, methods=cam.METHODS)
  targets = np.asarray([0, 1, 1, 0])
  full = explain(variables, images, targets)
  images[2:] = np.nan
  padded = explain(variables, images, np.asarray([0, 1, 0, 0]))
  for method in cam.METHODS:
    np.testing.assert_array_equal(
      full.maps[method][:2], padded.maps[method][:2]
    )


@pytest.mark.parametrize('name', models.names())
def test_behind_a_linear_head_the_map_sums_to_the_logit(name):
  model, variables, images, task = network(name)
  # VGG pools before the average: the last map is the pooled one.
  explain = _explainer(
    model, task, layer=model.points[-1], methods=('gradcam', 'hirescam')
  )
  for target in range(task.num_outputs):
    found = explain(variables, images, np.full(4, target))
    bias = variables['params']['head']['logits']['bias'][target]
    expected = found.logits[:, target] - bias
    assert np.abs(expected).min() > 1e-3
    for maps in found.maps.values():
      np.testing.assert_allclose(maps.sum((1, 2)), expected, rtol=2e-5)
      np.testing.assert_allclose(
        scaling.scale(maps, 'logit').mean((1, 2)), expected, rtol=2e-5
      )


def test_the_margin_is_the_difference_of_the_two_classes():
  model, variables, images, task = network()
  explain = _explainer(model, task)
  adequate, inadequate, margin = (
    explain(variables, images, np.full(4, i)) for i in range(3)
  )
  _agree(
    margin.maps['gradcam'],
    inadequate.maps['gradcam'] - adequate.maps['gradcam'],
    1e-5,
  )
  _agree(margin.scores, inadequate.scores - adequate.scores, 1e-5)


def test_what_leaves_the_probabilities_alone_leaves_the_default_map_alone():
  """A softmax is blind to what is added to all of its logits."""
  model, variables, images, task = network()
  p = np.asarray(task.p_inadequate(model.apply(variables, images)))
  predicted = functools.partial(
    cam.choose_targets, task, 'predicted', threshold=float(np.median(p))
  )

  @jax.jit
  def explain(variables, targets):
    chosen = predicted if targets is None else lambda _: targets
    return cam.explain(model, variables, images, chosen, task=task)

  before = explain(variables, None), explain(variables, np.ones(4, int))
  layer = variables['params']['head']['logits']
  noise = np.random.default_rng(1).standard_normal((len(layer['kernel']), 1))
  layer['kernel'] = layer['kernel'] + noise.astype(np.float32)
  after = explain(variables, None), explain(variables, np.ones(4, int))
  _agree(after[0].maps['gradcam'], before[0].maps['gradcam'], 1e-4)
  assert not np.allclose(after[1].maps['gradcam'], before[1].maps['gradcam'])
  assert sorted(before[0].targets) == [2, 2, 3, 3]  # both verdicts are met


def test_gradients_are_those_of_finite_differences():
  model, variables, images, task = network(
    task=tasks.Task('criteria'), head='mlp'
  )
  maps = model.apply(variables, images, stop='block3')
  margin = task.targets.index('margin')

  # HiResCAM is gradient times activation: its sum is the derivative in the
  # direction of the activation itself.
  @jax.jit
  def score(step):
    logits = model.apply(variables, maps * (1 + step), start='block3')
    return task.scores(logits)[:, margin]

  slope = (score(1e-2) - score(-1e-2)) / 2e-2
  found = _explainer(model, task, layer='block3', methods=('hirescam',))(
    variables, images, np.full(4, margin)
  )
  np.testing.assert_allclose(
    found.maps['hirescam'].sum((1, 2)), slope, rtol=2e-2
  )


def test_several_layers_targets_and_methods_share_one_pass():
  model, variables, images, task = network('resnet50')
  layers = ('stage4', 'stage2', 'stage3')
  methods = ('gradcam', 'eigencam')
  several = _explainer(model, task, layer=layers, methods=methods)(
    variables, images, np.asarray([[0, 1, 2, 0], [1, 1, 1, 1]])
  )
  assert several.maps['gradcam'][1].shape == (2, 4, 8, 8)
  for i, layer in enumerate(layers):
    for row, targets in enumerate(([0, 1, 2, 0], [1, 1, 1, 1])):
      single = _explainer(model, task, layer=layer, methods=methods)(
        variables, images, np.asarray(targets)
      )
      for method in methods:
        _agree(several.maps[method][i][row], single.maps[method], 2e-5)
      _agree(several.scores[row], single.scores, 1e-6)


@pytest.mark.parametrize('name', models.names())
def test_bfloat16_is_close_to_float32(name):
  model, variables, images, task = network(name)
  low = network(name, dtype='bfloat16')[0]
  # Not before a max-pooling: where two activations round to the same value,
  # the gradient goes to another of them.
  exact, found = (
    _explainer(m, task, layer=m.points[-1], methods=cam.METHODS)(
      variables, images, np.asarray([0, 1, 0, 1])
    )
    for m in (model, low)
  )
  for method in cam.METHODS:
    assert found.maps[method].dtype == jnp.float32
    _agree(found.maps[method], exact.maps[method], 0.05)


@pytest.mark.parametrize('name', ['resnet50', 'vgg16'])
def test_nothing_below_the_layer_is_differentiated(name):
  model, variables, images, task = network(name)
  layer = {'resnet50': 'stage4', 'vgg16': 'block5'}[name]

  def flops(function, *arguments):
    return (
      jax.jit(function).lower(*arguments).compile().cost_analysis()['flops']
    )

  forward = flops(model.apply, variables, images)
  explain = functools.partial(cam.explain, model, task=task, layer=layer)
  targets = np.zeros(4, np.int32)
  assert flops(explain, variables, images, targets) <= 1.05 * forward
  # The count does see a backward pass: a lower layer costs one.
  lower = functools.partial(
    cam.explain, model, task=task, layer=model.points[1]
  )
  assert flops(lower, variables, images, targets) > 1.3 * forward


def test_an_empty_map_has_a_status_and_is_never_nan():
  model, variables, images, task = network('resnet50')
  # Activations are not negative, so this head has no evidence for class 0.
  kernel = variables['params']['head']['logits']['kernel']
  variables['params']['head']['logits']['kernel'] = np.stack(
    [-np.abs(kernel[:, 0]), kernel[:, 1]], axis=1
  )
  found = _explainer(model, task, methods=cam.METHODS)(
    variables, images, np.zeros(4, np.int32)
  )
  for method in ('gradcam', 'gradcampp', 'hirescam', 'layercam', 'xgradcam'):
    maps = np.asarray(found.maps[method])
    assert list(scaling.status(maps)) == ['empty'] * 4, method
    for how in ('none', 'image', 'logit'):
      assert np.isfinite(scaling.scale(maps, how, (20, 30))).all()
    assert not scaling.scale(maps, 'image', (20, 30)).any()


def test_dead_activations_are_never_nan():
  # A photograph without light, through a network without biases.
  model, variables, images, task = network()
  variables['params']['backbone'] = jax.tree.map(
    lambda leaf: leaf if leaf.ndim > 1 else np.zeros_like(leaf),
    variables['params']['backbone'],
  )
  found = _explainer(model, task, methods=cam.METHODS)(
    variables, np.zeros_like(images), np.zeros(4, np.int32)
  )
  for method in cam.METHODS:
    assert not np.any(found.maps[method]), method
    assert scaling.status(found.maps[method][0]) == 'empty'


def test_eigencam_is_positive_where_activation_is_larger():
  for size in (_SIZE, 96):  # more channels than cells, and the other way round
    model, variables, _, task = network()
    images = np.random.default_rng(2).standard_normal((3, size, size, 3))
    layer = 'block3'
    found = _explainer(model, task, layer=layer, methods=('eigencam',))(
      variables, images, np.zeros(3, int)
    )
    maps = model.apply(variables, images, stop=layer)
    flat = np.asarray(maps, np.float64).reshape(3, -1, maps.shape[-1])
    for i in range(3):
      centred = flat[i] - flat[i].mean(0)
      _, _, right = np.linalg.svd(centred, full_matrices=False)
      projection = centred @ right[0]
      ours = np.asarray(found.maps['eigencam'][i]).ravel()
      _agree(ours, projection * np.sign(projection @ ours), 1e-4)
      assert ours @ flat[i].sum(1) > 0


def test_targets_are_chosen_from_the_same_pass():
  model, variables, images, task = network()
  for threshold in (0.01, 0.99):
    choose = functools.partial(
      cam.choose_targets, task, 'predicted', threshold=threshold
    )
    explain = functools.partial(cam.explain, model, task=task, targets=choose)
    chosen = jax.jit(explain)(variables, images)
    p_inadequate = np.asarray(task.p_inadequate(chosen.logits))
    names = np.where(p_inadequate >= threshold, 'margin', 'adequate_margin')
    expected = np.asarray([task.targets.index(name) for name in names])
    np.testing.assert_array_equal(chosen.targets, expected)
    direct = _explainer(model, task)(variables, images, expected)
    _agree(chosen.maps['gradcam'], direct.maps['gradcam'], 1e-6)


def test_named_and_labelled_targets():
  task = tasks.Task('criteria')
  logits = np.asarray([[1.0, 3, 2, 0], [1, 3, 2, 0], [-1, -1, -1, -1]])
  np.testing.assert_array_equal(
    cam.choose_targets(task, 'artifacts', logits), [3, 3, 3]
  )
  labels = {'criteria': np.asarray([[1, 0, 1, 0], [0, 1, 1, 1], [0, 0, 0, 0]])}
  np.testing.assert_array_equal(
    cam.choose_targets(task, 'labelled', logits, labels=labels), [2, 1, 4]
  )
  quality = {'quality': np.asarray([1, 0, 1])}
  np.testing.assert_array_equal(
    cam.choose_targets(tasks.Task(), 'labelled', logits[:, :2], labels=quality),
    quality['quality'],
  )
  with pytest.raises(ValueError, match='number 1'):
    labels['criteria'][1, 2] = -1
    cam.choose_targets(task, 'labelled', logits, labels=labels)
  with pytest.raises(ValueError, match=r"'blur' is none of .*margin"):
    cam.choose_targets(task, 'blur', logits)


def test_targets_that_do_not_exist_are_refused():
  model, variables, images, task = network()
  explain = functools.partial(cam.explain, model, variables, images, task=task)
  with pytest.raises(ValueError, match='target 4 is outside the 4 scores'):
    explain(np.asarray([0, 1, 4, 0]))
  with pytest.raises(ValueError, match=r'shape \(3,\) for 4 images'):
    explain(np.asarray([0, 1, 2]))
  traced = _explainer(model, task)(variables, images, np.asarray([0, 1, 4, -1]))
  assert list(scaling.status(traced.maps['gradcam']))[2:] == ['not_finite'] * 2
  assert np.isfinite(traced.maps['gradcam'][:2]).all()
  with pytest.raises(ValueError, match="layer 'stage9' is none of block1"):
    explain(np.zeros(4, int), layer='stage9')
  with pytest.raises(ValueError, match="method 'cam' is none of"):
    explain(np.zeros(4, int), methods=('cam',))


def test_maps_are_laid_where_the_network_looks_or_as_others_draw_them():
  maps = np.zeros((1, 7, 7))
  maps[0, 3, 3] = 1
  at = np.arange(224) + 0.5
  for name, theirs, ours in (('resnet50', 112, 96.5), ('vgg16', 112, 112)):
    model = models.create(name, 2)
    layer = model.points[-1]
    for how, expected in (('pytorch_grad_cam', theirs), ('network', ours)):
      place = cam.placed(model, layer, how)
      large = scaling.scale(maps, 'none', (224, 224), placement=place)[0]
      assert (large.sum(0) @ at) / large.sum() == pytest.approx(expected)
      # Half the size, the same place.
      half = place and place.scaled(0.5)
      small = scaling.enlarge(maps, (112, 112), half)[0]
      centre = (small.sum(0) @ at[:112]) / small.sum()
      assert centre == pytest.approx(expected / 2)
  with pytest.raises(ValueError, match="'torch' is none of network"):
    cam.placed(model, None, 'torch')


def test_scaling_is_comparable_where_it_says_so():
  maps = np.asarray([[[0.0, 1.0], [-1.0, 0.0]], [[0.0, 4.0], [-2.0, 0.0]]])
  np.testing.assert_allclose(
    scaling.scale(maps, 'image'), np.asarray([[[0, 1], [0, 0]]] * 2), atol=1e-6
  )
  unit = scaling.magnitude(maps, 1.0)
  assert unit == 4
  np.testing.assert_allclose(
    scaling.scale(maps, 'dataset', magnitude=unit), maps / 4
  )
  np.testing.assert_array_equal(scaling.scale(maps, 'logit'), maps * 4)
  np.testing.assert_array_equal(scaling.scale(maps, 'none'), maps)
  # Averaging over layers of other sizes; the mean map is stretched once more.
  coarse = np.asarray([[[2.0]], [[3.0]]])
  mean = scaling.scale([maps, coarse], 'none', (4, 6))
  assert mean.shape == (2, 4, 6)
  np.testing.assert_allclose(
    mean[0], (scaling.enlarge(maps[0], (4, 6)) + 2) / 2, atol=1e-6
  )
  with pytest.raises(ValueError, match='positive magnitude'):
    scaling.scale(maps, 'dataset')
  with pytest.raises(ValueError, match='need a size'):
    scaling.scale([maps, coarse], 'none')


def test_enlarging_is_linear_between_cell_centres():
  ramp = np.arange(5.0)[None].repeat(3, 0)
  large = scaling.enlarge(ramp, (6, 50))
  at = (np.arange(50) + 0.5) / 10 - 0.5
  np.testing.assert_allclose(
    large, np.clip(at, 0, 4)[None].repeat(6, 0), atol=1e-5
  )
  np.testing.assert_array_equal(scaling.enlarge(ramp, (3, 5)), ramp)
  assert scaling.enlarge(np.ones((1, 1)), (4, 4)).min() == 1
