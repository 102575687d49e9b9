"""The demo's AUC over seeds: what README may state is a range, not one draw.

Trains configs/demo.py once a seed (about five minutes each on 2 cores) under
the Python that runs this; run it under each version that is supported.
"""

from __future__ import annotations

import pathlib
import subprocess
import sys
import tempfile

from tests.benchmarks import common


def run(*, smoke: bool = False, seeds: int = 3) -> list[common.Row]:
  """Returns the test split's measures, a value a seed."""
  from iqa_jax import run_directory

  tiny = ['--config.train.phases[0].epochs=1'] if smoke else []
  found: dict[str, list[float]] = {}
  for seed in range(1 if smoke else seeds):
    with tempfile.TemporaryDirectory() as folder:
      subprocess.run(
        [
          *(sys.executable, '-m', 'iqa_jax.main', '--config=demo'),
          *(f'--workdir={folder}/run', f'--config.seed={seed}', *tiny),
        ],
        cwd=common.ROOT,
        check=True,
      )
      path = pathlib.Path(folder) / 'run' / 'metrics.json'
      measured = run_directory.read_json(path)['splits']['test']['verdict']
    for name in ('auc', 'sensitivity', 'specificity'):
      value = measured['metrics'][name]['value']
      found.setdefault(name, []).append(100 * value)
  version = '.'.join(map(str, sys.version_info[:2]))
  return [
    common.Row(f'demo, {name}, Python {version}', values, '%')
    for name, values in found.items()
  ]


if __name__ == '__main__':
  sys.exit(common.main(run))
