"""Metrics beside definitions written out, and where they don't exist."""

import numpy as np
import pytest
from scipy import special
from sklearn import linear_model
from sklearn import metrics as sk

from iqa_jax.evaluation import metrics
from iqa_jax.judging import calibration


def drawn(n=400, seed=0, ties=False):
  rng = np.random.default_rng(seed)
  truth = (rng.random(n) < 0.3).astype(int)
  p = special.expit(1.5 * (2 * truth - 1) + rng.normal(0, 1.7, n))
  return truth, np.round(p, 1) if ties else p


@pytest.mark.parametrize('ties', [False, True])
def test_ranking_counts_pairs(ties):
  truth, p = drawn(ties=ties)
  above = p[truth == 1][:, None] - p[truth == 0]
  found = metrics.ranking(truth, p)
  assert found['auc'] == pytest.approx(
    np.mean((above > 0) + 0.5 * (above == 0))
  )
  best = 0.0
  most = 0.0
  for t in np.append(np.unique(p), 2):
    sensitivity = (p[truth == 1] >= t).mean()
    specificity = (p[truth == 0] < t).mean()
    if specificity >= 0.95:
      best = max(best, sensitivity)
    if sensitivity >= 0.95:
      most = max(most, specificity)
  assert found['sensitivity_at_95_specificity'] == pytest.approx(best)
  assert found['specificity_at_95_sensitivity'] == pytest.approx(most)


def test_partial_auc_is_mcclishs():
  truth, p = drawn()
  fpr, tpr, _ = sk.roc_curve(truth, p, drop_intermediate=False)
  grid = np.linspace(0, 0.1, 200001)
  # The curve rises straight up: to the right of a step it is the upper value.
  height = tpr[np.searchsorted(fpr, grid, side='right') - 1]
  area = height.mean() * 0.1
  standard = 0.5 * (1 + (area - 0.005) / (0.1 - 0.005))
  found = metrics.ranking(truth, p)['partial_auc']
  assert found == pytest.approx(standard, abs=1e-3)


def test_decisions_by_their_definitions():
  truth, p = drawn()
  called = p >= 0.4
  (tn, fp), (fn, tp) = metrics.confusion(truth, called)
  found = metrics.decisions(truth, called)
  n = tn + fp + fn + tp
  expected = {
    'accuracy': (tn + tp) / n,
    'sensitivity': tp / (tp + fn),
    'specificity': tn / (tn + fp),
    'balanced_accuracy': (tp / (tp + fn) + tn / (tn + fp)) / 2,
    'precision': tp / (tp + fp),
    'negative_predictive_value': tn / (tn + fn),
    'f1': 2 * tp / (2 * tp + fp + fn),
    'f1_adequate': 2 * tn / (2 * tn + fp + fn),
    'mcc': (tp * tn - fp * fn)
    / np.sqrt(
      float(tp + fp) * float(tp + fn) * float(tn + fp) * float(tn + fn)
    ),
  }
  for name, value in expected.items():
    assert found[name] == pytest.approx(value), name
  chance = ((tp + fp) * (tp + fn) + (tn + fp) * (tn + fn)) / n**2
  kappa = (expected['accuracy'] - chance) / (1 - chance)
  assert found['kappa'] == pytest.approx(kappa)


def test_calibration_line_is_the_logistic_regression():
  truth, p = drawn(2000)
  found = metrics.probabilities(truth, p)
  odds = special.logit(p)
  fit = linear_model.LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000)
  fit.fit(odds[:, None], truth)
  assert found['calibration_slope'] == pytest.approx(fit.coef_[0, 0], rel=1e-4)
  # With the slope at 1 the mean of the shifted probabilities is the prevalence.
  level = special.expit(odds + found['calibration_intercept']).mean()
  assert level == pytest.approx(truth.mean(), abs=1e-8)
  assert found['log_loss'] == pytest.approx(sk.log_loss(truth, p))


def test_calibration_error_pair_by_pair():
  truth, p = drawn()
  gap = p - truth
  total = 0.0
  for i in range(15):
    upper = p <= 1 if i == 14 else p < (i + 1) / 15
    inside = np.flatnonzero((p >= i / 15) & upper)
    if len(inside) > 1:
      products = np.outer(gap[inside], gap[inside])
      pairs = products.sum() - np.trace(products)
      pairs /= len(inside) * (len(inside) - 1)
      total += len(inside) / len(p) * pairs
  found = metrics.rms_calibration_error(truth, p)
  assert found == pytest.approx(np.sqrt(total))
  # Of a perfect forecaster it is 0; 0 and 1 are in bins.
  assert metrics.rms_calibration_error(truth, truth.astype(float)) == 0


@pytest.mark.parametrize('slope', [1.0, 0.5])
def test_squared_calibration_error_is_unbiased(slope):
  rng = np.random.default_rng(0)
  odds = rng.normal(0, 2, 100)
  p, true = special.expit(odds), special.expit(slope * odds)
  bins = metrics.bin_of(p)[:, None] == np.arange(15)
  size = bins.sum(axis=0)
  kept = size > 1
  exact = np.sum(((p - true) @ bins)[kept] ** 2 / size[kept]) / 100
  found = []
  for _ in range(2000):
    gap = p - (rng.random(100) < true)
    sums = (x @ bins for x in (np.ones(100), gap, gap**2))
    found.append(metrics.squared_calibration_error(*sums))
  # What is left besides: true gaps differ within a bin.
  within = np.sum(((p - true) ** 2 @ bins)[kept] / np.maximum(size, 1)[kept])
  error = np.std(found) / np.sqrt(len(found))
  assert abs(np.mean(found) - exact) < 4 * error + within / 100


def test_what_one_class_cannot_give_is_undefined_with_a_reason():
  found = metrics.binary(np.zeros(5, int), np.linspace(0, 1, 5), np.ones(5) > 0)
  for name in ('auc', 'sensitivity', 'mcc', 'kappa', 'calibration_slope'):
    assert np.isnan(found[name]), name
  assert found['specificity'] == 0 and found['accuracy'] == 0
  assert metrics.reason(np.zeros(5), np.nan) == 'no inadequate image'
  assert metrics.reason(np.ones(5), np.nan) == 'no adequate image'
  assert metrics.reason(np.zeros(0), np.nan) == 'no image'
  assert metrics.reason(np.zeros(5), 0.5) == ''


def test_the_majority_baseline_says_the_commoner_class_of_the_reference():
  truth = np.array([1, 1, 1, 0])
  found = metrics.majority(truth, np.array([0, 0, 0, 1]))
  assert found['accuracy'] == 0.25 and found['sensitivity'] == 0
  assert found['auc'] == 0.5
  assert found['brier'] == pytest.approx((3 * 0.75**2 + 0.25**2) / 4)


def test_grades_beside_weighted_kappa_written_out():
  rng = np.random.default_rng(0)
  truth = rng.integers(0, 3, 300)
  p = rng.random((300, 3)) + np.eye(3)[truth]
  called = p.argmax(axis=1)
  found = metrics.grades(truth, p, called)
  seen = metrics.confusion(truth, called, 3) / 300
  chance = np.outer(seen.sum(axis=1), seen.sum(axis=0))
  away = (np.arange(3)[:, None] - np.arange(3)) ** 2
  expected = 1 - (seen * away).sum() / (chance * away).sum()
  assert found['quadratic_kappa'] == pytest.approx(expected)
  one = sk.roc_auc_score(truth == 1, p[:, 1])
  assert found['auc_1'] == pytest.approx(one)
  assert found['recall_2'] == pytest.approx((called[truth == 2] == 2).mean())


def test_a_grade_that_is_absent_is_left_out_of_the_means():
  truth = np.array([0, 0, 1, 1])
  called = np.array([0, 1, 1, 1])
  found = metrics.grades(truth, np.eye(3)[called], called)
  assert np.isnan(found['recall_2']) and np.isnan(found['auc_2'])
  assert found['balanced_accuracy'] == pytest.approx(0.75)
  assert found['f1_macro'] == pytest.approx((2 / 3 + 0.8) / 2)


def test_separable_classes_have_no_finite_slope():
  truth = np.repeat([0, 1], 10)
  line = calibration.fit_line(np.linspace(-1, 1, 20), truth)
  assert np.isnan(line).all()
