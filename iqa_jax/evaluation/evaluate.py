"""Evaluates a trained model: what it reaches, on whom, and how sure that is.

Calibration, operating point and uncertain band are fitted on the validation
split and stored with the model; the test split is only measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import csv
import os
import pathlib
from typing import Any

from absl import logging
import jax
import ml_collections
import numpy as np

from iqa_jax import inference, labels, run_directory
from iqa_jax.data import pipeline
from iqa_jax.evaluation import calibration, metrics, operating_points
from iqa_jax.tasks import Task

Columns = dict[str, np.ndarray]
SPLITS = ('validation', 'test')


def run(
  config: ml_collections.ConfigDict,
  workdir: str | os.PathLike,
  source: pipeline.Source,
  splits: Mapping[str, np.ndarray],
  *,
  ensemble: Sequence[str] = (),
  output: str | os.PathLike | None = None,
) -> dict[str, Any]:
  """Evaluates the best model of a run and writes everything people look at.

  Args:
    config: the data and the evaluation (`data`, `eval`, `explain`).
    workdir: the run directory whose model is evaluated.
    source: the data.
    splits: indices of 'validation' and 'test'.
    ensemble: further run directories; p_inadequate and logits are averaged.
    output: where predictions.csv, metrics.json, figures/ and report/ go; None
      for `workdir`. With another place the model's own calibration and
      operating point are applied as they are.

  Returns:
    What metrics.json holds (README.md beside this file).

  Raises:
    RunDirectoryError: a model is missing, damaged, or of another task.
  """
  home = pathlib.Path(workdir)
  output = pathlib.Path(output or workdir)
  models = [inference.load(d) for d in (workdir, *ensemble)]
  task = models[0].task
  for other, folder in zip(models[1:], ensemble, strict=True):
    if other.task.outputs != task.outputs:
      raise run_directory.RunDirectoryError(
        f'{folder} judges {other.task.outputs}, {workdir} {task.outputs}: '
        'an ensemble needs one task'
      )
  tables = {
    name: _predict(models, config, source, splits[name], name)
    for name in SPLITS
    if len(splits[name])
  }
  if jax.process_index():
    return {}
  own = output.resolve() == home.resolve() and not ensemble
  record = _operating_record(
    models[0].record,
    config,
    tables.get('validation'),
    fit=own or bool(ensemble),
  )
  if own:
    run_directory.update_model_record(workdir, **record)
  for columns in tables.values():
    apply_operating_record(columns, record)
  write_predictions(output / 'predictions.csv', tables.values())
  result = {
    'format': 1,
    'positive_class': 'inadequate',
    'task': task.name,
    'model': {
      'digest': [m.digest for m in models],
      'epoch': models[0].record.get('epoch'),
      'step': models[0].record.get('step'),
    },
    'data': source.description,
    **record,
    'splits': {
      name: measure(columns, task, record['operating_point']['threshold'])
      for name, columns in tables.items()
    },
  }
  run_directory.write_json(output / 'metrics.json', result)
  for name, values in result['splits'].items():
    verdict = values['verdict']
    logging.info(
      '%s: %d photographs (%d Inadequate), AUC %s, sensitivity %s, '
      'specificity %s',
      name,
      verdict['n'],
      verdict['n_inadequate'],
      *(_told(verdict[k]) for k in ('auc', 'sensitivity', 'specificity')),
    )
  return result


def _told(value) -> str:
  return 'undefined' if value is None else f'{value:.3f}'


def _predict(models, config, source, indices, split) -> Columns:
  """Returns the predictions of a split beside its labels."""
  plan = pipeline.plan_eval(source, indices)
  rows = []
  for loaded in models:
    batches = pipeline.batches(
      source,
      plan,
      image_size=loaded.image_size,
      batch_size=config.eval.batch_size,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
    )
    rows.append(
      inference.predict(loaded, batches, flip_tta=config.eval.flip_tta)
    )
  first, task = rows[0], models[0].task
  index = first['index']
  p = np.mean([r['p_inadequate'] for r in rows], axis=0)
  spread = first['spread']
  if len(rows) > 1:
    spread = np.std([r['p_inadequate'] for r in rows], axis=0)
  logits = np.mean([r['logits'] for r in rows], axis=0)
  probabilities = np.asarray(task.probabilities(logits))
  table = source.table
  columns: Columns = {
    key: table[key][index]
    for key in ('image_id', 'dataset', 'patient_id', 'camera', 'eye', 'grade')
  }
  columns['split'] = np.full(len(index), split)
  columns['quality'] = table['quality'][index]
  for i, name in enumerate(labels.CRITERIA):
    columns[name] = table['criteria'][index, i]
  for key in ('field_found', 'width', 'height'):
    columns[key] = table[key][index]
  for i, name in enumerate(task.outputs):
    columns[f'logit_{name}'] = logits[:, i]
    columns[f'p_{name}'] = probabilities[:, i]
  # The quality task's own output has this name too; ensembles average it.
  columns['p_inadequate'] = p.astype(np.float64)
  columns['spread'] = spread
  return columns


def _operating_record(saved, config, validation, *, fit) -> dict[str, Any]:
  """Returns calibration, operating point and band: fitted, or the saved."""
  keys = ('calibration', 'operating_point', 'uncertain_band')
  if not fit and all(key in saved for key in keys):
    return {key: saved[key] for key in keys}
  known = slice(0, 0)
  truth = p = np.zeros(0)
  if validation is not None:
    known = (validation['quality'] >= 0) & np.isfinite(
      validation['p_inadequate']
    )
    truth = validation['quality'][known]
    p = validation['p_inadequate'][known]
  fitted = calibration.fit(config.eval.calibration, truth, p)
  p = calibration.apply(fitted, p)
  point = operating_points.choose(
    config.eval.operating_point, config.eval.operating_target, truth, p
  )
  band = operating_points.uncertain_band(
    p, point['threshold'], config.eval.uncertain_share
  )
  return dict(zip(keys, (fitted, point, band), strict=True))


def apply_operating_record(columns: Columns, record: Mapping[str, Any]) -> None:
  """Adds 'p_calibrated', 'verdict' (int) and 'uncertain' (int) to columns.

  A prediction that is not finite has verdict -1 and is uncertain.
  """
  p = calibration.apply(record['calibration'], columns['p_inadequate'])
  columns['p_calibrated'] = p
  finite = np.isfinite(p)
  verdict = (p >= record['operating_point']['threshold']).astype(int)
  columns['verdict'] = np.where(finite, verdict, labels.UNKNOWN)
  columns['uncertain'] = (
    operating_points.is_uncertain(p, record['uncertain_band']) | ~finite
  ).astype(int)


def measure(columns: Columns, task: Task, threshold: float) -> dict[str, Any]:
  """Returns the measures of a split (README.md beside this file).

  Args:
    columns: the predictions, after `apply_operating_record`.
    task: the run's.
    threshold: the operating point, on p_calibrated.
  """
  finite = np.isfinite(columns['p_calibrated'])
  known = finite & (columns['quality'] >= 0)
  result: dict[str, Any] = {
    'n': len(finite),
    'n_not_finite': int((~finite).sum()),
    'verdict': metrics.verdict_metrics(
      columns['quality'][known], columns['p_calibrated'][known], threshold
    ),
  }
  if task.name == 'grade':
    graded = finite & (columns['grade'] >= 0)
    p = np.stack([columns[f'p_{n}'][graded] for n in task.outputs], 1)
    result['grade'] = metrics.multiclass(
      columns['grade'][graded], p.argmax(1), task.outputs
    )
  if task.name == 'criteria':
    result['criteria'] = {}
    for name in task.outputs:
      there = finite & (columns[name] >= 0)
      result['criteria'][name] = metrics.verdict_metrics(
        columns[name][there], columns[f'p_{name}'][there], 0.5
      )
  return result


def write_predictions(
  path: str | os.PathLike, tables: Sequence[Columns] | Any
) -> None:
  """Writes every row of the tables once, as CSV; verdicts by name."""
  tables = list(tables)
  with run_directory.atomic_path(path) as temporary:
    with open(temporary, 'w', encoding='utf-8', newline='') as file:
      writer = csv.writer(file)
      names = list(tables[0]) if tables else []
      writer.writerow(names)
      for columns in tables:
        shown = {
          **columns,
          'verdict': np.array(['unknown', *labels.QUALITY])[
            columns['verdict'] + 1
          ],
        }
        for row in zip(*(shown[k].tolist() for k in names), strict=True):
          writer.writerow(row)
