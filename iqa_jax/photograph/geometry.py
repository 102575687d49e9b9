"""The field of view: found, cropped, padded to a square, and the way back.

Coordinates are continuous: pixel i covers [i, i + 1), its centre is i + 0.5.
NumPy and Pillow only, because the dataset builders and the TensorFlow-free
export use the same code.
"""

from __future__ import annotations

from collections.abc import Iterator
import dataclasses

import numpy as np
from PIL import Image
from scipy import ndimage

from iqa_jax.photograph.placement import Placement, evenly

_WORK = 256  # the field is looked for at about this many pixels
_MIN_RADIUS = 0.2  # of the shorter side
_TOLERANCE = 0.012  # of the working size: an edge point is on the circle


@dataclasses.dataclass(frozen=True)
class Field:
  """A field of view, in continuous pixels of the photograph.

  Attributes:
    cx: centre of the circle, x.
    cy: centre of the circle, y.
    radius: of the circle.
    left: visible box: the circle less what the frame or a mask cut off.
    top: likewise.
    right: likewise.
    bottom: likewise.
    found: False where no circle was found and the box is the whole frame.
  """

  cx: float
  cy: float
  radius: float
  left: float
  top: float
  right: float
  bottom: float
  found: bool

  def inside(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Returns whether points lie in the visible field, as bool."""
    box = (
      (x >= self.left)
      & (x <= self.right)
      & (y >= self.top)
      & (y <= self.bottom)
    )
    if not self.found:
      return box
    return box & ((x - self.cx) ** 2 + (y - self.cy) ** 2 <= self.radius**2)

  def scaled(self, sx: float, sy: float) -> Field:
    """Returns the field after the photograph is stretched by sx and sy."""
    return Field(
      self.cx * sx,
      self.cy * sy,
      self.radius * (sx * sy) ** 0.5,
      self.left * sx,
      self.top * sy,
      self.right * sx,
      self.bottom * sy,
      self.found,
    )


@dataclasses.dataclass(frozen=True)
class Prepared:
  """A photograph as the network sees it.

  Attributes:
    image: uint8 [size, size, 3].
    affine: float64 [2, 3], prepared (x, y, 1) -> (x, y) of the photograph.
    field: in pixels of the photograph.
    inside: bool [size, size], the visible field.
  """

  image: np.ndarray
  affine: np.ndarray
  field: Field
  inside: np.ndarray


def find_field(image: np.ndarray | Image.Image) -> Field:
  """Finds the circular field of view, which top and bottom may be cut off.

  The background is what the frame's corners show, black or not; the circle is
  fitted to the outline of what differs from it, by consensus, so that notches,
  cut edges and dark sectors don't move it.

  Args:
    image: uint8 [h, w, 3] RGB, or an image of mode RGB.

  Returns:
    The field; `found` is False and the box is the whole frame where there is
    none (a uniform photograph, no background, no circle).
  """
  picture = as_image(image)
  width, height = picture.size
  factor = max(1.0, max(height, width) / _WORK)
  small_size = (max(1, round(width / factor)), max(1, round(height / factor)))
  small = np.asarray(
    picture.resize(small_size, Image.Resampling.BOX, reducing_gap=2.0)
  )
  whole = Field(
    width / 2, height / 2, (width**2 + height**2) ** 0.5 / 2,
    0.0, 0.0, float(width), float(height), False,
  )  # fmt: skip
  sx, sy = width / small_size[0], height / small_size[1]
  for mask in _foregrounds(small):
    field = _fit(mask)
    if field is not None:
      return field.scaled(sx, sy)
  return whole


def as_image(image: np.ndarray | Image.Image) -> Image.Image:
  """Returns uint8 [h, w, 3] as an image of mode RGB, which itself goes through.

  Who uses a photograph more than once makes its image once: each is a copy.
  """
  return image if isinstance(image, Image.Image) else Image.fromarray(image)


def _foregrounds(small: np.ndarray) -> Iterator[np.ndarray]:
  """Yields masks of what may be the field, the surest threshold first."""
  h, w = small.shape[:2]
  level = small.astype(np.float32)
  k = max(2, round(0.04 * min(h, w)))
  corners = np.concatenate(
    [
      level[ys, xs].reshape(-1, 3)
      for ys in (slice(0, k), slice(h - k, h))
      for xs in (slice(0, k), slice(w - k, w))
    ]
  )
  background = np.median(corners, axis=0)
  # NumPy reduces a last axis of three at a twentieth of this speed.
  distance = np.maximum.reduce(
    list(np.abs(level - background).transpose(2, 0, 1))
  )
  noise = np.median(np.abs(corners - background).max(axis=1))
  centre = np.median(distance[h // 4 : h - h // 4, w // 4 : w - w // 4])
  for share in (0.2, 0.1, 0.4):
    threshold = max(share * centre, 3.0 * noise, 3.0)
    mask = ndimage.binary_opening(distance > threshold, iterations=1)
    parts, count = ndimage.label(mask)
    if not count:
      continue
    sizes = np.bincount(parts.ravel())[1:]
    yield _filled(parts == 1 + sizes.argmax())


def _filled(mask: np.ndarray) -> np.ndarray:
  """Returns the mask without holes: scipy's binary_fill_holes, in one pass."""
  around, _ = ndimage.label(np.pad(~mask, 1, constant_values=True))
  return (around != around[0, 0])[1:-1, 1:-1]


def _fit(mask: np.ndarray) -> Field | None:
  """Fits a circle to the outline of a mask; None if it is none."""
  h, w = mask.shape
  points = _outline(mask)
  if len(points) < 20:
    return None
  tolerance = _TOLERANCE * max(h, w)
  circle = _consensus(points, tolerance)
  if circle is None:
    return None
  cx, cy, radius = circle
  on = np.abs(np.hypot(points[:, 0] - cx, points[:, 1] - cy) - radius)
  near = points[on < tolerance]
  turns = np.arctan2(near[:, 1] - cy, near[:, 0] - cx)
  covered = len(np.unique(np.floor(turns / (2 * np.pi) * 72))) / 72
  if covered < 0.3 or not (_MIN_RADIUS * min(h, w) < radius < 0.75 * max(h, w)):
    return None
  ys, xs = np.nonzero(mask)
  left = max(cx - radius, float(xs.min()), 0.0)
  right = min(cx + radius, float(xs.max() + 1), float(w))
  top = max(cy - radius, float(ys.min()), 0.0)
  bottom = min(cy + radius, float(ys.max() + 1), float(h))
  # A dark sector at the rim is still field: only a straight cut ends it.
  left, right = _cut(left, cx - radius, h), _cut(right, cx + radius, h)
  if not _is_flat(mask, 0):
    top = max(cy - radius, 0.0)
  if not _is_flat(mask, -1):
    bottom = min(cy + radius, float(h))
  left, right = max(left, 0.0), min(right, float(w))
  if right - left < radius or bottom - top < 0.5 * radius:
    return None
  return Field(cx, cy, radius, left, top, right, bottom, True)


def _cut(edge: float, on_circle: float, size: int) -> float:
  # Cameras cut top and bottom only; sideways only the frame does.
  return on_circle if abs(edge - on_circle) < 0.2 * size else edge


def _is_flat(mask: np.ndarray, end: int) -> bool:
  """Whether the mask's first row (`end` 0) or last (-1) is a straight line."""
  rows = np.nonzero(mask.any(axis=1))[0]
  row = rows[end]
  widest = mask.sum(axis=1).max()
  inner = min(max(row + (2 if end == 0 else -2), 0), len(mask) - 1)
  return mask[inner].sum() > 0.45 * widest


def _outline(mask: np.ndarray) -> np.ndarray:
  """Returns (x, y) of the mask's edge, without what the frame cut off."""
  h, w = mask.shape
  rows = np.nonzero(mask.any(axis=1))[0]
  columns = np.nonzero(mask.any(axis=0))[0]
  first = mask[rows].argmax(axis=1)
  last = w - mask[rows, ::-1].argmax(axis=1)
  top = mask[:, columns].argmax(axis=0)
  bottom = h - mask[::-1][:, columns].argmax(axis=0)
  points = np.concatenate(
    [
      np.stack([first, rows + 0.5], 1)[first > 1],
      np.stack([last, rows + 0.5], 1)[last < w - 1],
      np.stack([columns + 0.5, top], 1)[top > 1],
      np.stack([columns + 0.5, bottom], 1)[bottom < h - 1],
    ]
  )
  return points.astype(np.float64)


def _consensus(
  points: np.ndarray, tolerance: float
) -> tuple[float, float, float] | None:
  """Returns the circle (cx, cy, r) that most points agree on (RANSAC)."""
  rng = np.random.default_rng(0)
  triples = points[rng.integers(0, len(points), (400, 3))]
  a, b, c = triples[:, 0], triples[:, 1], triples[:, 2]
  ab, ac = b - a, c - a
  cross = 2.0 * (ab[:, 0] * ac[:, 1] - ab[:, 1] * ac[:, 0])
  good = np.abs(cross) > 1e-6 * np.ptp(points)
  if not good.any():
    return None
  a, ab, ac, cross = a[good], ab[good], ac[good], cross[good]
  ab2, ac2 = (ab**2).sum(1), (ac**2).sum(1)
  ux = (ac[:, 1] * ab2 - ab[:, 1] * ac2) / cross
  uy = (ab[:, 0] * ac2 - ac[:, 0] * ab2) / cross
  radius = np.hypot(ux, uy)
  centre = a + np.stack([ux, uy], 1)
  plausible = radius < 2.0 * np.ptp(points, axis=0).max()
  if not plausible.any():
    return None
  centre, radius = centre[plausible], radius[plausible]
  # Squared distances by a matrix product: most of the time of an export's
  # preparation went into their roots.
  squared = (points**2).sum(1) - 2.0 * centre @ points.T
  squared += (centre**2).sum(1)[:, None]
  inner = np.maximum(radius - tolerance, 0.0)[:, None] ** 2
  outer = (radius + tolerance)[:, None] ** 2
  votes = ((squared > inner) & (squared < outer)).sum(1)
  best = votes.argmax()
  (cx, cy), r = centre[best], radius[best]
  for _ in range(3):  # least squares on the points that agree (Kasa 1976)
    on = np.abs(np.hypot(points[:, 0] - cx, points[:, 1] - cy) - r) < tolerance
    if on.sum() < 10:
      return None
    x, y = points[on].T
    system = np.stack([x, y, np.ones_like(x)], 1)
    p, q, s = np.linalg.lstsq(system, x**2 + y**2, rcond=None)[0]
    cx, cy = p / 2, q / 2
    r = float(np.sqrt(max(s + cx**2 + cy**2, 0.0)))
  return float(cx), float(cy), r


def prepare(
  image: np.ndarray | Image.Image, size: int, field: Field | None = None
) -> Prepared:
  """Crops to the field, pads to a square with black and resizes, antialiased.

  The aspect ratio is never changed.

  Args:
    image: uint8 [h, w, 3], or an image of mode RGB.
    size: side of the result in pixels.
    field: where the field is; None looks for it.
  """
  whole = as_image(image)
  field = find_field(whole) if field is None else field
  left, top = round(field.left), round(field.top)
  width = max(round(field.right) - left, 1)
  height = max(round(field.bottom) - top, 1)
  side = max(width, height)
  left -= (side - width) // 2
  top -= (side - height) // 2
  if side <= 4 * min(width, height):
    square = whole.crop((left, top, left + side, top + side))
    resized = shrink(square, size, size)
  else:
    # A strip's square could be larger than memory; pad it when it is small.
    x, y = (side - width) // 2, (side - height) // 2
    strip = whole.crop((left + x, top + y, left + x + width, top + y + height))
    resized = Image.new('RGB', (size, size))
    resized.paste(
      shrink(
        strip,
        max(size * width // side, 1),
        max(size * height // side, 1),
      ),
      (size * x // side, size * y // side),
    )
  scale = side / size
  affine = np.array([[scale, 0.0, left], [0.0, scale, top]])
  centres = np.arange(size) + 0.5
  inside = field.inside(
    (scale * centres + left)[None, :], (scale * centres + top)[:, None]
  )
  return Prepared(np.array(resized), affine, field, inside)


def shrink(image: Image.Image, width: int, height: int) -> Image.Image:
  """Returns an image at another size, bilinear and antialiased."""
  return image.resize(
    (width, height), Image.Resampling.BILINEAR, reducing_gap=3.0
  )


def apply_affine(
  affine: np.ndarray, x: np.ndarray, y: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Returns where an affine [2, 3] takes the points (x, y)."""
  return (
    affine[0, 0] * x + affine[0, 1] * y + affine[0, 2],
    affine[1, 0] * x + affine[1, 1] * y + affine[1, 2],
  )


def to_original(
  values: np.ndarray,
  affine: np.ndarray,
  shape: tuple[int, int],
  prepared_size: int,
  placement: Placement | None = None,
) -> np.ndarray:
  """Lays a map of the prepared image onto the photograph.

  Args:
    values: float [h, w], a map over the prepared image at any resolution.
    affine: of `Prepared`.
    shape: (height, width) of the photograph.
    prepared_size: side of the prepared image that `affine` belongs to.
    placement: where the map's cells look, in pixels of the prepared image; None
      for cells that share it evenly.

  Returns:
    float32 `shape`, bilinear between the map's cell centres, 0 outside the
    prepared square.
  """
  h, w = values.shape
  scale = affine[0, 0]
  left, top = affine[0, 2], affine[1, 2]
  height, width = shape
  x = (np.arange(width) + 0.5 - left) / scale
  y = (np.arange(height) + 0.5 - top) / scale
  in_x = np.nonzero((x >= 0) & (x <= prepared_size))[0]
  in_y = np.nonzero((y >= 0) & (y <= prepared_size))[0]
  result = np.zeros(shape, np.float32)
  if not len(in_x) or not len(in_y):
    return result
  across, down = (placement or evenly(prepared_size, n) for n in (w, h))
  rows = interpolation(down.cells(y[in_y]), h)
  columns = interpolation(across.cells(x[in_x]), w)
  laid = rows @ values.astype(np.float32) @ columns.T
  result[in_y[0] : in_y[-1] + 1, in_x[0] : in_x[-1] + 1] = laid
  return result


def interpolation(at: np.ndarray, count: int) -> np.ndarray:
  """Returns the weights of linear interpolation between cell centres.

  Args:
    at: float [n], continuous coordinates (the centre of cell i is i + 0.5).
    count: number of cells.

  Returns:
    float32 [n, count]; rows sum to 1, and the edge cells go on outside.
  """
  position = np.clip(at - 0.5, 0, count - 1)
  lower = np.minimum(position.astype(int), max(count - 2, 0))
  upper = np.minimum(lower + 1, count - 1)
  share = (position - lower).astype(np.float32)
  weights = np.zeros((len(at), count), np.float32)
  rows = np.arange(len(at))
  weights[rows, lower] += 1 - share
  weights[rows, upper] += share
  return weights
