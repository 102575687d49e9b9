"""Figures of verdicts beside labels, on any axis: `iqa.plot.roc(...)`.

Each function takes labels and verdicts as `iqa.evaluate` does, draws on `ax`
(None: a new figure) and returns an object with `ax_` and `figure_`, like
scikit-learn's displays. They draw the curves of the evaluation's report.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from matplotlib.axes import Axes
  from PIL.Image import Image

  from iqa_jax.evaluation.api import Scores
  from iqa_jax.evaluation.displays import Display
  from iqa_jax.evaluation.predictions import Predictions
  from iqa_jax.explain.explanation import Explanation

_SIZE = (3.6, 3.5)


def roc(
  labels: Iterable[Any],
  verdicts: Scores,
  *,
  patient: Iterable[Any] | None = None,
  ax: Axes | None = None,
  **options: Any,
) -> Display:
  """Draws the ROC curve with its AUC, band and operating point.

  Args:
    labels: see `iqa.evaluate`.
    verdicts: see there.
    patient: see there; band and interval are clustered by it.
    ax: where to draw; None: a new figure.
    **options: `usable`, `threshold` and `resamples`, see there.

  Raises:
    ValueError: one class only, or see `iqa.evaluate`.
  """
  from iqa_jax.evaluation import displays

  return _curve(
    displays.roc, 0, ('AUC', 'auc'), labels, verdicts, patient, ax, options
  )


def pr(
  labels: Iterable[Any],
  verdicts: Scores,
  *,
  patient: Iterable[Any] | None = None,
  ax: Axes | None = None,
  **options: Any,
) -> Display:
  """Draws precision over recall; arguments as of `roc`."""
  from iqa_jax.evaluation import displays

  return _curve(
    displays.precision_recall,
    1,
    ('AP', 'average_precision'),
    labels,
    verdicts,
    patient,
    ax,
    options,
  )


def calibration(
  labels: Iterable[Any],
  verdicts: Scores,
  *,
  patient: Iterable[Any] | None = None,
  ax: Axes | None = None,
  **options: Any,
) -> Display:
  """Draws the share of inadequate by predicted probability, as of `roc`."""
  from iqa_jax.evaluation import displays

  rows = _rows(labels, verdicts, patient, options)
  return displays.calibration(
    ax or _axis(), rows.quality, rows.p_calibrated, rows.patient_id
  )


def confusion(
  labels: Iterable[Any],
  verdicts: Scores,
  *,
  patient: Iterable[Any] | None = None,
  ax: Axes | None = None,
  **options: Any,
) -> Display:
  """Draws verdicts against labels, counts and shares, as of `roc`."""
  from iqa_jax.evaluation import displays, metrics

  rows = _rows(labels, verdicts, patient, options)
  matrix = metrics.confusion(rows.quality, rows.verdict)
  return displays.confusion(ax or _axis(), matrix)


def scores(
  labels: Iterable[Any],
  verdicts: Scores,
  *,
  patient: Iterable[Any] | None = None,
  ax: Axes | None = None,
  **options: Any,
) -> Display:
  """Draws the histogram of either class's probabilities, as of `roc`.

  The line is the threshold: that of the verdicts, or `threshold`.
  """
  from iqa_jax.evaluation import displays

  verdicts = list(verdicts)
  rows = _rows(labels, verdicts, patient, options)
  found = {getattr(one, 'threshold', None) for one in verdicts} - {None}
  at = options.get('threshold', 0.5)
  if verdicts and hasattr(verdicts[0], 'p_inadequate'):
    at = found.pop() if len(found) == 1 else None
  return displays.scores(
    ax or _axis(), rows.quality, rows.p_calibrated, threshold=at
  )


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
  draw: Any,
  which: int,
  named: tuple[str, str],
  labels: Iterable[Any],
  verdicts: Scores,
  patient: Iterable[Any] | None,
  ax: Axes | None,
  options: dict[str, Any],
) -> Display:
  """Draws a curve with its interval and band (`which` of roc_band's)."""
  from iqa_jax import errors
  from iqa_jax.evaluation import api, displays, resampling

  resamples = options.pop('resamples', 2000)
  rows = _rows(labels, verdicts, patient, options)
  if not 0 < rows.quality.sum() < len(rows):
    raise errors.InvalidValue(
      f'{len(rows)} photographs of one class have no curve'
    )
  measured = api.measure(rows, resamples=resamples)['metrics'][named[1]]
  bands = resampling.roc_band(
    rows.quality,
    rows.ranks,
    resampling.Resamples(rows.patient_id, resamples),
    displays.GRID,
  )
  return draw(
    ax or _axis(),
    rows.quality,
    rows.ranks,
    called=rows.verdict == 1,
    band=bands[which],
    label=displays.value_label(named[0], measured),
  )


def _rows(
  labels: Iterable[Any],
  verdicts: Scores,
  patient: Iterable[Any] | None,
  options: dict[str, Any],
) -> Predictions:
  from iqa_jax.evaluation import api

  given = {k: v for k, v in options.items() if k != 'resamples'}
  return api.collect(labels, verdicts, patient=patient, **given)[0]


def _axis() -> Axes:
  """Returns the axis of a new figure in the report's style."""
  import matplotlib as mpl
  from matplotlib import pyplot as plt

  from iqa_jax.evaluation import displays

  with mpl.rc_context(displays.STYLE):
    return plt.subplots(figsize=_SIZE, layout='constrained')[1]
