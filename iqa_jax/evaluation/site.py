"""A trained model at another site: recalibrated, and measured before and after.

`iqa_jax.recalibrate` is its command; what is fitted is judging.recalibration.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import hashlib
import os
import pathlib
import shutil
from typing import Any

import numpy as np

from iqa_jax import errors, labels, run_directory
from iqa_jax import grader as grader_lib
from iqa_jax.evaluation import (
  api,
  assessment,
  foreign,
  foreign_scores,
  given,
  metrics,
)
from iqa_jax.evaluation.predictions import Predictions
from iqa_jax.judging import calibration, recalibration
from iqa_jax.judging.operating_record import Judged, OperatingRecord
from iqa_jax.judging.verdict import Verdict
from iqa_jax.photograph import images, inputs

_SHOWN = (
  *('sensitivity', 'specificity', 'accuracy', 'log_loss'),
  *('calibration_intercept', 'calibration_slope'),
)


@dataclasses.dataclass(frozen=True)
class Labels:
  """Labels of some of the photographs.

  Attributes:
    path: of their CSV file.
    quality: int [n], a photograph each; -1 unknown.
    patient: str [n].
    notes: what was assumed.
  """

  path: str
  quality: np.ndarray
  patient: np.ndarray
  notes: list[str]


def run(
  workdir: str,
  folder: str,
  output: str,
  *,
  labels_file: str | None = None,
  rate: float | None = None,
  usable: str = 'inadequate',
  share: float | None = None,
  check_fundus: bool = True,
) -> dict[str, Any]:
  """Writes a run directory with the same network and the site's verdicts.

  Args:
    workdir: the run whose model is taken.
    folder: photographs of the site, as --images of an export.
    output: the new run directory; must hold no model.
    labels_file: CSV of image names and labels of some of them.
    rate: instead of labels, the assumed share of inadequate photographs.
    usable: what EyeQ's grade 1 counts as.
    share: of photographs that go to a person; None as the run's configuration.
    check_fundus: leave out pictures that show no fundus.

  Returns:
    What recalibration.json holds: 'photographs', 'labelled', 'rate', 'before',
    'after' (metrics with intervals; of labels, 'after' judges each patient by
    the labels of others), 'notes', and the record before and after.

  Raises:
    UserError: a file, a folder or a label is not as it must be.
  """
  if (labels_file is None) == (rate is None):
    raise errors.InvalidValue('give labels, or an assumed rate: one of the two')
  if (pathlib.Path(output) / 'model').exists():
    raise run_directory.RunDirectoryError(
      f'{output} already holds a model; give a new folder'
    )
  grader = grader_lib.load(workdir, check_fundus=check_fundus)
  member = grader.members[0]
  if share is None:
    share = float(member.config.eval.uncertain_share)
  listing = inputs.find(folder, None, images.SUFFIXES)
  paths = [os.path.join(listing.root, key) for key in listing.keys]
  found = None if labels_file is None else _labels(labels_file, paths, usable)
  verdicts = list(grader.judge(paths))
  p, saved = _uncalibrated(verdicts), member.judges
  result: dict[str, Any] = {
    'photographs': len(paths),
    'failed': int((~np.isfinite(p)).sum()),
  }
  if found is None:
    assert rate is not None
    record = recalibration.from_rate(saved, p, rate, share=share)
    result |= {'rate': rate, **_called(saved, record, p)}
  else:
    record = recalibration.from_labels(saved, found.quality, p, share=share)
    result |= _compared(saved, found, p, share)
  result['record'] = {'before': saved.to_dict(), 'after': record.to_dict()}
  _write(workdir, output, member.digest, result, labels_file)
  return result


def as_text(result: Mapping[str, Any]) -> str:
  """Returns before and after for a terminal."""
  lines = [
    f'{result["photographs"]} photographs, {result["failed"]} without a '
    f'verdict; {result.get("labelled", 0)} labelled',
    *(f'- {note}' for note in result['notes']),
    f'  {"":36} {"before":28} after',
  ]
  for name, before in result['before'].items():
    title = metrics.TITLES.get(name, name.replace('_', ' '))
    after = assessment.text(result['after'][name])
    lines.append(f'  {title:36} {assessment.text(before):28} {after}')
  thresholds = [
    OperatingRecord.from_model(result['record'][k]).threshold
    for k in ('before', 'after')
  ]
  lines.append(
    f'  {"operating point":36} {thresholds[0]:<28.3f} {thresholds[1]:.3f}'
  )
  return '\n'.join(lines)


def _uncalibrated(verdicts: Sequence[Verdict]) -> np.ndarray:
  """Returns the network's own probabilities [n], NaN where there are none."""
  odds = [v.log_odds if v.ok else None for v in verdicts]
  return calibration.sigmoid(np.array(odds, float))


def _labels(path: str, paths: Sequence[str], usable: str) -> Labels:
  """Returns the labels of photographs, by their names without folders."""
  notes: list[str] = []
  table = foreign.read(path, '', notes)
  kind, numbers = foreign_scores.read_labels(table, None, False)
  if kind == 'grade':
    numbers = given.qualities(numbers, usable)
    notes.append(f'labels are grades; Usable counts as {usable}')
  order = np.arange(len(numbers))
  patients = foreign.patients(table, table, order, None, notes)
  row = {foreign.stem(name): i for i, name in enumerate(table.names)}
  stems = [foreign.stem(p) for p in paths]
  absent = sorted(set(row) - set(stems))
  if absent:
    raise foreign.ScoringError(
      f'{len(absent)} of {len(row)} labelled images are not among the '
      f'photographs: {", ".join(absent[:3])}'
    )
  quality = np.full(len(paths), labels.UNKNOWN)
  patient = np.array(stems, object)
  for i, stem in enumerate(stems):
    if stem in row:
      quality[i], patient[i] = numbers[row[stem]], patients[row[stem]]
  return Labels(path, quality, patient.astype(str), notes)


def _compared(
  saved: OperatingRecord, found: Labels, p: np.ndarray, share: float
) -> dict[str, Any]:
  """Returns the measures on the labelled photographs, before and after."""
  known = np.isfinite(p) & (found.quality != labels.UNKNOWN)
  truth, p, patient = found.quality[known], p[known], found.patient[known]
  judged = {
    'before': (saved.judge(p), saved.threshold),
    'after': (
      recalibration.on_others(saved, truth, p, patient, share=share),
      0.5,
    ),
  }
  return {
    'labelled': len(truth),
    'labelled_inadequate': int(truth.sum()),
    'notes': [
      *found.notes,
      'after: each patient is judged by the labels of others alone',
    ],
    **{
      when: _measured(truth, p, patient, verdicts, at)
      for when, (verdicts, at) in judged.items()
    },
  }


def _measured(
  truth: np.ndarray,
  p: np.ndarray,
  patient: np.ndarray,
  judged: Judged,
  threshold: float,
) -> dict[str, Any]:
  rows = Predictions(
    image_id=np.arange(len(p)).astype(str),
    patient_id=patient,
    quality=truth,
    p_inadequate=p,
    p_calibrated=judged.p_calibrated,
    verdict=judged.verdict,
    uncertain=judged.uncertain,
  )
  found = api.measure(rows, threshold)['metrics']
  return {name: found[name] for name in ('auc', *_SHOWN)}


def _called(
  saved: OperatingRecord, record: OperatingRecord, p: np.ndarray
) -> dict[str, Any]:
  """Returns how many are called inadequate, before and after."""
  seen = p[np.isfinite(p)]
  each = np.arange(len(seen))  # who is who is unknown

  def share(by: OperatingRecord) -> dict[str, Any]:
    called = by.judge(seen).verdict == labels.INADEQUATE
    return {'called_inadequate': assessment.proportion(called, each)}

  return {
    'notes': [
      'no photograph is labelled: whether the verdicts are right is not known, '
      'and they are as good as the assumed rate'
    ],
    'before': share(saved),
    'after': share(record),
  }


def _write(
  workdir: str,
  output: str,
  digest: str,
  result: dict[str, Any],
  labels_file: str | None,
) -> None:
  """Writes the new run directory; model.json says where it comes from."""
  home, new = pathlib.Path(workdir), pathlib.Path(output)
  new.mkdir(parents=True, exist_ok=True)
  for name in ('config.json', 'environment.json'):
    if (home / name).is_file():
      shutil.copyfile(home / name, new / name)
  run_directory.write_json(new / 'recalibration.json', result)
  origin = {
    'run': home.resolve().name,
    'sha256': digest,
    **result['record']['before'],
    'photographs': result['photographs'],
    'labelled': result.get('labelled', 0),
    'rate': result.get('rate'),
  }
  if labels_file is not None:
    data = pathlib.Path(labels_file).read_bytes()
    origin['labels'] = pathlib.Path(labels_file).name
    origin['labels_sha256'] = hashlib.sha256(data).hexdigest()
  shutil.copytree(home / 'model', new / 'model')
  run_directory.update_model_record(
    new, **result['record']['after'], recalibrated_from=origin
  )
