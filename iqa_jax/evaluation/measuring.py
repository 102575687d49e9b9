"""The measures of one split of a run: verdict, grades, criteria, breakdowns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from iqa_jax import labels
from iqa_jax.evaluation import assessment, breakdowns, metrics
from iqa_jax.evaluation.predictions import Predictions
from iqa_jax.judging.operating_record import OperatingRecord
from iqa_jax.tasks import Task


def measure(
  rows: Predictions,
  task: Task,
  record: OperatingRecord,
  *,
  reference: Mapping[str, np.ndarray],
  resamples: int,
) -> dict[str, Any]:
  """Returns the measures of a split (README.md beside this file).

  Args:
    rows: the predictions, judged by `record`.
    task: the run's.
    record: the operating point, and those of the criteria.
    reference: 'quality', 'grade' and 'criteria' of the training examples, for
      the majority baseline.
    resamples: of the bootstrap.
  """
  finite, judged = rows[np.isfinite(rows.p_calibrated)], rows[rows.judged]
  result: dict[str, Any] = {
    'n': len(rows),
    'n_not_finite': len(rows) - len(finite),
    'verdict': assessment.verdict(
      judged.quality,
      judged.ranks,
      judged.p_calibrated,
      record.threshold,
      judged.patient_id,
      reference=_labelled(reference['quality']),
      resamples=resamples,
    ),
    'uncalibrated': assessment.numbers(
      metrics.probabilities(judged.quality, judged.p_inadequate)
    ),
    'selective': assessment.selective(
      judged.quality,
      judged.p_calibrated,
      record.threshold,
      judged.uncertain,
      judged.patient_id,
    ),
    'breakdowns': breakdowns.run(rows),
  }
  if task.name == 'grade' and finite.grade is not None:
    graded = finite[finite.grade >= 0]
    result['grade'] = assessment.grades(
      finite.grade[finite.grade >= 0],
      np.stack([graded.probability(n) for n in task.outputs], axis=1),
      graded.patient_id,
      reference=_labelled(reference['grade']),
      resamples=resamples,
    )
  if task.name == 'criteria':
    result['criteria'] = {
      name: _criterion(
        finite, name, record, reference['criteria'][:, i], resamples
      )
      for i, name in enumerate(task.outputs)
    }
  return result


def _criterion(
  rows: Predictions,
  name: str,
  record: OperatingRecord,
  reference: np.ndarray,
  resamples: int,
) -> dict[str, Any]:
  known = rows[rows.label(name) >= 0]
  p = known.probability(name)
  return assessment.verdict(
    known.label(name),
    p,
    p,
    record.criterion_threshold(name),
    known.patient_id,
    reference=_labelled(reference),
    resamples=resamples,
    names=(f'adequate {name}', f'inadequate {name}'),
  )


def _labelled(values: np.ndarray) -> np.ndarray:
  return values[values != labels.UNKNOWN]
