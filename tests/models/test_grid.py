"""What feature maps show in each cell of a grid."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iqa_jax.models import grid
from iqa_jax.photograph.placement import Placement, Window


@pytest.mark.parametrize('cells', [7, 8, 16])
@pytest.mark.parametrize('padding', [1, 2])
def test_strips_of_a_photograph_show_what_the_whole_shows(cells, padding):
  rng = np.random.default_rng(3)
  window = Window(2 * padding + 1, 1, padding)
  x = rng.normal(size=(2, 112, 224, 3)).astype(np.float32)
  kernel = rng.normal(size=(window.size, window.size, 3, 4)).astype(np.float32)
  weight = rng.normal(size=(2, cells, cells, 8)).astype(np.float32)

  def layer(x, kernel):
    sides = [(padding, padding)] * 2
    return jax.lax.conv_general_dilated(
      x, kernel, (1, 1), sides, dimension_numbers=('NHWC', 'HWIO', 'NHWC')
    )

  def whole(kernel):
    return grid.features(layer(x, kernel), cells, None, x.shape[1:3])

  def by_strips(kernel):
    own = functools.partial(layer, kernel=kernel)
    return grid.features_by_strips(own, jnp.asarray(x), cells, window)

  assert grid.in_strips((window,), cells, x.shape[1:3])
  np.testing.assert_allclose(
    jax.jit(by_strips)(kernel), whole(kernel), rtol=1e-5, atol=1e-5
  )
  found, expected = (
    jax.vjp(function, kernel)[1](weight)[0] for function in (by_strips, whole)
  )
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
  'windows',
  [
    (Window(7, 2, 3), Window(3, 2, 1)),  # a ResNet's
    (Window(3, 1, 1),) * 2,
    (Window(3, 1, 0),),
  ],
)
def test_strips_are_of_one_layer_that_keeps_the_size(windows):
  assert not grid.in_strips(windows, 8, (112, 112))
  assert not grid.in_strips((Window(3, 1, 1),), 9, (112, 112))
  assert not grid.in_strips((Window(3, 1, 1),), 112, (112, 112))


@pytest.mark.parametrize('length, cells', [(8, 8), (16, 8), (4, 8), (7, 5)])
def test_cells_average_by_area(length, cells):
  """Against averaging a picture in which every feature is many pixels."""
  x = np.random.default_rng(0).normal(size=(2, length, length, 3))
  pixels = np.kron(x, np.ones((1, cells, cells, 1)))
  expected = pixels.reshape(2, cells, length, cells, length, 3).mean((2, 4))
  found = grid.shared_area(jnp.asarray(x, jnp.float32), cells)
  np.testing.assert_allclose(found, expected, atol=1e-6)


def test_cells_average_what_looks_at_them():
  """Features whose squares lie half a cell to the left of even shares."""
  x = np.arange(8.0).reshape(1, 1, 8, 1).repeat(8, 1)
  placed = Placement(offset=0.0, stride=4.0)
  found = grid.shared_area(jnp.asarray(x, jnp.float32), 4, placed, (32, 32))
  # Cell i covers pixels 8 i to 8 i + 8; feature j 4 j - 2 to 4 j + 2.
  expected = [
    (2 * 0 + 4 * 1 + 2 * 2) / 8,
    (2 * 2 + 4 * 3 + 2 * 4) / 8,
    (2 * 4 + 4 * 5 + 2 * 6) / 8,
    (2 * 6 + 6 * 7) / 8,  # the last looks after the rest
  ]
  np.testing.assert_allclose(found[0, 0, :, 0], expected, rtol=1e-6)


@pytest.mark.parametrize('length, cells', [(8, 8), (16, 8), (24, 8), (7, 5)])
def test_cells_know_the_largest_that_looks_into_them(length, cells):
  """Against the largest of a picture in which every feature is many pixels."""
  x = np.random.default_rng(0).normal(size=(2, length, length, 3))
  pixels = np.kron(x, np.ones((1, cells, cells, 1)))
  expected = pixels.reshape(2, cells, length, cells, length, 3).max((2, 4))
  found = grid.largest(jnp.asarray(x, jnp.float32), cells)
  np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_the_largest_is_looked_for_where_features_look():
  x = np.zeros((1, 8, 8, 1), np.float32)
  x[0, 0, 2] = 1
  placed = Placement(offset=0.0, stride=4.0)
  found = grid.largest(jnp.asarray(x), 4, placed, (32, 32))
  # Feature 2 looks at pixels 6 to 10: into cells 0 and 1.
  np.testing.assert_array_equal(found[0, 0, :, 0], [1, 1, 0, 0])
