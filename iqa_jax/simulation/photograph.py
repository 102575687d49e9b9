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
from iqa_jax.photograph import geometry
from iqa_jax.simulation import anatomy, faults, field

# Two cameras as in BRSet: names, fields of view in degrees, and looks.
STYLES = ('simulated A', 'simulated B')
# Side in pixels of what the dataset's builder configs draw, its default first.
SIZES = {'demo': 128, '512': 512, 'brset_like': 512, 'cameras': 320}
_TRIES = 400
# White, yellowish, greenish, bluish.
_RIM_TINTS = ((0.9, 0.9, 0.8), (1, 0.9, 0.5), (0.6, 0.9, 0.6), (0.6, 0.8, 1))
_COARSE = 256  # pixels across what is drawn coarsely and enlarged


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
  ground = Image.fromarray(_ground(rng, retina, scene, size, style))
  if ground.width < size:
    ground = ground.resize((size, size), Image.Resampling.BILINEAR)
  pixels = np.array(ground, np.float32)
  _add_spots(pixels, retina, scene)
  _add_disc(rng, pixels, retina, scene)
  vessels = _add_vessels(rng, pixels, retina, scene)
  return pixels, vessels


def _ground(rng, retina, scene, size, style):
  """Returns what has no sharp edge, uint8 [n, n, 3], at most `_COARSE` wide."""
  n = min(size, _COARSE)
  dd = scene.retinal(_grid(n) * (size / n))
  x, y = dd[..., 0], dd[..., 1]
  from_disc, from_fovea = np.hypot(x, y), np.hypot(*_from(dd, retina.fovea))
  pixels = np.empty((n, n, 3), np.float32)
  pixels[:] = _fundus_colour(rng, retina, style)
  shape = (n, n)
  mottle = (
    0.5 * faults.smooth_noise(rng, shape, 4)
    + 0.3 * faults.smooth_noise(rng, shape, 9)
    + 0.2 * faults.smooth_noise(rng, shape, 22)
  )
  # The nerve fibres about the disc are thick and scatter light.
  glow = rng.uniform(0.0, 0.25) * np.exp(-((from_disc / 1.3) ** 2))
  pixels *= (1 + rng.uniform(0.05, 0.16) * mottle + glow)[..., None]
  # The choroid's own vessels shine through where there is little pigment.
  ridges = 1 - np.abs(
    faults.smooth_noise(rng, shape, 16)
    + 0.5 * faults.smooth_noise(rng, shape, 21)
  )
  tessellation = np.clip(ridges, 0, 1) ** 3 * max(0.0, 0.6 - retina.pigment)
  pixels += tessellation[..., None] * np.array([34, 20, 10], np.float32)

  macula = np.exp(-((from_fovea / 0.85) ** 2))
  centre = np.exp(-((from_fovea / 0.28) ** 2))
  dark = rng.uniform(0.1, 0.24) * macula + rng.uniform(0.1, 0.24) * centre
  pixels *= 1 - dark[..., None] * np.array([0.9, 1.15, 1.0], np.float32)
  if retina.age < 40:  # the young fundus is glossy
    sheen = np.exp(-(((from_disc - 1.1) / 0.7) ** 2)) * (
      0.5 + 0.5 * np.cos(17 * np.arctan2(y, x) + 3 * mottle)
    )
    sheen += 0.8 * np.exp(-(((from_fovea - 0.75) / 0.16) ** 2))
    gloss = 10 * (40 - retina.age) / 22
    pixels += gloss * sheen[..., None] * np.array([0.7, 1, 0.8], np.float32)
  return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


def _fundus_colour(rng, retina, style) -> np.ndarray:
  """Returns the mean colour, spread as in Good photographs of EyePACS."""
  pale, cool = rng.normal(size=2)
  red = np.clip(215 - 70 * retina.pigment + rng.normal(0, 26), 80, 200)
  green = red * np.clip(0.605 + 0.1 * pale, 0.38, 0.85)
  blue = green * np.clip(
    0.5 + 0.1 * style + 0.2 * (0.67 * pale + 0.74 * cool), 0.25, 1
  )
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


def _add_disc(rng, pixels, retina, scene) -> None:
  edge, pale = rng.uniform(0.05, 0.11), rng.uniform(0.75, 0.95)
  lit, ring = rng.uniform(0.6, 0.9), rng.uniform(-0.1, 0.12)
  centre, reach = scene.landmarks[:2], 0.8 * scene.scale
  left, top = np.maximum(np.floor(centre - reach), 0).astype(int)
  right, bottom = np.maximum(np.ceil(centre + reach), 0).astype(int)
  patch = pixels[top:bottom, left:right]
  if not patch.size:
    return
  dd = scene.retinal(_grid(len(pixels))[top:bottom, left:right])
  axes = retina.disc_axes.astype(np.float32)
  from_disc = np.hypot(*np.moveaxis(dd / axes, -1, 0))
  weight = _step(0.5 - from_disc, edge)
  colour = patch.mean((0, 1))
  rim = colour * np.array([1.15, 1.25, 1.1]) + [45, 32, 14]
  # Red saturates first: more green would look green where a fault darkens it.
  rim = np.minimum(rim, [252, 215, 185])
  # The temporal rim is paler than the nasal.
  paler = (1 + 0.1 * np.clip(dd[..., 0], -0.5, 0.5))[..., None]
  _mix(patch, rim * paler, weight * pale)
  from_cup = np.hypot(*_from(dd, retina.cup_offset))
  cup = _step(0.5 * retina.cup - from_cup, 0.16)
  bright = colour * np.array([1.25, 1.4, 1.5]) + [65, 60, 45]
  bright = np.minimum(bright, [252, 232, 205])
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
  fine = max(2, 512 // size)
  total = np.zeros((size, size), np.float32)
  strength, blur = rng.uniform(0.75, 1.2), rng.uniform(0.001, 0.0022)
  outlines = _outlines(retina.vessels, scene, fine)
  for is_vein, absorbs in (
    (False, [0.06, 0.26, 0.22]), (True, [0.17, 0.4, 0.34]),
  ):  # fmt: skip
    canvas = Image.new('L', (size * fine, size * fine))
    brush = ImageDraw.Draw(canvas)
    for vessel, (outline, shade) in zip(retina.vessels, outlines, strict=True):
      if vessel.is_vein == is_vein and outline:
        brush.polygon(outline, shade)
    held = canvas.reduce(fine).filter(ImageFilter.GaussianBlur(size * blur))
    weight = np.asarray(held, np.float32) / 255
    for channel, absorbed in enumerate(absorbs):
      pixels[..., channel] *= 1 - absorbed * strength * weight
    total = np.maximum(total, weight)
  return total


def _outlines(vessels, scene, fine):
  """Returns each vessel's (outline, shade); empty where out of the frame."""
  ends = np.cumsum([len(v.points) for v in vessels])
  path = scene.pixels(np.concatenate([v.points for v in vessels])) * fine
  widths = np.concatenate([v.widths for v in vessels]) * (scene.scale * fine)
  along = np.gradient(path, axis=0)
  first, last = np.r_[0, ends[:-1]], ends - 1
  along[first] = path[first + 1] - path[first]
  along[last] = path[last] - path[last - 1]
  across = along[:, ::-1] * [-1, 1] / np.hypot(*along.T)[:, None]
  # A polygon's rim is drawn too and makes it a pixel wider.
  across *= np.maximum(widths - 1, 0)[:, None] / 2
  sides = (path + across).astype(np.float32), (path - across).astype(np.float32)
  frame = 2 * fine * scene.centre  # the field is in the frame's middle
  low = np.minimum.reduceat(path, first)
  high = np.maximum.reduceat(path, first)
  seen = ((high > 0) & (low < frame)).all(1)
  # Below a pixel a vessel gets fainter, not thinner.
  shades = np.rint(
    255
    * np.clip(np.add.reduceat(widths, first) / np.diff(ends, prepend=0), 0.1, 1)
  )
  return [
    (
      np.concatenate([sides[0][a:b], sides[1][a:b][::-1]]).ravel().tolist()
      if shown
      else [],
      int(shade),
    )
    for a, b, shown, shade in zip(first, ends, seen, shades, strict=True)
  ]


def _expose(rng, image, view, inside, style) -> np.ndarray:
  """Returns the photograph: falling light, cast, noise, mask, JPEG."""
  size = len(image)
  n = min(size, _COARSE)
  centres = (np.arange(n, dtype=np.float32) + 0.5 - n / 2) * (
    size / n / view.radius
  )
  r2 = centres[None, :] ** 2 + centres[:, None] ** 2
  angle = rng.uniform(0, 2 * np.pi)
  slope = centres * float(np.cos(angle)) + centres[:, None] * float(
    np.sin(angle)
  )
  light = 1.15 - rng.uniform(0.15, 0.65) * r2 + rng.uniform(0, 0.3) * slope
  light += rng.uniform(0, 0.35) * faults.smooth_noise(rng, (n, n), 3)
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
