"""The field of view: found in drawn and real photographs, and the way back."""

import numpy as np
from PIL import Image, ImageDraw
import pytest

from iqa_jax.photograph import geometry, images


def drawn_field(
  rng, *, cut=1.0, background=0, brightness=120, notch=False, dark=False
):
  """Returns (image, cx, cy, r, half height of the visible box)."""
  h, w = int(rng.integers(300, 900)), int(rng.integers(400, 1200))
  r = min(h, w) * rng.uniform(0.3, 0.49)
  cx = w / 2 + rng.uniform(-0.05, 0.05) * w
  cy = h / 2
  y, x = np.mgrid[:h, :w] + 0.5
  inside = (x - cx) ** 2 + (y - cy) ** 2 <= r**2
  inside &= np.abs(y - cy) <= cut * r
  shade = 1 - 0.6 * (np.hypot(x - cx, y - cy) / r) ** 2
  if dark:  # a sector that can't be told from the background
    shade = np.where((x - cx > 0.2 * r) & (y - cy > 0.3 * r), 0.0, shade)
  pixels = np.full((h, w, 3), float(background))
  pixels[inside] = (brightness * shade[..., None] * [1, 0.6, 0.35])[inside]
  pixels[inside] += background * 0.2
  if notch:
    angle = np.deg2rad(45)
    nx, ny = cx + r * np.cos(angle), cy - r * np.sin(angle)
    pixels[(x - nx) ** 2 + (y - ny) ** 2 < (0.06 * r) ** 2] = brightness
  pixels += rng.normal(0, 1.5, pixels.shape)
  return np.clip(pixels, 0, 255).astype(np.uint8), cx, cy, r, min(cut, 1.0) * r


@pytest.mark.parametrize(
  'kind',
  [
    {},
    {'cut': 0.8},
    {'cut': 0.65},
    {'notch': True},
    {'brightness': 25},
    {'brightness': 255},
    {'background': 200, 'brightness': 90},
    {'background': 30},
    {'dark': True},
  ],
  ids=str,
)
def test_finds_drawn_fields(kind):
  rng = np.random.default_rng(len(str(kind)))
  for _ in range(6):
    image, cx, cy, r, half = drawn_field(rng, **kind)
    field = geometry.find_field(image)
    assert field.found
    # It is looked for at 256 px: half a working pixel and the noise.
    error = 0.02 * r + 2 * max(image.shape) / 256
    assert abs(field.cx - cx) < error
    assert abs(field.cy - cy) < error
    assert abs(field.radius - r) < error
    assert abs(field.top - (cy - half)) < error
    assert abs(field.bottom - (cy + half)) < error
    assert abs(field.left - (cx - r)) < error
    assert abs(field.right - (cx + r)) < error


@pytest.mark.parametrize('value', [0, 128, 255])
def test_a_photograph_without_field_is_used_whole(value):
  image = np.full((300, 500, 3), value, np.uint8)
  prepared = geometry.prepare(image, 64)
  assert not prepared.field.found
  assert (prepared.field.right, prepared.field.bottom) == (500, 300)
  # 500 x 300 in a square of 500: a band of 20 % above and below is padding.
  rows = prepared.inside.all(axis=1)
  assert rows.sum() == pytest.approx(0.6 * 64, abs=1)
  # One row of the antialiased edge belongs to both.
  padding = np.nonzero(~rows)[0]
  assert not prepared.image[padding[np.r_[:12, -12:0]]].any()
  assert (prepared.image[rows][1:-1] == value).all()


def test_noise_and_stripes_have_no_field():
  rng = np.random.default_rng(0)
  noise = rng.integers(0, 255, (200, 300, 3), np.uint8)
  assert not geometry.find_field(noise).found
  page = np.full((300, 300, 3), 255, np.uint8)
  page[::10] = 0
  assert not geometry.find_field(page).found


def test_the_field_is_that_of_every_real_photograph(shared):
  """All fields were looked at once; their radii are this sample's cameras'."""
  paths = sorted((shared / 'data/eyeq_sample').glob('*/*.jpeg'))[::6]
  assert len(paths) > 30
  for path in paths:
    photograph = images.read(path, 256)
    field = geometry.find_field(photograph.pixels)
    assert field.found, path
    w = photograph.pixels.shape[1]
    assert abs(field.cx - w / 2) < 0.06 * w, path
    assert 0.28 < field.radius / w < 0.52, path
    assert field.bottom - field.top > 0.6 * (field.right - field.left), path


def test_aspect_ratio_is_kept_and_nothing_is_lost():
  image = Image.new('RGB', (900, 600))
  ImageDraw.Draw(image).ellipse((250, 100, 650, 500), fill=(180, 90, 40))
  prepared = geometry.prepare(np.array(image), 128)
  lit = prepared.image[..., 0] > 90
  rows, columns = np.nonzero(lit.any(1))[0], np.nonzero(lit.any(0))[0]
  assert abs(np.ptp(rows) - np.ptp(columns)) <= 1
  assert lit.sum() == pytest.approx(np.pi * 64**2, rel=0.03)


def random_fields(count):
  rng = np.random.default_rng(5)
  for _ in range(count):
    h, w = int(rng.integers(80, 3168)), int(rng.integers(80, 4752))
    r = rng.uniform(0.2, 0.7) * min(h, w)
    cx, cy = rng.uniform(0.3, 0.7) * w, rng.uniform(0.3, 0.7) * h
    cut = rng.uniform(0.6, 1.0) * r
    yield (h, w), geometry.Field(
      cx, cy, r, max(cx - r, 0), max(cy - cut, 0), min(cx + r, w),
      min(cy + cut, h), True,
    )  # fmt: skip


def test_round_trip_of_points_within_half_a_pixel():
  for (h, w), field in random_fields(60):
    size = 512
    blank = np.broadcast_to(np.uint8(0), (h, w, 3))
    affine = geometry.prepare(np.ascontiguousarray(blank), size, field).affine
    inverse = np.linalg.inv(np.vstack([affine, [0, 0, 1]]))
    x = np.array([field.left, field.right, field.cx])
    y = np.array([field.top, field.bottom, field.cy])
    there = geometry.apply_affine(inverse, x, y)
    back = geometry.apply_affine(affine, *there)
    assert np.abs(back - np.stack([x, y])).max() < 1e-6
    # The visible box lies in the square, whose aspect ratio is the original's.
    rounding = 1.0 / affine[0, 0]
    assert (there[0] > -rounding).all() and (there[0] < size + rounding).all()
    assert (there[1] > -rounding).all() and (there[1] < size + rounding).all()
    assert affine[0, 0] == affine[1, 1] and affine[0, 1] == affine[1, 0] == 0


def centroid(values):
  values = values.astype(np.float64)
  y, x = np.mgrid[: values.shape[0], : values.shape[1]] + 0.5
  return np.array([(values * x).sum(), (values * y).sum()]) / values.sum()


def test_round_trip_of_pixels_within_half_a_pixel():
  """A blob's centroid: photograph -> prepared image -> map on photograph."""
  rng = np.random.default_rng(0)
  for (h, w), field in random_fields(6):
    px = rng.uniform(
      field.cx - 0.3 * field.radius, field.cx + 0.3 * field.radius
    )
    py = rng.uniform(
      field.cy - 0.3 * field.radius, field.cy + 0.3 * field.radius
    )
    px, py = np.clip(px, 0.15 * w, 0.85 * w), np.clip(py, 0.15 * h, 0.85 * h)
    sigma = 0.02 * field.radius + 3
    x, y = np.arange(w) + 0.5, np.arange(h) + 0.5
    blob = (
      np.exp(-((x - px) ** 2) / (2 * sigma**2))[None]
      * np.exp(-((y - py) ** 2) / (2 * sigma**2))[:, None]
    )
    image = np.repeat((250 * blob)[..., None], 3, 2).astype(np.uint8)
    prepared = geometry.prepare(image, 512, field)
    ahead = centroid(prepared.image[..., 0])
    landed = np.array(geometry.apply_affine(prepared.affine, *ahead))
    assert np.abs(landed - centroid(image[..., 0])).max() < 0.5
    laid = geometry.to_original(
      prepared.image[..., 0], prepared.affine, (h, w), 512
    )
    assert laid.shape == (h, w)
    assert np.abs(centroid(laid) - centroid(image[..., 0])).max() < 0.5


def test_to_original_of_a_coarse_map_agrees_with_pillow():
  """On an affine without offset, bilinear upsampling as Pillow's."""
  values = np.random.default_rng(0).random((7, 7)).astype(np.float32)
  laid = geometry.to_original(values, np.eye(2, 3) * 2, (448, 448), 224)
  pillow = Image.fromarray(values).resize((448, 448), Image.Resampling.BILINEAR)
  np.testing.assert_allclose(laid, np.asarray(pillow), atol=1e-5)


def test_downsize_is_antialiased():
  stripes = np.zeros((1024, 1024, 3), np.uint8)
  stripes[:, ::2] = 255
  field = geometry.Field(512, 512, 512, 0, 0, 1024, 1024, False)
  image = geometry.prepare(stripes, 128, field).image
  # Without antialiasing a column would be 0 or 255.
  assert np.abs(image.astype(int) - 127).max() < 10
