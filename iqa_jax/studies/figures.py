"""The figures of a study, for print."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
import os
import pathlib
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from iqa_jax.aliases import Record
from iqa_jax.explain import faithfulness
from iqa_jax.studies import planted, print_figure, show
from iqa_jax.studies.methods import CRITERION_MAP

if TYPE_CHECKING:
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure

# Okabe and Ito's palette, told apart by colour-blind readers too; the head's
# own maps first, black and vermilion.
_COLORS = (
  '#0072B2', '#009E73', '#E69F00', '#CC79A7', '#56B4E9', '#999933', '#882255',
  '#44AA99',
)  # fmt: skip
_TILE = 224  # pixels of an example's side, of which 200 are printed
_OWN = {'evidence': '#000000', CRITERION_MAP: '#D55E00'}


def draw(
  result: Record, shown: Record, folder: str | os.PathLike
) -> list[pathlib.Path]:
  """Draws a study, as PNG and PDF, and returns the PNGs' paths.

  Args:
    result: of study.run.
    shown: its second result.
    folder: made when missing.
  """
  figures: dict[str, Figure] = {}
  if shown['curves']:
    figures['curves'] = _curves(result, shown['curves'])
  if 'randomisation' in result:
    figures['randomisation'] = _randomisation(result)
  local = [kind for kind in shown['planted'] if kind.values]
  if local:
    figures['planted'] = _planted(result)
    figures['kinds'] = _kinds(result)
    for group in planted.GROUPS:
      some = [kind for kind in local if kind.group == group]
      figures[f'examples_{group}'] = _examples(some, group)
  return print_figure.save(figures, folder)


def _style(name: str, methods: Sequence[str]) -> Record:
  """Returns the colour and line of a method; controls are grey."""
  if name in faithfulness.CONTROLS:
    at = faithfulness.CONTROLS.index(name)
    return {
      'color': '0.55', 'linestyle': ('-', '--', ':')[at], 'label': name,
      'marker': 'sDv'[at],
    }  # fmt: skip
  rest = [m for m in methods if m not in _OWN]
  color = _OWN.get(name) or _COLORS[rest.index(name) % len(_COLORS)]
  return {'color': color, 'label': name, 'marker': 'o'}


def _tidy(axis: Axes) -> None:
  axis.spines[['top', 'right']].set_visible(False)
  axis.tick_params(labelsize=7)


def _curves(
  result: Record, curves: Mapping[str, Mapping[str, np.ndarray]]
) -> Figure:
  baselines = list(dict.fromkeys(key.partition('/')[2] for key in curves))
  figure = print_figure.create(3.3 * 2, 2.6 * len(baselines) + 0.6)
  axes = figure.subplots(len(baselines), 2, squeeze=False, sharey='row')
  for row, kind in zip(axes, baselines, strict=True):
    for axis, measure in zip(row, ('deletion', 'insertion'), strict=True):
      for name, curve in curves[f'{measure}/{kind}'].items():
        axis.plot(
          np.linspace(0, 100, len(curve)), curve,
          **_style(name, result['methods']), linewidth=1.3, markersize=3,
        )  # fmt: skip
      less = measure == 'deletion'
      axis.set_title(
        f'{measure} ({"lower" if less else "higher"} is better), {kind} colour'
        if kind == 'mean'
        else f'{measure} ({"lower" if less else "higher"} is better), {kind}',
        fontsize=8,
      )
      axis.set_xlabel(f'pixels {"removed" if less else "shown"}, %', fontsize=8)
      _tidy(axis)
    row[0].set_ylabel('probability of the target', fontsize=8)
    row[0].ticklabel_format(axis='y', useOffset=False)
  figure.legend(
    *axes[0, 0].get_legend_handles_labels(), loc='outside lower center',
    ncols=5, fontsize=7, frameon=False,
  )  # fmt: skip
  return figure


def _randomisation(result: Record) -> Figure:
  figure = print_figure.create(6.6, 3.2)
  axes = figure.subplots(1, 2)
  names = ('rank correlation', 'structural similarity')
  for axis, kind, title in zip(axes, ('spearman', 'ssim'), names, strict=True):
    parts: list[str] = []
    for method, found in result['randomisation'].items():
      parts = list(found)
      means = [part[kind]['mean'] for part in found.values()]
      # None where every map is flat: a gap in the line.
      values = [1.0, *(np.nan if m is None else m for m in means)]
      axis.plot(
        values, markersize=3, linewidth=1.3, **_style(method, result['methods'])
      )
    axis.set_xticks(
      range(len(parts) + 1), ['whole', *parts], rotation=60, ha='right',
      rotation_mode='anchor',
    )  # fmt: skip
    axis.axhline(0, color='0.8', linewidth=0.8)
    axis.set_title(f"{title} with the whole network's map", fontsize=8)
    axis.set_xlabel('destroyed down to', fontsize=8)
    _tidy(axis)
  figure.legend(
    *axes[0].get_legend_handles_labels(), loc='outside lower center',
    ncols=4, fontsize=7, frameon=False,
  )  # fmt: skip
  return figure


def _planted(result: Record) -> Figure:
  """Each method over all kinds, seen in training and not."""
  groups = result['planted']['groups']
  rows = (
    ('auc', 'pixel AUC', 0.5),
    ('energy_over_area', 'energy over area of the field', 1.0),
    ('hits', 'pointing-game hits', None),
  )
  names = show.ordered(
    dict.fromkeys(n for g in groups.values() for n in g['measures']['auc'])
  )
  figure = print_figure.create(6.8, 0.26 * len(names) + 1.5)
  axes = figure.subplots(1, len(rows), sharey=True)
  for axis, (measure, title, chance) in zip(axes, rows, strict=True):
    for shift, (group, face) in zip(
      (-0.16, 0.16), (('named', None), ('unfamiliar', 'white')), strict=True
    ):
      found = groups[group]['measures'][measure]
      for i, name in enumerate(names):
        value = found.get(name)
        if not value or value['mean'] is None:
          continue
        color = _style(name, result['methods'])['color']
        if value['low'] is not None and value['high'] is not None:
          axis.plot(
            [value['low'], value['high']], [i + shift] * 2, color=color,
            linewidth=1.1,
          )  # fmt: skip
        axis.plot(
          value['mean'], i + shift, 'o', color=color, markersize=4.5,
          markerfacecolor=face or color,
        )  # fmt: skip
        before = groups[group]['measures']['auc_before'][name]['mean']
        if measure == 'auc' and before is not None:
          axis.plot(before, i + shift, '|', color=color, markersize=6)
    if chance is not None:
      axis.axvline(chance, color='0.6', linewidth=0.8, linestyle=':')
    axis.set_title(title, fontsize=8)
    axis.grid(axis='x', color='0.92')
    axis.set_axisbelow(True)
    _tidy(axis)
  axes[0].set_yticks(range(len(names)), names, fontsize=8)
  axes[0].invert_yaxis()
  axes[1].set_xscale('symlog', linthresh=1)
  axes[1].set_xticks([0, 1, 3, 10, 30], ['0', '1', '3', '10', '30'])
  axes[2].set_xlim(-0.03, 1.03)
  seen = 'in' if result['seen_in_training'] else 'not in'
  found = result['planted']
  figure.supxlabel(
    f'filled: named kinds ({seen} training); open: unfamiliar kinds; | the '
    'same map before planting; dotted: chance\n'
    f'{found["n"]} photographs of {found["n_patients"]} patients, each kind '
    'in each; 95 % intervals by patient',
    fontsize=7,
  )
  return figure


def _kinds(result: Record) -> Figure:
  """Pixel AUC, kind by kind and method by method, as a table of colours."""
  found = result['planted']
  kinds = {k: v for k, v in found['kinds'].items() if 'measures' in v}
  names = show.ordered(
    dict.fromkeys(n for v in kinds.values() for n in v['measures']['auc'])
  )
  values = np.asarray(
    [
      [v['measures']['auc'].get(name, {'mean': None})['mean'] for name in names]
      for v in kinds.values()
    ],
    float,
  )
  figure = print_figure.create(0.52 * len(names) + 2.4, 0.23 * len(kinds) + 1.6)
  axis = figure.subplots()
  picture = axis.imshow(values, cmap='RdBu', vmin=0, vmax=1, aspect='auto')
  for (row, column), value in np.ndenumerate(values):
    if np.isfinite(value):
      dark = abs(value - 0.5) > 0.33
      axis.text(
        column, row, f'{value:.2f}', ha='center', va='center', fontsize=6,
        color='white' if dark else 'black',
      )  # fmt: skip
  axis.set_xticks(
    range(len(names)), names, rotation=45, ha='right', fontsize=7,
    rotation_mode='anchor',
  )  # fmt: skip
  axis.set_yticks(
    range(len(kinds)),
    [
      f'{k.replace("_", " ")}, P rises in {v["rises"]["mean"]:.0%}'
      for k, v in kinds.items()
    ],
    fontsize=7,
  )
  line = sum(v['group'] == 'named' for v in kinds.values()) - 0.5
  axis.axhline(line, color='black', linewidth=1.2)
  axis.set_title(
    f'Pixel AUC; named kinds above the line, unfamiliar ones below\n'
    f'n = {found["n"]} photographs of {found["n_patients"]} patients',
    fontsize=8,
  )
  figure.colorbar(picture, shrink=0.6).ax.tick_params(labelsize=6)
  return figure


def _examples(kinds: Sequence[planted.Kind], group: str) -> Figure:
  """One row a fault: the photograph, then each method's evidence on it."""
  names = show.ordered(kinds[0].shown['maps'])
  step = max(1, round(len(kinds[0].shown['image']) / _TILE))
  # One picture: so many axes would take a minute to lay out.
  mosaic = np.concatenate(
    [np.concatenate([*_tiles(kind.shown, names, step)], 1) for kind in kinds]
  )
  side = mosaic.shape[0] / len(kinds)
  figure = print_figure.create(
    1.0 * (len(names) + 1) + 0.9, 1.0 * len(kinds) + 0.7
  )
  axis = figure.subplots()
  axis.imshow(mosaic, interpolation='nearest')
  titles = ['fault', *(name.replace(' of the ', '\nof the ') for name in names)]
  axis.xaxis.tick_top()
  axis.set_xticks(
    (np.arange(len(titles)) + 0.5) * side - 0.5, titles, fontsize=7
  )
  axis.set_yticks(
    (np.arange(len(kinds)) + 0.5) * side - 0.5,
    [kind.name.replace('_', ' ') for kind in kinds],
    fontsize=7,
  )
  axis.tick_params(length=0)
  axis.spines[:].set_visible(False)
  axis.set_title(
    f'Planted faults of {group} kinds, their outlines (blue) and the evidence '
    'for inadequate, each map from 0 to its maximum',
    fontsize=8,
  )
  return figure


def _tiles(
  shown: Record, names: Sequence[str], step: int
) -> Iterator[np.ndarray]:
  """Yields a photograph and its maps over it in grey, the fault outlined.

  Args:
    shown: of a planted.Kind.
    names: of the maps.
    step: every how many pixels one is shown.
  """
  import matplotlib

  image, mask = (shown[name][::step, ::step] for name in ('image', 'mask'))
  yield image
  fault = mask >= 0.5
  outline = fault ^ ndimage.binary_dilation(fault)
  for name in names:
    seen = faithfulness.positive_share(shown['maps'][name][None])[0]
    tile = matplotlib.colormaps['inferno'](seen[::step, ::step])[..., :3]
    tile = 0.1 * image.mean(-1, keepdims=True) / 255 + 0.9 * tile
    tile[outline] = (0.34, 0.71, 0.91)
    yield (255 * np.clip(tile, 0, 1)).round().astype(np.uint8)
