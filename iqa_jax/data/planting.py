"""Simulated faults put into photographs, and what labels become by them."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

from iqa_jax import errors, labels


def plant(
  pixels: np.ndarray,
  inside: np.ndarray,
  criterion: int,
  seed: int,
  procedural: bool,
) -> tuple[np.ndarray, np.ndarray]:
  """Puts the fault that a plan names into a prepared photograph.

  Args:
    pixels: uint8 [n, n, 3].
    inside: bool [n, n], the field of view.
    criterion: number of the criterion that it breaks.
    seed: draws its kind and severity.
    procedural: whether it is of no named kind (simulation/procedural.py).

  Returns:
    The faulty photograph, and the fault's mask, float32 [n, n] in 0..1.
  """
  from iqa_jax.simulation import faults
  from iqa_jax.simulation import procedural as unnamed

  rng = np.random.default_rng(seed)
  if procedural:
    return unnamed.apply(pixels, inside, labels.CRITERIA[criterion], rng)
  kind = _kind(criterion, rng)
  severity = rng.uniform(faults.THRESHOLD, 1.0)
  return faults.apply(pixels, inside, kind, severity, rng)


def without(
  left_out: Collection[str], criterion: np.ndarray, seed: np.ndarray
) -> np.ndarray:
  """Returns seeds of which `plant` makes none of the named kinds left out.

  A seed that would is replaced by the next one that would not.

  Args:
    left_out: of simulation.faults.CRITERION.
    criterion: int [n], as of `plant`.
    seed: uint32 [n].

  Raises:
    InvalidValue: there is no such kind, or no other of its criterion.
  """
  from iqa_jax.simulation import faults

  for kind in left_out:
    errors.one_of('fault', kind, faults.CRITERION)
  for name, kinds in faults.KINDS.items():
    if set(kinds) <= set(left_out):
      raise errors.InvalidValue(f'every fault of {name} is left out')
  seed = seed.copy()
  for i, number in enumerate(criterion):
    while _kind(number, np.random.default_rng(seed[i])) in left_out:
      seed[i] += 1
  return seed


def _kind(criterion: int, rng: np.random.Generator) -> str:
  """Draws a named kind of fault; the first that a fault's seed draws."""
  from iqa_jax.simulation import faults

  return str(rng.choice(faults.KINDS[labels.CRITERIA[criterion]]))


def after_faults(
  table: Mapping[str, np.ndarray], index: np.ndarray, fault: np.ndarray
) -> dict[str, np.ndarray]:
  """Returns the labels, int32, of examples with faults as in `plan.Plan`."""
  quality = table['quality'][index].astype(np.int32)
  grade = table['grade'][index].astype(np.int32)
  criteria = table['criteria'][index].astype(np.int32)
  hit = np.nonzero(fault >= 0)[0]
  quality[hit] = labels.INADEQUATE
  # What grade a faulty photograph would have got is not known.
  grade[hit] = labels.UNKNOWN
  criteria[hit, fault[hit]] = labels.INADEQUATE
  return {'quality': quality, 'grade': grade, 'criteria': criteria}


def causes(
  quality: np.ndarray,
  grade: np.ndarray,
  criteria: np.ndarray,
  fault: np.ndarray,
) -> np.ndarray:
  """Returns what is known of the local criteria, int32 [n, 3].

  In labels.LOCAL_CRITERIA's order: 0 where a photograph has no fault of a
  criterion, 1 where it has one, 2 where that was put in and its place is known,
  -1 where nothing is known. An Adequate (of EyeQ: a Good) photograph has none.

  Args:
    quality: int [n], as photographed, before a fault was put in.
    grade: int [n], likewise.
    criteria: int [n, 4], likewise.
    fault: int [n], number of the criterion whose fault was put in, or -1.
  """
  places = [labels.CRITERIA.index(name) for name in labels.LOCAL_CRITERIA]
  known = np.asarray(criteria)[:, places].astype(np.int32)
  clean = (quality == labels.ADEQUATE) & (grade <= 0)
  known = np.where((known < 0) & clean[:, None], 0, known)
  return np.where(np.asarray(fault)[:, None] == places, 2, known)
