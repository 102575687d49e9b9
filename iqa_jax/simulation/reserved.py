"""Faults held in reserve: nothing learns from them, or is chosen by them.

By the kinds of unfamiliar.py a recipe was chosen, again and again; what it
finds of those flatters it. These were written after the sixth recipe of
configs/eyeq_evidence.py was fixed, looked at in pictures alone, and then
measured (README); nothing was changed after it. No training code may import
this module (tested). Once a recipe is chosen by one of them it belongs into
unfamiliar.py.
"""

from __future__ import annotations

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw, ImageFont

from iqa_jax import errors
from iqa_jax.simulation import canvas
from iqa_jax.simulation.canvas import Faulty, Frame


def apply(
  image: np.ndarray, inside: np.ndarray, kind: str, rng: Generator
) -> Faulty:
  """Puts a clearly visible fault of a reserved kind into a photograph.

  As `unfamiliar.apply`, but of these `KINDS`.
  """
  errors.one_of('fault', kind, KINDS)
  return canvas.seen(_FAULTS[kind], image, inside, rng)


def _marker(image: np.ndarray, frame: Frame, rng: Generator) -> Faulty:
  """A reader's mark: an ellipse in colour and an arrow that points at it."""
  x, y = canvas.within(rng, 0.55)
  angle, near = rng.uniform(0, 2 * np.pi), rng.uniform(0.12, 0.22)
  wide = max(2, round(0.02 * frame.radius))
  across = np.array([np.cos(angle), np.sin(angle)])
  side = 0.07 * np.array([-across[1], across[0]])
  tip = np.array([x, y]) + 1.15 * near * across
  tail = tip + 0.4 * across
  barbs = [tip + 0.09 * across + s * side for s in (-1, 1)]

  def paint(draw: ImageDraw.ImageDraw) -> None:
    (left, top), (right, bottom) = (
      frame.pixel(x + s * near, y + s * 0.8 * near) for s in (-1, 1)
    )
    draw.ellipse((left, top, right, bottom), outline=255, width=wide)
    draw.line([frame.pixel(*tip), frame.pixel(*tail)], 255, wide)
    draw.polygon([frame.pixel(*p) for p in (tip, *barbs)], 255)

  margin = 0.01 * frame.radius
  weight, region = canvas.edged(frame.shape, paint, 0.5, margin)
  tint = rng.choice([[255, 235, 0], [0, 230, 255], [60, 255, 60], [20, 20, 20]])
  return canvas.over(image, tint, weight), 2 * region


def _reading_grid(image: np.ndarray, frame: Frame, rng: Generator) -> Faulty:
  """A measuring grid left on: circles about the macula and their spokes."""
  x, y = canvas.within(rng, 0.3)
  radii = rng.uniform(0.8, 1.2) * np.array([0.1, 0.28, 0.55])
  wide = max(1, round(0.012 * frame.radius))
  turn = np.pi / 4 + rng.choice([0.0, np.pi / 4])

  def paint(draw: ImageDraw.ImageDraw) -> None:
    for r in radii:
      (left, top), (right, bottom) = (
        frame.pixel(x + s * r, y + s * r) for s in (-1, 1)
      )
      draw.ellipse((left, top, right, bottom), outline=255, width=wide)
    for angle in turn + np.pi / 2 * np.arange(4):
      c, s = np.cos(angle), np.sin(angle)
      ends = (frame.pixel(x + r * c, y + r * s) for r in radii[[0, 2]])
      draw.line(list(ends), 255, wide)

  margin = 0.01 * frame.radius
  weight, region = canvas.edged(frame.shape, paint, 0.4, margin)
  tint = rng.choice([[255, 255, 255], [0, 0, 0], [90, 190, 255]])
  return canvas.over(image, tint, 0.9 * weight), 3 * region


def _smear(image: np.ndarray, frame: Frame, rng: Generator) -> Faulty:
  """A thumb wiped over the lens: grease that drags the picture one way."""
  angle, length = rng.uniform(0, np.pi), frame.radius * rng.uniform(0.2, 0.35)
  x, y = canvas.within(rng, 0.5)
  along = (frame.x - x) * np.cos(angle) + (frame.y - y) * np.sin(angle)
  across = (frame.y - y) * np.cos(angle) - (frame.x - x) * np.sin(angle)
  long, wide = rng.uniform(0.45, 0.7), rng.uniform(0.2, 0.3)
  away = np.hypot(along / long, across / wide)
  weight = canvas.rise(1 - away, 0.35)
  ridge = np.sin(rng.uniform(25, 45) * across + rng.uniform(0, 6))
  light = (
    canvas.dragged(image, angle, length, 15) * 0.8 + 34 + 9 * ridge[..., None]
  )
  return image + (light - image) * weight[..., None], weight


def _flare_chain(image: np.ndarray, frame: Frame, rng: Generator) -> Faulty:
  """A row of pale discs and hexagons: a lamp reflected between lenses."""
  angle, off = rng.uniform(0, 2 * np.pi), rng.uniform(-0.3, 0.3)
  out, region = image, np.zeros(frame.shape, np.float32)
  along, across = frame.along(angle), frame.along(angle + np.pi / 2)
  for place in np.linspace(-0.7, 0.7, int(rng.integers(3, 6))):
    r = rng.uniform(0.06, 0.19)
    u, v = along - place - rng.uniform(-0.1, 0.1), across - off * (1 - place)
    corners = [np.abs(u * np.cos(a) + v * np.sin(a)) for a in (0.0, 1.05, 2.09)]
    away = np.hypot(u, v) if rng.random() < 0.5 else np.max(corners, axis=0)
    weight = canvas.rise(r - away, 0.03)
    tint = rng.uniform([150, 150, 130], 255)
    out = canvas.over(out, tint, rng.uniform(0.25, 0.5) * weight)
    region = np.maximum(region, weight)
  return out, region


def _rings_of_dust(image: np.ndarray, frame: Frame, rng: Generator) -> Faulty:
  """Dust far out of focus: grey discs with a bright rim and a pale centre."""
  out, region = image, np.zeros(frame.shape, np.float32)
  for _ in range(int(rng.integers(4, 10))):
    x, y = canvas.within(rng, 0.8)
    r = rng.uniform(0.05, 0.11)
    away = np.hypot(frame.x - x, frame.y - y) / r
    disc, hole = canvas.rise(1 - away, 0.25), canvas.rise(0.35 - away, 0.3)
    rim = np.exp(-(((away - 1.02) / 0.12) ** 2))
    out = out * (1 - rng.uniform(0.3, 0.55) * (disc - 0.8 * hole))[..., None]
    out = out + 28 * rim[..., None]
    region = np.maximum(region, away < 1.1)
  return out, region


def _cracked_glass(image: np.ndarray, frame: Frame, rng: Generator) -> Faulty:
  """A crack from one point: jagged branches, dark with a bright edge."""
  start = np.array(canvas.within(rng, 0.4))
  lines = []
  for angle in rng.uniform(0, 2 * np.pi, int(rng.integers(3, 6))):
    points, turned = [start], angle
    for _ in range(int(rng.integers(4, 8))):
      turned += rng.normal(0, 0.35)
      step = rng.uniform(0.06, 0.16)
      ahead = step * np.array([np.cos(turned), np.sin(turned)])
      points.append(points[-1] + ahead)
    lines.append([frame.pixel(*p) for p in points])
  wide = max(1, round(0.012 * frame.radius))
  weight, region = canvas.lines(frame, lines, wide, 0.4)
  beside = np.roll(weight, (wide, wide), (0, 1))
  out = canvas.over(image, [245, 245, 240], 0.8 * beside)
  return canvas.over(out, [25, 22, 20], 0.85 * weight), 2.5 * region


def _finger(image: np.ndarray, frame: Frame, rng: Generator) -> Faulty:
  """A finger before the lens: a dark red rounded shade, out of focus."""
  turn, off = rng.uniform(0, 2 * np.pi), rng.uniform(-0.5, 0.5)
  along, across = frame.along(turn), frame.along(turn + np.pi / 2) - off
  thick, end = rng.uniform(0.2, 0.32), rng.uniform(-0.1, 0.4)
  beyond = np.minimum(along - end - thick, 0)
  away = np.hypot(across, beyond)
  weight = canvas.rise(thick - away, 0.18)
  flesh = np.array([95, 30, 22], np.float32) * rng.uniform(0.5, 1.2)
  glow = 1 + 0.5 * np.clip(np.abs(across) / thick, 0, 1)[..., None]
  return image + (flesh * glow - image) * (0.92 * weight)[..., None], weight


def _watermark(image: np.ndarray, frame: Frame, rng: Generator) -> Faulty:
  """A publisher's pale letters over the middle of the picture, slanting."""
  text = ''.join(rng.choice([*'ABEHKMNRSTWX'], int(rng.integers(4, 7))))
  font = ImageFont.load_default(size=max(10, round(0.42 * frame.radius)))
  h, w = frame.shape
  centre = frame.pixel(*canvas.within(rng, 0.25))
  plane = Image.new('L', (w, h))
  ImageDraw.Draw(plane).text(centre, text, 255, font, anchor='mm')
  turned = plane.rotate(
    float(rng.uniform(-40, 40)), Image.Resampling.BILINEAR, center=centre
  )
  weight = np.asarray(turned, np.float32) / 255
  tint = rng.choice([[255, 255, 255], [128, 128, 128]])
  return canvas.over(image, tint, rng.uniform(0.35, 0.5) * weight), weight


def _raw_mosaic(image: np.ndarray, frame: Frame, rng: Generator) -> Faulty:
  """A band that was never interpolated: the sensor's red, green, blue dots."""
  side = max(1, round(frame.radius / 110))
  h, w = frame.shape
  rows, columns = np.arange(h)[:, None] // side, np.arange(w)[None] // side
  channel = np.where(rows % 2, 1 + columns % 2, (columns + 1) % 2)
  raw = np.where(channel[..., None] == np.arange(3), 1.6 * image, 0.2 * image)
  top, high = rng.uniform(-0.7, 0.3), rng.uniform(0.15, 0.5)
  band = (frame.y > top) & (frame.y < top + high)
  weight = np.broadcast_to(band, frame.shape).astype(np.float32)
  return image + (raw - image) * weight[..., None], weight


def _lint(image: np.ndarray, frame: Frame, rng: Generator) -> Faulty:
  """A tuft of fibres: short thin curls, pale or coloured, about one place."""
  middle = np.array(canvas.within(rng, 0.6))
  t = np.linspace(0, 1, 30)
  paths = []
  for _ in range(int(rng.integers(5, 12))):
    turn = rng.uniform(0, 2 * np.pi) + rng.uniform(-6, 6) * t
    steps = rng.uniform(0.01, 0.022) * np.stack([np.cos(turn), np.sin(turn)], 1)
    places = middle + rng.normal(0, 0.09, 2) + np.cumsum(steps, 0)
    paths.append([frame.pixel(*p) for p in places])
  wide = max(1, round(0.011 * frame.radius))
  weight, region = canvas.lines(frame, paths, wide, 0.7)
  tint = rng.choice([[235, 235, 240], [150, 180, 235], [40, 45, 60]])
  return canvas.over(image, tint, 0.85 * weight), 2.5 * region


_FAULTS = {
  'marker': _marker,
  'reading_grid': _reading_grid,
  'smear': _smear,
  'flare_chain': _flare_chain,
  'rings_of_dust': _rings_of_dust,
  'cracked_glass': _cracked_glass,
  'finger': _finger,
  'watermark': _watermark,
  'raw_mosaic': _raw_mosaic,
  'lint': _lint,
}
KINDS = tuple(_FAULTS)
