"""Fields, discs and eyes of photographs: frames in which they can be compared.

All eyes are shown as right eyes: left ones are mirrored, so the nose is on the
right-hand side.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy import ndimage

from iqa_jax.explain import scaling
from iqa_jax.photograph.placement import Placement
from iqa_jax.studies.photographs import Photographs

FRAMES = ('disc', 'field')
# By distance from the field's centre in radii; the ring between centre and
# periphery has a nasal and a temporal half.
REGIONS = ('centre', 'nasal', 'temporal', 'periphery', 'outside')
CELLS = 48  # of a frame, per radius
# Left, right, top and bottom of the frame, in radii of the field.
EXTENT = {'disc': (-1.9, 1.3, -1.25, 1.25), 'field': (-1.0, 1.0, -1.0, 1.0)}
_CENTRE, _PERIPHERY = 0.5, 0.8
# A place of a mean map must rest on this many photographs, and this share.
_LEAST, _LEAST_SHARE = 3, 0.2


@dataclasses.dataclass(frozen=True)
class Places:
  """Where things are in photographs, in pixels, before mirroring.

  Attributes:
    centre: float [n, 2], (x, y) of the field's centre.
    radius: float [n], of the field.
    disc: float [n, 2], (x, y) of the optic disc.
    disc_estimated: bool [n]: it was looked for, not known.
    left: bool [n], left eyes.
    eye_estimated: bool [n]: told by the side of the disc, not known.
  """

  centre: np.ndarray
  radius: np.ndarray
  disc: np.ndarray
  disc_estimated: np.ndarray
  left: np.ndarray
  eye_estimated: np.ndarray

  @classmethod
  def of(cls, photographs: Photographs) -> Places:
    """Finds them."""
    centre, radius, disc = [], [], []
    unknown = np.isnan(photographs.landmarks[:, :2]).any(axis=1)
    for i, inside in enumerate(photographs.inside):
      rows = np.flatnonzero(inside.any(1))
      columns = np.flatnonzero(inside.any(0))
      if not len(rows):
        rows = columns = np.asarray([0, len(inside) - 1])
      centre.append([columns.mean() + 0.5, rows.mean() + 0.5])
      # Cut fields are less high than wide.
      radius.append((max(np.ptp(rows), np.ptp(columns)) + 1) / 2)
      disc.append(
        estimate_disc(photographs.images[i], inside)
        if unknown[i]
        else photographs.landmarks[i, :2]
      )
    # A right eye's disc lies to the right of its fovea, or of the middle.
    middle = np.where(
      np.isnan(photographs.landmarks[:, 3]),
      np.asarray(centre)[:, 0],
      photographs.landmarks[:, 3],
    )
    by_disc = np.asarray(disc)[:, 0] < middle
    told = photographs.eyes != ''
    return cls(
      centre=np.asarray(centre),
      radius=np.asarray(radius),
      disc=np.asarray(disc),
      disc_estimated=unknown,
      left=np.where(told, photographs.eyes == 'left', by_disc),
      eye_estimated=~told,
    )


def regions(
  inside: np.ndarray, centre: np.ndarray, radius: float, left: bool
) -> dict[str, np.ndarray]:
  """Returns the masks of REGIONS, bool [s, s]; every pixel is in one.

  Args:
    inside: bool [s, s], the field of view.
    centre: (x, y) of the field's centre, in pixels.
    radius: of the field.
    left: whether it is a left eye, whose nose is on the left-hand side.
  """
  y, x = np.mgrid[: inside.shape[0], : inside.shape[1]] + 0.5
  away = np.hypot(x - centre[0], y - centre[1]) / radius
  towards_nose = (x < centre[0]) if left else (x > centre[0])
  ring = inside & (away >= _CENTRE) & (away <= _PERIPHERY)
  return {
    'centre': inside & (away < _CENTRE),
    'nasal': ring & towards_nose,
    'temporal': ring & ~towards_nose,
    'periphery': inside & (away > _PERIPHERY),
    'outside': ~inside,
  }


def mean_map(
  maps: np.ndarray,
  index: np.ndarray,
  placement: Placement | None,
  photographs: Photographs,
  places: Places,
  frame: str,
) -> dict[str, np.ndarray]:
  """Returns the mean evidence of some photographs in a common frame.

  Left eyes are mirrored and every field has the same size. Where too few
  photographs reach, the mean is NaN.

  Args:
    maps: float32 [n, h, w], their maps.
    index: int [n], which of the photographs they are.
    placement: where the cells of the maps look, see scaling.enlarge.
    photographs: all of them.
    places: where their fields and discs are.
    frame: the frame's centre, one of FRAMES.

  Returns:
    'mean' float [k, m], signed, of the maps; 'photograph' float
    [k, m, 3], the mean photograph of 0..1; 'count' int [k, m].
  """
  left, right, top, bottom = EXTENT[frame]
  dy, dx = np.meshgrid(
    np.arange(top, bottom, 1 / CELLS) + 0.5 / CELLS,
    np.arange(left, right, 1 / CELLS) + 0.5 / CELLS,
    indexing='ij',
  )
  total = np.zeros(dx.shape)
  light = np.zeros((*dx.shape, 3))
  count = np.zeros(dx.shape, int)
  size = photographs.inside.shape[1:]
  for i, values in zip(index, maps, strict=True):
    origin = places.disc[i] if frame == 'disc' else places.centre[i]
    mirror = -1 if places.left[i] else 1
    at = (
      origin[1] + dy * places.radius[i] - 0.5,
      origin[0] + mirror * dx * places.radius[i] - 0.5,
    )
    inside = photographs.inside[i].astype(np.uint8)
    seen = ndimage.map_coordinates(inside, at, order=0) > 0
    large = scaling.enlarge(values, size, placement)
    total += np.where(seen, ndimage.map_coordinates(large, at, order=1), 0)
    for channel in range(3):
      plane = photographs.images[i, :, :, channel] / 255
      sampled = ndimage.map_coordinates(plane, at, order=1)
      light[..., channel] += np.where(seen, sampled, 0)
    count += seen
  least = max(_LEAST, _LEAST_SHARE * len(index))
  few = count < min(least, len(index))
  share = np.maximum(count, 1)
  return {
    'mean': np.where(few, np.nan, total / share),
    'photograph': np.where(few[..., None], 1.0, light / share[..., None]),
    'count': count,
  }


def estimate_disc(image: np.ndarray, inside: np.ndarray) -> tuple[float, float]:
  """Returns where the optic disc seems to be, (x, y) in pixels.

  The brightest spot of about a disc's size against its surroundings, away from
  the rim. An estimate: a bright artefact or lesion can take the disc's place.

  Args:
    image: uint8 [s, s, 3].
    inside: bool [s, s], the field of view.
  """
  side = len(image)
  # Red saturates on the disc's surroundings, blue holds little light.
  green = image[..., 1] * inside.astype(np.float32)

  def smooth(x: np.ndarray, sigma: float) -> np.ndarray:
    return ndimage.gaussian_filter(x, sigma * side)

  weight = inside.astype(np.float32)
  near = smooth(green, 0.03) / np.maximum(smooth(weight, 0.03), 1e-3)
  around = smooth(green, 0.12) / np.maximum(smooth(weight, 0.12), 1e-3)
  depth = ndimage.distance_transform_edt(np.pad(inside, 1))[1:-1, 1:-1]
  contrast = np.where(depth > 0.06 * side, near - around, -np.inf)
  y, x = np.unravel_index(contrast.argmax(), contrast.shape)
  return float(x) + 0.5, float(y) + 0.5
