"""The drawn retina: where things are, and what they look like.

Retinal coordinates are in disc diameters (DD), origin at the optic disc's
centre, x towards the fovea (temporal), y downwards; so both eyes are one eye.
Sizes are of a normal adult eye: 1 DD = 1.8 mm = 6.3 degrees of visual angle
(Jonas et al. 1988; 0.29 mm a degree), the fovea 2.5 DD temporal of the disc's
centre and 0.25 DD below.
"""

from __future__ import annotations

import dataclasses

import numpy as np

DEGREES_PER_DD = 6.3
_STEP = 0.08  # DD between the points of a vessel


@dataclasses.dataclass(frozen=True)
class Vessel:
  """One vessel segment from branching to branching.

  Attributes:
    points: float [n, 2], in DD.
    widths: float [n], calibre in DD; a central vein's is 0.12.
    is_vein: veins are darker and wider than arteries.
    arcade: 'superior' or 'inferior' for the temporal trunks, else ''.
  """

  points: np.ndarray
  widths: np.ndarray
  is_vein: bool
  arcade: str = ''


@dataclasses.dataclass(frozen=True)
class Eye:
  """One eye of one patient.

  Attributes:
    fovea: float [2], in DD.
    disc_axes: float [2], width and height of the disc over its diameter.
    cup: cup-to-disc ratio.
    cup_offset: float [2], in DD.
    pigment: 0 (pale, choroid shines through) .. 1 (dark).
    age: in years; takes sheen from the young, adds haze to the old.
    vessels: drawn in this order.
    spots: float [k, 4], drusen, exudates and haemorrhages that do not affect
      quality: x, y, radius in DD, and tone (1 bright .. -1 dark).
  """

  fovea: np.ndarray
  disc_axes: np.ndarray
  cup: float
  cup_offset: np.ndarray
  pigment: float
  age: float
  vessels: tuple[Vessel, ...]
  spots: np.ndarray


def grow(rng: np.random.Generator) -> Eye:
  """Returns a random eye."""
  fovea = np.array([rng.normal(2.5, 0.12), rng.normal(0.25, 0.1)])
  return Eye(
    fovea=fovea,
    disc_axes=np.array([rng.uniform(0.88, 1.0), rng.uniform(0.98, 1.08)]),
    cup=float(np.clip(rng.normal(0.42, 0.13), 0.15, 0.8)),
    cup_offset=np.array([rng.uniform(0, 0.08), rng.uniform(-0.04, 0.04)]),
    pigment=float(rng.beta(2, 2)),
    age=float(rng.uniform(18, 85)),
    vessels=_grow_vessels(rng, fovea),
    spots=_grow_spots(rng, fovea),
  )


def _grow_vessels(rng, fovea) -> tuple[Vessel, ...]:
  tortuosity = rng.uniform(0.5, 1.6)
  trunks = []
  for is_vein in (False, True):
    for up in (-1, 1):
      trunks.append(_arcade(rng, fovea, up, is_vein, tortuosity))
      trunks.append(_nasal(rng, up, is_vein, tortuosity))
  branches = []
  for trunk in trunks:
    reach = 3.6 if trunk.arcade else 2.2
    branches += _branches(rng, [trunk], fovea, 8, 0.62, reach, tortuosity)
  twigs = _branches(rng, branches, fovea, 2, 0.6, 1.0, tortuosity)
  tips = _branches(rng, twigs, fovea, 1, 0.6, 0.6, tortuosity)
  return tuple(tips + twigs + branches + trunks)


def _arcade(rng, fovea, up, is_vein, tortuosity) -> Vessel:
  """A temporal trunk: a parabola about the macula, opening temporally."""
  # Fleming et al. 2007 and others model the arcades as such a parabola.
  height = rng.uniform(1.55, 2.05) + (0.12 if is_vein else 0.0)
  n = 80
  t = np.linspace(0, 1.45, n)
  y = up * height * t ** rng.uniform(0.62, 0.75)
  x = fovea[0] * t ** rng.uniform(1.5, 1.8) - 0.12 * np.sin(np.pi * t)
  y += fovea[1] * np.minimum(t, 1)
  points = np.stack([x, y], 1) + _wander(rng, n, 0.035 * tortuosity)
  start = 0.13 if is_vein else 0.095
  widths = start * rng.uniform(0.9, 1.1) * np.linspace(1, 0.5, n)
  return Vessel(points, widths, is_vein, 'superior' if up < 0 else 'inferior')


def _nasal(rng, up, is_vein, tortuosity) -> Vessel:
  n = 60
  t = np.linspace(0, 1, n)
  length = rng.uniform(3.2, 4.2)
  spread = rng.uniform(0.35, 0.8)
  x = -length * t * np.cos(spread)
  y = up * length * (np.sin(spread) * t + 0.12 * np.sin(np.pi * t))
  points = np.stack([x, y], 1) + _wander(rng, n, 0.04 * tortuosity)
  start = 0.1 if is_vein else 0.075
  return Vessel(points, start * np.linspace(1, 0.4, n), is_vein)


def _wander(rng, n, size) -> np.ndarray:
  """Returns smooth random offsets [n, 2] that begin at zero."""
  knots = np.cumsum(rng.normal(size=(n // 6 + 3, 2)), axis=0) * size
  at = np.linspace(0, len(knots) - 1.001, n)
  low = at.astype(int)
  share = (at - low)[:, None]
  share = share * share * (3 - 2 * share)
  path = knots[low] * (1 - share) + knots[low + 1] * share
  return path - path[0]


def _branches(
  rng, parents, fovea, per_parent, ratio, reach, tortuosity
) -> list[Vessel]:
  """Grows the side branches of all parents at once."""
  origin, heading, width, vein = [], [], [], []
  for parent in parents:
    n = len(parent.points)
    count = int(rng.integers(max(per_parent - 1, 1), per_parent + 2))
    at = np.maximum(np.sort(rng.integers(n // 6, n, count)), 1)
    sides = np.where(np.arange(count) % 2, 1.0, -1.0) * rng.choice([-1, 1])
    along = parent.points[at] - parent.points[at - 1]
    turned = sides * rng.uniform(0.45, 1.1, count)
    origin.append(parent.points[at])
    heading.append(np.arctan2(along[:, 1], along[:, 0]) + turned)
    width.append(parent.widths[at] * ratio * rng.uniform(0.7, 1.1, count))
    vein += [parent.is_vein] * count
  k = len(vein)
  points = np.empty((k, 1 + int(reach / _STEP), 2))
  points[:, 0] = np.concatenate(origin)
  angle = np.concatenate(heading)
  starts = np.concatenate(width)
  lengths = rng.uniform(0.35, 1.0, k) * reach
  turn = rng.normal(0, 0.02, k)
  jitter = rng.normal(0, 0.09 * tortuosity, (k, points.shape[1]))
  for j in range(1, points.shape[1]):
    here = points[:, j - 1]
    to_fovea = fovea - here
    far = np.hypot(to_fovea[:, 0], to_fovea[:, 1])
    # Vessels run towards the macula but bend away from the fovea itself.
    bearing = np.arctan2(to_fovea[:, 1], to_fovea[:, 0])
    off = np.angle(np.exp(1j * (bearing - angle)))
    pull = np.where(far < 0.55, -0.5, np.where(far < 2.2, 0.03, 0.0))
    angle = angle + turn + jitter[:, j] + pull * np.sin(off)
    points[:, j] = here + _STEP * np.stack([np.cos(angle), np.sin(angle)], 1)
  count = np.maximum((lengths / _STEP).astype(int), 3)
  near = np.hypot(*np.moveaxis(points - fovea, -1, 0)) < 0.32
  stop = np.where(near.any(1), np.maximum(near.argmax(1), 2), points.shape[1])
  count = np.minimum(count, stop)
  return [
    Vessel(path[:n], start * np.linspace(1, 0.45, n), is_vein)
    for path, n, start, is_vein in zip(points, count, starts, vein, strict=True)
  ]


def _grow_spots(rng, fovea) -> np.ndarray:
  """Drusen, exudates and haemorrhages in three of ten eyes."""
  if rng.random() > 0.3:
    return np.zeros((0, 4))
  count = int(rng.integers(4, 40))
  tone = 1.0 if rng.random() < 0.6 else -1.0
  centre = fovea + rng.normal(0, 0.5, 2)
  where = centre + rng.normal(0, rng.uniform(0.4, 1.2), (count, 2))
  radius = rng.uniform(0.02, 0.07, count)
  return np.column_stack([where, radius, tone * rng.uniform(0.3, 1.0, count)])
