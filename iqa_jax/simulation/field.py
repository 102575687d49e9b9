"""BRSet's image-field rule, as a measurement of known geometry.

BRSet (Nakayama et al. 2024) calls the image field adequate when the optic disc
is at least 1 disc diameter (DD) from the nasal edge, the macular centre at
least 2 DD from the temporal edge, and both temporal arcades are visible for at
least 2 DD. Here the disc's distance is its nasal margin's, both distances run
horizontally to the edge of the visible field, and an arcade's length is
measured along the main vein from the disc's centre.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses

import numpy as np

from iqa_jax.photograph import geometry

NASAL_DD, TEMPORAL_DD, ARCADE_DD = 1.0, 2.0, 2.0


@dataclasses.dataclass(frozen=True)
class Measurement:
  """What the rule looks at, all in disc diameters; negative when outside.

  Attributes:
    nasal: disc margin to nasal edge.
    temporal: fovea to temporal edge.
    superior: visible length of the superior temporal arcade.
    inferior: likewise, inferior.
  """

  nasal: float
  temporal: float
  superior: float
  inferior: float

  @property
  def adequate(self) -> bool:
    return self.margin >= 0

  @property
  def margin(self) -> float:
    """The smallest distance to a threshold, in DD; negative: inadequate."""
    return min(
      self.nasal - NASAL_DD,
      self.temporal - TEMPORAL_DD,
      self.superior - ARCADE_DD,
      self.inferior - ARCADE_DD,
    )


def measure(
  view: geometry.Field, landmarks: np.ndarray, arcades: Sequence[np.ndarray]
) -> Measurement:
  """Measures a photograph.

  Args:
    view: the visible field, in pixels.
    landmarks: float [5], disc x, y, disc diameter, fovea x, y, in pixels.
    arcades: the superior and the inferior arcade, float [n, 2] in pixels,
      from the disc outwards.
  """
  disc_x, disc_y, diameter, fovea_x, fovea_y = np.asarray(landmarks, float)
  towards_fovea = 1.0 if fovea_x > disc_x else -1.0
  nasal = _to_edge(view, disc_x, disc_y, -towards_fovea) / diameter - 0.5
  temporal = _to_edge(view, fovea_x, fovea_y, towards_fovea) / diameter
  superior, inferior = (_visible(view, a) / diameter for a in arcades)
  return Measurement(nasal, temporal, superior, inferior)


def typical_arcades(landmarks: np.ndarray) -> list[np.ndarray]:
  """Returns both temporal arcades as they run in the average eye.

  Args:
    landmarks: float [5], disc x, y, disc diameter, fovea x, y, in pixels.

  Returns:
    The superior and the inferior arcade, float [n, 2] in pixels: the middle of
    the shapes that anatomy.py draws.
  """
  x, y, diameter, fovea_x, fovea_y = np.asarray(landmarks, float)
  t = np.linspace(0, 1.45, 80)[:, None]
  towards = np.array([fovea_x - x, fovea_y - y])
  along = towards * np.concatenate([t**1.65, np.minimum(t, 1)], 1)
  # The main vein stands 1.92 DD above and below the fovea.
  away = np.array([0.0, 1.92 * diameter]) * t**0.685
  return [np.array([x, y]) + along + up * away for up in (-1, 1)]


def _to_edge(
  view: geometry.Field, x: float, y: float, direction: float
) -> float:
  """Returns how far the edge is from (x, y) in a horizontal direction."""
  if not view.top <= y <= view.bottom:
    return -np.inf
  half = view.radius**2 - (y - view.cy) ** 2
  if half <= 0:
    return -np.inf
  edge = view.cx + direction * np.sqrt(half)
  edge = min(max(edge, view.left), view.right)
  return float((edge - x) * direction)


def _visible(view: geometry.Field, path: np.ndarray) -> float:
  """Returns the length of a path up to where it first leaves the field."""
  inside = view.inside(path[:, 0], path[:, 1])
  end = len(path) if inside.all() else int((~inside).argmax())
  steps = np.hypot(*np.diff(path[:end], axis=0).T)
  return float(steps.sum())
