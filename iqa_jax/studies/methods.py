"""The maps that a study compares, each laid where its cells look."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from iqa_jax import errors
from iqa_jax.explain import cam, perturbation, scaling
from iqa_jax.studies.subject import OWN, Subject

# Methods that need no gradients, named as the others, and their passes a map.
GRADIENT_FREE = {
  'occlusion': perturbation.OCCLUSION_CELLS**2 + 1,
  'rise': perturbation.RISE_MASKS,
}
NAMES = (OWN, *cam.METHODS, *GRADIENT_FREE)
# The head's map of the criterion that a fault breaks, whatever the verdict.
CRITERION_MAP = 'evidence of the criterion'


class Look(NamedTuple):
  """What a network says of photographs.

  Attributes:
    logits: float32 [n, k].
    maps: {method: float32 [n, s, s]}, with CRITERION_MAP where a criterion was
      named and the head has one.
    cells: height and width of the maps before they were enlarged.
  """

  logits: np.ndarray
  maps: dict[str, np.ndarray]
  cells: tuple[int, int]


def look(
  subject: Subject,
  images: np.ndarray,
  targets: np.ndarray,
  criterion: str = '',
) -> Look:
  """Returns what the network says of images uint8 [n, s, s, 3]."""
  seen, size = subject.explain(images, targets), images.shape[1:3]
  maps = {
    name: subject.enlarged(name, raw, size) for name, raw in seen.maps.items()
  }
  if criterion in seen.criteria:
    maps[CRITERION_MAP] = scaling.enlarge(seen.criteria[criterion], size)
  first = next(iter(seen.maps.values()), None)
  cells = (14, 14) if first is None else first.shape[1:]
  return Look(seen.logits, maps, cells)


def asker(subject: Subject) -> perturbation.Perturber:
  """Returns what scores perturbed photographs by their targets."""
  return perturbation.Perturber(
    subject.likelihood, batch_size=subject.batch_size, tick=subject.tick
  )


def cost(names: Sequence[str]) -> int:
  """Returns the passes a photograph that gradient-free methods need.

  Raises:
    ValueError: no such method.
  """
  for name in names:
    if name not in GRADIENT_FREE:
      raise errors.InvalidValue(
        f'method {name!r} is none of {", ".join(NAMES)}'
      )
  return sum(GRADIENT_FREE[name] for name in names)


def gradient_free(
  subject: Subject,
  images: np.ndarray,
  inside: np.ndarray,
  targets: np.ndarray,
  names: Sequence[str],
  seed: int,
) -> dict[str, np.ndarray]:
  """Returns {method: maps float32 [n, s, s]} of some of GRADIENT_FREE.

  Args:
    subject: the network.
    images: uint8 [n, s, s, 3].
    inside: bool [n, s, s], their fields of view; their mean colour covers.
    targets: int [n].
    names: the methods.
    seed: of RISE's masks.
  """
  found = {}
  for name in names:
    ask, pictures = asker(subject), subject.input(images)
    fill = perturbation.baseline(pictures, inside, 'mean')
    if name == 'occlusion':
      raw = perturbation.occlusion(ask, pictures, targets, fill)
      found[name] = scaling.enlarge(raw, images.shape[1:3])
    else:
      found[name] = perturbation.rise(ask, pictures, targets, fill, seed=seed)
  return found
