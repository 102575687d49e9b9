"""Pictures that are no fundus photographs, drawn.

What ends up in a folder of fundus photographs by mistake: the eye from outside,
slit-lamp pictures, OCT scans, documents, rulers and test charts, textures,
noise, uniform and dark frames. Crude, and called drawn wherever they are used;
natural pictures join them where a scorer learns
(iqa_jax.experiments.not_fundus).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import string

import numpy as np
from numpy.random import Generator
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from iqa_jax.simulation import canvas

_SIDE = 224


def draw(rng: Generator, pictures: Sequence[np.ndarray] = ()) -> np.ndarray:
  """Returns a picture of anything but a retina, uint8 [h, w, 3].

  Args:
    rng: draws what it shows.
    pictures: uint8 [h, w, 3], natural pictures of which two of five are cut
      out; () for drawn ones alone.
  """
  if pictures and rng.random() < 0.4:
    image = _cut(rng, pictures[int(rng.integers(len(pictures)))])
  else:
    kind = int(rng.choice(len(_KINDS), p=_SHARES))
    drawn = np.clip(_KINDS[kind](rng), 0, 255).astype(np.uint8)
    image = Image.fromarray(drawn)
  if rng.random() < 0.25:
    image = image.filter(
      ImageFilter.GaussianBlur(float(np.exp(rng.uniform(-0.7, 2))))
    )
  if rng.random() < 0.15:
    image = image.convert('L').convert('RGB')
  pixels = np.array(image)
  if rng.random() < 0.2:  # as reddish or as orange as a fundus
    tint = np.array([1.0, rng.uniform(0.4, 0.8), rng.uniform(0.15, 0.6)])
    grey = pixels.mean(2, keepdims=True)
    share = rng.uniform(0.3, 1)
    pixels = (pixels * (1 - share) + share * grey * tint * 1.3).clip(0, 255)
    pixels = pixels.astype(np.uint8)
  if rng.random() < 0.5:
    pixels = _through_a_hole(rng, pixels)
  return pixels


def _cut(rng: Generator, picture: np.ndarray) -> Image.Image:
  """Returns a piece of a picture, turned and mirrored."""
  h, w = picture.shape[:2]
  side = min(h, w) * rng.uniform(0.35, 1)
  high = side * rng.uniform(0.7, 1)
  left, top = rng.uniform(0, w - side), rng.uniform(0, h - high)
  size = (_SIDE, max(round(_SIDE * high / side), 32))
  box = (left, top, left + side, top + high)
  image = Image.fromarray(picture).resize(
    size, Image.Resampling.BILINEAR, box=box, reducing_gap=2.0
  )
  if rng.random() < 0.5:
    image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
  turn = rng.choice([0, 0, 0, 90, 180, 270])
  return image.rotate(int(turn), expand=True) if turn else image


def _through_a_hole(rng: Generator, pixels: np.ndarray) -> np.ndarray:
  """Returns the picture under a round mask, as a fundus camera's."""
  h, w = pixels.shape[:2]
  radius = min(h, w) / 2 * rng.uniform(0.85, 1.1)
  y, x = np.mgrid[0:h, 0:w]
  away = np.hypot(x - w / 2 + 0.5, y - h / 2 + 0.5)
  return np.where((away < radius)[..., None], pixels, 0).astype(np.uint8)


def _skin(rng: Generator) -> np.ndarray:
  tone = np.array([224, 172, 140]) * rng.uniform(0.3, 1.1)
  return tone + rng.normal(0, 8, 3)


def _noise(rng: Generator, cells: int) -> np.ndarray:
  return canvas.smooth_noise(rng, (_SIDE, _SIDE), cells)


def _paint(
  paint: Callable[[ImageDraw.ImageDraw], None], blur: float = 0.0
) -> np.ndarray:
  """Returns what `paint(draw)` paints, as float32 [s, s, 1] in 0..1."""
  return canvas.drawn((_SIDE, _SIDE), paint, blur)[..., None]


def _disc(x: float, y: float, r: float) -> np.ndarray:
  box = (x - r, y - r, x + r, y + r)
  return _paint(lambda d: d.ellipse(box, fill=255), 1.0)


def _over(
  image: np.ndarray, tint: ArrayLike, weight: np.ndarray | float
) -> np.ndarray:
  return image + (np.asarray(tint, np.float32) - image) * weight


def _iris(
  rng: Generator, image: np.ndarray, cx: float, cy: float, r: float
) -> np.ndarray:
  """Puts iris, pupil and highlight into a picture."""
  y, x = np.mgrid[0:_SIDE, 0:_SIDE]
  away = np.hypot(x - cx, y - cy) / r
  angle = np.arctan2(y - cy, x - cx)
  browns = ([70, 42, 25], [110, 75, 45], [95, 120, 140], [100, 115, 80])
  tint = np.array(browns[rng.integers(4)]) * rng.uniform(0.6, 1.5)
  spokes = 1 + 0.25 * np.cos(
    rng.integers(20, 60) * angle + 3 * _noise(rng, 6)
  ) * rng.uniform(0.2, 1)
  colour = spokes[..., None] * tint * (1.15 - 0.5 * away[..., None] ** 3)
  image = image + (colour - image) * canvas.rise(1 - away, 0.06)[..., None]
  pupil = rng.uniform(0.2, 0.75)
  if rng.random() < 0.25:  # the red reflex, with what shades it
    glow = np.array([230, 110, 50]) * rng.uniform(0.5, 1.1)
    inner = glow * (1 - 0.5 * (_noise(rng, 9)[..., None] > 0.35))
  else:
    inner = np.full(3, rng.uniform(2, 25))
  image = image + (inner - image) * canvas.rise(pupil - away, 0.06)[..., None]
  for _ in range(int(rng.integers(1, 3))):
    hx, hy = cx + r * rng.uniform(-0.5, 0.5), cy + r * rng.uniform(-0.5, 0.3)
    size = r * rng.uniform(0.06, 0.2)
    spot = _disc(hx, hy, size)
    image = _over(image, [250, 250, 250], spot)
  return image


def _external_eye(rng: Generator) -> np.ndarray:
  """Lids, lashes, sclera, iris and pupil, near or far."""
  s = _SIDE
  image = np.ones((s, s, 3)) * _skin(rng)
  image *= (
    1 + 0.12 * _noise(rng, 5)[..., None] + 0.05 * _noise(rng, 40)[..., None]
  )
  cx, cy = s / 2 + rng.normal(0, 14), s / 2 + rng.normal(0, 14)
  wide = s * rng.uniform(0.28, 0.75)
  high = wide * rng.uniform(0.3, 0.62)
  t = np.linspace(0, np.pi, 24)
  upper = [(cx - wide * np.cos(a), cy - high * np.sin(a)) for a in t]
  lower = [(cx + wide * np.cos(a), cy + 0.75 * high * np.sin(a)) for a in t]
  white = np.array([225, 212, 205]) * rng.uniform(0.7, 1.1)
  ball = np.ones((s, s, 3)) * white * (1 + 0.08 * _noise(rng, 4)[..., None])

  def veins(d: ImageDraw.ImageDraw) -> None:
    for _ in range(int(rng.integers(0, 14))):
      x, y = cx + rng.choice([-1, 1]) * wide * rng.uniform(0.4, 0.95), cy
      path = [(x, y + rng.normal(0, high / 3))]
      for _ in range(6):
        path.append(
          (path[-1][0] + rng.normal(0, 7), path[-1][1] + rng.normal(0, 6))
        )
      d.line(path, fill=150, width=1)

  ball = _over(ball, [190, 60, 60], 0.7 * _paint(veins, 0.6))
  ball = _iris(rng, ball, cx, cy - 0.05 * high, high * rng.uniform(0.6, 1.05))
  opening = _paint(lambda d: d.polygon(upper + lower, fill=255), 1.2)
  image = image + (ball - image) * opening
  rim = _paint(lambda d: d.line(upper, fill=255, width=3), 1.0)
  image = _over(image, _skin(rng) * 0.35, rim)

  def lashes(d: ImageDraw.ImageDraw) -> None:
    for x, y in upper[2:-2]:
      for _ in range(2):
        dx = (x - cx) * 0.12 + rng.normal(0, 4)
        up = rng.uniform(0.1, 0.4) * high
        d.line([(x, y), (x + dx, y - up)], fill=230, width=1)

  image = _over(image, [25, 18, 15], _paint(lashes, 0.4))
  fold = [(x, y - 0.35 * high) for x, y in upper]
  crease = _paint(lambda d: d.line(fold, fill=180, width=3), 2.0)
  return _over(image, _skin(rng) * 0.5, 0.6 * crease)


def _slit_lamp(rng: Generator) -> np.ndarray:
  """An iris in the dark, crossed by a bright, bent slit of light."""
  s = _SIDE
  image = np.ones((s, s, 3)) * rng.uniform(4, 50)
  r = s * rng.uniform(0.25, 0.6)
  image = _over(image, [150, 120, 110], 0.5 * rng.random())
  image = _iris(rng, image, s / 2, s / 2, r) * rng.uniform(0.25, 1.0)
  y, x = np.mgrid[0:s, 0:s] / s - 0.5
  bend = rng.uniform(-0.5, 0.5)
  middle = rng.uniform(-0.25, 0.25) + bend * y**2
  beam = np.exp(-(((x - middle) / rng.uniform(0.01, 0.08)) ** 4))
  beam = beam * (np.abs(y) < rng.uniform(0.25, 0.5))
  tint = rng.choice([[235, 235, 225], [120, 150, 255], [90, 220, 120]])
  return image + (beam * rng.uniform(0.4, 1))[..., None] * tint


def _oct_scan(rng: Generator) -> np.ndarray:
  """Grey layers under each other, bent, with speckle."""
  y, x = np.mgrid[0:_SIDE, 0:_SIDE] / _SIDE
  dip = rng.uniform(0, 0.1) * np.exp(-(((x - 0.5) / 0.12) ** 2))
  depth = y - 0.35 - dip - rng.uniform(-0.2, 0.2) * (x - 0.5) ** 2
  total = np.full(x.shape, rng.uniform(0, 30))
  for _ in range(int(rng.integers(3, 8))):
    at, width = rng.uniform(0, 0.35), rng.uniform(0.01, 0.05)
    total += rng.uniform(40, 160) * np.exp(-(((depth - at) / width) ** 2))
  total *= rng.gamma(2, 0.5, total.shape)
  return np.repeat(total[..., None], 3, 2)


def _document(rng: Generator) -> np.ndarray:
  """Lines of text, a table or a form on paper or a screen."""
  dark = rng.random() < 0.2
  paper = np.array([235, 232, 222]) * rng.uniform(0.7, 1.08)
  ink = np.array([25, 25, 35.0])
  if dark:
    paper, ink = ink, paper
  size = int(rng.integers(7, 34))
  font = ImageFont.load_default(size=size)
  letters = list(string.ascii_letters + string.digits + '    .,:')

  def write(d: ImageDraw.ImageDraw) -> None:
    for y in range(4, _SIDE, round(size * rng.uniform(1.2, 2))):
      line = ''.join(rng.choice(letters, int(rng.integers(3, 40))))
      d.text((int(rng.integers(2, 40)), y), line, fill=255, font=font)
    if rng.random() < 0.4:
      for x in range(0, _SIDE, int(rng.integers(20, 70))):
        d.line([x, 0, x, _SIDE], fill=200)
        d.line([0, x, _SIDE, x], fill=200)

  image = np.ones((_SIDE, _SIDE, 3)) * paper
  image = image * (1 + 0.08 * _noise(rng, 3)[..., None])
  return _over(image, ink, _paint(write))


def _ruler(rng: Generator) -> np.ndarray:
  """A ruler or scale across the picture."""
  back = np.ones((_SIDE, _SIDE, 3)) * rng.uniform(10, 240, 3)
  back = back * (1 + 0.15 * _noise(rng, 5)[..., None])
  step, first = int(rng.integers(4, 14)), int(rng.integers(20, 120))
  high = int(rng.integers(40, 110))
  body = _paint(
    lambda d: d.rectangle([0, first, _SIDE, first + high], fill=255)
  )
  woods = ([240, 240, 240], [225, 190, 90], [200, 60, 50], [190, 200, 205])
  image = _over(back, woods[rng.integers(4)], body)
  font = ImageFont.load_default(size=int(rng.integers(9, 20)))

  def ticks(d: ImageDraw.ImageDraw) -> None:
    for i, x in enumerate(range(3, _SIDE, step)):
      long = 0.5 if i % 10 == 0 else 0.35 if i % 5 == 0 else 0.2
      d.line([x, first, x, first + long * high], fill=255, width=1 + step // 8)
      if i % 10 == 0:
        d.text((x, first + 0.55 * high), str(i // 10), fill=255, font=font)

  image = _over(image, [20, 20, 20], _paint(ticks))
  turned = Image.fromarray(np.clip(image, 0, 255).astype(np.uint8))
  return np.asarray(turned.rotate(int(rng.choice([0, 90, 180, 27, -14]))))


def _chart(rng: Generator) -> np.ndarray:
  """Boards, bars of colour, stars, wedges: what cameras are tested with."""
  y, x = np.mgrid[0:_SIDE, 0:_SIDE] / _SIDE
  way, count = rng.integers(5), int(rng.integers(3, 14))
  if way == 0:
    plane = ((x * count).astype(int) + (y * count).astype(int)) % 2
  elif way == 1:
    colours = rng.uniform(0, 255, (count, 3))
    return colours[np.minimum((x * count).astype(int), count - 1)]
  elif way == 2:
    plane = np.cos(2 * count * np.arctan2(y - 0.5, x - 0.5)) > 0
  elif way == 3:
    plane = np.cos(np.pi * count * np.hypot(x - 0.5, y - 0.5) ** 2 * 6) > 0
  else:
    plane = np.floor(x * count) / count
  ends = rng.uniform(0, 255, (2, 3))
  return ends[0] + (ends[1] - ends[0]) * plane.astype(float)[..., None]


def _clouds(rng: Generator) -> np.ndarray:
  """Noise of all scales, grey or in colours: walls, cloth, grass, sky."""
  total = np.zeros((_SIDE, _SIDE, 3))
  for cells in (3, 6, 12, 25, 50, 100):
    weight = rng.uniform(0, 60) * rng.random()
    shared = _noise(rng, cells)[..., None]
    for channel in range(3):
      own = _noise(rng, cells)
      total[..., channel] += weight * (0.6 * shared[..., 0] + 0.4 * own)
  return total + rng.uniform(40, 210, 3)


def _grain(rng: Generator) -> np.ndarray:
  """Noise without any picture."""
  level = rng.uniform(5, 220, 3)
  return level + rng.normal(0, rng.uniform(10, 70), (_SIDE, _SIDE, 3))


def _uniform(rng: Generator) -> np.ndarray:
  """One colour, or a wash of two, with little noise."""
  y, x = np.mgrid[0:_SIDE, 0:_SIDE] / _SIDE
  ends = rng.uniform(0, 255, (2, 3))
  angle = rng.uniform(0, 6.3)
  along = np.clip(
    0.5 + np.cos(angle) * (x - 0.5) + np.sin(angle) * (y - 0.5), 0, 1
  )
  mixed = ends[0] + (ends[1] - ends[0]) * (
    along[..., None] * rng.choice([0, 0.3, 1])
  )
  return mixed + rng.normal(0, rng.uniform(0, 4), mixed.shape)


def _dark(rng: Generator) -> np.ndarray:
  """A frame without light: a closed shutter, the lens cap."""
  level = rng.uniform(0, 14) + rng.uniform(0, 5, 3)
  return level + rng.normal(0, rng.uniform(0.3, 4), (_SIDE, _SIDE, 3))


def _shapes(rng: Generator) -> np.ndarray:
  """Things: discs, boxes and lines in colours before a background."""
  image = _clouds(rng) if rng.random() < 0.5 else _uniform(rng)
  for _ in range(int(rng.integers(2, 14))):
    x, y = rng.uniform(0, _SIDE, 2)
    w, h = np.exp(rng.uniform(1.5, 4.6, 2))
    box = [x - w / 2, y - h / 2, x + w / 2, y + h / 2]
    way, thick = int(rng.integers(3)), int(rng.integers(1, 9))

    paint = (
      lambda d, box=box: d.ellipse(box, fill=255),
      lambda d, box=box: d.rectangle(box, fill=255),
      lambda d, box=box, wide=thick: d.line(box, fill=255, width=wide),
    )[way]
    weight = _paint(paint, rng.choice([0, 1, 3]))
    image = _over(image, rng.uniform(0, 255, 3), weight)
  return image


_KINDS: tuple[Callable[[Generator], np.ndarray], ...] = (
  _external_eye, _slit_lamp, _oct_scan, _document, _ruler, _chart, _clouds,
  _grain, _uniform, _dark, _shapes,
)  # fmt: skip
_SHARES = np.array([5, 3, 1, 2, 2, 1, 2, 1, 1, 1, 3]) / 22
