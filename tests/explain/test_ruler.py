"""Planted landmarks: where they come to lie, what is measured and drawn."""

import numpy as np
from PIL import Image
import pytest

from iqa_jax.explain import ruler
from iqa_jax.photograph import geometry, prepare

# A field of radius 300 about (500, 400); the disc's nasal margin is 130 px from
# the edge on the left, the fovea 300 px from the one on the right.
_VIEW = geometry.Field(500, 400, 300, 200, 100, 800, 700, True)
_MARKS = np.array([380.0, 400.0, 100.0, 600.0, 400.0])


def _photograph(view, height, width, marks):
  """A field with black spots where disc and fovea are."""
  x, y = np.arange(width) + 0.5, (np.arange(height) + 0.5)[:, None]
  image = np.where(view.inside(x, y), 160, 0)
  for at in (marks[:2], marks[3:]):
    image[np.hypot(x - at[0], y - at[1]) < marks[2] / 2] = 60
  return np.repeat(image[..., None], 3, 2).astype(np.uint8)


@pytest.mark.parametrize('grow', [1, 4])
@pytest.mark.parametrize('size', [96, 512])
def test_landmarks_return_to_the_photograph_through_every_resize(grow, size):
  """Spots are found in the prepared image, and back where they were put."""
  view, marks = _VIEW.scaled(grow, grow), _MARKS * grow
  image = _photograph(view, 800 * grow, 1100 * grow, marks)
  prepared = prepare.photograph(image, size)
  grid = np.arange(size) + 0.5
  shares = [marks[2] / prepared.affine[0, 0] / size]
  for left in (True, False):
    spot = np.where(prepared.image[..., 0] < 110, 1.0, 0.0)
    half = (np.abs(grid - size / 2) < 0.35 * size).astype(float)
    spot *= half[:, None] * half * ((grid < 0.5 * size) == left)
    shares.append(spot.sum(0) @ grid / spot.sum() / size)
    shares.append(spot.sum(1) @ grid / spot.sum() / size)
  diameter, x, y, fovea_x, fovea_y = shares
  found = ruler.to_original(
    np.array([x, y, diameter, fovea_x, fovea_y]), prepared.affine, size
  )
  np.testing.assert_allclose(found, marks, atol=0.006 * 600 * grow)


def test_the_distances_are_those_of_a_ruler():
  row = ruler.columns(_MARKS, _VIEW)
  assert tuple(row) == ruler.COLUMNS
  assert [row[n] for n in ruler.COLUMNS[:5]] == _MARKS.tolist()
  assert row['nasal_dd'] == pytest.approx(1.3)
  assert row['temporal_dd'] == pytest.approx(2.0)
  # By symmetry of the field, the disc and the arcades about its middle row.
  assert row['superior_dd'] == pytest.approx(row['inferior_dd'], abs=0.05)
  assert row['superior_dd'] > 2
  assert row['image_field_measured'] == 'adequate'
  # The same eye seen through half the pixels, or in the mirror.
  half = ruler.columns(_MARKS / 2, _VIEW.scaled(0.5, 0.5))
  mirrored = np.abs(np.array([1000, 0, 0, 1000, 0]) - _MARKS)
  for other in (half, ruler.columns(mirrored, _VIEW)):
    for name in ruler.COLUMNS[5:9]:
      assert other[name] == pytest.approx(row[name])


@pytest.mark.parametrize(
  ('shift', 'short'), [((-40, 0), 'nasal_dd'), ((1, 0), 'temporal_dd')]
)
def test_a_short_distance_makes_the_field_inadequate(shift, short):
  marks = _MARKS + [*shift, 0, *shift]
  row = ruler.columns(marks, _VIEW)
  assert row['image_field_measured'] == 'inadequate'
  least = {'nasal_dd': 1, 'temporal_dd': 2, 'superior_dd': 2, 'inferior_dd': 2}
  assert [n for n, v in least.items() if row[n] < v] == [short]


def test_what_is_not_known_stays_empty():
  nothing = ruler.columns(np.full(5, np.nan), _VIEW)
  assert set(nothing.values()) == {None}
  lost = geometry.find_field(np.full((80, 110, 3), 90, np.uint8))
  row = ruler.columns(_MARKS / 10, lost)
  assert row['disc_x'] == 38 and row['nasal_dd'] is None
  assert row['image_field_measured'] is None
  above = ruler.columns(_MARKS - [0, 390, 0, 0, 390], _VIEW)
  assert above['nasal_dd'] is None
  assert above['image_field_measured'] == 'inadequate'


def test_draws_the_lines_where_they_were_measured():
  empty = Image.new('RGB', (1100, 800))
  ruler.draw(empty, np.full(5, np.nan), _VIEW, empty.size)
  assert empty.getbbox() is None
  picture = Image.new('RGB', (1100, 800))
  ruler.draw(picture, _MARKS, _VIEW, picture.size)
  drawn = np.asarray(picture).any(2)
  # From the disc's margin to the nasal edge, from the fovea to the other.
  assert drawn[399:402, 201:327].any(0).mean() > 0.97
  assert drawn[399:402, 601:799].any(0).mean() > 0.97
  assert not drawn[398:403, :190].any() and not drawn[398:403, 812:].any()
  assert drawn[349:352, 380].any() and drawn[449:452, 380].any()
  # Half of the disc is free of lines, and so is what surrounds the field.
  assert not drawn[365:395, 350:375].any()
  # Landmarks out of the frame harm nothing.
  for marks in (_MARKS - [0, 390, 0, 0, 390], 3 * _MARKS):
    ruler.draw(picture, marks, _VIEW, picture.size)
