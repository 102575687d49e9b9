"""What goes into a photograph's row of the manifest, and into its pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from iqa_jax import labels
from iqa_jax.aliases import Record
from iqa_jax.explain import overlay, panel, ruler
from iqa_jax.export import messages
from iqa_jax.export.model import Model
from iqa_jax.export.scale import Scale
from iqa_jax.judging import advice
from iqa_jax.photograph import inputs

if TYPE_CHECKING:
  from iqa_jax.explain.explainer import Seen


def judged(
  key: str,
  prepared: messages.Prepared,
  found: Seen,
  model: Model,
  language: str,
) -> Record:
  """Returns what the network says of a photograph.

  Its status is 'ok', or 'not_finite' where the network ran over, and then
  there is nothing to draw.
  """
  from iqa_jax.explain import scaling

  finite = np.isfinite(found.logits).all() and np.isfinite(found.raw).all()
  record: Record = {
    'path': key,
    'status': 'ok' if finite else 'not_finite',
    'reason': '',
    'width': prepared.width,
    'height': prepared.height,
    'field_found': prepared.field.found,
    'field_share': prepared.field_share,
    'method': model.method,
    'layer': model.explainer.layer,
    'checkpoint': model.digest,
    'runtime': model.runtime,
    'operating_point': model.judges.threshold,
    'source': list(prepared.source),
  }
  if prepared.looks is not None:
    record['not_fundus'] = prepared.looks.not_fundus
    record['unlike_training'] = prepared.looks.unlike_training
    if prepared.looks.flagged:
      return record | {
        'status': 'not_fundus',
        'reason': prepared.looks.reason,
      }
  if not finite:
    record['reason'] = 'the network ran over: its logits or map are infinite'
    return record
  landmarks = ruler.to_original(found.landmarks, prepared.affine, model.size)
  record |= ruler.columns(landmarks, prepared.field)
  p, verdict, uncertain = model.judge(float(found.p_inadequate))
  judges = model.judges
  for i, name in enumerate(model.outputs):
    record[f'logit_{name}'] = float(found.logits[i])
    record[f'p_{name}'] = float(found.probabilities[i])
  record |= _cause(found, verdict, model, language)
  return record | {
    'p_inadequate': float(found.p_inadequate),
    'p_calibrated': p if judges.calibration is not None else None,
    'verdict': verdict,
    'uncertain': uncertain if judges.uncertain_band is not None else None,
    'target': model.explainer.trained.task.targets[int(found.targets)],
    'raw_min': float(found.raw.min()),
    'raw_max': float(found.raw.max()),
    'raw_sum': float(found.raw.sum(dtype=np.float64)),
    'empty_map': scaling.status(found.raw) == 'empty',
  }


def _cause(found: Seen, verdict: str, model: Model, language: str) -> Record:
  """Returns what is wrong, of models that know; nothing of others."""
  if found.criteria is None:
    return {}
  cause, criteria = model.explainer.cause(found, verdict)
  return {
    'cause': cause,
    'advice': advice.sentence(cause, language),
    **{f'p_{name}': criterion.p for name, criterion in criteria.items()},
    **{
      f'share_{name}': criterion.share for name, criterion in criteria.items()
    },
  }


def _criteria(
  found: Seen, record: Record, model: Model, language: str
) -> tuple[panel.Criterion, ...]:
  """Returns what a panel shows of the criteria that the model knows."""
  cells = found.cells()
  return tuple(
    panel.Criterion(
      advice.name(name, language),
      record[f'p_{name}'],
      record[f'share_{name}'],
      cells.get(name),
      name == record['cause'],
    )
    for name in model.criteria
  )


def failed(key: str, answer: messages.Failed, model: Model) -> Record:
  """Returns the record of a photograph that can't be used."""
  return {
    'path': key,
    'status': answer.status,
    'reason': answer.reason,
    'checkpoint': model.digest,
    'runtime': model.runtime,
  }


def drawn(record: Record, answer: messages.Drawn) -> Record:
  """Returns the record of a photograph whose pictures are written."""
  return {
    **record,
    'evidence_in_field': answer.evidence_in_field,
    'files': {kind: list(f) for kind, f in answer.files.items()},
    **{kind: name for kind, (name, _) in answer.files.items()},
  }


def drawing(
  record: Record,
  prepared: messages.Prepared,
  found: Seen,
  model: Model,
  *,
  scale: Scale,
  thumbnail: bool,
  language: str,
) -> messages.Drawing:
  """Returns what is to be drawn of a photograph that `judged` says is ok."""
  from iqa_jax import tasks

  constant = 0.0
  if scale.how == 'logit':
    constant = model.constants[record['target']]
  shown, bar = scale.shown(found.raw, constant)
  p, how = record['p_calibrated'], 'calibrated'
  if p is None:
    p, how = record['p_inadequate'], 'not calibrated'
  note = ''
  if record['empty_map']:
    note = overlay.EMPTY if found.evidence is None else overlay.NO_FAULT
  return messages.Drawing(
    name=inputs.output_name(record['path']),
    shown=shown,
    raw=found.raw,
    placement=model.explainer.placement,
    caption=panel.Caption(
      name=record['path'],
      verdict=record['verdict'],
      probability=f'P(inadequate) = {p:.3f}, {how}',
      uncertain=bool(record['uncertain']),
      target=f'evidence for {tasks.evidence_for(record["target"])}',
      source=f'{model.method}, {record["layer"]}',
      bar=bar,
      note=note,
      cause=advice.name(record.get('cause', ''), language),
      advice=record.get('advice', ''),
      criteria=_criteria(found, record, model, language),
    ),
    landmarks=ruler.to_original(found.landmarks, prepared.affine, model.size),
    thumbnail=thumbnail,
    facts={
      'logits': found.logits,
      'outputs': np.array(model.outputs),
      'p_inadequate': record['p_inadequate'],
      'target': record['target'],
      'layer': record['layer'],
      'method': model.method,
      'checkpoint': model.digest,
      'runtime': model.runtime,
      **_cells(found),
    },
  )


def _cells(found: Seen) -> dict[str, np.ndarray]:
  """Returns the NPZ's arrays of cells, of models that have them."""
  if found.evidence is None or found.field_share is None:
    return {}
  return {
    'evidence': found.evidence,
    'evidence_of': np.array(labels.LOCAL_CRITERIA),
    'cell_field_share': found.field_share,
  }
