"""The pmap training step, and the state it carries.

The state has no device axis: it goes in and out whole (in_axes=(None, 0),
out_axes=None), so checkpoints, evaluation and explanations take the same
arrays on one device or many. What is random depends on the seed, the step and
the example alone, never on the device that happens to see it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from flax import linen as nn
from flax import struct
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import optax

from iqa_jax import devices, models
from iqa_jax.models import heads
from iqa_jax.models.classifier import HEAD_INPUT
from iqa_jax.tasks import Task
from iqa_jax.training import phases

_LABELS = ('quality', 'grade', 'criteria')
_STATS = 'batch_stats/'  # begins the paths of statistics among averages

Batch = Mapping[str, Any]


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
  params: Any
  batch_stats: Any
  opt_state: Any
  ema: Any
  finite: jax.Array
  loss_sum: jax.Array
  weight_sum: jax.Array


def create_state(variables: Mapping[str, Any]) -> TrainState:
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


def evaluated(state: TrainState) -> dict[str, Any]:
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


def for_step(batch: Batch, *, stop: bool, accumulate: int) -> dict[str, Any]:
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


def make_train_step(
  model: nn.Module,
  task: Task,
  learning: phases.Learning,
  *,
  start: str | None = None,
  seed: int = 0,
  accumulate: int = 1,
  ema_decay: float = 0.0,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]:
  """Returns the pmapped update of one phase.

  The loss is sum(loss * weight) / sum(weight) over the real examples of the
  global batch, whichever devices hold them, and so is its gradient, exactly.
  With accumulation a device's share is passed through in `accumulate` parts,
  one after the other; BatchNorm then normalises each part by its own
  statistics (over all devices), as everywhere.

  Args:
    model: made with axis_name='batch'.
    task: names the loss.
    learning: what learns; the rest costs neither gradients nor memory.
    start: the frozen feature point whose maps batches hold as 'features'; None
      when they hold images.
    seed: of the dropout masks, which depend on it, the step and the example.
    accumulate: parts of a batch.
    ema_decay: of the moving average, 0 for none. It rises to this as
      (1 + step) / (10 + step).

  Returns:
    step(state, batch) -> (state, metrics). `state` is donated. `batch` comes
    from `for_step`. Metrics are scalars: 'loss' (mean over the batch, of the
    labels alone, as in validation: without landmarks), 'finite'
    (False from the first update on whose loss or gradient was not; it and all
    later ones are not applied), 'known' and 'right' (int32, how many examples
    are labelled and called right, before the update) and 'stop' (how many
    devices' processes wish to stop).
  """
  root = jax.random.key(seed)

  def local_loss(
    learns: phases.Flat,
    frozen: phases.Flat,
    stats: Any,
    batch: Batch,
    step: jax.Array,
  ) -> tuple[jax.Array, tuple[tuple[jax.Array, ...], Any]]:
    """Returns this device's sum of losses; counts and statistics beside."""
    variables = {'params': phases.unflatten({**frozen, **learns})}
    if stats:
      variables['batch_stats'] = stats
    (logits, found), stats = _forward(
      model, task, learning, start, variables, batch, root, step
    )
    loss, weight = task.loss(logits, batch)
    weight = weight * batch['mask']
    minimised = loss * weight
    if found.landmarks is not None:
      minimised += weight * task.landmark_loss(found.landmarks, batch)
    if found.cells is not None:
      # Whatever the verdict's label: what was put in is known.
      minimised += batch['mask'] * task.evidence_loss(found, batch)
    known, right = (
      jnp.sum(of & (batch['mask'] > 0), dtype=jnp.int32)
      for of in task.right(logits, batch)
    )
    counts = (jnp.sum(loss * weight), weight.sum(), known, right)
    return jnp.sum(minimised), (counts, stats)

  gradient = jax.value_and_grad(local_loss, has_aux=True)

  def update(
    state: TrainState, batch: Batch
  ) -> tuple[TrainState, dict[str, jax.Array]]:
    learns, frozen = phases.split(state.params, learning.paths)
    examples = {key: batch[key] for key in batch if key != 'stop'}

    def accumulate_part(
      carry: tuple[Any, Any], part: Batch
    ) -> tuple[tuple[Any, Any], None]:
      totals, stats = carry
      (_, (counts, stats)), grads = gradient(
        learns, frozen, stats, part, state.step
      )
      new = jax.tree.map(jnp.add, totals, (counts, grads))
      return (new, stats), None

    none = jnp.zeros((), jnp.int32)
    zeros = (
      (jnp.zeros(()), jnp.zeros(()), none, none),
      jax.tree.map(jnp.zeros_like, learns),
    )
    carry = (zeros, state.batch_stats)
    if accumulate == 1:
      (totals, stats), _ = accumulate_part(carry, examples)
    else:
      parts = jax.tree.map(
        lambda x: x.reshape(accumulate, -1, *x.shape[1:]), examples
      )
      (totals, stats), _ = lax.scan(accumulate_part, carry, parts)
    (loss, weight, known, right), grads = lax.psum(totals, devices.AXIS)
    mean = 1.0 / jnp.maximum(weight, 1e-12)
    grads = jax.tree.map(lambda g: g * mean, grads)

    squares = sum(jnp.vdot(g, g) for g in grads.values())
    finite = state.finite & jnp.isfinite(loss) & jnp.isfinite(squares)
    changes, opt_state = learning.optimizer.update(
      grads, state.opt_state, learns
    )
    learns = optax.apply_updates(learns, changes)
    decay = jnp.minimum(ema_decay, (1.0 + state.step) / (10.0 + state.step))
    now = learns | {
      _STATS + path: value for path, value in phases.flatten(stats).items()
    }
    ema = {
      path: decay * average + (1.0 - decay) * now[path]
      for path, average in state.ema.items()
    }
    before = (
      phases.split(state.params, learning.paths)[0],
      state.batch_stats,
      state.opt_state,
      state.ema,
      state.loss_sum,
      state.weight_sum,
    )
    after = (
      learns,
      stats,
      opt_state,
      ema,
      state.loss_sum + loss,
      state.weight_sum + weight,
    )
    learns, stats, opt_state, ema, loss_sum, weight_sum = jax.tree.map(
      lambda new, old: jnp.where(finite, new, old), after, before
    )
    state = TrainState(
      step=state.step + finite.astype(jnp.int32),
      params=phases.unflatten({**frozen, **learns}),
      batch_stats=stats,
      opt_state=opt_state,
      ema=ema,
      finite=finite,
      loss_sum=loss_sum,
      weight_sum=weight_sum,
    )
    metrics = {
      'loss': loss * mean,
      'finite': finite,
      'known': known,
      'right': right,
      'stop': lax.psum(batch['stop'], devices.AXIS),
    }
    return state, metrics

  return devices.parallel(
    update,
    in_axes=(None, 0),
    out_axes=(None, None),
    donate_argnums=0,
    local=False,
  )


def _forward(
  model: nn.Module,
  task: Task,
  learning: phases.Learning,
  start: str | None,
  variables: Mapping[str, Any],
  batch: Batch,
  root: jax.Array,
  step: jax.Array,
) -> tuple[tuple[jax.Array, heads.Found], Any]:
  """Returns (logits, heads.Found) and the new BatchNorm statistics."""
  x = models.normalize(batch['image']) if start is None else batch['features']
  if learning.prefix != start:
    x = model.apply(variables, x, start=start, stop=learning.prefix)
  x = lax.stop_gradient(x)
  stats, cells = variables.get('batch_stats', {}), None
  if learning.prefix != HEAD_INPUT:
    x, changed = model.apply(
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
    if cells is not None and not task.verdict_teaches_cells:
      x = lax.stop_gradient(x)
  keys = jax.vmap(jax.random.fold_in, (None, 0))(
    jax.random.fold_in(root, step), batch['index']
  )

  def head(x: jax.Array, key: jax.Array) -> tuple[jax.Array, heads.Found]:
    # One example at a time, so that dropout knows the example, not the device.
    logits, kept = model.apply(
      variables,
      x[None],
      start=HEAD_INPUT,
      train=frozenset({phases.HEAD} & set(learning.parts)),
      rngs={'dropout': key},
      mutable=['intermediates'],
    )
    return jax.tree.map(lambda y: y[0], (logits, heads.found(kept)))

  logits, told = jax.vmap(head)(x, keys)
  return (logits, told._replace(cells=cells)), stats
