"""Losses and probabilities of the tasks, against PyTorch-style definitions."""

import numpy as np
import pytest
from scipy import special
from sklearn.utils import class_weight

from iqa_jax import labels, tasks
from iqa_jax.models import heads

RNG = np.random.default_rng(0)


def test_quality_margin_is_the_difference_of_the_logits():
  logits = RNG.normal(size=(5, 2)).astype(np.float32)
  task = tasks.Task('quality')
  np.testing.assert_allclose(
    task.margin(logits), logits[:, 1] - logits[:, 0], rtol=1e-6
  )
  np.testing.assert_allclose(
    task.p_inadequate(logits), special.softmax(logits, 1)[:, 1], rtol=1e-5
  )


@pytest.mark.parametrize(
  ('usable', 'columns', 'against'),
  [
    ('inadequate', [1, 2], [0]),
    ('adequate', [2], [0, 1]),
    ('exclude', [2], [0]),
  ],
)
def test_grade_counts_usable_as_told(usable, columns, against):
  logits = RNG.normal(size=(7, 3)).astype(np.float32)
  p = tasks.Task('grade', usable=usable).p_inadequate(logits)
  each = special.softmax(logits, 1)
  expected = each[:, columns].sum(1) / each[:, columns + against].sum(1)
  np.testing.assert_allclose(p, expected, rtol=1e-5)


def test_criteria_verdict_is_the_noisy_or_even_far_out():
  logits = np.array(
    [[-2, 0.5, 1, -3], [-40, -40, -40, -40], [60, 60, 60, 60]], np.float32
  )
  task = tasks.Task('criteria')
  expected = 1 - np.prod(1 - special.expit(logits.astype(np.float64)), axis=1)
  np.testing.assert_allclose(task.p_inadequate(logits), expected, atol=2e-6)
  assert np.isfinite(np.asarray(task.scores(logits))).all()


@pytest.mark.parametrize('name', ['quality', 'grade', 'criteria'])
@pytest.mark.parametrize('usable', labels.USABLE)
def test_log_odds_are_the_margin(name, usable):
  task = tasks.Task(name, usable=usable)
  logits = 3 * RNG.normal(size=(40, task.num_outputs)).astype(np.float32)
  found = task.log_odds(logits)
  assert found.dtype == np.float64
  np.testing.assert_allclose(found, task.margin(logits), rtol=1e-4, atol=1e-4)
  logits[0, 0], logits[1, 1] = np.inf, np.nan
  assert np.isnan(task.log_odds(logits)[:2]).all()


def test_class_weights_act_as_in_a_weighted_mean():
  """sum(w * ce) / sum(w), the definition of PyTorch's CrossEntropyLoss."""
  logits = RNG.normal(size=(6, 2)).astype(np.float32)
  quality = np.array([0, 1, 1, 0, -1, 0], np.int32)
  task = tasks.Task('quality', class_weights=(0.6, 3.0))
  loss, weight = task.loss(logits, {'quality': quality})
  known = quality >= 0
  w = np.array([0.6, 3.0])[quality[known]]
  log_p = special.log_softmax(logits[known], 1)
  ce = -log_p[np.arange(known.sum()), quality[known]]
  np.testing.assert_allclose(
    (loss * weight).sum() / weight.sum(), (w * ce).sum() / w.sum(), rtol=1e-5
  )
  assert weight[4] == 0


def test_focal_loss_is_cross_entropy_times_its_factor():
  logits = RNG.normal(size=(6, 2)).astype(np.float32)
  batch = {'quality': np.array([0, 1, 1, 0, 1, 0], np.int32)}
  plain, _ = tasks.Task('quality').loss(logits, batch)
  focal, _ = tasks.Task('quality', loss_name='focal').loss(logits, batch)
  p_true = np.exp(-np.asarray(plain))
  np.testing.assert_allclose(focal, plain * (1 - p_true) ** 2, rtol=1e-5)


def test_unlabelled_criteria_do_not_count():
  """EyeQ's examples (no criteria) are judged by the verdict alone."""
  task = tasks.Task('criteria')
  logits = RNG.normal(size=(2, 4)).astype(np.float32)
  batch = {
    'criteria': np.array([[-1] * 4, [-1] * 4], np.int32),
    'quality': np.array([1, -1], np.int32),
  }
  loss, weight = task.loss(logits, batch)
  p = np.asarray(task.p_inadequate(logits))
  np.testing.assert_allclose(loss[0], -np.log(p[0]), rtol=1e-4)
  np.testing.assert_array_equal(weight, [1, 0])


def test_right_is_what_argmax_and_the_verdict_say():
  logits = RNG.normal(size=(8, 3)).astype(np.float32)
  grade = np.array([0, 1, 2, -1, 0, 1, 2, -1], np.int32)
  for name, k in (('quality', 2), ('grade', 3)):
    label = np.minimum(grade, k - 1)
    known, right = tasks.Task(name).right(logits[:, :k], {name: label})
    np.testing.assert_array_equal(known, label >= 0)
    np.testing.assert_array_equal(
      right, (logits[:, :k].argmax(1) == label) & (label >= 0)
    )
  task = tasks.Task('criteria')
  logits = RNG.normal(-1.5, 1, size=(40, 4)).astype(np.float32)
  quality = RNG.integers(-1, 2, 40)
  known, right = task.right(logits, {'quality': quality})
  called = np.asarray(task.p_inadequate(logits)) >= 0.5
  assert 0 < called.sum() < 40
  np.testing.assert_array_equal(known, quality >= 0)
  np.testing.assert_array_equal(right, known & (called == quality))


def test_balanced_weights_are_scikit_learns():
  quality = np.array([0] * 88 + [1] * 12 + [-1] * 5)
  expected = class_weight.compute_class_weight(
    'balanced', classes=np.array([0, 1]), y=quality[quality >= 0]
  )
  np.testing.assert_allclose(
    tasks.Task('quality').balanced_weights({'quality': quality}), expected
  )
  with pytest.raises(ValueError, match='reject'):
    tasks.Task('grade').balanced_weights({'grade': np.array([0, 1, 1])})


@pytest.mark.parametrize('name', ['quality', 'grade', 'criteria'])
def test_the_predicted_target_speaks_for_the_verdict(name):
  """The score that is explained rises with what the verdict says."""
  task = tasks.Task(name)
  logits = RNG.normal(size=(40, task.num_outputs)).astype(np.float32)
  scores = np.asarray(task.scores(logits))
  p = np.asarray(task.p_inadequate(logits))
  for threshold in (0.2, 0.5, 0.9):
    chosen = task.predicted_targets(p, threshold)
    explained = scores[np.arange(40), chosen]
    odds = np.log(p / (1 - p))
    expected = np.where(p >= threshold, odds, -odds)
    np.testing.assert_allclose(explained, expected, rtol=1e-3, atol=1e-4)
  assert {task.targets[i] for i in chosen} <= {'margin', 'adequate_margin'}


def test_a_grade_between_is_not_explained_by_its_neighbour():
  """Good is the likeliest grade of a photograph that is inadequate."""
  task = tasks.Task('grade')
  logits = np.array([[0.1, 0.0, 0.0]], np.float32)
  p = np.asarray(task.p_inadequate(logits))
  [chosen] = task.predicted_targets(p, 0.5)
  assert p > 0.5 and task.targets[chosen] == 'margin'


def test_wrong_choices_are_refused():
  with pytest.raises(ValueError, match='grades'):
    tasks.Task('grades')
  with pytest.raises(ValueError, match='2 class weights, got 3'):
    tasks.Task('quality', class_weights=(1.0, 1.0, 1.0))
  with pytest.raises(ValueError, match='grade=3'):
    labels.quality_of_grade(3)


def test_grades_become_verdicts():
  rows = {
    u: [labels.quality_of_grade(g, u) for g in (0, 1, 2, -1)]
    for u in labels.USABLE
  }
  assert rows == {
    'inadequate': [0, 1, 1, -1],
    'adequate': [0, 0, 1, -1],
    'exclude': [0, -1, 1, -1],
  }


def test_evidence_loss_is_the_weighed_sum_of_its_parts():
  """Of cells known to be whole (0) or faulty (2); 1: broken, somewhere.

  Against float64, photograph by photograph and pair by pair.
  """
  rng = np.random.default_rng(0)
  logits, told = rng.normal(size=(2, 2, 2, 3)), rng.normal(size=(2, 3))
  share = rng.random((2, 2, 2))
  fault = rng.integers(0, 256, (2, 2, 2), dtype=np.uint8)
  cause = np.array([[0, 2, 1], [0, -1, 0]], np.int32)
  found = heads.Found(
    None, (np.float32(logits), np.float32(share)), np.float32(told)
  )
  task = tasks.Task(cell_weight=2.0, ranking_weight=5.0, cause_weight=0.7)
  parts = task.evidence_loss(found, {'cause': cause, 'fault': fault})

  expected = []
  for b, columns in enumerate(([0, 1], [0, 2])):  # where cells are known
    x = logits[b].reshape(4, 3)[:, columns]
    truth = np.zeros((4, 2))
    if b == 0:
      truth[:, 1] = fault[b].ravel() / 255
    weight = share[b].ravel()
    cells = np.log1p(np.exp(x)) - truth * x
    cells = (cells * weight[:, None]).sum() / (2 * weight.sum())
    odds, faulty = special.logsumexp(x, axis=1), truth.max(1)
    pairs = np.outer(faulty * weight, (1 - faulty) * weight)
    ranking = np.log1p(np.exp(odds[None] - odds[:, None])) * pairs
    ranking = ranking.sum() / pairs.sum() if b == 0 else 0.0
    known = cause[b] >= 0
    causes = np.log1p(np.exp(told[b])) - (cause[b] > 0) * told[b]
    expected.append(2 * cells + 5 * ranking + 0.7 * causes[known].mean())
  np.testing.assert_allclose(parts, expected, rtol=1e-5)
