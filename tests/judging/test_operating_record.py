"""A record judges as its three parts say, and survives model.json."""

import json

import numpy as np
import pytest
from scipy import special

from iqa_jax import errors, labels
from iqa_jax.judging.operating_record import OperatingRecord

PLATT = {'method': 'platt', 'scale': 2.0, 'offset': -1.0}
MODEL = {
  'calibration': PLATT,
  'operating_point': {'rule': 'youden', 'threshold': 0.3, 'flip_tta': True},
  'uncertain_band': [0.2, 0.4],
  'criteria_operating_points': {'focus': {'threshold': 0.7}},
}


def test_a_verdict_is_calibrated_then_compared():
  p = np.array([0.1, 0.6, np.nan, 0.9, 0.5], np.float32)
  record = OperatingRecord.from_model({'other': 1, **MODEL})
  found, verdict, uncertain = record.judge(p)
  expected = special.expit(2 * special.logit(p.astype(np.float64)) - 1)
  np.testing.assert_allclose(found, expected, rtol=1e-12)
  # 0.0045, 0.45, -, 0.97, 0.27
  assert verdict.tolist() == [0, 1, labels.UNKNOWN, 1, 0]
  assert uncertain.tolist() == [False, False, True, False, True]
  assert record.threshold == 0.3 and record.flip_tta
  assert record.criterion_threshold('focus') == 0.7
  assert record.criterion_threshold('artifacts') == 0.5
  # The threshold itself is inadequate.
  at = special.expit((special.logit(0.3) + 1) / 2)
  assert record.raw_threshold == pytest.approx(at, rel=2e-4)
  plain = OperatingRecord(operating_point={'threshold': 0.25})
  assert plain.judge(np.array([0.25])).verdict.tolist() == [1]


def test_of_a_model_without_a_record_half_decides():
  record = OperatingRecord.from_model({})
  p, verdict, uncertain = record.judge(np.array([0.49, 0.5]))
  assert p.tolist() == [0.49, 0.5] and verdict.tolist() == [0, 1]
  assert not uncertain.any() and not record.flip_tta
  assert record.to_dict() == {}


def test_it_is_read_back_as_it_was_written():
  written = OperatingRecord.from_model(MODEL).to_dict()
  assert written == MODEL
  assert OperatingRecord.from_model(json.loads(json.dumps(written))) == (
    OperatingRecord.from_model(MODEL)
  )


@pytest.mark.parametrize(
  'damage',
  [
    {'calibration': {'method': 'platt'}},
    {'calibration': {'method': 'magic'}},
    {'operating_point': {'rule': 'youden'}},
    {'operating_point': {'threshold': 'high'}},
    {'uncertain_band': [0.1]},
    {'uncertain_band': 3},
    {'criteria_operating_points': {'focus': 0.5}},
  ],
  ids=str,
)
def test_damage_is_refused_at_once(damage):
  with pytest.raises(errors.InvalidValue, match='damaged'):
    OperatingRecord.from_model({**MODEL, **damage})


def test_fitted_on_validation_it_sends_the_share_to_a_person():
  rng = np.random.default_rng(0)
  truth = rng.integers(0, 2, 400)
  p = special.expit(3 * truth - 1.5 + rng.normal(0, 2, 400))
  record = OperatingRecord.fit(
    truth, p, method='platt', rule='sensitivity', target=0.9, share=0.1
  )
  _, verdict, uncertain = record.judge(p)
  assert (verdict[truth == 1] == 1).mean() >= 0.9
  assert uncertain.sum() == 40
  nothing = OperatingRecord.fit(
    truth[:0], p[:0], method='platt', rule='youden', target=0, share=0.1
  )
  assert nothing.threshold == 0.5
  assert 'one class' in nothing.to_dict()['calibration']['reason']
