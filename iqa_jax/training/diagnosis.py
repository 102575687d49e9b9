"""Where a training step stopped being finite."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from iqa_jax import models
from iqa_jax.aliases import PyTree, Variables
from iqa_jax.models.classifier import HEAD_INPUT, Classifier
from iqa_jax.tasks import Task
from iqa_jax.training import phases


def of_step(
  model: Classifier,
  task: Task,
  learning: phases.Learning,
  variables: Variables,
  batch: Mapping[str, np.ndarray],
  *,
  start: str | None = None,
) -> str:
  """Returns where the first value that is not finite arises, as a sentence.

  Photographs are named only if they give such values by themselves: seen
  alone, under fixed BatchNorm statistics, where no example touches another.

  Args:
    model: the classifier.
    task: names the loss.
    learning: what learned.
    variables: those before the step; it did not change them.
    batch: of the pipeline or of a feature cache, unsharded.
    start: the stage whose results the batch holds as 'features'.
  """
  for path, value in phases.flatten(dict(variables)).items():
    if not np.isfinite(np.asarray(value)).all():
      return f'{path} was not finite before it'
  real = np.flatnonzero(np.asarray(batch['mask']) > 0)
  names = np.asarray(batch['image_id'])[real].astype(str)
  part = {
    key: jnp.asarray(np.asarray(value)[real])
    for key, value in batch.items()
    if key != 'image_id'
  }
  if start is None:
    x = models.normalize(part['image'])
  else:
    x = part['features']
  model = model.clone(backbone=model.backbone.clone(axis_name=None))

  def stages(parts: Collection[str]) -> dict[str, np.ndarray]:
    finite, values = _stages(model, learning, variables, x, start, parts)
    logits: Any = model.apply(variables, values, start=HEAD_INPUT)
    loss = task.loss(logits, part)[0]
    return finite | {'logits': _finite_rows(logits), 'loss': _finite_rows(loss)}

  if not (fine := _finite_rows(x)).all():
    return f'what the network is given is not finite, of {_list(names[~fine])}'
  for stage, fine in stages(()).items():
    if not fine.all():
      whose = 'every image' if not fine.any() else _list(names[~fine])
      return (
        f'the first values that are not finite are those of {stage}, of {whose}'
      )
  for stage, fine in stages(learning.parts).items():
    if not fine.all():
      return (
        f'the first values that are not finite are those of {stage}, when '
        "BatchNorm takes the batch's own statistics; no image alone gives any"
      )
  return _of_gradient(model, task, learning, variables, part, x, start)


def _stages(
  model: Classifier,
  learning: phases.Learning,
  variables: Variables,
  x: jax.Array,
  start: str | None,
  parts: Collection[str],
) -> tuple[dict[str, np.ndarray], PyTree]:
  """Returns whether each example is finite [b] by stage, and the last map."""
  finite = {}
  first = model.stages.index(start) + 1 if start else 0
  frozen = model.stages.index(learning.prefix) + 1 if learning.prefix else 0
  # Each from the beginning: not every stage can be entered.
  for number, stage in enumerate(model.stages[first:], first):
    values, _ = model.apply(
      variables,
      x,
      start=start,
      stop=stage,
      train=frozenset(parts) if number >= frozen else False,
      mutable=['batch_stats', 'intermediates'],
    )
    finite[stage] = _finite_rows(values)
  return finite, values


def _of_gradient(
  model: Classifier,
  task: Task,
  learning: phases.Learning,
  variables: Variables,
  part: Mapping[str, jax.Array],
  x: jax.Array,
  start: str | None,
) -> str:
  learns, frozen = phases.split(variables['params'], learning.paths)

  def loss(learns: phases.Flat) -> jax.Array:
    logits, _ = model.apply(
      {**variables, 'params': phases.unflatten({**frozen, **learns})},
      x,
      start=start,
      train=frozenset(learning.parts) - {phases.HEAD},
      mutable=['batch_stats'],
    )
    value, weight = task.loss(logits, part)
    return (value * weight).sum()

  gradients = jax.grad(loss)(learns)
  # It comes down from the loss: what is nearest to that broke first.
  order = (*model.points, phases.HEAD)
  bad = sorted(
    (p for p, g in gradients.items() if not jnp.isfinite(g).all()),
    key=lambda path: -order.index(phases.part_of(path)),
  )
  if bad:
    return f'the loss is finite, its gradient is not, by {_list(bad)}'
  return (
    'neither the loss nor a gradient is without dropout: the square of the '
    "gradient's norm, or a dropped unit, must have made it so"
  )


def _finite_rows(values: ArrayLike) -> np.ndarray:
  values = np.asarray(values)
  return np.isfinite(values.reshape(len(values), -1)).all(1)


def _list(names: Sequence[str] | np.ndarray) -> str:
  more = f' and {len(names) - 5} more' if len(names) > 5 else ''
  return ', '.join(map(str, names[:5])) + more
