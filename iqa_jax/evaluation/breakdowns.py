"""On whom does it fail? The measures by camera, eye, grade, fault and size.

Every group carries its counts and 95 % intervals (patient-clustered: Wilson's
for shares, Obuchowski's for AUC), and a note where it is too small to tell.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from iqa_jax import labels
from iqa_jax.evaluation import assessment, intervals, metrics

Columns = Mapping[str, np.ndarray]
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


def run(columns: Columns) -> dict[str, Any]:
  """Returns the breakdowns of judged images.

  Args:
    columns: 'quality' int (-1 unknown: left out), 'log_odds' or
      'p_inadequate' (`metrics.ranks`), 'p_calibrated', 'verdict' int,
      'patient_id', and any of 'dataset', 'camera', 'site', 'eye', 'grade', the
      four criteria, 'field_found', 'width', 'height'.

  Returns:
    'groups': one {'breakdown', 'group', 'n', 'n_inadequate', 'n_patients',
    'auc', 'sensitivity', 'specificity', 'accuracy', 'note'} a group;
    'worst': groups below all images, the worst first;
    'shortcuts': how well a group's prevalence alone, without looking at the
    image, ranks the images (0.5: not at all).
  """
  known = (columns['quality'] >= 0) & np.isfinite(columns['p_calibrated'])
  columns = {k: np.asarray(v)[known] for k, v in columns.items()}
  everyone = np.ones(int(known.sum()), bool)
  overall = _measure(columns, 'all', 'all', everyone)
  groups, shortcuts = [], []
  for breakdown, members in _partitions(columns):
    for group, inside in members.items():
      groups.append(_measure(columns, breakdown, group, inside))
    if (
      breakdown in ('camera', 'site', 'eye', 'field', 'size')
      and len(members) > 1
    ):
      shortcuts.append(_shortcut(columns, breakdown, members))
  return {
    'overall': overall,
    'groups': groups,
    'worst': worst(groups, overall),
    'shortcuts': shortcuts,
  }


def worst(
  groups: list[dict[str, Any]], overall: Mapping[str, Any]
) -> list[dict[str, Any]]:
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


def _partitions(columns: Columns) -> Iterator[tuple[str, dict[str, Any]]]:
  """Yields each breakdown that has labels: (name, {group: bool [n]})."""
  for name in ('dataset', 'camera', 'site', 'eye'):
    if name in columns:
      values = np.asarray(columns[name]).astype(str)
      names = [str(v) for v in np.unique(values) if v]
      if names and (name != 'dataset' or len(names) > 1):
        yield name, {v: values == v for v in names}
  if 'grade' in columns and (columns['grade'] >= 0).any():
    yield (
      'grade',
      {name: columns['grade'] == i for i, name in enumerate(labels.GRADES)},
    )
  if all(name in columns for name in labels.CRITERIA):
    criteria = np.stack([columns[name] for name in labels.CRITERIA], axis=1)
    if (criteria >= 0).all(axis=1).any():
      yield 'fault', _faults(criteria)
  if 'field_found' in columns and len(columns['field_found']):
    found = columns['field_found'] == 1
    yield 'field', {'found': found, 'not found': ~found}
  if 'width' in columns and 'height' in columns and len(columns['width']):
    yield 'size', _tertiles(columns['width'] * columns['height'])


def _faults(criteria) -> dict[str, np.ndarray]:
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


def _tertiles(pixels) -> dict[str, np.ndarray]:
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


def _measure(columns, breakdown, group, inside) -> dict[str, Any]:
  truth = columns['quality'][inside]
  patient = columns['patient_id'][inside]
  score = metrics.ranks(columns)[inside]
  called = columns['verdict'][inside] == labels.INADEQUATE
  bad, good = truth == labels.INADEQUATE, truth == labels.ADEQUATE
  note = '' if len(truth) else 'no image'
  return {
    'breakdown': breakdown,
    'group': group,
    'n': len(truth),
    'n_inadequate': int(bad.sum()),
    'n_patients': len(np.unique(patient)),
    'auc': _auc(truth, score, patient),
    'sensitivity': assessment.proportion(called[bad], patient[bad]),
    'specificity': assessment.proportion(~called[good], patient[good]),
    'accuracy': assessment.proportion(called == bad, patient),
    'note': note,
  }


def _auc(truth, score, patient) -> assessment.Entry:
  value, low, high = intervals.auc(truth, score, patient)
  note = metrics.reason(truth, value)
  if not note:
    few = intervals.too_small(truth, patient)
    if few:
      note = f'{assessment.TOO_SMALL}: {few}'
    elif not np.isfinite([low, high]).all():
      note = 'no interval: the images show no variance'
    elif high - low > intervals.WIDE:
      note = assessment.IMPRECISE
  return {**assessment.entry(value, low, high, note), 'n': len(truth)}


def _shortcut(columns, breakdown, members) -> dict[str, Any]:
  truth = columns['quality']
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
