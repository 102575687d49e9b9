"""A run's training from its first step to its last, and back after a stop.

Where a run stands is a `Progress`: phase, epoch, batch, the best epoch so far
and the history. It is saved with every checkpoint. Plans, dropout and feature
caches depend on seeds and positions alone: on CPU a resumed run ends with the
bits of one that was never stopped.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
import contextlib
import dataclasses
import os
import signal
import time
from typing import NoReturn

from absl import logging
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import tqdm

from iqa_jax import devices, errors, inference, processes
from iqa_jax.aliases import Record, Variables
from iqa_jax.data import plan as plan_lib
from iqa_jax.data.source import Source
from iqa_jax.training import (
  checkpoints,
  diagnosis,
  feature_cache,
  phases,
  standardization,
)
from iqa_jax.training import step as step_lib
from iqa_jax.training.history import History, better, finite, measure, share
from iqa_jax.training.run import Run, start
from iqa_jax.training.signals import Interrupted, Signals

# Steps that may be under way while the host prepares the next one.
_IN_FLIGHT = 2


class TrainingError(errors.UserError):
  """Training can't go on; the message says why and what to do."""


def train(
  config: ml_collections.ConfigDict,
  workdir: str | os.PathLike,
  source: Source,
  splits: Mapping[str, np.ndarray],
  saved: Callable[[], None] = lambda: None,
) -> None:
  """Trains all phases, or what is left of them, and saves the best model.

  Args:
    config: the run's configuration.
    workdir: the run directory, locked by the caller.
    source: the data (data/pipeline.py).
    splits: indices into `source.table`: 'train' and 'validation'.
    saved: called in the background after every checkpoint.

  Raises:
    Interrupted: SIGTERM or SIGINT; the state is saved.
    TrainingError: the loss stopped being finite.
    RunDirectoryError: something could not be written, or no checkpoint read.
    ValueError: a field of the configuration is wrong, or a split is empty.
  """
  run = Run(config, workdir, source, splits)
  with checkpoints.Store(workdir, saved) as store, Signals() as signals:
    trainer = Trainer(run, store, signals)
    trainer.train()
    # A signal to one process must not leave the others to go on alone.
    received = processes.gather({'signal': np.array([signals.received])})
    if received['signal'].any():
      raise Interrupted(int(received['signal'].max()), int(trainer.state.step))


@dataclasses.dataclass(frozen=True)
class _Phase:
  """What a phase's epochs have in common.

  Attributes:
    name: for the log and the history.
    epochs: how many it has at most.
    learning: what it teaches.
    cache: of what lies below that; None where photographs are read.
    update: the step, of step.make_train_step.
    validate: from variables to `measure` of the validation split.
  """

  name: str
  epochs: int
  learning: phases.Learning
  cache: feature_cache.FeatureCache | None
  update: Callable[
    [step_lib.TrainState, step_lib.HostBatch],
    tuple[step_lib.TrainState, step_lib.Batch],
  ]
  validate: Callable[[Variables], dict[str, float | None]]


class Trainer:
  """Trains a run from where it stands to its end.

  Attributes:
    run: what stays the same.
    state: what training changes.
    progress: where the run stands.
  """

  def __init__(
    self, run: Run, store: checkpoints.Store, signals: Signals
  ) -> None:
    self.run = run
    self.state, self.progress = start(run, store)
    self._config = run.config
    self._store = store
    self._signals = signals
    self._history = History(run.workdir, self.progress)
    # The feature cache that later phases go on using.
    self._held: feature_cache.FeatureCache | None = None

  def train(self) -> None:
    """Trains the phases that are left; raises as `train` does."""
    with self._history:
      while self.progress.phase < len(self._config.train.phases):
        self._train_phase()
        self.progress.phase += 1
        self.progress.epoch = self.progress.stale = 0

  def _train_phase(self) -> None:
    """Trains the rest of the phase in which `progress` is."""
    progress, number = self.progress, self.progress.phase
    learning = self.run.learning(number)
    if progress.epoch == progress.batch == 0:
      self.state = devices.place(self.run.begin_phase(self.state, number))
    if self._is_over():
      return
    phase = self._open_phase(learning)
    while not self._is_over():
      begun, seen = time.monotonic(), progress.batch
      self._train_epoch(phase)
      seconds = time.monotonic() - begun
      images = (progress.batch - seen) * self._config.train.batch_size
      try:
        measured = phase.validate(step_lib.evaluated(self.state))
      except _Stop:
        self._leave()
      self._end_epoch(phase, measured)
      # Short epochs on cached maps would do little but write.
      wait = self._config.train.checkpoint_seconds
      if self._is_over() or self._store.age >= wait:
        self._save()
      self._history.write(images / seconds)

  def _is_over(self) -> bool:
    """Returns whether the phase in which `progress` is has ended."""
    progress, patience = self.progress, self._config.train.early_stop
    if patience and progress.stale >= patience and not progress.batch:
      return True
    return progress.epoch >= self._config.train.phases[progress.phase].epochs

  def _open_phase(self, learning: phases.Learning) -> _Phase:
    """Makes ready what the epochs of the current phase need."""
    run, config = self.run, self._config
    phase = config.train.phases[self.progress.phase]
    name = phase.name or phase.learns
    learns, _ = phases.split(self.state.params, learning.paths)
    logging.info(
      'phase %d of %d, %s: %d of %d parameters learn%s',
      self.progress.phase + 1,
      len(config.train.phases),
      name,
      sum(np.size(p) for p in learns.values()),
      sum(np.size(p) for p in jax.tree.leaves(self.state.params)),
      f', frozen up to {learning.prefix}' if learning.prefix else '',
    )
    cache = self._make_cache()
    # Here, because where there is a cache no photograph is read again for it.
    fitted = standardization.fit(
      run.model,
      {'params': self.state.params, 'batch_stats': self.state.batch_stats},
      run.source,
      run.splits['train'],
      config,
      cache,
    )
    self.state = devices.place(
      self.state.replace(batch_stats=fitted['batch_stats'])
    )
    update = step_lib.make_train_step(
      run.model,
      run.task,
      learning,
      start=cache.prefix if cache else None,
      seed=config.seed,
      accumulate=config.train.accumulate,
      ema_decay=config.train.ema_decay,
    )
    validate = self._make_validation(cache)
    return _Phase(name, phase.epochs, learning, cache, update, validate)

  def _make_cache(self) -> feature_cache.FeatureCache | None:
    """Returns the feature cache of the current phase, if it has one."""
    run = self.run
    cache, self._held = feature_cache.for_phase(
      run.model,
      step_lib.evaluated(self.state),
      run.source,
      self._config,
      run.prefixes,
      self.progress.phase,
      train=run.splits['train'],
      validation=run.splits['validation'],
      folder=run.workdir,
      held=self._held,
      stopped=self._signals.alone,
    )
    if self._signals.alone():
      # Nothing is lost: the cache is made again.
      if not self.progress.batch and not self.progress.epoch:
        raise Interrupted(self._signals.received, int(self.state.step))
      self._leave()
    return cache

  def _make_validation(
    self, cache: feature_cache.FeatureCache | None
  ) -> Callable[[Variables], dict[str, float | None]]:
    """Returns a function from variables to `measure` of validation."""
    run = self.run
    plan = plan_lib.plan_eval(run.splits['validation'])
    predictor = inference.make_predictor(
      run.model, run.task, start=cache.prefix if cache else None
    )
    size = feature_cache.pass_size(self._config, cache)

    def batches() -> Iterator[dict[str, np.ndarray]]:
      for batch in feature_cache.read(
        run.source, plan, self._config, cache, batch_size=size
      ):
        if self._signals.alone():
          raise _Stop
        yield batch

    def validate(variables: Variables) -> dict[str, float | None]:
      rows = inference.predict_with(predictor, variables, run.task, batches())
      return measure(run.task, rows, run.source.table)

    return validate

  def _train_epoch(self, phase: _Phase) -> None:
    """Trains the rest of the epoch in which `progress` is."""
    progress, train = self.progress, self._config.train
    plan = self.run.plan(progress.total_epochs)
    count = -(-len(plan.index) // train.batch_size)
    batches = feature_cache.read(
      self.run.source,
      plan,
      self._config,
      phase.cache,
      batch_size=train.batch_size,
      start_batch=progress.batch,
    )
    waiting: deque = deque()
    bar = tqdm.tqdm(
      total=count,
      initial=progress.batch,
      desc=f'{phase.name} {progress.epoch + 1}/{phase.epochs}',
      unit='batch',
      # Off a terminal a bar would fill the log; process 0 speaks for all.
      disable=None if jax.process_index() == 0 else True,
    )
    step = int(self.state.step)
    with bar, contextlib.closing(batches):
      for batch in batches:
        if phase.cache and phase.cache.prefix == 'cells':
          batch = feature_cache.thinned(
            batch, train.cell_stride, [self._config.seed, step, 4]
          )
        inputs = step_lib.for_step(
          batch, stop=bool(self._signals.received), accumulate=train.accumulate
        )
        self.state, metrics = phase.update(self.state, inputs)
        step += 1
        progress.batch += 1
        waiting.append((step, batch, metrics))
        bar.update()
        stop = False
        if len(waiting) > _IN_FLIGHT:
          stop = self._settle(phase, bar, *waiting.popleft())
        due = step % train.checkpoint_every == 0
        if stop or (due and progress.batch < count):
          while waiting:
            # With frequent checkpoints this is where a signal is first seen.
            stop = self._settle(phase, bar, *waiting.popleft()) or stop
          if stop:
            self._leave()
          self._save()
      while waiting:
        self._settle(phase, bar, *waiting.popleft())

  def _settle(
    self,
    phase: _Phase,
    bar: tqdm.tqdm,
    step: int,
    batch: Mapping[str, np.ndarray],
    metrics: step_lib.Batch,
  ) -> bool:
    """Looks at a step under way; True if a process wishes to stop."""
    metrics = jax.device_get(metrics)
    if not metrics['finite']:
      # Nothing was updated since: the state is the one that failed.
      where = diagnosis.of_step(
        self.run.model,
        self.run.task,
        phase.learning,
        {'params': self.state.params, 'batch_stats': self.state.batch_stats},
        batch,
        start=phase.cache.prefix if phase.cache else None,
      )
      raise TrainingError(
        f'the loss or its gradient was not finite at step {step}: {where}. '
        'Nothing of that step was saved. Lower the learning rate or '
        '--config.train.clip_norm, or mend what is named, and start anew'
      )
    self.progress.known += int(metrics['known'])
    self.progress.right += int(metrics['right'])
    loss = float(metrics['loss'])
    bar.set_postfix(loss=f'{loss:.4f}', refresh=False)
    self._history.step(step, loss)
    return bool(metrics['stop'])

  def _end_epoch(
    self, phase: _Phase, measured: Mapping[str, float | None]
  ) -> None:
    """Writes an epoch into the history, and the model where it is the best."""
    state, progress = self.state, self.progress
    done = progress.epoch * self.run.steps_per_epoch + progress.batch
    record: Record = {
      'phase': phase.name,
      'epoch': progress.total_epochs + 1,
      'step': int(state.step),
      'learning_rate': float(phase.learning.schedule(done - 1)),
      'train_loss': finite(state.loss_sum / state.weight_sum),
      'train_accuracy': share(progress.known, progress.right),
      **{f'validation_{key}': value for key, value in measured.items()},
    }
    record['best'] = better(self._config.eval.select_by, record, progress.best)
    if record['best']:
      progress.best, progress.stale = record, 0
      # What is being copied to a bucket must not change under it.
      self._store.wait()
      self.run.save_model(state, record, progress.pretrained)
    else:
      progress.stale += 1
    progress.history.append(record)
    progress.epoch += 1
    progress.total_epochs += 1
    progress.batch = progress.known = progress.right = 0
    self.state = devices.place(
      state.replace(
        loss_sum=jnp.zeros_like(state.loss_sum),
        weight_sum=jnp.zeros_like(state.weight_sum),
      )
    )

  def _save(self) -> None:
    progress = dataclasses.asdict(self.progress)
    self._store.save(self.state, {'progress': progress})

  def _leave(self) -> NoReturn:
    """Saves the state and ends the run."""
    self._save()
    self._store.wait()
    raise Interrupted(
      self._signals.received or signal.SIGTERM, int(self.state.step)
    )


class _Stop(Exception):
  """A signal came where no other process needs to agree."""
