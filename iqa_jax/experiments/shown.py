"""What a network that learns from drawings is shown (drawings.py)."""

from __future__ import annotations

import collections
from collections.abc import Iterator
import concurrent.futures
import itertools
import multiprocessing
from typing import TYPE_CHECKING

import numpy as np

from iqa_jax import labels, machine

if TYPE_CHECKING:
  import jax

_ERRAND = 48  # drawings that a process is sent for
ROUND = 16 * _ERRAND  # drawings between which the network learns
AHEAD = 32  # errands at most that are done before the network wants them
FIRST = 10_000_000  # seeds of drawings; far from fundus_sim's
_UNSEEN = 20_000_000
_VALIDATION = 480
_SIZE = 320  # drawn, before the network's own size
_SEVERAL = (
  ('focus',),
  ('illumination',),
  ('focus', 'illumination'),
  ('illumination', 'artifacts'),
  ('focus', 'artifacts'),
  ('focus', 'illumination', 'artifacts'),
)

Shown = dict[str, np.ndarray]


def rounds(drawings: int, times: int, size: int, cells: int) -> Iterator[Shown]:
  """Draws in processes: yields validation's photographs, then every round's.

  Validation's, of cameras outside the ranges of training, are shown once.

  Args:
    drawings: to learn from, in rounds of `ROUND`.
    times: that each is shown; the rest as of `show`.
    size: side of what is shown, in pixels.
    cells: side of the grid of the faults' masks.
  """
  seeds = range(FIRST, FIRST + drawings)
  jobs = (
    (seeds[i : i + _ERRAND], times, size, cells, False)
    for i in range(0, drawings, _ERRAND)
  )
  ends = range(_UNSEEN, _UNSEEN + min(_VALIDATION, drawings), _ERRAND)
  unseen = [(range(i, i + _ERRAND), 1, size, cells, True) for i in ends]
  context = multiprocessing.get_context('spawn')
  workers = machine.cpu_count()
  with concurrent.futures.ProcessPoolExecutor(workers, context) as pool:
    running = collections.deque(
      pool.submit(_errand, job)
      for job in [*unseen, *itertools.islice(jobs, AHEAD)]
    )

    def done() -> Shown:
      # Popped, so that what was shown is not held here as well.
      shown = running.popleft().result()
      for job in itertools.islice(jobs, 1):
        running.append(pool.submit(_errand, job))
      return shown

    try:
      yield _joined([running.popleft().result() for _ in unseen])
      while running:
        count = min(ROUND // _ERRAND, len(running))
        yield _joined([done() for _ in range(count)])
    finally:
      pool.shutdown(cancel_futures=True)


def _errand(job: tuple[range, int, int, int, bool]) -> Shown:
  seeds, times, size, cells, unseen = job
  return _joined([show(seed, times, size, cells, unseen) for seed in seeds])


def _joined(parts: list[Shown]) -> Shown:
  return {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}


def show(seed: int, times: int, size: int, cells: int, unseen: bool) -> Shown:
  """Draws one photograph and shows it several times.

  Args:
    seed: of the drawing and of everything that is done with it.
    times: that it is shown.
    size: side of what is shown, in pixels.
    cells: side of the grid of the faults' masks.
    unseen: by cameras outside the ranges of training.

  Returns:
    'image' uint8 [times, size, size, 4], the field of view last; 'fault' uint8
    [times, cells, cells, 3], the share of a cell, of 255, that faults of each
    local criterion cover; 'cause' int8 [times, 3], 2 where there is one; and
    'quality' int32 [times].
  """
  from iqa_jax.photograph import prepare
  from iqa_jax.simulation import cameras

  rng = np.random.default_rng([seed, 7])
  pixels, inside, masks = _draw(seed, rng)
  out: dict[str, list[np.ndarray]] = {
    n: [] for n in ('image', 'fault', 'cause')
  }
  often = 0.3 if masks.any() else 0.5
  for _ in range(times):
    seen, where = pixels, masks.copy()
    planted = rng.random() < often
    for _ in range(planted * (2 if rng.random() < 0.2 else 1)):
      seen = _plant(seen, inside, where, rng)
    field, planes = inside, np.rint(255 * where).astype(np.uint8)
    if rng.random() < 0.95:
      kind = cameras.UNSEEN if unseen else cameras.FAMILIAR
      seen, field, planes = cameras.retake(
        seen, inside, cameras.draw(rng, kind), rng, planes
      )
    whole = np.concatenate([seen, 255 * field[..., None].astype(np.uint8)], -1)
    out['image'].append(prepare.resize(whole, size))
    out['fault'].append(prepare.resize(planes, cells))
    causes = np.asarray(2 * (planes > 127).any((0, 1)), np.int8)
    out['cause'].append(causes)
  arrays: Shown = {name: np.stack(values) for name, values in out.items()}
  arrays['quality'] = np.asarray((arrays['cause'] > 0).any(1), np.int32)
  return arrays


def _draw(
  seed: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns pixels, field of view and a mask for each criterion's faults."""
  from iqa_jax.simulation import faults, lesions, photograph

  several = rng.random() < 0.2
  broken = _SEVERAL[rng.integers(len(_SEVERAL))] if several else ()
  drawn = photograph.draw(seed, _SIZE, broken=broken)
  pixels, inside = drawn.image, drawn.inside
  if rng.random() < 0.65:
    pixels = lesions.apply(pixels, inside, rng)
  masks = np.zeros((*inside.shape, 3), np.float32)
  for kind, mask in drawn.defects.items():
    if drawn.severities[kind] >= faults.THRESHOLD:
      plane = masks[..., labels.LOCAL_CRITERIA.index(faults.CRITERION[kind])]
      np.maximum(plane, mask, out=plane)
  return pixels, inside, masks


def _plant(
  pixels: np.ndarray,
  inside: np.ndarray,
  masks: np.ndarray,
  rng: np.random.Generator,
) -> np.ndarray:
  """Returns pixels with one fault more, and adds it to the masks."""
  from iqa_jax.data import planting
  from iqa_jax.simulation import procedural

  kinds = [(name, False) for name in labels.LOCAL_CRITERIA]
  kinds += [(name, True) for name in procedural.CRITERIA]
  shares = [0.2, 0.2, 0.2, *(0.4 * np.array([*procedural.CRITERIA.values()]))]
  name, unnamed = kinds[rng.choice(len(kinds), p=shares)]
  criterion, seed = labels.CRITERIA.index(name), int(rng.integers(2**32))
  pixels, mask = planting.plant(pixels, inside, criterion, seed, unnamed)
  plane = masks[..., labels.LOCAL_CRITERIA.index(name)]
  np.maximum(plane, mask, out=plane)
  return pixels


def batch(
  held: dict[str, jax.Array], at: jax.Array, key: jax.Array
) -> dict[str, jax.Array]:
  """Returns a batch of those held, each mirrored, turned and toned by chance.

  To be compiled. Turned by half, as indirect lenses do. How they are toned
  (`_toned`) is drawn anew for every batch: a photograph that is shown again
  shows the same faults in other light.
  """
  import jax
  import jax.numpy as jnp

  b = at.shape[0]
  image, fault = held['image'][at], held['fault'][at]
  keys = jax.random.split(key, 3)
  for axes, chosen in zip(((2,), (1, 2)), keys[:2], strict=True):
    turned = jax.random.bernoulli(chosen, 0.5, (b, 1, 1, 1))
    image = jnp.where(turned, jnp.flip(image, axes), image)
    fault = jnp.where(turned, jnp.flip(fault, axes), fault)
  made = {
    'image': _toned(image, keys[2]),
    'fault': fault,
    'cause': held['cause'][at].astype(jnp.int32),
    'quality': held['quality'][at],
    'grade': jnp.full(b, labels.UNKNOWN, jnp.int32),
    'criteria': jnp.full((b, len(labels.CRITERIA)), labels.UNKNOWN, jnp.int32),
    'mask': jnp.ones(b, jnp.float32),
    'index': at.astype(jnp.int32),
  }
  # Of one device.
  made = {name: value[None] for name, value in made.items()}
  return {**made, 'stop': jnp.zeros(1, jnp.float32)}


def _toned(image: jax.Array, key: jax.Array) -> jax.Array:
  """Returns pictures uint8 [b, s, s, 4] as another sensor might give them.

  Inside the field only, and mildly, so that a good photograph stays one:
  channels mixed and scaled, saturation, exposure, gamma, contrast, light that
  falls to one side and towards the rim, and grain.
  """
  import jax
  import jax.numpy as jnp

  from iqa_jax.simulation import cameras

  b, size = image.shape[:2]
  keys = iter(jax.random.split(key, 10))

  def uniform(low: float, high: float, *shape: int) -> jax.Array:
    return jax.random.uniform(next(keys), (b, *shape), None, low, high)

  keep = uniform(0.7, 1.3, 1, 1)  # saturation
  mix = keep * jnp.eye(3) + (1 - keep) * cameras.LUMA[:, None]
  mix *= jnp.exp(0.1 * jax.random.normal(next(keys), (b, 1, 3)))
  mix += 0.04 * jax.random.normal(next(keys), (b, 3, 3))
  light = jnp.maximum(image[..., :3] / 255.0, 1e-3)
  light **= jnp.exp(uniform(-0.2, 0.2, 1, 1, 1))
  light = jnp.einsum('bhwi,bij->bhwj', light, mix)
  at = jnp.linspace(-1, 1, size)
  slope = uniform(-0.08, 0.08, 2)
  fall = (
    slope[:, 0, None, None] * at[:, None]
    + slope[:, 1, None, None] * at
    - uniform(-0.05, 0.2, 1, 1) * (at[:, None] ** 2 + at**2)
  )
  light *= uniform(0.9, 1.15, 1, 1, 1) * (1 + fall)[..., None]
  light = 0.4 + (light - 0.4) * uniform(0.85, 1.15, 1, 1, 1)
  grain = jax.random.normal(next(keys), (b, size, size, 3))
  light += uniform(-0.01, 0.012, 1, 1, 1).clip(0) * grain
  pixels = jnp.rint(255 * light.clip(0, 1)).astype(jnp.uint8)
  pixels = jnp.where(image[..., 3:] > 127, pixels, image[..., :3])
  return jnp.concatenate([pixels, image[..., 3:]], -1)
