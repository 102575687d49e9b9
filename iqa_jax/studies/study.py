"""The whole test of a network's explanations, its tables and its figures.

`run` measures, `table` and `draw` show. What the measures are is said in
faithfulness.py; which photographs and targets were used stands in the result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import os
import pathlib
from typing import Any

from absl import logging
import numpy as np

from iqa_jax import errors
from iqa_jax import labels as L
from iqa_jax.explain import cam, faithfulness, perturbation
from iqa_jax.explain.subject import Subject
from iqa_jax.studies.photographs import Photographs

# Methods that need no gradients, named as the others.
GRADIENT_FREE = ('occlusion', 'rise')
# Of the field; a fault that covers more has no place of its own.
_EVERYWHERE = 0.95
_RIM = 2 / 3  # of the field's radius: the periphery begins


def run(
  subject: Subject,
  photographs: Photographs,
  *,
  target: str = 'predicted',
  gradient_free: Sequence[str] = (),
  baselines: Sequence[str] = perturbation.BASELINES,
  steps: int = 16,
  severity: float = 0.7,
  seed: int = 0,
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Measures whether the explanations of a network are true.

  Args:
    subject: the network, the methods and the layer.
    photographs: of any verdict; the adequate ones get the planted faults.
    target: what is explained, see cam.choose_targets.
    gradient_free: some of GRADIENT_FREE, measured like the other methods.
    baselines: some of perturbation.BASELINES.
    steps: of the deletion and insertion curves.
    severity: of the planted faults, 0 to 1.
    seed: of controls, orders, noise, shuffling and faults.

  Returns:
    What goes to JSON, and what the figures show: arrays.
  """
  pictures = np.asarray(photographs.images, np.float32)
  logits = subject.logits(photographs.images)
  targets = subject.targets(target, logits, photographs.labels)
  methods = (*subject.methods, *gradient_free)
  result: dict[str, Any] = {
    'photographs': {
      'source': photographs.source,
      'n': len(photographs),
      'skipped': [list(pair) for pair in photographs.skipped],
    },
    'target': target,
    'targets': {
      name: int((targets == i).sum())
      for i, name in enumerate(subject.loaded.task.targets)
    },
    'layer': subject.layer,
    'placement': subject.placed,
    'methods': list(methods),
    'model': subject.loaded.digest,
    'seed': seed,
  }

  logging.info('maps of %d photographs', len(photographs))
  raw = _all_maps(subject, photographs, targets, gradient_free, seed)
  result['empty'] = {
    name: int((cam.status(raw[name]) == 'empty').sum()) for name in methods
  }
  size = pictures.shape[1:3]
  maps = _enlarged(subject, raw, size)

  shown: dict[str, Any] = {'curves': {}}
  result['measures'] = _measures(
    subject, pictures, photographs.inside, targets, maps, baselines, steps,
    seed, shown['curves'],
  )  # fmt: skip
  logging.info('randomising the network from the top down')
  result['randomisation'] = _randomisation(
    subject, photographs.images, targets, maps, seed
  )
  result['flip'] = _flip(subject, photographs.images, targets, maps)
  result['planted'], shown['planted'] = _planted(
    subject, photographs, logits, gradient_free, severity, seed
  )
  result['positional'] = _positional(subject, photographs, logits)
  return result, shown


def _positional(subject, photographs, logits) -> dict[str, Any]:
  """Looks at photographs whose only fault is what they show."""
  at = L.CRITERIA.index('image_field')
  others = np.delete(photographs.criteria, at, axis=1)
  only = (photographs.criteria[:, at] == 1) & (others == 0).all(axis=1)
  found: dict[str, Any] = {
    'n': int(only.sum()),
    'note': 'A fault of the image field lies in what is not in the picture: '
    'there is no region that holds the evidence, so the share at the rim is '
    'told without being right or wrong.',
  }
  if not only.any():
    return found
  there = photographs.take(np.flatnonzero(only))
  logits = logits[only]
  called = subject.p_inadequate(logits) >= subject.threshold
  name = 'image_field' if subject.loaded.task.name == 'criteria' else 'margin'
  raw = subject.maps(there.images, subject.targets(name, logits))
  rim = np.stack([_rim(inside) for inside in there.inside])
  area = (rim & there.inside).sum((1, 2)) / there.inside.sum((1, 2))
  return found | {
    'called_inadequate': int(called.sum()),
    'target': name,
    'rim_area': faithfulness.interval(area),
    'energy_at_rim': {
      method: faithfulness.interval(
        faithfulness.energy(
          _laid(subject, of, rim.shape[1:]) * there.inside, rim
        )
      )
      for method, of in raw.items()
    },
  }


def _laid(subject, maps, size) -> np.ndarray:
  """Returns the network's maps [n, h, w] at `size`, where its cells look."""
  return cam.enlarge(maps, size, subject.placement)


def _enlarged(subject, raw, size) -> dict[str, np.ndarray]:
  """Returns {method or control: maps [n, *size]}; only cells look elsewhere."""
  return {
    name: _laid(subject, of, size)
    if name in subject.methods
    else cam.enlarge(of, size)
    for name, of in raw.items()
  }


def _rim(inside: np.ndarray) -> np.ndarray:
  """Returns the field's periphery, bool [s, s], of its own mask."""
  rows, columns = np.nonzero(inside.any(1))[0], np.nonzero(inside.any(0))[0]
  y, x = np.mgrid[: inside.shape[0], : inside.shape[1]]
  half = max(np.ptp(rows), np.ptp(columns)) / 2
  away = np.hypot(y - rows.mean(), x - columns.mean())
  return away > _RIM * half


def _all_maps(subject, photographs, targets, gradient_free, seed):
  """Returns {method or control: raw maps [n, h, w]}."""
  found = dict(subject.maps(photographs.images, targets))
  pictures = np.asarray(photographs.images, np.float32)
  for name in gradient_free:
    fill = perturbation.baseline(pictures, photographs.inside, 'mean')
    if name == 'occlusion':
      found[name] = perturbation.occlusion(
        subject.score, pictures, targets, fill
      )
    elif name == 'rise':
      found[name] = perturbation.rise(
        subject.score, pictures, targets, fill, seed=seed
      )
    else:
      raise errors.InvalidValue(
        f'method {name!r} is none of {", ".join(cam.METHODS + GRADIENT_FREE)}'
      )
  cells = next(iter(found.values())).shape[1:]
  return found | faithfulness.controls(photographs.images, cells, seed)


def _measures(
  subject, pictures, inside, targets, maps, baselines, steps, seed, curves
) -> dict[str, Any]:
  """Returns {measure: {method or control: interval}}, and fills `curves`."""
  values: dict[str, dict[str, np.ndarray]] = {}

  def put(measure, name, of):
    values.setdefault(measure, {})[name] = of

  area_outside = (~inside).mean((1, 2))
  for name, of in maps.items():
    logging.info('deletion, insertion, drop and ROAD of %s', name)
    for kind in baselines:
      other = perturbation.baseline(pictures, inside, kind)
      for measure, start, end in (
        ('deletion', pictures, other),
        ('insertion', other, pictures),
      ):
        found = faithfulness.replacement_curve(
          subject.score, start, targets, of, end, steps=steps, seed=seed
        )
        put(f'{measure}/{kind}', name, faithfulness.area(found))
        curves.setdefault(f'{measure}/{kind}', {})[name] = found.mean(0)
      drop, increase = faithfulness.drop_and_increase(
        subject.score, pictures, targets, of, other
      )
      put(f'average_drop/{kind}', name, drop)
      put(f'average_increase/{kind}', name, increase)
    put(
      'road',
      name,
      faithfulness.road(subject.score, pictures, targets, of, seed=seed),
    )
    with np.errstate(invalid='ignore', divide='ignore'):
      share = faithfulness.energy(of, ~inside) / area_outside
    put('outside_over_area', name, np.where(area_outside > 0, share, np.nan))
  return {m: faithfulness.compare(of) for m, of in values.items()}


def _randomisation(subject, pictures, targets, maps, seed) -> dict[str, Any]:
  """Returns {method: {part: {spearman, ssim}}}, parts from the top down."""
  found: dict[str, Any] = {name: {} for name in subject.methods}
  model, variables = subject.loaded.model, subject.loaded.variables
  for part, broken in faithfulness.randomised(model, variables, seed):
    raw = subject.maps(pictures, targets, broken)
    for name, of in raw.items():
      other = _laid(subject, of, maps[name].shape[1:])
      found[name][part] = {
        'spearman': faithfulness.interval(
          faithfulness.spearman(maps[name], other)
        ),
        'ssim': faithfulness.interval(
          faithfulness.ssim(cam.scale(maps[name]), cam.scale(other))
        ),
      }
  return found


def _flip(subject, pictures, targets, maps) -> dict[str, Any]:
  """Returns how alike the maps of mirrored photographs are, mirrored back."""
  raw = subject.maps(np.ascontiguousarray(pictures[:, :, ::-1]), targets)
  found = {}
  for name, of in raw.items():
    back = _laid(subject, of, maps[name].shape[1:])[:, :, ::-1]
    found[name] = {
      'spearman': faithfulness.interval(
        faithfulness.spearman(maps[name], back)
      ),
      'ssim': faithfulness.interval(
        faithfulness.ssim(cam.scale(maps[name]), cam.scale(back))
      ),
    }
  return found


def _planted(subject, photographs, logits, gradient_free, severity, seed):
  """Plants faults in photographs called adequate; looks where they turn.

  Returns:
    {fault: its results}, and [a few examples of each] for the figure.
  """
  from iqa_jax.simulation import faults

  adequate = subject.p_inadequate(logits) < subject.threshold
  # A photograph known to be inadequate has faults of its own.
  adequate &= photographs.quality != L.INADEQUATE
  clean = photographs.take(np.flatnonzero(adequate))
  results: dict[str, Any] = {}
  examples: dict[str, Any] = {}
  for kind, criterion in faults.CRITERION.items():
    results[kind] = {'criterion': criterion, 'n': len(clean), 'turned': 0}
    if not len(clean):
      continue
    pairs = [
      faults.apply(
        image, inside, kind, severity, np.random.default_rng([seed, i])
      )
      for i, (image, inside) in enumerate(
        zip(clean.images, clean.inside, strict=True)
      )
    ]
    images = np.stack([image for image, _ in pairs])
    masks = np.stack([mask for _, mask in pairs])
    after = subject.logits(images)
    turned = subject.p_inadequate(after) >= subject.threshold
    results[kind]['turned'] = int(turned.sum())
    logging.info('%s: %d of %d turned', kind, turned.sum(), len(turned))
    if not turned.any():
      continue
    faulty = dataclasses.replace(
      clean.take(np.flatnonzero(turned)), images=images[turned]
    )
    mask = masks[turned]
    name = criterion if subject.loaded.task.name == 'criteria' else 'margin'
    targets = subject.targets(name, after[turned])
    raw = _all_maps(subject, faulty, targets, gradient_free, seed)
    maps = _enlarged(subject, raw, mask.shape[1:])
    area = (mask * faulty.inside).sum((1, 2)) / faulty.inside.sum((1, 2))
    share = mask.mean((1, 2))  # of the frame, over all of which maps extend
    results[kind] |= {'target': name, 'area': faithfulness.interval(area)}
    if area.min() > _EVERYWHERE:
      results[kind]['note'] = 'covers the whole field: no place to point at'
      continue
    results[kind] |= {
      'energy_inside': faithfulness.compare(
        {n: faithfulness.energy(m, mask) for n, m in maps.items()}
      ),
      'energy_over_area': faithfulness.compare(
        {n: faithfulness.energy(m, mask) / share for n, m in maps.items()}
      ),
      'pointing': faithfulness.compare(
        {n: faithfulness.pointing(m, mask) for n, m in maps.items()}
      ),
    }
    examples[kind] = {
      'images': faulty.images[:3],
      'masks': mask[:3],
      'maps': {n: m[:3] for n, m in maps.items()},
    }
  return results, examples


def table(result: Mapping[str, Any]) -> str:
  """Returns the results of `run` as Markdown tables."""
  methods = result['methods']
  names = [*methods, *faithfulness.CONTROLS]
  photographs = result['photographs']
  lines = [
    '# Are the explanations true?',
    '',
    f'{photographs["n"]} photographs ({photographs["source"]}; '
    f'{len(photographs["skipped"])} skipped), layer {result["layer"]}, target '
    f'{result["target"]}. Means with 95 % bootstrap intervals over '
    'photographs.',
    '',
    '## Removing and showing pixels',
    '',
    'Deletion and average drop: less is better. Insertion, average increase '
    'and ROAD: more is better. Outside over area: the share of positive '
    'evidence outside the field over its share of the frame.',
    '',
    _row(['measure', *names]),
    _row(['---'] * (len(names) + 1)),
  ]
  for measure, of in result['measures'].items():
    lines.append(_row([measure, *(_told(of[n]) for n in names)]))
  empty = ', '.join(f'{k} {v}' for k, v in result['empty'].items())
  lines += ['', f'Empty maps (no positive evidence): {empty}.']

  lines += ['', '## Destroying the network from the top down', '']
  lines += ["Similarity to the whole network's map; it must fall.", '']
  parts = list(next(iter(result['randomisation'].values()), {}))
  lines += [
    _row(['method', *parts, 'mirrored']),
    _row(['---'] * (len(parts) + 2)),
  ]
  for kind in ('spearman', 'ssim'):
    for method, of in result['randomisation'].items():
      cells = [_told(of[part][kind], short=True) for part in parts]
      flip = _told(result['flip'][method][kind], short=True)
      lines.append(_row([f'{method} {kind}', *cells, flip]))

  lines += [
    '',
    '## Planted faults',
    '',
    'Put into photographs called adequate; measured where the verdict turns. '
    'Area: of the field. Energy: the share of positive evidence inside the '
    'fault, over its share of the frame (1 is chance). Hits: the pointing '
    'game.',
    '',
    _row(['fault', 'criterion', 'turned', 'area', 'measure', *names]),
    _row(['---'] * (len(names) + 5)),
  ]
  for kind, of in result['planted'].items():
    head = [kind, of['criterion'], f'{of["turned"]} of {of["n"]}']
    area = _told(of['area'], short=True) if 'area' in of else ''
    if 'pointing' not in of:
      note = of.get('note', '')
      lines.append(_row([*head, area, note, *[''] * len(names)]))
      continue
    for key, name in (('energy_over_area', 'energy'), ('pointing', 'hits')):
      cells = [_told(of[key][n]) for n in names]
      lines.append(_row([*head, area, name, *cells]))

  positional = result['positional']
  lines += ['', '## Positional faults', '', positional['note'], '']
  if 'energy_at_rim' in positional:
    shares = ', '.join(
      f'{k} {_told(v)}' for k, v in positional['energy_at_rim'].items()
    )
    lines.append(
      f'{positional["n"]} photographs, {positional["called_inadequate"]} '
      f'called inadequate. Evidence at the rim: {shares}; its area '
      f'{_told(positional["rim_area"])}.'
    )
  else:
    lines.append('No photograph is labelled with this fault alone.')
  return '\n'.join(lines) + '\n'


def _row(cells: Sequence[str]) -> str:
  return '| ' + ' | '.join(cells) + ' |'


def _told(of: Mapping[str, Any], short: bool = False) -> str:
  if of['mean'] is None:
    return '-'
  if short or of['low'] is None:
    return f'{of["mean"]:.2f}'
  return f'{of["mean"]:.3f} ({of["low"]:.3f} to {of["high"]:.3f})'


def draw(
  result: Mapping[str, Any],
  shown: Mapping[str, Any],
  folder: str | os.PathLike,
) -> list[pathlib.Path]:
  """Draws the figures of `run` and returns their paths.

  Args:
    result: what `run` measured.
    shown: its second result.
    folder: made when missing.
  """
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  figures = {
    'curves': _draw_curves(result, shown['curves']),
    'randomisation': _draw_randomisation(result),
  }
  if any('pointing' in of for of in result['planted'].values()):
    figures['planted'] = _draw_planted(result)
    figures['planted_examples'] = _draw_examples(result, shown['planted'])
  paths = []
  for name, figure in figures.items():
    paths.append(folder / f'{name}.png')
    figure.savefig(paths[-1], dpi=150)
  return paths


def _figure(columns: int, rows: int, width: float, height: float):
  from matplotlib.figure import Figure

  figure = Figure(
    figsize=(width * columns, height * rows), layout='constrained'
  )
  return figure, figure.subplots(rows, columns, squeeze=False)


def _style(name: str, methods: Sequence[str]) -> dict[str, Any]:
  """Returns the colour and line of a method; controls are grey."""
  if name in faithfulness.CONTROLS:
    dashes = ('-', '--', ':')[faithfulness.CONTROLS.index(name)]
    return {'color': '0.55', 'linestyle': dashes, 'label': name}
  # Okabe and Ito's palette, told apart by colour-blind readers too.
  colors = (
    '#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9',
    '#000000', '#F0E442',
  )  # fmt: skip
  return {'color': colors[methods.index(name) % 8], 'label': name}


def _draw_curves(result, curves):
  baselines = list(dict.fromkeys(key.partition('/')[2] for key in curves))
  figure, axes = _figure(len(baselines), 2, 3.6, 2.9)
  for row, measure in enumerate(('deletion', 'insertion')):
    for axis, kind in zip(axes[row], baselines, strict=True):
      for name, curve in curves[f'{measure}/{kind}'].items():
        axis.plot(
          np.linspace(0, 100, len(curve)), curve,
          **_style(name, result['methods']), linewidth=1.4,
        )  # fmt: skip
      axis.set_title(f'{measure}, baseline {kind}', fontsize=9)
      axis.set_ylim(0, 1)
      axis.set_xlabel('pixels replaced, %', fontsize=8)
  for axis in axes[:, 0]:
    axis.set_ylabel('probability of the target', fontsize=8)
  handles, labels = axes[0, 0].get_legend_handles_labels()
  figure.legend(
    handles,
    labels,
    loc='outside lower center',
    ncols=min(3 * len(baselines), 5),
    fontsize=8,
  )
  return figure


def _draw_randomisation(result):
  figure, axes = _figure(2, 1, 4.4, 3.6)
  for axis, kind in zip(axes[0], ('spearman', 'ssim'), strict=True):
    for method, parts in result['randomisation'].items():
      means = [of[kind]['mean'] for of in parts.values()]
      # None where every map is flat: a gap in the line.
      values = [1.0, *(np.nan if m is None else m for m in means)]
      axis.plot(
        values, marker='o', markersize=3, **_style(method, result['methods'])
      )
    axis.set_xticks(range(len(parts) + 1), ['whole', *parts], rotation=60)
    axis.tick_params(labelsize=8)
    axis.axhline(0, color='0.8', linewidth=0.8)
    axis.set_title(f"{kind} to the whole network's map", fontsize=9)
    axis.set_xlabel('destroyed down to', fontsize=8)
  axes[0, 0].legend(fontsize=7)
  return figure


def _draw_planted(result):
  kinds = {k: v for k, v in result['planted'].items() if 'pointing' in v}
  names = [*result['methods'], *faithfulness.CONTROLS]
  figure, axes = _figure(1, 2, max(6.0, 1.5 * len(kinds)), 3.1)
  keys = (
    ('energy_over_area', 'evidence inside over area (1: chance)'),
    ('pointing', 'pointing-game hits'),
  )
  for axis, (key, title) in zip(axes[:, 0], keys, strict=True):
    for i, name in enumerate(names):
      found = [v[key][name] for v in kinds.values()]
      at = np.arange(len(kinds)) + 0.8 * (i / max(len(names) - 1, 1) - 0.5)
      means = np.asarray([f['mean'] for f in found], float)
      low = np.asarray([f['low'] for f in found], float)
      high = np.asarray([f['high'] for f in found], float)
      style = _style(name, result['methods'])
      control = name in faithfulness.CONTROLS
      marker = 'sDv'[faithfulness.CONTROLS.index(name)] if control else 'o'
      axis.errorbar(
        at, means, np.nan_to_num([means - low, high - means]), fmt=marker,
        color=style['color'], label=name, markersize=4, linewidth=1,
      )  # fmt: skip
    axis.set_title(title, fontsize=9)
    labels = [
      f'{k}\n{v["turned"]} of {v["n"]} turned' for k, v in kinds.items()
    ]
    axis.set_xticks(range(len(kinds)), labels, fontsize=7)
    axis.grid(axis='y', color='0.9')
  axes[0, 0].axhline(1, color='0.4', linewidth=0.8)
  handles, names = axes[0, 0].get_legend_handles_labels()
  figure.legend(handles, names, loc='outside lower center', ncols=5, fontsize=8)
  return figure


def _draw_examples(result, planted):
  """One row a fault: the photograph, then each method's evidence on it."""
  names = [*result['methods'], *faithfulness.CONTROLS]
  kinds = {k: v for k, v in planted.items() if len(v['images'])}
  figure, axes = _figure(len(names) + 1, len(kinds), 1.5, 1.65)
  for row, (kind, of) in zip(axes, kinds.items(), strict=True):
    for axis in row:
      axis.imshow(of['images'][0])
      axis.contour(of['masks'][0], [0.5], colors='white', linewidths=0.8)
      axis.set_xticks([])
      axis.set_yticks([])
    row[0].set_ylabel(kind, fontsize=8)
    for axis, name in zip(row[1:], names, strict=True):
      shown = cam.scale(of['maps'][name][0])
      axis.imshow(shown, cmap='viridis', alpha=0.6, vmin=0, vmax=1)
      if cam.status(of['maps'][name][0]) == 'empty':
        axis.text(
          0.5, 0.5, 'empty map', color='white', ha='center',
          transform=axis.transAxes, fontsize=7,
        )  # fmt: skip
  for axis, name in zip(axes[0], ('fault and its mask', *names), strict=True):
    axis.set_title(name, fontsize=8)
  return figure
