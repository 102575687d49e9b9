"""Where feature cells look, measured on the networks themselves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iqa_jax import models
from iqa_jax.photograph import placement

_SIDE = 448  # about the receptive field of ResNet's last cells
_BATCH = 8

_POINTS = [
  (name, point)
  for name in ('resnet50', 'vgg16')  # whose windows overlap
  for point in models.create(name, 2).points
]


def _all_positive(model):
  """Returns variables under which all pixels a cell sees raise it alike."""

  def fill(path, leaf):
    kind = path[-1].key
    if kind == 'kernel':
      return jnp.full(leaf.shape, 1 / np.prod(leaf.shape[:-1]), leaf.dtype)
    return jnp.full(leaf.shape, float(kind in ('scale', 'var')), leaf.dtype)

  shapes = models.shapes(model, 64)
  return jax.tree_util.tree_map_with_path(fill, shapes)


@pytest.mark.parametrize(('name', 'point'), _POINTS)
def test_cells_look_where_their_response_is(name, point):
  model = models.create(name, 2, width=0.02, depth=0.34)
  variables = _all_positive(model)

  def response(images, first, end):
    out = model.apply(variables, images, stop=point)
    return out[:, first:end, first:end].sum()

  rng = np.random.default_rng(0)
  images = rng.random((_BATCH, _SIDE, _SIDE, 3), np.float32)
  count = jax.eval_shape(
    lambda x: model.apply(variables, x, stop=point), images
  ).shape[1]
  # Cells that see none of the border: of ResNet's last stages a single one.
  around = 0 if point in ('stage3', 'stage4') else count // 4
  first, end = count // 2 - around, count // 2 + around + 1
  # The response to a small change of each pixel, here of noise, so that no
  # window's maximum lies at the same place each time.
  change = jax.jit(jax.grad(response), static_argnums=(1, 2))
  change = change(images, first, end)
  weight = np.asarray(change, np.float64).sum((0, 3))
  assert weight.min() >= 0
  at = np.arange(_SIDE) + 0.5
  found = [(weight.sum(axis) * at).sum() / weight.sum() for axis in (0, 1)]
  told = model.placement(point)
  expected = told.offset + told.stride * (count // 2)
  np.testing.assert_allclose(found, expected, atol=0.6)


def test_resnet_looks_further_left_than_maps_are_drawn_and_vgg_does_not():
  resnet, vgg = (models.create(name, 2) for name in ('resnet50', 'vgg16'))
  assert resnet.placement('stage4') == placement.Placement(0.5, 32)
  even = placement.evenly(224, 7)
  assert even.offset - resnet.placement('stage4').offset == 15.5
  for i in range(1, 6):
    side = 224 // 2**i
    pooled = vgg.placement(f'block{i}_pool')
    assert pooled == placement.evenly(224, side)
    assert vgg.placement(f'block{i}') == placement.evenly(224, 2 * side)
  grid = models.create('vgg16', 2, head='evidence')
  assert grid.placement('evidence') is None  # shares the image evenly
  with pytest.raises(ValueError, match='stage5'):
    resnet.placement('stage5')
