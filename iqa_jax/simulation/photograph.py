"""Draws a fundus photograph: an eye, seen by a camera, with or without faults.

Every number comes from the seeds handed in (NumPy's PCG64), so the same call
draws the same photograph anywhere.
"""

from __future__ import annotations

from collections.abc import Collection
import dataclasses
import functools
import io

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from iqa_jax import labels
from iqa_jax.data import geometry
from iqa_jax.simulation import anatomy, faults, field

# Two cameras as in BRSet: names, fields of view in degrees, and looks.
STYLES = ('simulated A', 'simulated B')
_TRIES = 400


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
  unknown = set(broken) - set(labels.CRITERIA)
  if unknown:
    raise ValueError(f'{unknown.pop()!r} is none of {labels.CRITERIA}')
  rng = np.random.default_rng([seed, 0])
  style = int(rng.integers(len(STYLES))) if style is None else style
  side = str(rng.choice(['left', 'right'])) if eye is None else eye
  who = seed if patient is None else patient
  retina = anatomy.grow(
    np.random.default_rng([who, 1 if side == 'left' else 2])
  )
  view = _view(rng, style, size)
  scene = _aim(rng, retina, view, style, side, 'image_field' in broken)
  pixels, vessels = _paint(rng, retina, scene, size, style)
  inside = _inside(view, size)
  image = np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
  defects, severities = {}, {}
  for kind, severity in _choose_faults(rng, broken, kinds or {}, distractors):
    image, defects[kind] = faults.apply(image, inside, kind, severity, rng)
    severities[kind] = severity
  image = _expose(rng, image, view, inside, style)
  verdicts = [
    not scene.measurement.adequate
    if name == 'image_field'
    else any(
      faults.CRITERION[k] == name and s >= faults.THRESHOLD
      for k, s in severities.items()
    )
    for name in labels.CRITERIA
  ]
  return Drawn(
    image=image,
    criteria=np.array(verdicts, np.int64),
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


def _choose_faults(rng, broken, kinds, distractors):
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


def _view(rng, style, size) -> geometry.Field:
  half = size / 2
  radius = half * rng.uniform(0.97, 1.0)
  cut = radius if style == 0 and rng.random() < 0.6 else (
    radius * rng.uniform(0.78, 0.95)
  )  # fmt: skip
  return geometry.Field(
    half, half, radius, half - radius, half - cut, half + radius, half + cut,
    True,
  )  # fmt: skip


def _inside(view, size) -> np.ndarray:
  centres = np.arange(size) + 0.5
  return view.inside(centres[None, :], centres[:, None])


@dataclasses.dataclass(frozen=True)
class _Projection:
  """From the retina to the frame."""

  scale: float  # pixels per DD
  matrix: np.ndarray  # [2, 2], DD -> pixels
  gaze: np.ndarray  # DD at the field's centre
  centre: np.ndarray  # pixels

  def pixels(self, points: np.ndarray) -> np.ndarray:
    return (points - self.gaze) @ self.matrix.T + self.centre


@dataclasses.dataclass(frozen=True)
class _Scene(_Projection):
  """A projection, and where it puts what is judged."""

  landmarks: np.ndarray
  arcades: tuple[np.ndarray, np.ndarray]
  measurement: field.Measurement


def _aim(rng, retina, view, style, side, off) -> _Scene:
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
    seen = _Projection(scale, turn @ mirror * scale, gaze, centre)
    disc, fovea = seen.pixels(np.stack([np.zeros(2), retina.fovea]))
    landmarks = np.array([*disc, scale, *fovea])
    lines = (
      seen.pixels(arcades['superior']),
      seen.pixels(arcades['inferior']),
    )
    measured = field.measure(view, landmarks, lines)
    # Half a field away there is hardly a fundus left to judge.
    if measured.adequate != off and measured.margin > -2.5:
      return _Scene(
        **vars(seen), landmarks=landmarks, arcades=lines, measurement=measured
      )
  raise RuntimeError(f'no gaze found for image_field broken={off}')


@functools.lru_cache(maxsize=4)
def _grid(size: int) -> np.ndarray:
  centres = np.arange(size, dtype=np.float32) + 0.5
  return np.stack(np.meshgrid(centres, centres), -1)


def _paint(rng, retina, scene, size, style):
  """Returns the retina's light, float32 [size, size, 3], and its vessels."""
  inverse = np.linalg.inv(scene.matrix).astype(np.float32)
  dd = (_grid(size) - scene.centre.astype(np.float32)) @ inverse.T
  dd += scene.gaze.astype(np.float32)
  x, y = dd[..., 0], dd[..., 1]
  from_fovea = np.hypot(*(_from(dd, retina.fovea)))

  pixels = np.empty((size, size, 3), np.float32)
  pixels[:] = _fundus_colour(rng, retina, style)
  shape = (size, size)
  cells = max(2, round(2 * size / 512 * 3))
  mottle = (
    0.5 * faults.smooth_noise(rng, shape, 4)
    + 0.3 * faults.smooth_noise(rng, shape, 9)
    + 0.2 * faults.smooth_noise(rng, shape, 22)
  )
  pixels *= (1 + 0.07 * mottle)[..., None]
  # The choroid's own vessels shine through where there is little pigment.
  ridges = 1 - np.abs(
    faults.smooth_noise(rng, shape, 10 + cells)
    + 0.5 * faults.smooth_noise(rng, shape, 21)
  )
  tessellation = np.clip(ridges, 0, 1) ** 3 * max(0.0, 0.6 - retina.pigment)
  pixels += tessellation[..., None] * np.array([34, 20, 10], np.float32)

  macula = np.exp(-((from_fovea / 0.85) ** 2))
  centre = np.exp(-((from_fovea / 0.28) ** 2))
  dark = 0.16 * macula + 0.16 * centre
  pixels *= 1 - dark[..., None] * np.array([0.9, 1.15, 1.0], np.float32)
  if retina.age < 40:  # the young fundus is glossy
    sheen = np.exp(-(((np.hypot(x, y) - 1.1) / 0.7) ** 2)) * (
      0.5 + 0.5 * np.cos(17 * np.arctan2(y, x) + 3 * mottle)
    )
    sheen += 0.8 * np.exp(-(((from_fovea - 0.75) / 0.16) ** 2))
    gloss = 14 * (40 - retina.age) / 22
    pixels += gloss * sheen[..., None] * np.array([0.7, 1, 0.8], np.float32)
  _add_spots(pixels, retina, scene)
  _add_disc(rng, pixels, retina, scene, dd)
  vessels = _add_vessels(rng, pixels, retina, scene)
  return pixels, vessels


def _fundus_colour(rng, retina, style) -> np.ndarray:
  """Returns the mean colour; ranges read off EyePACS photographs by eye."""
  red = 205 - 70 * retina.pigment + rng.normal(0, 12)
  green = red * np.clip(rng.normal(0.5, 0.06) - 0.04 * retina.pigment, 0.3, 0.7)
  blue = green * np.clip(rng.normal(0.5 if style == 0 else 0.68, 0.13), 0.2, 1)
  return np.array([red, green, blue], np.float32)


def _add_spots(pixels, retina, scene) -> None:
  size = len(pixels)
  for x, y, radius, tone in retina.spots:
    px, py = scene.pixels(np.array([x, y]))
    r = radius * scene.scale
    reach = int(3 * r) + 2
    top, left = int(py) - reach, int(px) - reach
    if not (0 <= top and top + 2 * reach < size):
      continue
    if not (0 <= left and left + 2 * reach < size):
      continue
    at = np.arange(2 * reach)
    away = np.hypot(at[None, :] + left - px, at[:, None] + top - py) / r
    weight = (abs(tone) * np.exp(-(away**4)))[..., None].astype(np.float32)
    tint = [235, 205, 120] if tone > 0 else [95, 28, 22]
    patch = pixels[top : top + 2 * reach, left : left + 2 * reach]
    patch += (np.array(tint, np.float32) - patch) * 0.65 * weight


def _from(points: np.ndarray, origin: np.ndarray) -> np.ndarray:
  """Returns x and y relative to a point, float32 [2, h, w]."""
  return np.moveaxis(points - origin.astype(np.float32), -1, 0)


def _add_disc(rng, pixels, retina, scene, dd) -> None:
  edge, pale = rng.uniform(0.05, 0.11), rng.uniform(0.75, 0.95)
  lit, ring = rng.uniform(0.6, 0.9), rng.uniform(-0.1, 0.12)
  red = float(pixels[..., 0].mean())
  centre, reach = scene.landmarks[:2], 0.8 * scene.scale
  left, top = np.maximum(np.floor(centre - reach), 0).astype(int)
  right, bottom = np.maximum(np.ceil(centre + reach), 0).astype(int)
  patch, dd = pixels[top:bottom, left:right], dd[top:bottom, left:right]
  if not patch.size:
    return
  axes = retina.disc_axes.astype(np.float32)
  from_disc = np.hypot(*np.moveaxis(dd / axes, -1, 0))
  weight = _step(0.5 - from_disc, edge)
  rim = np.array([red * 1.16 + 18, red * 0.82 + 14, red * 0.5], np.float32)
  # The temporal rim is paler than the nasal.
  paler = (1 + 0.1 * np.clip(dd[..., 0], -0.5, 0.5))[..., None]
  _mix(patch, rim * paler, weight * pale)
  from_cup = np.hypot(*_from(dd, retina.cup_offset))
  cup = _step(0.5 * retina.cup - from_cup, 0.16)
  bright = np.array([red * 1.22 + 30, red * 1.1 + 20, red * 0.8], np.float32)
  _mix(patch, bright, cup * weight * lit)
  patch *= 1 + ring * np.exp(-(((from_disc - 0.56) / 0.05) ** 2))[..., None]


def _step(x, width):
  t = np.clip(x / width + 0.5, 0, 1)
  return t * t * (3 - 2 * t)


def _mix(pixels, colour, weight) -> None:
  pixels += (colour - pixels) * weight[..., None].astype(np.float32)


def _add_vessels(rng, pixels, retina, scene) -> np.ndarray:
  """Darkens the vessels' pixels; returns how much vessel each holds."""
  size = len(pixels)
  fine = 2
  total = np.zeros((size, size), np.float32)
  strength = rng.uniform(0.75, 1.05)
  ends = np.cumsum([len(v.points) for v in retina.vessels])[:-1]
  paths = np.split(
    scene.pixels(np.concatenate([v.points for v in retina.vessels])) * fine,
    ends,
  )
  for is_vein, absorbs in (
    (False, [0.14, 0.42, 0.38]), (True, [0.3, 0.6, 0.5]),
  ):  # fmt: skip
    canvas = Image.new('L', (size * fine, size * fine))
    brush = ImageDraw.Draw(canvas)
    for vessel, path in zip(retina.vessels, paths, strict=True):
      if vessel.is_vein == is_vein:
        _stroke(brush, path, vessel.widths * (scene.scale * fine))
    held = canvas.resize((size, size), Image.Resampling.BOX).filter(
      ImageFilter.GaussianBlur(size / 1400)
    )
    weight = np.asarray(held, np.float32) / 255
    absorbed = np.array(absorbs, np.float32) * np.float32(strength)
    pixels *= 1 - weight[..., None] * absorbed
    total = np.maximum(total, weight)
  return total


def _stroke(brush, path, widths) -> None:
  low, high = path.min(0), path.max(0)
  limit = brush.im.size[0]
  if high.min() < 0 or low.max() > limit:
    return
  points = [tuple(p) for p in path.tolist()]
  run = max(4, len(points) // 5)  # points drawn with one width
  for first in range(0, len(points) - 1, run):
    width = float(widths[min(first + run // 2, len(points) - 1)])
    # Below a pixel a vessel gets fainter, not thinner.
    shade = 255 if width >= 1 else round(255 * max(width, 0.25))
    part = points[first : first + run + 1]
    brush.line(part, shade, max(1, round(width)), joint='curve')


def _expose(rng, image, view, inside, style) -> np.ndarray:
  """Returns the photograph: falling light, cast, noise, mask, JPEG."""
  size = len(image)
  centres = (np.arange(size, dtype=np.float32) + 0.5 - size / 2) / view.radius
  r2 = centres[None, :] ** 2 + centres[:, None] ** 2
  angle = rng.uniform(0, 2 * np.pi)
  slope = centres * float(np.cos(angle)) + centres[:, None] * float(
    np.sin(angle)
  )
  light = 1.08 - rng.uniform(0.12, 0.38) * r2 + rng.uniform(0, 0.14) * slope
  pixels = image * light[..., None].astype(np.float32)
  pixels *= rng.uniform(0.95, 1.05, 3).astype(np.float32)
  grain = rng.standard_normal((size, size, 1), np.float32)
  pixels += grain * rng.uniform(1.0, 3.0)
  # Some rims glow.
  rim = np.exp(-(((np.sqrt(r2) - 1.0) / 0.035) ** 2)) * rng.uniform(0, 26)
  pixels += rim[..., None] * np.array([0.6, 0.8, 1.0], np.float32)
  soft = np.asarray(
    Image.fromarray((_shape(rng, view, inside, style) * 255).astype(np.uint8))
    .filter(ImageFilter.GaussianBlur(size / 900)),
    np.float32,
  ) / 255  # fmt: skip
  # The grain of the dark: the same noise, weaker.
  pixels = pixels * soft[..., None] + (rng.uniform(0, 5) + 0.4 * grain)
  final = np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
  file = io.BytesIO()
  Image.fromarray(final).save(file, 'JPEG', quality=int(rng.integers(84, 97)))
  return np.array(Image.open(file))


def _shape(rng, view, inside, style) -> np.ndarray:
  """Returns the field with its registration notch, bool."""
  if rng.random() < 0.5:
    return inside
  size = len(inside)
  canvas = Image.fromarray(inside)
  brush = ImageDraw.Draw(canvas)
  angle = rng.choice([-0.75, -2.4]) + rng.normal(0, 0.05)
  r = view.radius
  x, y = size / 2 + r * np.cos(angle), size / 2 + r * np.sin(angle)
  k = 0.03 * r
  if style == 0:
    brush.rectangle([x - k, y - k, x + k, y + k], 1)
  else:
    brush.ellipse([x - k, y - k, x + k, y + k], 1)
  return np.array(canvas)
