"""Faults that nothing may learn from: they steer and measure.

A detector that finds the kinds of faults.py and procedural.py has learned
them. Whether it finds what it was never shown, these kinds tell. They are used
by evaluations only (`iqa_jax.evaluate_explanations`, tests); no training code
may import this module (tested). Once something of the sort is trained on, a
kind leaves, as torn rows, parted colours, fingerprints and moire did
(procedural.py), or counts as RELATED, so that figures can be told without it.
"""

from __future__ import annotations

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageFont

from iqa_jax import errors
from iqa_jax.simulation import canvas
from iqa_jax.simulation.canvas import Faulty, Frame


def apply(
  image: np.ndarray, inside: np.ndarray, kind: str, rng: Generator
) -> Faulty:
  """Puts a clearly visible fault of an unfamiliar kind into a photograph.

  Args:
    image: uint8 [h, w, 3].
    inside: bool [h, w], the field of view; nothing changes outside it.
    kind: one of `KINDS`.
    rng: draws place, colour and shape.

  Returns:
    The faulty photograph, uint8 [h, w, 3], and the fault's mask, bool [h, w]:
    where it covers or changes the picture.

  Raises:
    ValueError: no such kind.
  """
  errors.one_of('fault', kind, KINDS)
  return canvas.seen(_FAULTS[kind], image, inside, rng)


def _hair(image: np.ndarray, frame: Frame, rng: Generator) -> Faulty:
  """One long bent hair on the lens with its soft shadow."""
  angle, bow = rng.uniform(0, 2 * np.pi), rng.uniform(-0.6, 0.6)
  off = rng.uniform(-0.4, 0.4)
  t = np.linspace(-0.9, 0.9, 40)
  c, s = np.cos(angle), np.sin(angle)
  u, v = t, off + bow * t**2
  path = [
    frame.pixel(c * a - s * b, s * a + c * b) for a, b in zip(u, v, strict=True)
  ]
  thick = max(1, round(0.022 * frame.radius))
  weight = canvas.drawn(
    frame.shape, lambda d: d.line(path, 255, thick, joint='curve'), 0.3 * thick
  )
  return canvas.over(
    image, rng.choice([[20, 15, 12], [70, 50, 35]]), weight
  ), weight


def _writing(image: np.ndarray, frame: Frame, rng: Generator) -> Faulty:
  """Burnt-in text, as record software writes it."""
  text = f'{rng.integers(1990, 2030)}-{rng.integers(1, 13):02d} OD'
  x, y = frame.pixel(rng.uniform(-0.75, -0.3), rng.uniform(-0.6, 0.5))
  font = ImageFont.load_default(size=max(8, round(0.22 * frame.radius)))
  weight = canvas.drawn(
    frame.shape, lambda d: d.text((x, y), text, fill=255, font=font), 0
  )
  region = canvas.drawn(
    frame.shape,
    lambda d: d.rectangle(d.textbbox((x, y), text, font=font), 255),
    0,
  )
  tint = rng.choice([[255, 255, 255], [255, 230, 60], [60, 255, 90]])
  return canvas.over(image, tint, weight), region


def _swab(image: np.ndarray, frame: Frame, rng: Generator) -> Faulty:
  """A cotton bud that holds the lid, far out of focus, from one side."""
  turn = rng.uniform(0, 2 * np.pi)
  along, across = frame.along(turn), frame.along(turn + np.pi / 2)
  off, end = rng.uniform(-0.4, 0.4), rng.uniform(0.2, 0.6)
  thick = np.where(along < end + 0.3, 0.17, 0.08)
  away = np.maximum(np.abs(across - off) - thick, 0.4 * (end - along))
  weight = canvas.rise(-away, 0.12)
  light = 175 + 60 * np.cos(4 * (across - off))
  tint = light[..., None] * rng.uniform([0.9, 0.85, 0.75], 1.0)
  return image + (tint - image) * weight[..., None], weight


def _drops(image: np.ndarray, frame: Frame, rng: Generator) -> Faulty:
  """Drops of water: each shows the retina upside down and small."""
  weight = np.zeros(frame.shape, np.float32)
  out = image.copy()
  h, w = frame.shape
  for _ in range(int(rng.integers(2, 6))):
    cx, cy = frame.pixel(*canvas.within(rng, 0.8))
    r = frame.radius * rng.uniform(0.08, 0.16)
    ys, xs = np.mgrid[0:h, 0:w]
    away = np.hypot(xs - cx, ys - cy) / r
    inner = away < 1
    sx = np.clip(cx - 2.5 * (xs - cx), 0, w - 1).astype(int)
    sy = np.clip(cy - 2.5 * (ys - cy), 0, h - 1).astype(int)
    shade = (0.75 + 0.5 * (ys - cy) / r)[..., None]
    out = np.where(inner[..., None], image[sy, sx] * shade, out)
    weight = np.maximum(weight, inner)
  return out, weight


def _bubbles(image: np.ndarray, frame: Frame, rng: Generator) -> Faulty:
  """Bubbles in the coupling gel: thin bright rims, dark inner edge."""
  weight = np.zeros(frame.shape, np.float32)
  out, region = image, weight
  for _ in range(int(rng.integers(4, 12))):
    x, y = canvas.within(rng, 0.85)
    r = rng.uniform(0.04, 0.14)
    away = np.hypot(frame.x - x, frame.y - y)
    rim = np.exp(-(((away - r) / 0.014) ** 2))
    inner = np.exp(-(((away - r + 0.03) / 0.014) ** 2))
    out = canvas.over(out, [235, 240, 235], 0.8 * rim)
    out = canvas.over(out, [15, 10, 8], 0.6 * inner)
    region = np.maximum(region, (away < r + 0.015).astype(np.float32))
  return out, region


def _double_exposure(image: np.ndarray, frame: Frame, rng: Generator) -> Faulty:
  """The eye moved between two flashes: a second retina over one side."""
  turned = np.asarray(
    Image.fromarray(image.astype(np.uint8)).rotate(
      float(rng.choice([90, 180, 270])), Image.Resampling.BILINEAR
    ),
    np.float32,
  )
  edge = rng.uniform(-0.2, 0.3)
  weight = canvas.rise(frame.along(rng.uniform(0, 2 * np.pi)) - edge, 0.3)
  both = np.maximum(image, turned) * 1.1
  return image + (both - image) * weight[..., None], weight


def _sensor_columns(image: np.ndarray, frame: Frame, rng: Generator) -> Faulty:
  """Columns of the sensor that are dead or stuck."""
  out = image.copy()
  weight = np.zeros(frame.shape, np.float32)
  wide = max(1, round(0.015 * frame.radius))
  tint = rng.choice([[0, 0, 0], [255, 255, 255], [255, 40, 200]])
  for _ in range(int(rng.integers(3, 9))):
    x = round(frame.pixel(rng.uniform(-0.8, 0.8), 0)[0])
    out[:, x : x + wide] = tint
    weight[:, x : x + wide] = 1
  return out, weight


def _broken_codec(image: np.ndarray, frame: Frame, rng: Generator) -> Faulty:
  """Rows of 8x8 blocks with wrong colours, as in a damaged file."""
  side = max(4, round(frame.radius / 14))
  h, w = frame.shape
  rows, columns = -(-h // side), -(-w // side)
  hit = rng.random((rows, columns)) < 0.5
  first = int(rng.integers(rows // 5, rows // 2))
  hit[:first] = False
  hit[first + int(rng.integers(2, 5)) :] = False
  grown = np.kron(hit, np.ones((side, side)))[:h, :w].astype(np.float32)
  colour = rng.uniform(-110, 110, (rows, columns, 3))
  shift = np.kron(colour, np.ones((side, side, 1)))[:h, :w]
  rolled = np.roll(image, 3 * side, 1)
  return np.where(grown[..., None] > 0, rolled + shift, image), grown


def _eyelid(image: np.ndarray, frame: Frame, rng: Generator) -> Faulty:
  """Skin over the top or the bottom: pinkish, out of focus, no retina."""
  sign = rng.choice([-1, 1])
  edge = rng.uniform(0.3, 0.65)
  line = sign * frame.y - edge + 0.25 * (frame.x - rng.uniform(-0.4, 0.4)) ** 2
  weight = canvas.rise(line, 0.12)
  skin = np.array([200, 140, 115], np.float32) * rng.uniform(0.6, 1.1)
  folds = 14 * np.sin(30 * frame.y + 3 * frame.x + rng.uniform(0, 6))
  return canvas.over(image, skin + folds[..., None], weight), weight


def _light_leak(image: np.ndarray, frame: Frame, rng: Generator) -> Faulty:
  """A coloured streak from the edge of the housing."""
  along = frame.along(angle := rng.uniform(0, np.pi))
  across = frame.along(angle + np.pi / 2)
  narrow = np.exp(-(((along - rng.uniform(-0.5, 0.5)) / 0.12) ** 2))
  weight = narrow * canvas.rise(across + 0.5, 1.0)
  tint = rng.choice([[255, 120, 20], [255, 40, 60], [90, 160, 255]])
  return image + 0.9 * weight[..., None] * np.asarray(tint), weight


def _streaks(image: np.ndarray, frame: Frame, rng: Generator) -> Faulty:
  """Water that runs down the glass: tracks in which the retina is bent."""
  h, w = frame.shape
  rows, columns = np.mgrid[0:h, 0:w]
  weight = np.zeros(frame.shape, np.float32)
  shift = np.zeros(frame.shape, np.float32)
  for _ in range(int(rng.integers(2, 5))):
    x, wide = rng.uniform(-0.7, 0.7), rng.uniform(0.05, 0.1)
    wave = 0.06 * np.sin(rng.uniform(3, 7) * frame.y + rng.uniform(0, 6))
    off = (frame.x - x - wave) / wide
    track = (np.abs(off) < 1) & (frame.y < rng.uniform(0.3, 1))
    shift += track * off * wide * frame.radius * 1.6
    weight = np.maximum(weight, track)
  bent = image[rows, np.clip(columns - shift, 0, w - 1).astype(int)]
  light = bent + 45 * np.clip(-shift / (0.05 * frame.radius), -1, 1)[..., None]
  return image + (light - image) * weight[..., None], weight


def _scratches(image: np.ndarray, frame: Frame, rng: Generator) -> Faulty:
  """A worn lens: a sheaf of fine bright scratches, nearly parallel."""
  angle, place = rng.uniform(0, np.pi), np.array(canvas.within(rng, 0.5))
  lines = []
  for _ in range(int(rng.integers(6, 16))):
    turned = angle + rng.normal(0, 0.12)
    along = np.array([np.cos(turned), np.sin(turned)])
    along *= rng.uniform(0.15, 0.45)
    middle = place + rng.normal(0, 0.2, 2)
    lines.append(
      [frame.pixel(*(middle - along)), frame.pixel(*(middle + along))]
    )
  wide = max(1, round(0.008 * frame.radius))
  weight, region = canvas.lines(frame, lines, wide, 0.6)
  return canvas.over(image, [235, 225, 205], 0.75 * weight), 3 * region


def _condensation(image: np.ndarray, frame: Frame, rng: Generator) -> Faulty:
  """A fogged lens: soft grey, with many small clear drops in it."""
  x, y = canvas.within(rng, 0.6)
  away = np.hypot(frame.x - x, frame.y - y) / rng.uniform(0.3, 0.55)
  weight = canvas.rise(0.9 - away, 0.3)
  grain = canvas.smooth_noise(rng, frame.shape, 90)
  soft = canvas.blurred(image.astype(np.uint8), 0.02 * frame.radius)
  fog = soft + 0.35 * (185.0 - soft) + 45 * (grain > 0.35)[..., None]
  return image + (fog - image) * weight[..., None], weight


def _missing_strip(image: np.ndarray, frame: Frame, rng: Generator) -> Faulty:
  """Rows that were never written: a band of one colour, or of the last row."""
  top, high = rng.uniform(-0.7, 0.5), rng.uniform(0.06, 0.25)
  band = (frame.y > top) & (frame.y < top + high)
  rows = np.flatnonzero(band[:, 0])
  last = image[rows[0]][None].repeat(len(rows), 0)
  out = image.copy()
  out[rows] = last if rng.random() < 0.5 else rng.choice([0, 128, 255])
  return out, np.broadcast_to(band, frame.shape).astype(np.float32)


def _starburst(image: np.ndarray, frame: Frame, rng: Generator) -> Faulty:
  """A lamp in the picture: a bright core with rays."""
  x, y = canvas.within(rng, 0.7)
  dx, dy = frame.x - x, frame.y - y
  away = np.hypot(dx, dy) / rng.uniform(0.12, 0.25)
  rays = np.abs(np.cos(rng.integers(2, 5) * np.arctan2(dy, dx))) ** 12
  weight = np.exp(-(away**2)) + 0.8 * rays * np.exp(-0.35 * away**2)
  tint = rng.choice([[255, 250, 240], [225, 240, 255]])
  return canvas.over(image, tint, np.minimum(weight, 1.0)), weight


_FAULTS = {
  'hair': _hair,
  'writing': _writing,
  'swab': _swab,
  'drops': _drops,
  'bubbles': _bubbles,
  'double_exposure': _double_exposure,
  'sensor_columns': _sensor_columns,
  'broken_codec': _broken_codec,
  'eyelid': _eyelid,
  'light_leak': _light_leak,
  'streaks': _streaks,
  'scratches': _scratches,
  'condensation': _condensation,
  'missing_strip': _missing_strip,
  'starburst': _starburst,
}
KINDS = tuple(_FAULTS)
# procedural.py has relatives of these: ghosts, coloured light, held rows.
RELATED = ('double_exposure', 'light_leak', 'missing_strip')
