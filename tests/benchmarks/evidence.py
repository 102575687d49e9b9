"""Heads of evidence: do their maps find planted faults, and their verdicts?

  python -m tests.benchmarks evidence --workdirs=runs/e0,runs/e1,runs/e2

Runs of configs/eyeq_evidence.py (one a seed, all on one frozen trunk) judge the
test split, and its Good photographs again with one fault planted in each: of
every named kind that has a place, of every unfamiliar kind, from which nothing
learns, and of every reserved kind, by which nothing was chosen either. Pixel
AUC is inside the field of view; the map is the evidence for Inadequate,
enlarged to the network's input. A figure is one run's mean.
Kinds that a run was not shown (config.data.left_out_faults) are not among its
named ones; each has a row of its own, from the runs that left it out. A cause
is told of photographs that are called inadequate, and is right if it is the
criterion of the named fault that was put in.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import sys
from typing import Any, NamedTuple

from tests.benchmarks import common

# Of faults.KINDS, those that leave a part of the field as it was.
NAMED = (
  *('partial_defocus', 'uneven', 'rim_flare', 'pupil_shadow'),
  *('dust', 'lashes', 'reflection', 'stain', 'central_flare'),
)
ARTIFACTS = NAMED[4:]
_LOCAL = 0.25  # of the field: faults that cover less have a place
_BATCH = 16


class _Item(NamedTuple):
  """A photograph, [s, s, 4] with its field, and what was planted where."""

  photo: int
  kind: str
  image: Any
  mask: Any


def run(
  *,
  smoke: bool = False,
  workdirs: str = '',
  split: str = 'test',
  photographs: int = 51,
  seed: int = 0,
) -> list[common.Row]:
  """Judges and explains test photographs with every run.

  Args:
    smoke: an untrained small network on drawn photographs.
    workdirs: run directories, joined by commas.
    split: whose photographs; a recipe is chosen on 'validation'.
    photographs: how many Good photographs faults are planted into.
    seed: draws the faults.
  """
  import numpy as np

  from iqa_jax import trained
  from iqa_jax.data import splits
  from iqa_jax.data.source import open_source

  if smoke:
    from iqa_jax.simulation import photograph

    loaded = [_untrained()]
    images = [photograph.draw(i, 64, broken=()).image for i in range(3)]
    good, bad = images[:2], images[2:]
  else:
    loaded = [trained.load(path) for path in workdirs.split(',') if path]
    if not loaded:
      raise SystemExit('--workdirs names no trained run')
    config = loaded[0].config
    source = open_source(config)
    indices = splits.assign(source.table, config)[split]
    grades = source.table['grade'][indices]
    good = list(_stored(source, indices[grades == 0]))
    bad = list(_stored(source, indices[grades > 0]))
  items = list(_items(good, bad, loaded[0].image_size, photographs, seed))
  clean = np.array([i.kind in ('', 'bad') for i in items])
  cells = _cells(loaded, items)
  figures = [_measure(one, items, cells, clean) for one in loaded]
  return [
    common.Row(
      name,
      [f[name] for f in figures if name in f],
      '',
      target=_TARGETS.get(name, ''),
    )
    for name in dict.fromkeys(name for f in figures for name in f)
  ]


def _items(good, bad, size, count, seed) -> Iterator[_Item]:
  import numpy as np

  from iqa_jax.photograph import prepare
  from iqa_jax.simulation import faults, reserved, unfamiliar

  kinds = (*NAMED, *unfamiliar.KINDS, *reserved.KINDS)

  def item(photo, kind, pixels, field, mask):
    planes = (pixels, field[..., None], np.uint8(255 * (mask > 0.5))[..., None])
    small = prepare.resize(np.concatenate(planes, -1), size)
    return _Item(photo, kind, small[..., :4], small[..., 4] > 127)

  for number, pixels in enumerate([*good, *bad]):
    field = prepare.with_field(pixels)[..., 3]
    none = np.zeros(field.shape)
    kind = '' if number < len(good) else 'bad'
    yield item(number, kind, pixels, field, none)
    if number >= min(count, len(good)):
      continue
    for k, kind in enumerate(kinds):
      rng = np.random.default_rng([seed, number, k])
      if kind in NAMED:
        severity = rng.uniform(faults.THRESHOLD, 1.0)
        planted = faults.apply(pixels, field > 0, kind, severity, rng)
      else:
        group = reserved if kind in reserved.KINDS else unfamiliar
        planted = group.apply(pixels, field > 0, kind, rng)
      yield item(number, kind, planted[0], field, planted[1])


def _stored(source: Any, indices: Any) -> Iterator[Any]:
  """Yields the stored images of examples, uint8 [h, w, 3]."""
  for index in indices:
    [record] = source.read([index])
    yield source.features.deserialize_example_np(record)['image']


def _cells(loaded: Sequence[Any], items: Sequence[_Item]) -> Any:
  """Returns what all the runs' heads look at, float16 [n, g, g, c]."""
  import jax
  import numpy as np

  from iqa_jax import models

  first, *others = [one.variables['params']['backbone'] for one in loaded]
  for other in others:
    if not jax.tree.all(jax.tree.map(np.array_equal, first, other)):
      raise SystemExit('the runs differ in their trunks')
  one = loaded[0]

  @jax.jit
  def look(images):
    return one.model.apply(
      one.variables, models.normalize(images), stop='cells'
    )

  found = []
  for begin in range(0, len(items), _BATCH):
    images = np.stack([i.image for i in items[begin : begin + _BATCH]])
    short = _BATCH - len(images)
    padded = np.concatenate([images, images[:1].repeat(short, 0)])
    found.append(np.asarray(look(padded), np.float16)[: len(images)])
  return np.concatenate(found)


def _measure(loaded, items, cells, clean) -> dict[str, float]:
  """Returns the figures of a run by name."""
  import jax
  import numpy as np
  from scipy.special import expit
  from sklearn.metrics import roc_auc_score

  from iqa_jax import labels
  from iqa_jax.explain import scaling
  from iqa_jax.judging import cause as causes
  from iqa_jax.simulation import faults, reserved, unfamiliar

  task = loaded.task

  @jax.jit
  def judge(x):
    maps, kept = loaded.model.apply(
      loaded.variables,
      x,
      start='cells',
      stop='evidence',
      mutable=['intermediates'],
    )
    told = kept['intermediates']['neck']['evidence']
    cells = jax.nn.softplus(told['cell_logits'][0]), told['field_share'][0]

    def margin(m):
      logits, kept = loaded.model.apply(
        loaded.variables, m, start='evidence', mutable=['intermediates']
      )
      cause = kept['intermediates']['head']['cause'][0]
      return task.margin(logits).sum(), (task.margin(logits), cause)

    slope, (odds, cause) = jax.grad(margin, has_aux=True)(maps)
    return (slope * maps).sum(-1), odds, cause, *cells

  parts = [judge(cells[b : b + _BATCH]) for b in range(0, len(cells), _BATCH)]
  maps, odds, cause, cell, field = (
    np.concatenate([np.asarray(p[k], np.float64) for p in parts])
    for k in range(5)
  )
  kinds = np.array([i.kind for i in items])
  photo = np.array([i.photo for i in items])
  base = dict(zip(photo[clean], odds[clean], strict=True))
  size = items[0].image.shape[0]
  share = cells[..., -1].astype(np.float64)
  outside = np.abs(maps * (share == 0)).sum() / np.abs(maps).sum()
  pixel: dict[str, list[float]] = {}
  rises: dict[str, list[float]] = {}
  energy = []
  for item, own, odd in zip(items, maps, odds, strict=True):
    inside = item.image[..., 3] > 127
    mask = item.mask & inside
    if item.kind in ('', 'bad') or not mask.any() or mask[inside].all():
      continue
    drawn = scaling.enlarge(own.astype(np.float32), (size, size))
    auc = roc_auc_score(mask[inside], drawn[inside])
    pixel.setdefault(item.kind, []).append(float(auc))
    rises.setdefault(item.kind, []).append(float(odd > base[item.photo]))
    covered = mask.sum() / inside.sum()
    if covered < _LOCAL:
      energy.append(drawn[mask].sum() / drawn[inside].sum() / covered)
  left_out = loaded.config.data.left_out_faults
  named = {k: v for k, v in pixel.items() if k in NAMED and k not in left_out}
  held = {k: v for k, v in pixel.items() if k in reserved.KINDS}
  new = {k: v for k, v in pixel.items() if k in unfamiliar.KINDS}
  apart = {k: v for k, v in new.items() if k not in unfamiliar.RELATED}
  good, bad = odds[kinds == ''], odds[kinds == 'bad']
  dirty = np.isin(kinds, ARTIFACTS)
  wrong = [cause[kinds == '', 2], cause[dirty, 2]]
  judged = loaded.judges.judge(expit(odds)).verdict
  shown = np.isin(kinds, list(named))
  right: dict[str, list[float]] = {}
  for i in np.flatnonzero(shown & (judged == 1)):
    p = dict(zip(labels.LOCAL_CRITERIA, expit(cause[i]), strict=True))
    points = {k: loaded.judges.criterion_threshold(k) for k in p}
    said, _ = causes.find('inadequate', p, cell[i], field[i], thresholds=points)
    criterion = faults.CRITERION[kinds[i]]
    right.setdefault(criterion, []).append(float(said == criterion))
  return {
    'Good against the rest, AUC': _auc(good, bad),
    'artifacts in the photograph, AUC': _auc(*wrong),
    'specificity of Good photographs': float((judged[kinds == ''] == 0).mean()),
    'named kinds, called inadequate': float(judged[shown].mean()),
    **{f'cause is right, {k}': float(np.mean(v)) for k, v in right.items()},
    'evidence outside the field, share': float(outside),
    'energy in a local fault over its share': float(np.median(energy)),
    'named kinds, mean pixel AUC': _mean(named),
    'named kinds, least pixel AUC': min(map(np.mean, named.values())),
    'named kinds, probability rises': _mean({k: rises[k] for k in named}),
    'unfamiliar kinds, mean pixel AUC': _mean(new),
    'unfamiliar kinds, least pixel AUC': min(map(np.mean, new.values())),
    'of these without a relative, mean pixel AUC': _mean(apart),
    'of these without a relative, least pixel AUC': min(
      map(np.mean, apart.values())
    ),
    'unfamiliar kinds, probability rises': _mean({k: rises[k] for k in new}),
    'reserved kinds, mean pixel AUC': _mean(held),
    'reserved kinds, least pixel AUC': min(map(np.mean, held.values())),
    'reserved kinds, probability rises': _mean({k: rises[k] for k in held}),
    **{
      f'pixel AUC of {k}{", left out" * (k in left_out)}': float(np.mean(v))
      for k, v in pixel.items()
    },
    **{f'rises with {k}': float(np.mean(v)) for k, v in rises.items()},
  }


def _auc(clean, faulty) -> float:
  import numpy as np
  from sklearn.metrics import roc_auc_score

  truth = np.repeat([0, 1], [len(clean), len(faulty)])
  return float(roc_auc_score(truth, np.concatenate([clean, faulty])))


def _mean(by_kind) -> float:
  import numpy as np

  return float(np.mean([np.mean(v) for v in by_kind.values()]))


_TARGETS = {
  'Good against the rest, AUC': '0.98 (0.96 without real labels)',
  'artifacts in the photograph, AUC': '0.90',
  'evidence outside the field, share': '0',
  'energy in a local fault over its share': '4',
  'named kinds, mean pixel AUC': '0.93',
  'named kinds, least pixel AUC': '0.85',
  'unfamiliar kinds, mean pixel AUC': '0.92',
  'unfamiliar kinds, least pixel AUC': '0.85',
  'unfamiliar kinds, probability rises': '0.95',
  'reserved kinds, mean pixel AUC': '0.92',
  'reserved kinds, least pixel AUC': '0.85',
  'reserved kinds, probability rises': '0.95',
}


def _untrained() -> Any:
  """Returns a small network with a head of evidence, as a run's."""
  import jax

  from iqa_jax import config as config_lib
  from iqa_jax import models, trained
  from iqa_jax.tasks import Task

  config = config_lib.default()
  config.model.update({'name': 'vgg16', 'head': 'evidence', 'cells': 8})
  config.model.update({'width': 0.06, 'depth': 0.1})
  model = models.from_config(config, 2)
  return trained.Trained(
    model=model,
    variables=models.init(model, jax.random.key(0), 64),
    task=Task(),
    config=config,
    record={},
    digest='',
    image_size=64,
  )


if __name__ == '__main__':
  sys.exit(common.main(run))
