"""BRSet's image-field rule, applied by measurement to what a head located.

Beside the learned verdict: distances in disc diameters between landmarks that
are drawn where the network sees them, so that a ruler can check both. NumPy and
Pillow only (see overlay.py).
"""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
import numpy as np
from PIL import Image, ImageDraw

from iqa_jax.aliases import Record
from iqa_jax.explain import overlay
from iqa_jax.photograph import geometry
from iqa_jax.simulation import field

_LANDMARKS = ('disc_x', 'disc_y', 'disc_diameter', 'fovea_x', 'fovea_y')
_DISTANCES = ('nasal_dd', 'temporal_dd', 'superior_dd', 'inferior_dd')
_VERDICT = 'image_field_measured'
COLUMNS = (*_LANDMARKS, *_DISTANCES, _VERDICT)
_LEAST = (field.NASAL_DD, field.TEMPORAL_DD, field.ARCADE_DD, field.ARCADE_DD)


def to_original(
  shares: Float[np.ndarray, ' 5'],
  affine: Float[np.ndarray, '2 3'],
  prepared_size: int,
) -> Float[np.ndarray, ' 5']:
  """Returns landmarks in pixels of the photograph, float64 [5].

  Args:
    shares: [5], optic disc x, y, disc diameter, fovea x, y in shares of the
      prepared image's side.
    affine: float64 [2, 3], prepared (x, y, 1) -> (x, y) of the photograph.
    prepared_size: side of the prepared image in pixels.
  """
  x, y, diameter, fovea_x, fovea_y = np.asarray(shares, float) * prepared_size
  xs, ys = geometry.apply_affine(
    affine, np.array([x, fovea_x]), np.array([y, fovea_y])
  )
  return np.array([xs[0], ys[0], diameter * affine[0, 0], xs[1], ys[1]])


def columns(landmarks: Float[np.ndarray, ' 5'], view: geometry.Field) -> Record:
  """Returns the manifest's columns of a photograph.

  Args:
    landmarks: float [5] in pixels of the photograph, see `to_original`; NaN of
      heads that locate none.
    view: its field in the same pixels. Where none was found there is no edge
      to measure to.

  Returns:
    COLUMNS; None where there is nothing to say, and for the distance of a
    landmark that lies beyond the field.
  """
  row: Record = dict.fromkeys(COLUMNS)
  if not np.isfinite(landmarks).all():
    return row
  row |= zip(_LANDMARKS, map(float, landmarks), strict=True)
  if view.found:
    distances = _measure(landmarks, view)
    row |= {
      name: value if np.isfinite(value) else None
      for name, value in zip(_DISTANCES, distances, strict=True)
    }
    adequate = all(np.greater_equal(distances, _LEAST))
    row[_VERDICT] = 'adequate' if adequate else 'inadequate'
  return row


def draw(
  picture: Image.Image,
  landmarks: Float[np.ndarray, ' 5'],
  view: geometry.Field,
  size: tuple[int, int],
) -> None:
  """Draws landmarks and distances onto a photograph, at any size.

  Args:
    picture: RGB, changed.
    landmarks: see `columns`.
    view: the field of view.
    size: width and height of the photograph in whose pixels these two are.
  """
  if not np.isfinite(landmarks).all():
    return
  sx, sy = picture.width / size[0], picture.height / size[1]
  landmarks = landmarks * [sx, sy, (sx * sy) ** 0.5, sx, sy]
  view = view.scaled(sx, sy)
  pen = _Pen(picture)
  x, y, diameter, fovea_x, fovea_y = map(float, landmarks)
  if view.found:
    distances = _measure(landmarks, view)
    passed = np.greater_equal(distances, _LEAST)
    temporal = 1.0 if fovea_x > x else -1.0
    starts = ((x - temporal * diameter / 2, y), (fovea_x, fovea_y))
    words = [
      # No arcade was looked for: it is the typical one of this eye.
      f'{name.removesuffix("_dd")} {"~" * (i >= 2)}{distances[i]:.2f} DD'
      + ('' if passed[i] else f' < {_LEAST[i]:g}')
      for i, name in enumerate(_DISTANCES)
    ]
    lines = []
    for i, towards in ((0, -temporal), (1, temporal)):
      length = distances[i] * diameter
      if not np.isfinite(length):
        continue
      from_x, from_y = starts[i]
      end = (from_x + towards * length, from_y)
      # Words longer than the line would hide the disc.
      above = diameter / 2 if i == 0 and pen.length(words[0]) > length else 0.0
      at = ((from_x + end[0]) / 2, from_y - above)
      lines.append((i, [starts[i], end], at))
    arcades = field.typical_arcades(landmarks)
    for i, arcade in zip((2, 3), arcades, strict=True):
      steps = np.hypot(*np.diff(arcade, axis=0).T).cumsum() / diameter
      seen = arcade[: 1 + int((steps <= distances[i] + 1e-9).sum())]
      below = 2 * pen.height if i == 3 else 0
      lines.append((i, seen.tolist(), (seen[-1, 0], seen[-1, 1] + below)))
    for i, points, _ in lines:
      pen.line(points, passed[i])
    for i, _, at in lines:
      pen.label(words[i], at, passed[i])
  turns = np.linspace(0, 2 * np.pi, 73)
  circle = np.stack([np.cos(turns), np.sin(turns)], 1) * diameter / 2
  pen.line((circle + (x, y)).tolist(), True)
  arm = diameter / 6
  pen.line([(fovea_x - arm, fovea_y), (fovea_x + arm, fovea_y)], True)
  pen.line([(fovea_x, fovea_y - arm), (fovea_x, fovea_y + arm)], True)


def _measure(
  landmarks: np.ndarray, view: geometry.Field
) -> tuple[float, float, float, float]:
  m = field.measure(view, landmarks, field.typical_arcades(landmarks))
  return m.nasal, m.temporal, m.superior, m.inferior


class _Pen:
  """Thin dark-edged lines and words, seen on any ground."""

  _GOOD, _SHORT = (225, 245, 240), (255, 176, 84)

  def __init__(self, picture: Image.Image):
    self._draw = ImageDraw.Draw(picture)
    self._size = picture.size
    self._width = max(1, round(max(picture.size) / 500))
    self.height = max(11, round(max(picture.size) / 42))

  def line(self, points: Sequence[Sequence[float]], good: bool) -> None:
    flat = [tuple(p) for p in points]
    color = self._GOOD if good else self._SHORT
    self._draw.line(flat, (0, 0, 0), width=self._width + 2, joint='curve')
    self._draw.line(flat, color, width=self._width, joint='curve')

  def length(self, text: str) -> float:
    return self._draw.textlength(text, font=overlay.typeface(self.height))

  def label(self, text: str, at: tuple[float, float], good: bool) -> None:
    length = self.length(text)
    edge = self._width + 2
    left = min(max(at[0] - length / 2, edge), self._size[0] - length - edge)
    top = min(
      max(at[1] - 1.5 * self.height, edge),
      self._size[1] - 1.3 * self.height - edge,
    )
    self._draw.text(
      (left, top),
      text,
      fill=self._GOOD if good else self._SHORT,
      font=overlay.typeface(self.height),
      stroke_width=max(1, self.height // 8),
      stroke_fill=(0, 0, 0),
    )
