"""How training went, epoch by epoch."""

from __future__ import annotations

from collections.abc import Sequence
import itertools

from matplotlib.axes import Axes
from matplotlib.figure import Figure
import numpy as np

from iqa_jax.aliases import Record
from iqa_jax.evaluation.displays import BLUE, GREEN, GREY, ORANGE

_PANELS = {
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


def draw(history: Sequence[Record]) -> Figure:
  """Draws loss, accuracy and verdict by epoch, a panel each.

  Args:
    history: lines of history.jsonl. What none has gets no panel: runs of an
      older version have no accuracy, or not from the start.
  """
  shown = {
    title: lines
    for title, lines in _PANELS.items()
    if any(h.get(key) is not None for h in history for key, *_ in lines)
  }
  figure = Figure(figsize=(7.2, 2.9), layout='constrained')
  panels = figure.subplots(1, max(len(shown), 1), squeeze=False)[0]
  for axes, (title, lines) in zip(panels, shown.items(), strict=False):
    for key, label, color in lines:
      axes.plot(
        [h['epoch'] for h in history],
        [np.nan if h.get(key) is None else h[key] for h in history],
        label=label,
        color=color,
        # A line needs two epochs to be seen.
        marker='o' if len(history) == 1 else None,
      )
    _mark(axes, history, named=axes is panels[0])
    axes.set(title=title, xlabel='epoch')
    axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    axes.margins(x=0.02)
    # Below, where no line can be.
    axes.legend(loc='upper center', bbox_to_anchor=(0.5, -0.2), ncols=2)
    if title == 'Loss':
      axes.set_ylim(bottom=0)
    else:
      axes.set_ylim(min(axes.get_ylim()[0], 0.9), 1.005)
  return figure


def _mark(axes: Axes, history: Sequence[Record], *, named: bool) -> None:
  """Draws where phases begin and which epoch was kept."""
  for before, after in itertools.pairwise(history):
    if before['phase'] != after['phase']:
      at = (before['epoch'] + after['epoch']) / 2
      axes.axvline(at, color=GREY, linewidth=0.8, linestyle=':')
  best = [h['epoch'] for h in history if h.get('best')]
  if best:
    axes.axvline(
      best[-1],
      color=ORANGE,
      linewidth=0.9,
      linestyle='--',
      label=f'kept: epoch {best[-1]}' if named else None,
    )
