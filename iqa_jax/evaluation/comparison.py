"""Several runs on the same photographs: each against the first, by group."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import dataclasses
import os
import pathlib

import numpy as np
from sklearn import metrics as sk

from iqa_jax import labels, run_directory
from iqa_jax.aliases import Record
from iqa_jax.evaluation import assessment, delong, folds, intervals, predictions
from iqa_jax.evaluation.predictions import Predictions


@dataclasses.dataclass(frozen=True)
class Arm:
  """A run, or the folds of a cross-validation.

  Attributes:
    name: of its folder.
    rows: its test photographs (of folds as `folds.read` says), each once.
    fold: int [n], which fold judged them; 0 of a single run.
    notes: what to know of it.
  """

  name: str
  rows: Predictions
  fold: np.ndarray
  notes: Sequence[str] = ()

  @property
  def score(self) -> np.ndarray:
    """What ranks: float [n]; of folds only what is calibrated is one scale."""
    several = len(np.unique(self.fold)) > 1
    return self.rows.p_calibrated if several else self.rows.ranks


def read(workdir: str | os.PathLike) -> Arm:
  """Reads a run directory, or the folder of a cross-validation.

  Raises:
    RunDirectoryError: it is neither, or not complete.
  """
  home = pathlib.Path(workdir)
  if (home / 'fold_0').is_dir():
    count = run_directory.read_json(home / 'metrics.json').get('n_folds', 0)
    parts, _, notes = folds.read(home, count)
    sizes = [len(part) for part in parts]
    rows = predictions.concatenate(parts)
    return Arm(home.name, rows, np.repeat(np.arange(count), sizes), notes)
  rows = predictions.read(home / 'predictions.csv')
  rows = rows[rows.split == 'test']
  return Arm(home.name, rows, np.zeros(len(rows), int))


def run(
  workdirs: Sequence[str], output: str | os.PathLike, note: str = ''
) -> Record:
  """Compares runs on the same photographs; the first is the baseline.

  Args:
    workdirs: run directories or folders of cross-validations, two at least.
    output: where comparison.json and report.md go.
    note: said first in the report.

  Returns:
    What comparison.json holds: 'notes', 'arms', and 'groups', one {'group',
    'n', 'n_inadequate', 'n_patients', 'arms' [{'auc', 'sensitivity',
    'specificity'}, of entries], 'against_first' [{'difference', 'low', 'high',
    'p_value', 'p_holm', 'of_folds', 'note'}]} a group.

  Raises:
    RunDirectoryError: a run is not complete, or of other photographs.
  """
  arms = aligned([read(workdir) for workdir in workdirs])
  groups = [_group(name, inside, arms) for name, inside in _groups(arms[0])]
  _holm(groups[0]['against_first'])
  result = {
    'format': 1,
    'positive_class': labels.QUALITY[labels.INADEQUATE],
    'arms': [arm.name for arm in arms],
    'notes': [n for n in (note, *dict.fromkeys(_notes(arms))) if n],
    'groups': groups,
  }
  home = pathlib.Path(output)
  run_directory.write_json(home / 'comparison.json', result)
  run_directory.write_text(home / 'report.md', as_markdown(result))
  return result


def aligned(arms: Sequence[Arm]) -> list[Arm]:
  """Returns the arms with the first's order of photographs.

  Those that any arm could not judge are left out of all.

  Raises:
    RunDirectoryError: their photographs or labels differ.
  """
  first = arms[0]
  found = []
  for arm in arms:
    place = {name: i for i, name in enumerate(arm.rows.names)}
    if place.keys() != set(first.rows.names):
      odd = sorted(place.keys() ^ set(first.rows.names))
      raise run_directory.RunDirectoryError(
        f'{first.name} and {arm.name} judge other photographs: {len(odd)} are '
        f'in one alone, such as {odd[0][1]}; compare runs of one dataset, of '
        'the same data.folds and data.fold'
      )
    order = np.array([place[name] for name in first.rows.names])
    arm = dataclasses.replace(arm, rows=arm.rows[order], fold=arm.fold[order])
    if (arm.rows.quality != first.rows.quality).any():
      raise run_directory.RunDirectoryError(
        f'{first.name} and {arm.name} have other labels of the same photographs'
      )
    found.append(arm)
  judged = np.all([arm.rows.judged for arm in found], axis=0)
  return [
    dataclasses.replace(arm, rows=arm.rows[judged], fold=arm.fold[judged])
    for arm in found
  ]


def _notes(arms: Sequence[Arm]) -> Iterator[str]:
  yield (
    f'Positive class: Inadequate. Against {arms[0].name}: difference of AUC, '
    "DeLong's test clustered by patient; p of all photographs also after Holm, "
    'for as many comparisons as there are. Groups are for looking, and their p '
    'is not corrected.'
  )
  yield (
    'A criterion: those that fail it, alone or not, against the Adequate. '
    'Sensitivity and specificity are at the operating point that each model '
    'chose on its validation photographs.'
  )
  yield (
    'Intervals hold the trained models fixed: they do not say how another '
    'seed would have trained.'
  )
  for arm in arms:
    yield from arm.notes


def _groups(arm: Arm) -> Iterator[tuple[str, np.ndarray]]:
  rows = arm.rows
  yield 'all', np.ones(len(rows), bool)
  cameras = [] if rows.camera is None else sorted(set(rows.camera) - {''})
  if len(cameras) > 1:
    for camera in cameras:
      yield f'camera {camera}', rows.camera == camera
  for name in labels.CRITERIA:
    failing = rows.label(name) == labels.INADEQUATE
    if failing.any():
      yield name, failing | (rows.quality == labels.ADEQUATE)


def _group(name: str, inside: np.ndarray, arms: Sequence[Arm]) -> Record:
  first = arms[0].rows[inside]
  truth, patient = first.quality, first.patient_id
  few = assessment.too_small(truth, patient)
  note = f'{assessment.TOO_SMALL}: {few}' if few else ''
  measured = []
  for arm in arms:
    called = arm.rows.verdict[inside] == labels.INADEQUATE
    auc = intervals.auc(truth, arm.score[inside], patient)
    bad, good = truth == labels.INADEQUATE, truth == labels.ADEQUATE
    measured.append(
      {
        'auc': assessment.entry(*auc, note),
        'sensitivity': assessment.proportion(called[bad], patient[bad]),
        'specificity': assessment.proportion(~called[good], patient[good]),
      }
    )
  return {
    'group': name,
    'n': len(first),
    'n_inadequate': int((truth == labels.INADEQUATE).sum()),
    'n_patients': len(np.unique(patient)),
    'arms': measured,
    'against_first': [_against(arms[0], arm, inside, note) for arm in arms[1:]],
  }


def _against(first: Arm, arm: Arm, inside: np.ndarray, note: str) -> Record:
  """Returns how much better than the first an arm ranks some photographs."""
  truth = first.rows.quality[inside]
  ours, theirs = arm.score[inside], first.score[inside]
  try:
    found = delong.compare_auc(
      truth, ours, theirs, first.rows.patient_id[inside]
    )
  except ValueError as error:
    found = dict.fromkeys(('difference', 'low', 'high', 'p_value'))
    note = str(error)
  of_folds = []
  for fold in np.unique(first.fold[inside]):
    those = first.fold[inside] == fold
    if len(np.unique(truth[those])) == 2:
      a, b = (sk.roc_auc_score(truth[those], s[those]) for s in (ours, theirs))
      of_folds.append(float(a - b))
  kept = {k: found[k] for k in ('difference', 'low', 'high', 'p_value')}
  return {**kept, 'p_holm': None, 'of_folds': of_folds, 'note': note}


def _holm(rows: list[Record]) -> None:
  """Puts in p values corrected for several comparisons (Holm 1979)."""
  known = [row for row in rows if row['p_value'] is not None]
  largest = 0.0
  for i, row in enumerate(sorted(known, key=lambda r: r['p_value'])):
    largest = max(largest, min(1.0, (len(known) - i) * row['p_value']))
    row['p_holm'] = largest


def as_markdown(result: Record) -> str:
  """Returns the report of `run`: a row for each group and run."""
  header = [
    *('group', 'photographs', 'Inadequate', 'patients', 'run', 'AUC'),
    *('sensitivity', 'specificity', 'difference of AUC', 'p', 'p (Holm)'),
    *('folds', 'note'),
  ]
  rows = [header, ['---'] * len(header)]
  for group in result['groups']:
    counts = [str(group[k]) for k in ('n', 'n_inadequate', 'n_patients')]
    for name, arm, against in zip(
      result['arms'],
      group['arms'],
      [None, *group['against_first']],
      strict=True,
    ):
      measured = [
        assessment.text(arm[k]) for k in ('auc', 'sensitivity', 'specificity')
      ]
      rows.append(
        [group['group'], *counts, name, *measured, *_against_text(against)]
      )
  notes = [f'- {note}' for note in result['notes']]
  table = ['| ' + ' | '.join(row) + ' |' for row in rows]
  return '\n'.join(['# Runs compared', '', *notes, '', *table]) + '\n'


def _against_text(row: Record | None) -> list[str]:
  if row is None:
    return ['', '', '', '', '']
  if row['difference'] is None:
    return ['undefined', '', '', '', row['note']]
  limits = f'({row["low"]:+.4f} to {row["high"]:+.4f})'
  folds_of = row['of_folds']
  return [
    f'{row["difference"]:+.4f} {limits}',
    f'{row["p_value"]:.2g}',
    '' if row['p_holm'] is None else f'{row["p_holm"]:.2g}',
    f'{min(folds_of):+.3f} to {max(folds_of):+.3f}' if folds_of else '',
    row['note'],
  ]
