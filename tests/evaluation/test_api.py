"""What a notebook calls: measures and figures of labels beside verdicts."""

import subprocess
import sys

from matplotlib.figure import Figure
import numpy as np
import pytest
from sklearn import metrics as sk

from iqa_jax import errors, plot
from iqa_jax.evaluation import api, intervals
from iqa_jax.judging.verdict import Verdict

RNG = np.random.default_rng(0)
TRUTH = RNG.integers(0, 2, 80)
P = np.clip(0.3 + 0.4 * TRUTH + RNG.normal(0, 0.25, 80), 0.01, 0.99)
PATIENT = np.arange(80) // 2


def verdicts(threshold=0.6):
  return [
    Verdict(
      f'{i}.jpg',
      verdict='inadequate' if p >= threshold else 'adequate',
      p_inadequate=p,
      # Ranks as p does not: a calibration may make ties.
      log_odds=-o,
      threshold=threshold,
    )
    for i, (p, o) in enumerate(zip(P, P, strict=True))
  ]


def test_measures_are_those_of_scikit_learn_with_clustered_intervals():
  found = api.evaluate(TRUTH, P, patient=PATIENT, resamples=50)
  auc = found['auc']
  assert auc.value == pytest.approx(sk.roc_auc_score(TRUTH, P))
  assert (auc.low, auc.high) == intervals.auc(TRUTH, P, PATIENT)[1:]
  assert found['sensitivity'].value == pytest.approx(
    sk.recall_score(TRUTH, P >= 0.5)
  )
  assert found.confusion == sk.confusion_matrix(TRUTH, P >= 0.5).tolist()
  assert (found.n, found.n_patients) == (80, 40)
  assert str(auc) in str(found) and str(auc) in found._repr_html_()
  assert found.to_dict()['metrics']['auc'] == auc.to_dict()


def test_verdicts_have_their_own_threshold_and_rank_by_log_odds():
  found = api.evaluate(TRUTH, verdicts(), patient=PATIENT, resamples=50)
  assert found.confusion == sk.confusion_matrix(TRUTH, P >= 0.6).tolist()
  assert found['auc'].value == pytest.approx(1 - sk.roc_auc_score(TRUTH, P))


def test_what_failed_or_has_no_label_is_left_out_and_counted():
  said = verdicts()
  said[3] = Verdict('3.jpg', 'truncated', 'ends early')
  said[4] = Verdict('4.jpg', 'not_fundus')
  truth = [*TRUTH[:7].tolist(), None, '', -1, *TRUTH[10:].tolist()]
  found = api.evaluate(truth, iter(said), resamples=20)
  assert (found.n, found.n_failed, found.n_unlabelled) == (75, 2, 3)
  assert '2 without a verdict' in str(found)


@pytest.mark.parametrize(
  'labels, usable, expected',
  [
    ([0, 1, 1, -1], None, [0, 1, 1, -1]),
    ([True, False, np.True_], None, [1, 0, 1]),
    (['adequate', 'Inadequate', None], None, [0, 1, -1]),
    ([0, 1, 2], None, [0, 1, 1]),
    ([0, 1, 1], 'exclude', [0, -1, -1]),
    (['good', 'usable', 'reject'], 'adequate', [0, 0, 1]),
    (np.array([0.0, 1.0, np.nan]), None, [0, 1, -1]),
  ],
)
def test_labels_as_people_have_them(labels, usable, expected):
  assert api.qualities(labels, usable).tolist() == expected


@pytest.mark.parametrize(
  'call, message',
  [
    (lambda: api.evaluate([0, 3], [0.1, 0.2]), 'label 3 is none'),
    (lambda: api.evaluate([0, 1], [0.1]), '2 labels, 1 verdicts'),
    (lambda: api.evaluate([0, 1], [0.1, 1.5]), '1.5 is no probability'),
    (lambda: api.qualities(['good', 'adequate']), 'mix grades'),
    (lambda: api.qualities(['adequate'], 'exclude'), 'usable'),
    (lambda: plot.roc([1, 1], [0.1, 0.2]), 'one class'),
  ],
)
def test_mistakes_are_named(call, message):
  with pytest.raises(errors.InvalidValue, match=message):
    call()


def test_figures_are_drawn_on_the_axis_that_is_given():
  axes = Figure().subplots(1, 5)
  for name, ax in zip(
    ('roc', 'pr', 'calibration', 'confusion', 'scores'), axes, strict=True
  ):
    draw = getattr(plot, name)
    shown = draw(TRUTH, P, patient=PATIENT, ax=ax, resamples=30)
    assert shown.ax_ is ax and shown.figure_ is ax.figure
  x, y = axes[0].lines[0].get_data()
  assert np.trapezoid(y, x) == pytest.approx(sk.roc_auc_score(TRUTH, P))
  auc = api.evaluate(TRUTH, P, patient=PATIENT, resamples=30)['auc']
  legend = axes[0].get_legend().get_texts()[0].get_text()
  assert legend == f'AUC {auc.value:.3f} ({auc.low:.3f}-{auc.high:.3f})'
  counts = [t.get_text().split('\n')[0] for t in axes[3].texts]
  expected = sk.confusion_matrix(TRUTH, P >= 0.5).ravel()
  assert counts == [str(n) for n in expected]
  assert axes[4].lines[0].get_xdata()[0] == 0.5


def test_scores_mark_the_verdicts_own_threshold():
  ax = Figure().subplots()
  plot.scores(TRUTH, verdicts(0.6), ax=ax)
  assert ax.lines[0].get_xdata()[0] == 0.6


def test_importing_plot_alone_imports_nothing_heavy():
  code = (
    'import sys, iqa_jax.plot; '
    'print({"matplotlib", "sklearn", "jax", "tensorflow"} & set(sys.modules))'
  )
  done = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=True
  )
  assert done.stdout.strip() == 'set()'
