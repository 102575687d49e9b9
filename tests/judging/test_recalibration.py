"""Recalibration at a site that shifts and stretches the log-odds."""

import numpy as np
import pytest
from scipy import special

from iqa_jax import errors
from iqa_jax.judging import operating_points, recalibration
from iqa_jax.judging.operating_record import OperatingRecord

SAVED = OperatingRecord(
  {'method': 'platt', 'scale': 1.5, 'offset': -0.5},
  {'rule': 'youden', 'threshold': 0.4, 'flip_tta': True, 'sensitivity': 0.9},
  [0.3, 0.5],
)


def site(count, seed=0, shift=4.0, rate=0.3):
  """Labels and scores of a camera whose log-odds are `shift` too high."""
  rng = np.random.default_rng(seed)
  truth = (rng.random(count) < rate).astype(int)
  # Log-odds of two normals a deviation of 1 apart by d are d * x + log-odds.
  distance = 3.0
  x = rng.normal(0, 1, count) + distance * (truth - 0.5)
  odds = distance * x + special.logit(rate)
  network = (odds + shift + 0.5) / 1.5
  return truth, special.expit(network), special.expit(odds)


def balanced_accuracy(record, truth, p):
  verdict = record.judge(p).verdict
  return np.mean([(verdict[truth == c] == c).mean() for c in (0, 1)])


def test_labels_bring_back_the_probabilities_and_the_verdicts():
  truth, p, true_p = site(5000)
  record = recalibration.from_labels(SAVED, truth, p)
  found = record.judge(p).p_calibrated
  assert np.abs(found - true_p).mean() < 0.01
  assert record.calibration['offset'] == pytest.approx(-4.5, abs=0.4)
  before = balanced_accuracy(SAVED, truth, p)
  assert balanced_accuracy(record, truth, p) > before + 0.1
  assert record.flip_tta
  assert 'sensitivity' not in record.operating_point


@pytest.mark.parametrize('count', [20, 50, 100])
def test_few_labels_help_on_photographs_that_they_are_not_of(count):
  truth, p, _ = site(20_000, seed=99)
  best = balanced_accuracy(recalibration.from_labels(SAVED, truth, p), truth, p)
  gains, lost = [], []
  for seed in range(20):
    few = site(count, seed)
    record = recalibration.from_labels(SAVED, few[0], few[1])
    after = balanced_accuracy(record, truth, p)
    gains.append(after - balanced_accuracy(SAVED, truth, p))
    lost.append(best - after)
  assert min(gains) > 0
  assert np.mean(lost) < 0.02


def test_nothing_is_learnt_from_what_agrees_with_the_model():
  truth, p, true_p = site(60, shift=0.0)
  record = recalibration.from_labels(SAVED, truth, p)
  assert np.abs(record.judge(p).p_calibrated - true_p).mean() < 0.05
  # One class alone may not throw the others' verdicts over.
  good = truth == 0
  record = recalibration.from_labels(SAVED, truth[good], p[good])
  assert np.isfinite(list(record.calibration.values())[1:]).all()


def test_a_rate_moves_the_mean_to_it():
  _, p, true_p = site(3000)
  record = recalibration.from_rate(SAVED, p, 0.3)
  found = record.judge(p).p_calibrated
  assert found.mean() == pytest.approx(0.3)
  assert np.abs(found - true_p).mean() < 0.02
  # Twice the rate is believed as well, and calls more.
  more = recalibration.from_rate(SAVED, p, 0.6).judge(p)
  assert more.p_calibrated.mean() == pytest.approx(0.6)


def test_each_patient_is_judged_by_the_labels_of_others():
  truth, p, _ = site(200)
  patient = np.arange(200) // 2
  judged = recalibration.on_others(SAVED, truth, p, patient, parts=100)
  for i in (0, 77):
    others = patient != patient[i]
    record = recalibration.from_labels(SAVED, truth[others], p[others])
    expected = record.judge(p[patient == patient[i]]).p_calibrated
    np.testing.assert_array_equal(
      judged.p_calibrated[patient == patient[i]], expected
    )
  flipped = truth.copy()
  flipped[:2] ^= 1
  again = recalibration.on_others(SAVED, flipped, p, patient, parts=100)
  np.testing.assert_array_equal(again.p_calibrated[:2], judged.p_calibrated[:2])
  assert (again.p_calibrated[2:] != judged.p_calibrated[2:]).all()


@pytest.mark.parametrize('rule', operating_points.RULES)
def test_every_rule_is_kept(rule):
  saved = OperatingRecord({'method': 'none'}, {'rule': rule, 'target': 0.8})
  truth, p, true_p = site(4000)
  saved = OperatingRecord(
    SAVED.calibration, {'rule': rule, 'target': 0.8, 'threshold': 0.5}
  )
  record = recalibration.from_labels(saved, truth, p)
  expected = operating_points.choose(rule, 0.8, truth, true_p)
  verdict = record.judge(p).verdict
  for label, name in ((1, 'sensitivity'), (0, 'specificity')):
    reached = (verdict[truth == label] == label).mean()
    assert reached == pytest.approx(expected[name], abs=0.06), name


@pytest.mark.parametrize(
  'call, message',
  [
    (lambda: recalibration.from_rate(SAVED, np.ones(3), 1.0), 'rate of 1'),
    (lambda: recalibration.from_rate(SAVED, np.zeros(0), 0.1), 'no photo'),
    (
      lambda: recalibration.from_labels(SAVED, np.full(2, -1), np.ones(2)),
      'has a label',
    ),
  ],
)
def test_what_cannot_be_fitted_is_said(call, message):
  with pytest.raises(errors.InvalidValue, match=message):
    call()
