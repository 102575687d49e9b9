"""Paints a retina as light: ground, spots, optic disc and vessels."""

from __future__ import annotations

from collections.abc import Sequence
import functools

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw, ImageFilter

from iqa_jax.simulation import anatomy
from iqa_jax.simulation.canvas import rise, smooth_noise
from iqa_jax.simulation.scene import Scene

COARSE = 256  # pixels across what is drawn coarsely and enlarged


@functools.lru_cache(maxsize=4)
def _grid(size: int) -> np.ndarray:
  centres = np.arange(size, dtype=np.float32) + 0.5
  return np.stack(np.meshgrid(centres, centres), -1)


def paint(
  rng: Generator,
  retina: anatomy.Eye,
  scene: Scene,
  size: int,
  style: int,
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the retina's light, float32 [size, size, 3], and its vessels."""
  ground = Image.fromarray(_ground(rng, retina, scene, size, style))
  if ground.width < size:
    ground = ground.resize((size, size), Image.Resampling.BILINEAR)
  pixels = np.array(ground, np.float32)
  _add_spots(pixels, retina, scene)
  _add_disc(rng, pixels, retina, scene)
  vessels = _add_vessels(rng, pixels, retina, scene)
  return pixels, vessels


def _ground(
  rng: Generator,
  retina: anatomy.Eye,
  scene: Scene,
  size: int,
  style: int,
) -> np.ndarray:
  """Returns what has no sharp edge, uint8 [n, n, 3], at most `COARSE` wide."""
  n = min(size, COARSE)
  dd = scene.retinal(_grid(n) * (size / n))
  x, y = dd[..., 0], dd[..., 1]
  from_disc, from_fovea = np.hypot(x, y), np.hypot(*_from(dd, retina.fovea))
  pixels = np.empty((n, n, 3), np.float32)
  pixels[:] = _fundus_colour(rng, retina, style)
  shape = (n, n)
  mottle = (
    0.5 * smooth_noise(rng, shape, 4)
    + 0.3 * smooth_noise(rng, shape, 9)
    + 0.2 * smooth_noise(rng, shape, 22)
  )
  # The nerve fibres about the disc are thick and scatter light.
  glow = rng.uniform(0.0, 0.25) * np.exp(-((from_disc / 1.3) ** 2))
  pixels *= (1 + rng.uniform(0.05, 0.16) * mottle + glow)[..., None]
  # The choroid's own vessels shine through where there is little pigment.
  ridges = 1 - np.abs(
    smooth_noise(rng, shape, 16) + 0.5 * smooth_noise(rng, shape, 21)
  )
  tessellation = np.clip(ridges, 0, 1) ** 3 * max(0.0, 0.6 - retina.pigment)
  pixels += tessellation[..., None] * np.array([34, 20, 10], np.float32)

  macula = np.exp(-((from_fovea / 0.85) ** 2))
  centre = np.exp(-((from_fovea / 0.28) ** 2))
  dark = rng.uniform(0.1, 0.24) * macula + rng.uniform(0.1, 0.24) * centre
  pixels *= 1 - dark[..., None] * np.array([0.9, 1.15, 1.0], np.float32)
  if retina.age < 40:  # the young fundus is glossy
    sheen = np.exp(-(((from_disc - 1.1) / 0.7) ** 2)) * (
      0.5 + 0.5 * np.cos(17 * np.arctan2(y, x) + 3 * mottle)
    )
    sheen += 0.8 * np.exp(-(((from_fovea - 0.75) / 0.16) ** 2))
    gloss = 10 * (40 - retina.age) / 22
    pixels += gloss * sheen[..., None] * np.array([0.7, 1, 0.8], np.float32)
  return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


def _fundus_colour(
  rng: Generator, retina: anatomy.Eye, style: int
) -> np.ndarray:
  """Returns the mean colour, spread as in Good photographs of EyePACS."""
  pale, cool = rng.normal(size=2)
  red = np.clip(215 - 70 * retina.pigment + rng.normal(0, 26), 80, 200)
  green = red * np.clip(0.605 + 0.1 * pale, 0.38, 0.85)
  blue = green * np.clip(
    0.5 + 0.1 * style + 0.2 * (0.67 * pale + 0.74 * cool), 0.25, 1
  )
  return np.array([red, green, blue], np.float32)


def _add_spots(pixels: np.ndarray, retina: anatomy.Eye, scene: Scene) -> None:
  size = len(pixels)
  for x, y, radius, tone in retina.spots:
    px, py = scene.pixels(np.array([x, y]))
    r = radius * scene.scale
    reach = int(3 * r) + 2
    top, left = int(py) - reach, int(px) - reach
    if not (0 <= top and top + 2 * reach < size):
      continue
    if not (0 <= left and left + 2 * reach < size):
      continue
    at = np.arange(2 * reach)
    away = np.hypot(at[None, :] + left - px, at[:, None] + top - py) / r
    weight = (abs(tone) * np.exp(-(away**4)))[..., None].astype(np.float32)
    tint = [235, 205, 120] if tone > 0 else [95, 28, 22]
    patch = pixels[top : top + 2 * reach, left : left + 2 * reach]
    patch += (np.array(tint, np.float32) - patch) * 0.65 * weight


def _from(points: np.ndarray, origin: np.ndarray) -> np.ndarray:
  """Returns x and y relative to a point, float32 [2, h, w]."""
  return np.moveaxis(points - origin.astype(np.float32), -1, 0)


def _add_disc(
  rng: Generator,
  pixels: np.ndarray,
  retina: anatomy.Eye,
  scene: Scene,
) -> None:
  edge, pale = rng.uniform(0.05, 0.11), rng.uniform(0.75, 0.95)
  lit, ring = rng.uniform(0.6, 0.9), rng.uniform(-0.1, 0.12)
  centre, reach = scene.landmarks[:2], 0.8 * scene.scale
  left, top = np.maximum(np.floor(centre - reach), 0).astype(int)
  right, bottom = np.maximum(np.ceil(centre + reach), 0).astype(int)
  patch = pixels[top:bottom, left:right]
  if not patch.size:
    return
  dd = scene.retinal(_grid(len(pixels))[top:bottom, left:right])
  axes = retina.disc_axes.astype(np.float32)
  from_disc = np.hypot(*np.moveaxis(dd / axes, -1, 0))
  weight = rise(0.5 - from_disc, edge)
  colour = patch.mean((0, 1))
  rim = colour * np.array([1.15, 1.25, 1.1]) + [45, 32, 14]
  # Red saturates first: more green would look green where a fault darkens it.
  rim = np.minimum(rim, [252, 215, 185])
  # The temporal rim is paler than the nasal.
  paler = (1 + 0.1 * np.clip(dd[..., 0], -0.5, 0.5))[..., None]
  _mix(patch, rim * paler, weight * pale)
  from_cup = np.hypot(*_from(dd, retina.cup_offset))
  cup = rise(0.5 * retina.cup - from_cup, 0.16)
  bright = colour * np.array([1.25, 1.4, 1.5]) + [65, 60, 45]
  bright = np.minimum(bright, [252, 232, 205])
  _mix(patch, bright, cup * weight * lit)
  patch *= 1 + ring * np.exp(-(((from_disc - 0.56) / 0.05) ** 2))[..., None]


def _mix(pixels: np.ndarray, colour: np.ndarray, weight: np.ndarray) -> None:
  pixels += (colour - pixels) * weight[..., None].astype(np.float32)


def _add_vessels(
  rng: Generator,
  pixels: np.ndarray,
  retina: anatomy.Eye,
  scene: Scene,
) -> np.ndarray:
  """Darkens the vessels' pixels; returns how much vessel each holds."""
  size = len(pixels)
  fine = max(2, 512 // size)
  total = np.zeros((size, size), np.float32)
  strength, blur = rng.uniform(0.75, 1.2), rng.uniform(0.001, 0.0022)
  outlines = _outlines(retina.vessels, scene, fine)
  for is_vein, absorbs in (
    (False, [0.06, 0.26, 0.22]), (True, [0.17, 0.4, 0.34]),
  ):  # fmt: skip
    layer = Image.new('L', (size * fine, size * fine))
    brush = ImageDraw.Draw(layer)
    for vessel, (outline, shade) in zip(retina.vessels, outlines, strict=True):
      if vessel.is_vein == is_vein and outline:
        brush.polygon(outline, shade)
    held = layer.reduce(fine).filter(ImageFilter.GaussianBlur(size * blur))
    weight = np.asarray(held, np.float32) / 255
    for channel, absorbed in enumerate(absorbs):
      pixels[..., channel] *= 1 - absorbed * strength * weight
    total = np.maximum(total, weight)
  return total


def _outlines(
  vessels: Sequence[anatomy.Vessel], scene: Scene, fine: int
) -> list[tuple[list[float], int]]:
  """Returns each vessel's (outline, shade); empty where out of the frame."""
  ends = np.cumsum([len(v.points) for v in vessels])
  path = scene.pixels(np.concatenate([v.points for v in vessels])) * fine
  widths = np.concatenate([v.widths for v in vessels]) * (scene.scale * fine)
  along = np.gradient(path, axis=0)
  first, last = np.r_[0, ends[:-1]], ends - 1
  along[first] = path[first + 1] - path[first]
  along[last] = path[last] - path[last - 1]
  across = along[:, ::-1] * [-1, 1] / np.hypot(*along.T)[:, None]
  # A polygon's rim is drawn too and makes it a pixel wider.
  across *= np.maximum(widths - 1, 0)[:, None] / 2
  sides = (path + across).astype(np.float32), (path - across).astype(np.float32)
  frame = 2 * fine * scene.centre  # the field is in the frame's middle
  low = np.minimum.reduceat(path, first)
  high = np.maximum.reduceat(path, first)
  seen = np.all((high > 0) & (low < frame), axis=1)
  # Below a pixel a vessel gets fainter, not thinner.
  shades = np.rint(
    255
    * np.clip(np.add.reduceat(widths, first) / np.diff(ends, prepend=0), 0.1, 1)
  )
  return [
    (
      np.concatenate([sides[0][a:b], sides[1][a:b][::-1]]).ravel().tolist()
      if shown
      else [],
      int(shade),
    )
    for a, b, shown, shade in zip(first, ends, seen, shades, strict=True)
  ]
