"""Makes the bundled model of a run: its weights halved, its record kept.

  python -m iqa_jax.main --config=bundled --workdir=runs/bundled
  python -m iqa_jax.bundle --workdir=runs/bundled --output=iqa_jax/bundled

The output is a run directory like any other: weights as float16, model.json
with calibration, operating point and where it came from. `run_directory.
load_model` widens the weights again.
"""

import pathlib

from absl import app, flags

from iqa_jax import command

_WORKDIR = flags.DEFINE_string('workdir', None, 'run to bundle')
_OUTPUT = flags.DEFINE_string('output', None, 'run directory to write')


def main() -> None:
  if not (_WORKDIR.value and _OUTPUT.value):
    raise app.UsageError('--workdir and --output are needed')
  size = write(_WORKDIR.value, _OUTPUT.value)
  print(f'{size / 1e6:.2f} MB of weights in {_OUTPUT.value}')


def write(workdir: str, output: str) -> int:
  """Writes a run's model with half of its digits; returns bytes of weights.

  Raises:
    RunDirectoryError: the run holds no model.
    InvalidValue: a weight is beyond what float16 holds.
  """
  import numpy as np

  from iqa_jax import errors, run_directory

  saved = run_directory.load_model(workdir)

  def halved(tree, path):
    if isinstance(tree, dict):
      return {k: halved(v, f'{path}/{k}') for k, v in tree.items()}
    with np.errstate(over='ignore'):
      half = np.asarray(tree).astype(np.float16)
    if not np.isfinite(half).all():
      raise errors.InvalidValue(f'{path} is beyond what float16 holds')
    return half

  # Statistics stay as they are: a variance may be tiny.
  params = halved(saved.variables['params'], 'params')

  kept = {k: v for k, v in saved.record.items() if k not in _OF_THE_FILE}
  kept['made_from'] = {'sha256': saved.digest}
  run_directory.save_model(output, {**saved.variables, 'params': params}, kept)
  (weights,) = (pathlib.Path(output) / 'model').glob('*.safetensors')
  return weights.stat().st_size


_OF_THE_FILE = ('format', 'weights', 'sha256')


if __name__ == '__main__':
  command.run(main)
