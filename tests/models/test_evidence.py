"""The map is the judgement: it sums to the logit, inside the field only."""

import functools

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit

from iqa_jax import errors, labels, models
from iqa_jax.explain import cam
from iqa_jax.models import evidence, grid, platforms
from iqa_jax.tasks import Task

SIZE = 64


def make(name, task, **options):
  model = models.create(
    name,
    task.num_outputs,
    width=0.06,
    depth=0.1,
    head='evidence',
    cells=8,
    cell_units=5,
    independent=task.name == 'criteria',
    **options,
  )
  variables = models.init(model, jax.random.key(0), SIZE)
  # Weights that matter, instead of those that training begins with.
  flat, tree = jax.tree.flatten(variables['params'])
  rng = np.random.default_rng(1)
  flat = [f + rng.normal(0, 0.2, f.shape).astype(np.float32) for f in flat]
  return model, {**variables, 'params': jax.tree.unflatten(tree, flat)}


def photographs(count=3, field=None):
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (count, SIZE, SIZE, 4), dtype=np.uint8)
  images[..., 3] = 255 if field is None else 255 * field
  return images


def circle(radius=0.4):
  at = (np.arange(SIZE) + 0.5) / SIZE - 0.5
  return (np.hypot(at[None], at[:, None]) < radius).astype(np.uint8)


@pytest.mark.parametrize('name', models.names())
@pytest.mark.parametrize('kind', ['quality', 'grade', 'criteria'])
def test_maps_sum_to_the_logit_less_its_bias(name, kind):
  task = Task(name=kind)
  model, variables = make(name, task)
  x = models.normalize(photographs(field=circle()))
  maps = np.asarray(model.apply(variables, x, stop='evidence'))
  logits = np.asarray(model.apply(variables, x))
  head = jax.tree.map(np.asarray, variables['params']['head'])
  weights = np.asarray(evidence.weights_of(head['weights']))
  mean = maps.mean((1, 2), dtype=np.float64)
  if kind == 'criteria':
    expected = mean * weights + head['bias']
  else:
    expected = mean @ weights + head['bias']
    np.testing.assert_array_equal(logits[:, 0], 0)
    logits = logits[:, 1:]
  np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('kind', ['quality', 'criteria'])
@pytest.mark.parametrize('layer', ['cells', 'evidence', ('cells', 'evidence')])
def test_an_explanation_tells_cells_and_causes_in_the_same_pass(kind, layer):
  task = Task(name=kind)
  model, variables = make('resnet50', task)
  x = models.normalize(photographs(field=circle()))
  targets = np.zeros(3, int)
  explain = functools.partial(
    cam.explain, model, task=task, layer=layer, methods=('gradcam',)
  )
  found = explain(variables, x, targets)
  _, state = model.apply(variables, x, mutable=['intermediates'])
  logits, share = (
    np.asarray(state['intermediates']['neck']['evidence'][name][0])
    for name in ('cell_logits', 'field_share')
  )
  names = labels.CRITERIA if kind == 'criteria' else labels.LOCAL_CRITERIA
  local = [names.index(name) for name in labels.LOCAL_CRITERIA]
  np.testing.assert_allclose(found.cells[0], logits[..., local], atol=1e-5)
  np.testing.assert_array_equal(found.cells[1], share)
  if kind == 'criteria':
    np.testing.assert_array_equal(found.cause, found.logits[:, local])
  assert found.cause.shape == (3, 3)

  def convolutions(function, *arguments):
    text = str(jax.make_jaxpr(function)(*arguments))
    return text.count('conv_general_dilated')

  forward = convolutions(model.apply, variables, x)
  assert convolutions(explain, variables, x, targets) == forward


@pytest.mark.parametrize('method', ['gradcam', 'hirescam', 'layercam'])
@pytest.mark.parametrize('name', models.names())
def test_gradients_give_the_same_map(name, method):
  task = Task()
  model, variables = make(name, task)
  x = models.normalize(photographs(field=circle()))
  margin = np.full(len(x), task.targets.index('margin'))
  explained = jax.jit(
    functools.partial(cam.explain, model, task=task, methods=(method,))
  )(variables, x, margin)
  maps = np.asarray(model.apply(variables, x, stop='evidence'))
  weights = evidence.weights_of(variables['params']['head']['weights'])
  own = (maps @ weights)[..., 0] / maps[0, ..., 0].size
  np.testing.assert_allclose(explained.maps[method], own, rtol=1e-5, atol=1e-7)
  bias = np.asarray(variables['params']['head']['bias'])
  np.testing.assert_allclose(
    own.sum((1, 2)) + bias, explained.scores, rtol=1e-5, atol=1e-5
  )


@pytest.mark.parametrize('name', models.names())
def test_detail_is_the_first_layer_of_the_whole_image(name):
  """Cells of the image's first layer, then those of half of the image."""
  fine, variables = make(name, Task(), detail=True)
  plain, _ = make(name, Task())
  x = models.normalize(photographs(field=circle()))
  cells = fine.apply(variables, x, stop='cells')

  half = np.asarray(x).reshape(3, SIZE // 2, 2, SIZE // 2, 2, 4).mean((2, 4))
  expected = plain.apply(variables, half, stop='cells')
  first = plain.points[0]  # at this depth a single layer
  whole = nn.relu(plain.apply(variables, x[..., :3], stop=first))
  where = (8, plain.placement(first), (SIZE, SIZE))
  expected = np.concatenate(
    [
      np.log1p(grid.shared_area(whole, *where)),
      np.log1p(grid.largest(whole, *where)),
      expected,
    ],
    -1,
  )
  np.testing.assert_allclose(cells, expected, rtol=1e-4, atol=1e-5)


def test_detail_is_one_convolution_of_vgg():
  model = models.create('vgg16', 2, width=0.06, head='evidence', detail=True)
  variables = models.init(model, jax.random.key(0), 112)
  images = np.random.default_rng(0).integers(0, 256, (1, 112, 112, 4), np.uint8)
  x = models.normalize(images)
  with platforms.portable():
    text = str(jax.make_jaxpr(model.apply)(variables, x))
  assert text.count('conv_general_dilated[') == 1 + 2 + 2 + 3 + 3
  first = variables['params']['backbone']['block1']['conv1']
  whole = jax.lax.conv_general_dilated(
    x[..., :3], first['kernel'], (1, 1), [(1, 1), (1, 1)],
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )  # fmt: skip
  whole = np.maximum(whole + first['bias'], 0)
  expected = whole.reshape(1, 28, 4, 28, 4, -1).mean((2, 4))
  cells = model.apply(variables, x, stop='cells')
  found = cells[..., : expected.shape[-1]]
  np.testing.assert_allclose(found, np.log1p(expected), rtol=1e-4, atol=1e-5)


def test_a_gpu_sees_the_whole_detail_and_a_cpu_strips():
  model, variables = make('vgg16', Task(), detail=True)
  x = models.normalize(photographs())
  for platform, loops in {'cpu': True, 'cuda': False, 'tpu': False}.items():
    lowered = jax.jit(model.apply).trace(variables, x)
    text = lowered.lower(lowering_platforms=(platform,)).as_text()
    assert ('stablehlo.while' in text) == loops, platform


@pytest.mark.parametrize('point', ['stem', 'stage1'])
def test_points_of_half_the_image_look_where_they_do(point):
  """A pixel of the half is centred between two of the whole."""
  plain = models.create('resnet50', 2, head='evidence').placement(point)
  half = models.create('resnet50', 2, head='evidence', detail=True)
  expected = plain.scaled(2)
  found = half.placement(point)
  assert (found.offset, found.stride) == (expected.offset, expected.stride)


def test_detail_wants_even_sizes_and_a_head_with_cells():
  model, variables = make('vgg16', Task(), detail=True)
  with pytest.raises(errors.InvalidValue, match='63x63'):
    model.apply(variables, models.normalize(photographs()[:, 1:, 1:]))
  with pytest.raises(errors.InvalidValue, match='linear'):
    models.create('vgg16', 2, detail=True)


def test_nothing_lies_outside_the_field():
  model, variables = make('vgg16', Task())
  field = circle()
  maps = np.asarray(
    model.apply(
      variables, models.normalize(photographs(field=field)), stop='evidence'
    )
  )
  share = field.reshape(8, 8, 8, 8).mean((1, 3))
  assert (maps[:, share == 0] == 0).all()
  assert (maps[:, share > 0] > 0).all()


def test_pixels_out_of_reach_of_the_field_change_nothing():
  model, variables = make('vgg16', Task(), taps=('block1',))
  field = circle(0.3)
  images = photographs(field=field)
  painted = images.copy()
  painted[:, :6, :, :3] = 255 - painted[:, :6, :, :3]
  logits = [
    model.apply(variables, models.normalize(i)) for i in (images, painted)
  ]
  np.testing.assert_array_equal(*logits)
  whole = images.copy()
  whole[..., 3] = 255
  assert not np.allclose(
    logits[0], model.apply(variables, models.normalize(whole))
  )


def test_no_field_is_the_whole_frame():
  model, variables = make('resnet50', Task())
  images = photographs()
  np.testing.assert_array_equal(
    model.apply(variables, models.normalize(images)),
    model.apply(variables, models.normalize(images[..., :3])),
  )


def test_a_black_frame_has_no_evidence_and_no_nan():
  model, variables = make('vgg16', Task())
  images = np.zeros((1, SIZE, SIZE, 4), np.uint8)
  maps = np.asarray(
    model.apply(variables, models.normalize(images), stop='evidence')
  )
  assert (maps == 0).all()


def test_evidence_only_speaks_against_a_photograph():
  model, variables = make('vgg16', Task())
  maps = np.abs(np.random.default_rng(0).normal(size=(1, 8, 8, 3)))
  task = Task()

  def margin(x):
    return task.margin(model.apply(variables, x, start='evidence'))[0]

  gradient = jax.grad(margin)(jnp.asarray(maps, jnp.float32))
  assert (gradient > 0).all()


def test_evidence_is_a_noisy_or_of_its_cells():
  """exp(-evidence) is the probability that a cell is clean."""
  model, variables = make('vgg16', Task())
  x = models.normalize(photographs())
  maps, kept = model.apply(
    variables, x, stop='evidence', mutable=['intermediates']
  )
  [logits] = kept['intermediates']['neck']['evidence']['cell_logits']
  np.testing.assert_allclose(np.exp(-maps), 1 - expit(logits), rtol=1e-5)


@pytest.mark.parametrize('spread', [(0.8,), (0.0, 0.8, 1.7)])
def test_cells_share_their_evidence_and_none_is_lost(spread):
  """Against every pair of cells, one after the other."""
  task = Task()
  plain, variables = make('vgg16', task)
  shared, _ = make('vgg16', task, cell_spread=spread)
  x = models.normalize(photographs(field=circle(0.35)))
  before = np.asarray(plain.apply(variables, x, stop='evidence'), np.float64)
  after = np.asarray(shared.apply(variables, x, stop='evidence'))
  field = circle(0.35).reshape(8, 8, 8, 8).mean((1, 3))
  assert (field == 0).any()
  places = [(i, j) for i in range(8) for j in range(8)]
  expected = np.zeros_like(before)
  for deviation in spread:
    for i, j in places:
      away = [np.hypot(i - a, j - b) for a, b in places]
      near = (
        np.exp(-0.5 * (np.reshape(away, (8, 8)) / deviation) ** 2)
        if (deviation)
        else (np.reshape(away, (8, 8)) == 0)
      )
      given = near * field
      if given.sum() > 0:
        given = given / given.sum()
      expected += given[..., None] * before[:, i, j, None, None] / len(spread)
  np.testing.assert_allclose(after, expected, rtol=1e-4, atol=1e-6)
  assert (after[:, field == 0] == 0).all()
  np.testing.assert_allclose(
    shared.apply(variables, x), plain.apply(variables, x), rtol=1e-5
  )


def test_image_field_has_a_logit_but_no_truth_of_cells():
  assert evidence.LOCAL == ('focus', 'illumination', 'artifacts')
  assert [labels.CRITERIA[i] for i in evidence.local(4)] == list(evidence.LOCAL)
  assert evidence.local(3) == (0, 1, 2)


def test_cell_loss_is_cross_entropy_of_known_cells():
  from sklearn.metrics import log_loss

  rng = np.random.default_rng(0)
  logits = rng.normal(size=(1, 4, 4, 1)).astype(np.float32)
  truth = rng.integers(0, 2, (1, 4, 4, 1)).astype(np.float32)
  share = rng.random((1, 4, 4)).astype(np.float32)
  truth[0, 0] = -1
  known = truth.ravel() >= 0
  expected = log_loss(
    truth.ravel()[known],
    expit(logits.astype(np.float64)).ravel()[known],
    sample_weight=share.ravel()[known],
  )
  found = evidence.cell_loss(logits, truth, share)
  np.testing.assert_allclose(found, [expected], rtol=1e-5)
  unknown = evidence.cell_loss(logits, np.full_like(truth, -1), share)
  np.testing.assert_array_equal(unknown, [0])


def test_ranking_loss_is_that_of_every_pair_of_cells():
  """By a loop over pairs; the photograph without a fault adds nothing."""
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(3, 3, 3, 2)).astype(np.float32)
  truth = rng.random((3, 3, 3, 2)).astype(np.float32)
  share = rng.random((3, 3, 3)).astype(np.float32)
  truth[0, 0, 0] = -1  # nothing is known of this cell
  truth[0, 1:, :, 0] = -1  # of these by one criterion
  truth[1] = 0
  truth[2] = -1
  total = count = 0.0
  cells = list(np.ndindex(3, 3))
  odds = {
    at: np.log(
      np.exp(logits[0][at].astype(np.float64))[truth[0][at] >= 0].sum()
    )
    for at in cells[1:]
  }
  for a in cells[1:]:
    for b in cells[1:]:
      weight = share[0][a] * truth[0][a].max()
      weight *= share[0][b] * (1 - truth[0][b].max())
      total += weight * np.log1p(np.exp(odds[b] - odds[a]))
      count += weight
  found = evidence.ranking_loss(*map(jnp.asarray, (logits, truth, share)))
  np.testing.assert_allclose(found, [total / count, 0, 0], rtol=1e-5)
  gradient = jax.grad(lambda x: evidence.ranking_loss(x, truth, share).sum())(
    jnp.asarray(logits)
  )
  assert np.isfinite(gradient).all()
  assert not np.asarray(gradient[1:]).any()
  assert not np.asarray(gradient[0, 0, 0]).any()
  assert not np.asarray(gradient[0, 1:, :, 0]).any()


def test_ranking_loss_bounds_the_pixel_auc():
  from sklearn.metrics import roc_auc_score

  rng = np.random.default_rng(1)
  truth = rng.integers(0, 2, (20, 6, 6, 1)).astype(np.float32)
  logits = (rng.normal(size=truth.shape) + truth * 2).astype(np.float32)
  found = evidence.ranking_loss(logits, truth, np.ones(truth.shape[:3]))
  auc = [
    roc_auc_score(t.ravel(), x.ravel())
    for t, x in zip(truth, logits, strict=True)
  ]
  assert (np.asarray(found) / np.log(2) > 1 - np.array(auc)).all()
  # Whatever is added to a whole photograph changes nothing.
  shifted = evidence.ranking_loss(logits + 3, truth, np.ones(truth.shape[:3]))
  np.testing.assert_allclose(shifted, found, rtol=1e-5)


@pytest.mark.parametrize('head', ['linear', 'standardized'])
@pytest.mark.parametrize('name', models.names())
def test_field_pooling_averages_inside_the_field(name, head):
  """Against the average, by NumPy, over cells weighed by hand."""
  size, field = 128, np.zeros((128, 128), np.uint8)
  field[:, 32:] = 1
  options = {'width': 0.06, 'depth': 0.1, 'head': head, 'last': None}
  plain = models.create(name, 2, **options)
  pooled = models.create(name, 2, **options, field_pooling=True)
  variables = models.init(plain, jax.random.key(0), size)
  images = np.random.default_rng(0).integers(0, 256, (2, size, size, 4))
  images[..., 3] = 255 * field
  x = models.normalize(images.astype(np.uint8))
  maps = np.asarray(plain.apply(variables, x[..., :3], stop=plain.points[-1]))
  # Torch's padding has ResNet's cells look 15.5 px to the left of even shares.
  first = {
    'vgg16': [0, 1, 1, 1],
    'resnet50': [0, 0.5 + 0.5 / 32, 1, 1],
  }[name]
  weights = np.broadcast_to(first, maps.shape[1:3])[..., None]
  expected = (maps * weights).sum((1, 2)) / weights.sum()
  found = pooled.apply(variables, x, stop='head_input')
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
  last = pooled.apply(variables, x, stop=pooled.points[-1])
  assert (np.asarray(last)[:, :, 0] == 0).all()
  # The whole frame is the plain head, and a cache of last maps suffices.
  np.testing.assert_allclose(
    pooled.apply(variables, x[..., :3]),
    plain.apply(variables, x[..., :3]),
    rtol=1e-5,
    atol=1e-7,
  )
  assert pooled.entries == (pooled.points[-1], 'head_input')
  np.testing.assert_allclose(
    pooled.apply(variables, last, start=pooled.points[-1]),
    pooled.apply(variables, x),
    rtol=1e-6,
    atol=1e-7,
  )


def test_maps_of_field_pooling_are_inside_the_field():
  model = models.create('vgg16', 2, width=0.06, depth=0.1, field_pooling=True)
  variables = models.init(model, jax.random.key(0), SIZE)
  x = models.normalize(photographs(field=circle(0.25)))
  explained = cam.explain(
    model,
    variables,
    x,
    np.ones(len(x), int),
    task=Task(),
    layer=('block3', 'block5_pool'),
  )
  early, last = explained.maps['gradcam']
  assert np.abs(early).max() > 0
  outside = np.kron(circle(0.25), np.ones((1, 1))).reshape(2, 32, 2, 32)
  assert (last[:, outside.max((1, 3)) == 0] == 0).all()


def test_field_pooling_is_of_heads_that_average():
  with pytest.raises(ValueError, match='no use for field_pooling'):
    models.create('vgg16', 2, head='mlp', field_pooling=True)
