"""The frozen prefix's outputs, computed once and reused in every epoch.

While what lies below the learning part is fixed, and augmentation is nothing
but flips, an example has at most two feature maps in the whole phase. They are
computed once, in a fixed order (so a resumed run gets the same bits), and kept
in memory, or in a file where memory is short; epochs then read no image.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
import dataclasses
import math
import os
import shutil
import tempfile

from absl import logging
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import tqdm

from iqa_jax import devices, machine, models, processes
from iqa_jax.aliases import PyTree, Variables
from iqa_jax.data import pipeline
from iqa_jax.data import plan as plan_lib
from iqa_jax.data.source import Source
from iqa_jax.models.classifier import Classifier

_MEMORY_SHARE = 0.5  # of what is available; the rest is for everything else


@dataclasses.dataclass(frozen=True)
class FeatureCache:
  """Feature maps of examples and their mirror images.

  Attributes:
    prefix: the feature point whose maps these are.
    rows: int [examples of the source, views], where an example's features lie
      in each view (Plan.view); -1 where they aren't cached.
    maps: [rows, ...] of that stage, in memory or mapped from a file.
    fault: uint8 [rows, cells, cells], where a fault was put in (see
      pipeline.batches); None of heads that don't learn from it.
  """

  prefix: str
  rows: np.ndarray
  maps: np.ndarray
  fault: np.ndarray | None = None

  def batches(
    self,
    source: Source,
    plan: plan_lib.Plan,
    *,
    batch_size: int,
    start_batch: int = 0,
  ) -> Iterator[dict[str, np.ndarray]]:
    """Yields what `pipeline.batches` does, with 'features' for 'image'."""
    processes = jax.process_count()
    share = batch_size // processes
    for first in range(start_batch * batch_size, len(plan.index), batch_size):
      begin = first + jax.process_index() * share
      at = np.arange(begin, min(begin + share, first + batch_size))
      at = at[at < len(plan.index)]
      rows = self.rows[plan.index[at], plan.view[at]]
      if (rows < 0).any():
        missing = plan.index[at][rows < 0][0]
        raise KeyError(f'the features of example {missing} are not cached')
      batch = {}
      for key, held in (('features', self.maps), ('fault', self.fault)):
        if held is not None:
          batch[key] = np.zeros((share, *held.shape[1:]), held.dtype)
          batch[key][: len(at)] = held[rows]
      yield {**batch, **pipeline.targets(source, plan, at, share)}


def thinned(
  batch: dict[str, np.ndarray], stride: int, seed: Sequence[int]
) -> dict[str, np.ndarray]:
  """Returns a batch of cells with every `stride`-th row and column of them.

  Args:
    batch: with 'features' [b, g, g, c] and 'fault' [b, g, g].
    stride: 1 for all of them.
    seed: of the place that is counted from.
  """
  if stride == 1:
    return batch
  row, column = np.random.default_rng(seed).integers(0, stride, 2)
  thin = {
    k: batch[k][:, row::stride, column::stride] for k in ('features', 'fault')
  }
  return {**batch, **thin}


def read(
  source: Source,
  plan: plan_lib.Plan,
  config: ml_collections.ConfigDict,
  cache: FeatureCache | None,
  *,
  batch_size: int,
  start_batch: int = 0,
) -> Generator[dict[str, np.ndarray], None, None]:
  """Yields this process's batches: maps of `cache`, photographs without one.

  As `FeatureCache.batches` and pipeline.batches do, whose arguments these are.
  """
  if cache is not None:
    yield from cache.batches(
      source, plan, batch_size=batch_size, start_batch=start_batch
    )
    return
  yield from pipeline.batches(
    source,
    plan,
    image_size=config.data.image_size,
    batch_size=batch_size,
    **models.inputs(config),
    start_batch=start_batch,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
  )


def pass_size(
  config: ml_collections.ConfigDict, cache: FeatureCache | None
) -> int:
  """Returns how many of what `read` gives pass through what is not learned.

  Of maps as many as `eval.batch_size` says, of photographs devices.pass_size.
  """
  size = config.eval.batch_size
  return size if cache else devices.pass_size(size)


def for_phase(
  model: Classifier,
  variables: Variables,
  source: Source,
  config: ml_collections.ConfigDict,
  prefixes: Sequence[str | None],
  number: int,
  *,
  train: np.ndarray,
  validation: np.ndarray,
  folder: str | os.PathLike,
  held: FeatureCache | None = None,
  stopped: Callable[[], bool] = lambda: False,
) -> tuple[FeatureCache | None, FeatureCache | None]:
  """Returns the cache of a phase, and the one to hold for those after it.

  Phases that follow each other, all with something frozen, share the maps of
  the earliest of their prefixes: photographs then pass through it once. A
  phase that is frozen further up gets its own maps, computed from those.

  Args:
    model: the classifier.
    variables: its variables; only the frozen prefix is used.
    source: see data/pipeline.py.
    config: the run's; `train.cache_gb` is the budget.
    prefixes: the last frozen feature point of every phase, None without one.
    number: which phase this is.
    train: indices of the training examples.
    validation: indices of the validation examples, which are never flipped.
    folder: where a file may be made; it has no name and can't be left behind.
    held: what this function gave to hold for the phase before.
    stopped: asked between batches; True abandons the work.

  Returns:
    (None, None), and a line in the log, where there can't be a cache.
  """
  own = prefixes[number]
  if own is None:
    return None, None
  views = plan_lib.finite_views(config)
  if views is None:
    return _none('the augmentation is not a finite set of views')
  if not config.train.cache_gb:
    return _none('train.cache_gb is 0')
  group = _group(prefixes, number)
  frozen = [prefix for prefix in (prefixes[i] for i in group) if prefix]
  shared = min(frozen, key=model.stages.index)
  phases = config.train.phases
  total = sum(phases[i].epochs for i in group)
  if total <= len(views):
    return _none(f'{total} epochs see an image hardly more than once')
  plans = [
    plan_lib.plan_views(source, np.unique(train), config, view)
    for view in views
  ]
  plans.append(plan_lib.plan_eval(np.unique(validation)))
  maps = _Maps(model, variables, source, config, plans, folder, stopped)
  repeated = phases[number].epochs > len(views)
  return _of_maps(maps, own, shared, held, repeated, config.train.cache_gb)


def _of_maps(
  maps: _Maps,
  own: str,
  shared: str,
  held: FeatureCache | None,
  repeated: bool,
  budget: float,
) -> tuple[FeatureCache | None, FeatureCache | None]:
  """Returns the cache of a phase and the one to hold, within a budget in GB."""
  if maps.gigabytes(shared) > budget:
    if own != shared and repeated and maps.gigabytes(own) <= budget:
      return maps.compute(own), None
    logging.warning(
      'no feature cache for this phase, so every epoch will read and compute '
      'all photographs anew: %.3g GB of %s are over the budget of %g GB. '
      '--config.train.cache_gb=%d allows them, in memory or in a file in the '
      'run directory',
      maps.gigabytes(shared),
      shared,
      budget,
      math.ceil(maps.gigabytes(shared)),
    )
    return None, None
  if held is None or held.prefix != shared:
    held = maps.compute(shared)
  if held is None or own == shared or not repeated:
    return held, held
  if maps.gigabytes(shared) + maps.gigabytes(own) > budget:
    return held, held
  return maps.compute(own, held) or held, held


def gigabytes(
  model: Classifier, variables: Variables, prefix: str, size: int
) -> float:
  """Returns what a feature point's maps of one photograph take, in 1e9 bytes.

  Args:
    model: the classifier.
    variables: its variables, or their shapes.
    prefix: the feature point.
    size: side of the images in pixels.
  """
  spec = _spec(model, variables, prefix, size)
  return math.prod(spec.shape) * spec.dtype.itemsize / 1e9


def _none(reason: str) -> tuple[None, None]:
  logging.info('no feature cache for this phase: %s', reason)
  return None, None


def _group(prefixes: Sequence[str | None], number: int) -> range:
  """Returns the phases around `number` that all have something frozen."""
  first = last = number
  while first > 0 and prefixes[first - 1] is not None:
    first -= 1
  while last + 1 < len(prefixes) and prefixes[last + 1] is not None:
    last += 1
  return range(first, last + 1)


def _spec(
  model: Classifier, variables: Variables, prefix: str, size: int
) -> jax.ShapeDtypeStruct:
  """Returns shape [1, h, w, c] and dtype of a feature point's maps."""
  spec = jax.eval_shape(
    lambda v, x: model.apply(v, x, stop=prefix),
    variables,
    jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32),
  )
  # Cells are logarithms between 0 and 10 or so, and many.
  dtype = jnp.float16 if prefix == 'cells' else spec.dtype
  return jax.ShapeDtypeStruct(spec.shape, dtype)


@dataclasses.dataclass(frozen=True)
class _Maps:
  """Computes the maps of some plans' photographs; fields as of `for_phase`."""

  model: Classifier
  variables: Variables
  source: Source
  config: ml_collections.ConfigDict
  plans: Sequence[plan_lib.Plan]
  folder: str | os.PathLike
  stopped: Callable[[], bool]

  @property
  def count(self) -> int:
    return sum(len(plan.index) for plan in self.plans)

  def gigabytes(self, prefix: str) -> float:
    """Returns what all maps of a feature point take, in 1e9 bytes."""
    side = self.config.data.image_size
    return self.count * gigabytes(self.model, self.variables, prefix, side)

  def compute(
    self, prefix: str, base: FeatureCache | None = None
  ) -> FeatureCache | None:
    """Computes them from photographs, or from those of an earlier point."""
    side, count = self.config.data.image_size, self.count
    spec = _spec(self.model, self.variables, prefix, side)
    maps = _allocate((count, *spec.shape[1:]), spec.dtype, self.folder)
    # One that has photographs where the others have maps would not keep step.
    room = processes.gather({'room': np.array([maps is not None])})['room']
    if maps is None or not room.all():
      _none(f'there is no room for {count} maps of {prefix}')
      return None
    logging.info(
      'caching %d maps of %s (%.2f GB) %s',
      count,
      prefix,
      maps.nbytes / 1e9,
      'in a file' if isinstance(maps, np.memmap) else 'in memory',
    )
    views = 1 + max(int(plan.view.max(initial=0)) for plan in self.plans)
    rows = np.full((len(self.source.table['image_id']), views), -1, np.int64)
    fault = None
    if cells := models.inputs(self.config)['cells']:
      fault = np.zeros((count, cells, cells), np.uint8)
    bar = tqdm.tqdm(
      total=count,
      desc=f'caching {prefix}',
      unit='image',
      disable=None if jax.process_index() == 0 else True,
    )
    filled = 0
    with bar:
      for plan, done, computed in self._computed(prefix, base):
        if self.stopped():
          return None
        end = filled + len(computed['index'])
        maps[filled:end] = computed['maps']
        if fault is not None:
          fault[filled:end] = computed['fault']
        view = plan.view[done : done + end - filled]
        rows[computed['index'], view] = np.arange(filled, end)
        bar.update(end - filled)
        filled = end
    return FeatureCache(prefix, rows, maps, fault)

  def _computed(
    self, prefix: str, base: FeatureCache | None
  ) -> Iterator[tuple[plan_lib.Plan, int, dict[str, np.ndarray]]]:
    """Yields a plan, how many of it are done, and the next of its maps.

    These are 'index', 'maps' and 'fault', if any, in order, one batch ahead.
    """
    start, key = (base.prefix, 'features') if base else (None, 'image')

    def apply(variables: Variables, x: jax.Array) -> PyTree:
      x = x if base else models.normalize(x)
      return self.model.apply(variables, x, start=start, stop=prefix)

    def given(batch: Mapping[str, np.ndarray]) -> np.ndarray:
      return devices.shard({k: batch[k] for k in (key, 'mask')})[key]

    function = devices.parallel(apply, in_axes=(None, 0))
    variables = devices.place(self.variables)
    size = pass_size(self.config, base)
    for plan in self.plans:
      done = 0
      batches = read(self.source, plan, self.config, base, batch_size=size)
      begun = ((batch, function(variables, given(batch))) for batch in batches)
      for batch, maps in devices.ahead(begun, 1):
        computed = _collect(batch, maps)
        yield plan, done, computed
        done += len(computed['index'])


def _collect(
  batch: Mapping[str, np.ndarray], computed: PyTree
) -> dict[str, np.ndarray]:
  computed = devices.joined(computed, len(batch['mask']))
  kept = {k: batch[k] for k in ('index', 'mask', 'fault') if k in batch}
  # Every process sees every example in some epoch, so each keeps all maps.
  everywhere = processes.gather({**kept, 'maps': computed})
  flat = {k: v.reshape(-1, *v.shape[2:]) for k, v in everywhere.items()}
  real = flat.pop('mask') > 0
  return {key: value[real] for key, value in flat.items()}


def _allocate(
  shape: tuple[int, ...], dtype: np.dtype, folder: str | os.PathLike
) -> np.ndarray | None:
  size = math.prod(shape) * np.dtype(dtype).itemsize
  if size < _MEMORY_SHARE * machine.available_memory():
    return np.empty(shape, dtype)
  try:
    # It may be of process 0's machine alone.
    os.makedirs(folder, exist_ok=True)
    if size > shutil.disk_usage(folder).free:
      return None
  except OSError as error:
    logging.warning('%s cannot hold a feature cache: %s', folder, error)
    return None
  with tempfile.TemporaryFile(dir=str(folder)) as handle:
    handle.truncate(size)
    return np.memmap(handle, dtype, 'r+', shape=shape)
