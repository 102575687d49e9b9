"""Where a fault of no named kind may be: random regions of a field of view.

Each is float32 [h, w] in 0..1, of the whole frame.
"""

from __future__ import annotations

from collections.abc import Callable
import itertools

import numpy as np
from numpy.random import Generator
from PIL import ImageDraw

from iqa_jax.simulation import canvas
from iqa_jax.simulation.canvas import Frame


def draw(frame: Frame, criterion: str, rng: Generator) -> np.ndarray:
  """Returns where a fault of a criterion is; see procedural.CRITERIA."""
  return _choose(rng, _REGIONS[criterion])(frame, rng)


def _choose(rng: Generator, kinds: tuple[_Region, ...]) -> _Region:
  return kinds[rng.integers(len(kinds))]


def _blob(frame: Frame, rng: Generator) -> np.ndarray:
  x, y = canvas.within(rng, 0.9)
  reach = np.exp(rng.uniform(np.log(0.06), np.log(0.5)))
  away = np.hypot(frame.x - x, frame.y - y) / reach
  ragged = away + rng.uniform(0, 0.7) * canvas.smooth_noise(
    rng, frame.shape, int(rng.integers(4, 16))
  )
  return canvas.rise(0.9 - ragged, rng.uniform(0.05, 0.8))


def _clouds(frame: Frame, rng: Generator) -> np.ndarray:
  noise = canvas.smooth_noise(rng, frame.shape, int(rng.integers(3, 24)))
  return canvas.rise(noise - rng.uniform(0.1, 0.5), rng.uniform(0.03, 0.5))


def _polygon(frame: Frame, rng: Generator) -> np.ndarray:
  x, y = canvas.within(rng, 0.85)
  reach = np.exp(rng.uniform(np.log(0.06), np.log(0.45)))
  corners = int(rng.integers(3, 8))
  angles = np.sort(rng.uniform(0, 2 * np.pi, corners))
  radii = reach * rng.uniform(0.6, 1.2, corners)
  points = [
    frame.pixel(x + r * np.cos(a), y + r * np.sin(a))
    for a, r in zip(angles, radii, strict=True)
  ]
  if rng.random() < 0.5:  # a rectangle, upright or turned
    turn = rng.uniform(0, np.pi) if rng.random() < 0.5 else 0.0
    wide, high = reach, reach * rng.uniform(0.2, 1.0)
    c, s = np.cos(turn), np.sin(turn)
    points = [
      frame.pixel(x + c * u - s * v, y + s * u + c * v)
      for u, v in ((-wide, -high), (wide, -high), (wide, high), (-wide, high))
    ]
  blur = frame.radius * rng.choice([0.0, 0.005, 0.03])
  return canvas.drawn(frame.shape, lambda draw: draw.polygon(points, 255), blur)


def _ellipse(frame: Frame, rng: Generator) -> np.ndarray:
  x, y = frame.pixel(*canvas.within(rng, 0.9))
  r = frame.radius * np.exp(rng.uniform(np.log(0.04), np.log(0.4)))
  box = [x - r, y - r * rng.uniform(0.4, 1), x + r, y + r * rng.uniform(0.4, 1)]
  width = 0 if rng.random() < 0.6 else max(1, round(r * rng.uniform(0.1, 0.4)))

  def paint(draw: ImageDraw.ImageDraw) -> None:
    if width:
      draw.ellipse(box, outline=255, width=width)
    else:
      draw.ellipse(box, fill=255)

  return canvas.drawn(frame.shape, paint, r * rng.choice([0.0, 0.05, 0.3]))


def _strokes(frame: Frame, rng: Generator) -> np.ndarray:
  """Hairs, scratches, cracks, writing: thin lines, straight or bent."""
  count = int(rng.integers(1, 9))
  wide = frame.radius * np.exp(rng.uniform(np.log(0.008), np.log(0.07)))
  bend = rng.choice([0.0, 0.3, 1.0])

  def paint(draw: ImageDraw.ImageDraw) -> None:
    for _ in range(count):
      place = np.array(canvas.within(rng, 0.95))
      angle = rng.uniform(0, 2 * np.pi)
      path = [frame.pixel(*place)]
      for _ in range(int(rng.integers(2, 14))):
        angle += bend * rng.normal(0, 0.8)
        place = place + rng.uniform(0.05, 0.2) * np.array(
          [np.cos(angle), np.sin(angle)]
        )
        path.append(frame.pixel(*place))
      for a, b in itertools.pairwise(path):
        draw.line([a, b], 255, max(1, round(wide)))

  return canvas.drawn(frame.shape, paint, wide * rng.choice([0.0, 0.2, 0.6]))


def _stripes(frame: Frame, rng: Generator) -> np.ndarray:
  """Parallel lines or a grid, over the whole or over a part."""
  angle = rng.choice([0.0, np.pi / 2, rng.uniform(0, np.pi)])
  period = rng.uniform(0.04, 0.4)
  share = rng.uniform(0.1, 0.6)
  phase = (frame.along(angle) / period + rng.random()) % 1.0
  lines = (phase < share).astype(np.float32)
  if rng.random() < 0.3:
    across = (frame.along(angle + np.pi / 2) / period + rng.random()) % 1.0
    lines = np.maximum(lines, (across < share).astype(np.float32))
  if rng.random() < 0.7:
    lines = lines * _choose(rng, (_blob, _side, _polygon))(frame, rng)
  return lines


def _specks(frame: Frame, rng: Generator) -> np.ndarray:
  count = int(np.exp(rng.uniform(np.log(3), np.log(80))))
  largest = np.exp(rng.uniform(np.log(0.01), np.log(0.06)))
  square = rng.random() < 0.3

  def paint(draw: ImageDraw.ImageDraw) -> None:
    for _ in range(count):
      x, y = frame.pixel(*canvas.within(rng, 0.98))
      r = frame.radius * largest * rng.uniform(0.3, 1)
      box = [x - r, y - r, x + r, y + r]
      (draw.rectangle if square else draw.ellipse)(box, fill=255)

  return canvas.drawn(
    frame.shape, paint, frame.radius * largest * rng.choice([0.0, 0.2, 0.5])
  )


def _side(frame: Frame, rng: Generator) -> np.ndarray:
  edge = rng.uniform(-0.4, 0.7)
  along = frame.along(rng.uniform(0, 2 * np.pi))
  return canvas.rise(along - edge, rng.choice([0.02, 0.3, 1.0]))


def _ring(frame: Frame, rng: Generator) -> np.ndarray:
  inner = rng.uniform(0.4, 0.9)
  return canvas.rise(frame.r - inner, rng.uniform(0.03, 0.5))


def _everywhere(frame: Frame, rng: Generator) -> np.ndarray:
  return frame.ones()


_Region = Callable[[Frame, Generator], np.ndarray]

_LOCAL = (_blob, _clouds, _polygon, _ellipse, _strokes, _stripes, _specks)
_WIDE = (_blob, _side, _ring, _clouds, _everywhere)
_REGIONS: dict[str, tuple[_Region, ...]] = {
  'artifacts': (*_LOCAL, _side),
  'focus': _WIDE,
  'illumination': _WIDE,
}
