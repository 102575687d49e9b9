"""Faults of no named kind: a random region, changed in a random way.

A detector that learns from named faults (faults.py) knows those and is blind
to the next one: dust it has learned says little about a hair. These faults
stand for all the others. A region (blob, polygon, stripes, strokes, specks,
ring, side) and a change (colour, coloured light, texture, ridges, noise,
blocks, blur, tone, displaced or second retina, lens, held rows) are drawn
independently of each other, after DRAEM (Zavrtanik et al. 2021, section 3.2)
and CutPaste (Li et al. 2021), and for fundus photographs' own ways of failing:
a change of focus is a fault of focus, a large smooth change of light one of
illumination, anything else an artifact.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.random import Generator
from PIL import Image

from iqa_jax.simulation import canvas, regions
from iqa_jax.simulation.canvas import Faulty, Frame

_LEAST_CHANGE = 7.0  # of 255, mean over the region: below, nothing is to see
_TRIES = 8


def apply(
  image: np.ndarray, inside: np.ndarray, criterion: str, rng: Generator
) -> Faulty:
  """Puts one procedural fault into a photograph.

  Args:
    image: uint8 [h, w, 3].
    inside: bool [h, w], the field of view; nothing changes outside it.
    criterion: that it breaks, one of CRITERIA.
    rng: draws region and change.

  Returns:
    The faulty photograph, uint8 [h, w, 3], and the mask of the fault, float32
    [h, w] in 0..1.
  """
  frame = Frame(inside)
  for _ in range(_TRIES):
    region = regions.draw(frame, criterion, rng)
    region *= inside
    changes = _CHANGES[criterion]
    changed = changes[rng.integers(len(changes))](image, frame, rng)
    changed = np.clip(changed, 0, 255)
    strength = region * (1.0 if rng.random() < 0.6 else rng.uniform(0.5, 1.0))
    mixed = image + (changed - image) * strength[..., None]
    pixels = np.rint(mixed).astype(np.uint8)
    pixels[~inside] = image[~inside]
    core = region > 0.5
    if core.sum() < 4e-4 * inside.sum():
      continue
    difference = np.abs(pixels[core].astype(np.float32) - image[core])
    # Blur takes away what little contrast there is; it counts for more.
    floor = _LEAST_CHANGE / (4 if criterion == 'focus' else 1)
    if difference.mean() >= floor:
      break
  return pixels, np.clip(region, 0, 1).astype(np.float32)


# Changes: float32 [h, w, 3] in 0..255, of which the region is taken.


def _colour(image: np.ndarray, frame: Frame, rng: Generator) -> np.ndarray:
  if rng.random() < 0.5:
    tint = rng.uniform(0, 255, 3)
  else:  # grey, as dust, lint and reflections are
    tint = rng.uniform(0, 255) + rng.normal(0, 12, 3)
  fill: np.ndarray = np.broadcast_to(tint, image.shape).astype(np.float32)
  if rng.random() < 0.4:
    fill = fill * (
      1 + rng.uniform(0.1, 0.6) * frame.along(rng.uniform(0, 6.3))[..., None]
    )
  return image + (fill - image) * rng.uniform(0.4, 1)


def _texture(image: np.ndarray, frame: Frame, rng: Generator) -> np.ndarray:
  """Colour noise of one to three scales."""
  total = np.zeros(image.shape, np.float32)
  for _ in range(int(rng.integers(1, 4))):
    cells = int(np.exp(rng.uniform(np.log(6), np.log(120))))
    plane = canvas.smooth_noise(rng, frame.shape, cells)[..., None]
    if rng.random() < 0.3:
      plane = np.sign(plane)
    total += plane * rng.uniform(10, 90) * rng.uniform(0.3, 1, 3)
  if rng.random() < 0.5:
    return image + total
  return rng.uniform(30, 220, 3) + total


def _ridges(image: np.ndarray, frame: Frame, rng: Generator) -> np.ndarray:
  """Waves: straight, about a point, or bent; light and dark or coloured."""
  frequency = rng.uniform(12, 60)
  way = rng.integers(3)
  if way == 0:
    course = frame.along(rng.uniform(0, np.pi))
  elif way == 1:
    x, y = canvas.within(rng, 0.6)
    course = np.hypot(frame.x - x, (frame.y - y) * rng.uniform(0.6, 1.4))
  else:
    bent = canvas.smooth_noise(rng, frame.shape, int(rng.integers(3, 9)))
    course = frame.along(rng.uniform(0, np.pi)) + 0.3 * bent
  wave = np.sin(frequency * course)[..., None]
  if rng.random() < 0.3:
    wave = np.sign(wave)
  tint = rng.uniform(-1, 1, 3) if rng.random() < 0.4 else np.ones(3)
  return image + rng.uniform(12, 60) * wave * tint + rng.uniform(-20, 30)


def _noise(image: np.ndarray, frame: Frame, rng: Generator) -> np.ndarray:
  deviation = rng.uniform(15, 80)
  shape = image.shape if rng.random() < 0.5 else (*image.shape[:2], 1)
  if rng.random() < 0.3:  # salt and pepper
    hit = rng.random(shape) < rng.uniform(0.05, 0.3)
    return np.where(hit, 255.0 * rng.integers(0, 2, shape), image)
  return image + rng.normal(0, deviation, shape)


def _blocks(image: np.ndarray, frame: Frame, rng: Generator) -> np.ndarray:
  """Mosaic, or a codec's blocks shifted about."""
  side = max(2, round(frame.radius * rng.uniform(0.03, 0.2)))
  h, w = image.shape[:2]
  small = Image.fromarray(image).resize(
    (max(1, w // side), max(1, h // side)), Image.Resampling.BOX
  )
  if rng.random() < 0.4:
    values: np.ndarray = np.asarray(small, np.float32)
    values = values + rng.normal(0, rng.uniform(10, 50), values.shape)
    small = Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))
  return np.asarray(small.resize((w, h), Image.Resampling.NEAREST), np.float32)


def _blur(image: np.ndarray, frame: Frame, rng: Generator) -> np.ndarray:
  sigma = frame.radius * np.exp(rng.uniform(np.log(0.008), np.log(0.06)))
  if rng.random() < 0.7:
    return canvas.blurred(image, sigma)
  # Along a line, or doubled: the eye moved.
  angle = rng.uniform(0, np.pi)
  return canvas.dragged(image, angle, 4 * sigma, int(rng.choice([2, 9])))


def _light(image: np.ndarray, frame: Frame, rng: Generator) -> np.ndarray:
  """Darker, brighter, flatter or washed out."""
  way = rng.integers(4)
  values = image.astype(np.float32)
  if way == 0:
    return values * rng.uniform(0.05, 0.6)
  if way == 1:
    return 255 * (values / 255) ** rng.uniform(0.25, 0.6) * rng.uniform(1, 1.4)
  veil = rng.uniform(20, 230) + rng.normal(0, 20, 3)
  if way == 2:
    return values + (veil - values) * rng.uniform(0.4, 0.95)
  return values + rng.uniform(0.3, 1) * veil


def _tone(image: np.ndarray, frame: Frame, rng: Generator) -> np.ndarray:
  """Channels mixed, inverted, saturated or quantised."""
  values = image.astype(np.float32)
  way = rng.integers(4)
  if way == 0:
    return values[..., rng.permutation(3)] * rng.uniform(0.6, 1.4, 3)
  if way == 1:
    return 255 - values
  if way == 2:
    grey = values.mean(2, keepdims=True)
    return grey + (values - grey) * rng.choice([0.0, 3.0])
  levels = rng.uniform(24, 90)
  return np.floor(values / levels) * levels + levels / 2


def _displaced(image: np.ndarray, frame: Frame, rng: Generator) -> np.ndarray:
  """Retina from elsewhere in the photograph, shifted, mirrored or enlarged."""
  shift = frame.radius * rng.uniform(0.15, 0.8)
  angle = rng.uniform(0, 2 * np.pi)
  moved = np.roll(
    image, (round(shift * np.sin(angle)), round(shift * np.cos(angle))), (0, 1)
  )
  if rng.random() < 0.4:
    moved = moved[::-1] if rng.random() < 0.5 else moved[:, ::-1]
  if rng.random() < 0.3:
    h, w = image.shape[:2]
    factor = rng.uniform(1.5, 4)
    ch, cw = int(h / factor), int(w / factor)
    y, x = (h - ch) // 2, (w - cw) // 2
    cut = Image.fromarray(np.ascontiguousarray(moved[y : y + ch, x : x + cw]))
    moved = np.asarray(cut.resize((w, h), Image.Resampling.BICUBIC))
  values = moved.astype(np.float32)
  if rng.random() < 0.3:  # a ghost: both at once
    values = 0.5 * (values + image)
  return values


def _lens(image: np.ndarray, frame: Frame, rng: Generator) -> np.ndarray:
  """Bent light, as under a drop of water: pixels looked up beside."""
  h, w = image.shape[:2]
  cells = int(rng.integers(4, 20))
  reach = frame.radius * rng.uniform(0.03, 0.12)
  dy = canvas.smooth_noise(rng, frame.shape, cells) * reach
  dx = canvas.smooth_noise(rng, frame.shape, cells) * reach
  rows = np.clip(np.arange(h)[:, None] + dy, 0, h - 1).astype(np.intp)
  columns = np.clip(np.arange(w)[None, :] + dx, 0, w - 1).astype(np.intp)
  return image[rows, columns].astype(np.float32)


def _edges(image: np.ndarray, frame: Frame, rng: Generator) -> np.ndarray:
  """Sharpened far beyond what any camera gives, or embossed."""
  values = image.astype(np.float32)
  soft = canvas.blurred(image, frame.radius * rng.uniform(0.006, 0.03))
  return values + rng.uniform(3, 9) * (values - soft)


def _slipped(image: np.ndarray, frame: Frame, rng: Generator) -> np.ndarray:
  """Strips displaced by turns, as by a bad transfer or an eye that moved."""
  wide = max(1, round(frame.radius * np.exp(rng.uniform(-4.4, -1.6))))
  count = max(image.shape) // wide + 1
  reach = frame.radius * rng.uniform(0.03, 0.25)
  shifts = np.rint(rng.uniform(-reach, reach, count)).astype(int)
  axis = int(rng.integers(2))
  along = np.moveaxis(image, axis, 0)
  rows = np.arange(along.shape[0])
  columns = np.arange(along.shape[1])[None] - shifts[rows // wide][:, None]
  moved = along[rows[:, None], columns % along.shape[1]]
  return np.moveaxis(moved, 0, axis).astype(np.float32)


def _ghost(image: np.ndarray, frame: Frame, rng: Generator) -> np.ndarray:
  """A second picture of the retina over the first: two exposures, a reflex."""
  turn = rng.choice([180.0, rng.uniform(0, 360)])
  second: np.ndarray = np.asarray(
    Image.fromarray(image).rotate(float(turn), Image.Resampling.BILINEAR),
    np.float32,
  )
  if rng.random() < 0.5:
    second = second[:, ::-1]
  values = image.astype(np.float32)
  way = rng.integers(3)
  if way == 0:
    return np.maximum(values, second * rng.uniform(0.8, 1.2))
  if way == 1:
    return values + (second - values) * rng.uniform(0.3, 0.7)
  return 255 - (255 - values) * (255 - second * rng.uniform(0.4, 1)) / 255


def _glow(image: np.ndarray, frame: Frame, rng: Generator) -> np.ndarray:
  """Light of any colour added, or a coloured glass before it."""
  values = image.astype(np.float32)
  tint = rng.uniform(0, 255, 3)
  tint[rng.integers(3)] = 255
  if rng.random() < 0.7:
    return values + rng.uniform(0.25, 1) * tint
  return values * (tint / 255) ** rng.uniform(0.5, 1.5)


def _held(image: np.ndarray, frame: Frame, rng: Generator) -> np.ndarray:
  """Rows or columns written again and again, or dragged along."""
  axis = int(rng.integers(2))
  along = np.moveaxis(image, axis, 0)
  count = along.shape[0]
  wide = max(2, round(frame.radius * np.exp(rng.uniform(-3.5, 0))))
  rows = np.arange(count)
  held = along[np.minimum(rows // wide * wide + rng.integers(wide), count - 1)]
  return np.moveaxis(held, 0, axis).astype(np.float32)


def _parted(image: np.ndarray, frame: Frame, rng: Generator) -> np.ndarray:
  """Colours displaced against each other."""
  values = image.astype(np.float32)
  for channel in rng.permutation(3)[:2]:
    step = np.rint(frame.radius * rng.uniform(0.02, 0.1) * rng.normal(0, 1, 2))
    values[..., channel] = np.roll(
      values[..., channel], (int(step[0]), int(step[1])), (0, 1)
    )
  return values


_Change = Callable[[np.ndarray, Frame, Generator], np.ndarray]

# How often each criterion is broken: most that goes wrong has no name.
CRITERIA = {'artifacts': 0.7, 'focus': 0.12, 'illumination': 0.18}
_CHANGES: dict[str, tuple[_Change, ...]] = {
  'artifacts': (
    _colour,
    _colour,
    _texture,
    _ridges,
    _noise,
    _blocks,
    _tone,
    _displaced,
    _lens,
    _edges,
    _light,
    _slipped,
    _parted,
    _ghost,
    _glow,
    _held,
  ),
  'focus': (_blur,),
  'illumination': (_light,),
}
