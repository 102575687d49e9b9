"""What training remembers of its epochs, and what people read of it.

`Progress` is saved with every checkpoint; history.jsonl, history.csv and
tensorboard/ are written from it, so they never disagree with the state that
training resumes from.
"""

from __future__ import annotations

from collections.abc import Mapping
import csv
import dataclasses
import io
import json
import math
import pathlib

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
import tensorboardX

from iqa_jax import run_directory
from iqa_jax.aliases import Record
from iqa_jax.tasks import Task

MEASURED = ('auc', 'loss', 'balanced_accuracy')
SELECT_BY = (*MEASURED, 'last')


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
  best: Record | None = None
  stale: int = 0
  history: list[Record] = dataclasses.field(default_factory=list)
  pretrained: Record = dataclasses.field(default_factory=dict)


def measure(
  task: Task, rows: Mapping[str, np.ndarray], table: Mapping[str, np.ndarray]
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
    accuracy = share(*(int(of.sum()) for of in task.right(logits, labels)))
  if n1 and n0 and np.isfinite(p).all():
    # Mann-Whitney: the ranks of the positives, ties sharing theirs.
    ranks = scipy.stats.rankdata(task.log_odds(rows['logits'])[known])
    auc = float((ranks[positive].sum() - n1 * (n1 + 1) / 2) / (n1 * n0))
    called = p >= 0.5
    hits = (called[positive].mean(), (~called[~positive]).mean())
    balanced = float(np.mean(hits))
  return {
    'loss': finite(total),
    'accuracy': accuracy,
    'auc': auc,
    'balanced_accuracy': balanced,
  }


def share(known: int, right: int) -> float | None:
  """Returns the share of `known` that is `right`, None of nothing."""
  return right / known if known else None


def finite(value: float | jax.Array) -> float | None:
  """Returns a number as JSON has it: None for what is not finite."""
  value = float(value)
  return value if math.isfinite(value) else None


def better(select_by: str, record: Record, best: Record | None) -> bool:
  """Returns whether an epoch beats the best one; the loss breaks ties."""
  if best is None or select_by == 'last':
    return True

  def score(r: Record) -> tuple[float, ...]:
    loss = r['validation_loss']
    loss = -math.inf if loss is None else -loss
    if select_by == 'loss':
      return (loss,)
    value = r[f'validation_{select_by}']
    return (-math.inf if value is None else value, loss)

  return score(record) > score(best)


class History:
  """Writes what people read of `Progress.history`; process 0 only."""

  def __init__(self, workdir: pathlib.Path, progress: Progress):
    self._workdir = workdir
    self._progress = progress
    self._writer: tensorboardX.SummaryWriter | None = None

  def __enter__(self) -> History:
    if jax.process_index() == 0:
      history = self._progress.history
      last = history[-1]['step'] if history else 0
      self._writer = tensorboardX.SummaryWriter(
        str(self._workdir / 'tensorboard'), purge_step=last + 1
      )
      self._write_files()
    return self

  def __exit__(self, *_: object) -> None:
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
        *(f'validation_{k}' for k in MEASURED),
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
