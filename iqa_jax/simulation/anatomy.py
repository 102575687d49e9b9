"""The drawn retina: where things are, and what they look like.

Retinal coordinates are in disc diameters (DD), origin at the optic disc's
centre, x towards the fovea (temporal), y downwards; so both eyes are one eye.
Sizes are of a normal adult eye: 1 DD = 1.8 mm = 6.3 degrees of visual angle
(Jonas et al. 1988; 0.29 mm a degree), the fovea 2.5 DD temporal of the disc's
centre and 0.25 DD below.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses

import numpy as np

DEGREES_PER_DD = 6.3
_STEP = 0.08  # DD between the points of a vessel


@dataclasses.dataclass(frozen=True)
class Vessel:
  """One vessel segment from branching to branching.

  Attributes:
    points: float [n, 2], in DD.
    widths: float [n], calibre in DD; at the disc an arcade's vein has 0.14,
      its artery 0.11.
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


def _grow_vessels(
  rng: np.random.Generator, fovea: np.ndarray
) -> tuple[Vessel, ...]:
  tortuosity = rng.uniform(0.5, 1.6)
  trunks = []
  for is_vein in (False, True):
    for up in (-1, 1):
      trunks.append(_arcade(rng, fovea, up, is_vein, tortuosity))
      trunks.append(_nasal(rng, up, is_vein, tortuosity))
  reach = [3.6 if trunk.arcade else 2.4 for trunk in trunks]
  branches = _branches(rng, trunks, fovea, 7, 0.5, reach, tortuosity)
  twigs = _branches(rng, branches, fovea, 3, 0.6, 1.5, tortuosity)
  tips = _branches(rng, twigs, fovea, 2, 0.7, 0.8, tortuosity)
  return tuple(tips + twigs + branches + trunks)


def _arcade(
  rng: np.random.Generator,
  fovea: np.ndarray,
  up: int,
  is_vein: bool,
  tortuosity: float,
) -> Vessel:
  """A temporal trunk: a parabola about the macula, opening temporally."""
  # Fleming et al. 2007 and others model the arcades as such a parabola.
  height = rng.uniform(1.55, 2.05) + (0.12 if is_vein else 0.0)
  n = 80
  t = np.linspace(0, 1.45, n)
  y = up * height * t ** rng.uniform(0.62, 0.75)
  x = fovea[0] * t ** rng.uniform(1.5, 1.8) - 0.12 * np.sin(np.pi * t)
  y += fovea[1] * np.minimum(t, 1)
  points = np.stack([x, y], 1) + _wander(rng, n, 0.035 * tortuosity)
  start = 0.14 if is_vein else 0.11
  widths = start * rng.uniform(0.9, 1.1) * (0.3 + 0.7 * np.exp(-1.4 * t))
  return Vessel(points, widths, is_vein, 'superior' if up < 0 else 'inferior')


def _nasal(
  rng: np.random.Generator, up: int, is_vein: bool, tortuosity: float
) -> Vessel:
  n = 60
  t = np.linspace(0, 1, n)
  length = rng.uniform(3.2, 4.2)
  spread = rng.uniform(0.35, 0.8)
  x = -length * t * np.cos(spread)
  y = up * length * (np.sin(spread) * t + 0.12 * np.sin(np.pi * t))
  points = np.stack([x, y], 1) + _wander(rng, n, 0.04 * tortuosity)
  start = 0.1 if is_vein else 0.075
  return Vessel(points, start * np.linspace(1, 0.35, n), is_vein)


def _wander(rng: np.random.Generator, n: int, size: float) -> np.ndarray:
  """Returns smooth random offsets [n, 2] that begin at zero."""
  waves = np.arange(1, 8)
  height = rng.normal(0, 1.4 * size, (2, 7)) / waves
  phase = rng.uniform(0, 2 * np.pi, (2, 7, 1))
  turns = 2 * np.pi * waves[:, None] * np.linspace(0, 1, n)
  path = (height[..., None] * np.sin(turns + phase)).sum(1).T
  return path - path[0]


def _branches(
  rng: np.random.Generator,
  parents: Sequence[Vessel],
  fovea: np.ndarray,
  per_parent: int,
  ratio: float,
  reach: float | Sequence[float],
  tortuosity: float,
) -> list[Vessel]:
  """Grows the side branches of all parents at once."""
  sizes = np.array([len(parent.points) for parent in parents])
  counts = rng.integers(max(per_parent - 1, 1), per_parent + 2, len(parents))
  k = counts.sum()
  owner = np.repeat(np.arange(len(parents)), counts)
  first = sizes[owner] // 8
  at = first + (rng.random(k) * (sizes[owner] - first)).astype(int)
  at = np.maximum(at, 1) + (np.cumsum(sizes) - sizes)[owner]
  stems = np.concatenate([parent.points for parent in parents])
  calibres = np.concatenate([parent.widths for parent in parents])
  ahead = stems[at] - stems[at - 1]
  angle = np.arctan2(ahead[:, 1], ahead[:, 0])
  turn = np.where(np.arange(k) % 2, 1.0, -1.0) * rng.uniform(0.4, 1.0, k)
  starts = calibres[at] * ratio * rng.uniform(0.7, 1.1, k)
  longest = np.broadcast_to(reach, len(parents))[owner]
  steps = 1 + int(longest.max() / _STEP)
  points = np.empty((k, steps, 2))
  points[:, 0] = stems[at]
  count = rng.uniform(0.4, 1.0, k) * longest / _STEP
  # A branch leaves at an angle, bends back, and winds in waves.
  along = np.arange(steps) * _STEP
  bends = turn[:, None] * (0.4 + 0.6 * np.exp(-along / 0.35))
  bends += rng.normal(0, 0.25, (k, 1)) * along
  for wave in (0.45, 0.8, 1.5):
    height = rng.normal(0, 0.16 * tortuosity, (k, 1))
    phase = rng.uniform(0, 2 * np.pi, (k, 1))
    bends += height * (np.sin(2 * np.pi * along / wave + phase) - np.sin(phase))
  bends = np.diff(bends, axis=1, prepend=0)
  for j in range(1, steps):
    here = points[:, j - 1]
    to_fovea = fovea - here
    far = np.hypot(to_fovea[:, 0], to_fovea[:, 1])
    # Vessels run towards the macula but bend away from the fovea itself.
    bearing = np.arctan2(to_fovea[:, 1], to_fovea[:, 0])
    pull = np.where(far < 0.55, -0.3, np.where(far < 2.2, 0.03, 0.0))
    angle = angle + bends[:, j - 1] + pull * np.sin(bearing - angle)
    points[:, j, 0] = here[:, 0] + _STEP * np.cos(angle)
    points[:, j, 1] = here[:, 1] + _STEP * np.sin(angle)
  near = np.hypot(*np.moveaxis(points - fovea, -1, 0)) < 0.32
  stop = np.where(near.any(1), np.maximum(near.argmax(1), 2), steps)
  count = np.minimum(np.maximum(count.astype(int), 3), stop)
  widths = 1 - 0.7 * np.arange(steps) / (count - 1)[:, None]
  widths *= starts[:, None]
  return [
    Vessel(points[i, :n], widths[i, :n], parents[owner[i]].is_vein)
    for i, n in enumerate(count)
  ]


def _grow_spots(rng: np.random.Generator, fovea: np.ndarray) -> np.ndarray:
  """Drusen, exudates and haemorrhages in three of ten eyes."""
  if rng.random() > 0.3:
    return np.zeros((0, 4))
  count = int(rng.integers(4, 40))
  tone = 1.0 if rng.random() < 0.6 else -1.0
  centre = fovea + rng.normal(0, 0.5, 2)
  where = centre + rng.normal(0, rng.uniform(0.4, 1.2), (count, 2))
  radius = rng.uniform(0.02, 0.07, count)
  return np.column_stack([where, radius, tone * rng.uniform(0.3, 1.0, count)])
