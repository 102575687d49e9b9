"""Evaluates a trained model: what it reaches, on whom, and how sure that is.

Calibration, operating point and uncertain band are fitted on the validation
split and stored with the model; the test split is only measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import csv
import json
import os
import pathlib
from typing import Any

from absl import logging
import jax
import ml_collections
import numpy as np
from scipy import special

from iqa_jax import config as config_lib
from iqa_jax import inference, labels, run_directory
from iqa_jax import models as models_lib
from iqa_jax.data import pipeline
from iqa_jax.evaluation import assessment, breakdowns, examples, metrics, report
from iqa_jax.judging import calibration, operating_points
from iqa_jax.tasks import Task

Columns = dict[str, np.ndarray]
SPLITS = ('validation', 'test')
# What model.json holds of how verdicts are made.
_JUDGED = ('calibration', 'operating_point', 'uncertain_band')
# Beside them, of the task criteria.
CRITERIA_POINTS = 'criteria_operating_points'


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
  own = output.resolve() == home.resolve() and not ensemble
  saved = models[0].record
  fit = own or bool(ensemble) or not all(key in saved for key in _JUDGED)
  flip_tta = bool(config.eval.flip_tta) if fit else models[0].flip_tta
  tables = {
    name: _predict(models, config, source, splits[name], name, flip_tta)
    for name in SPLITS
    if len(splits[name])
  }
  if jax.process_index():
    return {}
  record = (
    _fit_operating_record(config, tables.get('validation'), flip_tta)
    if fit
    else {key: saved[key] for key in _JUDGED}
  )
  if task.name == 'criteria':
    stored = None if fit else saved.get(CRITERIA_POINTS)
    record[CRITERIA_POINTS] = stored or _criteria_points(
      config, task, tables.get('validation')
    )
  if own:
    run_directory.update_model_record(workdir, **record)
  for columns in tables.values():
    apply_operating_record(columns, record)
  write_predictions(output / 'predictions.csv', tables.values())
  reference = source.table['quality'][splits['train']]
  result = {
    'format': 1,
    'positive_class': labels.QUALITY[labels.INADEQUATE],
    'task': task.name,
    'usable': task.usable,
    'model': _describe(models, (workdir, *ensemble), flip_tta),
    'data': source.description,
    'train': {
      'n': len(reference),
      'n_inadequate': int((reference == labels.INADEQUATE).sum()),
      'n_patients': len(np.unique(source.table['patient_id'][splits['train']])),
    },
    **record,
    'splits': {
      name: measure(
        columns,
        task,
        record['operating_point']['threshold'],
        reference={
          k: source.table[k][splits['train']]
          for k in ('quality', 'grade', 'criteria')
        },
        thresholds={
          name: point['threshold']
          for name, point in record.get(CRITERIA_POINTS, {}).items()
        },
        resamples=config.eval.bootstrap,
      )
      for name, columns in tables.items()
    },
  }
  run_directory.write_json(output / 'metrics.json', result)
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
  shown = 'test' if 'test' in tables else 'validation'
  report.write(
    output,
    result,
    tables,
    config=json.loads(config_lib.to_json(config)),
    history=_history(home),
    environment=_environment(home),
    examples=examples.draw(
      models[0], record, config, source, splits[shown], tables[shown]
    ),
    resamples=config.eval.bootstrap,
  )
  return result


def _history(home: pathlib.Path) -> list[dict[str, Any]]:
  path = home / 'history.jsonl'
  if not path.is_file():
    return []
  lines = path.read_text(encoding='utf-8').splitlines()
  return [json.loads(line) for line in lines]


def _environment(home: pathlib.Path) -> dict[str, Any]:
  path = home / 'environment.json'
  return run_directory.read_json(path) if path.is_file() else {}


def _describe(models, folders, flip_tta) -> dict[str, Any]:
  first = models[0]
  return {
    'name': first.config.model.name,
    'image_size': first.image_size,
    'epoch': first.record.get('epoch'),
    'step': first.record.get('step'),
    'source': first.record.get('source'),
    'members': [
      {'run': pathlib.Path(folder).resolve().name, 'sha256': model.digest}
      for folder, model in zip(folders, models, strict=True)
    ],
    'flip_tta': flip_tta,
  }


def _predict(models, config, source, indices, split, flip_tta) -> Columns:
  """Returns the predictions of a split beside its labels."""
  plan = pipeline.plan_eval(source, indices)
  rows = []
  for loaded in models:
    batches = pipeline.batches(
      source,
      plan,
      image_size=loaded.image_size,
      batch_size=config.eval.batch_size,
      **models_lib.inputs(loaded.config),
      process_index=jax.process_index(),
      process_count=jax.process_count(),
    )
    rows.append(inference.predict(loaded, batches, flip_tta=flip_tta))
  first, task = rows[0], models[0].task
  index = first['index']
  odds = np.stack([task.log_odds(r['logits']) for r in rows])
  # What judges is the float32 probability, here as in the export.
  each = np.stack([r['p_inadequate'] for r in rows]).astype(np.float64)
  each = np.where(np.isnan(odds), np.nan, each)
  # Law of total variance: between the members, and between each one's views.
  within = np.mean([np.square(r['spread']) for r in rows], axis=0)
  spread = np.sqrt(within + each.var(axis=0))
  logits = np.mean([r['logits'] for r in rows], axis=0)
  probabilities = np.mean(
    [np.asarray(task.probabilities(r['logits'])) for r in rows], axis=0
  )
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
  # The quality task's own output has this name too, and the same value.
  columns['p_inadequate'] = each.mean(axis=0)
  columns['log_odds'] = _mean_log_odds(odds)
  columns['spread'] = spread
  return columns


def _mean_log_odds(odds: np.ndarray) -> np.ndarray:
  """Returns the log-odds [n] of the mean probability of odds [members, n]."""
  if len(odds) == 1:
    return odds[0]
  inadequate = special.logsumexp(special.log_expit(odds), axis=0)
  return inadequate - special.logsumexp(special.log_expit(-odds), axis=0)


def _fit_operating_record(config, validation, flip_tta) -> dict[str, Any]:
  """Returns calibration, operating point and band, fitted on validation."""
  truth, p = np.zeros(0, int), np.zeros(0)
  if validation is not None:
    truth, p = validation['quality'], validation['p_inadequate']
  fitted = calibration.fit(config.eval.calibration, truth, p)
  if 'reason' in fitted:
    logging.warning('not calibrated: %s', fitted['reason'])
  p = calibration.apply(fitted, p)
  point = operating_points.choose(
    config.eval.operating_point, config.eval.operating_target, truth, p
  )
  if 'reason' in point:
    logging.warning('the operating point is 0.5: %s', point['reason'])
  band = operating_points.uncertain_band(
    p, point['threshold'], config.eval.uncertain_share
  )
  # Whoever judges by this point must average as was done here.
  point['flip_tta'] = flip_tta
  return dict(zip(_JUDGED, (fitted, point, band), strict=True))


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


def _criteria_points(config, task, validation) -> dict[str, dict[str, Any]]:
  """Returns the operating point of each criterion, by the verdict's rule."""
  if validation is None:
    return {}
  return {
    name: operating_points.choose(
      config.eval.operating_point,
      config.eval.operating_target,
      validation[name],
      validation[f'p_{name}'],
    )
    for name in task.outputs
  }


def measure(
  columns: Columns,
  task: Task,
  threshold: float,
  *,
  reference: Mapping[str, np.ndarray],
  thresholds: Mapping[str, float],
  resamples: int,
) -> dict[str, Any]:
  """Returns the measures of a split (README.md beside this file).

  Args:
    columns: the predictions, after `apply_operating_record`.
    task: the run's.
    threshold: the operating point, on p_calibrated.
    reference: 'quality', 'grade' and 'criteria' of the training examples, for
      the majority baseline.
    thresholds: of the criteria; 0.5 where there is none.
    resamples: of the bootstrap.
  """
  finite = np.isfinite(columns['p_calibrated'])
  patient = columns['patient_id']

  def labelled(values):
    return values[values >= 0]

  def verdict(name, score, p, at, reference, names=labels.QUALITY):
    known = finite & (columns[name] >= 0)
    return assessment.verdict(
      columns[name][known],
      columns[score][known],
      columns[p][known],
      at,
      patient[known],
      reference=labelled(reference),
      resamples=resamples,
      names=names,
    )

  judged = finite & (columns['quality'] >= 0)
  result: dict[str, Any] = {
    'n': len(finite),
    'n_not_finite': int((~finite).sum()),
    'verdict': verdict(
      'quality',
      'log_odds',
      'p_calibrated',
      threshold,
      reference['quality'],
    ),
    'uncalibrated': _plain(
      metrics.probabilities(
        columns['quality'][judged], columns['p_inadequate'][judged]
      )
    ),
    'selective': assessment.selective(
      columns['quality'][judged],
      columns['p_calibrated'][judged],
      threshold,
      columns['uncertain'][judged] == 1,
      patient[judged],
    ),
    'breakdowns': breakdowns.run(columns),
  }
  if task.name == 'grade':
    graded = finite & (columns['grade'] >= 0)
    result['grade'] = assessment.grades(
      columns['grade'][graded],
      np.stack([columns[f'p_{n}'][graded] for n in task.outputs], axis=1),
      patient[graded],
      reference=labelled(reference['grade']),
      resamples=resamples,
    )
  if task.name == 'criteria':
    result['criteria'] = {
      name: verdict(
        name,
        f'p_{name}',
        f'p_{name}',
        thresholds.get(name, 0.5),
        reference['criteria'][:, i],
        (f'adequate {name}', f'inadequate {name}'),
      )
      for i, name in enumerate(task.outputs)
    }
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


def _plain(values: Mapping[str, float]) -> dict[str, float | None]:
  """Returns numbers as JSON has them: None for what is not finite."""
  return {k: v if np.isfinite(v) else None for k, v in values.items()}
