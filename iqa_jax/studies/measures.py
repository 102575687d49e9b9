"""What is measured of maps: perturbations, a destroyed network, mirror images.

Each function returns values per photograph; `compare` makes intervals of them,
by patient. What the measures are is said in explain/faithfulness.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from iqa_jax import labels as L
from iqa_jax import machine
from iqa_jax.aliases import Record
from iqa_jax.evaluation import means
from iqa_jax.explain import faithfulness, perturbation, road
from iqa_jax.studies import methods as methods_lib
from iqa_jax.studies.photographs import Photographs
from iqa_jax.studies.subject import Subject

_RIM = 2 / 3  # of the field's radius: the periphery begins
Values = dict[str, dict[str, np.ndarray]]  # {measure: {map: float [n]}}


def compare(
  values: Mapping[str, np.ndarray],
  people: np.ndarray,
  bounds: tuple[float, float] = means.ANY,
) -> dict[str, Record]:
  """Returns each map's mean with its interval, and what it is over controls.

  Args:
    values: {method or control: float [n]}, of the same photographs, so that
      differences are paired.
    people: [n], the patients.
    bounds: of the values, see means.mean.
  """
  found = {}
  for name, of_map in values.items():
    found[name] = means.mean(of_map, people, bounds)
    if name not in faithfulness.CONTROLS:
      found[name]['over'] = {
        control: means.mean(of_map - values[control], people)
        for control in faithfulness.CONTROLS
        if control in values
      }
  return found


def passes(count: int, maps: int, baselines: int, steps: int) -> int:
  """Returns how many passes `perturbed` needs for so many photographs."""
  each = baselines * (2 * (steps - 1) + 1) + 2 * len(road.SHARES)
  return count * (1 + baselines + maps * each)


def perturbed(
  subject: Subject,
  photographs: Photographs,
  targets: np.ndarray,
  maps: Mapping[str, np.ndarray],
  *,
  baselines: Sequence[str],
  steps: int,
  seed: int,
) -> tuple[Values, dict[str, dict[str, np.ndarray]]]:
  """Returns deletion, insertion, drop, increase and ROAD of maps.

  Args:
    subject: the network.
    photographs: n of them.
    targets: int [n].
    maps: {method or control: [n, s, s]}.
    baselines: some of perturbation.BASELINES.
    steps: of deletion and insertion.
    seed: of the order among equals.

  Returns:
    {measure: {name: float [n]}}, and the mean curves {'deletion/mean': {name:
    [steps + 1]}} for the figure.
  """
  ask = methods_lib.asker(subject)
  pictures = subject.input(photographs.images)
  before = ask.plain(pictures, targets)
  values: Values = {}
  curves: dict[str, dict[str, np.ndarray]] = {}
  for kind in baselines:
    other = perturbation.baseline(pictures, photographs.inside, kind)
    ends = before, ask.plain(other, targets)
    for name, of_map in maps.items():
      pair = faithfulness.replacement_curves(
        ask, pictures, targets, of_map, other,
        ends=ends, steps=steps, seed=seed,
      )  # fmt: skip
      for measure, curve in zip(('deletion', 'insertion'), pair, strict=True):
        key = f'{measure}/{kind}'
        values.setdefault(key, {})[name] = faithfulness.area(curve)
        curves.setdefault(key, {})[name] = curve.mean(0)
      drop, increase = faithfulness.drop_and_increase(
        ask, pictures, targets, of_map, other, before=before
      )
      values.setdefault(f'average_drop/{kind}', {})[name] = drop
      values.setdefault(f'average_increase/{kind}', {})[name] = increase
  for name, of_map in maps.items():
    found = road.road(ask, pictures, targets, of_map, seed=seed)
    values.setdefault('road', {})[name] = found
  return values, curves


def outside(
  maps: Mapping[str, np.ndarray], inside: np.ndarray
) -> dict[str, np.ndarray]:
  """Returns the share of positive evidence outside the field, float [n].

  0 of a map without any: see the count of empty maps.
  """
  return {name: faithfulness.energy(m, ~inside) for name, m in maps.items()}


def randomised(
  subject: Subject,
  photographs: Photographs,
  targets: np.ndarray,
  maps: Mapping[str, np.ndarray],
  seed: int,
) -> Record:
  """Returns {method: {part: {spearman, ssim}}}, parts from the top down."""
  found: Record = {name: {} for name in subject.methods}
  model, variables = subject.trained.model, subject.trained.variables
  size = photographs.inside.shape[1:]
  for part, broken in faithfulness.randomised(model, variables, seed):
    raw = subject.maps(photographs.images, targets, broken)
    for name, of_map in raw.items():
      other = subject.enlarged(name, of_map, size)
      found[name][part] = _alike(maps[name], other, photographs.people)
  return found


def mirrored(
  subject: Subject,
  photographs: Photographs,
  targets: np.ndarray,
  maps: Mapping[str, np.ndarray],
) -> Record:
  """Returns how alike the maps of mirrored photographs are, mirrored back."""
  flipped = np.ascontiguousarray(photographs.images[:, :, ::-1])
  size = photographs.inside.shape[1:]
  return {
    name: _alike(
      maps[name],
      subject.enlarged(name, of_map, size)[:, :, ::-1],
      photographs.people,
    )
    for name, of_map in subject.maps(flipped, targets).items()
  }


def _alike(a: np.ndarray, b: np.ndarray, people: np.ndarray) -> Record:
  def one(pair: tuple[np.ndarray, np.ndarray]) -> tuple[float, float]:
    x, y = (of_map[None] for of_map in pair)
    positive = (faithfulness.positive_share(m) for m in (x, y))
    return faithfulness.spearman(x, y)[0], faithfulness.ssim(*positive)[0]

  found = np.asarray(list(machine.in_threads(one, zip(a, b, strict=True))))
  return {
    'spearman': means.mean(found[:, 0], people),
    'ssim': means.mean(found[:, 1], people),
  }


def positional(
  subject: Subject, photographs: Photographs, logits: np.ndarray
) -> Record:
  """Looks at photographs whose only fault is what they show."""
  at = L.CRITERIA.index('image_field')
  others = np.delete(photographs.criteria, at, axis=1)
  only = (photographs.criteria[:, at] == 1) & (others == 0).all(axis=1)
  found: Record = {
    'n': int(only.sum()),
    'note': 'A fault of the image field lies in what is not in the picture: '
    'there is no region that holds the evidence, so the share at the rim is '
    'told without being right or wrong.',
  }
  if not only.any():
    return found
  there = photographs.take(np.flatnonzero(only))
  called = subject.p_inadequate(logits[only]) >= subject.threshold
  name = 'image_field' if subject.trained.task.name == 'criteria' else 'margin'
  maps = methods_lib.look(
    subject, there.images, subject.targets(name, logits[only])
  ).maps
  rim = np.stack([_rim(inside) for inside in there.inside])
  field = np.maximum(there.inside.sum((1, 2)), 1)
  return found | {
    'called_inadequate': int(called.sum()),
    'target': name,
    'rim_area': means.mean(
      (rim & there.inside).sum((1, 2)) / field, there.people, means.SHARE
    ),
    'energy_at_rim': {
      method: means.mean(
        faithfulness.energy(of_map * there.inside, rim),
        there.people,
        means.SHARE,
      )
      for method, of_map in maps.items()
    },
  }


def _rim(inside: np.ndarray) -> np.ndarray:
  """Returns the field's periphery, bool [s, s], of its own mask."""
  rows, columns = np.nonzero(inside.any(1))[0], np.nonzero(inside.any(0))[0]
  if not len(rows):
    return np.zeros_like(inside)
  y, x = np.mgrid[: inside.shape[0], : inside.shape[1]]
  half = max(np.ptp(rows), np.ptp(columns)) / 2
  away = np.hypot(y - rows.mean(), x - columns.mean())
  return away > _RIM * half
