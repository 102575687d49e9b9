"""What every test shares: four virtual devices, and the real sample data."""

import os
import pathlib

# Before JAX starts: several CPU devices, so that pmap is tested for real.
os.environ.setdefault('XLA_FLAGS', '--xla_force_host_platform_device_count=4')
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')

import jaxtyping
import pytest

from tests import shapes

# Shapes that these rooms state are checked at every call.
jaxtyping.install_import_hook(
  ['iqa_jax.explain', 'iqa_jax.judging', 'iqa_jax.models'],
  f'{shapes.__name__}.check',
)

SHARED = pathlib.Path(
  os.environ.get(
    'IQA_SHARED', pathlib.Path(__file__).resolve().parents[2] / 'shared'
  )
)


@pytest.fixture(scope='session')
def shared() -> pathlib.Path:
  """The folder of real photographs and weights; skips where it is absent."""
  if not SHARED.is_dir():
    pytest.skip(f'no real material at {SHARED} (set IQA_SHARED)')
  return SHARED
