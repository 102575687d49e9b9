"""Thresholds beside a search through all of them."""

from hypothesis import assume, given
from hypothesis import strategies as st
import numpy as np
import pytest

from iqa_jax.judging import operating_points as op

images = st.lists(
  st.tuples(st.integers(0, 1), st.integers(0, 12)), min_size=2, max_size=30
).map(lambda rows: (np.array([r[0] for r in rows]),
                    np.array([r[1] for r in rows]) / 12))  # fmt: skip


def reached(truth, p, threshold):
  called = p >= threshold
  return called[truth == 1].mean(), (~called[truth == 0]).mean()


def every(truth, p):
  return [reached(truth, p, t) for t in np.append(np.unique(p), 2.0)]


@given(images, st.sampled_from(op.RULES[:4]), st.floats(0.01, 1))
def test_nothing_better_exists(drawn, rule, target):
  truth, p = drawn
  assume(0 < truth.sum() < len(truth))
  point = op.choose(rule, target, truth, p)
  sensitivity, specificity = reached(truth, p, point['threshold'])
  assert point['sensitivity'] == pytest.approx(sensitivity)
  assert point['specificity'] == pytest.approx(specificity)
  assert (point['n'], point['n_inadequate']) == (len(truth), truth.sum())
  others = every(truth, p)
  near = 1e-9
  if rule == 'youden':
    assert sensitivity + specificity >= max(map(sum, others)) - near
  elif rule == 'sensitivity':
    assert sensitivity >= target - near
    best = max(b for a, b in others if a >= target - near)
    assert specificity >= best - near
  elif rule == 'specificity':
    assert specificity >= target - near
    best = max(a for a, b in others if b >= target - near)
    assert sensitivity >= best - near
  else:
    positive, negative = (truth == 1).sum(), (truth == 0).sum()

    def cost(pair):
      return target * (1 - pair[0]) * positive + (1 - pair[1]) * negative

    assert cost((sensitivity, specificity)) <= min(map(cost, others)) + near
  # Half way between two scores, so no rounding turns a verdict.
  assert np.abs(p - point['threshold']).min() > 1e-12 or (
    point['threshold'] == 0 or point['threshold'] > 1
  )


def test_percentile_calls_the_worst_share():
  p = np.linspace(0, 1, 1001)
  point = op.choose('percentile', 20, (p > 0.5).astype(int), p)
  assert (p >= point['threshold']).mean() == pytest.approx(0.2, abs=0.002)


def test_fixed_is_what_was_asked_for():
  point = op.choose('fixed', 0.37, np.zeros(0, int), np.zeros(0))
  assert point['threshold'] == 0.37 and point['sensitivity'] is None


@pytest.mark.parametrize('rule', ['youden', 'sensitivity', 'cost'])
def test_one_class_decides_nothing(rule):
  point = op.choose(rule, 0.9, np.ones(4, int), np.full(4, 0.2))
  assert point['threshold'] == 0.5 and 'one class' in point['reason']


def test_unknown_labels_and_nan_scores_take_no_part():
  truth, p = np.array([0, 1, -1, 1]), np.array([0.2, 0.8, 0.1, np.nan])
  assert op.choose('youden', 0, truth, p)['threshold'] == pytest.approx(0.5)


@pytest.mark.parametrize(
  'rule, target',
  [('sensitivity', 1.5), ('percentile', 101), ('cost', -1), ('cost', np.inf)],
)
def test_targets_out_of_range(rule, target):
  with pytest.raises(ValueError, match=f'{rule} takes a target of 0 to'):
    op.choose(rule, target, np.array([0, 1]), np.array([0.1, 0.9]))


@given(images, st.floats(0.01, 0.99), st.sampled_from([0.0, 0.1, 0.5, 1.0]))
def test_the_band_holds_the_nearest(drawn, threshold, share):
  _, p = drawn
  band = op.uncertain_band(p, threshold, share)
  inside = op.is_uncertain(p, band)
  count = round(share * len(p))
  assert inside.sum() >= count and (count or not inside.any())
  if inside.any() and not inside.all():
    far = op.certainty(p, threshold)
    assert far[inside].max() <= far[~inside].min() + 1e-6
    # No larger than ties make it.
    assert (far < np.sort(far)[count - 1] - 1e-6).sum() < count


def test_coverage_from_the_most_certain_to_all():
  truth = np.array([1, 1, 0, 0, 1])
  p = np.array([0.99, 0.9, 0.05, 0.6, 0.45])
  coverage, accuracy = op.coverage(truth, p, 0.5)
  np.testing.assert_allclose(coverage, [0.2, 0.4, 0.6, 0.8, 1.0])
  np.testing.assert_allclose(accuracy, [1, 1, 1, 0.75, 0.6])
  # Equally certain images are handed over together.
  coverage, accuracy = op.coverage(np.array([1, 0]), np.array([0.8, 0.8]), 0.5)
  assert coverage.tolist() == [1.0] and accuracy.tolist() == [0.5]
