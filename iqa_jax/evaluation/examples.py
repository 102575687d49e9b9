"""Test photographs with their maps, for the report."""

from __future__ import annotations

import io
from typing import NamedTuple

import ml_collections
import numpy as np

from iqa_jax import labels, models, tasks
from iqa_jax.data.source import Source
from iqa_jax.evaluation.predictions import Predictions
from iqa_jax.judging.operating_record import OperatingRecord
from iqa_jax.photograph.placement import Placement
from iqa_jax.trained import Trained

_KINDS = {
  'missed': 'Missed: labelled inadequate, called adequate',
  'false_alarm': 'False alarm: labelled adequate, called inadequate',
  'uncertain': 'Uncertain: to be looked at by a person',
  'inadequate': 'Rightly called inadequate',
  'adequate': 'Rightly called adequate',
}
_EMPTY = '; the map is empty: no positive evidence'


class Example(NamedTuple):
  """A picture of the report.

  Attributes:
    kind: why it is shown, a heading.
    name: of the photograph.
    caption: verdict, probability and label in words.
    jpeg: the prepared photograph and its map, side by side.
  """

  kind: str
  name: str
  caption: str
  jpeg: bytes


def draw(
  loaded: Trained,
  record: OperatingRecord,
  config: ml_collections.ConfigDict,
  source: Source,
  indices: np.ndarray,
  judged: Predictions,
) -> list[Example]:
  """Returns `config.explain.examples` photographs with maps.

  Args:
    loaded: the model whose maps are shown; the verdicts may be
      those of an ensemble that it belongs to.
    record: what the verdicts were made by.
    config: the run's; reads `explain`.
    source: the data.
    indices: of the rows of `judged` in the source's table.
    judged: the predictions of a split.
  """
  from iqa_jax.explain import cam, scaling
  from iqa_jax.explain.explainer import Explainer

  chosen = choose(judged, config.explain.examples)
  rows = np.concatenate([np.asarray(r, int) for r in chosen.values()])
  if not len(rows):
    return []
  task, method = loaded.task, config.explain.method
  explainer = Explainer(
    loaded,
    methods=(method,),
    layer=config.explain.layer or None,
    batch_size=min(8, len(rows)),
  )
  images = _images(source, indices[rows], config, loaded.image_size)
  target = config.explain.target
  drawn = judged[rows]
  truth = {k: getattr(drawn, k) for k in ('quality', 'grade', 'criteria')}
  # The logits are those that verdicts are made of, of all members and views.
  targets = np.asarray(
    task.predicted_targets(drawn.p_calibrated, record.threshold)
    if target == 'predicted'
    else cam.choose_targets(
      task, target, np.asarray(drawn.logits), labels=truth
    )
  )
  maps = explainer.maps(images, targets)[method]
  kinds = [kind for kind, found in chosen.items() for _ in found]
  return [
    Example(
      _KINDS[kinds[i]],
      str(drawn.image_id[i]),
      f'P(inadequate) {_probability(drawn.p_calibrated[i])}; '
      f'labelled {labels.QUALITY[drawn.quality[i]]}; '
      f'map: evidence for {tasks.evidence_for(task.targets[targets[i]])}, '
      f'{method}' + ('' if scaling.status(maps[i]) == 'ok' else _EMPTY),
      _picture(images[i, ..., :3], maps[i], explainer.placement),
    )
    for i in range(len(drawn))
  ]


def _images(
  source: Source,
  indices: np.ndarray,
  config: ml_collections.ConfigDict,
  size: int,
) -> np.ndarray:
  """Returns photographs as networks take them, uint8 [n, s, s, 3 or 4]."""
  from iqa_jax.data import pipeline
  from iqa_jax.data import plan as plan_lib

  batches = pipeline.batches(
    source,
    plan_lib.plan_eval(indices),
    image_size=size,
    batch_size=min(8, len(indices)),
    **models.inputs(config),
  )
  return np.concatenate(
    [np.asarray(b['image'])[np.asarray(b['mask']) > 0] for b in batches]
  )


def _picture(
  image: np.ndarray, raw: np.ndarray, placement: Placement | None
) -> bytes:
  from iqa_jax.explain import overlay, scaling

  shown = scaling.scale(raw, 'image', image.shape[:2], placement=placement)
  file = io.BytesIO()
  overlay.thumbnail(image, shown).save(file, 'JPEG', quality=88)
  return file.getvalue()


def _probability(p: float) -> str:
  """Returns three digits that never claim certainty."""
  if p < 0.0005:
    return '< 0.001'
  return '> 0.999' if p >= 0.9995 else f'= {p:.3f}'


def choose(judged: Predictions, count: int) -> dict[str, list[int]]:
  """Returns rows to show by kind, dealt in turn, no image twice.

  Of errors and of right verdicts the most certain come first.
  """
  p, truth, called = judged.p_calibrated, judged.quality, judged.verdict
  usable, uncertain = judged.judged, judged.uncertain
  right = usable & (called == truth) & ~uncertain
  pools = {
    'missed': (usable & (truth == 1) & (called == 0), p),
    'false_alarm': (usable & (truth == 0) & (called == 1), -p),
    'uncertain': (usable & uncertain & (called == truth), p),
    'inadequate': (right & (truth == 1), -p),
    'adequate': (right & (truth == 0), p),
  }
  ordered = {
    kind: [int(i) for i in np.argsort(order, kind='stable') if inside[i]]
    for kind, (inside, order) in pools.items()
  }
  taken: dict[str, list[int]] = {kind: [] for kind in pools}
  # Dealt in turn, so that a kind with few leaves its share to the others.
  while sum(map(len, taken.values())) < count and any(ordered.values()):
    for kind, waiting in ordered.items():
      if waiting and sum(map(len, taken.values())) < count:
        taken[kind].append(waiting.pop(0))
  return taken
