"""The experiments' own arithmetic, on cases with a known answer."""

from absl import flags
import numpy as np
import pytest

from iqa_jax.experiments import image_field, transfer
from iqa_jax.simulation import field


@pytest.fixture(autouse=True)
def _flags():
  if not flags.FLAGS.is_parsed():
    flags.FLAGS(['test'])


def test_true_landmarks_and_typical_arcades_nearly_give_the_label():
  """The ceiling of the landmark head: what the arcades' shape leaves open."""
  data = image_field.draw(77, 40, 64)
  margins = np.array(
    [
      field.measure(view, at, field.typical_arcades(at)).margin
      for view, at in zip(data['view'], data['landmarks'], strict=True)
    ]
  )
  assert (data['margin'] < 0).sum() == 20
  assert ((margins < 0) == (data['margin'] < 0)).mean() >= 0.95
  assert 'AUC 1.000  recall 1.000' in image_field.judge(
    (data['margin'], data['landmarks'], None), data
  )


@pytest.mark.parametrize('head', ['average', 'landmarks'])
def test_heads_predict_margins_and_landmarks_in_pixels(head):
  data = image_field.draw(5, 32, 64)
  predicted = image_field.fit(head, data, seed=0, epochs=1)(data)
  margin, found, maps = predicted
  assert margin.shape == (32,) and np.isfinite(margin).all()
  assert (found is not None) == (head == 'landmarks')
  if found is not None:
    assert found.shape == (32, 5) and (found[:, 2] > 0).all()
    assert 0 < np.median(found[:, :2]) < 64
    return
  # The maps differ from the logits' by the bias alone.
  offset = -margin - maps.mean((1, 2))
  np.testing.assert_allclose(offset, offset[0], atol=1e-5)
  assert 'evidence near the edge' in image_field.judge(predicted, data)


def test_evidence_at_the_edge_is_told_from_evidence_within():
  data = image_field.draw(77, 4, 64)
  grid = np.arange(16) * 4 + 2 - 32
  far = np.hypot(grid[None], grid[:, None])
  at = np.array([1, 3])
  rim = np.repeat((far > 26)[None], 2, 0).astype(float)
  share, area = image_field._near_the_edge(rim, data, at)
  assert 0.1 < area < 0.9 < share
  share, _ = image_field._near_the_edge(np.ones((2, 16, 16)), data, at)
  assert share == pytest.approx(area)
  middle = np.repeat((far < 6)[None], 2, 0).astype(float)
  assert image_field._near_the_edge(middle, data, at)[0] < 0.1


def _set(n, shift, seed, patients):
  rng = np.random.default_rng(seed)
  grade = np.tile([0, 2], n // 2)
  features = rng.normal(size=(n, 4)) + 3.0 * (grade > 0)[:, None] + shift
  return {
    'trunk': features,
    'colour': rng.normal(size=(n, 4)),
    'grade': grade,
    'patient': np.array([f'{patients}{i // 2}' for i in range(n)]),
  }


def test_the_report_tells_what_carries_over_from_what_does_not():
  sets = {
    'simulated': _set(60, 10.0, 0, 's'),
    'train': _set(60, 0.0, 1, 'r'),
    'faulty': _set(60, 0.0, 2, 'r'),
    'test': _set(40, 0.0, 3, 't'),
  }
  lines = list(transfer.report(sets))
  of = {line[:38].strip(): line for line in lines[1:]}
  assert len(of) == 16
  assert 'Reject/Good 1.000' in of['trunk     the same on training split']
  assert 'Reject/Good 1.000' in of['trunk   simulated only']
  assert 'Reject/Good 1.000' in of['trunk     scaled by unlabelled real']
  chance = float(of['colour  real only'].split('Reject/Good ')[1][:5])
  assert 0.2 < chance < 0.8
