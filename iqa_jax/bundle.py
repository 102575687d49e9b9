"""Makes the bundled model of a run: its weights halved, its record kept.

  python -m iqa_jax.main --config=bundled --workdir=runs/bundled
  python -m iqa_jax.bundle --workdir=runs/bundled --output=iqa_jax/bundled

The output is a run directory like any other: weights as float16, model.json
with calibration, operating point and where it came from. `run_directory.
load_model` widens the weights again.
"""

from __future__ import annotations

from absl import app, flags

from iqa_jax import command

_WORKDIR = flags.DEFINE_string('workdir', None, 'run to bundle')
_OUTPUT = flags.DEFINE_string('output', None, 'run directory to write')


def main() -> None:
  if not (_WORKDIR.value and _OUTPUT.value):
    raise app.UsageError('--workdir and --output are needed')
  from iqa_jax import run_directory

  size = run_directory.save_halved(_WORKDIR.value, _OUTPUT.value)
  print(f'{size / 1e6:.2f} MB of weights in {_OUTPUT.value}')


if __name__ == '__main__':
  command.run(main)
