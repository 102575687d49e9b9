"""Figures of verdicts beside labels, on any axis: `iqa.plot.roc(...)`.

Each function takes labels and verdicts as `iqa.evaluate` does, draws on `ax`
(None: a new figure) and returns an object with `ax_` and `figure_`, like
scikit-learn's displays. They draw the curves of the evaluation's report.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict, Unpack

from iqa_jax.aliases import Record

if TYPE_CHECKING:
  from collections.abc import Iterable

  from matplotlib.axes import Axes
  from PIL.Image import Image

  from iqa_jax.evaluation.api import Scores
  from iqa_jax.evaluation.displays import Display
  from iqa_jax.evaluation.predictions import Predictions
  from iqa_jax.explain.explanation import Explanation

_SIZE = (3.6, 3.5)


class Options(TypedDict, total=False):
  """What every figure of verdicts takes by name.

  Attributes:
    patient: see `iqa.evaluate`; bands and intervals are clustered by it.
    ax: where to draw; None: a new figure.
    usable: see `iqa.evaluate`, as the rest.
    threshold: the operating point.
    resamples: of the intervals.
  """

  patient: Iterable[object] | None
  ax: Axes | None
  usable: str
  threshold: float
  resamples: int


def roc(
  labels: Iterable[object], verdicts: Scores, **options: Unpack[Options]
) -> Display:
  """Draws the ROC curve with its AUC, band and operating point.

  Args:
    labels: see `iqa.evaluate`.
    verdicts: see there.
    **options: see `Options`: `patient`, `ax`, `usable`, `threshold` and
      `resamples`.

  Raises:
    ValueError: one class only, or see `iqa.evaluate`.
  """
  return _curve('roc', labels, verdicts, options)


def pr(
  labels: Iterable[object], verdicts: Scores, **options: Unpack[Options]
) -> Display:
  """Draws precision over recall; arguments as of `roc`."""
  return _curve('precision_recall', labels, verdicts, options)


def calibration(
  labels: Iterable[object], verdicts: Scores, **options: Unpack[Options]
) -> Display:
  """Draws the share of inadequate by predicted probability, as of `roc`."""
  from iqa_jax.evaluation import displays

  rows, ax = _rows(labels, verdicts, options)
  return displays.calibration(
    ax, rows.quality, rows.p_calibrated, rows.patient_id
  )


def confusion(
  labels: Iterable[object], verdicts: Scores, **options: Unpack[Options]
) -> Display:
  """Draws verdicts against labels, counts and shares, as of `roc`."""
  from iqa_jax.evaluation import displays, metrics

  rows, ax = _rows(labels, verdicts, options)
  return displays.confusion(ax, metrics.confusion(rows.quality, rows.verdict))


def scores(
  labels: Iterable[object], verdicts: Scores, **options: Unpack[Options]
) -> Display:
  """Draws the histogram of either class's probabilities, as of `roc`.

  The line is the threshold: that of the verdicts, or `threshold`.
  """
  from iqa_jax.evaluation import displays

  verdicts = list(verdicts)
  rows, ax = _rows(labels, verdicts, options)
  at: float | None = options.get('threshold', 0.5)
  if verdicts and hasattr(verdicts[0], 'p_inadequate'):
    found = {getattr(one, 'threshold', None) for one in verdicts} - {None}
    at = found.pop() if len(found) == 1 else None
  return displays.scores(ax, rows.quality, rows.p_calibrated, threshold=at)


def overlay(explanation: Explanation, *, ax: Axes | None = None) -> Axes:
  """Draws a photograph with its evidence laid over; returns the axis.

  Args:
    explanation: of `Grader.explain`.
    ax: where to draw; None: a new figure.
  """
  return _picture(explanation.overlay(), ax)


def panel(explanation: Explanation, *, ax: Axes | None = None) -> Axes:
  """Draws photograph and evidence beside each other, with words, as `overlay`.

  A large figure shows it best: it is a picture of its own.
  """
  return _picture(explanation.panel(), ax)


def _picture(picture: Image, ax: Axes | None) -> Axes:
  ax = ax or _axis()
  ax.imshow(picture)
  ax.set_axis_off()
  return ax


def _curve(
  kind: str,
  labels: Iterable[object],
  verdicts: Scores,
  options: Options,
) -> Display:
  """Draws a curve of displays.py with its interval and band."""
  from iqa_jax import errors
  from iqa_jax.evaluation import api, displays, resampling

  resamples = options.get('resamples', 2000)
  rows, ax = _rows(labels, verdicts, options)
  if not 0 < rows.quality.sum() < len(rows):
    raise errors.InvalidValue(
      f'{len(rows)} photographs of one class have no curve'
    )
  measured = api.measure(rows, resamples=resamples)['metrics']
  bands = resampling.roc_band(
    rows.quality,
    rows.ranks,
    resampling.Resamples(rows.patient_id, resamples),
    displays.GRID,
  )
  band = bands[0] if kind == 'roc' else bands[1]
  return displays.curve(ax, kind, rows, measured, band)


def _rows(
  labels: Iterable[object], verdicts: Scores, options: Options
) -> tuple[Predictions, Axes]:
  """Returns what is drawn, and where."""
  from iqa_jax.evaluation import api

  given: Record = dict(options)
  ax = given.pop('ax', None) or _axis()
  given.pop('resamples', None)
  rows = api.collect(labels, verdicts, **given)[0]
  return rows, ax


def _axis() -> Axes:
  """Returns the axis of a new figure in the report's style."""
  import matplotlib as mpl
  from matplotlib import pyplot as plt

  from iqa_jax.evaluation import displays

  with mpl.rc_context(displays.STYLE):
    return plt.subplots(figsize=_SIZE, layout='constrained')[1]
