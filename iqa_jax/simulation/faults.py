"""Faults of focus, illumination and artifacts, put into any photograph.

Each fault has a severity from 0 (nothing) to 1 (hopeless) and leaves a mask of
where it is. A photograph is inadequate by a criterion when a fault of it has a
severity of at least `THRESHOLD`; below, the same fault is a distractor, so that
its presence alone gives nothing away. Lengths scale with the field's size.
"""

from __future__ import annotations

import itertools

import numpy as np
from numpy.random import Generator
from PIL import ImageDraw

from iqa_jax import errors
from iqa_jax.simulation import canvas
from iqa_jax.simulation.canvas import Faulty, Frame

THRESHOLD = 0.5

# By criterion; the image field is a matter of geometry (field.py), not of
# pixels. A share of 'defocus' twice: it is the commonest.
KINDS = {
  'focus': ('defocus', 'motion', 'partial_defocus'),
  'illumination': (
    'under',
    'over',
    'uneven',
    'haze',
    'murk',
    'rim_flare',
    'pupil_shadow',
  ),
  'artifacts': ('dust', 'lashes', 'reflection', 'stain', 'central_flare'),
}
CRITERION = {kind: name for name, kinds in KINDS.items() for kind in kinds}


def apply(
  image: np.ndarray,
  inside: np.ndarray,
  kind: str,
  severity: float,
  rng: Generator,
) -> Faulty:
  """Puts one fault into a photograph.

  Args:
    image: uint8 [h, w, 3].
    inside: bool [h, w], the field of view; nothing changes outside it.
    kind: one of the values of `KINDS`.
    severity: 0..1.
    rng: draws place, colour and shape.

  Returns:
    The faulty photograph, uint8 [h, w, 3], and the mask of the fault, float32
    [h, w] in 0..1: how strongly each place is affected.

  Raises:
    ValueError: no such kind, or a severity out of range.
  """
  errors.one_of('fault', kind, CRITERION)
  if not 0 <= severity <= 1:
    raise errors.InvalidValue(f'severity {severity} is not within 0 to 1')
  pixels, weight = _FAULTS[kind](image, Frame(inside), float(severity), rng)
  pixels = canvas.finished(pixels, image, inside)
  mask = np.where(inside, np.clip(weight, 0, 1), 0).astype(np.float32)
  return pixels, mask


def _blend(
  image: np.ndarray, other: np.ndarray, weight: np.ndarray
) -> np.ndarray:
  image, other = image.astype(np.float32), np.broadcast_to(other, image.shape)
  for channel in range(3):
    plane = image[..., channel]
    plane += (other[..., channel] - plane) * weight
  return image


def _blur_sigma(frame: Frame, s: float) -> float:
  return frame.radius * 0.038 * s**1.4


def _defocus(
  image: np.ndarray, frame: Frame, s: float, rng: Generator
) -> Faulty:
  return canvas.blurred(image, _blur_sigma(frame, s)), frame.ones()


def _partial_defocus(
  image: np.ndarray, frame: Frame, s: float, rng: Generator
) -> Faulty:
  """The near or the far part of the fundus is out of focus."""
  angle = rng.uniform(0, 2 * np.pi)
  edge = rng.uniform(-0.45, 0.05)
  weight = canvas.rise(frame.along(angle) - edge, 0.5)
  soft = canvas.blurred(image, 1.25 * _blur_sigma(frame, s))
  return _blend(image, soft, weight), weight


def _motion(
  image: np.ndarray, frame: Frame, s: float, rng: Generator
) -> Faulty:
  angle, length = rng.uniform(0, np.pi), frame.radius * 0.2 * s**1.2
  return canvas.dragged(image, angle, length, 13), frame.ones()


def _under(image: np.ndarray, frame: Frame, s: float, rng: Generator) -> Faulty:
  """Too little light: red, the strongest, is the last to go."""
  lost = 0.9 * s * np.array([1, 1, 1], np.float32)
  lost[1:] += (1 - lost[1:]) * s * rng.uniform(0, 0.4)
  return image * (1 - lost), frame.ones()


def _over(image: np.ndarray, frame: Frame, s: float, rng: Generator) -> Faulty:
  """The sensor saturates: bright, pale, and flat, the darkest last."""
  light = 1 - (1 - np.arange(256, dtype=np.float32) / 255) ** (1 + 2.6 * s)
  light += 0.3 * s * (1 - light)
  return 255 * light[image], frame.ones()


def _uneven(
  image: np.ndarray, frame: Frame, s: float, rng: Generator
) -> Faulty:
  ramp = canvas.rise(
    frame.along(rng.uniform(0, 2 * np.pi)) - rng.uniform(-0.35, 0.1), 1.2
  )
  gain = 1 - np.minimum(1.1 * s, 0.92) * ramp
  return image * gain[..., None], ramp


def _haze(image: np.ndarray, frame: Frame, s: float, rng: Generator) -> Faulty:
  """Light scattered by an opaque lens or cornea: flat, greyish, soft."""
  tint = _veil(rng) * rng.uniform(30, 130)
  patchy = 0.85 + 0.25 * canvas.smooth_noise(rng, frame.shape, 3)
  weight = np.clip(s * patchy, 0, 0.97)
  soft = canvas.blurred(image, frame.radius * 0.02 * s)
  return _blend(soft, tint, weight), frame.ones()


def _veil(rng: Generator) -> np.ndarray:
  """Returns the colour of scattered light, red 1: yellowish to bluish."""
  green = rng.uniform(0.8, 1.05)
  return np.array([1, green, green * rng.uniform(0.6, 1.1)], np.float32)


def _murk(image: np.ndarray, frame: Frame, s: float, rng: Generator) -> Faulty:
  """What most hopeless photographs are: dark, hazy, flat, uneven and soft."""
  soft = canvas.blurred(image, _blur_sigma(frame, s) * rng.uniform(0.1, 0.8))
  grey = soft.mean(2, keepdims=True)
  soft = soft + (grey - soft) * s * rng.uniform(0, 0.6)
  veil = _veil(rng) * rng.uniform(15, 60)
  flat = _blend(soft, veil, frame.ones() * s * rng.uniform(0.3, 0.9))
  ramp = canvas.rise(frame.along(rng.uniform(0, 2 * np.pi)), 2.0)
  lost = s * (rng.uniform(0.3, 0.75) + rng.uniform(0, 0.25) * ramp)
  return flat * (1 - lost)[..., None], frame.ones()


def _rim_flare(
  image: np.ndarray, frame: Frame, s: float, rng: Generator
) -> Faulty:
  """A crescent or a ring of stray light, as wide as the eye is off."""
  angle, lean = rng.uniform(0, 2 * np.pi), rng.uniform(-1.2, 0.3)
  turn = np.cos(np.arctan2(frame.y, frame.x) - float(angle))
  depth = 0.08 + 0.5 * s
  weight = canvas.rise(frame.r - (1 - 0.5 * depth), depth) * canvas.rise(
    turn - lean, 1.4
  )
  tint = rng.choice(
    [[255, 225, 170], [190, 225, 255], [255, 250, 240], [200, 215, 130]]
  )
  strength = np.clip(weight * (0.3 + 0.9 * s), 0, 1)
  return _blend(image, tint.astype(np.float32), strength), weight


def _pupil_shadow(
  image: np.ndarray, frame: Frame, s: float, rng: Generator
) -> Faulty:
  """A small pupil shades a side of the field, or its middle.

  What is dark is not black: stray light veils it, often bluish.
  """
  angle = rng.uniform(0, 2 * np.pi)
  if rng.random() < 0.5:
    off, reach, sign = 0.25 + 0.5 * s, 1.35 - 0.65 * s, 1
  else:
    off, reach, sign = rng.uniform(0, 0.5), 0.15 + 0.4 * s, -1
  away = np.hypot(frame.x - off * np.cos(angle), frame.y - off * np.sin(angle))
  shadow = canvas.rise(sign * (away - reach), 0.6)
  veil = np.array([22, 30, 36], np.float32) * rng.uniform(0.3, 1.6)
  return _blend(image, veil, np.minimum(0.3 + 0.8 * s, 0.94) * shadow), shadow


def _dust(image: np.ndarray, frame: Frame, s: float, rng: Generator) -> Faulty:
  weight = np.zeros(frame.shape, np.float32)
  for _ in range(round(2 + 40 * s)):
    x, y = frame.pixel(*canvas.within(rng, 0.95))
    r = frame.radius * rng.uniform(0.006, 0.012 + 0.045 * s)
    weight = np.maximum(
      weight, _drawn_spot(frame, x, y, r) * rng.uniform(0.5, 1.0)
    )
  # Out of focus, most grains light up in the flash; those on glass are dark.
  tint = rng.choice([[25, 25, 25], [255, 225, 185], [245, 245, 235]])
  strength = weight * (0.1 + 0.7 * s)
  return _blend(image, tint.astype(np.float32), strength), weight


def _drawn_spot(frame: Frame, x: float, y: float, r: float) -> np.ndarray:
  spot = np.zeros(frame.shape, np.float32)
  reach = int(3 * r) + 2
  top, left = max(int(y) - reach, 0), max(int(x) - reach, 0)
  ys = np.arange(top, min(int(y) + reach, frame.shape[0]))[:, None]
  xs = np.arange(left, min(int(x) + reach, frame.shape[1]))[None, :]
  if ys.size and xs.size:
    fall = np.exp(-((((xs - x) ** 2 + (ys - y) ** 2) / (1.2 * r**2)) ** 2))
    spot[ys[0, 0] : ys[-1, 0] + 1, xs[0, 0] : xs[0, -1] + 1] = fall
  return spot


def _lashes(
  image: np.ndarray, frame: Frame, s: float, rng: Generator
) -> Faulty:
  """Lashes in front of the lens: curved, blurred, from below or above."""
  down = 1 if rng.random() < 0.8 else -1
  thick = frame.radius * (0.02 + 0.045 * s)
  base = rng.uniform(-0.4, 0.4)

  def paint(draw: ImageDraw.ImageDraw) -> None:
    for _ in range(1 + round(6 * s)):
      x = base + rng.normal(0, 0.3)
      t = np.linspace(0, 1, 12)
      length = rng.uniform(0.25, 0.45 + 0.65 * s)
      lean, bow = rng.normal(0, 0.35), rng.normal(0, 0.25)
      path = [
        frame.pixel(x + lean * k + bow * k * k, down * (1.05 - length * k))
        for k in t
      ]
      for i, (a, b) in enumerate(itertools.pairwise(path)):
        draw.line([a, b], 255, max(1, round(thick * (1 - i / 14))))

  weight = canvas.drawn(frame.shape, paint, 0.45 * thick)
  tint = np.full(3, 12, np.float32)
  if rng.random() < 0.4:
    tint = np.array([235, 215, 190], np.float32)
  return _blend(image, tint, np.clip(weight * (0.3 + 0.9 * s), 0, 1)), weight


def _reflection(
  image: np.ndarray, frame: Frame, s: float, rng: Generator
) -> Faulty:
  """Ghosts of the flash: bright discs, rings and arcs."""
  ring = rng.random() < 0.5
  size = frame.radius * (0.04 + 0.14 * s)

  def paint(draw: ImageDraw.ImageDraw) -> None:
    for _ in range(1 + round(3 * s)):
      x, y = frame.pixel(*canvas.within(rng, 0.8))
      r = size * rng.uniform(0.5, 1.2)
      box = [x - r, y - r, x + r, y + r]
      if ring:
        begin = rng.uniform(0, 360)
        width = max(1, round(0.3 * r))
        draw.arc(box, begin, begin + rng.uniform(120, 360), 255, width)
      else:
        draw.ellipse(box, 255)

  weight = canvas.drawn(frame.shape, paint, 0.22 * size)
  tint = rng.choice([[255, 250, 235], [200, 230, 255], [255, 225, 190]])
  strength = np.clip(weight * (0.1 + 0.8 * s), 0, 1)
  return _blend(image, tint.astype(np.float32), strength), weight


def _stain(image: np.ndarray, frame: Frame, s: float, rng: Generator) -> Faulty:
  """A smear on the lens: an irregular, flat, greyish blotch."""
  x, y = canvas.within(rng, 0.6)
  reach = 0.12 + 0.5 * s
  away = np.hypot(frame.x - x, frame.y - y) / reach
  ragged = away + 0.45 * canvas.smooth_noise(rng, frame.shape, 9)
  weight = canvas.rise(0.8 - ragged, 0.7)
  tint = np.array([120, 110, 100], np.float32) * rng.uniform(0.5, 1.4)
  soft = canvas.blurred(image, frame.radius * 0.02 * s)
  strength = weight * (0.1 + 0.7 * s)
  return _blend(_blend(image, soft, weight), tint, strength), weight


def _central_flare(
  image: np.ndarray, frame: Frame, s: float, rng: Generator
) -> Faulty:
  """The cornea's reflex: a bluish-white cloud about the middle."""
  x, y = canvas.within(rng, 0.25)
  reach = 0.1 + 0.33 * s
  away = np.hypot(frame.x - x, frame.y - y) / reach
  away = np.maximum(away + 0.5 * canvas.smooth_noise(rng, frame.shape, 6), 0)
  weight = np.exp(-(away**2)).astype(np.float32)
  tint = np.array([190, 215, 235], np.float32) * rng.uniform(0.75, 1.08)
  return _blend(image, tint, np.clip(weight * (0.1 + 0.8 * s), 0, 1)), weight


_FAULTS = {
  'defocus': _defocus,
  'motion': _motion,
  'partial_defocus': _partial_defocus,
  'under': _under,
  'over': _over,
  'uneven': _uneven,
  'haze': _haze,
  'murk': _murk,
  'rim_flare': _rim_flare,
  'pupil_shadow': _pupil_shadow,
  'dust': _dust,
  'lashes': _lashes,
  'reflection': _reflection,
  'stain': _stain,
  'central_flare': _central_flare,
}
