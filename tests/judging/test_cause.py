"""Causes of a verdict, against photographs whose cells are counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

from iqa_jax import errors, labels
from iqa_jax.judging import advice, cause
from iqa_jax.judging.verdict import Criterion

NAN = float('nan')


def cells(*probabilities: float) -> np.ndarray:
  """Returns evidence [2, 2, 3] with these probabilities of a focus fault."""
  p = np.zeros((4, 3))
  p[:, 0] = probabilities
  return -np.log1p(-p).reshape(2, 2, 3)


def test_share_counts_cells_by_their_part_of_the_field():
  inside = np.array([[1.0, 0.5], [0.5, 0.0]])
  found = cause.shares(cells(0.9, 0.49, 0.51, 0.99), inside)
  # 1 + 0.5 of 2; what lies outside the field counts for nothing.
  np.testing.assert_allclose(found, [0.75, 0, 0])
  assert np.isnan(cause.shares(cells(1 - 1e-9, 0, 0, 0), 0 * inside)).all()


def test_probability_is_that_of_the_heads_softplus():
  logits = np.array([-3.0, -0.01, 0.01, 3.0]).reshape(2, 2, 1)
  evidence = np.log1p(np.exp(logits))
  expected = (1 / (1 + np.exp(-logits)) > 0.5).mean()
  assert cause.shares(evidence, np.ones((2, 2)))[0] == expected == 0.5


@pytest.mark.parametrize(
  ('probabilities', 'thresholds', 'expected'),
  [
    ([0.2, 0.9, 0.6], {}, 'illumination'),
    ([0.2, 0.4, 0.1], {}, 'unknown'),
    ([0.5, 0.4, 0.1], {}, 'focus'),
    ([0.9, 0.8, NAN], {'focus': 0.95, 'illumination': 0.7}, 'illumination'),
    ({'focus': 0.1, 'image_field': 0.7}, {}, 'image_field'),
    ({'focus': None, 'artifacts': 0.9}, {}, 'artifacts'),
    ([NAN, NAN, NAN], {}, ''),
    ({}, {}, ''),
  ],
)
def test_cause_is_what_is_furthest_above_its_threshold(
  probabilities, thresholds, expected
):
  found, criteria = cause.find(
    'inadequate', probabilities, thresholds=thresholds
  )
  assert found == expected
  assert set(criteria) <= set(labels.CRITERIA)
  assert all(c.p is not None and c.share is None for c in criteria.values())
  assert cause.find('adequate', probabilities)[0] == ''


def test_what_the_cells_show_is_a_cause_where_no_probability_is():
  evidence = np.zeros((5, 5, 3))
  evidence[0, 0, 2] = 3.0  # 4 % of the field
  inside = np.ones((5, 5))
  few = [0.1, 0.2, 0.3]
  assert cause.find('inadequate', few, evidence, inside)[0] == 'unknown'
  evidence[0, 1, 2] = 3.0
  found, criteria = cause.find('inadequate', few, evidence, inside)
  assert found == 'artifacts'
  assert list(criteria) == ['focus', 'illumination', 'artifacts']
  assert criteria['artifacts'] == Criterion(0.3, pytest.approx(0.08))
  assert criteria['focus'] == Criterion(0.1, 0.0)
  # A probability that is reached says more than an area.
  assert cause.find('inadequate', [0.6, 0, 0], evidence, inside)[0] == 'focus'


def test_every_cause_has_words_in_every_language():
  for language, words in advice.LANGUAGES.items():
    assert tuple(words) == advice.CAUSES
    said = [advice.sentence(c, language) for c in advice.CAUSES]
    assert len(set(said)) == len(said)
    # One sentence, short enough for a line of a panel.
    assert all(s.endswith('.') and s.count('.') == 1 for s in said)
    assert max(map(len, said)) < 80
    assert len({advice.name(c, language) for c in advice.CAUSES}) == len(said)
  assert advice.sentence('') == advice.name('') == ''
  assert advice.sentence('focus', 'pt') != advice.sentence('focus')
  with pytest.raises(errors.InvalidValue, match='en, pt'):
    advice.sentence('focus', 'tlh')
  with pytest.raises(errors.InvalidValue, match='beauty'):
    advice.name('beauty')
