"""A network that learns from drawings alone, each drawn for it and thrown away.

  python -m iqa_jax.experiments.drawings --output=runs/drawings

Processes draw photographs, good ones and bad ones; each is shown a few times,
with another fault, by another camera, and its cells are taught where every
fault is. Nothing is stored: the last few thousand shown are held in memory,
from which the updates draw their batches. The output is a run directory that
`--config.model.pretrained` takes (configs/bundled.py). Made for a GPU and many
cores; on a few cores it takes hours. Reproducible for one number of devices.
"""

from __future__ import annotations

from collections.abc import Iterator
import concurrent.futures
import json
import multiprocessing
import pathlib
from typing import Any

from absl import app, flags
import ml_collections
import numpy as np
import tqdm

from iqa_jax import command, labels, machine

_OUTPUT = flags.DEFINE_string('output', None, 'run directory to write')
_DRAWINGS = flags.DEFINE_integer('drawings', 17_664, 'photographs to draw', 1)
_SHOWN = flags.DEFINE_integer('shown', 6, 'times that each is shown', 1)
_UPDATES = flags.DEFINE_integer('updates', 8_000, 'of the network, in all', 1)
_BATCH = flags.DEFINE_integer('batch', 64, 'photographs of an update', 1)
_HELD = flags.DEFINE_integer('held', 20_000, 'shown photographs in memory', 1)
_SEED = flags.DEFINE_integer('seed', 0, 'of everything')
_SMALL = flags.DEFINE_bool('small', False, 'a tiny network, to try it out')

_JOB = 48  # drawings of one process's errand
_ERRANDS = 16  # of a round, after which the network learns
_FIRST = 10_000_000  # seeds of drawings; far from fundus_sim's
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
_PLACES = [labels.CRITERIA.index(name) for name in labels.LOCAL_CRITERIA]

Shown = dict[str, np.ndarray]


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
  out: dict[str, list[Any]] = {n: [] for n in ('image', 'fault', 'cause')}
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


def _errand(job: tuple[range, int, int, int, bool]) -> Shown:
  seeds, times, size, cells, unseen = job
  return _joined([show(seed, times, size, cells, unseen) for seed in seeds])


def _joined(parts: list[Shown]) -> Shown:
  return {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}


def _config() -> ml_collections.ConfigDict:
  from iqa_jax import config as config_lib

  config = config_lib.variant('bundled')
  config.model.pretrained = ''
  if _SMALL.value:
    config.model.update({'width': 0.06, 'cells': 8, 'cell_units': 8})
    config.data.image_size = 64
  return config


def _rounds(size: int, cells: int) -> Iterator[Shown]:
  """Yields validation's photographs, then those of each round of training."""
  seeds = range(_FIRST, _FIRST + _DRAWINGS.value)
  jobs = [
    (seeds[i : i + _JOB], _SHOWN.value, size, cells, False)
    for i in range(0, len(seeds), _JOB)
  ]
  ends = range(_UNSEEN, _UNSEEN + min(_VALIDATION, _DRAWINGS.value), _JOB)
  unseen = [(range(i, i + _JOB), 1, size, cells, True) for i in ends]
  context = multiprocessing.get_context('spawn')
  workers = machine.cpu_count()
  with concurrent.futures.ProcessPoolExecutor(workers, context) as pool:
    running = [pool.submit(_errand, job) for job in [*unseen, *jobs]]
    try:
      yield _joined([running.pop(0).result() for _ in unseen])
      while running:
        count = min(_ERRANDS, len(running))
        # Popped, so that what was shown is not held here as well.
        yield _joined([running.pop(0).result() for _ in range(count)])
    finally:
      pool.shutdown(cancel_futures=True)


class _Held:
  """The photographs shown last, on the device, as a ring."""

  def __init__(self, capacity: int):
    self.capacity, self.count, self._next = capacity, 0, 0
    self.arrays: dict[str, Any] = {}

  def add(self, shown: Shown) -> None:
    import jax
    import jax.numpy as jnp

    n = len(shown['quality'])
    if not self.arrays:
      self.capacity = max(self.capacity, n)
      self.arrays = {
        name: jnp.zeros((self.capacity, *x.shape[1:]), x.dtype)
        for name, x in shown.items()
      }
    at = (self._next + np.arange(n)) % self.capacity
    put = jax.jit(lambda held, i, x: held.at[i].set(x), donate_argnums=0)
    self.arrays = {
      name: put(held, at, shown[name]) for name, held in self.arrays.items()
    }
    self._next = int((at[-1] + 1) % self.capacity)
    self.count = min(self.count + n, self.capacity)


def _batch(held: dict[str, Any], at: Any, key: Any) -> dict[str, Any]:
  """Returns a batch of those held, each mirrored, turned and tinted by chance.

  To be compiled. Turned by half, as indirect lenses do; a tint scales the
  channels by up to a tenth.
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
  tint = jax.random.uniform(keys[2], (b, 1, 1, 3), minval=0.9, maxval=1.1)
  pixels = jnp.clip(jnp.rint(image[..., :3] * tint), 0, 255)
  batch = {
    'image': jnp.concatenate([pixels.astype(jnp.uint8), image[..., 3:]], -1),
    'fault': fault,
    'cause': held['cause'][at].astype(jnp.int32),
    'quality': held['quality'][at],
    'grade': jnp.full(b, labels.UNKNOWN, jnp.int32),
    'criteria': jnp.full((b, len(labels.CRITERIA)), labels.UNKNOWN, jnp.int32),
    'mask': jnp.ones(b, jnp.float32),
    'index': at.astype(jnp.int32),
  }
  # Of one device.
  batch = {name: value[None] for name, value in batch.items()}
  return {**batch, 'stop': jnp.zeros(1, jnp.float32)}


def main() -> None:
  if not _OUTPUT.value:
    raise app.UsageError('--output is needed')
  import jax
  import jax.numpy as jnp

  from iqa_jax import run_directory
  from iqa_jax.training import step as step_lib

  config = _config()
  rounds = _rounds(config.data.image_size, config.model.cells)
  validation, first = next(rounds), next(rounds)
  model, update, state = _begin(config, first['image'][:256])
  held = _Held(_HELD.value)
  draw = jax.jit(_batch)
  order = np.random.default_rng([_SEED.value, 8])
  count = -(-_DRAWINGS.value // (_JOB * _ERRANDS))
  log: list[dict[str, float]] = []
  done = 0
  bar = tqdm.tqdm(total=_UPDATES.value, unit='update', disable=None)
  for number in range(count):
    held.add(first if number == 0 else next(rounds))
    until = round(_UPDATES.value * (number + 1) / count)
    losses: list[Any] = []
    while done < until:
      at = order.integers(0, held.count, _BATCH.value)
      key = jax.random.fold_in(jax.random.key(_SEED.value), done)
      state, metrics = update(state, draw(held.arrays, jnp.asarray(at), key))
      losses.append(metrics['loss'])
      done += 1
      bar.update()
    told = _validate(model, step_lib.evaluated(state), validation)
    log.append({'updates': done, 'loss': float(np.mean(losses)), **told})
    tqdm.tqdm.write(json.dumps(log[-1]))
    # Every round, so that what was learned outlives an interruption.
    record = {'config': json.loads(config.to_json()), 'history': log}
    weights = jax.device_get(step_lib.evaluated(state))
    run_directory.save_model(_OUTPUT.value, weights, record)
  bar.close()
  print(f'a network that knows drawings, in {pathlib.Path(_OUTPUT.value)}')


def _begin(
  config: ml_collections.ConfigDict, images: np.ndarray
) -> tuple[Any, Any, Any]:
  """Returns the model, its training step and the state to begin with."""
  import jax

  from iqa_jax import config as config_lib
  from iqa_jax import devices, models, tasks
  from iqa_jax.training import phases
  from iqa_jax.training import step as step_lib

  fast = jax.default_backend() != 'cpu'
  config = config.copy_and_resolve_references()
  config.model.dtype = 'bfloat16' if fast else 'float32'
  model = models.from_config(config, 2, axis_name=devices.AXIS)
  variables = models.init(
    model, jax.random.key(_SEED.value), config.data.image_size
  )
  variables = _on_one_scale(model, variables, images)
  learning = phases.learning(
    config_lib.phase(
      learning_rate=1e-3,
      schedule='cosine',
      epochs=1,
      warmup_epochs=0.05,
      weight_decay=0.01,
    ),
    variables['params'],
    model.stages,
    steps_per_epoch=_UPDATES.value,
    clip_norm=1.0,
  )
  task = tasks.Task.from_config(config)
  update = step_lib.make_train_step(model, task, learning, ema_decay=0.998)
  state = step_lib.create_state(variables)
  state = step_lib.begin_phase(state, learning, ema=True)
  return model, update, devices.place(state)


def _on_one_scale(model: Any, variables: Any, images: np.ndarray) -> Any:
  """Returns variables whose cells see features of mean 0 and deviation 1."""
  import jax
  import jax.numpy as jnp

  from iqa_jax import models

  @jax.jit
  def moments(v: Any, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    x = model.apply(v, models.normalize(images), stop='cells')
    share, x = x[..., -1:], x[..., :-1]
    mean = (x * share).sum((0, 1, 2)) / share.sum()
    return mean, ((x - mean) ** 2 * share).sum((0, 1, 2)) / share.sum()

  mean, var = moments(variables, images)
  scale = {'mean': mean, 'var': jnp.where(var > 1e-8, var, 1.0)}
  stats = {'neck': {'evidence': scale}}
  return {**variables, 'batch_stats': {**variables['batch_stats'], **stats}}


def _validate(model: Any, variables: Any, shown: Shown) -> dict[str, float]:
  """Returns AUCs of verdict and cells on cameras outside those of training."""
  import jax
  from sklearn.metrics import roc_auc_score

  from iqa_jax import models

  judge = _VALIDATORS.setdefault(
    id(model),
    jax.jit(
      lambda v, images: model.apply(
        v, models.normalize(images), mutable=['intermediates']
      )
    ),
  )
  odds, maps, share = [], [], []
  for begin in range(0, len(shown['image']), 60):
    logits, kept = judge(variables, shown['image'][begin : begin + 60])
    found = kept['intermediates']
    odds.append(np.asarray(logits[:, 1] - logits[:, 0]))
    maps.append(np.asarray(found['evidence'][0]))
    share.append(np.asarray(found['neck']['evidence']['field_share'][0]))
  figures = {
    'verdict_auc': float(roc_auc_score(shown['quality'], np.concatenate(odds)))
  }
  inside = np.concatenate(share) > 0.5
  for i, name in enumerate(labels.LOCAL_CRITERIA):
    truth = shown['fault'][..., i][inside] > 127
    figures[name] = float(
      roc_auc_score(truth, np.concatenate(maps)[..., i][inside])
    )
  return figures


_VALIDATORS: dict[int, Any] = {}

if __name__ == '__main__':
  command.run(main)
