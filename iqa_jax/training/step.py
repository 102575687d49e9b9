"""The training step, and the state it carries.

The state has no device axis: it goes in and out whole (in_axes=(None, 0),
out_axes=None), so checkpoints, evaluation and explanations take the same
arrays on one device or many. What is random depends on the seed, the step and
the example alone, never on the device that happens to see it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any, NamedTuple

from flax import struct
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import optax

from iqa_jax import devices, models
from iqa_jax.arrays import PyTree, Variables
from iqa_jax.models import heads
from iqa_jax.models.classifier import HEAD_INPUT, Classifier
from iqa_jax.tasks import Task
from iqa_jax.training import phases

_LABELS = ('quality', 'grade', 'criteria')
_STATS = 'batch_stats/'  # begins the paths of statistics among averages

HostBatch = Mapping[str, np.ndarray]
Batch = Mapping[str, jax.Array]


class TrainState(struct.PyTreeNode):
  """Everything that training changes; no leaf has a device axis.

  Attributes:
    step: int32, updates done since the start of the run.
    params: all parameters, nested, float32.
    batch_stats: BatchNorm statistics, nested ({} without BatchNorm).
    opt_state: state of the current phase's optimiser.
    ema: moving averages by path of the learning parameters and, under
      'batch_stats/...', of the BatchNorm statistics; {} when off.
    finite: bool, False once a loss or gradient was not finite. From then on
      no update is applied.
    loss_sum: float32, sum of loss * weight over the epoch so far.
    weight_sum: float32, sum of weights over the epoch so far.
  """

  step: jax.Array
  params: PyTree
  batch_stats: PyTree
  opt_state: PyTree
  ema: phases.Flat
  finite: jax.Array
  loss_sum: jax.Array
  weight_sum: jax.Array


def create_state(variables: Variables) -> TrainState:
  """Returns the state of a run that has not begun its first phase."""
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=variables['params'],
    batch_stats=variables.get('batch_stats', {}),
    opt_state=(),
    ema={},
    finite=jnp.ones((), bool),
    loss_sum=jnp.zeros(()),
    weight_sum=jnp.zeros(()),
  )


def begin_phase(
  state: TrainState,
  learning: phases.Learning,
  *,
  keep_optimizer: bool = False,
  ema: bool = False,
) -> TrainState:
  """Returns `state` with the optimiser state and averages of a new phase.

  What stops learning takes its averaged values, BatchNorm statistics included:
  those are the weights that were evaluated and saved.
  """
  params = phases.flatten(state.params)
  averages = {path: state.ema.get(path, params[path]) for path in params}
  params = {
    path: params[path] if path in learning.paths else averages[path]
    for path in params
  }
  stats = phases.flatten(state.batch_stats)
  mean_stats = {
    path: state.ema.get(_STATS + path, stats[path]) for path in stats
  }
  stats = {
    path: value if phases.part_of(path) in learning.parts else mean_stats[path]
    for path, value in stats.items()
  }
  learns = {path: params[path] for path in params if path in learning.paths}
  opt_state = learning.optimizer.init(learns)
  if keep_optimizer and state.opt_state:
    opt_state = phases.keep_state(opt_state, state.opt_state)
  return state.replace(
    params=phases.unflatten(params),
    batch_stats=phases.unflatten(stats),
    opt_state=opt_state,
    # Copies: a donated state must not hold the same buffer twice.
    ema=jax.tree.map(
      jnp.copy,
      {path: averages[path] for path in learns}
      | {_STATS + path: mean_stats[path] for path in stats},
    )
    if ema
    else {},
  )


def evaluated(state: TrainState) -> Variables:
  """Returns the variables that are evaluated: averaged ones where there are."""
  live = phases.flatten(
    {'params': state.params, 'batch_stats': state.batch_stats}
  )
  averages = {
    path if path.startswith(_STATS) else f'params/{path}': average
    for path, average in state.ema.items()
  }
  # A model without BatchNorm has no statistics to flatten.
  return {'batch_stats': {}} | phases.unflatten(live | averages)


def for_step(batch: HostBatch, *, stop: bool, accumulate: int) -> HostBatch:
  """Returns a pipeline batch as `make_train_step`'s function takes it.

  Args:
    batch: 'image' uint8 [b, s, s, 3] or 'features' [b, h, w, c], 'mask',
      'index', the labels and, for a head that locates them, 'landmarks'.
    stop: this process wishes to stop; every process learns of it.
    accumulate: gradient accumulation steps.
  """
  inputs = 'features' if 'features' in batch else 'image'
  kept = {key: batch[key] for key in (inputs, 'mask', 'index', *_LABELS)}
  for key in ('landmarks', 'cause', 'fault'):
    if key in batch:
      kept[key] = batch[key]
  sharded = devices.shard(kept, parts=accumulate)
  sharded['stop'] = np.full(devices.local_count(), stop, np.float32)
  return sharded


class Sums(NamedTuple):
  """What a training step adds up over examples, parts and devices.

  Attributes:
    loss: float32, of loss * weight, of the labels alone.
    weight: float32, of the weights.
    known: int32, how many examples are labelled.
    right: int32, how many of them were called right, before the update.
  """

  loss: jax.Array
  weight: jax.Array
  known: jax.Array
  right: jax.Array


@dataclasses.dataclass(frozen=True, eq=False)
class TrainStep:
  """One phase's training step, as each device runs it (`devices.parallel`).

  The loss is sum(loss * weight) / sum(weight) over the real examples of the
  global batch, whichever devices hold them, and so is its gradient, exactly.
  With accumulation a device's share is passed through in parts, one after the
  other; BatchNorm then normalises each part by its own statistics (over all
  devices), as everywhere.

  Attributes:
    model: made with axis_name=devices.AXIS.
    task: names the loss.
    learning: what learns; the rest costs neither gradients nor memory.
    key: of the dropout masks, which depend on it, the step and the example.
    start: the frozen feature point whose maps batches hold as 'features'; None
      when they hold images.
    accumulate: parts of a batch.
    ema_decay: of the moving average, 0 for none. It rises to this as
      (1 + step) / (10 + step).
  """

  model: Classifier
  task: Task
  learning: phases.Learning
  key: jax.Array
  start: str | None = None
  accumulate: int = 1
  ema_decay: float = 0.0

  def loss(
    self,
    learns: phases.Flat,
    frozen: phases.Flat,
    stats: PyTree,
    batch: Batch,
    step: jax.Array,
  ) -> tuple[jax.Array, tuple[Sums, PyTree]]:
    """Returns what a device minimises; the sums and new statistics beside."""
    variables = {'params': phases.unflatten({**frozen, **learns})}
    if stats:
      variables['batch_stats'] = stats
    (logits, found), stats = self._forward(variables, batch, step)
    loss, weight = self.task.loss(logits, batch)
    weight = weight * batch['mask']
    minimised = loss * weight
    if found.landmarks is not None:
      minimised += weight * self.task.landmark_loss(found.landmarks, batch)
    if found.cells is not None:
      # Whatever the verdict's label: what was put in is known.
      minimised += batch['mask'] * self.task.evidence_loss(found, batch)
    known, right = (
      jnp.sum(which & (batch['mask'] > 0), dtype=jnp.int32)
      for which in self.task.right(logits, batch)
    )
    sums = Sums(jnp.sum(loss * weight), weight.sum(), known, right)
    return jnp.sum(minimised), (sums, stats)

  def gradients(
    self, state: TrainState, batch: Batch
  ) -> tuple[Sums, phases.Flat, PyTree]:
    """Returns sums and their gradients over all devices, and statistics."""
    learns, frozen = phases.split(state.params, self.learning.paths)
    gradient = jax.value_and_grad(self.loss, has_aux=True)

    def add_part(carry: tuple, part: Batch) -> tuple[tuple, None]:
      totals, stats = carry
      (_, (sums, stats)), grads = gradient(
        learns, frozen, stats, part, state.step
      )
      return (jax.tree.map(jnp.add, totals, (sums, grads)), stats), None

    none = jnp.zeros((), jnp.int32)
    zeros = (
      Sums(jnp.zeros(()), jnp.zeros(()), none, none),
      jax.tree.map(jnp.zeros_like, learns),
    )
    carry = (zeros, state.batch_stats)
    examples = {key: batch[key] for key in batch if key != 'stop'}
    if self.accumulate == 1:
      (totals, stats), _ = add_part(carry, examples)
    else:
      parts = jax.tree.map(
        lambda x: x.reshape(self.accumulate, -1, *x.shape[1:]), examples
      )
      (totals, stats), _ = lax.scan(add_part, carry, parts)
    return *lax.psum(totals, devices.AXIS), stats

  def update(
    self, state: TrainState, batch: Batch
  ) -> tuple[TrainState, dict[str, jax.Array]]:
    """Returns the state after a batch of `for_step`, and what to report.

    Metrics are scalars: 'loss' (mean over the batch, of the labels alone, as
    in validation: without landmarks), 'finite' (False from the first update on
    whose loss or gradient was not; it and all later ones are not applied),
    'known' and 'right' (see Sums) and 'stop' (how many devices' processes wish
    to stop).
    """
    sums, grads, stats = self.gradients(state, batch)
    mean = 1.0 / jnp.maximum(sums.weight, 1e-12)
    grads = jax.tree.map(lambda g: g * mean, grads)
    squares = sum(jnp.vdot(g, g) for g in grads.values())
    finite = state.finite & jnp.isfinite(sums.loss) & jnp.isfinite(squares)

    learns, frozen = phases.split(state.params, self.learning.paths)
    changes, opt_state = self.learning.optimizer.update(
      grads, state.opt_state, learns
    )
    learned = optax.apply_updates(learns, changes)
    ema = self._averages(state, learned, stats)
    old_sums, old_stats = (state.loss_sum, state.weight_sum), state.batch_stats
    old = learns, old_stats, state.opt_state, state.ema, old_sums
    new_sums = state.loss_sum + sums.loss, state.weight_sum + sums.weight
    new = learned, stats, opt_state, ema, new_sums
    learned, stats, opt_state, ema, (loss_sum, weight_sum) = jax.tree.map(
      lambda new, old: jnp.where(finite, new, old), new, old
    )
    state = TrainState(
      step=state.step + finite.astype(jnp.int32),
      params=phases.unflatten({**frozen, **learned}),
      batch_stats=stats,
      opt_state=opt_state,
      ema=ema,
      finite=finite,
      loss_sum=loss_sum,
      weight_sum=weight_sum,
    )
    return state, {
      'loss': sums.loss * mean,
      'finite': finite,
      'known': sums.known,
      'right': sums.right,
      'stop': lax.psum(batch['stop'], devices.AXIS),
    }

  def _averages(
    self, state: TrainState, learned: phases.Flat, stats: PyTree
  ) -> phases.Flat:
    """Returns the moving averages after an update."""
    step = state.step
    decay = jnp.minimum(self.ema_decay, (1.0 + step) / (10.0 + step))
    now = learned | {
      _STATS + path: value for path, value in phases.flatten(stats).items()
    }
    return {
      path: decay * average + (1.0 - decay) * now[path]
      for path, average in state.ema.items()
    }

  def _forward(
    self, variables: Variables, batch: Batch, step: jax.Array
  ) -> tuple[tuple[jax.Array, heads.Found], PyTree]:
    """Returns (logits, heads.Found) and the new BatchNorm statistics."""
    learning, start = self.learning, self.start
    x: Any = batch['image' if start is None else 'features']
    if start is None:
      x = models.normalize(x)
    if learning.prefix != start:
      x = self.model.apply(variables, x, start=start, stop=learning.prefix)
    x = lax.stop_gradient(x)
    stats, cells = variables.get('batch_stats', {}), None
    if learning.prefix != HEAD_INPUT:
      x, changed = self.model.apply(
        variables,
        x,
        start=learning.prefix,
        stop=HEAD_INPUT,
        train=frozenset(learning.parts),
        mask=batch['mask'],
        mutable=['batch_stats', 'intermediates'],
      )
      stats = changed.get('batch_stats', stats)
      cells = heads.found(changed).cells
      if cells is not None and not self.task.verdict_teaches_cells:
        x = lax.stop_gradient(x)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(
      jax.random.fold_in(self.key, step), batch['index']
    )

    def head(x: jax.Array, key: jax.Array) -> tuple[jax.Array, heads.Found]:
      # One example at a time: dropout knows the example, not the device.
      logits, kept = self.model.apply(
        variables,
        x[None],
        start=HEAD_INPUT,
        train=frozenset({phases.HEAD} & set(learning.parts)),
        rngs={'dropout': key},
        mutable=['intermediates'],
      )
      return jax.tree.map(lambda y: y[0], (logits, heads.found(kept)))

    logits, found = jax.vmap(head)(x, keys)
    return (logits, found._replace(cells=cells)), stats


def make_train_step(
  model: Classifier,
  task: Task,
  learning: phases.Learning,
  *,
  seed: int = 0,
  start: str | None = None,
  accumulate: int = 1,
  ema_decay: float = 0.0,
) -> Callable[[TrainState, HostBatch], tuple[TrainState, Batch]]:
  """Returns `TrainStep.update` on all devices; it donates its state."""
  key = jax.random.key(seed)
  step = TrainStep(model, task, learning, key, start, accumulate, ema_decay)
  return devices.parallel(
    step.update,
    in_axes=(None, 0),
    out_axes=(None, None),
    donate_argnums=0,
    local=False,
  )
