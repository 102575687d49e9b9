"""The curves and tables of a set of verdicts, drawn on an axis.

What the report draws and what `iqa_jax.plot` draws. Inadequate is the positive
class in all of them. Blue is adequate, orange is inadequate (Okabe & Ito's
colours, told apart by the colour-blind).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
import numpy as np
from sklearn import metrics as sk

from iqa_jax import labels
from iqa_jax.aliases import Record
from iqa_jax.evaluation import intervals, metrics
from iqa_jax.evaluation.predictions import Predictions

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
DARK = '#222831'
GRID = np.linspace(0, 1, 201)  # where the bands of curves are given
_UNIT: Record = {
  'xlim': (-0.01, 1.01),
  'ylim': (-0.01, 1.01),
  'aspect': 'equal',
}
_BINS = np.linspace(0, 1, 41).tolist()  # of the scores' histogram


@dataclasses.dataclass(frozen=True)
class Display:
  """Something drawn, as scikit-learn's displays are.

  Attributes:
    ax_: the axis that it is drawn on.
  """

  ax_: Axes

  @property
  def figure_(self) -> Figure:
    """The figure that it is part of."""
    figure = self.ax_.get_figure(root=True)
    assert isinstance(figure, Figure)
    return figure


class Other(NamedTuple):
  """Another system on the same images, to be drawn beside.

  Attributes:
    name: of the system.
    score: float [n], what it ranks them by.
  """

  name: str
  score: np.ndarray


def curve(
  ax: Axes,
  kind: str,
  rows: Predictions,
  values: Mapping[str, Record],
  band: np.ndarray,
  other: Other | None = None,
) -> Display:
  """Draws the ROC or the precision-recall curve of judged photographs.

  Args:
    ax: where.
    kind: 'roc' or 'precision_recall'.
    rows: the photographs, of both classes.
    values: their metrics (assessment.verdict), for the label.
    band: float [2, 201], limits of the sensitivity, or the precision, on GRID.
    other: a second system.
  """
  drawn, truth = _CURVES[kind], rows.quality
  # Precision has no value where nothing is called.
  first = 0 if kind == 'roc' else 1
  limits = band[:, first:]
  ax.fill_between(GRID[first:], *limits, color=BLUE, alpha=0.18, linewidth=0)
  label = value_label(drawn.short, values[drawn.metric])
  ax.plot(*drawn.points(truth, rows.ranks), color=BLUE, label=label)
  chance: Record = {'color': GREY, 'linewidth': 0.8, 'linestyle': ':'}
  if kind == 'roc':
    ax.plot([0, 1], [0, 1], **chance)
  else:
    ax.axhline(truth.mean(), label=f'prevalence {truth.mean():.3f}', **chance)
  if other is not None:
    value = f'{drawn.short} {drawn.value(truth, other.score):.3f}'
    _compared(ax, drawn.points(truth, other.score), other, value)
  called = rows.verdict == labels.INADEQUATE
  found = called[truth == 1].mean()
  if kind == 'roc':
    dot(ax, called[truth == 0].mean(), found)
  elif called.any():
    dot(ax, found, truth[called].mean())
  ax.set(**drawn.words, **_UNIT)
  ax.legend(loc='lower right' if kind == 'roc' else 'lower left')
  return Display(ax)


def calibration(
  ax: Axes,
  truth: np.ndarray,
  p: np.ndarray,
  patient: np.ndarray,
  *,
  before: np.ndarray | None = None,
  label: str = '',
  below: Axes | None = None,
) -> Display:
  """Draws the share of class 1 by predicted probability, in bins.

  Args:
    ax: where.
    truth: int [n], 0 or 1.
    p: float [n], probability of class 1.
    patient: [n], for the bins' 95 % intervals.
    before: float [n], the uncalibrated probabilities.
    label: of the points.
    below: a second axis for the images in each bin.
  """
  ax.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle=':')
  if before is not None:
    x, y, _ = _bins(truth, before, patient)
    ax.plot(x, y, 'D', color=GREY, markersize=3, label='uncalibrated')
  x, y, spread = _bins(truth, p, patient)
  ax.errorbar(
    x, y, spread, fmt='o', color=BLUE, markersize=4, elinewidth=1, label=label
  )
  ax.set(
    title='Calibration',
    ylabel='share labelled inadequate',
    xlim=(-0.02, 1.02),
    ylim=(-0.02, 1.02),
  )
  if label:
    # Bins of one image lie at the top, whatever its probability.
    ax.legend(loc='upper center', bbox_to_anchor=(0.5, -0.02), ncols=2)
  if below is None:
    ax.set(xlabel='probability of inadequate')
    return Display(ax)
  edges = np.linspace(0, 1, metrics.BINS + 1)
  below.hist(p, edges.tolist(), color=BLUE, alpha=0.75)
  below.set(
    xlabel='probability of inadequate', ylabel='images', yscale='symlog'
  )
  below.set_ylim(bottom=0)
  return Display(ax)


def confusion(
  ax: Axes,
  matrix: Sequence[Sequence[int]] | np.ndarray,
  names: Sequence[str] = labels.QUALITY,
  title: str = 'Verdict',
) -> Display:
  """Draws counts [k, k] (row: label) and their shares of the row."""
  counts = np.asarray(matrix)
  share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
  ax.grid(False)
  ax.imshow(share, cmap='Blues', vmin=0, vmax=1)
  for i, row in enumerate(counts):
    for j, count in enumerate(row):
      ax.text(
        j,
        i,
        f'{count}\n{100 * share[i, j]:.1f} %',
        ha='center',
        va='center',
        color='white' if share[i, j] > 0.55 else DARK,
        fontsize=9,
      )
  ticks = range(len(names))
  ax.set_xticks(ticks, names)
  ax.set_yticks(ticks, names, rotation=90, va='center')
  ax.tick_params(length=0)
  ax.spines[:].set_visible(False)
  ax.set(title=title, xlabel='called', ylabel='labelled')
  return Display(ax)


def scores(
  ax: Axes,
  truth: np.ndarray,
  p: np.ndarray,
  *,
  threshold: float | None = None,
  band: Sequence[float] | None = None,
) -> Display:
  """Draws the histogram of probabilities of either class.

  Args:
    ax: where.
    truth: int [n], 0 or 1.
    p: float [n], probability of class 1.
    threshold: of the verdict: a line.
    band: [low, high], where a person is to look: grey.
  """
  for value, color in ((0, BLUE), (1, ORANGE)):
    ax.hist(
      p[truth == value],
      _BINS,
      color=color,
      alpha=0.45,
      histtype='stepfilled',
      edgecolor=color,
      linewidth=1.1,
      label=f'labelled {labels.QUALITY[value]} ({(truth == value).sum()})',
    )
  mark(ax, threshold, band)
  ax.set(
    title='Scores by class',
    xlabel='probability of inadequate',
    ylabel='images',
    yscale='symlog',
    xlim=(0, 1),
  )
  ax.set_ylim(bottom=0)
  ax.margins(y=0.25)
  ax.legend(loc='upper center', ncols=2)
  top = ax.get_ylim()[1]
  ax.set_ylim(0, top * 4)
  return Display(ax)


def mark(
  ax: Axes, threshold: float | None, band: Sequence[float] | None
) -> None:
  """Draws the operating point and the uncertain band into scores."""
  low, high = band or (0, 0)
  if high > low:
    ax.axvspan(low, high, color=GREY, alpha=0.2, linewidth=0)
  if threshold is not None:
    ax.axvline(threshold, color=DARK, linewidth=1)


def dot(ax: Axes, x: float, y: float, label: str = 'operating point') -> None:
  """Draws where the verdicts are."""
  ax.plot(
    x, y, 'o', label=label, color=ORANGE, markersize=6, markeredgecolor='white'
  )


def value_label(title: str, measure: Record) -> str:
  """Returns 'AUC 0.975 (0.972-0.977)' of an entry of assessment."""
  if measure['low'] is None:
    return f'{title} {measure["value"]:.3f}'
  return (
    f'{title} {measure["value"]:.3f} '
    f'({measure["low"]:.3f}-{measure["high"]:.3f})'
  )


def _bins(
  truth: np.ndarray, p: np.ndarray, patient: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns mean p, share of class 1 and its interval's arms [2], by bin."""
  which = metrics.bin_of(p)
  rows = []
  for i in np.unique(which):
    inside = which == i
    share, low, high = intervals.proportion(truth[inside] == 1, patient[inside])
    rows.append((p[inside].mean(), share, share - low, high - share))
  x, y, down, up = np.array(rows).T
  return x, y, np.stack([down, up])


_Points = tuple[np.ndarray, np.ndarray]


def _roc_points(truth: np.ndarray, score: np.ndarray) -> _Points:
  fpr, tpr, _ = sk.roc_curve(truth, score)
  return fpr, tpr


def _pr_points(truth: np.ndarray, score: np.ndarray) -> _Points:
  precision, recall, _ = sk.precision_recall_curve(truth, score)
  return recall[:-1], precision[:-1]


class _Curve(NamedTuple):
  """What is drawn as a curve.

  Attributes:
    points: from truth and scores to the curve.
    value: the area under it.
    short: the area's name.
    metric: its key among the metrics.
    words: title and labels of the axes.
  """

  points: Callable[[np.ndarray, np.ndarray], _Points]
  value: Callable[[np.ndarray, np.ndarray], float]
  short: str
  metric: str
  words: Record


_CURVES = {
  'roc': _Curve(
    _roc_points,
    sk.roc_auc_score,
    'AUC',
    'auc',
    {
      'title': 'ROC',
      'xlabel': '1 - specificity (adequate called inadequate)',
      'ylabel': 'sensitivity (inadequate found)',
    },
  ),
  'precision_recall': _Curve(
    _pr_points,
    sk.average_precision_score,
    'AP',
    'average_precision',
    {
      'title': 'Precision and recall',
      'xlabel': 'recall (sensitivity to inadequate)',
      'ylabel': 'precision of inadequate',
    },
  ),
}


def _compared(ax: Axes, points: _Points, other: Other, value: str) -> None:
  name = other.name if len(other.name) < 33 else f'{other.name[:32]}…'
  ax.plot(
    *points,
    label=f'{name}: {value}',
    color=GREEN,
    linewidth=1.1,
    linestyle='--',
  )
