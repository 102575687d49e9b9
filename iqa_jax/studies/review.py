"""The quality-criteria review: is each fault found, and where is it seen?

For photographs that are adequate, and for those that fail each of BRSet's
criteria: the recall, examples to look at, the mean map of the evidence in a
common frame, and the regions it lies in. All eyes are shown as right eyes: left
ones are mirrored, so the nose is on the right-hand side.
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import os
import pathlib
from typing import Any

import numpy as np
from scipy import ndimage

from iqa_jax import errors, tasks
from iqa_jax import labels as L
from iqa_jax.evaluation import intervals
from iqa_jax.explain import cam, faithfulness
from iqa_jax.explain.subject import Subject
from iqa_jax.photograph.placement import Placement
from iqa_jax.studies.photographs import Photographs, estimate_disc

FRAMES = ('disc', 'field')
# By distance from the field's centre in radii; the ring between centre and
# periphery has a nasal and a temporal half.
REGIONS = ('centre', 'nasal', 'temporal', 'periphery', 'outside')
_CENTRE, _PERIPHERY = 0.5, 0.8
_CELLS = 48  # of a frame, per radius
# Left, right, top and bottom of the frame, in radii of the field.
_EXTENT = {'disc': (-1.9, 1.3, -1.25, 1.25), 'field': (-1.0, 1.0, -1.0, 1.0)}
# A place of a mean map must rest on this many photographs, and this share.
_LEAST, _LEAST_SHARE = 3, 0.2
_SHOWN = 4  # examples of each kind


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
    in_logits: whether it is in units of the logit (cam.scale 'logit'); raw
      maps of what does not add up to one have no unit.
    placement: where their cells look, see cam.enlarge.
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
) -> tuple[dict[str, Any], dict[str, Any]]:
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
  if frame not in FRAMES:
    raise errors.InvalidValue(f'frame {frame!r} is none of {", ".join(FRAMES)}')
  places = Places.of(photographs)
  logits = subject.logits(photographs.images)
  groups = _groups(subject, photographs, logits)
  result: dict[str, Any] = {
    'photographs': {
      'source': photographs.source,
      'n': len(photographs),
      'skipped': [list(pair) for pair in photographs.skipped],
    },
    'model': subject.loaded.digest,
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
  shown: dict[str, Any] = {'photographs': photographs, 'groups': {}}
  for group in groups:
    count, right = len(group.index), int(group.right.sum())
    patients = photographs.patients[group.index]
    # Who is unknown is a patient of their own.
    patients = np.where(patients == '', photographs.ids[group.index], patients)
    _, low, high = intervals.proportion(group.right, patients)
    picked = examples(group)
    regions = _regions(group, photographs, places)
    result['groups'][group.name] = {
      'n': count,
      'recall': right / count,
      'n_patients': len(np.unique(patients)),
      'low': low,
      'high': high,
      'threshold': group.threshold,
      'target': group.target,
      'empty': int((cam.status(group.maps) == 'empty').sum()),
      'examples': {
        kind: [str(photographs.ids[group.index[i]]) for i in chosen]
        for kind, chosen in picked.items()
      },
      'regions': regions,
    }
    shown['groups'][group.name] = {
      'group': group,
      'examples': picked,
      'mean': mean_map(group, photographs, places, frame),
    }
  return result, shown


def _groups(subject, photographs, logits) -> list[Group]:
  by_criterion = subject.loaded.task.name == 'criteria'
  constants = subject.constants()
  p_inadequate = subject.p_inadequate(logits)
  members = {'adequate': photographs.quality == L.ADEQUATE}
  for i, name in enumerate(L.CRITERIA):
    members[name] = photographs.criteria[:, i] == L.INADEQUATE
  if (photographs.criteria == L.UNKNOWN).all():
    members['inadequate'] = photographs.quality == L.INADEQUATE
  groups = []
  for name, member in members.items():
    index = np.flatnonzero(member)
    if not len(index):
      continue
    if name == 'adequate':
      p, threshold = 1 - p_inadequate[index], 1 - subject.threshold
      # At the operating point itself the verdict is inadequate.
      right = p_inadequate[index] < subject.threshold
      target = 'adequate_margin'
    elif by_criterion and name in L.CRITERIA:
      column = subject.loaded.task.outputs.index(name)
      p = subject.score(photographs.images[index], np.full(len(index), column))
      threshold = subject.criterion_threshold(name)
      right, target = p >= threshold, name
    else:
      p, threshold = p_inadequate[index], subject.threshold
      right, target = p >= threshold, 'margin'
    ids = subject.targets(target, logits[index])
    raw = subject.maps(photographs.images[index], ids)[subject.methods[0]]
    in_logits = target in constants
    maps = (
      cam.scale(raw, 'logit', constant=constants[target]) if in_logits else raw
    )
    groups.append(
      Group(
        name,
        index,
        target,
        p,
        threshold,
        right,
        maps,
        in_logits,
        subject.placement,
      )
    )
  if not groups:
    raise errors.InvalidValue(
      f'{photographs.source}: no photograph has a label; give --labels, a CSV '
      f'with columns quality, {", ".join(L.CRITERIA)}'
    )
  return groups


def examples(group: Group, count: int = _SHOWN) -> dict[str, np.ndarray]:
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


@dataclasses.dataclass(frozen=True)
class Places:
  """Where things are in photographs, in pixels, before mirroring.

  Attributes:
    centre: float [n, 2], (x, y) of the field's centre.
    radius: float [n], of the field.
    disc: float [n, 2], (x, y) of the optic disc.
    disc_estimated: bool [n]: it was looked for, not known.
    left: bool [n], left eyes.
    eye_estimated: bool [n]: told by the side of the disc, not known.
  """

  centre: np.ndarray
  radius: np.ndarray
  disc: np.ndarray
  disc_estimated: np.ndarray
  left: np.ndarray
  eye_estimated: np.ndarray

  @classmethod
  def of(cls, photographs: Photographs) -> Places:
    """Finds them."""
    centre, radius, disc = [], [], []
    unknown = np.isnan(photographs.landmarks[:, :2]).any(axis=1)
    for i, inside in enumerate(photographs.inside):
      rows = np.flatnonzero(inside.any(1))
      columns = np.flatnonzero(inside.any(0))
      if not len(rows):
        rows = columns = np.asarray([0, len(inside) - 1])
      centre.append([columns.mean() + 0.5, rows.mean() + 0.5])
      # Cut fields are less high than wide.
      radius.append((max(np.ptp(rows), np.ptp(columns)) + 1) / 2)
      disc.append(
        estimate_disc(photographs.images[i], inside)
        if unknown[i]
        else photographs.landmarks[i, :2]
      )
    # A right eye's disc lies to the right of its fovea, or of the middle.
    middle = np.where(
      np.isnan(photographs.landmarks[:, 3]),
      np.asarray(centre)[:, 0],
      photographs.landmarks[:, 3],
    )
    by_disc = np.asarray(disc)[:, 0] < middle
    told = photographs.eyes != ''
    return cls(
      centre=np.asarray(centre),
      radius=np.asarray(radius),
      disc=np.asarray(disc),
      disc_estimated=unknown,
      left=np.where(told, photographs.eyes == 'left', by_disc),
      eye_estimated=~told,
    )


def regions(
  inside: np.ndarray, centre: np.ndarray, radius: float, left: bool
) -> dict[str, np.ndarray]:
  """Returns the masks of REGIONS, bool [s, s]; every pixel is in one.

  Args:
    inside: bool [s, s], the field of view.
    centre: (x, y) of the field's centre, in pixels.
    radius: of the field.
    left: whether it is a left eye, whose nose is on the left-hand side.
  """
  y, x = np.mgrid[: inside.shape[0], : inside.shape[1]] + 0.5
  away = np.hypot(x - centre[0], y - centre[1]) / radius
  towards_nose = (x < centre[0]) if left else (x > centre[0])
  ring = inside & (away >= _CENTRE) & (away <= _PERIPHERY)
  return {
    'centre': inside & (away < _CENTRE),
    'nasal': ring & towards_nose,
    'temporal': ring & ~towards_nose,
    'periphery': inside & (away > _PERIPHERY),
    'outside': ~inside,
  }


def _regions(group, photographs, places) -> dict[str, Any]:
  """Returns {region: {share, area, over_area}} of the positive evidence."""
  shares: dict[str, list[float]] = {name: [] for name in REGIONS}
  areas: dict[str, list[float]] = {name: [] for name in REGIONS}
  size = photographs.inside.shape[1:]
  for i, values in zip(group.index, group.maps, strict=True):
    masks = regions(
      photographs.inside[i], places.centre[i], places.radius[i], places.left[i]
    )
    large = cam.enlarge(values, size, group.placement)[None]
    for name, mask in masks.items():
      shares[name].append(faithfulness.energy(large, mask[None])[0])
      areas[name].append(mask.mean())
  found = {}
  for name in REGIONS:
    share, area = np.asarray(shares[name]), np.asarray(areas[name])
    with np.errstate(divide='ignore', invalid='ignore'):
      ratio = np.where(area > 0, share / area, np.nan)
    found[name] = {
      'share': faithfulness.interval(share),
      'area': faithfulness.interval(area),
      'over_area': faithfulness.interval(ratio),
    }
  return found


def mean_map(
  group: Group, photographs: Photographs, places: Places, frame: str
) -> dict[str, np.ndarray]:
  """Returns the group's mean evidence in a common frame.

  Left eyes are mirrored and every field has the same size. Where too few
  photographs reach, the mean is NaN.

  Args:
    group: the photographs and their maps.
    photographs: all of them.
    places: where their fields and discs are.
    frame: the frame's centre, one of FRAMES.

  Returns:
    'mean' float [k, m], signed, of the group's maps; 'photograph' float
    [k, m, 3], the mean photograph of 0..1; 'count' int [k, m].
  """
  left, right, top, bottom = _EXTENT[frame]
  dy, dx = np.meshgrid(
    np.arange(top, bottom, 1 / _CELLS) + 0.5 / _CELLS,
    np.arange(left, right, 1 / _CELLS) + 0.5 / _CELLS,
    indexing='ij',
  )
  total = np.zeros(dx.shape)
  light = np.zeros((*dx.shape, 3))
  count = np.zeros(dx.shape, int)
  size = photographs.inside.shape[1:]
  for i, values in zip(group.index, group.maps, strict=True):
    origin = places.disc[i] if frame == 'disc' else places.centre[i]
    mirror = -1 if places.left[i] else 1
    x = origin[0] + mirror * dx * places.radius[i] - 0.5
    y = origin[1] + dy * places.radius[i] - 0.5

    def sample(plane, order=1, where=(y, x)):
      return ndimage.map_coordinates(
        plane, where, order=order, mode='constant', cval=0
      )

    seen = sample(photographs.inside[i].astype(np.uint8), order=0) > 0
    large = cam.enlarge(values, size, group.placement)
    total += np.where(seen, sample(large), 0)
    for channel in range(3):
      plane = photographs.images[i, :, :, channel] / 255
      light[..., channel] += np.where(seen, sample(plane), 0)
    count += seen
  total_count = len(group.index)
  least = max(_LEAST, _LEAST_SHARE * total_count)
  few = count < min(least, total_count)
  share = np.maximum(count, 1)
  return {
    'mean': np.where(few, np.nan, total / share),
    'photograph': np.where(few[..., None], 1.0, light / share[..., None]),
    'count': count,
  }


def table(result: Mapping[str, Any]) -> str:
  """Returns the results of `run` as Markdown tables."""
  photographs = result['photographs']
  lines = [
    '# Quality-criteria review',
    '',
    f'{photographs["n"]} photographs ({photographs["source"]}; '
    f'{len(photographs["skipped"])} skipped). Maps: {result["method"]} at '
    f'{result["layer"]}. Optic disc known in {result["disc"]["known"]}, '
    f'estimated (the brightest spot of its size) in '
    f'{result["disc"]["estimated"]}; eye known in {result["eye"]["known"]}, '
    f'told by the disc in {result["eye"]["estimated"]}.',
    '',
    '| photographs | n | recall | 95 % interval | explained | empty maps |',
    '| --- | --- | --- | --- | --- | --- |',
  ]
  for name, of in result['groups'].items():
    lines.append(
      f'| {_words(name)} | {of["n"]} | {of["recall"]:.3f} | {of["low"]:.3f} to '
      f'{of["high"]:.3f} | {of["target"]} | {of["empty"]} |'
    )
  lines += [
    '',
    'Where the positive evidence lies: its share in a region over the '
    "region's share of the frame (1 is even), mean over photographs with its "
    '95 % interval, and the mean share itself.',
    '',
    f'| photographs | {" | ".join(REGIONS)} |',
    f'| --- |{" --- |" * len(REGIONS)}',
  ]
  for name, of in result['groups'].items():
    cells = [_region_told(of['regions'][region]) for region in REGIONS]
    lines.append(f'| {_words(name)} | {" | ".join(cells)} |')
  if 'image_field' in result['groups']:
    lines += [
      '',
      'A fault of the image field lies in what is not in the picture, so no '
      'region can be the right one for it.',
    ]
  return '\n'.join(lines) + '\n'


def _region_told(of) -> str:
  ratio, share = of['over_area'], of['share']
  if ratio['mean'] is None:
    return '-'
  told = f'{ratio["mean"]:.2f}'
  if ratio['low'] is not None:
    told += f' ({ratio["low"]:.2f} to {ratio["high"]:.2f})'
  return f'{told}, {share["mean"]:.0%}'


def _words(name: str) -> str:
  return name.replace('_', ' ')


def draw(
  result: Mapping[str, Any],
  shown: Mapping[str, Any],
  folder: str | os.PathLike,
) -> list[pathlib.Path]:
  """Draws the figures of `run`, as PNG and PDF, and returns the PNGs' paths.

  Args:
    result: what `run` found.
    shown: its second result.
    folder: made when missing.
  """
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  groups = shown['groups']
  magnitude = max(
    cam.magnitude(of['group'].maps, 0.75) for of in groups.values()
  )
  figures = {
    'recall': _draw_recall(result),
    'regions': _draw_regions(result),
    'mean_maps': _draw_means(result, groups),
  }
  for name, of in groups.items():
    figures[f'examples_{name}'] = _draw_sheet(
      of['group'], of['examples'], shown['photographs'], magnitude
    )
  paths = []
  for name, figure in figures.items():
    paths.append(folder / f'{name}.png')
    figure.savefig(paths[-1], dpi=200)
    figure.savefig(folder / f'{name}.pdf')
  return paths


def _figure(width: float, height: float):
  from matplotlib.figure import Figure

  return Figure(figsize=(width, height), layout='constrained')


def _draw_recall(result):
  groups = result['groups']
  figure = _figure(5.6, 0.9 + 0.42 * len(groups))
  axis = figure.subplots()
  for row, of in enumerate(groups.values()):
    axis.barh(row, of['recall'], color='#0072B2', height=0.6)
    axis.plot([of['low'], of['high']], [row, row], color='black', linewidth=1.2)
    told = f'{of["recall"]:.0%}'
    axis.text(1.02, row, told, va='center', fontsize=8)
  axis.set_yticks(
    range(len(groups)),
    [f'{_words(n)} (n = {of["n"]})' for n, of in groups.items()],
    fontsize=8,
  )
  axis.invert_yaxis()
  axis.set_xlim(0, 1)
  axis.set_xlabel('recall, with 95 % interval, by patients', fontsize=8)
  axis.spines[['top', 'right']].set_visible(False)
  return figure


def _draw_regions(result):
  groups = result['groups']
  figure = _figure(6.4, 3.4)
  axis = figure.subplots()
  colors = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9')
  for i, (name, of) in enumerate(groups.items()):
    at = np.arange(len(REGIONS)) + 0.8 * ((i + 0.5) / len(groups) - 0.5)
    found = [of['regions'][region]['over_area'] for region in REGIONS]
    means = np.asarray([f['mean'] for f in found], float)
    low = np.asarray([f['low'] for f in found], float)
    high = np.asarray([f['high'] for f in found], float)
    axis.bar(
      at, means, 0.8 / len(groups), color=colors[i % 6], label=_words(name),
      yerr=np.nan_to_num([means - low, high - means]), ecolor='0.25',
      error_kw={'linewidth': 0.8},
    )  # fmt: skip
  axis.axhline(1, color='0.4', linewidth=0.8)
  axis.set_xticks(range(len(REGIONS)), REGIONS, fontsize=9)
  axis.set_ylabel('share of evidence over share of area', fontsize=8)
  axis.spines[['top', 'right']].set_visible(False)
  axis.legend(fontsize=8, ncols=3, frameon=False)
  return figure


def _draw_means(result, groups):
  from matplotlib import patches

  count = len(groups)
  figure = _figure(2.3 * count + 0.9, 4.4)
  axes = figure.subplots(2, count, squeeze=False)
  limit = max(
    (np.nanmax(np.abs(of['mean']['mean'])) for of in groups.values()),
    default=1.0,
  )
  # A map of zeros still needs a scale.
  limit = limit or 1.0
  disc = result['frame'] == 'disc'
  left, right, top_edge, bottom_edge = _EXTENT[result['frame']]
  extent = (left, right, bottom_edge, top_edge)
  picture = None
  for column, (name, of) in enumerate(groups.items()):
    mean = of['mean']
    top, bottom = axes[:, column]
    top.imshow(np.clip(mean['photograph'], 0, 1), extent=extent)
    picture = bottom.imshow(
      mean['mean'], cmap='PuOr_r', vmin=-limit, vmax=limit, extent=extent
    )
    top.set_title(f'{_words(name)}, n = {len(of["group"].index)}', fontsize=9)
    words = tasks.evidence_for(of['group'].target)
    bottom.set_title(f'evidence for: {words}', fontsize=8)
    for axis in (top, bottom):
      if disc:
        axis.add_patch(
          patches.Circle((0, 0), 0.14, fill=False, color='black', lw=0.8)
        )
      axis.set_xticks([left, right], ['temporal', 'nasal'], fontsize=7)
      axis.set_yticks([])
  axes[0, 0].set_ylabel('mean photograph', fontsize=8)
  axes[1, 0].set_ylabel('mean map', fontsize=8)
  in_logits = all(of['group'].in_logits for of in groups.values())
  figure.colorbar(
    picture,
    ax=axes[1, :].tolist(),
    label='logit (signed)' if in_logits else 'evidence (signed, no unit)',
    shrink=0.8,
  )
  found = result['disc']
  where = (
    f'centred on the optic disc (circle; known in {found["known"]}, estimated '
    f'in {found["estimated"]} photographs)'
    if disc
    else 'centred on the field of view'
  )
  figure.suptitle(f'All as right eyes, {where}', fontsize=9)
  return figure


def _draw_sheet(group, picked, photographs, magnitude):
  """Rows of examples: each photograph, and the evidence laid over it."""
  titles = {
    'right': 'most confident, right',
    'wrong': 'most confident, wrong',
    'borderline': 'borderline',
  }
  figure = _figure(8.6, 4.2)
  axes = figure.subplots(3, 2 * _SHOWN)
  picture = None
  for row, (kind, chosen) in zip(axes, picked.items(), strict=True):
    row[0].set_ylabel(titles[kind], fontsize=7)
    for axis in row:
      axis.set_xticks([])
      axis.set_yticks([])
      axis.spines[:].set_visible(False)
    if not len(chosen):
      row[0].text(0, 0.5, 'none', transform=row[0].transAxes, fontsize=8)
    for number, i in enumerate(chosen):
      plain, laid = row[2 * number : 2 * number + 2]
      image = photographs.images[group.index[i]]
      shown = cam.scale(
        group.maps[i],
        'dataset',
        image.shape[:2],
        magnitude=magnitude,
        placement=group.placement,
      )
      plain.imshow(image)
      laid.imshow(image)
      picture = laid.imshow(
        np.maximum(shown, 0), cmap='viridis', vmin=0, vmax=1,
        alpha=0.75 * np.clip(2 * shown, 0, 1),
      )  # fmt: skip
      name = str(photographs.ids[group.index[i]])
      plain.set_title(name[-16:], fontsize=6)
      told = f'p = {group.p[i]:.2f}'
      if cam.status(group.maps[i]) == 'empty':
        told += ', empty map'
      laid.set_title(told, fontsize=6)
  bar = figure.colorbar(picture, ax=axes, shrink=0.5, aspect=30)
  bar.set_label('evidence (1: strong in any photograph)', fontsize=7)
  bar.ax.tick_params(labelsize=6)
  figure.suptitle(
    f'{_words(group.name)}: {group.right.sum()} of {len(group.right)} right '
    f'(p from {group.threshold:.2f}); evidence for '
    f'{tasks.evidence_for(group.target)}',
    fontsize=9,
  )
  return figure
