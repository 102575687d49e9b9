"""Other cameras: a drawn or real photograph, taken again with another look.

A network that saw two cameras knows two cameras. `retake` varies what differs
between cameras, sites and files and says nothing of quality: how much of the
fundus the frame shows, colours, tone, falling light, the sensor's sharpness,
sharpening, noise and JPEG. Ranges are ours, from general knowledge of fundus
photography; `UNSEEN` cameras lie outside the ranges that training draws from,
so that validation on them tells whether a network will stand a new camera.
"""

from __future__ import annotations

import dataclasses
import io

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageFilter

from iqa_jax.simulation import canvas
from iqa_jax.simulation.canvas import Frame

FAMILIAR, UNSEEN = 'familiar', 'unseen'
# Shares of red, green and blue in how bright a colour looks (ITU-R BT.601).
LUMA = np.array([0.299, 0.587, 0.114], np.float32)


@dataclasses.dataclass(frozen=True)
class Camera:
  """How a photograph looks, its quality aside.

  Attributes:
    zoom: side of the frame over the field's diameter; 1 shows the whole
      field, less cuts into it.
    aspect: height over width of what the frame, or a mask, leaves.
    upside_down: as an indirect lens shows it.
    gains: of red, green and blue.
    saturation: 0 grey, 1 as it was.
    gamma: exponent of the tone curve.
    contrast: about mid-grey.
    black: level that black is lifted to, of 255.
    falling: share of light lost at the field's edge.
    blur: deviation in shares of the side, of optics and sensor.
    sharpening: amount of the unsharp mask, in percent.
    noise: deviation in levels of 255.
    coarse: noise of grains this many pixels wide.
    quality: of the JPEG.
    subsampling: of its chroma, 0 none, 2 by two both ways.
  """

  zoom: float
  aspect: float
  upside_down: bool
  gains: tuple[float, float, float]
  saturation: float
  gamma: float
  contrast: float
  black: float
  falling: float
  blur: float
  sharpening: float
  noise: float
  coarse: int
  quality: int
  subsampling: int


def draw(rng: Generator, kind: str = FAMILIAR) -> Camera:
  """Returns a random camera, `FAMILIAR` or `UNSEEN`."""
  unseen = kind == UNSEEN
  # Colour: a direction about neutral, any hue, and how far.
  far = rng.uniform(0.3, 0.42) if unseen else 0.3 * rng.random() ** 0.7
  turn = rng.uniform(0, 2 * np.pi)
  red, blue = far * np.cos(turn), 1.3 * far * np.sin(turn)
  gains = np.exp(np.array([red, -0.6 * (red + blue) / 2, blue]))
  gains *= rng.uniform(0.66, 1.1) / np.exp(0.5 * red)
  frame = rng.random()
  zoom, aspect = 1.0, 1.0
  if unseen and frame < 0.6:
    zoom, aspect = rng.uniform(0.55, 0.66), rng.choice([1.0, 0.8, 0.7])
  elif frame < 0.35:
    zoom, aspect = rng.uniform(0.62, 0.95), rng.choice([1.0, 0.8, 0.75, 0.67])
  elif frame < 0.65:
    aspect = rng.uniform(0.68, 0.97)
  way = -1 if rng.random() < 0.5 else 1
  return Camera(
    zoom=float(zoom),
    aspect=float(aspect),
    upside_down=bool(rng.random() < 0.15),
    gains=(float(gains[0]), float(gains[1]), float(gains[2])),
    saturation=float(
      rng.choice([rng.uniform(0.35, 0.5), rng.uniform(1.35, 1.5)])
      if unseen
      else rng.uniform(0.5, 1.35)
    ),
    gamma=float(
      np.exp(way * (rng.uniform(0.3, 0.4) if unseen else 0.3 * rng.random()))
    ),
    contrast=float(rng.uniform(0.75, 1.3)),
    black=float(max(0.0, rng.uniform(-8, 16))),
    falling=float(max(0.0, rng.uniform(-0.15, 0.5))),
    blur=float(max(0.0, rng.uniform(-0.0015, 0.0035))),
    sharpening=float(max(0.0, rng.uniform(-150, 180))),
    noise=float(rng.uniform(0, 7) * rng.random()),
    coarse=int(rng.integers(1, 4)),
    quality=int(rng.integers(40, 52) if unseen else rng.integers(50, 97)),
    subsampling=int(rng.choice([0, 2])),
  )


def retake(
  image: np.ndarray,
  inside: np.ndarray,
  camera: Camera,
  rng: Generator,
  mask: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Takes a prepared photograph again with another camera.

  Args:
    image: uint8 [n, n, 3]; the field fills the frame.
    inside: bool [n, n], the field of view.
    camera: its look.
    rng: draws the grain and what the falling light is centred on.
    mask: uint8 [n, n], of a fault that was put in; None for none.

  Returns:
    The photograph uint8 [n, n, 3], prepared as ever, its field of view bool
    [n, n], and the mask, uint8 [n, n], where it now is.
  """
  n = len(image)
  field = 255 * inside.astype(np.uint8)
  mask = np.zeros((n, n), np.uint8) if mask is None else mask
  planes = [_framed(plane, camera) for plane in (image, field, mask)]
  pixels, inside, mask = planes[0], planes[1] > 127, planes[2]
  if camera.blur:
    pixels = canvas.blurred(pixels, camera.blur * n).astype(np.uint8)
  light = _toned(pixels, camera)
  if camera.falling:
    frame = Frame(inside)
    x, y = rng.normal(0, 0.12, 2)
    r2 = (frame.x - float(x)) ** 2 + (frame.y - float(y)) ** 2
    light *= (1 + 0.4 * camera.falling - camera.falling * r2)[..., None]
  light += camera.black
  seen = Image.fromarray(np.clip(light, 0, 255).astype(np.uint8))
  if camera.sharpening:
    mask_of = ImageFilter.UnsharpMask(n / 160, round(camera.sharpening), 0)
    seen = seen.filter(mask_of)
  pixels = _grainy(np.asarray(seen), camera, rng)
  pixels[~inside] = 0
  file = io.BytesIO()
  Image.fromarray(pixels.astype(np.uint8)).save(
    file, 'JPEG', quality=camera.quality, subsampling=camera.subsampling
  )
  return np.array(Image.open(file)), inside, mask


def _framed(plane: np.ndarray, camera: Camera) -> np.ndarray:
  """Returns what the frame shows of a plane, padded to a square."""
  n = len(plane)
  wide, high = camera.zoom * n, camera.zoom * camera.aspect * n
  picture = Image.fromarray(plane)
  if camera.upside_down:
    picture = picture.transpose(Image.Transpose.ROTATE_180)
  if camera.zoom == camera.aspect == 1:
    return np.asarray(picture)
  left, top = (n - wide) / 2, (n - high) / 2
  height = max(round(n * camera.aspect), 1)
  seen = picture.resize(
    (n, height),
    Image.Resampling.BILINEAR,
    box=(left, top, left + wide, top + high),
  )
  square = Image.new(picture.mode, (n, n))
  square.paste(seen, (0, (n - height) // 2))
  return np.asarray(square)


def _toned(pixels: np.ndarray, camera: Camera) -> np.ndarray:
  """Returns float32 [n, n, 3]: colours and tone curve."""
  levels = np.arange(256, dtype=np.float32) / 255
  curve = 255 * levels**camera.gamma
  light = curve[pixels] * np.array(camera.gains, np.float32)
  # Saturation and contrast in one matrix: rows of grey, mixed with identity.
  mix = (1 - camera.saturation) * LUMA[:, None] + camera.saturation * np.eye(3)
  light = light @ (camera.contrast * mix).astype(np.float32)
  light += np.float32(110 * (1 - camera.contrast))
  # A shoulder: what is bright is compressed before it saturates.
  over = np.maximum(light - 190, 0)
  return light - over * over / (over + 90)


def _grainy(pixels: np.ndarray, camera: Camera, rng: Generator) -> np.ndarray:
  n = len(pixels)
  side = -(-n // camera.coarse)
  grain = rng.standard_normal((side, side), np.float32)
  if camera.coarse > 1:
    grain = np.asarray(
      Image.fromarray(grain).resize((n, n), Image.Resampling.BICUBIC)
    )
  colour = rng.uniform(0.6, 1.4, 3).astype(np.float32)
  noisy = pixels + camera.noise * grain[:n, :n, None] * colour
  return np.clip(noisy, 0, 255)
