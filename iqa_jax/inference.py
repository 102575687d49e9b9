"""A trained model and its predictions, without TensorFlow or orbax."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
import dataclasses
import json
import os
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from iqa_jax import config as config_lib
from iqa_jax import devices, models, processes, run_directory
from iqa_jax.tasks import Task

_IN_FLIGHT = 2  # batches computed while the host reads the next ones


@dataclasses.dataclass(frozen=True)
class Loaded:
  """A trained model, ready to predict.

  Attributes:
    model: the classifier.
    variables: {'params': ..., 'batch_stats': ...}, on this process's devices.
    task: what the logits mean.
    config: the run's configuration.
    record: model.json (operating point, calibration, ...).
    digest: sha256 of the weights, hex.
    image_size: side of the input in pixels.
  """

  model: nn.Module
  variables: dict[str, Any]
  task: Task
  config: ml_collections.ConfigDict
  record: dict[str, Any]
  digest: str
  image_size: int

  @property
  def flip_tta(self) -> bool:
    """Whether the operating point is one of flip-averaged logits."""
    return bool(self.record.get('operating_point', {}).get('flip_tta'))

  def judged(self, variables: Any, x: Any, logits: Any) -> Any:
    """Returns the logits that the operating point is one of.

    Args:
      variables: of the model.
      x: normalised images [b, s, s, 3].
      logits: theirs, [b, k]; averaged with those of the mirror images where
        `flip_tta` says so.
    """
    if not self.flip_tta:
      return logits
    return (logits + self.model.apply(variables, x[:, :, ::-1])) / 2


def load(workdir: str | os.PathLike) -> Loaded:
  """Loads the best model of a run directory.

  In a run of several processes each reads it, so they must all see it.

  Raises:
    RunDirectoryError: there is none, or it is damaged, or its weights are not
      those of the model that its record describes.
  """
  saved = run_directory.load_model(workdir)
  where = f'{workdir}/model/model.json'
  try:
    config = config_lib.from_json(json.dumps(saved.record['config']))
    task = Task.from_config(config)
    model = models.from_config(config, task.num_outputs)
    image_size = int(saved.record['image_size'])
    expected = models.shapes(model, image_size)
  except (KeyError, TypeError, ValueError) as error:
    raise run_directory.RunDirectoryError(
      f'{where} does not describe a model: {error}'
    ) from error
  _check(saved.variables, expected, f'{workdir}/model')
  return Loaded(
    model=model,
    variables=devices.place(saved.variables),
    task=task,
    config=config,
    record=saved.record,
    digest=saved.digest,
    image_size=image_size,
  )


def predict(
  loaded: Loaded,
  batches: Iterable[Mapping[str, Any]],
  *,
  flip_tta: bool | None = None,
) -> dict[str, np.ndarray]:
  """Returns the predictions of every real example of `batches`, once each.

  Args:
    loaded: a trained model.
    batches: dicts of 'image' uint8 [b, s, s, 3], 'mask' float [b], 'index'
      int [b] and 'image_id' str [b]; in runs of several processes each gives
      its own share, the same number of batches of the same size.
    flip_tta: average the logits with those of the mirror image; None as the
      run's operating point was found.

  Returns:
    In the order of the batches, over all processes: 'index' int64 [n],
    'image_id' str [n], 'logits' float32 [n, k], 'p_inadequate' float32 [n] of
    these logits, and 'spread' float32 [n], the standard deviation of
    p_inadequate over the views (0 with one view).
  """
  if flip_tta is None:
    flip_tta = loaded.flip_tta
  return predict_with(
    make_predictor(loaded.model, loaded.task, flip_tta=flip_tta),
    loaded.variables,
    loaded.task,
    batches,
  )


def make_predictor(
  model: nn.Module,
  task: Task,
  *,
  start: str | None = None,
  flip_tta: bool = False,
) -> Callable[[Any, jax.Array], tuple[jax.Array, jax.Array]]:
  """Returns (variables, inputs [d, b, ...]) -> (logits, spread), compiled.

  Inputs are uint8 images, or the maps of feature point `start`. It runs on
  this process's devices alone, so processes needn't keep step.
  """

  def forward(variables: Any, x: Any):
    if start is None:
      x = models.normalize(x)
    views = [x, x[:, :, ::-1]] if flip_tta else [x]
    outputs: list[Any] = [
      model.apply(variables, view, start=start) for view in views
    ]
    logits = jnp.stack(outputs)
    p = jax.vmap(task.p_inadequate)(logits)
    return logits.mean(0), p.std(0)

  return devices.parallel(forward, in_axes=(None, 0))


def predict_with(
  predictor: Callable,
  variables: Any,
  task: Task,
  batches: Iterable[Mapping[str, Any]],
) -> dict[str, np.ndarray]:
  """`predict` with a function of `make_predictor` and variables of its model.

  Batches hold 'features' where the predictor starts from a feature point.
  """
  waiting: deque = deque()
  collected: list[dict[str, np.ndarray]] = []

  def collect():
    batch, results = waiting.popleft()
    size = len(batch['mask'])
    logits, spread = devices.joined(results, size)
    collected.append(
      {
        'mask': np.asarray(batch['mask']) > 0,
        'index': np.asarray(batch['index'], np.int64),
        'image_id': np.asarray(batch['image_id'], str),
        'logits': logits,
        'spread': spread,
      }
    )

  for batch in batches:
    inputs = 'features' if 'features' in batch else 'image'
    sharded = devices.shard({k: batch[k] for k in (inputs, 'mask')})
    waiting.append((batch, predictor(variables, sharded[inputs])))
    if len(waiting) > _IN_FLIGHT:
      collect()
  while waiting:
    collect()
  if not collected:
    raise ValueError('there is nothing to predict: no batch was given')
  rows = _in_order(collected)
  rows['p_inadequate'] = np.asarray(
    task.p_inadequate(jnp.asarray(rows['logits']))
  )
  return rows


def _in_order(collected) -> dict[str, np.ndarray]:
  """Returns the real rows over all processes, in the order of the plan."""
  sizes = [len(rows['mask']) for rows in collected]
  joined = {
    key: np.concatenate([rows[key] for rows in collected])
    for key in collected[0]
  }
  if jax.process_count() > 1:
    # Names differ in length from process to process; arrays mustn't.
    width = joined['image_id'].dtype.itemsize // 4
    widest = int(processes.gather({'w': np.array([width])})['w'].max())
    joined['image_id'] = joined['image_id'].astype(f'<U{max(widest, 1)}')
  stacked = processes.gather(joined)

  def interleave(value):
    # [processes, batches * share, ...]: batch by batch, process by process.
    by_batch = np.split(value, np.cumsum(sizes)[:-1], axis=1)
    return np.concatenate([v.reshape(-1, *v.shape[2:]) for v in by_batch])

  rows = {key: interleave(value) for key, value in stacked.items()}
  real = rows.pop('mask')
  return {key: value[real] for key, value in rows.items()}


def _check(variables, expected, where) -> None:
  """Raises unless `variables` have the structure and shapes expected."""

  def shapes(tree):
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
      jax.tree_util.keystr(path, simple=True, separator='/'): leaf.shape
      for path, leaf in leaves
    }

  found, wanted = shapes(variables), shapes(expected)
  for name in sorted(found.keys() | wanted.keys()):
    if found.get(name) != wanted.get(name):
      raise run_directory.RunDirectoryError(
        f'{where}: {name} is {found.get(name, "absent")}, the model that '
        f'model.json describes has {wanted.get(name, "no such tensor")}'
      )
