"""Test photographs with their maps, for the report."""

from __future__ import annotations

from collections.abc import Mapping
import io
from typing import Any, NamedTuple

import ml_collections
import numpy as np

from iqa_jax import labels, models, tasks

_KINDS = {
  'missed': 'Missed: labelled inadequate, called adequate',
  'false_alarm': 'False alarm: labelled adequate, called inadequate',
  'uncertain': 'Uncertain: to be looked at by a person',
  'inadequate': 'Rightly called inadequate',
  'adequate': 'Rightly called adequate',
}


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
  loaded: Any,
  record: Mapping[str, Any],
  config: ml_collections.ConfigDict,
  source: Any,
  indices: np.ndarray,
  columns: Mapping[str, np.ndarray],
) -> list[Example]:
  """Returns `config.explain.examples` photographs with maps.

  Args:
    loaded: the model whose maps are shown, of inference.load; the verdicts
      may be those of an ensemble that it belongs to.
    record: the 'operating_point' of the verdicts.
    config: the run's; reads `explain`.
    source: the data.
    indices: of the rows of `columns` in the source's table.
    columns: of a split, see evaluate.
  """
  from iqa_jax.data import pipeline
  from iqa_jax.explain import cam, overlay
  from iqa_jax.explain.subject import Subject

  chosen = choose(columns, config.explain.examples)
  rows = np.concatenate([np.asarray(r, int) for r in chosen.values()])
  if not len(rows):
    return []
  size, task = loaded.image_size, loaded.task
  method = config.explain.method
  subject = Subject(
    loaded,
    methods=(method,),
    layer=config.explain.layer or None,
    batch_size=min(8, len(rows)),
  )
  batches = pipeline.batches(
    source,
    pipeline.plan_eval(source, indices[rows]),
    image_size=size,
    batch_size=min(8, len(rows)),
    **models.inputs(config),
  )
  images = np.concatenate(
    [np.asarray(b['image'])[np.asarray(b['mask']) > 0] for b in batches]
  )
  target = config.explain.target
  truth = {
    'quality': columns['quality'][rows],
    'grade': columns['grade'][rows],
    'criteria': np.stack([columns[n][rows] for n in labels.CRITERIA], axis=1),
  }
  # The scores that the verdicts are made of, of all members and views.
  logits = np.stack([columns[f'logit_{n}'][rows] for n in task.outputs], axis=1)
  targets = np.asarray(
    task.predicted_targets(
      columns['p_calibrated'][rows],
      record['operating_point']['threshold'],
    )
    if target == 'predicted'
    else cam.choose_targets(task, target, logits, labels=truth)
  )
  maps = subject.maps(images, targets)[method]
  shown = cam.scale(maps, 'image', (size, size), placement=subject.placement)
  kinds = [kind for kind, found in chosen.items() for _ in found]
  examples = []
  for i, row in enumerate(rows):
    file = io.BytesIO()
    overlay.thumbnail(images[i, ..., :3], shown[i]).save(
      file, 'JPEG', quality=88
    )
    explained = tasks.evidence_for(task.targets[int(targets[i])])
    words = [
      f'P(inadequate) {_probability(columns["p_calibrated"][row])}',
      f'labelled {labels.QUALITY[columns["quality"][row]]}',
      f'map: evidence for {explained}, {method}',
    ]
    if cam.status(maps[i]) != 'ok':
      words.append('the map is empty: no positive evidence')
    examples.append(
      Example(
        _KINDS[kinds[i]],
        str(columns['image_id'][row]),
        '; '.join(words),
        file.getvalue(),
      )
    )
  return examples


def _probability(p: float) -> str:
  """Returns three digits that never claim certainty."""
  if p < 0.0005:
    return '< 0.001'
  return '> 0.999' if p >= 0.9995 else f'= {p:.3f}'


def choose(
  columns: Mapping[str, np.ndarray], count: int
) -> dict[str, list[int]]:
  """Returns rows to show by kind, dealt in turn, no image twice.

  Of errors and of right verdicts the most certain come first.
  """
  p = np.asarray(columns['p_calibrated'])
  truth, called = columns['quality'], columns['verdict']
  usable = np.isfinite(p) & (truth >= 0)
  uncertain = np.asarray(columns['uncertain']) == 1
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
