"""What people look at first: figures in one style, as SVG and PNG.

Inadequate is the positive class in all of them; what can be drawn on an axis is
drawn by `displays`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
import os
import pathlib
from typing import NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
import numpy as np

from iqa_jax import labels
from iqa_jax.aliases import Record
from iqa_jax.evaluation import (
  breakdowns,
  displays,
  learning_curves,
  metrics,
  resampling,
)
from iqa_jax.evaluation.predictions import Predictions
from iqa_jax.judging import operating_points

_SINGLE, _SQUARE = (3.6, 2.8), (3.6, 3.5)
_BAND = 'Band: pointwise 95 % by patient-clustered bootstrap.'


class Drawn(NamedTuple):
  """A figure and what its reader must know."""

  figure: Figure
  title: str
  caption: str


def draw(
  result: Record,
  tables: Mapping[str, Predictions],
  history: Sequence[Record] = (),
  *,
  resamples: int = 2000,
) -> dict[str, Drawn]:
  """Returns the figures of an evaluation, by file name.

  Figures that the images can't give (one class only) are left out.

  Args:
    result: what metrics.json holds.
    tables: the predictions of every split in it.
    history: lines of history.jsonl.
    resamples: of the bands.
  """
  split = main_split(tables)
  measured = result['splits'][split]
  c = tables[split][tables[split].judged]
  of = f'{len(c)} images, {int(c.quality.sum())} Inadequate'
  if split in ('test', 'validation'):
    of = f'{split.capitalize()} split: {of}'
  drawn: dict[str, Drawn] = {}
  with matplotlib.rc_context(displays.STYLE):
    if history:
      drawn['history'] = _history(history)
    drawn |= _confusions(len(c), measured, of)
    if 0 < c.quality.sum() < len(c):
      drawn |= _curves(c, result, measured, of, resamples)
      drawn['calibration'] = _calibration(c, result, of)
    if len(c):
      drawn['scores'] = _scores(c, result, of)
      if len(c) > 1 and 'n_folds' not in result:
        threshold = result['operating_point']['threshold']
        drawn['coverage'] = _coverage(c, threshold, measured, of)
      faults = [
        g
        for g in measured['breakdowns']['groups']
        if g['breakdown'] == 'fault' and g['n']
      ]
      if any(g['group'] != 'none' for g in faults):
        drawn['scores_by_criterion'] = _by_criterion(c, faults, result, of)
      drawn['groups'] = _groups(measured['breakdowns'], of)
  return drawn


def main_split(names: Iterable[str]) -> str:
  """Returns the split that figures and report are about."""
  names = list(names)
  return 'test' if 'test' in names else names[-1]


def save(drawn: Mapping[str, Drawn], folder: str | os.PathLike) -> None:
  """Writes NAME.svg and NAME.png of every figure, repeatably."""
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  undated: dict[str, Record] = {'svg': {'Date': None}, 'png': {}}
  with matplotlib.rc_context(displays.STYLE):
    for name, (figure, _, _) in drawn.items():
      # Laid out once, not once a format.
      figure.draw_without_rendering()
      figure.set_layout_engine('none')
      for kind, metadata in undated.items():
        figure.savefig(folder / f'{name}.{kind}', metadata=metadata)


def _figure(size: tuple[float, float]) -> tuple[Figure, Axes]:
  figure = Figure(figsize=size, layout='constrained')
  return figure, figure.subplots()


def _history(history: Sequence[Record]) -> Drawn:
  return Drawn(
    learning_curves.draw(history),
    'Training',
    'By epoch: loss; accuracy (of the classes learnt, for criteria of the '
    'verdict; in training over the epoch as it went); ROC AUC and balanced '
    'accuracy of the verdict on validation (positive class: Inadequate). '
    'Dotted: a new training phase. Dashed: the epoch kept.',
  )


def _confusions(count: int, measured: Record, of: str) -> dict[str, Drawn]:
  drawn = {}
  if count:
    drawn['confusion'] = _confusion(
      measured['verdict']['confusion'], labels.QUALITY, 'Verdict', of
    )
  if 'grade' in measured and measured['grade']['n']:
    grade = measured['grade']
    drawn['confusion_grade'] = _confusion(
      grade['confusion'],
      grade['classes'],
      'Grade',
      f'{grade["n"]} images; the likeliest grade is called',
    )
  return drawn


def _confusion(
  matrix: Sequence[Sequence[int]], names: Sequence[str], title: str, of: str
) -> Drawn:
  figure, axes = _figure((3.3, 2.9))
  displays.confusion(axes, matrix, names, title)
  return Drawn(
    figure,
    f'Confusion matrix: {title.lower()}',
    f'{of}. Percentages are of the labelled class (row). Positive class: '
    'Inadequate.',
  )


def _curves(
  c: Predictions, result: Record, measured: Record, of: str, resamples: int
) -> dict[str, Drawn]:
  draws = resampling.Resamples(c.patient_id, resamples)
  bands = resampling.roc_band(c.quality, c.ranks, draws, displays.GRID)
  other = None
  if c.compared is not None:
    other = displays.Other(result['files']['compare'], c.compared)
  drawn = {}
  for name, band, title, more in (
    (
      'roc',
      bands[0],
      'ROC curve',
      ' The operating point was chosen beforehand.',
    ),
    ('precision_recall', bands[1], 'Precision-recall curve', ''),
  ):
    figure, axes = _figure(_SQUARE)
    values = measured['verdict']['metrics']
    displays.curve(axes, name, c, values, band, other)
    caption = f'{of}. Positive class: Inadequate. {_BAND}{more}'
    drawn[name] = Drawn(figure, title, caption)
  return drawn


def _calibration(c: Predictions, result: Record, of: str) -> Drawn:
  method = result.get('calibration', {}).get('method', 'none')
  given = "by each fold's calibration" if 'n_folds' in result else 'as given'
  figure = Figure(figsize=(3.6, 4.1), layout='constrained')
  axes, below = figure.subplots(
    2, 1, sharex=True, gridspec_kw={'height_ratios': [3.2, 1]}
  )
  displays.calibration(
    axes,
    c.quality,
    c.p_calibrated,
    c.patient_id,
    before=None if method == 'none' else c.p_inadequate,
    label=given if method == 'none' else f'after {method}',
    below=below,
  )
  return Drawn(
    figure,
    'Calibration',
    f'{of}. Share of Inadequate labels by predicted probability of Inadequate, '
    f'in {metrics.BINS} bins of equal width (95 % intervals by patients); '
    'below, the images in each bin.',
  )


def _marks(result: Record) -> Record:
  """Returns the one operating point and band; folds have several."""
  if 'n_folds' in result:
    return {'threshold': None, 'band': None}
  return {
    'threshold': result['operating_point']['threshold'],
    'band': result.get('uncertain_band'),
  }


def _scores(c: Predictions, result: Record, of: str) -> Drawn:
  figure, axes = _figure((4.4, 2.8))
  displays.scores(axes, c.quality, c.p_calibrated, **_marks(result))
  return Drawn(
    figure,
    'Score histogram',
    f'{of}. Line: operating point. Grey, where there is any: sent to a person. '
    'Counts on a logarithmic axis.',
  )


def _by_criterion(
  c: Predictions, groups: Sequence[Record], result: Record, of: str
) -> Drawn:
  assert c.criteria is not None
  members = breakdowns.faults(c.criteria)
  rows = [g for g in groups if members[g['group']].any()]
  figure = Figure(figsize=(4.4, 0.55 * len(rows) + 0.9), layout='constrained')
  axes = figure.subplots(len(rows), 1, sharex=True, squeeze=False)[:, 0]
  edges = np.linspace(0, 1, 41)
  for panel, group in zip(axes, rows, strict=True):
    inside = members[group['group']]
    color = displays.BLUE if group['group'] == 'none' else displays.ORANGE
    counts, _ = np.histogram(c.p_calibrated[inside], edges)
    panel.stairs(
      counts / counts.max(), edges, fill=True, color=color, alpha=0.6
    )
    panel.set(yticks=[], ylim=(0, 1.1), xlim=(0, 1))
    panel.set_ylabel(
      f'{group["group"].replace("_", " ")}\n(n = {int(inside.sum())})',
      rotation=0,
      ha='right',
      va='center',
    )
    panel.spines['left'].set_visible(False)
    displays.mark(panel, **_marks(result))
  axes[0].set_title('Scores by failing criterion')
  axes[-1].set_xlabel('probability of inadequate')
  return Drawn(
    figure,
    'Scores by criterion',
    f'{of}. Each row scaled to its own maximum. Line: operating point. Grey: '
    'sent to a person.',
  )


def _coverage(
  c: Predictions, threshold: float, measured: Record, of: str
) -> Drawn:
  share, accuracy = operating_points.coverage(
    c.quality, c.p_calibrated, threshold
  )
  figure, axes = _figure(_SINGLE)
  # The first few images alone say nothing.
  enough = share * len(c) >= min(20, len(c))
  axes.plot(100 * share[enough], 100 * accuracy[enough], color=displays.BLUE)
  selective = measured.get('selective')
  if selective and selective['share']['value']:
    decided = selective['accuracy_decided']
    if decided['value'] is not None:
      displays.dot(
        axes,
        100 * (1 - selective['share']['value']),
        100 * decided['value'],
        'outside the uncertain band',
      )
      axes.legend(loc='lower left')
  axes.set(
    title='Coverage and accuracy',
    xlabel='decided without a person (% of images)',
    ylabel='accuracy on them (%)',
    xlim=(0, 101),
  )
  return Drawn(
    figure,
    'Coverage-accuracy curve',
    f'{of}. Accuracy when the images nearest to the operating point (in '
    'log-odds) go to a person first.',
  )


def _groups(found: Record, of: str) -> Drawn:
  rows = [g for g in found['groups'] if g['n']]
  shown = (('sensitivity', displays.ORANGE), ('specificity', displays.BLUE))
  figure = Figure(figsize=(7.2, 0.24 * len(rows) + 1.0), layout='constrained')
  panels = figure.subplots(1, 2, sharey=True)
  for axes, (name, color) in zip(panels, shown, strict=True):
    overall = found['overall'][name]['value']
    if overall is not None:
      axes.axvline(
        100 * overall, color=displays.GREY, linewidth=0.9, linestyle='--'
      )
    for y, group in enumerate(rows):
      measure = group[name]
      if measure['value'] is None:
        continue
      low, high = measure['low'], measure['high']
      weak = bool(measure['note'])
      axes.plot(
        [100 * low, 100 * high],
        [y, y],
        color=displays.GREY if weak else color,
        linewidth=1.2,
      )
      axes.plot(
        100 * measure['value'],
        y,
        'o',
        color='white' if weak else color,
        markeredgecolor=displays.GREY if weak else color,
        markersize=4,
      )
    axes.set(title=f'{name.capitalize()} (%)', xlim=(-2, 102))
    axes.tick_params(axis='y', length=0)
  names = [
    f'{g["breakdown"]}: {g["group"].replace("_", " ")} '
    f'({g["n_inadequate"]}/{g["n"]})'
    for g in rows
  ]
  panels[0].set_yticks(range(len(rows)), names)
  panels[0].set_ylim(len(rows) - 0.4, -0.6)
  return Drawn(
    figure,
    'Groups',
    f'{of}. 95 % intervals clustered by patient; in brackets Inadequate / all. '
    'Dashed: all images. Grey and hollow: too small to tell, or imprecise.',
  )
