"""The predictions of any system beside labels: aligned, measured, compared."""

from __future__ import annotations

import dataclasses
import math
import pathlib

import numpy as np

from iqa_jax import labels, run_directory
from iqa_jax.aliases import Record
from iqa_jax.evaluation import (
  assessment,
  breakdowns,
  delong,
  foreign,
  foreign_scores,
  given,
  intervals,
  metrics,
  resampling,
)
from iqa_jax.evaluation.foreign import ScoringError
from iqa_jax.evaluation.foreign_scores import Options, Scores
from iqa_jax.evaluation.predictions import Predictions


def run(
  predictions: str,
  labels_file: str,
  options: Options = Options(),  # noqa: B008 - frozen
  *,
  compare: str | None = None,
  output: str | None = None,
) -> Record:
  """Scores a system's predictions.

  Args:
    predictions: a CSV of scores.
    labels_file: a CSV of labels of the same images.
    options: how to read them.
    compare: a CSV of another system's scores of the same images.
    output: where metrics.json, figures and report go; None: nowhere.

  Returns:
    'positive_class', 'files', 'notes' (what was assumed), 'splits' with the
    one split 'scored' as in metrics.json, and with `compare` 'comparison':
    'auc' (DeLong), 'auc_clustered' (Obuchowski) and 'metrics', the paired
    differences with intervals.

  Raises:
    ScoringError: a file can't be read, aligned or understood.
  """
  notes: list[str] = []
  truth = foreign.read(labels_file, options.split, notes)
  table = foreign.read(predictions, options.split, notes)
  scores = foreign_scores.read_scores(table, options)
  label = foreign_scores.read_labels(
    truth, options.label_column, scores.grades is not None
  )
  order = foreign.align(table, truth)
  patient = foreign.patients(truth, table, order, options.patient_column, notes)
  quality, grade = _verdicts(label, labels_file, scores, options, notes)
  kept = _labelled(quality, labels_file, notes)
  notes.append(f'score: {scores.used}')
  rows = dataclasses.replace(
    _judge(scores, order[kept], quality[kept], patient[kept]),
    image_id=np.array(truth.names)[kept],
    grade=grade[kept],
    camera=foreign.cameras(truth, kept),
    eye=foreign.eyes(truth, kept),
  )
  scored = _measure(rows, scores, order[kept], options.resamples, notes)
  scored |= _graded(grade, scores, order, patient, options.resamples)
  scored['breakdowns'] = breakdowns.run(rows)
  files = {'predictions': predictions, 'labels': labels_file}
  if compare:
    files['compare'] = compare
  result = _result(scored, scores, options.usable, files, notes)
  if compare:
    theirs = _theirs(compare, options, truth, kept, rows, notes)
    rows = dataclasses.replace(rows, compared=theirs.ranks)
    result['comparison'] = _compare(rows, theirs, options.resamples)
  if output:
    _write(output, result, rows)
  return result


def _labelled(
  quality: np.ndarray, labels_file: str, notes: list[str]
) -> np.ndarray:
  """Returns which images carry a verdict, int [m]."""
  kept = np.flatnonzero(quality >= 0)
  if not len(kept):
    raise ScoringError(f'{labels_file} labels no image as adequate or not')
  if len(kept) < len(quality):
    left_out = len(quality) - len(kept)
    notes.append(f'{left_out} images carry no verdict: left out')
  return kept


def _result(
  scored: Record,
  scores: Scores,
  usable: str,
  files: dict[str, str],
  notes: list[str],
) -> Record:
  return {
    'format': 1,
    'positive_class': labels.QUALITY[labels.INADEQUATE],
    'task': 'grade' if 'grade' in scored else 'quality',
    'usable': usable,
    'files': {what: pathlib.Path(file).name for what, file in files.items()},
    'notes': notes,
    'operating_point': {
      'rule': 'fixed',
      'threshold': scores.threshold,
      'chosen_on': 'configuration',
    },
    'splits': {'scored': scored},
  }


def _write(output: str, result: Record, rows: Predictions) -> None:
  run_directory.write_json(pathlib.Path(output) / 'metrics.json', result)
  from iqa_jax.evaluation import report

  report.write(output, result, {'scored': rows})


def _theirs(
  file: str,
  options: Options,
  truth: foreign.Table,
  kept: np.ndarray,
  rows: Predictions,
  notes: list[str],
) -> Predictions:
  """Returns the other system's predictions of the photographs in `rows`."""
  table = foreign.read(file, options.split, notes)
  scores = foreign_scores.read_scores(table, options)
  notes.append(f'score of the other system: {scores.used}')
  order = foreign.align(table, truth)[kept]
  return _judge(scores, order, rows.quality, rows.patient_id)


def _verdicts(
  label: tuple[str, np.ndarray],
  labels_file: str,
  scores: Scores,
  options: Options,
  notes: list[str],
) -> tuple[np.ndarray, np.ndarray]:
  """Returns quality and grade, int [n] each, -1 unknown."""
  kind, found = label
  usable = options.usable
  unknown = np.full(len(found), labels.UNKNOWN)
  if kind == 'grade':
    notes.append(
      'labels are grades: '
      + ', '.join(f'{i} {name}' for i, name in enumerate(labels.GRADES))
      + f'; Usable counts as {usable}'
      + (' (left out)' if usable == 'exclude' else '')
    )
    return given.qualities(found, usable), found
  if usable == 'inadequate':
    return found, unknown
  if scores.grades is None or options.score_column:
    raise ScoringError(
      f'--usable={usable} says what grade 1 counts as, but the labels of '
      f'{labels_file} are adequate and inadequate, no grades (no 2 among '
      'them): leave it out, or name the column of grades by --label_column '
      '(a column called grade, or the words good, usable, reject, are '
      'always taken as grades)'
    )
  notes.append(
    f'the labels are no grades: Usable counts as {usable} in the scores only'
  )
  return found, unknown


def _judge(
  scores: Scores, order: np.ndarray, quality: np.ndarray, patient: np.ndarray
) -> Predictions:
  """Returns a system's verdicts on labelled images.

  `order` int [n] is the row of each image in the file of `scores`.
  """
  p, ranks = scores.p[order], scores.ranks[order]
  by_odds = scores.ranked_by == 'log_odds'
  return Predictions(
    image_id=order.astype(str),
    patient_id=patient,
    quality=quality,
    p_inadequate=p if by_odds else ranks,
    p_calibrated=p,
    verdict=(p >= scores.threshold).astype(int),
    uncertain=np.zeros(len(p), bool),
    log_odds=ranks if by_odds else None,
  )


def _measure(
  rows: Predictions,
  scores: Scores,
  order: np.ndarray,
  resamples: int,
  notes: list[str],
) -> Record:
  scored: Record = {
    'n': len(rows),
    'n_not_finite': 0,
    'verdict': assessment.verdict(
      rows.quality,
      rows.ranks,
      rows.p_calibrated,
      scores.threshold,
      rows.patient_id,
      resamples=resamples,
    ),
  }
  if scores.normalised is None or scores.grades is None:
    return scored
  normalised = metrics.ranking(rows.quality, scores.normalised[order])
  scored['normalised'] = assessment.numbers(normalised)
  sums = scores.grades.sum(axis=1)
  notes.append(
    'rows of scores do not sum to 1 (from '
    f'{sums.min():.2f} to {sums.max():.2f}); they were used as they are: '
    f'AUC {scored["verdict"]["metrics"]["auc"]["value"]:.4f}, after '
    f'normalising each row {normalised["auc"]:.4f}'
    if math.isfinite(normalised['auc'])
    else 'rows of scores do not sum to 1; they were used as they are'
  )
  return scored


def _graded(
  grade: np.ndarray,
  scores: Scores,
  order: np.ndarray,
  patient: np.ndarray,
  resamples: int,
) -> Record:
  """Returns the measures of the three grades, where there are such."""
  graded = grade >= 0
  if scores.grades is None or not graded.any():
    return {}
  return {
    'grade': assessment.grades(
      grade[graded],
      scores.grades[order[graded]],
      patient[graded],
      resamples=resamples,
    )
  }


def _compare(first: Predictions, second: Predictions, resamples: int) -> Record:
  """Returns the paired differences of two systems' measures."""
  truth, patient = first.quality, first.patient_id

  def compared(by: np.ndarray | None) -> Record:
    try:
      return delong.compare_auc(truth, first.ranks, second.ranks, by)
    except ValueError as error:
      return {'reason': str(error)}

  values, samples = [], []
  for rows in (first, second):
    called = rows.verdict == labels.INADEQUATE
    values.append(
      metrics.binary(truth, rows.p_calibrated, called, score=rows.ranks)
    )
    # The same draws for both: the differences are paired.
    draws = resampling.Resamples(patient, resamples)
    samples.append(
      resampling.binary_samples(
        truth, rows.p_calibrated, called, draws, score=rows.ranks
      )
    )
  differences = {}
  for name in samples[0]:
    low, high = intervals.percentile(samples[0][name] - samples[1][name])
    value = values[0][name] - values[1][name]
    differences[name] = {
      **assessment.entry(value, low, high, metrics.reason(truth, value)),
      'of_each': [v[name] if np.isfinite(v[name]) else None for v in values],
    }
  return {
    'auc': compared(None),
    'auc_clustered': compared(patient),
    'metrics': differences,
  }


def as_text(result: Record) -> str:
  """Returns the tables of `run` for a terminal."""
  scored = result['splits']['scored']
  verdict = scored['verdict']
  lines = [
    f'{verdict["n"]} images of {verdict["n_patients"]} patients, '
    f'{verdict["n_inadequate"]} Inadequate',
    'Positive class: Inadequate. In brackets: 95 % interval, by patients.',
    *(f'- {note}' for note in result['notes']),
  ]
  if 'grade' in scored:
    lines += ['', f'Three grades ({", ".join(scored["grade"]["classes"])})']
    lines += _rows(scored['grade'])
    lines += ['  confusion (row: label, column: called)']
    lines += [
      f'    {name:10}' + ''.join(f'{n:8d}' for n in row)
      for name, row in zip(
        scored['grade']['classes'], scored['grade']['confusion'], strict=True
      )
    ]
  lines += ['', f'Verdict, Inadequate from p = {verdict["threshold"]:.4g} on']
  lines += _rows(verdict)
  (tn, fp), (fn, tp) = verdict['confusion']
  lines += [
    '  confusion (row: label, column: called)',
    f'    adequate   {tn:8d}{fp:8d}',
    f'    inadequate {fn:8d}{tp:8d}',
  ]
  for row in scored['breakdowns']['worst']:
    if row['clearly']:
      lines.append(
        f'  clearly below all images: {row["measure"]} of {row["breakdown"]} '
        f'{row["group"]!r}, {assessment.text(row)} against {row["overall"]:.3f}'
      )
  if 'comparison' in result:
    lines += ['', *_comparison_text(result)]
  return '\n'.join(lines)


def _rows(assessed: Record) -> list[str]:
  rows = []
  for name, measure in assessed['metrics'].items():
    title = metrics.title(name, ' of ')
    base = assessed['majority'].get(name)
    shown = '-' if base is None else f'{base:.4f}'
    rows.append(f'  {title:52} {assessment.text(measure, 4):30} {shown}')
  return [f'  {"":52} {"":30} majority', *rows]


def _comparison_text(result: Record) -> list[str]:
  comparison = result['comparison']
  lines = [
    f'{result["files"]["predictions"]} - {result["files"]["compare"]}, paired'
  ]
  for key, title in (
    ('auc', 'AUC (DeLong)'),
    ('auc_clustered', 'AUC (DeLong, clustered by patient)'),
  ):
    found = comparison[key]
    if 'reason' in found:
      lines.append(f'  {title}: {found["reason"]}')
      continue
    lines.append(
      f'  {title:52} {found["difference"]:+.4f} ({found["low"]:+.4f} to '
      f'{found["high"]:+.4f}), p = {found["p_value"]:.3g}'
    )
  for name, measure in comparison['metrics'].items():
    lines.append(f'  {metrics.TITLES[name]:52} {assessment.text(measure, 4)}')
  return lines
