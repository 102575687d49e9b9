"""A map and its photograph -> pictures.

Pillow and NumPy only: pictures are drawn by worker processes that don't hold
JAX. What is drawn is a map made presentable (scaling.scale), 0 for no evidence
to 1 for the top of the colour bar; what is below 0 is shown as none.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import functools
import importlib.util
import math
import pathlib
import textwrap

from jaxtyping import Float, UInt8
import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFont

from iqa_jax import errors
from iqa_jax.photograph import placement as placement_lib
from iqa_jax.photograph.placement import Placement

# Perceptually uniform maps of matplotlib (CC0), every eighth colour; importing
# matplotlib would cost each worker more than drawing a photograph.
_ANCHORS = {
  'viridis': (
    '440154470d6048186a482374472d7b4536814240863f49893b528b375a8d33638d'
    '2f6a8e2c728e297a8e26818e23898e21908c1f988b1f9f8821a68528ae8031b57b'
    '3ebc744cc26c5dc9636ece5882d34c96d83fabdc32c0df24d5e21aeae51afde725'
  ),
  'inferno': (
    '0000040403120b0724150b37210c4a2e0a5a3c09654a0c6b57106d63146e70196e'
    '7d1e6d89226a962766a32b61af315cbb3755c63e4dd14644db4f3be35932eb6528'
    'f1711ef67f14f98d0afb9c06fcab0ffbba1ff9ca32f5d949f2e865f3f586fcffa4'
  ),
}
COLORS = ('viridis', 'inferno', 'jet')
LOGIT_TOP = 5.0  # logits at the top of the colour bar
LEVELS = (0.25, 0.5, 0.75)  # of the colour bar, where contours are drawn

EMPTY = (
  'Empty map: nothing in this layer speaks for what is explained, so there is '
  'nothing to colour.'
)
# Of a head of evidence, whose maps can only speak against a photograph.
NO_FAULT = (
  'Empty map: this network finds evidence of faults only, and nothing else '
  'speaks for an adequate photograph.'
)
INK, PALE, PAPER = (238, 240, 243), (168, 176, 188), (22, 25, 31)
AMBER, TEAL = (255, 176, 84), (92, 214, 192)


@dataclasses.dataclass(frozen=True, eq=False)
class Look:
  """Where a map lies over its photograph, and in which colours.

  Attributes:
    placement: where the map's cells look, in pixels of the prepared image; None
      for cells that share it evenly.
    colors: one of COLORS.
    opacity: of the strongest evidence ('jet': of everything), 0 to 1.
    within: bool [s, s] over the prepared image, outside which nothing is shown;
      of maps that are 0 there, whose cells are enlarged beyond the rim.
  """

  placement: Placement | None = None
  colors: str = 'viridis'
  opacity: float = 0.55
  within: np.ndarray | None = None


USUAL = Look()


@functools.cache
def palette(colors: str) -> UInt8[np.ndarray, '256 3']:
  """Returns a colour map, uint8 [256, 3].

  'viridis' and 'inferno' are matplotlib's to within 2 of 255; 'jet' is OpenCV's
  COLORMAP_JET, which the pictures of earlier work used.

  Raises:
    ValueError: there is no such colour map.
  """
  errors.one_of('colour map', colors, COLORS)
  at = np.arange(256) / 255
  if colors == 'jet':
    middle = np.array([3, 2, 1])
    rgb = np.clip(1.5 - np.abs(4 * at[:, None] - middle), 0, 1) * 255
  else:
    anchors = np.frombuffer(bytes.fromhex(_ANCHORS[colors]), np.uint8)
    anchors = anchors.reshape(-1, 3)
    places = np.linspace(0, 1, len(anchors))
    rgb = np.stack([np.interp(at, places, c) for c in anchors.T], axis=1)
  return np.rint(rgb).astype(np.uint8)


@functools.cache
def _palette_with_alpha(colors: str, opacity: float) -> bytes:
  """Returns 256 RGBA colours: what is laid over the photograph.

  Jet covers everything evenly, as the pictures it is to match. The others fade
  out towards no evidence, so that the photograph stays to be seen there.
  """
  at = np.arange(256) / 255
  rise = np.clip(at / 0.5, 0, 1)
  shown = np.ones(256) if colors == 'jet' else rise * rise * (3 - 2 * rise)
  alpha = np.rint(255 * opacity * shown).astype(np.uint8)
  return np.column_stack([palette(colors), alpha]).tobytes()


def overlay(
  photograph: Image.Image,
  shown: Float[np.ndarray, 'h w'],
  affine: Float[np.ndarray, '2 3'],
  prepared_size: int,
  look: Look = USUAL,
  *,
  in_place: bool = False,
) -> Image.Image:
  """Returns the photograph with the map laid over where it belongs.

  Args:
    photograph: RGB.
    shown: float [h, w], 0 to 1, over the prepared image.
    affine: float64 [2, 3], prepared (x, y, 1) -> (x, y) of `photograph`.
    prepared_size: side of the prepared image.
    look: of the map.
    in_place: whether `photograph` may be drawn on, which saves its copy.
  """
  picture = photograph if in_place else photograph.copy()
  box, levels = _inside(shown, affine, prepared_size, photograph.size, look)
  if levels is None:
    return picture
  if look.colors != 'jet':
    # Where nothing is shown nothing needs to be blended.
    part = levels.getbbox()
    if part is None:
      return picture
    levels = levels.crop(part)
    box = (box[0] + part[0], box[1] + part[1])
  levels.putpalette(_palette_with_alpha(look.colors, look.opacity), 'RGBA')
  colored = levels.convert('RGBA')
  picture.paste(colored, box[:2], colored)
  return picture


def layer(
  size: tuple[int, int],
  shown: Float[np.ndarray, 'h w'],
  affine: Float[np.ndarray, '2 3'],
  prepared_size: int,
  look: Look = USUAL,
) -> Image.Image:
  """Returns what `overlay` lays over a photograph of `size`, alone, RGBA."""
  picture = Image.new('RGBA', size)
  box, levels = _inside(shown, affine, prepared_size, size, look)
  if levels is not None:
    levels.putpalette(_palette_with_alpha(look.colors, look.opacity), 'RGBA')
    picture.paste(levels.convert('RGBA'), box[:2])
  return picture


def contour(
  photograph: Image.Image,
  shown: Float[np.ndarray, 'h w'],
  affine: Float[np.ndarray, '2 3'],
  prepared_size: int,
  look: Look = USUAL,
  *,
  levels: Sequence[float] = LEVELS,
) -> Image.Image:
  """Returns the photograph with the map's lines of equal evidence drawn on.

  Arguments as of `overlay`; `levels` are on the scale of `shown`. Lines are
  dark-edged, so that they are seen on any ground, and hide nothing else.
  """
  import contourpy

  picture = photograph.copy()
  draw = ImageDraw.Draw(picture)
  width = max(2, round(max(picture.size) / 500))
  side = affine[0, 0] * prepared_size
  # Interpolated first: lines through a map of 7x7 cells would be polygons.
  whole = np.asarray(shown, np.float32)
  spans = [
    _span(0.0, prepared_size, prepared_size, count, look.placement)
    for count in whole.shape[::-1]
  ]
  fine = np.asarray(_enlarged(whole, (224, 224), spans))
  lines = contourpy.contour_generator(z=np.pad(fine, 1))
  for level in levels:
    # The lower third of the colour maps is too dark for a line.
    color = tuple(int(c) for c in palette(look.colors)[round(90 + 165 * level)])
    for line in lines.lines(level):
      points = (np.asarray(line) - 0.5) / 224 * side + affine[:, 2]
      flat = [tuple(p) for p in points.tolist()]
      draw.line(flat, (0, 0, 0), width=2 * width, joint='curve')
      draw.line(flat, color, width=width, joint='curve')
  return picture


def _inside(
  shown: np.ndarray,
  affine: np.ndarray,
  prepared_size: int,
  size: tuple[int, int],
  look: Look,
) -> tuple[tuple[int, int], Image.Image | None]:
  """Returns what `_laid` does, cut off where `look.within` is False."""
  box, levels = _laid(shown, affine, prepared_size, size, look.placement)
  if levels is not None and look.within is not None:
    _, rim = _laid(look.within, affine, prepared_size, size, None)
    assert rim is not None  # it is of the same square as levels
    levels = ImageChops.multiply(levels, rim)
  return box, levels


def _laid(
  shown: np.ndarray,
  affine: np.ndarray,
  prepared_size: int,
  size: tuple[int, int],
  placement: Placement | None,
) -> tuple[tuple[int, int], Image.Image | None]:
  """Returns the map at the photograph's resolution, as 8-bit levels.

  Returns:
    ((left, top), image of mode L), the part of the prepared square that lies
    on the photograph of `size`; the image is None when there is none.
  """
  # 8-bit resampling is Pillow's fastest, and the colour map has 256 colours.
  coarse = np.rint(255 * np.clip(shown, 0, 1)).astype(np.uint8)
  low, high, spans = [], [], []
  for axis, count in ((0, coarse.shape[1]), (1, coarse.shape[0])):
    start, scale = affine[axis, 2], affine[axis, axis]
    side = scale * prepared_size
    # Pixels whose centres lie in the square, as geometry.to_original has it.
    first = max(int(np.ceil(start - 0.5)), 0)
    last = min(int(np.floor(start + side - 0.5)) + 1, size[axis])
    low.append(first)
    high.append(last)
    begin, end = (
      min(max((edge - start) / scale, 0.0), prepared_size)
      for edge in (first, last)
    )
    spans.append(_span(begin, end, prepared_size, count, placement))
  if low[0] >= high[0] or low[1] >= high[1]:
    return (0, 0), None
  levels = _enlarged(coarse, (high[0] - low[0], high[1] - low[1]), spans)
  return (low[0], low[1]), levels


def _span(
  first: float, end: float, side: int, count: int, placement: Placement | None
) -> tuple[float, float]:
  """Returns from where to where prepared pixels go, in cells of the map."""
  place = placement or placement_lib.evenly(side, count)
  low, high = (place.cells(np.asarray(at)) for at in (first, end))
  return float(low), float(high)


def _enlarged(
  cells: np.ndarray, size: tuple[int, int], spans: Sequence[tuple[float, float]]
) -> Image.Image:
  """Returns parts of a map [h, w], `spans` in x and y, at (width, height)."""
  # Beyond the outer cells their values go on; a box must lie on the image.
  beyond = [
    max(0, math.ceil(max(-low, high - count)))
    for (low, high), count in zip(spans, cells.shape[::-1], strict=True)
  ]
  across, down = beyond
  wide = np.pad(cells, ((down, down), (across, across)), mode='edge')
  (left, right), (top, bottom) = spans
  return Image.fromarray(wide).resize(
    size,
    Image.Resampling.BILINEAR,
    box=(left + across, top + down, right + across, bottom + down),
  )


def thumbnail(
  prepared: UInt8[np.ndarray, 's s 3'],
  shown: Float[np.ndarray, 'h w'],
  look: Look = USUAL,
  *,
  side: int = 192,
) -> Image.Image:
  """Returns prepared image and overlay beside each other, 2 `side` x `side`.

  Args:
    prepared: uint8 [size, size, 3].
    shown: as of `overlay`.
    look: of the map.
    side: of each of the two, in pixels.
  """
  plain = Image.fromarray(prepared).resize(
    (side, side), Image.Resampling.BILINEAR, reducing_gap=2.0
  )
  both = Image.new('RGB', (2 * side, side))
  both.paste(plain, (0, 0))
  size = len(prepared)
  colored = overlay(plain, shown, np.eye(2, 3) * (side / size), size, look)
  both.paste(colored, (side, 0))
  return both


def noted(photograph: Image.Image, note: str) -> Image.Image:
  """Returns the photograph with a note below it, instead of a map."""
  width, height = photograph.size
  size = max(12, width // 45)
  font = typeface(size, bold=True)
  lines = textwrap.wrap(note, max(10, int(width / size / 0.68)))
  line = round(1.35 * size)
  picture = Image.new('RGB', (width, height + line * len(lines) + size), PAPER)
  picture.paste(photograph, (0, 0))
  draw = ImageDraw.Draw(picture)
  for i, words in enumerate(lines):
    draw.text(
      (size // 2, height + size // 2 + i * line), words, fill=AMBER, font=font
    )
  return picture


@functools.cache
def typeface(
  size: int, bold: bool = False
) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
  """Returns matplotlib's DejaVu Sans, or Pillow's own font without it."""
  found = importlib.util.find_spec('matplotlib')
  if found is not None and found.origin is not None:
    folder = pathlib.Path(found.origin).parent / 'mpl-data/fonts/ttf'
    name = 'DejaVuSans-Bold.ttf' if bold else 'DejaVuSans.ttf'
    if (folder / name).is_file():
      return ImageFont.truetype(str(folder / name), size)
  return ImageFont.load_default(size)
