"""Tests of the table of what is compiled, not run."""

import types

import pytest

from tests.benchmarks import accelerators


@pytest.mark.parametrize(
  ('target', 'flagged'),
  [('h100:1', False), ('h100:8', True), ('v5e:2x2', False)],
)
def test_several_gpus_are_compiled_as_launch_starts_them(
  monkeypatch, target, flagged
):
  flags = accelerators._launch_flags()
  assert flags.startswith('--xla_gpu_') and '\n' not in flags
  given = {}

  def run(command, env, **options):
    given.update(env)
    return types.SimpleNamespace(returncode=0, stdout='{"devices": 1}\n')

  monkeypatch.setenv('XLA_FLAGS', '--mine')
  monkeypatch.setattr(accelerators, '_launch_flags', lambda: flags)
  monkeypatch.setattr(accelerators.subprocess, 'run', run)
  cell = accelerators.Cell(target, 'resnet50', 'all', 224, 'bfloat16', 256)
  assert accelerators._in_a_process(cell) == {'devices': 1}
  # What the caller asks for comes last, and so wins.
  assert given['XLA_FLAGS'] == (f'{flags} --mine' if flagged else '--mine')
