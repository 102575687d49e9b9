"""The frozen prefix's outputs, computed once and reused in every epoch.

While what lies below the learning part is fixed, and augmentation is nothing
but flips, an example has at most two feature maps in the whole phase. They are
computed once, in a fixed order (so a resumed run gets the same bits), and kept
in memory, or in a file where memory is short; epochs then read no image.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
import dataclasses
import math
import os
import shutil
import tempfile
from typing import Any

from absl import logging
from flax import linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import tqdm

from iqa_jax import models
from iqa_jax.data import pipeline
from iqa_jax.training import distributed
from iqa_jax.training import step as step_lib

_MEMORY_SHARE = 0.5  # of what is free now; the rest is for everything else


@dataclasses.dataclass(frozen=True)
class FeatureCache:
  """Feature maps of examples and their mirror images.

  Attributes:
    prefix: the feature point whose maps these are.
    rows: int [examples of the source, 2], where the map of an example lies,
      unflipped and flipped; -1 where it isn't cached.
    maps: [rows, h, w, c] in the compute type, in memory or mapped from a file.
  """

  prefix: str
  rows: np.ndarray
  maps: np.ndarray

  def batches(
    self,
    source: Any,
    plan: Any,
    *,
    batch_size: int,
    start_batch: int = 0,
  ) -> Iterator[dict[str, np.ndarray]]:
    """Yields what `pipeline.batches` does, with 'features' for 'image'."""
    processes = jax.process_count()
    share = batch_size // processes
    flips = np.asarray(plan.flip).astype(int)
    for first in range(start_batch * batch_size, len(plan.index), batch_size):
      begin = first + jax.process_index() * share
      at = np.arange(begin, min(begin + share, first + batch_size))
      at = at[at < len(plan.index)]
      index = np.zeros(share, np.int64)
      index[: len(at)] = plan.index[at]
      mask = np.zeros(share, np.float32)
      mask[: len(at)] = 1
      flip = np.zeros(share, int)
      flip[: len(at)] = flips[at]
      rows = self.rows[index, flip]
      if (rows[: len(at)] < 0).any():
        missing = index[: len(at)][rows[: len(at)] < 0][0]
        raise KeyError(f'the features of example {missing} are not cached')
      features = self.maps[rows]
      features[len(at) :] = 0
      yield {
        'features': features,
        'mask': mask,
        'index': index,
        'image_id': np.asarray(source.table['image_id'])[index],
        **{
          key: np.asarray(source.table[key])[index].astype(np.int32)
          for key in ('quality', 'grade', 'criteria')
        },
      }


def build(
  model: nn.Module,
  variables: Any,
  prefix: str | None,
  source: Any,
  config: ml_collections.ConfigDict,
  *,
  train: np.ndarray,
  validation: np.ndarray,
  epochs: int,
  folder: str | os.PathLike,
  stopped: Any = lambda: False,
) -> FeatureCache | None:
  """Returns the features of one phase, or None (and logs why) without a cache.

  Args:
    model: the classifier.
    variables: its variables; only the prefix is used.
    prefix: the last frozen feature point, None when nothing is frozen.
    source: see data/pipeline.py.
    config: the run's; `train.cache_gb` is the budget.
    train: indices of the training examples.
    validation: indices of the validation examples, which are never flipped.
    epochs: how long the phase is.
    folder: where a file may be made; it has no name and can't be left behind.
    stopped: asked between batches; True abandons the work (returns None).
  """
  if prefix is None:
    return None
  views = pipeline.finite_augmentations(config)
  size = config.data.image_size
  shape = jax.eval_shape(
    lambda v, x: model.apply(v, x, stop=prefix),
    variables,
    jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32),
  )
  groups = [(np.unique(train), flip) for flip in range(views or 0)]
  groups.append((np.unique(validation), 0))
  count = sum(len(indices) for indices, _ in groups)
  needed = count * math.prod(shape.shape) * shape.dtype.itemsize
  budget = config.train.cache_gb * 1e9
  reason = ''
  if not budget:
    reason = 'train.cache_gb is 0'
  elif views is None:
    reason = 'the augmentation is not a finite set of views'
  elif epochs <= views:
    reason = f'{epochs} epochs see an image hardly more than once'
  elif needed > budget:
    reason = (
      f'{needed / 1e9:.1f} GB of {prefix} maps are over the budget of '
      f'{config.train.cache_gb:g} GB (train.cache_gb)'
    )
  maps = None
  if not reason:
    maps = _allocate((count, *shape.shape[1:]), shape.dtype, folder)
    if maps is None:
      reason = f'there is no room for {needed / 1e9:.1f} GB'
  if maps is None:
    logging.info('no feature cache for this phase: %s', reason)
    return None
  logging.info(
    'caching %d maps of %s (%.2f GB) %s',
    count,
    prefix,
    needed / 1e9,
    'in a file' if isinstance(maps, np.memmap) else 'in memory',
  )
  rows = np.full((len(source.table['image_id']), 2), -1, np.int64)
  features = jax.pmap(
    lambda v, x: model.apply(v, models.normalize(x), stop=prefix),
    in_axes=(None, 0),
    devices=jax.local_devices(),
  )
  variables = step_lib.place(variables)
  filled = 0
  bar = tqdm.tqdm(
    total=count,
    desc=f'caching {prefix}',
    unit='image',
    disable=None if jax.process_index() == 0 else True,
  )
  with bar:
    for indices, flip in groups:
      for index, computed in _compute(
        features, variables, source, indices, bool(flip), config
      ):
        if stopped():
          return None
        maps[filled : filled + len(index)] = computed
        rows[index, flip] = np.arange(filled, filled + len(index))
        filled += len(index)
        bar.update(len(index))
  return FeatureCache(prefix, rows, maps)


def _compute(
  function, variables, source, indices: np.ndarray, flip: bool, config
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Yields (index [n], maps [n, h, w, c]) in order, one batch ahead."""
  plan = pipeline.plan_eval(source, indices)
  plan = dataclasses.replace(plan, flip=np.full(len(plan.index), flip))
  waiting: deque = deque()
  for batch in pipeline.batches(
    source,
    plan,
    image_size=config.data.image_size,
    batch_size=config.eval.batch_size,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
  ):
    images = step_lib.shard({k: batch[k] for k in ('image', 'mask')})['image']
    waiting.append((batch, function(variables, images)))
    if len(waiting) > 1:
      yield _collect(*waiting.popleft())
  while waiting:
    yield _collect(*waiting.popleft())


def _collect(batch, computed):
  computed = np.asarray(computed)
  computed = computed.reshape(-1, *computed.shape[2:])[: len(batch['mask'])]
  # Every process sees every example in some epoch, so each keeps all maps.
  everywhere = distributed.gather(
    {'index': batch['index'], 'mask': batch['mask'], 'maps': computed}
  )
  real = everywhere['mask'].reshape(-1) > 0
  maps = everywhere['maps']
  return (
    everywhere['index'].reshape(-1)[real],
    maps.reshape(-1, *maps.shape[2:])[real],
  )


def _allocate(shape, dtype, folder) -> np.ndarray | None:
  size = math.prod(shape) * np.dtype(dtype).itemsize
  if size < _MEMORY_SHARE * _free_memory():
    return np.empty(shape, dtype)
  if size > shutil.disk_usage(folder).free:
    return None
  with tempfile.TemporaryFile(dir=folder) as handle:
    handle.truncate(size)
    return np.memmap(handle, dtype, 'r+', shape=shape)


def _free_memory() -> int:
  return os.sysconf('SC_AVPHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
