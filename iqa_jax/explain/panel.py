"""A photograph, its map and what is known of it in words: one picture.

Pillow and NumPy only (see overlay.py).
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import textwrap

from jaxtyping import Float
import numpy as np
from PIL import Image, ImageDraw

from iqa_jax.explain import overlay
from iqa_jax.explain.overlay import AMBER, INK, PALE, PAPER, TEAL, typeface

_SIDE = 560  # height in pixels of the two pictures
_GAP = 16
_BAR_ROOM = 118
_FOOTER = 62
_SMALL = 150  # height in pixels of a criterion's map
_RESEARCH = (
  'Research use only, not a medical device. A map shows where the network '
  'found evidence,',
  'not what is wrong with the photograph.',
)


@dataclasses.dataclass(frozen=True)
class Criterion:
  """What a panel shows of a criterion.

  Attributes:
    name: in words.
    p: probability of a fault of it; None for unknown.
    share: of the field that it affects; None likewise.
    cells: float [g, g], probability of such a fault in each cell of the
      prepared image, 0 outside the field; None of models without cells.
    cause: whether it is the cause of the verdict.
  """

  name: str
  p: float | None = None
  share: float | None = None
  cells: np.ndarray | None = None
  cause: bool = False


@dataclasses.dataclass(frozen=True)
class Caption:
  """What a panel says in words.

  Attributes:
    name: of the photograph.
    verdict: 'adequate' or 'inadequate'.
    probability: of inadequate, with how it was come by, e.g. 'P(inadequate) =
      0.93, calibrated'.
    uncertain: whether the verdict is near the operating point.
    target: what the map explains, e.g. 'evidence for: focus'.
    source: method and layer.
    bar: what the top of the colour bar stands for.
    note: what must be known to read the map; '' for nothing. Of an empty map
      it says so.
    cause: what is wrong, in words; '' where there is nothing to say.
    advice: what to do about it; '' likewise.
    criteria: those that the model knows.
  """

  name: str
  verdict: str
  probability: str
  uncertain: bool
  target: str
  source: str
  bar: str
  note: str = ''
  cause: str = ''
  advice: str = ''
  criteria: tuple[Criterion, ...] = ()


def draw(
  photograph: Image.Image,
  shown: Float[np.ndarray, 'h w'],
  affine: Float[np.ndarray, '2 3'],
  prepared_size: int,
  look: overlay.Look = overlay.USUAL,
  *,
  caption: Caption,
  decorate: Callable[[Image.Image], object] | None = None,
) -> Image.Image:
  """Returns photograph and overlay side by side, with caption and colour bar.

  Below them, of models that know criteria, a small map of each.

  Arguments as of `overlay.overlay`; `decorate` draws on the photograph, beside
  the map.
  """
  shrink = min(_SIDE / photograph.height, 1.5 * _SIDE / photograph.width, 1)
  plain, to_plain = _resized(photograph, shrink)
  colored = overlay.overlay(
    plain, shown, affine * to_plain, prepared_size, look
  )
  strip = _strip(
    plain, affine * to_plain, prepared_size, caption.criteria, look
  )
  if decorate is not None:
    decorate(plain)
  width, height = plain.size
  wide = max(2 * width + 3 * _GAP + _BAR_ROOM, 760)
  top = 104 + (30 if caption.cause else 0)
  end = top + height + (strip.height + _GAP if strip else 0)
  picture = Image.new('RGB', (wide, end + _FOOTER), PAPER)
  pen = ImageDraw.Draw(picture)
  left = 2 * _GAP + width
  _header(pen, caption, left, top)
  picture.paste(plain, (_GAP, top))
  picture.paste(colored, (left, top))
  if caption.note:
    _note(pen, caption.note, (left, top), plain.size)
  else:
    at = (left + width + _GAP, top)
    _bar(picture, pen, at, height, caption.bar, look.colors)
  if strip:
    picture.paste(strip, (_GAP, top + height + _GAP))
  for i, line in enumerate(_RESEARCH):
    pen.text((_GAP, end + 14 + 18 * i), line, fill=PALE, font=typeface(13))
  return picture


def _resized(
  photograph: Image.Image, shrink: float
) -> tuple[Image.Image, np.ndarray]:
  """Returns a photograph made smaller, and what its affine is times, [2, 1]."""
  width, height = (
    max(1, round(photograph.width * shrink)),
    max(1, round(photograph.height * shrink)),
  )
  small = photograph.resize(
    (width, height), Image.Resampling.BILINEAR, reducing_gap=2.0
  )
  stretch = [[width / photograph.width], [height / photograph.height]]
  return small, np.array(stretch)


def _header(
  pen: ImageDraw.ImageDraw, caption: Caption, left: int, top: int
) -> None:
  """Writes what stands above the pictures, the second of which is at `left`."""
  pen.text((_GAP, 16), _short(caption.name, 78), fill=PALE, font=typeface(15))
  verdict = caption.verdict.upper()
  tint = AMBER if caption.verdict == 'inadequate' else TEAL
  large = typeface(26, bold=True)
  pen.text((_GAP, 38), verdict, fill=tint, font=large)
  at = _GAP + pen.textlength(verdict, font=large) + 18
  words = caption.probability
  if caption.uncertain:
    words += '   uncertain: have a person look'
  pen.text((at, 46), words, fill=INK, font=typeface(17))
  if caption.cause:
    font = typeface(17, bold=True)
    words = f'Cause: {caption.cause}.'
    pen.text((_GAP, 76), words, fill=tint, font=font)
    at = _GAP + pen.textlength(words, font=font) + 10
    pen.text((at, 76), caption.advice, fill=INK, font=typeface(17))
  small = typeface(14)
  pen.text((_GAP, top - 26), 'photograph', fill=PALE, font=small)
  words = f'{caption.target} ({caption.source})'
  pen.text((left, top - 26), words, fill=PALE, font=small)


def _strip(
  plain: Image.Image,
  affine: np.ndarray,
  prepared_size: int,
  criteria: tuple[Criterion, ...],
  look: overlay.Look,
) -> Image.Image | None:
  """Returns the criteria side by side, or None without any."""
  if not criteria:
    return None
  mapped = any(criterion.cells is not None for criterion in criteria)
  small, stretch = _resized(plain, min(_SMALL / plain.height, 1))
  beside = small.width + 10 if mapped else 0
  each = max(beside + 190, (2 * plain.width + _GAP) // len(criteria))
  height = small.height + 26 if mapped else 70
  strip = Image.new('RGB', (each * len(criteria), height), PAPER)
  pen = ImageDraw.Draw(strip)
  if mapped:
    words = 'probability of a fault in each place, from 0 (clear) to 1 (yellow)'
    if look.colors != 'viridis':
      words = 'probability of a fault in each place, from 0 to 1'
    pen.text((0, 2), words, fill=PALE, font=typeface(13))
  even = dataclasses.replace(look, placement=None)
  top = 26 if mapped else 4
  for i, criterion in enumerate(criteria):
    left = i * each
    if criterion.cells is not None:
      picture = overlay.overlay(
        small, criterion.cells, affine * stretch, prepared_size, even
      )
      strip.paste(picture, (left, top))
    tint = AMBER if criterion.cause else INK
    left += beside
    name = f'{criterion.name[0].upper()}{criterion.name[1:]}'
    font = typeface(16, bold=True)
    pen.text((left, top), name, fill=tint, font=font)
    if criterion.p is not None:
      words = f'P(fault) = {criterion.p:.2f}'
      pen.text((left, top + 24), words, fill=tint, font=typeface(14))
      box = [left, top + 46, left + 120, top + 51]
      pen.rectangle(box, fill=(57, 64, 75))
      box[2] = left + round(120 * criterion.p)
      pen.rectangle(box, fill=tint)
    if criterion.share is not None:
      words = f'{100 * criterion.share:.0f} % of the field'
      pen.text((left, top + 58), words, fill=PALE, font=typeface(14))
  return strip


def _bar(
  picture: Image.Image,
  pen: ImageDraw.ImageDraw,
  at: tuple[int, int],
  height: int,
  label: str,
  colors: str,
) -> None:
  """Draws the colour bar, as the colours lie on the photograph's black."""
  left, top = at
  ramp = Image.frombytes(
    'RGB', (1, 256), overlay.palette(colors)[::-1].tobytes()
  )
  picture.paste(ramp.resize((18, height - 40)), (left, top + 20))
  for share in (0.0, 0.5, 1.0):
    y = top + 20 + (1 - share) * (height - 41)
    pen.line([(left + 18, y), (left + 24, y)], fill=PALE)
  font = typeface(13)
  y = top + 20
  for line in textwrap.wrap(label, 11):
    pen.text((left + 28, y - 8), line, fill=INK, font=font)
    y += 16
  pen.text((left + 28, top + height - 29), 'none', fill=INK, font=font)


def _note(
  pen: ImageDraw.ImageDraw,
  text: str,
  origin: tuple[int, int],
  size: tuple[int, int],
) -> None:
  """Writes a note across the lower part of a picture."""
  font = typeface(16, bold=True)
  lines = textwrap.wrap(text, max(12, size[0] // 10))
  height = 22 * len(lines) + 20
  left, top = origin[0], origin[1] + size[1] - height
  pen.rectangle(
    [left, top, left + size[0] - 1, origin[1] + size[1] - 1], fill=PAPER
  )
  for i, line in enumerate(lines):
    pen.text((left + 10, top + 10 + 22 * i), line, fill=AMBER, font=font)


def _short(text: str, length: int) -> str:
  """Returns one printable line of at most `length` characters."""
  text = ''.join(
    c if c.isprintable() else '\N{REPLACEMENT CHARACTER}' for c in text
  )
  if len(text) <= length:
    return text
  half = (length - 1) // 2
  return f'{text[:half]}\N{HORIZONTAL ELLIPSIS}{text[-half:]}'
