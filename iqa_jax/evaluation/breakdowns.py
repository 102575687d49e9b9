"""On whom does it fail? The measures by camera, eye, grade, fault and size.

Every group carries its counts and 95 % intervals (patient-clustered: Wilson's
for shares, Obuchowski's for AUC), and a note where it is too small to tell.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from iqa_jax import labels
from iqa_jax.aliases import Record
from iqa_jax.evaluation import assessment, intervals, metrics
from iqa_jax.evaluation.predictions import Predictions

MEASURES = ('auc', 'sensitivity', 'specificity', 'accuracy')
TITLES = {
  'dataset': 'Dataset',
  'camera': 'Camera',
  'site': 'Site',
  'eye': 'Eye',
  'grade': 'EyeQ grade',
  'fault': 'Sole failing criterion',
  'field': 'Field of view',
  'size': 'Image size (tertiles)',
}


def run(rows: Predictions) -> Record:
  """Returns the breakdowns of judged images, by what is known of them.

  Args:
    rows: the images; those without a label or a finite score are left out.

  Returns:
    'groups': one {'breakdown', 'group', 'n', 'n_inadequate', 'n_patients',
    'auc', 'sensitivity', 'specificity', 'accuracy', 'note'} a group;
    'worst': groups below all images, the worst first;
    'shortcuts': how well a group's prevalence alone, without looking at the
    image, ranks the images (0.5: not at all).
  """
  rows = rows[rows.judged]
  overall = _measure(rows, 'all', 'all')
  groups, shortcuts = [], []
  for breakdown, members in _partitions(rows):
    for group, inside in members.items():
      groups.append(_measure(rows[inside], breakdown, group))
    if len(members) > 1 and (
      breakdown in ('camera', 'site', 'eye', 'field', 'size')
    ):
      shortcuts.append(_shortcut(rows.quality, breakdown, members))
  return {
    'overall': overall,
    'groups': groups,
    'worst': worst(groups, overall),
    'shortcuts': shortcuts,
  }


def worst(groups: list[Record], overall: Record) -> list[Record]:
  """Returns the groups whose AUC, sensitivity or specificity is below all's.

  Those that are 'clearly' below, with their whole interval, and otherwise the
  lowest of each breakdown. Groups too small to tell are not named. The clear
  ones come first, then by how far below.
  """
  found = []
  for breakdown in dict.fromkeys(g['breakdown'] for g in groups):
    rows = [g for g in groups if g['breakdown'] == breakdown]
    for measure in ('auc', 'sensitivity', 'specificity'):
      whole = overall[measure]['value']
      below = [
        g
        for g in rows
        if whole is not None
        and g[measure]['high'] is not None
        and g[measure]['value'] < whole
        and not g[measure]['note'].startswith(assessment.TOO_SMALL)
      ]
      for g in below:
        measured = g[measure]
        clearly = measured['high'] < whole
        lowest = all(measured['value'] <= o[measure]['value'] for o in below)
        if clearly or lowest:
          found.append(
            {
              'breakdown': breakdown,
              'group': g['group'],
              'measure': measure,
              **{k: measured[k] for k in ('value', 'low', 'high')},
              'overall': whole,
              'n': g['n'],
              'clearly': clearly,
            }
          )
  return sorted(
    found, key=lambda r: (not r['clearly'], r['value'] - r['overall'])
  )


def _partitions(rows: Predictions) -> Iterator[tuple[str, Record]]:
  """Yields each breakdown that has labels: (name, {group: bool [n]})."""
  for name in ('dataset', 'camera', 'site', 'eye'):
    if getattr(rows, name) is not None:
      values = getattr(rows, name).astype(str)
      names = [str(v) for v in np.unique(values) if v]
      if names and (name != 'dataset' or len(names) > 1):
        yield name, {v: values == v for v in names}
  if rows.grade is not None and (rows.grade >= 0).any():
    yield (
      'grade',
      {name: rows.grade == i for i, name in enumerate(labels.GRADES)},
    )
  if rows.criteria is not None and (rows.criteria >= 0).all(axis=1).any():
    yield 'fault', faults(rows.criteria)
  if rows.field_found is not None and len(rows):
    found = rows.field_found == 1
    yield 'field', {'found': found, 'not found': ~found}
  if rows.width is not None and rows.height is not None and len(rows):
    yield 'size', _tertiles(rows.width * rows.height)


def faults(criteria: np.ndarray) -> dict[str, np.ndarray]:
  """Returns which images fail one criterion alone, several, or none.

  Args:
    criteria: int [n, 4], -1 unknown: in no group.

  Returns:
    {group: bool [n]}.
  """
  failing = (criteria == 1).sum(axis=1)
  labelled = (criteria >= 0).all(axis=1)
  groups = {
    f'{name} alone': labelled & (failing == 1) & (criteria[:, i] == 1)
    for i, name in enumerate(labels.CRITERIA)
  }
  return {
    **groups,
    'several': labelled & (failing > 1),
    'none': labelled & (failing == 0),
  }


def _tertiles(pixels: np.ndarray) -> dict[str, np.ndarray]:
  """Returns thirds by size; fewer groups where many images are of one size."""
  low, high = np.quantile(pixels, [1 / 3, 2 / 3], method='lower')
  groups = [
    (f'up to {low / 1e6:.2f} MP', pixels <= low),
    (
      f'{low / 1e6:.2f} to {high / 1e6:.2f} MP',
      (pixels > low) & (pixels <= high),
    ),
    (f'over {high / 1e6:.2f} MP', pixels > high),
  ]
  return {name: inside for name, inside in groups if inside.any()}


def _measure(rows: Predictions, breakdown: str, group: str) -> Record:
  patient, called = rows.patient_id, rows.verdict == labels.INADEQUATE
  bad, good = (rows.quality == q for q in (labels.INADEQUATE, labels.ADEQUATE))
  return {
    'breakdown': breakdown,
    'group': group,
    'n': len(rows),
    'n_inadequate': int(bad.sum()),
    'n_patients': len(np.unique(patient)),
    'auc': _auc(rows.quality, rows.ranks, patient),
    'sensitivity': assessment.proportion(called[bad], patient[bad]),
    'specificity': assessment.proportion(~called[good], patient[good]),
    'accuracy': assessment.proportion(called == bad, patient),
    'note': '' if len(rows) else 'no image',
  }


def _auc(
  truth: np.ndarray, score: np.ndarray, patient: np.ndarray
) -> assessment.Entry:
  value, low, high = intervals.auc(truth, score, patient)
  note = metrics.reason(truth, value)
  if not note:
    few = assessment.too_small(truth, patient)
    if few:
      note = f'{assessment.TOO_SMALL}: {few}'
    elif not np.isfinite([low, high]).all():
      note = 'no interval: the images show no variance'
    elif high - low > assessment.WIDE:
      note = assessment.IMPRECISE
  return {**assessment.entry(value, low, high, note), 'n': len(truth)}


def _shortcut(
  truth: np.ndarray, breakdown: str, members: Mapping[str, np.ndarray]
) -> Record:
  prevalence = np.full(len(truth), np.nan)
  for inside in members.values():
    if inside.any():
      prevalence[inside] = truth[inside].mean()
  kept = np.isfinite(prevalence)
  value = metrics.ranking(truth[kept], prevalence[kept])['auc']
  return {
    'breakdown': breakdown,
    'auc': assessment.entry(value, note=metrics.reason(truth[kept], value)),
    'n': int(kept.sum()),
  }
