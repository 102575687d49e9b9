"""Evaluates a trained model: what it reaches, on whom, and how sure that is.

Calibration, operating point and uncertain band are fitted on the validation
split and stored with the model; the test split is only measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import json
import os
import pathlib

from absl import logging
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from iqa_jax import config as config_lib
from iqa_jax import devices, inference, labels, run_directory, trained
from iqa_jax import models as models_lib
from iqa_jax.aliases import Record
from iqa_jax.data import pipeline
from iqa_jax.data import plan as plan_lib
from iqa_jax.data import source as source_lib
from iqa_jax.evaluation import (
  assessment,
  examples,
  looks,
  measuring,
  predictions,
  report,
)
from iqa_jax.evaluation.predictions import Predictions
from iqa_jax.judging import operating_points, operating_record
from iqa_jax.judging.operating_record import OperatingRecord
from iqa_jax.tasks import Task

Splits = Mapping[str, np.ndarray]
SPLITS = ('validation', 'test')


def run(
  config: ml_collections.ConfigDict,
  workdir: str | os.PathLike,
  source: source_lib.Source,
  splits: Splits,
  *,
  ensemble: Sequence[str] = (),
  output: str | os.PathLike | None = None,
) -> Record:
  """Evaluates the best model of a run and writes everything people look at.

  Args:
    config: the data and the evaluation (`data`, `eval`, `explain`).
    workdir: the run directory whose model is evaluated.
    source: the data.
    splits: indices of 'train', 'validation' and 'test'.
    ensemble: further run directories, whose probabilities (and, for the
      record, logits) are averaged with the run's; their own calibration and
      operating point are fitted on validation, and not stored with any model.
    output: where predictions.csv, metrics.json, figures/ and report/ go; None
      for `workdir`. With another place the model's own calibration and
      operating point are applied as they are, to logits that are flip-averaged
      if those they were chosen on were.

  Returns:
    What metrics.json holds (README.md beside this file).

  Raises:
    RunDirectoryError: a model is missing, damaged, or of another task.
  """
  folders = [pathlib.Path(d) for d in (workdir, *ensemble)]
  output = pathlib.Path(output or workdir)
  models = _load(workdir, ensemble)
  saved, task = models[0].record, models[0].task
  own = output.resolve() == folders[0].resolve() and not ensemble
  complete = all(k in saved for k in operating_record.FIELDS)
  fit = own or bool(ensemble) or not complete
  flip_tta = bool(config.eval.flip_tta) if fit else models[0].judges.flip_tta
  size = devices.pass_size(config.eval.batch_size)
  tables = {
    name: _predict(models, source, splits[name], name, size, flip_tta)
    for name in SPLITS
    if len(splits[name])
  }
  if jax.process_index():
    return {}
  validation = tables.get('validation')
  if fit:
    record = _fit(config.eval, task, validation, flip_tta)
  else:
    record = _stored(config.eval, task, validation, saved)
  if own:
    run_directory.update_model_record(workdir, **record.to_dict())
  tables = {name: rows.judged_by(record) for name, rows in tables.items()}
  shown = 'test' if 'test' in tables else 'validation'
  predictions.write(output / 'predictions.csv', list(tables.values()))
  result = {
    'format': 1,
    'positive_class': labels.QUALITY[labels.INADEQUATE],
    'task': task.name,
    'usable': task.usable,
    'model': _describe(models, folders, flip_tta),
    'data': source.description,
    'looks': looks.measure(
      source, splits[shown], models[0].image_size, saved.get('familiar')
    ),
    **_measure(tables, source, splits, task, record, config.eval.bootstrap),
  }
  run_directory.write_json(output / 'metrics.json', result)
  _tell(result)
  report.write(
    output,
    result,
    tables,
    config=json.loads(config_lib.to_json(config)),
    history=_history(folders[0]),
    environment=_environment(folders[0]),
    examples=examples.draw(
      models[0], record, config, source, splits[shown], tables[shown]
    ),
    resamples=config.eval.bootstrap,
  )
  return result


def _load(
  workdir: str | os.PathLike, ensemble: Sequence[str]
) -> list[trained.Trained]:
  """Returns the models, which must be of one task."""
  models = [trained.load(d) for d in (workdir, *ensemble)]
  outputs = models[0].task.outputs
  for other, folder in zip(models[1:], ensemble, strict=True):
    if other.task.outputs != outputs:
      raise run_directory.RunDirectoryError(
        f'{folder} judges {other.task.outputs}, {workdir} {outputs}: '
        'an ensemble needs one task'
      )
  return models


def _predict(
  models: Sequence[trained.Trained],
  source: source_lib.Source,
  indices: np.ndarray,
  split: str,
  batch_size: int,
  flip_tta: bool,
) -> Predictions:
  """Returns the predictions of a split beside its labels, not yet judged."""
  plan = plan_lib.plan_eval(indices)
  rows = []
  for loaded in models:
    batches = pipeline.batches(
      source,
      plan,
      image_size=loaded.image_size,
      batch_size=batch_size,
      **models_lib.inputs(loaded.config),
      process_index=jax.process_index(),
      process_count=jax.process_count(),
    )
    rows.append(inference.predict(loaded, batches, flip_tta=flip_tta))
  index, table = rows[0]['index'], source.table
  scores = _mean_scores(rows, models[0].task)
  unjudged = OperatingRecord().judge(scores['p_inadequate'])
  return Predictions(
    **{
      key: table[key][index]
      for key in (
        *('image_id', 'dataset', 'patient_id', 'camera', 'site', 'eye'),
        'grade',
        *('quality', 'criteria', 'field_found', 'width', 'height'),
      )
      if key in table
    },
    split=np.full(len(index), split),
    outputs=models[0].task.outputs,
    **scores,
    p_calibrated=unjudged.p_calibrated,
    verdict=unjudged.verdict,
    uncertain=unjudged.uncertain,
  )


def _mean_scores(
  rows: Sequence[Mapping[str, np.ndarray]], task: Task
) -> dict[str, np.ndarray]:
  """Returns the mean scores of ensemble members, each of inference.predict."""
  odds = np.stack([task.log_odds(r['logits']) for r in rows])
  # What judges is the float32 probability, here as in the export.
  each = np.stack([r['p_inadequate'] for r in rows]).astype(np.float64)
  each = np.where(np.isnan(odds), np.nan, each)
  # Law of total variance: between the members, and between each one's views.
  within = np.mean([np.square(r['spread']) for r in rows], axis=0)
  return {
    'logits': np.mean([r['logits'] for r in rows], axis=0),
    'probabilities': np.mean(
      [np.asarray(task.probabilities(jnp.asarray(r['logits']))) for r in rows],
      axis=0,
    ),
    'p_inadequate': each.mean(axis=0),
    'log_odds': task.mean_log_odds(odds),
    'spread': np.sqrt(within + each.var(axis=0)),
  }


def _fit(
  options: ml_collections.ConfigDict,
  task: Task,
  validation: Predictions | None,
  flip_tta: bool,
) -> OperatingRecord:
  """Returns how to judge, chosen on validation by the options of `eval`."""
  truth, p = np.zeros(0, int), np.zeros(0)
  if validation is not None:
    truth, p = validation.quality, validation.p_inadequate
  record = OperatingRecord.fit(
    truth,
    p,
    method=options.calibration,
    rule=options.operating_point,
    target=options.operating_target,
    share=options.uncertain_share,
  )
  point = dict(record.operating_point or {})
  for fitted, what in (
    (record.calibration or {}, 'not calibrated'),
    (point, 'the operating point is 0.5'),
  ):
    if 'reason' in fitted:
      logging.warning('%s: %s', what, fitted['reason'])
  # Whoever judges by this point must average as was done here.
  point['flip_tta'] = flip_tta
  return dataclasses.replace(
    record,
    operating_point=point,
    criteria=_criteria_points(options, task, validation),
  )


def _stored(
  options: ml_collections.ConfigDict,
  task: Task,
  validation: Predictions | None,
  saved: Record,
) -> OperatingRecord:
  """Returns how a model judges; criteria's points chosen where it has none."""
  record = OperatingRecord.from_model(saved)
  points = record.criteria or _criteria_points(options, task, validation)
  return dataclasses.replace(record, criteria=points)


def _criteria_points(
  options: ml_collections.ConfigDict, task: Task, validation: Predictions | None
) -> dict[str, Record] | None:
  """Returns the operating point of each criterion, by the verdict's rule."""
  if task.name != 'criteria':
    return None
  if validation is None:
    return {}
  return {
    name: operating_points.choose(
      options.operating_point,
      options.operating_target,
      validation.label(name),
      validation.probability(name),
    )
    for name in task.outputs
  }


def _measure(
  tables: Mapping[str, Predictions],
  source: source_lib.Source,
  splits: Splits,
  task: Task,
  record: OperatingRecord,
  resamples: int,
) -> Record:
  """Returns the training split's counts, the record and every split's part."""
  train = {
    key: source.table[key][splits['train']]
    for key in ('quality', 'grade', 'criteria')
  }
  patients = source.table['patient_id'][splits['train']]
  return {
    'train': {
      'n': len(train['quality']),
      'n_inadequate': int((train['quality'] == labels.INADEQUATE).sum()),
      'n_patients': len(np.unique(patients)),
    },
    **record.to_dict(),
    'splits': {
      name: measuring.measure(
        rows, task, record, reference=train, resamples=resamples
      )
      for name, rows in tables.items()
    },
  }


def _describe(
  models: Sequence[trained.Trained],
  folders: Sequence[pathlib.Path],
  flip_tta: bool,
) -> Record:
  first = models[0]
  return {
    'name': first.config.model.name,
    'image_size': first.image_size,
    'epoch': first.record.get('epoch'),
    'step': first.record.get('step'),
    'source': first.record.get('source'),
    'members': [
      {'run': folder.resolve().name, 'sha256': model.digest}
      for folder, model in zip(folders, models, strict=True)
    ],
    'flip_tta': flip_tta,
  }


def _tell(result: Record) -> None:
  """Logs the headline of every split."""
  for name, values in result['splits'].items():
    measured = values['verdict']
    logging.info(
      '%s: %d photographs (%d Inadequate), AUC %s, sensitivity %s, '
      'specificity %s',
      name,
      measured['n'],
      measured['n_inadequate'],
      *(
        assessment.summary(measured, k)
        for k in ('auc', 'sensitivity', 'specificity')
      ),
    )


def _history(home: pathlib.Path) -> list[Record]:
  path = home / 'history.jsonl'
  if not path.is_file():
    return []
  lines = path.read_text(encoding='utf-8').splitlines()
  return [json.loads(line) for line in lines]


def _environment(home: pathlib.Path) -> Record:
  path = home / 'environment.json'
  return run_directory.read_json(path) if path.is_file() else {}
