"""Puts the features that a `standardized` head sees on one scale.

The channels of a frozen trunk differ in scale by orders of magnitude; a
gradient method then learns the loudest first and the others hardly ever. Their
mean and variance over the training split are measured once, before the first
step, and stay fixed (a data-dependent initialisation, as by Salimans & Kingma
2016, but of the input).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from numpy.typing import ArrayLike

from iqa_jax import devices, models, processes
from iqa_jax.aliases import Variables
from iqa_jax.data import plan as plan_lib
from iqa_jax.data.source import Source
from iqa_jax.models.classifier import HEAD_INPUT, Classifier
from iqa_jax.training import feature_cache, phases

_ENOUGH = 1024


def fit(
  model: Classifier,
  variables: Variables,
  source: Source,
  indices: np.ndarray,
  config: ml_collections.ConfigDict,
  cache: feature_cache.FeatureCache | None = None,
) -> Variables:
  """Returns `variables` with the head's statistics of the training split.

  Args:
    model: the classifier.
    variables: unchanged if its head has no statistics, or another run's.
    source: see data/pipeline.py.
    indices: the training examples, used as they are, without augmentation.
    config: the run's.
    cache: maps of these examples; None: photographs pass the whole trunk.
  """
  # Whose input is put on one scale, and the stage that gives it.
  *owner, stage = 'head', HEAD_INPUT
  if model.neck:
    *owner, stage = 'neck', 'evidence', 'cells'
  held = variables.get('batch_stats', {})
  for name in owner:
    held = held.get(name, {})
  # A head that was loaded goes on with the scale it was trained on.
  if not held or np.any(np.asarray(held['mean'])):
    return variables
  start = cache.prefix if cache else None
  if start and model.stages.index(start) > model.stages.index(stage):
    raise ValueError(f'{stage} is not to be had from {start}')

  def moments(
    v: Variables, x: Any, mask: jax.Array
  ) -> tuple[jax.Array, jax.Array, jax.Array]:
    x = x if cache else models.normalize(x)
    if start != stage:
      x = model.apply(v, x, start=start, stop=stage)
    weight = mask
    if model.neck:  # cells count by their share in the field
      weight = (mask[:, None, None] * x[..., -1]).ravel()
      x = x[..., :-1].reshape(len(weight), -1).astype(jnp.float32)
    return weight @ x, weight @ x**2, weight.sum()

  some = np.unique(indices)
  if cache is None:  # a thousand photographs have cells enough
    some = some[:: -(-len(some) // _ENOUGH)]
  batches = feature_cache.read(
    source,
    plan_lib.plan_eval(some),
    config,
    cache,
    batch_size=feature_cache.pass_size(config, cache),
  )
  key = 'features' if cache else 'image'
  first, second, count = _summed(moments, variables, batches, key)
  mean = first / count
  # Rounding may leave less than nothing of a channel that is constant.
  variance = np.maximum(second / count - mean**2, 0.0)
  return placed(variables, owner, mean, variance)


def placed(
  variables: Variables,
  owner: Sequence[str],
  mean: ArrayLike,
  variance: ArrayLike,
) -> Variables:
  """Returns `variables` whose head sees features of this mean and variance.

  A channel that never lights up keeps its scale.

  Args:
    variables: a model's.
    owner: where the statistics lie in 'batch_stats'.
    mean: [c], of every channel.
    variance: [c], likewise.
  """
  variance = np.where(np.asarray(variance) > 1e-8, variance, 1.0)
  flat = phases.flatten(variables['batch_stats'])
  path = '/'.join(owner)
  flat[f'{path}/mean'] = jnp.asarray(mean, jnp.float32)
  flat[f'{path}/var'] = jnp.asarray(variance, jnp.float32)
  return {**variables, 'batch_stats': phases.unflatten(flat)}


def _summed(
  moments: Callable[..., tuple[jax.Array, ...]],
  variables: Variables,
  batches: Iterable[Mapping[str, np.ndarray]],
  inputs: str,
) -> list[np.ndarray]:
  """Returns the sums of `moments` over all batches and processes."""
  measure = devices.parallel(moments, in_axes=(None, 0, 0))
  placed = devices.place(variables)
  total: list[np.ndarray | float] = [0.0, 0.0, 0.0]
  for batch in batches:
    part = devices.shard({k: batch[k] for k in (inputs, 'mask')})
    sums = measure(placed, part[inputs], part['mask'])
    for i, value in enumerate(sums):
      total[i] = total[i] + np.asarray(value, np.float64).sum(0)
  gathered = processes.gather(
    {str(i): np.asarray(value)[None] for i, value in enumerate(total)}
  )
  return [gathered[str(i)].sum((0, 1)) for i in range(3)]
