"""Draws a fundus photograph: an eye, seen by a camera, with or without faults.

Every number comes from the seeds handed in (NumPy's PCG64), so the same call
draws the same photograph anywhere.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
import dataclasses
import io

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw, ImageFilter

from iqa_jax import labels
from iqa_jax.photograph import geometry
from iqa_jax.simulation import anatomy, canvas, faults, field, painting
from iqa_jax.simulation import scene as scene_lib

# Two cameras as in BRSet: names, fields of view in degrees, and looks.
STYLES = ('simulated A', 'simulated B')
# Side in pixels of what the dataset's builder configs draw, its default first.
SIZES = {'demo': 128, '512': 512, 'brset_like': 512, 'cameras': 320}
# White, yellowish, greenish, bluish.
_RIM_TINTS = ((0.9, 0.9, 0.8), (1, 0.9, 0.5), (0.6, 0.9, 0.6), (0.6, 0.8, 1))


@dataclasses.dataclass(frozen=True)
class Drawn:
  """A simulated photograph and the truth about it.

  Attributes:
    image: uint8 [size, size, 3]; the field fills the frame.
    criteria: int64 [4], labels.CRITERIA, 1 where inadequate.
    landmarks: float32 [5], disc x, y and diameter, fovea x, y, in pixels.
    measurement: the image-field distances.
    view: the visible field, in pixels.
    inside: bool [size, size], the visible field.
    vessels: float32 [size, size] in 0..1, how much vessel a pixel holds.
    arcades: the superior and the inferior temporal arcade (vein), float [n, 2]
      in pixels.
    defects: mask float32 [size, size] of every fault, distractors included, by
      its kind.
    severities: by the same kinds.
    camera: one of `STYLES`.
    eye: 'left' or 'right'.
    age: of the patient, in years.
  """

  image: np.ndarray
  criteria: np.ndarray
  landmarks: np.ndarray
  measurement: field.Measurement
  view: geometry.Field
  inside: np.ndarray
  vessels: np.ndarray
  arcades: tuple[np.ndarray, np.ndarray]
  defects: dict[str, np.ndarray]
  severities: dict[str, float]
  camera: str
  eye: str
  age: float

  @property
  def quality(self) -> int:
    """The verdict: inadequate as soon as one criterion is."""
    return int(self.criteria.max())


def draw(
  seed: int,
  size: int,
  *,
  broken: Collection[str] = (),
  kinds: dict[str, str] | None = None,
  distractors: bool = True,
  style: int | None = None,
  eye: str | None = None,
  patient: int | None = None,
) -> Drawn:
  """Draws one photograph.

  Args:
    seed: of this photograph, not negative.
    size: side in pixels.
    broken: criteria (labels.CRITERIA) that it fails; the others it meets.
    kinds: the fault (faults.KINDS) of a criterion; drawn at random by default.
    distractors: put faults below the threshold into about half of the
      criteria that are met.
    style: number of the camera; None draws one.
    eye: 'left' or 'right'; None draws one.
    patient: seed of the patient, who has two eyes; None makes a new one.

  Raises:
    ValueError: `broken` or `kinds` names no criterion or fault.
  """
  if unknown := set(broken) - set(labels.CRITERIA):
    raise ValueError(f'{unknown.pop()!r} is none of {labels.CRITERIA}')
  rng = np.random.default_rng([seed, 0])
  style = int(rng.integers(len(STYLES))) if style is None else style
  side = str(rng.choice(['left', 'right'])) if eye is None else eye
  who = [seed if patient is None else patient, 1 if side == 'left' else 2]
  retina = anatomy.grow(np.random.default_rng(who))
  view = _view(rng, style, size)
  scene = scene_lib.aim(rng, retina, view, style, side, 'image_field' in broken)
  pixels, vessels = painting.paint(rng, retina, scene, size, style)
  inside = _inside(view, size)
  image = np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
  defects, severities = {}, {}
  for kind, severity in _choose_faults(rng, broken, kinds or {}, distractors):
    image, defects[kind] = faults.apply(image, inside, kind, severity, rng)
    severities[kind] = severity
  image = _expose(rng, image, view, inside, style)
  return Drawn(
    image=image,
    criteria=_criteria(severities, scene.measurement),
    landmarks=scene.landmarks.astype(np.float32),
    measurement=scene.measurement,
    view=view,
    inside=inside,
    vessels=np.where(inside, vessels, 0).astype(np.float32),
    arcades=scene.arcades,
    defects=defects,
    severities=severities,
    camera=STYLES[style],
    eye=side,
    age=retina.age,
  )


def _criteria(
  severities: Mapping[str, float], measured: field.Measurement
) -> np.ndarray:
  """Returns which criteria a photograph fails, int64 [4] of 0 and 1."""
  failed = {
    faults.CRITERION[kind]
    for kind, severity in severities.items()
    if severity >= faults.THRESHOLD
  }
  if not measured.adequate:
    failed.add('image_field')
  return np.array([c in failed for c in labels.CRITERIA], np.int64)


def _choose_faults(
  rng: Generator,
  broken: Collection[str],
  kinds: Mapping[str, str],
  distractors: bool,
) -> Iterator[tuple[str, float]]:
  """Yields (kind, severity): one for each criterion, or a distractor."""
  for name, choices in faults.KINDS.items():
    kind = kinds.get(name) or str(rng.choice(choices))
    if faults.CRITERION.get(kind) != name:
      raise ValueError(f'{kind!r} is no fault of {name}: {choices}')
    bad = rng.uniform(faults.THRESHOLD, 1.0)
    slight = rng.uniform(0.05, 0.6 * faults.THRESHOLD)
    if name in broken:
      yield kind, float(bad)
    elif distractors and rng.random() < 0.5:
      yield kind, float(slight)


def _view(rng: Generator, style: int, size: int) -> geometry.Field:
  half = size / 2
  radius = half * rng.uniform(0.97, 1.0)
  cut = radius if style == 0 and rng.random() < 0.6 else (
    radius * rng.uniform(0.78, 0.95)
  )  # fmt: skip
  return geometry.Field(
    half, half, radius, half - radius, half - cut, half + radius, half + cut,
    True,
  )  # fmt: skip


def _inside(view: geometry.Field, size: int) -> np.ndarray:
  centres = np.arange(size) + 0.5
  return view.inside(centres[None, :], centres[:, None])


def _expose(
  rng: Generator,
  image: np.ndarray,
  view: geometry.Field,
  inside: np.ndarray,
  style: int,
) -> np.ndarray:
  """Returns the photograph: falling light, cast, noise, mask, JPEG."""
  size = len(image)
  n = min(size, painting.COARSE)
  centres = (np.arange(n, dtype=np.float32) + 0.5 - n / 2) * (
    size / n / view.radius
  )
  r2 = centres[None, :] ** 2 + centres[:, None] ** 2
  angle = rng.uniform(0, 2 * np.pi)
  slope = centres * float(np.cos(angle)) + centres[:, None] * float(
    np.sin(angle)
  )
  light = 1.15 - rng.uniform(0.15, 0.65) * r2 + rng.uniform(0, 0.3) * slope
  light += rng.uniform(0, 0.35) * canvas.smooth_noise(rng, (n, n), 3)
  cast = rng.uniform(0.95, 1.05, 3)
  # Some rims glow.
  width, height = rng.uniform(0.03, 0.16), max(0.0, rng.uniform(-40, 60))
  tint = rng.choice(_RIM_TINTS)
  rim = np.exp(-(((np.sqrt(r2) - 1.0) / width) ** 2)) * height
  light, rim = _enlarged(light, size), _enlarged(rim, size)
  grain = rng.standard_normal((size, size), np.float32)
  loud, dark = rng.uniform(0.3, 1.2), rng.uniform(0, 5)
  soft = np.asarray(
    Image.fromarray((_shape(rng, view, inside, style) * 255).astype(np.uint8))
    .filter(ImageFilter.GaussianBlur(size / 900)),
    np.float32,
  ) / 255  # fmt: skip
  final = np.empty_like(image)
  for channel in range(3):  # planes of their own are twice as fast
    plane = image[..., channel] * light
    plane *= float(cast[channel])
    plane += float(tint[channel]) * rim
    plane += loud * grain
    # The grain of the dark: the same noise, weaker.
    plane = plane * soft + (dark + 0.4 * grain)
    final[..., channel] = np.clip(np.rint(plane, out=plane), 0, 255, out=plane)
  file = io.BytesIO()
  Image.fromarray(final).save(file, 'JPEG', quality=int(rng.integers(84, 97)))
  return np.array(Image.open(file))


def _enlarged(coarse: np.ndarray, size: int) -> np.ndarray:
  if len(coarse) == size:
    return coarse
  image = Image.fromarray(np.asarray(coarse, np.float32))
  return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))


def _shape(
  rng: Generator, view: geometry.Field, inside: np.ndarray, style: int
) -> np.ndarray:
  """Returns the field with its registration notch, bool."""
  if rng.random() < 0.5:
    return inside
  size = len(inside)
  shape = Image.fromarray(inside)
  brush = ImageDraw.Draw(shape)
  angle = rng.choice([-0.75, -2.4]) + rng.normal(0, 0.05)
  r = view.radius
  x, y = size / 2 + r * np.cos(angle), size / 2 + r * np.sin(angle)
  k = 0.03 * r
  if style == 0:
    brush.rectangle([x - k, y - k, x + k, y + k], 1)
  else:
    brush.ellipse([x - k, y - k, x + k, y + k], 1)
  return np.array(shape)
