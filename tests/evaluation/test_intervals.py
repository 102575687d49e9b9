"""Intervals beside slow loops, brute force and simulated coverage."""

import numpy as np
import pytest
from scipy import special, stats

from iqa_jax.evaluation import intervals, metrics


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
  draws = intervals.Resamples(patient, 40)
  found = intervals.binary_samples(truth, p, called, draws)
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
  draws = intervals.Resamples(np.arange(60) // 2, 40)
  found = intervals.grade_samples(truth, p, called, draws)
  for i, row in enumerate(np.concatenate(list(draws.chunks()))):
    again = np.repeat(np.arange(60), row[draws.column].astype(int))
    expected = metrics.grades(truth[again], p[again], called[again])
    for name, values in found.items():
      np.testing.assert_allclose(
        values[i], expected[name], rtol=1e-5, atol=1e-6, err_msg=name
      )


def test_patients_stay_together_and_chunks_do_not_matter(monkeypatch):
  draws = intervals.Resamples(np.repeat(['a', 'b', 'c'], 4), 200, seed=3)
  counts = np.concatenate(list(draws.chunks()))
  assert counts.shape == (200, 3)
  # Drawn with replacement: mean 1, variance 1 - 1/3.
  assert counts.mean() == pytest.approx(1)
  assert counts.var() == pytest.approx(2 / 3, abs=0.1)
  again = np.concatenate(
    list(intervals.Resamples(draws.patient, 200, 3).chunks())
  )
  np.testing.assert_array_equal(counts, again)


def test_clustering_widens_intervals_of_patients_who_agree_with_themselves():
  rng = np.random.default_rng(1)
  truth = np.repeat(rng.integers(0, 2, 60), 5)
  p = np.repeat(rng.random(60), 5) * 0.6 + 0.3 * truth
  by_patient, by_image = (
    intervals.binary(truth, p, p > 0.5, intervals.Resamples(who, 1000))['auc']
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
  auc, covariance = intervals.delong(truth, scores)
  expected = brute_force_delong(truth, scores)
  np.testing.assert_allclose(auc, expected[0], atol=1e-12)
  np.testing.assert_allclose(covariance, expected[1], atol=1e-12)
  alone = intervals.delong(truth, scores, np.arange(len(truth)))
  np.testing.assert_allclose(covariance, alone[1], atol=1e-12)


def test_clustered_delong_agrees_with_the_clustered_bootstrap():
  truth, p, patient = drawn(800, per_patient=4)
  _, covariance = intervals.delong(truth, p[None], patient)
  draws = intervals.Resamples(patient, 2000)
  samples = intervals.binary_samples(truth, p, p > 0.5, draws)['auc']
  assert np.sqrt(covariance[0, 0]) == pytest.approx(samples.std(), rel=0.1)


def test_comparing_a_model_with_itself_and_with_noise():
  truth, p, patient = drawn(400)
  same = intervals.compare_auc(truth, p, 3 * p, patient)
  assert same['difference'] == 0 and same['p_value'] == 1
  noise = np.random.default_rng(0).random(400)
  worse = intervals.compare_auc(truth, p, noise, patient)
  assert worse['p_value'] < 1e-6 and worse['low'] > 0
  back = intervals.compare_auc(truth, noise, p, patient)
  assert back['difference'] == pytest.approx(-worse['difference'])


def test_p_values_of_equal_models_are_uniform():
  values = []
  for seed in range(150):
    rng = np.random.default_rng(seed)
    truth = (rng.random(120) < 0.4).astype(int)
    shared = truth + rng.normal(0, 1, 120)
    first, second = (shared + rng.normal(0, 1, 120) for _ in range(2))
    values.append(intervals.compare_auc(truth, first, second)['p_value'])
  assert stats.kstest(values, 'uniform').pvalue > 0.01


def test_too_few_of_a_class_is_said():
  with pytest.raises(ValueError, match='1 inadequate and 2 adequate'):
    intervals.delong(np.array([1, 0, 0]), np.array([[0.3, 0.2, 0.1]]))
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
    intervals.Resamples(np.arange(20), 200),
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
  roc, precision = intervals.roc_band(
    truth, p, intervals.Resamples(patient, 200), grid
  )
  for i, fpr in enumerate(grid[1:-1], start=1):
    at = np.quantile(p[truth == 0], 1 - fpr)
    sensitivity = (p[truth == 1] >= at).mean()
    assert roc[0, i] <= sensitivity + 0.02 and sensitivity - 0.02 <= roc[1, i]
  assert (precision[0, 1:] <= precision[1, 1:]).all()
  assert precision[0, -1] == pytest.approx(truth.mean(), abs=0.1)
