"""Where the camera looks: from an eye's retina to the photograph's frame."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.random import Generator

from iqa_jax.photograph import geometry
from iqa_jax.simulation import anatomy, field

_TRIES = 400


@dataclasses.dataclass(frozen=True)
class Projection:
  """From the retina to the frame."""

  scale: float  # pixels per DD
  matrix: np.ndarray  # [2, 2], DD -> pixels
  gaze: np.ndarray  # DD at the field's centre
  centre: np.ndarray  # pixels

  def pixels(self, points: np.ndarray) -> np.ndarray:
    return _turned(points - self.gaze, self.matrix) + self.centre

  def retinal(self, pixels: np.ndarray) -> np.ndarray:
    """The way back, in float32."""
    centred = pixels - self.centre.astype(np.float32)
    return _turned(centred, np.linalg.inv(self.matrix)) + self.gaze.astype(
      np.float32
    )


def _turned(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
  # Not `@`: how BLAS rounds depends on the number of threads.
  x, y = points[..., 0], points[..., 1]
  return np.stack([float(a) * x + float(b) * y for a, b in matrix], -1)


@dataclasses.dataclass(frozen=True)
class Scene(Projection):
  """A projection, and where it puts what is judged."""

  landmarks: np.ndarray
  arcades: tuple[np.ndarray, np.ndarray]
  measurement: field.Measurement


def aim(
  rng: Generator,
  retina: anatomy.Eye,
  view: geometry.Field,
  style: int,
  side: str,
  off: bool,
) -> Scene:
  """Points the camera so that the image field is adequate, or is not."""
  arcades = {
    v.arcade: v.points for v in retina.vessels if v.arcade and v.is_vein
  }
  centre = np.array([view.cx, view.cy])
  for _ in range(_TRIES):
    degrees = rng.uniform(45, 52) if style == 0 else rng.uniform(46, 60)
    if off and rng.random() < 0.15:
      degrees = rng.uniform(30, 40)
    scale = 2 * view.radius / (degrees / anatomy.DEGREES_PER_DD)
    tilt = rng.normal(0, np.deg2rad(4))
    mirror = np.diag([1.0 if side == 'left' else -1.0, 1.0])
    turn = np.array(
      [[np.cos(tilt), -np.sin(tilt)], [np.sin(tilt), np.cos(tilt)]]
    )
    spread = np.array([1.1, 0.9]) if off else np.array([0.35, 0.35])
    gaze = retina.fovea * [0.5, 0.4] + [0.2, 0.0] + rng.normal(0, spread)
    seen = Projection(scale, turn @ mirror * scale, gaze, centre)
    disc, fovea = seen.pixels(np.stack([np.zeros(2), retina.fovea]))
    landmarks = np.array([*disc, scale, *fovea])
    lines = (
      seen.pixels(arcades['superior']),
      seen.pixels(arcades['inferior']),
    )
    measured = field.measure(view, landmarks, lines)
    # Half a field away there is hardly a fundus left to judge.
    if measured.adequate != off and measured.margin > -2.5:
      return Scene(
        **vars(seen), landmarks=landmarks, arcades=lines, measurement=measured
      )
  raise RuntimeError(f'no gaze found for image_field broken={off}')
