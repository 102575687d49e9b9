"""A network that learns from drawings alone, each drawn for it and thrown away.

  python -m iqa_jax.experiments.drawings --output=runs/drawings

Processes draw photographs, good ones and bad ones; each is shown a few times,
with another fault, by another camera, and its cells are taught where every
fault is. Nothing is stored: the last shown are held in the device's memory (at
256 px a quarter of a megabyte each), from which the updates draw their batches.
The output is a run directory that `--config.model.pretrained` takes
(configs/bundled.py), and so do other configs with the same network and width:
few labels are enough for a head on what it has learned. Made for a GPU and many
cores, it uses one device; on a few cores it takes hours.
"""

from __future__ import annotations

from collections.abc import Callable
import json
import pathlib
from typing import TYPE_CHECKING, Any, TypeAlias

from absl import app, flags
import ml_collections
import numpy as np
import tqdm

from iqa_jax import command, labels
from iqa_jax.aliases import PyTree, Variables
from iqa_jax.experiments import shown as shown_lib
from iqa_jax.experiments.shown import Shown

if TYPE_CHECKING:
  import jax

  from iqa_jax.models.classifier import Classifier

_OUTPUT = flags.DEFINE_string('output', None, 'run directory to write')
_DRAWINGS = flags.DEFINE_integer('drawings', 22_272, 'photographs to draw', 1)
_SHOWN = flags.DEFINE_integer('shown', 6, 'times that each is shown', 1)
_UPDATES = flags.DEFINE_integer('updates', 7_200, 'of the network, in all', 1)
_BATCH = flags.DEFINE_integer('batch', 64, 'photographs of an update', 1)
_HELD = flags.DEFINE_integer('held', 60_000, 'shown photographs in memory', 1)
_SEED = flags.DEFINE_integer('seed', 0, 'of everything')
_NETWORK = flags.DEFINE_enum(
  'network', None, ['vgg16', 'resnet50'], "that learns (configs/bundled.py's)"
)
_WIDTH = flags.DEFINE_float(
  'width', None, "share of the network's channels (configs/bundled.py's)", 0.01
)
_SMALL = flags.DEFINE_bool('small', False, 'a tiny network, to try it out')


def _config() -> ml_collections.ConfigDict:
  from iqa_jax import config as config_lib

  config = config_lib.variant('bundled')
  config.model.pretrained = ''
  config.model.name = _NETWORK.value or config.model.name
  config.model.width = _WIDTH.value or config.model.width
  if _SMALL.value:
    config.model.update({'width': 0.06, 'cells': 8, 'cell_units': 8})
    config.data.image_size = 64
  return config


# From variables and pictures to logits and intermediates.
_Judge: TypeAlias = (
  'Callable[[Variables, np.ndarray], tuple[jax.Array, PyTree]]'
)


class _Held:
  """The photographs shown last, on the device, as a ring."""

  def __init__(self, capacity: int):
    import jax

    self.capacity, self.count, self._next = capacity, 0, 0
    self.arrays: dict[str, jax.Array] = {}
    self._put = jax.jit(
      lambda held, at, shown: held.at[at].set(shown), donate_argnums=0
    )

  def add(self, shown: Shown) -> None:
    import jax.numpy as jnp

    n = len(shown['quality'])
    if not self.arrays:
      self.capacity = max(self.capacity, n)
      self.arrays = {
        name: jnp.zeros((self.capacity, *x.shape[1:]), x.dtype)
        for name, x in shown.items()
      }
    at = (self._next + np.arange(n)) % self.capacity
    self.arrays = {
      name: self._put(held, at, shown[name])
      for name, held in self.arrays.items()
    }
    self._next = int((at[-1] + 1) % self.capacity)
    self.count = min(self.count + n, self.capacity)


def main() -> None:
  if not _OUTPUT.value:
    raise app.UsageError('--output is needed')
  import jax
  import jax.numpy as jnp

  from iqa_jax import run_directory
  from iqa_jax.training import step as step_lib

  config = _config()
  rounds = shown_lib.rounds(
    _DRAWINGS.value, _SHOWN.value, config.data.image_size, config.model.cells
  )
  validation, first = next(rounds), next(rounds)
  model, update, state = _begin(config, first['image'][:256])
  held = _Held(min(_HELD.value, _DRAWINGS.value * _SHOWN.value))
  draw, judge = jax.jit(shown_lib.batch), _judge(model)
  order = np.random.default_rng([_SEED.value, 8])
  count = -(-_DRAWINGS.value // shown_lib.ROUND)
  log: list[dict[str, float]] = []
  done = 0
  bar = tqdm.tqdm(total=_UPDATES.value, unit='update', disable=None)
  for number in range(count):
    held.add(first if number == 0 else next(rounds))
    until = round(_UPDATES.value * (number + 1) / count)
    losses: list[jax.Array] = []
    while done < until:
      at = order.integers(0, held.count, _BATCH.value)
      key = jax.random.fold_in(jax.random.key(_SEED.value), done)
      state, metrics = update(state, draw(held.arrays, jnp.asarray(at), key))
      losses.append(metrics['loss'])
      done += 1
      bar.update()
    told = _validate(judge, step_lib.evaluated(state), validation)
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
) -> tuple[Classifier, Callable[..., PyTree], PyTree]:
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


def _on_one_scale(
  model: Classifier, variables: Variables, images: np.ndarray
) -> Variables:
  """Returns variables whose cells see features of mean 0 and deviation 1."""
  import jax

  from iqa_jax import models
  from iqa_jax.training import standardization

  @jax.jit
  def moments(v: Variables, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    x: Any = model.apply(v, models.normalize(images), stop='cells')
    share, x = x[..., -1:], x[..., :-1]
    mean = (x * share).sum((0, 1, 2)) / share.sum()
    return mean, ((x - mean) ** 2 * share).sum((0, 1, 2)) / share.sum()

  return standardization.placed(
    variables, ('neck', 'evidence'), *moments(variables, images)
  )


def _judge(model: Classifier) -> _Judge:
  """Returns what gives logits and intermediates of pictures, compiled."""
  import jax

  from iqa_jax import models

  return jax.jit(
    lambda variables, images: model.apply(
      variables, models.normalize(images), mutable=['intermediates']
    )
  )


def _validate(
  judge: _Judge,
  variables: Variables,
  shown: Shown,
) -> dict[str, float]:
  """Returns AUCs of verdict and cells on cameras outside those of training."""
  from sklearn.metrics import roc_auc_score

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


if __name__ == '__main__':
  command.run(main)
