"""Disease that is no fault: what is wrong with the eye, not the photograph.

Drawn so that a network does not take a sick retina for a bad photograph:
laser scars, blots and flames of blood, exudates, cotton-wool spots, atrophy
and pale or dark patches of choroid; and what healthy eyes differ in: fine
vessels, sheen, a mottled or tessellated choroid. Shapes are rough, their
places random.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.random import Generator
from PIL import ImageDraw

from iqa_jax.simulation import canvas
from iqa_jax.simulation.canvas import Frame


def apply(image: np.ndarray, inside: np.ndarray, rng: Generator) -> np.ndarray:
  """Returns a photograph, uint8 [h, w, 3], of an eye with lesions.

  Args:
    image: uint8 [h, w, 3].
    inside: bool [h, w], the field of view; nothing changes outside it.
    rng: draws how many of which kinds, and where.
  """
  frame = Frame(inside)
  pixels = image.astype(np.float32)
  for kind in rng.choice(len(_KINDS), int(rng.integers(1, 5)), replace=False):
    pixels = _KINDS[kind](pixels, frame, rng)
  return canvas.finished(pixels, image, inside)


def _spots(
  frame: Frame,
  rng: Generator,
  count: int,
  least: float,
  most: float,
  softness: float,
  spread: float = 0.9,
) -> np.ndarray:
  """Returns float32 [h, w]: soft spots, scattered or in one cluster."""
  x0, y0 = canvas.within(rng, 0.5)
  clustered = rng.random() < 0.5

  def paint(draw: ImageDraw.ImageDraw) -> None:
    for _ in range(count):
      x, y = canvas.within(rng, spread)
      if clustered:
        x, y = x0 + 0.4 * x, y0 + 0.4 * y
      px, py = frame.pixel(x, y)
      r = frame.radius * rng.uniform(least, most)
      flat = rng.uniform(0.6, 1)
      box = [px - r, py - r * flat, px + r, py + r * flat]
      draw.ellipse(box, fill=int(rng.uniform(120, 255)))

  return canvas.drawn(frame.shape, paint, frame.radius * softness)


def _blood(pixels: np.ndarray, frame: Frame, rng: Generator) -> np.ndarray:
  count = int(np.exp(rng.uniform(0.7, 3.4)))
  weight = _spots(frame, rng, count, 0.008, 0.045, rng.uniform(0.002, 0.008))
  dark = pixels * np.array([0.55, 0.35, 0.35], np.float32)
  return pixels + (dark - pixels) * (0.85 * weight)[..., None]


def _exudates(pixels: np.ndarray, frame: Frame, rng: Generator) -> np.ndarray:
  count = int(np.exp(rng.uniform(1, 4)))
  weight = _spots(frame, rng, count, 0.004, 0.022, rng.uniform(0.001, 0.004))
  bright = np.minimum(pixels * [1.2, 1.5, 1.4] + [25, 30, 10], 245)
  return pixels + (bright - pixels) * weight[..., None]


def _cotton_wool(
  pixels: np.ndarray, frame: Frame, rng: Generator
) -> np.ndarray:
  weight = _spots(frame, rng, int(rng.integers(1, 6)), 0.02, 0.06, 0.012)
  bright = np.minimum(pixels * 1.25 + 35, 240)
  return pixels + (bright - pixels) * (0.8 * weight)[..., None]


def _laser_scars(
  pixels: np.ndarray, frame: Frame, rng: Generator
) -> np.ndarray:
  count = int(rng.integers(12, 90))
  away = canvas.rise(frame.r - rng.uniform(0.3, 0.6), 0.2)
  weight = away * _spots(frame, rng, count, 0.015, 0.04, 0.005, 0.97)
  pale = np.minimum(pixels * [1.1, 1.4, 1.5] + [15, 25, 20], 235)
  pixels = pixels + (pale - pixels) * (0.75 * weight)[..., None]
  dark = away * _spots(frame, rng, count // 3, 0.006, 0.018, 0.003, 0.97)
  return canvas.over(pixels, [50, 32, 26], 0.7 * dark)


def _patch(pixels: np.ndarray, frame: Frame, rng: Generator) -> np.ndarray:
  """Atrophy, a naevus, or choroid of another tone."""
  x, y = canvas.within(rng, 0.7)
  away = np.hypot(frame.x - x, frame.y - y) / rng.uniform(0.06, 0.25)
  away = away + 0.4 * canvas.smooth_noise(rng, frame.shape, 9)
  weight = canvas.rise(0.9 - away, rng.uniform(0.15, 0.6))
  change = rng.choice([0.75, 1.3]) + rng.normal(0, 0.05, 3)
  return pixels * (1 + (change - 1) * weight[..., None])


def _tessellation(
  pixels: np.ndarray, frame: Frame, rng: Generator
) -> np.ndarray:
  """The choroid's vessels shine through: broad pale bands."""
  noise = canvas.smooth_noise(rng, frame.shape, int(rng.integers(14, 26)))
  bands = np.clip(1 - 2.2 * np.abs(noise), 0, 1)
  tint = np.array([30, 24, 12], np.float32) * rng.uniform(0.4, 1.1)
  return pixels * 0.94 + bands[..., None] * tint


def _nerve_fibres(
  pixels: np.ndarray, frame: Frame, rng: Generator
) -> np.ndarray:
  """The glossy fundus of the young: fans and rings of reflex."""
  x, y = rng.uniform(-0.5, 0.5), rng.uniform(-0.15, 0.15)
  dx, dy = frame.x - float(x), frame.y - float(y)
  r = np.hypot(dx, dy)
  fan = 0.5 + 0.5 * np.cos(
    rng.integers(10, 26) * np.arctan2(dy, dx) + rng.uniform(0, 6) + 4 * r
  )
  weight = np.exp(-(((r - 0.35) / 0.25) ** 2)) * fan
  return pixels + weight[..., None] * rng.uniform(4, 16) * [0.7, 1.0, 0.85]


def _fine_vessels(
  pixels: np.ndarray, frame: Frame, rng: Generator
) -> np.ndarray:
  """Many small vessels, faint or clear, that no arcade feeds."""
  count, bow = int(rng.integers(20, 140)), rng.uniform(0.3, 2.5)
  width = max(1, round(frame.radius * rng.uniform(0.004, 0.011)))

  def paint(draw: ImageDraw.ImageDraw) -> None:
    for _ in range(count):
      x, y = canvas.within(rng, 0.95)
      turn = rng.uniform(0, 2 * np.pi)
      path = [frame.pixel(x, y)]
      for bend in rng.normal(0, bow, int(rng.integers(6, 24))):
        turn += 0.05 * bend
        turn += 0.1 * np.sin(3 * turn)
        x, y = x + 0.03 * np.cos(turn), y + 0.03 * np.sin(turn)
        path.append(frame.pixel(x, y))
      draw.line(path, int(rng.uniform(80, 255)), width)

  soft = frame.radius * rng.uniform(0.002, 0.005)
  weight = canvas.drawn(frame.shape, paint, soft)
  absorbs = np.array([0.1, 0.4, 0.35]) * rng.uniform(0.3, 1.0)
  if rng.random() < 0.2:  # of the choroid, where the retina is pale
    absorbs = np.array([-0.25, -0.1, 0.05]) * rng.uniform(0.3, 1.0)
  return pixels * (1 - weight[..., None] * absorbs)


def _sheen(pixels: np.ndarray, frame: Frame, rng: Generator) -> np.ndarray:
  """Silvery reflexes of the inner limiting membrane, as in young eyes."""
  broad = canvas.smooth_noise(rng, frame.shape, int(rng.integers(4, 9)))
  grain = canvas.smooth_noise(rng, frame.shape, int(rng.integers(30, 110)))
  away = np.exp(-(((frame.r - rng.uniform(0.3, 0.6)) / 0.3) ** 2))
  weight = away * np.clip(broad - rng.uniform(0, 0.3), 0, 1)
  weight *= 1 + rng.uniform(0, 1) * grain
  tint = rng.uniform(30, 130) * np.array([0.9, 1.0, 1.0])
  return pixels + np.clip(weight, 0, 1)[..., None] * tint


def _mottled(pixels: np.ndarray, frame: Frame, rng: Generator) -> np.ndarray:
  """A choroid or pigment of uneven tone, coarse and fine."""
  noise = np.zeros(frame.shape, np.float32)
  for cells in rng.integers(8, 130, 3):
    noise += rng.uniform(0, 0.06) * canvas.smooth_noise(
      rng, frame.shape, int(cells)
    )
  return pixels * (1 + noise[..., None] * rng.uniform(0.4, 1.2, 3))


_Kind = Callable[[np.ndarray, Frame, Generator], np.ndarray]
_KINDS: tuple[_Kind, ...] = (
  _blood,
  _exudates,
  _cotton_wool,
  _laser_scars,
  _patch,
  _tessellation,
  _nerve_fibres,
  _fine_vessels,
  _fine_vessels,
  _sheen,
  _mottled,
  _mottled,
)
