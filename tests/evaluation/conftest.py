"""A simulated run: evaluation without a network."""

import pytest

from tests.evaluation import simulated


@pytest.fixture
def simulated_run(tmp_path):
  """Returns make(task, count) -> (config, workdir, source, splits)."""
  with simulated.no_network() as make_in:

    def make(task_name='quality', count=800, workdir='run', **changes):
      return make_in(tmp_path / workdir, task_name, count, **changes)

    yield make
