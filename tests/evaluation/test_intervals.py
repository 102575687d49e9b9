"""Intervals beside slow loops, brute force and simulated coverage."""

import numpy as np
import pytest
from scipy import special, stats

from iqa_jax.evaluation import delong, intervals, metrics, resampling
from tests.benchmarks import coverage


def drawn(n=120, seed=0, ties=False, per_patient=2):
  """Scores that share a patient's good or bad day."""
  rng = np.random.default_rng(seed)
  patient = np.arange(n) // per_patient
  truth = (rng.random(n) < 0.35).astype(int)
  day = rng.normal(0, 0.8, n)[patient]
  p = special.expit(1.2 * (2 * truth - 1) + day + rng.normal(0, 1, n))
  return truth, np.round(p, 1) if ties else p, patient.astype(str)


@pytest.mark.parametrize('ties', [False, True])
def test_every_resample_is_what_scikit_learn_says_of_it(ties):
  truth, p, patient = drawn(ties=ties)
  called = p >= 0.45
  draws = resampling.Resamples(patient, 40)
  found = resampling.binary_samples(truth, p, called, draws)
  counts = np.concatenate(list(draws.chunks()))
  assert (counts.sum(axis=1) == len(np.unique(patient))).all()
  for i, row in enumerate(counts):
    again = np.repeat(np.arange(len(truth)), row[draws.column].astype(int))
    expected = metrics.binary(truth[again], p[again], called[again])
    for name, values in found.items():
      np.testing.assert_allclose(
        values[i], expected[name], rtol=2e-5, atol=2e-6, err_msg=name
      )


def test_every_resample_of_grades_is_what_scikit_learn_says_of_it():
  rng = np.random.default_rng(0)
  truth = rng.choice(3, 60, p=[0.6, 0.35, 0.05])
  p = rng.random((60, 3)) + 0.7 * np.eye(3)[truth]
  called = p.argmax(axis=1)
  draws = resampling.Resamples(np.arange(60) // 2, 40)
  found = resampling.grade_samples(truth, p, called, draws)
  for i, row in enumerate(np.concatenate(list(draws.chunks()))):
    again = np.repeat(np.arange(60), row[draws.column].astype(int))
    expected = metrics.grades(truth[again], p[again], called[again])
    for name, values in found.items():
      np.testing.assert_allclose(
        values[i], expected[name], rtol=1e-5, atol=1e-6, err_msg=name
      )


def test_patients_stay_together_and_chunks_do_not_matter(monkeypatch):
  draws = resampling.Resamples(np.repeat(['a', 'b', 'c'], 4), 200, seed=3)
  counts = np.concatenate(list(draws.chunks()))
  assert counts.shape == (200, 3)
  # Drawn with replacement: mean 1, variance 1 - 1/3.
  assert counts.mean() == pytest.approx(1)
  assert counts.var() == pytest.approx(2 / 3, abs=0.1)
  again = np.concatenate(
    list(resampling.Resamples(draws.patient, 200, 3).chunks())
  )
  np.testing.assert_array_equal(counts, again)


def test_clustering_widens_intervals_of_patients_who_agree_with_themselves():
  rng = np.random.default_rng(1)
  truth = np.repeat(rng.integers(0, 2, 60), 5)
  p = np.repeat(rng.random(60), 5) * 0.6 + 0.3 * truth
  by_patient, by_image = (
    intervals.binary(truth, p, p > 0.5, resampling.Resamples(who, 1000))['auc']
    for who in (np.arange(300) // 5, np.arange(300))
  )
  ratio = (by_patient[1] - by_patient[0]) / (by_image[1] - by_image[0])
  assert ratio == pytest.approx(np.sqrt(5), rel=0.2)


def test_an_interval_of_resamples_that_are_mostly_undefined_is_none():
  assert np.isnan(intervals.percentile(np.array([0.5] * 90 + [np.nan] * 10))[0])
  assert intervals.percentile(np.array([0.5] * 99 + [np.nan])) == (0.5, 0.5)


def brute_force_delong(truth, scores):
  """DeLong 1988, from all pairs."""
  positive, negative = scores[:, truth == 1], scores[:, truth == 0]
  above = positive[:, :, None] - negative[:, None, :]
  psi = (above > 0) + 0.5 * (above == 0)
  v10, v01 = psi.mean(axis=2), psi.mean(axis=1)
  s10, s01 = np.cov(v10), np.cov(v01)
  auc = psi.mean(axis=(1, 2))
  return auc, s10 / v10.shape[1] + s01 / v01.shape[1]


@pytest.mark.parametrize('ties', [False, True])
def test_delong_is_that_of_all_pairs(ties):
  truth, first, _ = drawn(seed=1, ties=ties)
  scores = np.stack([first, drawn(seed=2, ties=ties)[1], 1 - first])
  auc, covariance = delong.covariance(truth, scores)
  expected = brute_force_delong(truth, scores)
  np.testing.assert_allclose(auc, expected[0], atol=1e-12)
  np.testing.assert_allclose(covariance, expected[1], atol=1e-12)
  alone = delong.covariance(truth, scores, np.arange(len(truth)))
  np.testing.assert_allclose(covariance, alone[1], atol=1e-12)


def test_clustered_delong_agrees_with_the_clustered_bootstrap():
  truth, p, patient = drawn(800, per_patient=4)
  _, covariance = delong.covariance(truth, p[None], patient)
  draws = resampling.Resamples(patient, 2000)
  samples = resampling.binary_samples(truth, p, p > 0.5, draws)['auc']
  assert np.sqrt(covariance[0, 0]) == pytest.approx(samples.std(), rel=0.1)


def test_comparing_a_model_with_itself_and_with_noise():
  truth, p, patient = drawn(400)
  same = delong.compare_auc(truth, p, 3 * p, patient)
  assert same['difference'] == 0 and same['p_value'] == 1
  noise = np.random.default_rng(0).random(400)
  worse = delong.compare_auc(truth, p, noise, patient)
  assert worse['p_value'] < 1e-6 and worse['low'] > 0
  back = delong.compare_auc(truth, noise, p, patient)
  assert back['difference'] == pytest.approx(-worse['difference'])


def test_p_values_of_equal_models_are_uniform():
  values = []
  for seed in range(150):
    rng = np.random.default_rng(seed)
    truth = (rng.random(120) < 0.4).astype(int)
    shared = truth + rng.normal(0, 1, 120)
    first, second = (shared + rng.normal(0, 1, 120) for _ in range(2))
    values.append(delong.compare_auc(truth, first, second)['p_value'])
  assert stats.kstest(values, 'uniform').pvalue > 0.01


def test_too_few_of_a_class_is_said():
  with pytest.raises(ValueError, match='1 inadequate and 2 adequate'):
    delong.covariance(np.array([1, 0, 0]), np.array([[0.3, 0.2, 0.1]]))
  value, low, _ = intervals.auc(
    np.array([1, 0, 0]), np.array([0.3, 0.2, 0.1]), np.arange(3)
  )
  assert value == 1 and np.isnan(low)


@pytest.mark.parametrize('share', [0.7, 0.97])
def test_the_interval_of_a_share_covers_it(share):
  rng = np.random.default_rng(0)
  patient = np.arange(120) // 2
  covered = []
  for _ in range(400):
    # Both eyes of a patient mostly fail together.
    first = rng.random(60) < share
    second = np.where(rng.random(60) < 0.7, first, rng.random(60) < share)
    hit = np.stack([first, second], axis=1).ravel()
    _, low, high = intervals.proportion(hit, patient)
    covered.append(low <= share <= high)
  assert 0.92 <= np.mean(covered) <= 0.995


def test_all_right_is_not_certainly_always_right():
  value, low, high = intervals.proportion(np.ones(20, bool), np.arange(20) // 2)
  # Wilson's interval of 10 patients of 10: 1 / (1 + z^2 / n).
  assert value == high == 1
  assert low == pytest.approx(1 / (1 + 1.959964**2 / 10), abs=1e-6)
  truth = np.tile([0, 1], 10)
  found = intervals.binary(
    truth,
    np.where(truth, 0.9, 0.1),
    truth == 1,
    resampling.Resamples(np.arange(20), 200),
  )
  assert found['sensitivity'][0] < 0.8 and found['sensitivity'][1] == 1


def test_calibration_line_interval_covers_the_truth():
  covered = []
  for seed in range(120):
    rng = np.random.default_rng(seed)
    odds = rng.normal(0, 2, 300)
    truth = (rng.random(300) < special.expit(odds)).astype(int)
    low, high = intervals.calibration_line(
      truth, special.expit(odds), np.arange(300)
    )['calibration_slope']
    covered.append(low <= 1 <= high)
  assert 0.88 <= np.mean(covered) <= 0.99


def test_band_surrounds_the_curve():
  truth, p, patient = drawn(600)
  grid = np.linspace(0, 1, 11)
  roc, precision = resampling.roc_band(
    truth, p, resampling.Resamples(patient, 200), grid
  )
  for i, fpr in enumerate(grid[1:-1], start=1):
    at = np.quantile(p[truth == 0], 1 - fpr)
    sensitivity = (p[truth == 1] >= at).mean()
    assert roc[0, i] <= sensitivity + 0.02 and sensitivity - 0.02 <= roc[1, i]
  assert (precision[0, 1:] <= precision[1, 1:]).all()
  assert precision[0, -1] == pytest.approx(truth.mean(), abs=0.1)


@pytest.mark.parametrize('patients', [34, 100, 400])
@pytest.mark.parametrize('auc', [0.85, 0.95, 0.99])
def test_the_interval_of_an_auc_covers_it(patients, auc):
  # 95 % less twice the standard error of 300.
  assert coverage.auc_covered(patients, auc, 300) >= 92.5


@pytest.mark.parametrize('missed', [0.05, 0.1])
def test_an_auc_of_1_is_not_certain_when_some_are_missed_altogether(missed):
  # What the images that are missed do not show: they are not among them.
  assert coverage.auc_covered(34, 1 - 1e-12, 300, missed=missed) >= 92.5


@pytest.mark.parametrize('auc', [0.85, 0.99])
def test_the_intervals_of_ranking_metrics_cover_them(auc):
  found = coverage.covered(34, auc, 120, 150)
  for name in metrics.RANKING:
    ours, percentiles, absent = found[name]
    if name == 'specificity_at_95_sensitivity':
      assert absent > 95  # 17 Inadequate: one in twenty of them can't be seen
    else:
      assert ours >= 91, name
      if auc == 0.99 and name != 'sensitivity_at_95_specificity':
        assert percentiles < 85, name


def test_the_interval_at_an_auc_of_1_is_clopper_and_pearsons():
  truth, patient = np.repeat([0, 1], [60, 20]), np.arange(80) // 2
  value, low, high = intervals.auc(truth, truth + 0.0, patient)
  exact = stats.binomtest(10, 10).proportion_ci().low
  assert (value, high) == (1, 1) and low == pytest.approx(exact, abs=1e-6)
  assert intervals.auc(truth, 1.0 - truth, patient) == (0, 0, 1 - low)
  # A share of negatives above all positives: the area below r / (r + c).
  least = intervals.unseen(truth, patient)
  share = 1 - stats.binomtest(30, 30).proportion_ci().low
  c = share * 3
  area = 1 - c * np.log((1 + c) / c)
  assert least['average_precision'] == pytest.approx(area, abs=0.02)
  assert least['f1'] < 1 and least['mcc'] < 1


def test_an_auc_that_hangs_on_one_patient_has_a_wider_interval():
  truth = np.tile([0, 1], 100)
  patient = np.arange(200) // 2
  score = truth + np.linspace(0, 0.5, 200)
  score[1] = 0.3
  [value], [[variance]] = delong.covariance(truth, score, patient)
  half = np.sqrt(variance) / (value * (1 - value))
  low, high = intervals.auc(truth, score, patient)[1:]
  width = special.logit(high) - special.logit(low)
  # Two degrees of freedom, not 99.
  assert width == pytest.approx(2 * half * stats.t.ppf(0.975, 2), rel=0.2)


def test_without_a_class_there_is_no_interval_of_what_needs_it():
  found = intervals.binary(
    np.zeros(40, int),
    np.linspace(0, 0.4, 40),
    np.zeros(40, bool),
    resampling.Resamples(np.arange(40), 50),
  )
  for name in ('auc', 'partial_auc', 'sensitivity', 'mcc', 'precision'):
    assert np.isnan(found[name]).all(), name
  assert found['specificity'] == pytest.approx(
    (1 / (1 + 1.96**2 / 40), 1), 1e-4
  )


@pytest.mark.parametrize('slope', [1.0, 0.4])
def test_the_interval_of_the_calibration_error_holds_it_and_its_estimate(slope):
  def draw(rng, patients):
    odds = rng.normal(0, 2, patients)[:, None] + rng.normal(0, 1, (patients, 2))
    # Both eyes are right together.
    own, other = rng.random((2, patients, 2))
    level = np.where(rng.random((patients, 1)) < 0.5, own[:, :1], other)
    truth = level < special.expit(slope * odds)
    return truth.ravel().astype(int), special.expit(odds).ravel()

  true = metrics.rms_calibration_error(*draw(np.random.default_rng(9), 200_000))
  assert true == pytest.approx(0, abs=0.01) if slope == 1 else true > 0.1
  covered, biased = [], []
  for seed in range(150):
    truth, p = draw(np.random.default_rng(seed), 100)
    low, high = intervals.calibration_error(truth, p, np.arange(200) // 2)
    value = metrics.rms_calibration_error(truth, p)
    assert low <= value <= high
    covered.append(low - 0.01 <= true <= high)
    biased.append(value - true)
  assert np.mean(covered) >= 0.92
  # A root can't be below 0, so that some is left.
  assert abs(np.mean(biased)) < 0.04


def test_grades_that_are_all_right_are_not_certain():
  truth = np.arange(90) % 3
  p = np.eye(3)[truth] * 0.8 + 0.1
  found = intervals.grades(
    truth, p, truth, resampling.Resamples(np.arange(90) // 2, 50)
  )
  for name in ('accuracy', 'recall_0', 'precision_2', 'auc_1'):
    assert found[name][0] < 0.95 and found[name][1] == 1, name


def test_a_perfect_score_is_not_like_a_constant():
  truth = np.repeat([0, 1], 50)
  with pytest.raises(ValueError, match=r'1 and 0\.5, and neither varies'):
    delong.compare_auc(truth, truth, np.full(100, 0.3))
  same = delong.compare_auc(truth, truth, 2.0 * truth)
  assert same['p_value'] == 1 and same['difference'] == 0
