"""Pictures: the map must lie where it belongs, and say what it is."""

from __future__ import annotations

import functools

from hypothesis import given, settings
from hypothesis import strategies as st
import matplotlib
import numpy as np
from PIL import Image
import pytest

from iqa_jax.explain import overlay, panel, scaling
from iqa_jax.photograph import geometry
from iqa_jax.photograph.placement import Placement
from tests.export import export_material as material

CAPTION = panel.Caption(
  name='a.jpg',
  verdict='inadequate',
  probability='P(inadequate) = 0.900, calibrated',
  uncertain=True,
  target='evidence for focus',
  source='gradcam, stage4',
  bar='most in this photograph (0.4)',
)


@pytest.mark.parametrize('name', ['viridis', 'inferno'])
def test_palette_is_matplotlibs(name):
  expected = 255 * matplotlib.colormaps[name](np.arange(256))[:, :3]
  assert np.abs(overlay.palette(name) - expected).max() <= 2.0


def test_jet_is_opencvs():
  # Values of cv2.applyColorMap(levels, cv2.COLORMAP_JET) of OpenCV 4.
  at = {0: (0, 0, 128), 64: (0, 128, 255), 128: (130, 255, 126),
        191: (255, 128, 0), 255: (128, 0, 0)}  # fmt: skip
  for level, color in at.items():
    found = overlay.palette('jet')[level].astype(int)
    assert np.abs(found - color).max() <= 3, level


def test_unknown_colors():
  with pytest.raises(ValueError, match='rainbow'):
    overlay.palette('rainbow')


@settings(max_examples=60, deadline=None)
@given(
  width=st.integers(33, 220),
  height=st.integers(33, 220),
  left=st.integers(-60, 120),
  top=st.integers(-60, 120),
  side=st.integers(20, 260),
  cells=st.sampled_from([1, 2, 7, 14]),
  seed=st.integers(0, 1000),
  place=st.sampled_from([None, Placement(0.5, 32), Placement(4, 8)]),
)
def test_lies_where_geometry_says(
  width, height, left, top, side, cells, seed, place
):
  """The fast 8-bit path is geometry.to_original within one level of 255."""
  shown = np.random.default_rng(seed).random((cells, cells), np.float32)
  affine = np.array([[side / 64, 0, left], [0, side / 64, top]], float)
  expected = geometry.to_original(shown, affine, (height, width), 64, place)
  origin, levels = overlay._laid(shown, affine, 64, (width, height), place)
  laid = np.zeros((height, width))
  if levels is not None:
    x, y = origin
    laid[y : y + levels.height, x : x + levels.width] = levels
  assert np.abs(255 * expected - laid).max() <= 1.6


def _brightest(picture, before):
  change = np.abs(np.asarray(picture).astype(int) - before).sum(2)
  ys, xs = np.nonzero(change > 0.9 * change.max())
  return np.array([xs.mean() + 0.5, ys.mean() + 0.5])


def test_a_cell_is_drawn_where_it_looks():
  """Cell 3 of ResNet's last map at pixel 96.5 of 224, not at 112."""
  shown = np.zeros((7, 7), np.float32)
  shown[3, 4] = 1
  photograph = Image.new('RGB', (448, 448))
  before = np.asarray(photograph).astype(int)
  affine = np.eye(2, 3) * 2.0
  looks = Placement(0.5, 32)
  for place, expected in ((looks, (128.5, 96.5)), (None, (144.0, 112.0))):
    for picture in (
      overlay.overlay(photograph, shown, affine, 224, overlay.Look(place)),
      overlay.contour(photograph, shown, affine, 224, overlay.Look(place)),
    ):
      found = _brightest(picture, before) / 2
      assert np.abs(found - expected).max() < 1.5
    prepared = np.zeros((224, 224, 3), np.uint8)
    small = np.asarray(
      overlay.thumbnail(prepared, shown, overlay.Look(place), side=112)
    )[:, 112:]
    found = _brightest(small, np.zeros_like(small, int)) * 2
    assert np.abs(found - expected).max() < 2.5
  laid = scaling.enlarge(shown, (224, 224), looks)
  y, x = np.unravel_index(laid.argmax(), laid.shape)
  assert (x, y) == (128, 96)


def test_planted_evidence_lands_on_the_fault():
  """From a place in the photograph, through the crop and back onto it."""
  rng = np.random.default_rng(0)
  image = material.fundus(rng, width=400, height=260)
  image = np.pad(image, ((10, 0), (120, 20), (0, 0)))  # off-centre
  fault = (285.0, 96.0)
  prepared = geometry.prepare(image, 112)
  assert prepared.field.found
  # The cell of a 14x14 map that sees the fault, by the inverse affine.
  at = (np.array(fault) - prepared.affine[:, 2]) / np.diag(prepared.affine)
  column, row = (at / 112 * 14).astype(int)
  shown = np.zeros((14, 14), np.float32)
  shown[row, column] = 1
  photograph = Image.fromarray(image)
  before = np.asarray(photograph).copy()
  for picture in (
    overlay.overlay(photograph, shown, prepared.affine, 112),
    overlay.contour(photograph, shown, prepared.affine, 112),
  ):
    assert picture.size == photograph.size
    change = np.abs(np.asarray(picture).astype(int) - before).sum(2) > 12
    ys, xs = np.nonzero(change)
    cell = prepared.affine[0, 0] * 112 / 14
    centre = np.array([xs.mean() + 0.5, ys.mean() + 0.5])
    assert np.abs(centre - fault).max() < cell
    assert np.hypot(xs - fault[0], ys - fault[1]).max() < 2.5 * cell
  assert (np.asarray(photograph) == before).all()


def test_no_evidence_leaves_the_photograph_as_it_is():
  image = Image.fromarray(material.fundus(np.random.default_rng(1)))
  affine = np.array([[1.0, 0, 0], [0, 1.0, 0]])
  shown = np.full((7, 7), -3.0)
  assert overlay.overlay(image, shown, affine, 130) == image
  assert overlay.contour(image, shown, affine, 130) == image


def test_jet_covers_the_square_evenly():
  image = Image.new('RGB', (60, 60))
  shown = np.zeros((7, 7))
  affine = np.array([[1.0, 0, 10], [0, 1.0, 10]])
  found = np.asarray(
    overlay.overlay(image, shown, affine, 40, overlay.Look(None, 'jet', 0.5))
  )
  assert (found[15:45, 15:45] == found[20, 20]).all()
  assert found[20, 20].tolist() == [0, 0, 64]
  assert not found[:10].any() and not found[50:].any()


def test_panel_says_what_it_shows():
  rng = np.random.default_rng(2)
  image = Image.fromarray(material.fundus(rng, width=900, height=600))
  affine = np.array([[6.0, 0, 150], [0, 6.0, 0]])
  shown = np.zeros((7, 7))
  plain = panel.draw(image, shown, affine, 100, caption=CAPTION)
  other = panel.draw(
    image,
    shown,
    affine,
    100,
    caption=panel.Caption(**{**CAPTION.__dict__, 'verdict': 'adequate'}),
  )
  assert plain.width > 2 * plain.height
  # The header differs, the pictures don't.
  difference = np.asarray(plain).astype(int) - np.asarray(other)
  assert difference[:104].any() and not difference[104:].any()


def test_empty_map_is_a_sentence_not_a_colour():
  rng = np.random.default_rng(3)
  image = Image.fromarray(material.fundus(rng, width=300, height=200))
  noted = overlay.noted(image, 'Empty map: nothing to colour.')
  assert noted.crop((0, 0, 300, 200)) == image
  assert noted.height > 200
  assert np.asarray(noted)[200:].max() > 200  # there is writing


def test_thumbnail_is_a_pair():
  rng = np.random.default_rng(4)
  image = material.fundus(rng, width=96, height=96)
  shown = np.zeros((7, 7))
  shown[3, 3] = 1
  pair = np.asarray(overlay.thumbnail(image, shown, side=64)).astype(int)
  assert pair.shape == (64, 128, 3)
  change = np.abs(pair[:, :64] - pair[:, 64:]).sum(2)
  assert change[32, 32] > 30
  assert change[5, 5] == 0


def test_names_of_any_script_and_length_fit():
  image = Image.fromarray(material.fundus(np.random.default_rng(5)))
  affine = np.array([[1.0, 0, 0], [0, 1.0, 0]])
  name = '眼底/' + 'x' * 300 + '\udcff\n.jpg'
  caption = panel.Caption(**{**CAPTION.__dict__, 'name': name})
  panel.draw(image, np.zeros((7, 7)), affine, 130, caption=caption)
  assert len(panel._short(name, 40)) == 39
  assert panel._short(name, 400).isprintable()


def test_nothing_is_shown_beyond_the_rim():
  """However far the cells reach that touch it, and wherever it lies."""
  image = Image.new('RGB', (300, 200))
  affine = np.array([[1.6, 0, 60], [0, 1.6, 10]])
  at = (np.arange(100) + 0.5) / 100 - 0.5
  within = np.hypot(at[None], at[:, None]) < 0.4
  shown = np.ones((5, 5))
  drawn = functools.partial(overlay.overlay, image, shown, affine, 100)
  clipped = np.asarray(drawn(overlay.Look(within=within))).any(-1)
  y, x = np.mgrid[:200, :300] + 0.5
  inside = np.hypot(x - 140, y - 90) < 0.4 * 160
  assert np.asarray(drawn()).any(-1).sum() > 1.2 * inside.sum()
  assert (clipped != inside).sum() < 0.05 * inside.sum()
