"""The quality-criteria review: is each fault found, and where is it seen?

For photographs that are adequate, and for those that fail each of BRSet's
criteria: the recall, examples to look at, the mean map of the evidence in a
common frame, and the regions it lies in. All eyes are shown as right eyes: left
ones are mirrored, so the nose is on the right-hand side.
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses

import numpy as np

from iqa_jax import errors
from iqa_jax import labels as L
from iqa_jax.aliases import Record
from iqa_jax.evaluation import means
from iqa_jax.explain import faithfulness, scaling
from iqa_jax.photograph.placement import Placement
from iqa_jax.studies.photographs import Photographs
from iqa_jax.studies.places import FRAMES, REGIONS, Places, mean_map, regions
from iqa_jax.studies.subject import Subject

SHOWN = 4  # examples of each kind


@dataclasses.dataclass(frozen=True)
class Group:
  """Photographs of one kind, as the network sees them.

  Attributes:
    name: 'adequate', a criterion, or 'inadequate'.
    index: int [n], of the photographs.
    target: what is explained.
    p: float [n], the probability of what is true of the group.
    threshold: from which `p` on the network is right.
    right: bool [n].
    maps: float32 [n, h, w], the evidence for the target.
    in_logits: whether it is in units of the logit (scaling.scale 'logit'); raw
      maps of what does not add up to one have no unit.
    placement: where their cells look, see scaling.enlarge.
  """

  name: str
  index: np.ndarray
  target: str
  p: np.ndarray
  threshold: float
  right: np.ndarray
  maps: np.ndarray
  in_logits: bool
  placement: Placement | None


def run(
  subject: Subject, photographs: Photographs, *, frame: str = 'disc'
) -> tuple[Record, Record]:
  """Reviews a network on labelled photographs.

  Args:
    subject: the network; its first method explains.
    photographs: with criteria, or at least the verdict, labelled.
    frame: 'disc' centres the mean maps on the optic disc, 'field' on the field
      of view.

  Returns:
    What goes to JSON, and what the figures show.

  Raises:
    ValueError: nothing is labelled, or there is no such frame.
  """
  errors.one_of('frame', frame, FRAMES)
  places = Places.of(photographs)
  logits = subject.logits(photographs.images)
  groups = _groups(subject, photographs, logits)
  result: Record = {
    'photographs': {
      'source': photographs.source,
      'n': len(photographs),
      'skipped': [list(pair) for pair in photographs.skipped],
    },
    'model': subject.trained.digest,
    'method': subject.methods[0],
    'layer': subject.layer,
    'threshold': subject.threshold,
    'frame': frame,
    'disc': {
      'known': int((~places.disc_estimated).sum()),
      'estimated': int(places.disc_estimated.sum()),
    },
    'eye': {
      'known': int((~places.eye_estimated).sum()),
      'estimated': int(places.eye_estimated.sum()),
    },
    'groups': {},
  }
  shown: Record = {'photographs': photographs, 'groups': {}}
  for group in groups:
    picked = examples(group)
    result['groups'][group.name] = _told(group, photographs, places, picked)
    shown['groups'][group.name] = {
      'group': group,
      'examples': picked,
      'mean': mean_map(
        group.maps, group.index, group.placement, photographs, places, frame
      ),
    }
  return result, shown


def _told(
  group: Group,
  photographs: Photographs,
  places: Places,
  picked: Mapping[str, np.ndarray],
) -> Record:
  """Returns what goes to JSON of a group."""
  recall = means.share(group.right, photographs.people[group.index])
  return {
    'n': recall['n'],
    'recall': recall['mean'],
    'n_patients': recall['n_patients'],
    'low': recall['low'],
    'high': recall['high'],
    'threshold': group.threshold,
    'target': group.target,
    'empty': int((scaling.status(group.maps) == 'empty').sum()),
    'examples': {
      kind: [str(photographs.ids[group.index[i]]) for i in chosen]
      for kind, chosen in picked.items()
    },
    'regions': _regions(group, photographs, places),
  }


def _groups(
  subject: Subject, photographs: Photographs, logits: np.ndarray
) -> list[Group]:
  members = {'adequate': photographs.quality == L.ADEQUATE}
  for i, name in enumerate(L.CRITERIA):
    members[name] = photographs.criteria[:, i] == L.INADEQUATE
  if (photographs.criteria == L.UNKNOWN).all():
    members['inadequate'] = photographs.quality == L.INADEQUATE
  if not any(member.any() for member in members.values()):
    raise errors.InvalidValue(
      f'{photographs.source}: no photograph has a label; give --labels, a CSV '
      f'with columns quality, {", ".join(L.CRITERIA)}'
    )
  constants = subject.constants()
  return [
    _group(
      subject, photographs, logits, constants, name, np.flatnonzero(member)
    )
    for name, member in members.items()
    if member.any()
  ]


def _group(
  subject: Subject,
  photographs: Photographs,
  logits: np.ndarray,
  constants: Record,
  name: str,
  index: np.ndarray,
) -> Group:
  by_criterion = subject.trained.task.name == 'criteria'
  p_inadequate = subject.p_inadequate(logits[index])
  if name == 'adequate':
    p, threshold = 1 - p_inadequate, 1 - subject.threshold
    # At the operating point itself the verdict is inadequate.
    right = p_inadequate < subject.threshold
    target = 'adequate_margin'
  elif by_criterion and name in L.CRITERIA:
    column = subject.trained.task.outputs.index(name)
    p = subject.score(photographs.images[index], np.full(len(index), column))
    threshold = subject.trained.judges.criterion_threshold(name)
    right, target = p >= threshold, name
  else:
    p, threshold = p_inadequate, subject.threshold
    right, target = p >= threshold, 'margin'
  ids = subject.targets(target, logits[index])
  maps = subject.maps(photographs.images[index], ids)[subject.methods[0]]
  in_logits = target in constants
  if in_logits:
    maps = scaling.scale(maps, 'logit', constant=constants[target])
  return Group(
    name, index, target, p, threshold, right, maps, in_logits,
    subject.placement,
  )  # fmt: skip


def examples(group: Group, count: int = SHOWN) -> dict[str, np.ndarray]:
  """Returns positions in the group of the examples worth looking at.

  'right' and 'wrong' are the most confident ones; 'borderline' those nearest
  to the threshold, on either side of it.
  """
  right, wrong = np.flatnonzero(group.right), np.flatnonzero(~group.right)
  near = np.argsort(np.abs(group.p - group.threshold), kind='stable')
  return {
    'right': right[np.argsort(-group.p[right], kind='stable')][:count],
    'wrong': wrong[np.argsort(group.p[wrong], kind='stable')][:count],
    'borderline': near[:count],
  }


def _regions(group: Group, photographs: Photographs, places: Places) -> Record:
  """Returns {region: {share, area, over_area}} of the positive evidence.

  Areas are shares of the field; that of 'outside', of the frame. Photographs
  whose map is empty have no shares.
  """
  shares: dict[str, list[float]] = {name: [] for name in REGIONS}
  areas: dict[str, list[float]] = {name: [] for name in REGIONS}
  size = photographs.inside.shape[1:]
  for i, values in zip(group.index, group.maps, strict=True):
    inside = photographs.inside[i]
    masks = regions(inside, places.centre[i], places.radius[i], places.left[i])
    large = scaling.enlarge(values, size, group.placement)[None]
    empty = not (large > 0).any()
    for name, mask in masks.items():
      share = faithfulness.energy(large, mask[None])[0]
      shares[name].append(np.nan if empty else share)
      whole = inside.size if name == 'outside' else max(inside.sum(), 1)
      areas[name].append(mask.sum() / whole)
  people = photographs.people[group.index]
  found = {}
  for name in REGIONS:
    share, area = np.asarray(shares[name]), np.asarray(areas[name])
    with np.errstate(divide='ignore', invalid='ignore'):
      ratio = np.where(area > 0, share / area, np.nan)
    found[name] = {
      'share': means.mean(share, people, means.SHARE),
      'area': means.mean(area, people, means.SHARE),
      'over_area': means.mean(ratio, people, means.RATIO),
    }
  return found
