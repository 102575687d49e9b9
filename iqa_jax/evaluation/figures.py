"""What people look at first: figures in one style, as SVG and PNG.

Inadequate is the positive class in all of them. Blue is adequate, orange is
inadequate (Okabe & Ito's colours, told apart by the colour-blind).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
import itertools
import os
import pathlib
from typing import Any, NamedTuple

import matplotlib
from matplotlib.figure import Figure
import numpy as np

from iqa_jax import labels
from iqa_jax.evaluation import intervals, metrics, resampling
from iqa_jax.judging import operating_points

STYLE: dict[Any, Any] = {
  'font.family': 'DejaVu Sans',
  'font.size': 8,
  'axes.titlesize': 9,
  'axes.titleweight': 'bold',
  'axes.titlelocation': 'left',
  'axes.spines.top': False,
  'axes.spines.right': False,
  'axes.edgecolor': '#555b66',
  'axes.linewidth': 0.8,
  'axes.axisbelow': True,
  'axes.grid': True,
  'grid.color': '#e6e8ec',
  'grid.linewidth': 0.6,
  'xtick.color': '#555b66',
  'ytick.color': '#555b66',
  'legend.frameon': False,
  'legend.fontsize': 7.5,
  'lines.linewidth': 1.6,
  'figure.dpi': 100,
  'savefig.dpi': 200,
  'svg.hashsalt': 'iqa_jax',
}
BLUE, ORANGE, GREEN, GREY = '#0072b2', '#d55e00', '#009e73', '#868c97'
_SINGLE, _SQUARE, _WIDE = (3.6, 2.8), (3.6, 3.5), (7.2, 2.9)
_GRID = np.linspace(0, 1, 201)
_UNIT: dict[str, Any] = {
  'xlim': (-0.01, 1.01),
  'ylim': (-0.01, 1.01),
  'aspect': 'equal',
}


class Drawn(NamedTuple):
  """A figure and what its reader must know."""

  figure: Figure
  title: str
  caption: str


def draw(
  result: Mapping[str, Any],
  tables: Mapping[str, Mapping[str, np.ndarray]],
  history: Sequence[Mapping[str, Any]] = (),
  *,
  resamples: int = 2000,
) -> dict[str, Drawn]:
  """Returns the figures of an evaluation, by file name.

  Figures that the images can't give (one class only) are left out.

  Args:
    result: what metrics.json holds.
    tables: the columns of every split in it.
    history: lines of history.jsonl.
    resamples: of the bands.
  """
  split = main_split(tables)
  columns, measured = tables[split], result['splits'][split]
  threshold = result['operating_point']['threshold']
  known = (columns['quality'] >= 0) & np.isfinite(columns['p_calibrated'])
  c = {k: np.asarray(v)[known] for k, v in columns.items()}
  truth, p = c['quality'], c['p_calibrated']
  of = f'{len(truth)} images, {int(truth.sum())} Inadequate'
  if split in ('test', 'validation'):
    of = f'{split.capitalize()} split: {of}'
  drawn: dict[str, Drawn] = {}
  with matplotlib.rc_context(STYLE):
    if history:
      drawn['history'] = _history(history)
    if len(truth):
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
    if 0 < truth.sum() < len(truth):
      draws = resampling.Resamples(c['patient_id'], resamples)
      score = metrics.ranks(c)
      bands = resampling.roc_band(truth, score, draws, _GRID)
      called = c['verdict'] == labels.INADEQUATE
      other = None
      if 'p_compared' in c:
        other = result['files']['compare'], c['p_compared']
      drawn['roc'] = _roc(truth, score, called, bands[0], measured, of, other)
      drawn['precision_recall'] = _precision_recall(
        truth, score, called, bands[1], measured, of, other
      )
      drawn['calibration'] = _calibration(
        truth, c['p_inadequate'], p, c['patient_id'], result, of
      )
    if len(truth):
      drawn['scores'] = _scores(truth, p, result, of)
      if len(truth) > 1 and 'n_folds' not in result:
        drawn['coverage'] = _coverage(truth, p, threshold, measured, of)
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
  undated: dict[str, dict[str, Any]] = {
    'svg': {'Date': None},
    'png': {},
  }
  with matplotlib.rc_context(STYLE):
    for name, (figure, _, _) in drawn.items():
      # Laid out once, not once a format.
      figure.draw_without_rendering()
      figure.set_layout_engine('none')
      for kind, metadata in undated.items():
        figure.savefig(folder / f'{name}.{kind}', metadata=metadata)


def _figure(size, columns: int = 1, **options):
  figure = Figure(figsize=size, layout='constrained')
  return figure, figure.subplots(1, columns, **options)


def _history(history) -> Drawn:
  epoch = [h['epoch'] for h in history]
  contents = {
    'Loss': (
      ('train_loss', 'training', GREY),
      ('validation_loss', 'validation', BLUE),
    ),
    'Accuracy': (
      ('train_accuracy', 'training', GREY),
      ('validation_accuracy', 'validation', BLUE),
    ),
    'Verdict on validation': (
      ('validation_auc', 'ROC AUC', BLUE),
      ('validation_balanced_accuracy', 'balanced accuracy', GREEN),
    ),
  }
  # Runs of an older version have no accuracy, or not from the start.
  shown = {
    title: lines
    for title, lines in contents.items()
    if any(h.get(key) is not None for h in history for key, *_ in lines)
  }
  figure, (panels,) = _figure(_WIDE, max(len(shown), 1), squeeze=False)
  best = [h['epoch'] for h in history if h.get('best')]
  phases = [
    (a['epoch'] + b['epoch']) / 2
    for a, b in itertools.pairwise(history)
    if a['phase'] != b['phase']
  ]
  for axes, (title, lines) in zip(panels, shown.items(), strict=False):
    for key, label, color in lines:
      values = [np.nan if h.get(key) is None else h[key] for h in history]
      axes.plot(
        epoch,
        values,
        label=label,
        color=color,
        # A line needs two epochs to be seen.
        marker='o' if len(history) == 1 else None,
      )
    for at in phases:
      axes.axvline(at, color=GREY, linewidth=0.8, linestyle=':')
    if best:
      axes.axvline(
        best[-1],
        color=ORANGE,
        linewidth=0.9,
        linestyle='--',
        label=f'kept: epoch {best[-1]}' if axes is panels[0] else None,
      )
    axes.set(title=title, xlabel='epoch')
    axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    axes.margins(x=0.02)
    # Below, where no line can be.
    axes.legend(loc='upper center', bbox_to_anchor=(0.5, -0.2), ncols=2)
    if title == 'Loss':
      axes.set_ylim(bottom=0)
    else:
      axes.set_ylim(min(axes.get_ylim()[0], 0.9), 1.005)
  return Drawn(
    figure,
    'Training',
    'By epoch: loss; accuracy (of the classes learnt, for criteria of the '
    'verdict; in training over the epoch as it went); ROC AUC and balanced '
    'accuracy of the verdict on validation (positive class: Inadequate). '
    'Dotted: a new training phase. Dashed: the epoch kept.',
  )


def _confusion(matrix, names, title, of) -> Drawn:
  counts = np.asarray(matrix)
  share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
  figure, axes = _figure((3.3, 2.9))
  axes.grid(False)
  axes.imshow(share, cmap='Blues', vmin=0, vmax=1)
  for i, row in enumerate(counts):
    for j, count in enumerate(row):
      axes.text(
        j,
        i,
        f'{count}\n{100 * share[i, j]:.1f} %',
        ha='center',
        va='center',
        color='white' if share[i, j] > 0.55 else '#222831',
        fontsize=9,
      )
  ticks = range(len(names))
  axes.set_xticks(ticks, names)
  axes.set_yticks(ticks, names, rotation=90, va='center')
  axes.tick_params(length=0)
  axes.spines[:].set_visible(False)
  axes.set(title=title, xlabel='called', ylabel='labelled')
  return Drawn(
    figure,
    f'Confusion matrix: {title.lower()}',
    f'{of}. Percentages are of the labelled class (row). Positive class: '
    'Inadequate.',
  )


def _roc(truth, score, called, band, measured, of, other) -> Drawn:
  from sklearn import metrics as sk

  fpr, tpr, _ = sk.roc_curve(truth, score)
  figure, axes = _figure(_SQUARE)
  axes.fill_between(_GRID, *band, color=BLUE, alpha=0.18, linewidth=0)
  axes.plot(fpr, tpr, color=BLUE, label=_told(measured, 'auc', 'AUC'))
  axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle=':')
  if other is not None:
    name, theirs = other
    fpr, tpr, _ = sk.roc_curve(truth, theirs)
    _compared(axes, fpr, tpr, name, 'AUC', sk.roc_auc_score(truth, theirs))
  _dot(axes, called[truth == 0].mean(), called[truth == 1].mean())
  axes.set(
    title='ROC',
    xlabel='1 - specificity (adequate called inadequate)',
    ylabel='sensitivity (inadequate found)',
    **_UNIT,
  )
  axes.legend(loc='lower right')
  return Drawn(
    figure,
    'ROC curve',
    f'{of}. Positive class: Inadequate. Band: pointwise 95 % by '
    'patient-clustered bootstrap. The operating point was chosen beforehand.',
  )


def _precision_recall(truth, score, called, band, measured, of, other) -> Drawn:
  from sklearn import metrics as sk

  precision, recall, _ = sk.precision_recall_curve(truth, score)
  figure, axes = _figure(_SQUARE)
  axes.fill_between(
    _GRID[1:], *band[:, 1:], color=BLUE, alpha=0.18, linewidth=0
  )
  axes.plot(
    recall[:-1],
    precision[:-1],
    color=BLUE,
    label=_told(measured, 'average_precision', 'AP'),
  )
  axes.axhline(
    truth.mean(),
    color=GREY,
    linewidth=0.8,
    linestyle=':',
    label=f'prevalence {truth.mean():.3f}',
  )
  if other is not None:
    name, theirs = other
    precision, recall, _ = sk.precision_recall_curve(truth, theirs)
    value = sk.average_precision_score(truth, theirs)
    _compared(axes, recall[:-1], precision[:-1], name, 'AP', value)
  if called.any():
    _dot(axes, called[truth == 1].mean(), truth[called].mean())
  axes.set(
    title='Precision and recall',
    xlabel='recall (sensitivity to inadequate)',
    ylabel='precision of inadequate',
    **_UNIT,
  )
  axes.legend(loc='lower left')
  return Drawn(
    figure,
    'Precision-recall curve',
    f'{of}. Positive class: Inadequate. Band: pointwise 95 % by '
    'patient-clustered bootstrap.',
  )


def _calibration(truth, before, after, patient, result, of) -> Drawn:
  method = result.get('calibration', {}).get('method', 'none')
  given = "by each fold's calibration" if 'n_folds' in result else 'as given'
  figure = Figure(figsize=(3.6, 4.1), layout='constrained')
  axes, below = figure.subplots(
    2, 1, sharex=True, gridspec_kw={'height_ratios': [3.2, 1]}
  )
  axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle=':')
  if method != 'none':
    x, y, _ = _bins(truth, before, patient)
    axes.plot(x, y, 'D', color=GREY, markersize=3, label='uncalibrated')
  x, y, spread = _bins(truth, after, patient)
  axes.errorbar(
    x,
    y,
    spread,
    fmt='o',
    color=BLUE,
    markersize=4,
    elinewidth=1,
    label=f'after {method}' if method != 'none' else given,
  )
  axes.set(
    title='Calibration',
    ylabel='share labelled inadequate',
    xlim=(-0.02, 1.02),
    ylim=(-0.02, 1.02),
  )
  # Bins of one image lie at the top, whatever its probability.
  axes.legend(loc='upper center', bbox_to_anchor=(0.5, -0.02), ncols=2)
  edges = np.linspace(0, 1, metrics.BINS + 1)
  below.hist(after, edges, color=BLUE, alpha=0.75)
  below.set(
    xlabel='probability of inadequate', ylabel='images', yscale='symlog'
  )
  below.set_ylim(bottom=0)
  return Drawn(
    figure,
    'Calibration',
    f'{of}. Share of Inadequate labels by predicted probability of Inadequate, '
    f'in {metrics.BINS} bins of equal width (95 % intervals by patients); '
    'below, the images in each bin.',
  )


def _bins(truth, p, patient):
  which = metrics.bin_of(p)
  rows = []
  for i in np.unique(which):
    inside = which == i
    share, low, high = intervals.proportion(truth[inside] == 1, patient[inside])
    rows.append((p[inside].mean(), share, share - low, high - share))
  x, y, down, up = np.array(rows).T
  return x, y, np.stack([down, up])


def _scores(truth, p, result, of) -> Drawn:
  figure, axes = _figure((4.4, 2.8))
  edges = np.linspace(0, 1, 41)
  for value, color in ((0, BLUE), (1, ORANGE)):
    axes.hist(
      p[truth == value],
      edges,
      color=color,
      alpha=0.45,
      histtype='stepfilled',
      edgecolor=color,
      linewidth=1.1,
      label=f'labelled {labels.QUALITY[value]} ({(truth == value).sum()})',
    )
  _mark(axes, result)
  axes.set(
    title='Scores by class',
    xlabel='probability of inadequate',
    ylabel='images',
    yscale='symlog',
    xlim=(0, 1),
  )
  axes.set_ylim(bottom=0)
  axes.margins(y=0.25)
  axes.legend(loc='upper center', ncols=2)
  top = axes.get_ylim()[1]
  axes.set_ylim(0, top * 4)
  return Drawn(
    figure,
    'Score histogram',
    f'{of}. Line: operating point. Grey, where there is any: sent to a person. '
    'Counts on a logarithmic axis.',
  )


def _by_criterion(c, groups, result, of) -> Drawn:
  criteria = np.stack([c[name] for name in labels.CRITERIA], axis=1)
  failing = (criteria == 1).sum(axis=1)
  members = {}
  for i, name in enumerate(labels.CRITERIA):
    members[f'{name} alone'] = (failing == 1) & (criteria[:, i] == 1)
  members['several'] = failing > 1
  members['none'] = (criteria == 0).all(axis=1)
  rows = [g for g in groups if members[g['group']].any()]
  figure = Figure(figsize=(4.4, 0.55 * len(rows) + 0.9), layout='constrained')
  axes = figure.subplots(len(rows), 1, sharex=True, squeeze=False)[:, 0]
  edges = np.linspace(0, 1, 41)
  for panel, group in zip(axes, rows, strict=True):
    inside = members[group['group']]
    color = BLUE if group['group'] == 'none' else ORANGE
    counts, _ = np.histogram(c['p_calibrated'][inside], edges)
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
    _mark(panel, result)
  axes[0].set_title('Scores by failing criterion')
  axes[-1].set_xlabel('probability of inadequate')
  return Drawn(
    figure,
    'Scores by criterion',
    f'{of}. Each row scaled to its own maximum. Line: operating point. Grey: '
    'sent to a person.',
  )


def _mark(axes, result) -> None:
  if 'n_folds' in result:
    return
  low, high = result.get('uncertain_band') or (0, 0)
  if high > low:
    axes.axvspan(low, high, color=GREY, alpha=0.2, linewidth=0)
  axes.axvline(
    result['operating_point']['threshold'], color='#222831', linewidth=1
  )


def _coverage(truth, p, threshold, measured, of) -> Drawn:
  share, accuracy = operating_points.coverage(truth, p, threshold)
  figure, axes = _figure(_SINGLE)
  # The first few images alone say nothing.
  enough = share * len(truth) >= min(20, len(truth))
  axes.plot(100 * share[enough], 100 * accuracy[enough], color=BLUE)
  selective = measured.get('selective')
  if selective and selective['share']['value']:
    decided = selective['accuracy_decided']
    if decided['value'] is not None:
      _dot(
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


def _groups(found, of) -> Drawn:
  rows = [g for g in found['groups'] if g['n']]
  shown = (('sensitivity', ORANGE), ('specificity', BLUE))
  figure = Figure(figsize=(7.2, 0.24 * len(rows) + 1.0), layout='constrained')
  panels = figure.subplots(1, 2, sharey=True)
  for axes, (name, color) in zip(panels, shown, strict=True):
    overall = found['overall'][name]['value']
    if overall is not None:
      axes.axvline(100 * overall, color=GREY, linewidth=0.9, linestyle='--')
    for y, group in enumerate(rows):
      measure = group[name]
      if measure['value'] is None:
        continue
      low, high = measure['low'], measure['high']
      weak = bool(measure['note'])
      axes.plot(
        [100 * low, 100 * high],
        [y, y],
        color=GREY if weak else color,
        linewidth=1.2,
      )
      axes.plot(
        100 * measure['value'],
        y,
        'o',
        color='white' if weak else color,
        markeredgecolor=GREY if weak else color,
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


def _dot(axes, x, y, label='operating point') -> None:
  style = {'color': ORANGE, 'markersize': 6, 'markeredgecolor': 'white'}
  axes.plot(x, y, 'o', label=label, **style)


def _compared(axes, x, y, name, title, value) -> None:
  name = name if len(name) < 33 else f'{name[:32]}…'
  style = {'color': GREEN, 'linewidth': 1.1, 'linestyle': '--'}
  axes.plot(x, y, label=f'{name}: {title} {value:.3f}', **style)


def _told(measured, name, title) -> str:
  m = measured['verdict']['metrics'][name]
  if m['low'] is None:
    return f'{title} {m["value"]:.3f}'
  return f'{title} {m["value"]:.3f} ({m["low"]:.3f}-{m["high"]:.3f})'
