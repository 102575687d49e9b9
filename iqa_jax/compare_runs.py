"""Compare runs on the same photographs, by camera and criterion.

  python -m iqa_jax.compare_runs --output=DIR \\
    --workdirs=runs/baseline,runs/pretrained,runs/subset

Each is a run directory of iqa_jax.main or a folder of iqa_jax.cross_validate;
the first is what the others are compared with, by DeLong's test clustered by
patient. Writes report.md and comparison.json.
Exit codes: 0 done, 1 an error that the last line explains.
"""

import os

from absl import app, flags

from iqa_jax import command

_WORKDIRS = flags.DEFINE_list('workdirs', [], 'two runs or more')
_OUTPUT = flags.DEFINE_string('output', None, 'folder for the report')
_NOTE = flags.DEFINE_string('note', '', 'said first in the report')


def main() -> None:
  """Compares, writes the report and prints it."""
  if len(_WORKDIRS.value) < 2 or not _OUTPUT.value:
    raise app.UsageError('--workdirs, of two runs or more, and --output')

  from iqa_jax.evaluation import comparison

  result = comparison.run(
    [os.path.expanduser(workdir) for workdir in _WORKDIRS.value],
    os.path.expanduser(_OUTPUT.value),
    _NOTE.value,
  )
  print(comparison.as_markdown(result))


if __name__ == '__main__':
  command.run(main)
