"""What stays the same during a run, and where it starts from."""

from __future__ import annotations

from collections.abc import Mapping
import json
import math
import os
import pathlib

from absl import logging
import jax
import ml_collections
import numpy as np

from iqa_jax import config as config_lib
from iqa_jax import devices, errors, models, processes, run_directory
from iqa_jax.aliases import Record
from iqa_jax.data import plan as plan_lib
from iqa_jax.data.source import Source
from iqa_jax.models import pretrained
from iqa_jax.tasks import Task
from iqa_jax.training import checkpoints, history, phases
from iqa_jax.training import step as step_lib

_COUNTED_EPOCHS = 10  # whose labels class weights balance


class Run:
  """What stays the same during a run.

  Attributes:
    config: its configuration.
    workdir: the run directory.
    source: the data (data/pipeline.py).
    splits: indices into `source.table`, 'train' and 'validation'.
    task: what is judged, with the class weights of what will be seen.
    model: the classifier.
    shapes: of its variables.
    steps_per_epoch: batches in an epoch.
    prefixes: the last frozen feature point of every phase, None without one.
  """

  def __init__(
    self,
    config: ml_collections.ConfigDict,
    workdir: str | os.PathLike,
    source: Source,
    splits: Mapping[str, np.ndarray],
  ):
    """Raises InvalidValue for a wrong field of `config` or an empty split."""
    _check(config, splits)
    self.config = config
    self.workdir = pathlib.Path(workdir)
    self.source = source
    self.splits = splits
    # Of a few epochs: what is drawn at random evens out.
    epochs = min(sum(p.epochs for p in config.train.phases), _COUNTED_EPOCHS)
    labels = plan_lib.planned_labels(source, splits['train'], config, epochs)
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

  def initial_variables(self) -> Record:
    """Returns variables drawn from the seed."""
    key = jax.random.key(self.config.seed)
    return models.init(self.model, key, self.config.data.image_size)

  def plan(self, epoch: int) -> plan_lib.Plan:
    """Returns the plan of an epoch, counted over all phases."""
    return plan_lib.plan_train(
      self.source, self.splits['train'], self.config, epoch
    )

  def learning(self, number: int) -> phases.Learning:
    """Returns what phase `number` teaches."""
    return phases.learning(
      self.config.train.phases[number],
      self.shapes['params'],
      self.model.stages,
      entries=self.model.entries,
      steps_per_epoch=self.steps_per_epoch,
      clip_norm=self.config.train.clip_norm,
    )

  def begin_phase(
    self, state: step_lib.TrainState, number: int
  ) -> step_lib.TrainState:
    """Returns `state` as phase `number` begins with it."""
    return step_lib.begin_phase(
      state,
      self.learning(number),
      keep_optimizer=not self.config.train.phases[number].reset_optimizer,
      ema=self.config.train.ema_decay > 0,
    )

  def save_model(
    self, state: step_lib.TrainState, record: Record, source: Record
  ) -> None:
    """Writes the evaluated weights of `state` as the run's best model.

    Args:
      state: at the end of the epoch.
      record: the history's, of that epoch.
      source: where the weights began (models/pretrained.py).
    """
    if jax.process_index():
      return
    run_directory.save_model(
      self.workdir,
      jax.tree.map(np.asarray, step_lib.evaluated(state)),
      {
        'config': json.loads(config_lib.to_json(self.config)),
        'outputs': list(self.task.outputs),
        'image_size': self.config.data.image_size,
        'step': record['step'],
        'epoch': record['epoch'],
        'validation': {
          key: record[f'validation_{key}'] for key in history.MEASURED
        },
        'source': source,
      },
    )


def start(
  run: Run, store: checkpoints.Store
) -> tuple[step_lib.TrainState, history.Progress]:
  """Returns the latest saved state of a run and where it stood, or new ones."""

  def template(record: Record) -> step_lib.TrainState:
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
    progress = history.Progress(**record['progress'])
    logging.info(
      'resuming at step %d: phase %d, epoch %d, batch %d',
      int(state.step),
      progress.phase + 1,
      progress.epoch + 1,
      progress.batch,
    )
    return devices.place(state), progress
  variables = run.initial_variables()
  # The file may be on process 0's machine alone.
  loaded = processes.first(
    lambda: pretrained.load(run.config.model.pretrained, run.model, variables)
  )
  variables, origin = loaded or (variables, None)
  state = step_lib.create_state(processes.broadcast(variables))
  origin = processes.broadcast_json(origin)
  return devices.place(state), history.Progress(pretrained=origin)


def _check(
  config: ml_collections.ConfigDict, splits: Mapping[str, np.ndarray]
) -> None:
  errors.one_of('eval.select_by=', config.eval.select_by, history.SELECT_BY)
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
