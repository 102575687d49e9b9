"""Train and evaluate every fold, then pool their results.

  python -m iqa_jax.cross_validate --config=brset_resnet50 \\
    --workdir=runs/brset_folds --config.data.manual_dir=DIR

Each fold is a run of iqa_jax.main in WORKDIR/fold_K with
--config.data.fold=K; every other argument is handed on as it is. The same
command again resumes what was interrupted and skips what is finished. One fold
of several machines: --folds=2, then once more without it to pool.

WORKDIR/metrics.json and WORKDIR/report/ hold each fold's results, their mean
with its interval, and the pooled out-of-fold results.
Exit codes: 0 done, 1 an error that the last line explains, 130 or 143
interrupted and ready to resume.
"""

import os
import subprocess
import sys

from absl import app, flags
from ml_collections import config_flags

from iqa_jax import command, remote
from iqa_jax import config as config_lib

_CONFIG = config_flags.DEFINE_config_file(
  'config', help_string='configuration file or name', lock_config=True
)
_WORKDIR = flags.DEFINE_string('workdir', None, 'folder of all folds')
_FOLDS = flags.DEFINE_list(
  'folds', [], 'train these folds only, e.g. 0,3 (default: all)'
)
_CACHE = flags.DEFINE_string(
  'compilation_cache', None, 'handed on to iqa_jax.main'
)


def main() -> int:
  """Runs the folds one after another and pools them when all are there."""
  if _CONFIG.value is None or not _WORKDIR.value:
    raise app.UsageError('--config and --workdir are needed')
  count = _CONFIG.value.data.folds
  chosen = _chosen(_FOLDS.value, count)
  workdir = os.path.expanduser(_WORKDIR.value)

  from iqa_jax import job

  config = config_lib.from_json(config_lib.to_json(_CONFIG.value))
  for fold in chosen:
    folder = os.path.join(workdir, f'fold_{fold}')
    config.data.fold = fold
    if job.finished(folder, config):
      print(f'fold {fold} of {count} is finished: {folder}', file=sys.stderr)
      continue
    print(f'fold {fold} of {count}: {folder}', file=sys.stderr)
    code = subprocess.run(
      [
        *(sys.executable, '-m', 'iqa_jax.main'),
        *_handed_on(sys.argv[1:]),
        f'--config.data.fold={fold}',
        f'--workdir={folder}',
      ],
      check=False,
    ).returncode
    if code:
      print(f'fold {fold} ended with exit code {code}', file=sys.stderr)
      # A child killed by a signal has the negative of its number.
      return code if code > 0 else 128 - code

  from iqa_jax.evaluation import folds

  large = ('checkpoints', 'model', 'tensorboard')
  with remote.mirror(workdir, leave_out=large) as (home, _):
    absent = [
      k
      for k in range(count)
      if not (home / f'fold_{k}' / 'metrics.json').is_file()
    ]
    if absent:
      print(f'not pooled yet: folds {absent} are missing', file=sys.stderr)
      return 0
    print(folds.as_text(folds.pool(home, count, _CONFIG.value)))
  return 0


def _chosen(folds: list[str], count: int) -> list[int]:
  try:
    chosen = [int(k) for k in folds] or list(range(count))
  except ValueError as error:
    raise app.UsageError(f'--folds takes numbers: {error}') from error
  if not all(0 <= k < count for k in chosen):
    raise app.UsageError(f'--folds={folds} are not all in 0..{count - 1}')
  return chosen


def _handed_on(arguments: list[str]) -> list[str]:
  """Returns the command line without what is this command's own."""
  kept, skip = [], False
  for argument in arguments:
    name, equals, _ = argument.lstrip('-').partition('=')
    if skip:
      skip = False
    elif name in ('workdir', 'folds', 'config.data.fold'):
      skip = not equals
    else:
      kept.append(argument)
  return kept


if __name__ == '__main__':
  command.run(main, flags_parser=config_lib.parse_flags)
