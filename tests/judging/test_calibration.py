"""Calibrations recover what was done to the scores, and survive JSON."""

import json
import warnings

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest
from scipy import special
from sklearn import linear_model

from iqa_jax.evaluation import intervals
from iqa_jax.judging import calibration
from tests.evaluation import simulated


def drawn(scale=1.0, offset=0.0, n=20000, seed=0):
  """Labels of a perfect forecaster whose log-odds were then distorted."""
  rng = np.random.default_rng(seed)
  odds = rng.normal(-1, 2, n)
  truth = (rng.random(n) < special.expit(odds)).astype(int)
  return truth, special.expit(scale * odds + offset)


def test_temperature_is_found():
  truth, p = drawn(scale=2.5)
  record = calibration.fit('temperature', truth, p)
  assert record['temperature'] == pytest.approx(2.5, rel=0.05)


def test_platt_finds_scale_and_offset():
  truth, p = drawn(scale=0.5, offset=1.0)
  record = calibration.fit('platt', truth, p)
  assert record['scale'] == pytest.approx(2.0, rel=0.05)
  assert record['offset'] == pytest.approx(-2.0, abs=0.08)


def test_isotonic_undoes_any_rising_distortion():
  truth, p = drawn()
  distorted = p**3
  record = calibration.fit('isotonic', truth, distorted)
  error = np.abs(calibration.apply(record, distorted) - p)
  assert error.mean() < 0.02


@pytest.mark.parametrize('method', calibration.METHODS)
def test_log_loss_does_not_rise_and_json_changes_nothing(method):
  truth, p = drawn(scale=3, offset=0.7, n=2000)
  record = calibration.fit(method, truth, p)
  after = calibration.apply(record, p)
  again = calibration.apply(json.loads(json.dumps(record)), p)
  np.testing.assert_array_equal(after, again)

  def loss(q):
    q = calibration.clip(q)
    return -np.where(truth == 1, np.log(q), np.log1p(-q)).mean()

  assert loss(after) <= loss(p) + 1e-9
  # No order is ever turned round.
  assert (np.diff(after[np.argsort(p)]) >= 0).all()


@pytest.mark.parametrize('method', calibration.METHODS)
def test_separable_scores_give_finite_probabilities(method):
  truth = np.repeat([0, 1], 20)
  p = np.linspace(0.01, 0.99, 40)
  after = calibration.apply(calibration.fit(method, truth, p), p)
  assert ((after >= 0) & (after <= 1)).all()
  if method == 'isotonic':
    assert 0 < after.min() and after.max() < 1


@pytest.mark.parametrize('method', calibration.METHODS[1:])
def test_one_class_or_nothing_can_not_be_calibrated(method):
  for truth in (np.zeros(5), np.ones(5), np.zeros(0)):
    record = calibration.fit(method, truth, np.full(len(truth), 0.3))
    assert record['method'] == 'none' and record['reason']


def test_platt_refuses_to_turn_scores_round():
  truth, p = drawn(n=500)
  assert calibration.fit('platt', 1 - truth, p)['method'] == 'none'


def test_unknown_labels_and_nan_scores_take_no_part():
  truth, p = drawn(n=500)
  more_truth = np.concatenate([truth, [-1, 1]])
  more_p = np.concatenate([p, [0.5, np.nan]])
  assert calibration.fit('platt', more_truth, more_p) == calibration.fit(
    'platt', truth, p
  )
  assert np.isnan(calibration.apply({'method': 'none'}, np.array([np.nan])))
  for method in calibration.METHODS:
    record = calibration.fit(method, truth, p)
    assert np.isnan(calibration.apply(record, np.array([np.nan])))[0]


@given(
  st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=12),
    lambda inner: (
      st.lists(inner, max_size=3)
      | st.dictionaries(
        st.sampled_from(
          ['method', 'temperature', 'scale', 'offset', 'x', 'y', 'platt']
        ),
        inner | st.sampled_from(calibration.METHODS),
        max_size=4,
      )
    ),
    max_leaves=6,
  )
)
def test_a_damaged_record_is_a_value_error(record):
  with np.errstate(all='ignore'):
    try:
      calibration.apply(record, np.array([0.2, 0.9]))
    except ValueError as error:
      assert 'calibration' in str(error)


def test_no_such_method():
  with pytest.raises(ValueError, match="'magic' is none of"):
    calibration.fit('magic', np.zeros(3), np.zeros(3))


def small_validations(count=200, n=24):
  """Yields (truth, p) of few images whose true probability is p."""
  rng = np.random.default_rng(3)
  while count:
    odds = rng.normal(-1, 3.5, n)
    truth = (rng.random(n) < special.expit(odds)).astype(int)
    if 2 < truth.sum() < n - 2:
      yield truth, special.expit(odds)
      count -= 1


def test_few_images_do_not_sharpen_the_scores():
  # The scores are calibrated already: all that a fit can do is harm.
  truth, p = drawn(n=20000, seed=9)

  def loss(record):
    q = calibration.apply(record, p)
    z = np.where(truth == 1, 1, -1) * special.logit(calibration.clip(q))
    return np.logaddexp(0, -z).mean()

  raw = loss({'method': 'none'})
  fitted = [
    loss(calibration.fit('temperature', *small))
    for small in small_validations()
  ]
  assert max(fitted) < 2 * raw
  assert np.mean(fitted) < 1.1 * raw


def test_separable_validation_is_no_reason_to_be_sure():
  truth = np.repeat([0, 1], 10)
  p = special.expit(np.concatenate([np.full(10, -2.0), np.full(10, 2.0)]))
  record = calibration.fit('temperature', truth, p)
  # Ten of ten says 11 of 12 (Platt 1999), so log-odds of log(11) at 2.
  assert record['temperature'] == pytest.approx(2 / np.log(11))


@pytest.mark.parametrize('flip, end', [(False, 'below'), (True, 'above')])
def test_at_a_bound_the_scores_are_left_alone(flip, end):
  truth = np.repeat([0, 1], 100)
  p = special.expit(0.01 * (2 * truth - 1))
  p = 1 - p if flip else p
  record = calibration.fit('temperature', truth, p)
  assert record['method'] == 'none'
  assert 'temperature' in record['reason'] and end in record['reason']
  np.testing.assert_array_equal(calibration.apply(record, p), p)


def separated(truth, x):
  low, high = x[truth == 0], x[truth == 1]
  return not (
    len(low) and len(high) and low.max() > high.min() and high.max() > low.min()
  )


def test_a_thousand_extreme_score_vectors():
  rng = np.random.default_rng(0)
  defined = 0
  for _ in range(1000):
    truth, p = simulated.extreme(rng)
    odds = calibration.log_odds(p)
    with warnings.catch_warnings():
      warnings.simplefilter('error')
      intercept, slope = calibration.fit_line(odds, truth)
      level = calibration.fit_intercept(odds, truth)
      line = intervals.calibration_line(truth, p, np.arange(len(p)) // 2)
      for method in calibration.METHODS:
        after = calibration.apply(calibration.fit(method, truth, p), p)
        assert ((after >= 0) & (after <= 1)).all()
    # The score equations of a maximum of the likelihood.
    if 0 < truth.sum() < len(truth):
      gap = (special.expit(level + odds) - truth).sum()
      assert abs(gap) < 1e-7 * len(p)
    else:
      assert np.isnan(level)
    if np.isfinite(slope):
      defined += 1
      assert not separated(truth, odds)
      gap = special.expit(intercept + slope * odds) - truth
      size = np.abs(odds).max()
      assert abs(gap.sum()) < 1e-6 * len(p)
      assert abs((gap * odds).sum()) < 1e-6 * len(p) * size
    else:
      # No maximum, or one that floats can't tell from separation.
      assert separated(truth, odds) or np.ptp(odds) < 1e-6
    for low, high in line.values():
      assert np.isnan(low) == np.isnan(high) and not low > high
  assert defined > 80


def test_the_line_is_scikit_learns_unpenalised_regression():
  rng = np.random.default_rng(1)
  for _ in range(25):
    n = int(rng.integers(30, 300))
    x = rng.normal(rng.normal(0, 3), 10 ** rng.uniform(-1, 1), n)
    odds = rng.normal() + (x - x.mean()) / x.std() * rng.normal()
    truth = (rng.random(n) < special.expit(odds)).astype(int)
    if separated(truth, x):
      continue
    scaled = (x - x.mean()) / x.std()
    peer = linear_model.LogisticRegression(
      C=np.inf, tol=1e-10, solver='newton-cholesky'
    ).fit(scaled[:, None], truth)
    slope = peer.coef_[0, 0] / x.std()
    intercept = peer.intercept_[0] - slope * x.mean()
    found = calibration.fit_line(x, truth)
    np.testing.assert_allclose(
      found, (intercept, slope), rtol=1e-5, atol=1e-5 * (1 + abs(intercept))
    )


def test_saturated_scores_are_shifted_by_what_they_lack():
  truth = np.repeat([0, 1], [3, 97])
  odds = calibration.log_odds(np.zeros(100))
  level = calibration.fit_intercept(odds, truth)
  assert level == pytest.approx(np.log(97 / 3) - odds[0])
  assert level == pytest.approx(19.594, abs=1e-3)
