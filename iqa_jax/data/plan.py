"""Which example comes when, and what is done to it.

A plan depends on the seed, the epoch and the training examples alone, so
batches are the same at any parallelism, on any number of processes, and from
any batch on.
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses

import ml_collections
import numpy as np

from iqa_jax import errors, labels
from iqa_jax.data import planting, splits
from iqa_jax.data.source import Source


@dataclasses.dataclass(frozen=True)
class Plan:
  """The examples of an epoch in order, and what is done to each.

  Attributes:
    index: int64 [n], into the source's table.
    flip: bool [n], mirrored left to right.
    angle: float32 [n], rotation in radians.
    shrink: float32 [n], share by which the field is made smaller.
    fault: int8 [n], number of the criterion that a simulated fault breaks, -1
      for none.
    seed: uint32 [n], of that fault.
    procedural: bool [n], whether that fault is of no named kind.
    variant: int64 [n], which of an example's fixed faulty variants this is, 0
      for the photograph as it is.
    camera: int64 [n], seed of another camera that takes it again (see
      simulation/cameras.py), -1 for its own.
  """

  index: np.ndarray
  flip: np.ndarray
  angle: np.ndarray
  shrink: np.ndarray
  fault: np.ndarray
  seed: np.ndarray
  procedural: np.ndarray
  variant: np.ndarray
  camera: np.ndarray

  @property
  def view(self) -> np.ndarray:
    """int64 [n]: with the example's number, all that a cache must know."""
    return 2 * self.variant + self.flip


def finite_views(config: ml_collections.ConfigDict) -> list[int] | None:
  """Returns the views (Plan.view) that augmentation makes, None: endless."""
  data = config.data
  augment = data.augment
  if augment.rotation or augment.scale:
    return None
  if augment.cameras and not data.fault_variants:
    return None
  if any(data.faults.values()) and not data.fault_variants:
    return None
  variants = 1 + (data.fault_variants if any(data.faults.values()) else 0)
  return list(range(0, 2 * variants, 1 if data.augment.flip else 2))


def plan_train(
  source: Source,
  indices: np.ndarray,
  config: ml_collections.ConfigDict,
  epoch: int,
) -> Plan:
  """Plans one epoch of training.

  Args:
    source: the data.
    indices: the training examples.
    config: the run's; reads `seed`, `data` and `task.name`.
    epoch: counted over all phases.
  """
  data = config.data
  order = np.random.default_rng([config.seed, epoch, 2])
  index = np.asarray(indices, np.int64)
  if data.balance == 'sampling':
    label = source.table[splits.class_column(config.task.name)][index]
    _, where, sizes = np.unique(label, return_inverse=True, return_counts=True)
    weight = 1.0 / sizes[where]
    index = order.choice(index, len(index), p=weight / weight.sum())
  else:
    index = order.permutation(index)
  plan = plan_eval(index)
  # Drawn for every slot: an example that comes again must not look the same.
  count = len(index)
  rng = np.random.default_rng([config.seed, epoch, 1])
  plan.flip[:] = (rng.random(count) < 0.5) & data.augment.flip
  plan.angle[:] = rng.uniform(-1, 1, count) * np.deg2rad(data.augment.rotation)
  plan.shrink[:] = rng.random(count) * data.augment.scale
  if data.fault_variants:
    plan.camera[:] = _variant(source, config, 0, index)['camera']
  else:
    looks = np.random.default_rng([config.seed, epoch, 4])
    plan.camera[:] = _cameras(config, looks, count)
  if not any(data.faults.values()):
    return plan
  breakable = source.table['quality'][index] == labels.ADEQUATE
  if not data.fault_variants:
    return _with_faults(plan, breakable, _draw_faults(config, rng, count))
  # One of the example's own few faults, or none.
  faulty = breakable & (rng.random(count) < sum(data.faults.values()))
  plan.variant[:] = faulty * rng.integers(1, data.fault_variants + 1, count)
  for number in range(1, data.fault_variants + 1):
    at = plan.variant == number
    _with_faults(plan, at, _variant(source, config, number, index))
  return plan


def plan_views(
  source: Source,
  indices: np.ndarray,
  config: ml_collections.ConfigDict,
  view: int,
) -> Plan:
  """Plans one pass over examples in one of the views of `finite_views`.

  Examples that no fault is put into have no faulty variants.
  """
  variant, flip = divmod(view, 2)
  indices = np.asarray(indices, np.int64)
  if variant:
    indices = indices[source.table['quality'][indices] == labels.ADEQUATE]
  plan = plan_eval(indices)
  plan.flip[:] = bool(flip)
  if config.data.fault_variants:
    plan.camera[:] = _variant(source, config, variant, indices)['camera']
  if variant:
    plan.variant[:] = variant
    every = np.ones(len(indices), bool)
    _with_faults(plan, every, _variant(source, config, variant, indices))
  return plan


def planned_labels(
  source: Source,
  indices: np.ndarray,
  config: ml_collections.ConfigDict,
  epochs: int,
) -> dict[str, np.ndarray]:
  """Returns the labels that training is going to see, of whole epochs.

  Balanced sampling and simulated faults make them others than the examples'.

  Args:
    source: the data.
    indices: the training examples.
    config: as of `plan_train`.
    epochs: how many; where all are alike, the first is returned alone.

  Returns:
    'quality', 'grade' int32 [n] and 'criteria' int32 [n, 4], in the order in
    which they come.
  """
  data = config.data
  if data.balance != 'sampling' and not any(data.faults.values()):
    epochs = 1
  plans = [plan_train(source, indices, config, e) for e in range(epochs)]
  return planting.after_faults(
    source.table,
    np.concatenate([plan.index for plan in plans]),
    np.concatenate([plan.fault for plan in plans]),
  )


def _with_faults(
  plan: Plan, at: np.ndarray, faults: Mapping[str, np.ndarray]
) -> Plan:
  """Writes faults, one a slot, into the slots `at` (bool) of a plan."""
  for name, values in faults.items():
    getattr(plan, name)[at] = values[at]
  return plan


def _cameras(
  config: ml_collections.ConfigDict, rng: np.random.Generator, count: int
) -> np.ndarray:
  """Returns the seeds of other cameras for `count` slots (Plan.camera)."""
  seeds = rng.integers(0, 2**32, count)
  other = rng.random(count) < config.data.augment.cameras
  return np.where(other, seeds, -1)


def _variant(
  source: Source,
  config: ml_collections.ConfigDict,
  number: int,
  index: np.ndarray,
) -> dict[str, np.ndarray]:
  """Returns fault and camera of a variant of examples, of every epoch."""
  count = len(source.table['image_id'])
  rng = np.random.default_rng([config.seed, 3, number])
  surely = any(config.data.faults.values())
  drawn = _draw_faults(config, rng, count, surely=surely)
  looks = np.random.default_rng([config.seed, 5, number])
  drawn['camera'] = _cameras(config, looks, count)
  return {name: values[index] for name, values in drawn.items()}


def _draw_faults(
  config: ml_collections.ConfigDict,
  rng: np.random.Generator,
  count: int,
  surely: bool = False,
) -> dict[str, np.ndarray]:
  """Draws 'fault', 'seed' and 'procedural' of `count` slots (see `Plan`).

  By the shares of `data.faults`; `surely`: every slot gets one, whatever they
  sum to.
  """
  from iqa_jax.simulation import procedural as unnamed

  rates = dict(config.data.faults)
  if (total := sum(rates.values())) > 1:
    raise errors.InvalidValue(
      f'the rates of data.faults sum to {total:g}, over 1'
    )
  chance = rng.random(count) * (total if surely else 1.0)
  seed = rng.integers(0, 2**32, count, dtype=np.uint32)
  names, shares = zip(*unnamed.CRITERIA.items(), strict=True)
  of_procedural = rng.choice(len(names), count, p=shares)
  fault = np.full(count, -1, np.int8)
  procedural = np.zeros(count, bool)
  below = 0.0
  for name, rate in rates.items():
    hit = (chance >= below) & (chance < below + rate)
    below += rate
    if name == 'procedural':
      numbers = np.array([labels.CRITERIA.index(name) for name in names])
      fault[hit] = numbers[of_procedural[hit]]
      procedural[hit] = True
    else:
      fault[hit] = labels.CRITERIA.index(name)
  if config.data.left_out_faults:
    named = (fault >= 0) & ~procedural
    seed[named] = planting.without(
      config.data.left_out_faults, fault[named], seed[named]
    )
  return {'fault': fault, 'seed': seed, 'procedural': procedural}


def plan_eval(indices: np.ndarray) -> Plan:
  """Plans one pass over examples as they are, in the order given."""
  n = len(indices)
  return Plan(
    index=np.asarray(indices, np.int64),
    flip=np.zeros(n, bool),
    angle=np.zeros(n, np.float32),
    shrink=np.zeros(n, np.float32),
    fault=np.full(n, -1, np.int8),
    seed=np.zeros(n, np.uint32),
    procedural=np.zeros(n, bool),
    variant=np.zeros(n, np.int64),
    camera=np.full(n, -1, np.int64),
  )
