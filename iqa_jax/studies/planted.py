"""Faults of known place, put into photographs that are called adequate.

All of those are measured, not only where the verdict turns: a network that
does not react has not found the fault. Kinds that training may have shown
(simulation.faults) and kinds that nothing learns from (unfamiliar) stay apart.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
import dataclasses
import os
import pathlib

import numpy as np
from PIL import Image

from iqa_jax import labels as L
from iqa_jax import machine
from iqa_jax.aliases import Record
from iqa_jax.evaluation import means
from iqa_jax.explain import faithfulness
from iqa_jax.simulation import faults, pixel_labels, unfamiliar
from iqa_jax.studies import measures, pixel_truth
from iqa_jax.studies import methods as methods_lib
from iqa_jax.studies.photographs import Photographs
from iqa_jax.studies.subject import Subject

GROUPS = {'named': tuple(faults.CRITERION), 'unfamiliar': unfamiliar.KINDS}
# These fill the field and so have no place in it that a map could point at.
WHOLE = ('defocus', 'motion', 'under', 'over', 'haze', 'murk')
# What is measured of a map, and its bounds.
MEASURES = {
  'auc': means.SHARE,
  'average_precision': means.SHARE,
  'auc_usable': means.SHARE,
  'average_precision_usable': means.SHARE,
  'energy': means.SHARE,
  'energy_over_area': means.RATIO,
  'auc_before': means.SHARE,
}


@dataclasses.dataclass(frozen=True)
class Kind:
  """One kind of fault in all photographs called adequate.

  Attributes:
    name: of GROUPS.
    group: likewise.
    criterion: that it breaks.
    p: float [n], P(inadequate) with the fault.
    area: float [n], the fault's share of the field.
    values: {measure: {method or control: float [n]}}, NaN where it wasn't
      looked at; {} of WHOLE.
    shown: for a figure, of one photograph: 'image', 'mask' and 'maps'.
  """

  name: str
  group: str
  criterion: str
  p: np.ndarray
  area: np.ndarray
  values: measures.Values
  shown: Record


def kinds(left_out: Collection[str] = ()) -> dict[str, tuple[str, str]]:
  """Returns {kind: (group, criterion)} of all of GROUPS, named ones first.

  Args:
    left_out: named kinds that a network was not shown: unfamiliar to it.
  """
  found = {
    kind: (
      'unfamiliar' if kind in left_out else group,
      faults.CRITERION.get(kind, 'artifacts'),
    )
    for group, names in GROUPS.items()
    for kind in names
  }
  return dict(sorted(found.items(), key=lambda item: item[1][0]))


def plant(
  photographs: Photographs, kind: str, severity: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the photographs with a fault, and its masks, float32 [n, s, s].

  Args:
    photographs: that get it.
    kind: of GROUPS.
    severity: 0 to 1; unfamiliar kinds have none.
    seed: of place, shape and colour.
  """
  pairs = []
  for i, (image, inside) in enumerate(
    zip(photographs.images, photographs.inside, strict=True)
  ):
    rng = np.random.default_rng([seed, i])
    if kind in faults.CRITERION:
      pairs.append(faults.apply(image, inside, kind, severity, rng))
    else:
      pairs.append(unfamiliar.apply(image, inside, kind, rng))
  images = np.stack([image for image, _ in pairs])
  return images, np.stack([mask for _, mask in pairs]).astype(np.float32)


def write(
  folder: str | os.PathLike,
  photographs: Photographs,
  severity: float,
  seed: int,
) -> int:
  """Writes faulty photographs and what their pixels are; returns how many.

  FOLDER/images/KIND_NAME.png and, of the same name, FOLDER/pixel_labels: what
  --images and --pixel_labels of this or other software read.
  """
  places = [pathlib.Path(folder) / n for n in ('images', 'pixel_labels')]
  for place in places:
    place.mkdir(parents=True, exist_ok=True)
  for kind in kinds():
    images, masks = plant(photographs, kind, severity, seed)
    for i, name in enumerate(photographs.ids):
      file = f'{kind}_{name}.png'
      Image.fromarray(images[i]).save(places[0] / file)
      labels = pixel_labels.of_fault(masks[i], photographs.inside[i])
      pixel_labels.write(places[1] / file, labels)
  return len(kinds()) * len(photographs)


def measure(
  subject: Subject,
  clean: Photographs,
  *,
  gradient_free: Sequence[str] = (),
  severity: float,
  seed: int,
) -> Iterator[Kind]:
  """Yields what the network's maps say of each kind of fault.

  The gradient-free methods cost hundreds of passes a map, so they look at one
  fault of each photograph, the kinds in turn.

  Args:
    subject: the network and its methods.
    clean: the photographs that get the faults.
    gradient_free: some of methods.GRADIENT_FREE.
    severity: of the named kinds.
    seed: of faults and of the random control.
  """
  field = np.maximum(clean.inside.sum((1, 2)), 1)
  before = {
    criterion: _look(subject, clean.images, criterion)
    for criterion in L.LOCAL_CRITERIA
  }
  turn = 0
  left_out = subject.trained.config.data.left_out_faults
  for kind, (group, criterion) in kinds(left_out).items():
    images, masks = plant(clean, kind, severity, seed)
    seen = _look(subject, images, criterion)
    area = masks.sum((1, 2)) / field
    shown = {'image': images[0], 'mask': masks[0], 'maps': {}}
    values: measures.Values = {}
    if kind not in WHOLE:
      maps = seen.maps | faithfulness.controls(
        images, clean.inside, seen.cells, seed
      )
      values = _score(maps, before[criterion].maps, masks, clean.inside, area)
      one = np.flatnonzero(_turns(len(clean)) == turn)
      turn += 1
      if gradient_free and len(one):
        targets = subject.targets(_target(subject, criterion), seen.logits)
        free = methods_lib.gradient_free(
          subject, images[one], clean.inside[one], targets[one],
          gradient_free, seed,
        )  # fmt: skip
        some = _score(free, {}, masks[one], clean.inside[one], area[one])
        _add(values, some, one, len(clean))
      at = one[0] if len(one) else turn % len(clean)
      shown = {
        'image': images[at],
        'mask': masks[at],
        'maps': {name: of_map[at] for name, of_map in maps.items()},
      }
    yield Kind(
      kind, group, criterion, subject.p_inadequate(seen.logits), area, values,
      shown,
    )  # fmt: skip


def _turns(count: int) -> np.ndarray:
  """Returns the number [n] of the kind that each photograph has a turn with.

  They share two dozen kinds evenly, so that few photographs too have kinds of
  both groups.
  """
  local = len(kinds()) - len(WHOLE)
  return np.arange(count) * local // max(count, 1)


def passes(count: int, gradient_free: Sequence[str]) -> int:
  """Returns how many passes `measure` needs for so many photographs."""
  each = len(L.LOCAL_CRITERIA) + len(kinds()) + methods_lib.cost(gradient_free)
  return count * each


def _target(subject: Subject, criterion: str) -> str:
  return criterion if subject.trained.task.name == 'criteria' else 'margin'


def _look(
  subject: Subject, images: np.ndarray, criterion: str
) -> methods_lib.Look:
  # Neither of these targets depends on the logits.
  nothing = np.zeros((len(images), subject.trained.task.num_outputs))
  targets = subject.targets(_target(subject, criterion), nothing)
  return methods_lib.look(subject, images, targets, criterion)


def _add(
  values: measures.Values, some: measures.Values, rows: np.ndarray, count: int
) -> None:
  """Adds what was measured of some of `count` photographs, NaN of others."""
  for name, of_maps in some.items():
    for method, found in of_maps.items():
      values[name][method] = np.full(count, np.nan)
      values[name][method][rows] = found


def _score(
  maps: Mapping[str, np.ndarray],
  before: Mapping[str, np.ndarray],
  masks: np.ndarray,
  inside: np.ndarray,
  area: np.ndarray,
) -> measures.Values:
  """Returns {measure: {name: float [n]}}, and the hits."""
  labels = np.stack(
    [pixel_labels.of_fault(m, i) for m, i in zip(masks, inside, strict=True)]
  )

  def one(name: str) -> dict[str, np.ndarray]:
    energy = faithfulness.energy(maps[name], masks)
    with np.errstate(invalid='ignore', divide='ignore'):
      ratio = np.where(area > 0, energy / area, np.nan)
    found = pixel_truth.rank(maps[name], labels) | {
      'energy': energy,
      'energy_over_area': ratio,
      'hits': faithfulness.pointing(maps[name], masks),
    }
    if name in before:
      found['auc_before'] = pixel_truth.rank(before[name], labels)['auc']
    del found['bad']
    return found

  values: measures.Values = {}
  for name, found in zip(maps, machine.in_threads(one, maps), strict=True):
    for measure, value in found.items():
      values.setdefault(measure, {})[name] = value
  return values


def summarise(
  found: Iterable[Kind],
  p_before: np.ndarray,
  threshold: float,
  people: np.ndarray,
) -> Record:
  """Returns the results of `measure` with intervals by patient.

  Args:
    found: all kinds.
    p_before: float [n], P(inadequate) without the faults.
    threshold: from which on the verdict is inadequate.
    people: [n], the patients.

  Returns:
    'n', 'n_patients', 'kinds' {kind: ...} and 'groups' {group, or group and
    criterion: ...}, each with 'rises' and 'turns', the shares of photographs
    whose P(inadequate) rises and whose verdict turns, and, of faults that have
    a place, 'measures' {measure: {method or control: interval}}. In a group,
    values are means over its kinds, photograph by photograph.
  """
  found = list(found)
  by_group: dict[str, list[Kind]] = {}
  for kind in found:
    by_group.setdefault(kind.group, []).append(kind)
    if kind.group == 'named':
      by_group.setdefault(f'named, {kind.criterion}', []).append(kind)

  def told(some: list[Kind]) -> Record:
    who = np.tile(people, len(some))
    p = np.stack([kind.p for kind in some])
    local = [kind for kind in some if kind.values]
    result: Record = {
      'rises': means.share((p > p_before).ravel(), who),
      'turns': means.share((p >= threshold).ravel(), who),
      'area': means.mean(
        np.mean([kind.area for kind in some], axis=0), people, means.SHARE
      ),
      'local_kinds': len(local),
    }
    if local:
      result['measures'] = _measures(local, people)
    return result

  return {
    'n': len(people),
    'n_patients': len(np.unique(people)),
    'kinds': {
      kind.name: {
        'group': kind.group,
        'criterion': kind.criterion,
        **told([kind]),
      }
      for kind in found
    },
    'groups': {name: told(some) for name, some in by_group.items()},
  }


def _measures(local: Sequence[Kind], people: np.ndarray) -> Record:
  """Returns {measure: {method or control: interval}} over kinds."""
  names = list(dict.fromkeys(n for k in local for n in k.values['hits']))

  def stack(measure: str) -> dict[str, np.ndarray]:
    nothing = np.full(len(people), np.nan)
    return {
      name: np.stack([k.values[measure].get(name, nothing) for k in local])
      for name in names
    }

  found: Record = {
    measure: measures.compare(
      {name: _mean(v) for name, v in stack(measure).items()}, people, bounds
    )
    for measure, bounds in MEASURES.items()
  }
  who = np.tile(people, len(local))
  found['hits'] = {
    name: means.share(v.ravel(), who) for name, v in stack('hits').items()
  }
  now, then = stack('auc'), stack('auc_before')
  for name, interval in found['auc'].items():
    if 'over' in interval:
      gain = _mean(now[name] - then[name])
      interval['over']['before'] = means.mean(gain, people)
  return found


def _mean(values: np.ndarray) -> np.ndarray:
  """Returns the mean [n] of values [kinds, n], NaN where there are none."""
  known = ~np.isnan(values)
  total = np.where(known, values, 0).sum(0)
  with np.errstate(invalid='ignore', divide='ignore'):
    return total / known.sum(0)


def seen_in_training(config: Record) -> bool:
  """Returns whether a run's configuration shows it named faults."""
  data = config['data']
  shares = data.get('faults', {})
  return data['name'] == 'fundus_sim' or any(
    shares.get(criterion, 0) > 0 for criterion in L.LOCAL_CRITERIA
  )
