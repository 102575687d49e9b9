"""The quality-criteria review as Markdown and in figures for print."""

from __future__ import annotations

from collections.abc import Mapping
import os
import pathlib
from typing import TYPE_CHECKING, Any

import numpy as np

from iqa_jax import tasks
from iqa_jax.aliases import Record
from iqa_jax.explain import scaling
from iqa_jax.studies import print_figure
from iqa_jax.studies.photographs import Photographs
from iqa_jax.studies.places import EXTENT, REGIONS
from iqa_jax.studies.review import SHOWN, Group

if TYPE_CHECKING:
  from matplotlib.figure import Figure


def table(result: Record) -> str:
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
    '| photographs | n | patients | recall | 95 % interval | explained | empty '
    'maps |',
    '| --- | --- | --- | --- | --- | --- | --- |',
  ]
  for name, of in result['groups'].items():
    lines.append(
      f'| {_words(name)} | {of["n"]} | {of["n_patients"]} | '
      f'{of["recall"]:.3f} | {of["low"]:.3f} to {of["high"]:.3f} | '
      f'{of["target"]} | {of["empty"]} |'
    )
  lines += [
    '',
    'Where the positive evidence lies: its share in a region over the '
    "region's share of the field (1 is even; outside: of the frame), mean over "
    'photographs with its 95 % interval by patient, and the mean share itself.',
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


def _region_told(of: Record) -> str:
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
  result: Record, shown: Record, folder: str | os.PathLike
) -> list[pathlib.Path]:
  """Draws the figures of `run`, as PNG and PDF, and returns the PNGs' paths.

  Args:
    result: what `run` found.
    shown: its second result.
    folder: made when missing.
  """
  groups = shown['groups']
  magnitude = max(
    scaling.magnitude(of['group'].maps, 0.75) for of in groups.values()
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
  return print_figure.save(figures, folder)


def _draw_recall(result: Record) -> Figure:
  groups = result['groups']
  figure = print_figure.create(5.6, 0.9 + 0.42 * len(groups))
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


def _draw_regions(result: Record) -> Figure:
  groups = result['groups']
  figure = print_figure.create(6.4, 3.4)
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


def _draw_means(result: Record, groups: Mapping[str, Record]) -> Figure:
  from matplotlib import patches

  count = len(groups)
  figure = print_figure.create(2.3 * count + 0.9, 4.4)
  axes = figure.subplots(2, count, squeeze=False)
  limit = max(
    (np.nanmax(np.abs(of['mean']['mean'])) for of in groups.values()),
    default=1.0,
  )
  # A map of zeros still needs a scale.
  limit = limit or 1.0
  disc = result['frame'] == 'disc'
  left, right, top_edge, bottom_edge = EXTENT[result['frame']]
  extent = (left, right, bottom_edge, top_edge)
  picture: Any = None
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


def _draw_sheet(
  group: Group,
  picked: Mapping[str, np.ndarray],
  photographs: Photographs,
  magnitude: float,
) -> Figure:
  """Rows of examples: each photograph, and the evidence laid over it."""
  titles = {
    'right': 'most confident, right',
    'wrong': 'most confident, wrong',
    'borderline': 'borderline',
  }
  figure = print_figure.create(8.6, 4.2)
  axes = figure.subplots(3, 2 * SHOWN)
  picture: Any = None
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
      shown = scaling.scale(
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
      if scaling.status(group.maps[i]) == 'empty':
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
