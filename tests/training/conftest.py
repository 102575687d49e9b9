"""The pipeline in memory, in place of the one that reads records."""

import pytest

from iqa_jax.training import feature_cache, loop, run, standardization
from tests.training import memory_data


@pytest.fixture
def memory(monkeypatch):
  """Training reads from `memory_data`; returns that module."""
  for module in (loop, run, feature_cache, standardization):
    monkeypatch.setattr(module, 'plan_lib', memory_data)
  monkeypatch.setattr(feature_cache, 'pipeline', memory_data)
  return memory_data
