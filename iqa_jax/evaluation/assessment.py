"""The measures of a set of judged photographs, with intervals, as plain JSON.

What evaluation, scoring of other systems and cross-validation share. Every
measure is {'value', 'low', 'high', 'note'}: numbers or None, the 95 % interval,
and why there is none or why it can't tell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from iqa_jax import labels
from iqa_jax.aliases import Record
from iqa_jax.evaluation import intervals, metrics, resampling
from iqa_jax.judging import operating_points

Entry = Record
FEW = 10  # images of a class, or patients, below which a group can't tell
WIDE = 0.2  # an interval wider than this can't tell either
TOO_SMALL = 'too small to tell'
IMPRECISE = 'imprecise: wide interval'
_COVERAGES = (1.0, 0.95, 0.9, 0.8, 0.7, 0.5)


def verdict(
  truth: np.ndarray,
  score: np.ndarray,
  p: np.ndarray,
  threshold: float,
  patient: np.ndarray,
  *,
  called: np.ndarray | None = None,
  reference: np.ndarray | None = None,
  resamples: int = 2000,
  names: Sequence[str] = labels.QUALITY,
) -> Record:
  """Returns the measures of a binary judgement; class 1 is positive.

  Args:
    truth: int [n], 0 or 1.
    score: float [n], what ranks the images (uncalibrated: isotonic calibration
      makes ties).
    p: float [n], calibrated probability of class 1.
    threshold: class 1 is called where p reaches it.
    patient: [n], whom the images are of.
    called: bool [n], the verdicts, where they are not by one threshold.
    reference: labels that the majority baseline comes from; None: truth.
    resamples: of the bootstrap.
    names: of class 0 and class 1, for the notes.

  Returns:
    'n', 'n_inadequate', 'n_patients', 'threshold', 'metrics' {name: entry},
    'majority' {name: number or None}, 'confusion' [[tn, fp], [fn, tp]].
  """
  truth, score, p = np.asarray(truth), np.asarray(score), np.asarray(p)
  called = p >= threshold if called is None else np.asarray(called)
  draws = resampling.Resamples(patient, resamples)
  values = metrics.binary(truth, p, called, score=score)
  limits = intervals.binary(truth, p, called, draws, score=score, values=values)
  reference = truth if reference is None else np.asarray(reference)
  return {
    'n': len(truth),
    'n_inadequate': int((truth == 1).sum()),
    'n_patients': len(np.unique(patient)),
    'threshold': float(threshold),
    'metrics': _entries(values, limits, truth, names),
    'majority': numbers(metrics.majority(truth, reference)),
    'confusion': metrics.confusion(truth, called).tolist(),
  }


def grades(
  truth: np.ndarray,
  p: np.ndarray,
  patient: np.ndarray,
  *,
  reference: np.ndarray | None = None,
  resamples: int = 2000,
  names: Sequence[str] = labels.GRADES,
) -> Record:
  """Returns the measures of ordered classes; the largest score is called.

  Args:
    truth: int [n], 0..k-1.
    p: float [n, k], a score a class; rows need not sum to 1.
    patient: [n].
    reference: see `verdict`.
    resamples: see `verdict`.
    names: of the classes.

  Returns:
    'n', 'n_patients', 'classes', 'counts', 'metrics', 'majority', 'confusion'
    [k, k] (row: truth). Metrics of a class carry its name: recall_good.
  """
  truth, p = np.asarray(truth), np.asarray(p)
  called = p.argmax(axis=1) if len(p) else np.zeros(0, int)
  values = metrics.grades(truth, p, called)
  draws = resampling.Resamples(patient, resamples)
  limits = intervals.grades(truth, p, called, draws)
  reference = truth if reference is None else np.asarray(reference)
  baseline = metrics.majority(truth, reference, len(names))

  def named(found: Record) -> Record:
    result = {}
    for key, value in found.items():
      stem, _, number = key.rpartition('_')
      key = f'{stem}_{names[int(number)]}' if number.isdigit() else key
      result[key] = value
    return result

  return {
    'n': len(truth),
    'n_patients': len(np.unique(patient)),
    'classes': list(names),
    'counts': np.bincount(truth, minlength=len(names)).tolist(),
    'metrics': _entries(named(values), named(limits), truth, names),
    'majority': numbers(named(baseline)),
    'confusion': metrics.confusion(truth, called, len(names)).tolist(),
  }


def selective(
  truth: np.ndarray,
  p: np.ndarray,
  threshold: float,
  uncertain: np.ndarray,
  patient: np.ndarray,
) -> Record:
  """Returns what sending uncertain images to a person brings.

  Args:
    truth: int [n], 0 or 1.
    p: float [n], calibrated.
    threshold: of the verdict.
    uncertain: bool [n].
    patient: [n].

  Returns:
    'share' sent to a person; 'accuracy_decided', 'sensitivity_decided',
    'specificity_decided', 'accuracy_uncertain' entries; 'coverage': rows of
    {'coverage', 'accuracy'} when the least certain are handed over first.
  """
  right = (p >= threshold) == (truth == 1)
  share, accuracy = operating_points.coverage(truth, p, threshold)
  rows = []
  for wanted in _COVERAGES if len(share) else ():
    at = int(np.searchsorted(share, wanted - 1e-9).clip(max=len(share) - 1))
    rows.append({'coverage': float(share[at]), 'accuracy': float(accuracy[at])})

  def of(kept: np.ndarray) -> Entry:
    return proportion(right[kept], patient[kept])

  return {
    'share': proportion(uncertain, patient),
    'accuracy_decided': of(~uncertain),
    'sensitivity_decided': of(~uncertain & (truth == 1)),
    'specificity_decided': of(~uncertain & (truth == 0)),
    'accuracy_uncertain': of(uncertain),
    'coverage': rows,
  }


def proportion(hit: np.ndarray, patient: np.ndarray) -> Entry:
  """Returns the entry of a share, with 'n', its images."""
  value, low, high = intervals.proportion(hit, patient)
  note = ''
  if not len(hit):
    note = 'no image'
  elif len(np.unique(patient)) < FEW:
    count = len(np.unique(patient))
    note = f'{TOO_SMALL}: {count} patient{"" if count == 1 else "s"}'
  elif high - low > WIDE:
    note = IMPRECISE
  return {**entry(value, low, high, note), 'n': len(hit)}


def too_small(truth: np.ndarray, patient: np.ndarray) -> str:
  """Returns why a group of images can't tell anything, '' where it can."""
  counts = {
    'inadequate images': int((truth == 1).sum()),
    'adequate images': int((truth == 0).sum()),
    'patients': len(np.unique(patient)),
  }
  few = [
    f'{n} {what[:-1] if n == 1 else what}'
    for what, n in counts.items()
    if n < FEW
  ]
  return ', '.join(few)


def entry(
  value: float, low: float = np.nan, high: float = np.nan, note: str = ''
) -> Entry:
  """Returns a measure; None stands for what is not finite, as JSON has it."""
  return {
    'value': _number(value),
    'low': _number(low),
    'high': _number(high),
    'note': note,
  }


def numbers(values: Mapping[str, float]) -> dict[str, float | None]:
  """Returns numbers as JSON has them: None for what is not finite."""
  return {name: _number(value) for name, value in values.items()}


def summary(assessed: Record, name: str) -> str:
  """Returns a measure as text: '0.975 (0.972 to 0.977)', or why it has none."""
  return text(assessed['metrics'][name])


def text(measure: Record, digits: int = 3) -> str:
  """Returns an entry as text."""
  value, low, high = (measure[k] for k in ('value', 'low', 'high'))
  if value is None:
    return f'undefined: {measure["note"]}' if measure['note'] else 'undefined'
  shown = f'{value:.{digits}f}'
  if low is not None and high is not None:
    shown += f' ({low:.{digits}f} to {high:.{digits}f})'
  return shown


def _entries(
  values: Mapping[str, float],
  limits: Mapping[str, tuple[float, float]],
  truth: np.ndarray,
  names: Sequence[str],
) -> dict[str, Entry]:
  entries = {}
  for name, value in values.items():
    low, high = limits.get(name, (np.nan, np.nan))
    note = metrics.reason(truth, value, names)
    if not note and not np.isfinite([low, high]).all():
      note = 'too few images for an interval'
    elif not note and low == high:
      note = 'the interval is a point: no resample differs'
    entries[name] = entry(value, low, high, note)
  return entries


def _number(value: float) -> float | None:
  return float(value) if np.isfinite(value) else None
