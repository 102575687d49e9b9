"""A thousand files of scores as no sensible system gives them: none crashes."""

import csv
import json

from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

from iqa_jax.evaluation import api, metrics, scoring
from iqa_jax.judging import calibration, operating_points, operating_record

FLOAT32, FLOAT64 = np.finfo(np.float32), np.finfo(np.float64)
# The ends, and their neighbours that float32 and float64 can tell from them.
EDGES = (
  *(0.0, -0.0, 5e-324, 1e-310, 1e-45, FLOAT32.tiny, 1e-7, 0.5, 1.0),
  *(0.5 + FLOAT64.eps, 0.5 - FLOAT32.eps, 1 - FLOAT64.eps, 1 - FLOAT32.eps),
)
PROBABILITIES = (
  st.sampled_from([float(x) for x in EDGES])
  | st.floats(0, 1)
  | st.floats(0, 1, width=32)
)
# Beyond this scikit-learn's sums overflow.
MARGINS = st.floats(-1e300, 1e300) | st.sampled_from(
  [float(x) for x in (FLOAT32.max, -FLOAT32.max, 1e300, -1e300, 0)]
)
EXTREMES = settings(
  max_examples=1000,
  deadline=None,
  derandomize=True,
  database=None,
  suppress_health_check=list(HealthCheck),
)
RULES = st.one_of(
  *(
    st.tuples(st.just(rule), st.floats(0, most) | st.sampled_from([0.0, most]))
    for rule, most in zip(
      operating_points.RULES, (1.0, 1.0, 1.0, 1e308, 100.0, 1.0), strict=True
    )
  )
)


@st.composite
def systems(draw):
  """Draws labels, probabilities, what ranks (or None) and patients, [n]."""
  n = draw(st.integers(1, 25))

  def some(values):
    # Few different ones make ties; a single one, a constant.
    pool = draw(st.lists(values, min_size=1, max_size=draw(st.integers(1, n))))
    return np.array(
      draw(st.lists(st.sampled_from(pool), min_size=n, max_size=n))
    )

  p = some(PROBABILITIES)
  odds = draw(st.none() | st.just(True)) and some(MARGINS)
  by = p if odds is None else odds
  middle = np.sort(by)[n // 2]
  truth = draw(
    st.sampled_from([np.zeros(n), np.ones(n), by >= middle, by < middle])
    | st.lists(st.integers(0, 1), min_size=n, max_size=n).map(np.array)
  )
  patient = np.arange(n) // draw(st.sampled_from([1, 2, n]))
  return truth.astype(int), p, odds, patient


def write(path, drawn, cells=None):
  truth, p, odds, patient = drawn
  columns = {
    'image': np.arange(len(p)),
    'quality': truth,
    'p_calibrated': list(map(repr, p.tolist())) if cells is None else cells,
    'patient': patient,
  }
  if odds is not None:
    columns['log_odds'] = list(map(repr, odds.tolist()))
  with open(path, 'w', newline='') as file:
    out = csv.writer(file)
    out.writerow(columns)
    out.writerows(zip(*columns.values(), strict=True))
  return str(path)


@pytest.fixture(scope='module')
def path(tmp_path_factory):
  return tmp_path_factory.mktemp('extremes') / 'extreme.csv'


def sound(name, measure):
  """Whether a measure lies in its range and in its interval, or says why."""
  value, low, high = (measure[k] for k in ('value', 'low', 'high'))
  assert (low is None) == (high is None), name
  if value is None:
    assert low is None and measure['note'], name
    return
  least, most = metrics.RANGES.get(name, (0, 1))
  assert least - 1e-9 <= value <= most + 1e-9, name
  if low is not None:
    assert low - 1e-9 <= value <= high + 1e-9, name


@EXTREMES
@given(systems())
def test_every_file_is_scored(path, drawn):
  truth, p, _, _ = drawn
  file = write(path, drawn)
  result = scoring.run(file, file, scoring.Options(resamples=5))
  scored = result['splits']['scored']['verdict']
  assert scored['n'] == len(truth) and scored['n_inadequate'] == truth.sum()
  called = p >= 0.5
  assert scored['confusion'] == metrics.confusion(truth, called).tolist()
  for name, measure in scored['metrics'].items():
    sound(name, measure)
  json.dumps(result, allow_nan=False)
  assert scoring.as_text(result)


@EXTREMES
@given(systems(), st.sampled_from(calibration.METHODS), RULES, st.floats(0, 1))
def test_every_validation_split_is_judged(drawn, method, rule, share):
  truth, p, _, _ = drawn
  name, target = rule
  record = operating_record.OperatingRecord.fit(
    truth, p, method=method, rule=name, target=target, share=share
  )
  stored = json.loads(json.dumps(record.to_dict(), allow_nan=False))
  judged = operating_record.OperatingRecord.from_model(stored).judge(p)
  assert ((judged.p_calibrated >= 0) & (judged.p_calibrated <= 1)).all()
  assert np.isin(judged.verdict, (0, 1)).all()
  assert judged.uncertain.sum() >= round(share * len(p))
  # Calibration keeps the order.
  order = np.argsort(p)
  assert (np.diff(judged.p_calibrated[order]) >= 0).all()
  point = record.operating_point
  if name in ('sensitivity', 'specificity') and 0 < truth.sum() < len(truth):
    assert point[name] >= target - 1e-9
    right = judged.verdict == truth
    kept = truth == (name == 'sensitivity')
    assert right[kept].mean() == pytest.approx(point[name])


@settings(EXTREMES, max_examples=30)
@given(systems())
def test_a_notebook_says_what_the_command_says(path, drawn):
  truth, p, odds, patient = drawn
  assume(odds is None)
  file = write(path, drawn)
  result = scoring.run(file, file, scoring.Options(resamples=5))
  found = api.evaluate(
    truth, p, patient=patient.astype(str), resamples=5
  ).to_dict()
  assert found['metrics'] == result['splits']['scored']['verdict']['metrics']


@settings(EXTREMES, max_examples=100)
@given(
  systems(),
  st.integers(0, 24),
  st.sampled_from(
    ['nan', 'NaN', 'inf', '-inf', '', '1.0000001', '-5e-324', '1e999', 'x']
  ),
)
def test_a_cell_that_is_no_probability_is_named(path, drawn, row, cell):
  row %= len(drawn[1])
  cells = list(map(repr, drawn[1].tolist()))
  cells[row] = cell
  file = write(path, drawn, cells)
  with pytest.raises(scoring.ScoringError, match=f'line {row + 2} .*p_calib'):
    scoring.run(file, file, scoring.Options(resamples=5))
