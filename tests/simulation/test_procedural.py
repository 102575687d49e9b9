"""Faults of no kind, and those that nothing may learn from."""

import ast
import pathlib

import numpy as np
import pytest

from iqa_jax.simulation import photograph, procedural, reserved, unfamiliar

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope='module')
def eye():
  drawn = photograph.draw(3, 192)
  return drawn.image, drawn.inside


@pytest.mark.parametrize('criterion', procedural.CRITERIA)
def test_a_procedural_fault_is_where_its_mask_is(eye, criterion):
  image, inside = eye
  for seed in range(25):
    pixels, mask = procedural.apply(
      image, inside, criterion, np.random.default_rng(seed)
    )
    assert pixels.dtype == np.uint8 and mask.dtype == np.float32
    assert mask.min() >= 0 and mask.max() <= 1 and mask.any()
    assert not mask[~inside].any()
    changed = np.abs(pixels.astype(int) - image).max(-1)
    assert not changed[mask == 0].any()
    assert changed[mask > 0.5].mean() > 2


def test_the_same_draw_gives_the_same_fault(eye):
  first, again = (
    procedural.apply(*eye, 'artifacts', np.random.default_rng(5))
    for _ in range(2)
  )
  np.testing.assert_array_equal(first[0], again[0])
  np.testing.assert_array_equal(first[1], again[1])


@pytest.mark.parametrize(
  ('group', 'kind'), [(g, k) for g in (unfamiliar, reserved) for k in g.KINDS]
)
def test_a_fault_to_measure_by_is_seen_where_its_mask_is(eye, group, kind):
  image, inside = eye
  for seed in range(5):
    pixels, mask = group.apply(image, inside, kind, np.random.default_rng(seed))
    assert mask.dtype == bool and mask.any() and not (mask & ~inside).any()
    changed = np.abs(pixels.astype(int) - image).max(-1)
    assert not changed[~inside].any()
    assert changed[mask].mean() > 3 * changed[inside & ~mask].mean()


def test_a_kind_to_measure_by_has_a_name(eye):
  assert set(unfamiliar.RELATED) < set(unfamiliar.KINDS)
  assert not set(unfamiliar.KINDS) & set(reserved.KINDS)
  with pytest.raises(ValueError, match='none of hair'):
    unfamiliar.apply(*eye, 'dragon', np.random.default_rng(0))
  with pytest.raises(ValueError, match='none of marker'):
    reserved.apply(*eye, 'hair', np.random.default_rng(0))


@pytest.mark.parametrize('module', ['unfamiliar', 'reserved'])
def test_nothing_that_trains_knows_the_kinds_to_measure_by(module):
  importers = set()
  for path in (ROOT / 'iqa_jax').rglob('*.py'):
    for node in ast.walk(ast.parse(path.read_text())):
      if not isinstance(node, (ast.Import, ast.ImportFrom)):
        continue
      names = [alias.name for alias in node.names]
      if module in ' '.join([*names, getattr(node, 'module', '') or '']):
        importers.add(path.relative_to(ROOT / 'iqa_jax').parts[0])
  assert not importers & {'training', 'data', 'models', 'tasks.py'}
