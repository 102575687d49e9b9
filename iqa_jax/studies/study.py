"""The whole test of a network's explanations: `run` measures everything.

planted.py and pixel_truth.py know where faults are, measures.py perturbs;
show.py and figures.py show the result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import time

import numpy as np
import tqdm

from iqa_jax import errors
from iqa_jax import labels as L
from iqa_jax.aliases import Record
from iqa_jax.evaluation import means
from iqa_jax.explain import faithfulness, scaling
from iqa_jax.studies import measures, pixel_truth, planted
from iqa_jax.studies import methods as methods_lib
from iqa_jax.studies.photographs import Photographs
from iqa_jax.studies.subject import Subject

PARTS = ('planted', 'pixels', 'removal', 'randomisation')


def run(
  subject: Subject,
  photographs: Photographs,
  *,
  parts: Sequence[str] = PARTS,
  target: str = 'margin',
  gradient_free: Sequence[str] = (),
  baselines: Sequence[str] = ('mean',),
  steps: int = 3,
  severity: float = 0.8,
  seed: int = 0,
) -> tuple[Record, Record]:
  """Measures whether the explanations of a network are true.

  Args:
    subject: the network, the methods and the layer.
    photographs: of any verdict; the adequate ones get the planted faults.
    parts: some of PARTS: planted faults; labelled pixels, where there are any;
      deletion, insertion and ROAD; destroyed networks and mirror images.
    target: what is explained, see cam.choose_targets.
    gradient_free: some of methods.GRADIENT_FREE, measured like the others.
    baselines: some of perturbation.BASELINES.
    steps: of the deletion and insertion curves.
    severity: of the planted faults, 0 to 1.
    seed: of controls, orders, noise, shuffling and faults.

  Returns:
    What goes to JSON, and what the figures show: arrays.

  Raises:
    ValueError: no such part.
  """
  for part in parts:
    errors.one_of('part', part, PARTS)
  labelled = 'pixels' in parts and photographs.truth is not None
  whole = labelled or {'removal', 'randomisation'} & set(parts)
  clock = _Clock()
  subject.tick = clock.tick
  with clock.part('maps'):
    logits = subject.logits(photographs.images)
    clean = clean_of(subject, photographs, logits)
    targets = subject.targets(target, logits, photographs.labels)
    count = len(photographs), len(clean)
    passes = _passes(subject, count, gradient_free, baselines, steps)
    wanted = [*parts, 'maps'] if whole else parts
    clock.expect(sum(passes.get(part, 0) for part in wanted))
    maps = {}
    if whole:
      maps = _maps(subject, photographs, targets, gradient_free, seed)
  names = (*subject.methods, *gradient_free)
  result = _head(subject, photographs, target, targets, names, seed)
  result['parts'] = list(parts)
  shown: Record = {'curves': {}, 'planted': []}
  if 'removal' in parts:
    with clock.part('perturbations'):
      values, shown['curves'] = measures.perturbed(
        subject, photographs, targets, maps, baselines=baselines, steps=steps,
        seed=seed,
      )  # fmt: skip
    result |= _removed(values, maps, photographs)
    result['empty'] = {
      n: int((scaling.status(maps[n]) != 'ok').sum()) for n in names
    }
  if 'randomisation' in parts:
    with clock.part('randomisation'):
      result['randomisation'] = measures.randomised(
        subject, photographs, targets, maps, seed
      )
      result['flip'] = measures.mirrored(subject, photographs, targets, maps)
  if 'planted' in parts:
    with clock.part('planted faults'):
      shown['planted'] = _planted(
        subject, clean, gradient_free, severity, seed, result
      )
  if labelled:
    with clock.part('pixel labels'):
      result['pixels'] = _pixels(subject, photographs, logits, maps, target)
  with clock.part('positional'):
    result['positional'] = measures.positional(subject, photographs, logits)
  result['seconds'] = clock.close()
  return result, shown


def _removed(
  values: Record, maps: Mapping[str, np.ndarray], photographs: Photographs
) -> Record:
  """Returns the intervals of what is told by removing pixels, and outside."""
  values['outside'] = measures.outside(maps, photographs.inside)
  people, bounds = photographs.people, {'road': means.ANY}
  return {
    'measures': {
      measure: measures.compare(v, people, bounds.get(measure, means.SHARE))
      for measure, v in values.items()
    },
    'outside_area': means.mean(
      (~photographs.inside).mean((1, 2)), people, means.SHARE
    ),
  }


def _planted(
  subject: Subject,
  clean: Photographs,
  gradient_free: Sequence[str],
  severity: float,
  seed: int,
  result: Record,
) -> list[planted.Kind]:
  """Returns all kinds of fault; what they say goes into `result`."""
  if not len(clean):
    return []
  found = planted.measure(
    subject, clean, gradient_free=gradient_free, severity=severity, seed=seed
  )
  kinds = list(found)
  p = subject.p_inadequate(subject.logits(clean.images))
  result['planted'] = planted.summarise(
    kinds, p, subject.threshold, clean.people
  )
  return kinds


def clean_of(
  subject: Subject, photographs: Photographs, logits: np.ndarray
) -> Photographs:
  """Returns the photographs that get faults: called adequate, rightly."""
  adequate = subject.p_inadequate(logits) < subject.threshold
  # A photograph known to be inadequate has faults of its own.
  adequate &= photographs.quality != L.INADEQUATE
  return photographs.take(np.flatnonzero(adequate))


def _head(
  subject: Subject,
  photographs: Photographs,
  target: str,
  targets: np.ndarray,
  names: Sequence[str],
  seed: int,
) -> Record:
  """Returns what was studied."""
  return {
    'photographs': {
      'source': photographs.source,
      'n': len(photographs),
      'n_patients': len(np.unique(photographs.people)),
      'skipped': [list(pair) for pair in photographs.skipped],
    },
    'target': target,
    'targets': {
      name: int((targets == i).sum())
      for i, name in enumerate(subject.trained.task.targets)
    },
    'network': subject.trained.config.model.name,
    'head': subject.trained.config.model.head,
    'layer': subject.layer,
    'placement': subject.placed,
    'methods': list(names),
    'seen_in_training': planted.seen_in_training(
      subject.trained.config.to_dict()
    ),
    'model': subject.trained.digest,
    'seed': seed,
  }


def _maps(
  subject: Subject,
  photographs: Photographs,
  targets: np.ndarray,
  gradient_free: Sequence[str],
  seed: int,
) -> dict[str, np.ndarray]:
  """Returns {method or control: maps [n, s, s]}."""
  seen = methods_lib.look(subject, photographs.images, targets)
  return {
    **seen.maps,
    **methods_lib.gradient_free(
      subject, photographs.images, photographs.inside, targets, gradient_free,
      seed,
    ),
    **faithfulness.controls(
      photographs.images, photographs.inside, seen.cells, seed
    ),
  }  # fmt: skip


def _pixels(
  subject: Subject,
  photographs: Photographs,
  logits: np.ndarray,
  maps: dict[str, np.ndarray],
  target: str,
) -> Record:
  """Returns how maps rank labelled pixels, of all and by criterion.

  Of a criterion are photographs that fail it and no other local one. Maps are
  of evidence for inadequate, and the head's own of the criterion.
  """
  assert photographs.truth is not None
  truth = photographs.truth * photographs.inside
  failed = photographs.criteria[
    :, [L.CRITERIA.index(name) for name in L.LOCAL_CRITERIA]
  ]
  if target != 'margin':
    targets = subject.targets('margin', logits)
    again = methods_lib.look(subject, photographs.images, targets)
    # The gradient-free maps are of `target`, and too dear to make twice.
    maps = {n: maps[n] for n in faithfulness.CONTROLS} | again.maps
  groups = {'all': np.arange(len(truth))}
  for i, name in enumerate(L.LOCAL_CRITERIA):
    alone = (failed[:, i] == 1) & (np.delete(failed, i, 1) != 1).all(1)
    groups[name] = np.flatnonzero(alone)
  found = {}
  for name, rows in groups.items():
    some = {method: of_map[rows] for method, of_map in maps.items()}
    if name != 'all' and len(rows):
      seen = methods_lib.look(
        subject,
        photographs.images[rows],
        subject.targets('margin', logits[rows]),
        name,
      )
      own = methods_lib.CRITERION_MAP
      some |= {n: m for n, m in seen.maps.items() if n == own}
    ranks = {
      method: pixel_truth.rank(m, truth[rows]) for method, m in some.items()
    }
    first = next(iter(ranks.values()))
    if np.isnan(first['auc_usable']).all():
      continue
    people = photographs.people[rows]
    found[name] = {
      measure: measures.compare(
        {method: r[measure] for method, r in ranks.items()}, people, means.SHARE
      )
      for measure in first
      if measure != 'bad'
    }
    found[name]['bad'] = means.mean(first['bad'], people, means.SHARE)
  return found


def _passes(
  subject: Subject,
  counts: tuple[int, int],
  gradient_free: Sequence[str],
  baselines: Sequence[str],
  steps: int,
) -> dict[str, int]:
  """Returns about how many passes each part needs, of all and clean ones."""
  count, clean = counts
  maps = len(subject.methods) + len(gradient_free) + len(faithfulness.CONTROLS)
  return {
    'maps': count * (1 + methods_lib.cost(gradient_free)),
    'removal': measures.passes(count, maps, len(baselines), steps),
    'randomisation': count * (len(subject.trained.model.points) + 1),
    'planted': planted.passes(clean, gradient_free),
  }


class _Clock:
  """A bar over all passes through the network, and the time of each part."""

  def __init__(self) -> None:
    self._bar = tqdm.tqdm(
      total=None, unit='pass', desc='maps', disable=None, smoothing=0.05
    )
    self.tick: Callable[[int], object] = self._bar.update
    self._seconds: dict[str, float] = {}

  def expect(self, passes: int) -> None:
    self._bar.total = self._bar.n + passes
    self._bar.refresh()

  @contextlib.contextmanager
  def part(self, name: str) -> Iterator[None]:
    self._bar.set_description(name)
    start = time.perf_counter()
    yield
    self._seconds[name] = round(time.perf_counter() - start, 1)

  def close(self) -> dict[str, float]:
    self._bar.close()
    return self._seconds
