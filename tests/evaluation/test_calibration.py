"""Calibrations recover what was done to the scores, and survive JSON."""

import json

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest
from scipy import special

from iqa_jax.evaluation import calibration


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
