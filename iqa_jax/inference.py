"""Predictions of streams of batches, on any number of devices and processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from iqa_jax import devices, models, processes
from iqa_jax.aliases import PyTree, Record, Variables
from iqa_jax.models.classifier import Classifier
from iqa_jax.tasks import Task
from iqa_jax.trained import Trained

_IN_FLIGHT = 2  # batches computed while the host reads the next ones


def predict(
  loaded: Trained, batches: Iterable[Record], *, flip_tta: bool | None = None
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
    flip_tta = loaded.judges.flip_tta
  return predict_with(
    make_predictor(loaded.model, loaded.task, flip_tta=flip_tta),
    loaded.variables,
    loaded.task,
    batches,
  )


def make_predictor(
  model: Classifier,
  task: Task,
  *,
  start: str | None = None,
  flip_tta: bool = False,
) -> Callable[[Variables, jax.Array], tuple[jax.Array, jax.Array]]:
  """Returns (variables, inputs [d, b, ...]) -> (logits, spread), compiled.

  Inputs are uint8 images, or the maps of feature point `start`. It runs on
  this process's devices alone, so processes needn't keep step.
  """

  def forward(variables: Variables, x: Any) -> tuple[jax.Array, jax.Array]:
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
  variables: Variables,
  task: Task,
  batches: Iterable[Record],
) -> dict[str, np.ndarray]:
  """`predict` with a function of `make_predictor` and variables of its model.

  Batches hold 'features' where the predictor starts from a feature point.
  """
  collected: list[dict[str, np.ndarray]] = []

  def begun() -> Iterator[tuple[Record, PyTree]]:
    for batch in batches:
      inputs = 'features' if 'features' in batch else 'image'
      sharded = devices.shard({k: batch[k] for k in (inputs, 'mask')})
      yield batch, predictor(variables, sharded[inputs])

  for batch, results in devices.ahead(begun(), _IN_FLIGHT):
    logits, spread = devices.joined(results, len(batch['mask']))
    collected.append(
      {
        'mask': np.asarray(batch['mask']) > 0,
        'index': np.asarray(batch['index'], np.int64),
        'image_id': np.asarray(batch['image_id'], str),
        'logits': logits,
        'spread': spread,
      }
    )
  if not collected:
    raise ValueError('there is nothing to predict: no batch was given')
  rows = _in_order(collected)
  rows['p_inadequate'] = np.asarray(
    task.p_inadequate(jnp.asarray(rows['logits']))
  )
  return rows


def _in_order(
  collected: Sequence[Mapping[str, np.ndarray]],
) -> dict[str, np.ndarray]:
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

  def interleave(value: np.ndarray) -> np.ndarray:
    # [processes, batches * share, ...]: batch by batch, process by process.
    by_batch = np.split(value, np.cumsum(sizes)[:-1], axis=1)
    return np.concatenate([v.reshape(-1, *v.shape[2:]) for v in by_batch])

  rows = {key: interleave(value) for key, value in stacked.items()}
  real = rows.pop('mask')
  return {key: value[real] for key, value in rows.items()}
