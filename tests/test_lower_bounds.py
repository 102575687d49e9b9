"""What tests/lower_bounds.py installs is what pyproject.toml promises."""

import pytest

from tests import lower_bounds

PROJECT = """
[project]
dependencies = ["jax>=0.10.2", {}]
[project.optional-dependencies]
tests = ["pytest>=8.3"]
"""


def test_every_dependency_has_a_bound_that_can_be_installed():
  text = (lower_bounds.HOME / 'pyproject.toml').read_text()
  pins = lower_bounds.bounds(text)
  assert any(pin.startswith('jax==') for pin in pins)
  assert any(pin.startswith('pytest==') for pin in pins)


def test_bounds_become_versions():
  assert lower_bounds.bounds(PROJECT.format('"etils[epath]>=1.10"')) == [
    'jax==0.10.2',
    'etils[epath]==1.10',
    'pytest==8.3',
  ]


def test_a_dependency_without_a_bound_is_named():
  with pytest.raises(ValueError, match='numpy'):
    lower_bounds.bounds(PROJECT.format('"numpy"'))
