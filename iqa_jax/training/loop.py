"""A run's training from its first step to its last, and back after a stop.

Where a run stands is a `Progress`: phase, epoch, batch, the best epoch so far
and the history. It is saved with every checkpoint, and the files that people
read (history.jsonl, history.csv, tensorboard/) are written from it, so they
never disagree with the state that training resumes from. Plans, dropout and
feature caches depend on seeds and positions alone: on CPU a resumed run ends
with the bits of one that was never stopped.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
import contextlib
import csv
import dataclasses
import io
import json
import math
import os
import pathlib
import signal
import threading
import time
from typing import Any

from absl import logging
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import scipy.stats
import tensorboardX
import tqdm

from iqa_jax import config as config_lib
from iqa_jax import devices, errors, inference, models, processes, run_directory
from iqa_jax.data import pipeline
from iqa_jax.models import pretrained
from iqa_jax.tasks import Task
from iqa_jax.training import (
  checkpoints,
  diagnosis,
  feature_cache,
  phases,
  standardization,
)
from iqa_jax.training import step as step_lib

# Steps that may be under way while the host prepares the next one.
_IN_FLIGHT = 2
_COUNTED_EPOCHS = 10  # whose labels class weights balance
_MEASURED = ('auc', 'loss', 'balanced_accuracy')
_SELECT_BY = (*_MEASURED, 'last')


class TrainingError(errors.UserError):
  """Training can't go on; the message says why and what to do."""


class Interrupted(errors.Interrupted):
  """A signal stopped the run after its state was saved."""

  def __init__(self, signal_number: int, step: int):
    super().__init__(
      signal_number,
      f'training saved at step {step}; the same command resumes',
    )


@dataclasses.dataclass
class Progress:
  """Where a run stands; JSON in every checkpoint.

  Attributes:
    phase: number of the current phase.
    epoch: epochs of this phase that are done.
    batch: batches of the current epoch that are done.
    known: labelled examples in these batches.
    right: those of them that were called right, each before it was learnt.
    total_epochs: epochs of all phases that are done.
    best: the history's record of the best epoch, None before the first.
    stale: epochs of this phase since an epoch was the best.
    history: one record an epoch.
    pretrained: where the weights came from (models/pretrained.py).
  """

  phase: int = 0
  epoch: int = 0
  batch: int = 0
  known: int = 0
  right: int = 0
  total_epochs: int = 0
  best: dict[str, Any] | None = None
  stale: int = 0
  history: list[dict[str, Any]] = dataclasses.field(default_factory=list)
  pretrained: dict[str, Any] = dataclasses.field(default_factory=dict)


def train(
  config: ml_collections.ConfigDict,
  workdir: str | os.PathLike,
  source: Any,
  splits: Mapping[str, np.ndarray],
) -> None:
  """Trains all phases, or what is left of them, and saves the best model.

  Args:
    config: the run's configuration.
    workdir: the run directory, locked by the caller.
    source: the data (data/pipeline.py).
    splits: indices into `source.table`: 'train' and 'validation'.

  Raises:
    Interrupted: SIGTERM or SIGINT; the state is saved.
    TrainingError: the loss stopped being finite.
    RunDirectoryError: something could not be written, or no checkpoint read.
    ValueError: a field of the configuration is wrong, or a split is empty.
  """
  _check(config, splits)
  run = _Run(config, workdir, source, splits)
  with checkpoints.Store(workdir) as store, _Signals() as signals:
    state, progress = _start(run, store)
    held = None  # the feature cache that later phases go on using
    with _History(run.workdir, progress) as history:
      while progress.phase < len(config.train.phases):
        state, held = _train_phase(
          run, state, progress, store, history, signals, held
        )
        progress.phase += 1
        progress.epoch = progress.stale = 0
    # A signal to one process must not leave the others to go on alone.
    received = processes.gather({'signal': np.array([signals.received])})
    if received['signal'].any():
      raise Interrupted(int(received['signal'].max()), int(state.step))


class _Run:
  """What stays the same during a run."""

  def __init__(self, config, workdir, source, splits):
    self.config = config
    self.workdir = pathlib.Path(workdir)
    self.source = source
    self.splits = splits
    # Of a few epochs: what is drawn at random evens out.
    epochs = min(sum(p.epochs for p in config.train.phases), _COUNTED_EPOCHS)
    labels = pipeline.planned_labels(source, splits['train'], config, epochs)
    self.task = Task.from_config(config, labels)
    outputs = self.task.num_outputs
    self.model = models.from_config(config, outputs, axis_name=devices.AXIS)
    self.shapes = models.shapes(self.model, config.data.image_size)
    self.steps_per_epoch = math.ceil(
      len(self.plan(0).index) / config.train.batch_size
    )
    # Every phase is looked at before hours are spent on the first.
    self.prefixes = [
      self.learning(number).prefix for number in range(len(config.train.phases))
    ]

  def initial_variables(self) -> dict[str, Any]:
    key = jax.random.key(self.config.seed)
    return models.init(self.model, key, self.config.data.image_size)

  def plan(self, epoch: int) -> Any:
    return pipeline.plan_train(
      self.source, self.splits['train'], self.config, epoch
    )

  def learning(self, number: int) -> phases.Learning:
    return phases.learning(
      self.config.train.phases[number],
      self.shapes['params'],
      self.model.stages,
      entries=self.model.entries,
      steps_per_epoch=self.steps_per_epoch,
      clip_norm=self.config.train.clip_norm,
    )

  def begin_phase(self, state, number: int):
    return step_lib.begin_phase(
      state,
      self.learning(number),
      keep_optimizer=not self.config.train.phases[number].reset_optimizer,
      ema=self.config.train.ema_decay > 0,
    )


def _check(config, splits) -> None:
  if config.eval.select_by not in _SELECT_BY:
    raise errors.InvalidValue(
      f'eval.select_by={config.eval.select_by!r} is none of '
      f'{", ".join(_SELECT_BY)}'
    )
  for name in ('train', 'validation'):
    if not len(splits[name]):
      raise errors.InvalidValue(f'the {name} split is empty; see config.data')
  for name in ('train', 'eval'):
    size = config[name].batch_size
    if size < 1 or size % jax.process_count():
      raise errors.InvalidValue(
        f'{name}.batch_size={size} is not a positive multiple of the '
        f'{jax.process_count()} processes'
      )
  if config.train.accumulate < 1:
    raise errors.InvalidValue(
      f'train.accumulate={config.train.accumulate} is below 1'
    )


def _start(run: _Run, store) -> tuple[step_lib.TrainState, Progress]:
  """Returns the latest saved state, or a new one."""

  def template(record):
    shapes = jax.eval_shape(
      lambda variables: run.begin_phase(
        step_lib.create_state(variables), record['progress']['phase']
      ),
      run.shapes,
    )
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)

  found = store.restore(template)
  if found is not None:
    state, record = found
    progress = Progress(**record['progress'])
    logging.info(
      'resuming at step %d: phase %d, epoch %d, batch %d',
      int(state.step),
      progress.phase + 1,
      progress.epoch + 1,
      progress.batch,
    )
    return devices.place(state), progress
  variables, loaded = pretrained.load(
    run.config.model.pretrained, run.model, run.initial_variables()
  )
  state = step_lib.create_state(variables)
  return devices.place(state), Progress(pretrained=loaded)


def _train_phase(run, state, progress, store, history, signals, held):
  """Returns the state after the phase in which `progress` is, and a cache."""
  config, number = run.config, progress.phase
  phase, learning = config.train.phases[number], run.learning(number)
  name = phase.name or phase.learns
  if progress.epoch == progress.batch == 0:
    state = devices.place(run.begin_phase(state, number))
  if _is_over(config, phase, progress):
    return state, held
  logging.info(
    'phase %d of %d, %s: %d of %d parameters learn%s',
    number + 1,
    len(config.train.phases),
    name,
    sum(
      np.size(p) for p in phases.split(state.params, learning.paths)[0].values()
    ),
    sum(np.size(p) for p in jax.tree.leaves(state.params)),
    f', frozen up to {learning.prefix}' if learning.prefix else '',
  )
  cache, held = feature_cache.for_phase(
    run.model,
    step_lib.evaluated(state),
    run.source,
    config,
    run.prefixes,
    number,
    train=run.splits['train'],
    validation=run.splits['validation'],
    folder=run.workdir,
    held=held,
    stopped=signals.alone,
  )
  if signals.alone():
    # Nothing is lost: the cache is made again.
    if not progress.batch and not progress.epoch:
      raise Interrupted(signals.received, int(state.step))
    _leave(state, progress, store, signals)
  # Here, because where there is a cache no photograph is read again for it.
  fitted = standardization.fit(
    run.model,
    {'params': state.params, 'batch_stats': state.batch_stats},
    run.source,
    run.splits['train'],
    config,
    cache,
  )
  state = devices.place(state.replace(batch_stats=fitted['batch_stats']))
  update = step_lib.make_train_step(
    run.model,
    run.task,
    learning,
    start=cache.prefix if cache else None,
    seed=config.seed,
    accumulate=config.train.accumulate,
    ema_decay=config.train.ema_decay,
  )
  validate = _make_validation(run, cache, signals)
  while not _is_over(config, phase, progress):
    title = f'{name} {progress.epoch + 1}/{phase.epochs}'
    begun, seen = time.monotonic(), progress.batch
    state = _train_epoch(
      run, update, state, progress, cache, store, history, signals, title
    )
    seconds = time.monotonic() - begun
    images = (progress.batch - seen) * config.train.batch_size
    try:
      measured = validate(step_lib.evaluated(state))
    except _Stop:
      _leave(state, progress, store, signals)
    record = {
      'phase': name,
      'epoch': progress.total_epochs + 1,
      'step': int(state.step),
      'learning_rate': float(
        learning.schedule(
          progress.epoch * run.steps_per_epoch + progress.batch - 1
        )
      ),
      'train_loss': _finite(state.loss_sum / state.weight_sum),
      'train_accuracy': _share(progress.known, progress.right),
      **{f'validation_{key}': value for key, value in measured.items()},
    }
    record['best'] = _better(config.eval.select_by, record, progress.best)
    if record['best']:
      progress.best, progress.stale = record, 0
      _save_model(run, state, progress, record)
    else:
      progress.stale += 1
    progress.history.append(record)
    progress.epoch += 1
    progress.total_epochs += 1
    progress.batch = progress.known = progress.right = 0
    state = state.replace(
      loss_sum=jnp.zeros_like(state.loss_sum),
      weight_sum=jnp.zeros_like(state.weight_sum),
    )
    state = devices.place(state)
    over = _is_over(config, phase, progress)
    # Short epochs on cached maps would do little but write.
    if over or store.age >= config.train.checkpoint_seconds:
      store.save(state, {'progress': dataclasses.asdict(progress)})
    history.write(images / seconds)
  return state, held


def _is_over(config, phase, progress) -> bool:
  patience = config.train.early_stop
  if patience and progress.stale >= patience and not progress.batch:
    return True
  return progress.epoch >= phase.epochs


def _train_epoch(
  run, update, state, progress, cache, store, history, signals, title
):
  """Trains the rest of the epoch in which `progress` is."""
  config = run.config
  plan = run.plan(progress.total_epochs)
  count = math.ceil(len(plan.index) / config.train.batch_size)
  batches = feature_cache.read(
    run.source,
    plan,
    config,
    cache,
    batch_size=config.train.batch_size,
    start_batch=progress.batch,
  )
  waiting: deque = deque()
  bar = tqdm.tqdm(
    total=count,
    initial=progress.batch,
    desc=title,
    unit='batch',
    # Off a terminal a bar would fill the log; process 0 speaks for all.
    disable=None if jax.process_index() == 0 else True,
  )

  def settle() -> bool:
    """Looks at the oldest step under way; True if a process wishes to stop."""
    step, batch, metrics = waiting.popleft()
    metrics = jax.device_get(metrics)
    if not metrics['finite']:
      # Nothing was updated since: the state is the one that failed.
      where = diagnosis.of_step(
        run.model,
        run.task,
        run.learning(progress.phase),
        {'params': state.params, 'batch_stats': state.batch_stats},
        batch,
        start=cache.prefix if cache else None,
      )
      raise TrainingError(
        f'the loss or its gradient was not finite at step {step}: {where}. '
        'Nothing of that step was saved. Lower the learning rate or '
        '--config.train.clip_norm, or mend what is named, and start anew'
      )
    progress.known += int(metrics['known'])
    progress.right += int(metrics['right'])
    loss = float(metrics['loss'])
    bar.set_postfix(loss=f'{loss:.4f}', refresh=False)
    history.step(step, loss)
    return bool(metrics['stop'])

  step = int(state.step)
  with bar, contextlib.closing(batches):
    for batch in batches:
      if cache and cache.prefix == 'cells':
        batch = _thinned(batch, config, step)
      state, metrics = update(
        state,
        step_lib.for_step(
          batch,
          stop=bool(signals.received),
          accumulate=config.train.accumulate,
        ),
      )
      step += 1
      progress.batch += 1
      waiting.append((step, batch, metrics))
      bar.update()
      stop = False
      if len(waiting) > _IN_FLIGHT:
        stop = settle()
      due = step % config.train.checkpoint_every == 0
      if stop or (due and progress.batch < count):
        while waiting:
          # With frequent checkpoints this is where a signal is first seen.
          stop = settle() or stop
        if stop:
          _leave(state, progress, store, signals)
        store.save(state, {'progress': dataclasses.asdict(progress)})
    while waiting:
      settle()
  return state


def _thinned(batch, config, step: int) -> dict[str, np.ndarray]:
  """Returns a batch with every `train.cell_stride`-th row and column of cells.

  Counted from a place that is drawn anew at every step.
  """
  stride = config.train.cell_stride
  if stride == 1:
    return batch
  rng = np.random.default_rng([config.seed, step, 4])
  row, column = rng.integers(0, stride, 2)
  thin = {
    k: batch[k][:, row::stride, column::stride] for k in ('features', 'fault')
  }
  return {**batch, **thin}


def _leave(state, progress, store, signals) -> None:
  """Saves the state and ends the run."""
  store.save(state, {'progress': dataclasses.asdict(progress)})
  store.wait()
  raise Interrupted(signals.received or signal.SIGTERM, int(state.step))


class _Stop(Exception):
  """A signal came where no other process needs to agree."""


def _make_validation(run, cache, signals) -> Callable[[Any], dict]:
  """Returns a function from variables to loss, AUC and balanced accuracy."""
  plan = pipeline.plan_eval(run.source, run.splits['validation'])
  predictor = inference.make_predictor(
    run.model, run.task, start=cache.prefix if cache else None
  )
  size = run.config.eval.batch_size

  def batches():
    for batch in feature_cache.read(
      run.source, plan, run.config, cache, batch_size=size
    ):
      if signals.alone():
        raise _Stop
      yield batch

  def validate(variables):
    rows = inference.predict_with(predictor, variables, run.task, batches())
    return measure(run.task, rows, run.source.table)

  return validate


def measure(
  task: Task,
  rows: Mapping[str, np.ndarray],
  table: Mapping[str, np.ndarray],
) -> dict[str, float | None]:
  """Returns 'loss', 'accuracy', 'auc' and 'balanced_accuracy' of predictions.

  Accuracy is that of `Task.right`; AUC and balanced accuracy (at p_inadequate
  0.5) are of the verdict. None where they are undefined: no labels, a class is
  absent, or a prediction is not finite.
  """
  labels = {
    key: np.asarray(table[key])[rows['index']]
    for key in ('quality', 'grade', 'criteria')
  }
  logits = jnp.asarray(rows['logits'])
  loss, weight = task.loss(logits, labels)
  total = float((loss * weight).sum() / jnp.maximum(weight.sum(), 1e-12))
  known = labels['quality'] >= 0
  positive = labels['quality'][known] == 1
  p = np.asarray(rows['p_inadequate'], np.float64)[known]
  n1, n0 = int(positive.sum()), int((~positive).sum())
  accuracy = auc = balanced = None
  if np.isfinite(rows['logits']).all():
    accuracy = _share(*(int(of.sum()) for of in task.right(logits, labels)))
  if n1 and n0 and np.isfinite(p).all():
    # Mann-Whitney: the ranks of the positives, ties sharing theirs.
    ranks = scipy.stats.rankdata(task.log_odds(rows['logits'])[known])
    auc = float((ranks[positive].sum() - n1 * (n1 + 1) / 2) / (n1 * n0))
    called = p >= 0.5
    hits = (called[positive].mean(), (~called[~positive]).mean())
    balanced = float(np.mean(hits))
  return {
    'loss': _finite(total),
    'accuracy': accuracy,
    'auc': auc,
    'balanced_accuracy': balanced,
  }


def _share(known: int, right: int) -> float | None:
  return right / known if known else None


def _finite(value) -> float | None:
  value = float(value)
  return value if math.isfinite(value) else None


def _better(select_by: str, record, best) -> bool:
  """Returns whether an epoch beats the best one; the loss breaks ties."""
  if best is None or select_by == 'last':
    return True

  def score(r):
    loss = r['validation_loss']
    loss = -math.inf if loss is None else -loss
    if select_by == 'loss':
      return (loss,)
    value = r[f'validation_{select_by}']
    return (-math.inf if value is None else value, loss)

  return score(record) > score(best)


def _save_model(run, state, progress, record) -> None:
  if jax.process_index():
    return
  variables = jax.tree.map(np.asarray, step_lib.evaluated(state))
  run_directory.save_model(
    run.workdir,
    variables,
    {
      'config': json.loads(config_lib.to_json(run.config)),
      'outputs': list(run.task.outputs),
      'image_size': run.config.data.image_size,
      'step': record['step'],
      'epoch': record['epoch'],
      'validation': {key: record[f'validation_{key}'] for key in _MEASURED},
      'source': progress.pretrained,
    },
  )


class _History:
  """Writes what people read of `Progress.history`; process 0 only."""

  def __init__(self, workdir: pathlib.Path, progress: Progress):
    self._workdir = workdir
    self._progress = progress
    self._writer: tensorboardX.SummaryWriter | None = None

  def __enter__(self) -> _History:
    if jax.process_index() == 0:
      history = self._progress.history
      last = history[-1]['step'] if history else 0
      self._writer = tensorboardX.SummaryWriter(
        str(self._workdir / 'tensorboard'), purge_step=last + 1
      )
      self._write_files()
    return self

  def __exit__(self, *_) -> None:
    if self._writer is not None:
      self._writer.close()

  def step(self, step: int, loss: float) -> None:
    if self._writer is not None and step % 10 == 0:
      self._writer.add_scalar('train/batch_loss', loss, step)

  def write(self, images_per_second: float) -> None:
    """Writes the last epoch's record; speed goes to TensorBoard and the log.

    It would make the history of a repeated run differ.
    """
    record = self._progress.history[-1]
    values = ', '.join(
      f'{key} {record[key]:.4f}'
      for key in (
        *('train_loss', 'train_accuracy', 'validation_accuracy'),
        *(f'validation_{k}' for k in _MEASURED),
      )
      if record[key] is not None
    )
    logging.info(
      'epoch %d (%s): %s; %.1f images/s%s',
      record['epoch'],
      record['phase'],
      values,
      images_per_second,
      '; the best so far' if record['best'] else '',
    )
    if self._writer is None:
      return
    for key, value in record.items():
      if isinstance(value, float):
        group, _, name = key.partition('_')
        self._writer.add_scalar(f'{group}/{name}', value, record['step'])
    self._writer.add_scalar(
      'train/images_per_second', images_per_second, record['step']
    )
    self._writer.flush()
    self._write_files()

  def _write_files(self) -> None:
    history = self._progress.history
    lines = ''.join(json.dumps(record) + '\n' for record in history)
    run_directory.write_text(self._workdir / 'history.jsonl', lines)
    table = io.StringIO()
    if history:
      # A run that an older version began has fewer fields in its first epochs.
      writer = csv.DictWriter(table, list(history[-1]), lineterminator='\n')
      writer.writeheader()
      writer.writerows(history)
    run_directory.write_text(self._workdir / 'history.csv', table.getvalue())


class _Signals:
  """Notes SIGTERM and SIGINT while training; a second one acts as before."""

  def __init__(self):
    self.received = 0
    self._before: dict[int, Any] = {}

  def alone(self) -> bool:
    """Returns whether to stop at once: no other process must agree."""
    return bool(self.received) and jax.process_count() == 1

  def __enter__(self) -> _Signals:
    if threading.current_thread() is threading.main_thread():
      for number in (signal.SIGTERM, signal.SIGINT):
        self._before[number] = signal.signal(number, self._note)
    return self

  def __exit__(self, *_) -> None:
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def _note(self, number, _) -> None:
    self.received = number
    logging.warning(
      '%s: saving after the current step; once more ends at once',
      signal.Signals(number).name,
    )
    signal.signal(number, self._before[number])
