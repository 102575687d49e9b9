"""A field of view to draw faults into: coordinates, soft edges, noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
import functools
from typing import TypeAlias

import numpy as np
from numpy.random import Generator
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw, ImageFilter

# A picture [h, w, 3] with a fault, and how strongly each place has it [h, w].
Faulty: TypeAlias = tuple[np.ndarray, np.ndarray]


class Frame:
  """Coordinates of a field of view: unit circle, y downwards."""

  def __init__(self, inside: np.ndarray):
    h, w = inside.shape
    rows = np.flatnonzero(inside.any(1))
    columns = np.flatnonzero(inside.any(0))
    if not len(rows):
      rows, columns = np.array([0, h - 1]), np.array([0, w - 1])
    # The wider side is the circle's diameter; cut fields are less high.
    self.radius = float(max(np.ptp(rows), np.ptp(columns)) / 2 + 0.5)
    cy = float(rows[0] + rows[-1]) / 2
    cx = float(columns[0] + columns[-1]) / 2
    self.shape = (h, w)
    self.centre = (cx, cy)
    self.x = ((np.arange(w, dtype=np.float32) - cx) / self.radius)[None, :]
    self.y = ((np.arange(h, dtype=np.float32) - cy) / self.radius)[:, None]

  @functools.cached_property
  def r(self) -> np.ndarray:
    return np.hypot(self.x, self.y)

  def ones(self) -> np.ndarray:
    return np.ones(self.shape, np.float32)

  def pixel(self, x: float, y: float) -> tuple[float, float]:
    return (self.centre[0] + x * self.radius, self.centre[1] + y * self.radius)

  def along(self, angle: float) -> np.ndarray:
    """Returns the coordinate in a direction, -1..1 across the field."""
    return self.x * float(np.cos(angle)) + self.y * float(np.sin(angle))


def smooth_noise(
  rng: Generator, shape: tuple[int, int], cells: int
) -> np.ndarray:
  """Returns float32 noise in about -1..1 with `cells` bumps across."""
  coarse = rng.uniform(-1, 1, (cells + 1, cells + 1)).astype(np.float32)
  image = Image.fromarray(coarse).resize(shape[::-1], Image.Resampling.BICUBIC)
  return np.asarray(image)


def rise(x: np.ndarray, width: float) -> np.ndarray:
  """Returns a smooth step from 0 to 1 about x = 0."""
  t = np.clip(x / width + 0.5, 0, 1)
  return t * t * (3 - 2 * t)


def blurred(image: np.ndarray, sigma: float) -> np.ndarray:
  """Returns a uint8 image blurred by sigma pixels, as float32."""
  blur = ImageFilter.GaussianBlur(float(sigma))
  return np.asarray(Image.fromarray(image).filter(blur), np.float32)


def dragged(
  image: np.ndarray, angle: float, length: float, steps: int
) -> np.ndarray:
  """Returns the mean, float32, of a picture shifted along a line.

  Args:
    image: [h, w, 3].
    angle: of the line, in radians.
    length: of the line, in pixels.
    steps: how many shifts, evenly over it.
  """
  total = np.zeros(image.shape, np.float32)
  for shift in np.linspace(-0.5, 0.5, steps) * length:
    step = (round(shift * np.sin(angle)), round(shift * np.cos(angle)))
    total += np.roll(image, step, (0, 1))
  return total / steps


def drawn(
  shape: tuple[int, int],
  paint: Callable[[ImageDraw.ImageDraw], None],
  blur: float,
) -> np.ndarray:
  """Returns what `paint(draw)` paints in 'L', blurred, as float32 0..1."""
  canvas = Image.new('L', shape[::-1])
  paint(ImageDraw.Draw(canvas))
  if blur > 0:
    canvas = canvas.filter(ImageFilter.GaussianBlur(float(blur)))
  return np.asarray(canvas, np.float32) / 255


def lines(
  frame: Frame,
  paths: Sequence[list[tuple[float, float]]],
  wide: int,
  blur: float,
) -> tuple[np.ndarray, np.ndarray]:
  """Returns how strongly lines cover each place, and a margin about them.

  Args:
    frame: the field of view.
    paths: of points (x, y) in pixels, one a line.
    wide: pixels across a line.
    blur: pixels; the margin is a fiftieth of the field's radius.
  """

  def paint(draw: ImageDraw.ImageDraw) -> None:
    for path in paths:
      draw.line(path, 255, wide, joint='curve')

  return edged(frame.shape, paint, blur, 0.02 * frame.radius)


def edged(
  shape: tuple[int, int],
  paint: Callable[[ImageDraw.ImageDraw], None],
  blur: float,
  margin: float,
) -> tuple[np.ndarray, np.ndarray]:
  """Returns what is `drawn`, and the same blurred by a margin about it."""
  return drawn(shape, paint, blur), drawn(shape, paint, margin)


def over(image: np.ndarray, tint: ArrayLike, weight: np.ndarray) -> np.ndarray:
  """Returns a picture [h, w, 3] under a colour or picture of weights [h, w]."""
  return image + (np.asarray(tint, np.float32) - image) * weight[..., None]


def finished(
  pixels: np.ndarray, image: np.ndarray, inside: np.ndarray
) -> np.ndarray:
  """Returns changed pixels as uint8, and `image` outside the field."""
  pixels = np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
  pixels[~inside] = image[~inside]
  return pixels


def seen(
  fault: Callable[[np.ndarray, Frame, Generator], Faulty],
  image: np.ndarray,
  inside: np.ndarray,
  rng: Generator,
) -> Faulty:
  """Returns a photograph with a fault, uint8, and where it is seen, bool.

  Args:
    fault: from float32 [h, w, 3] and its field to the same with the fault, and
      how strongly each place has it.
    image: uint8 [h, w, 3].
    inside: bool [h, w], the field of view; nothing changes outside it.
    rng: draws place, colour and shape.
  """
  changed, weight = fault(image.astype(np.float32), Frame(inside), rng)
  return finished(changed, image, inside), (weight > 0.25) & inside


def within(rng: Generator, radius: float) -> tuple[float, float]:
  """Returns a random point (x, y) of the circle of a radius."""
  angle, r = rng.uniform(0, 2 * np.pi), radius * np.sqrt(rng.random())
  return float(r * np.cos(angle)), float(r * np.sin(angle))
