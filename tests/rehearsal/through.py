"""Run every stage on stand-in downloads and measure it; simulated throughout.

  python -m tests.rehearsal.through --dataset=brset --output=DIR \\
    --manual_dir=standin-0.01,standin-0.03,standin-0.1

Each stage is its own command in a process of its own: validate_data, build,
training (few epochs of a narrow network), evaluation, cross-validation, export
in two shards and their merge, score, review_criteria, compare_runs.
DIR/rehearsal.md gets a table of processor time, wall time, peak memory
(resident, the command and its children, shared pages counted in each) and disk;
of several downloads, how each grows, and what that makes for all of the dataset
and for 1,000,000 photographs. A stage that is done is not run again.
"""

from __future__ import annotations

import pathlib

from absl import flags

from iqa_jax import command, errors
from tests.rehearsal import stages

_DATASET = flags.DEFINE_enum('dataset', None, ['brset', 'eyeq'], 'which')
_MANUAL_DIR = flags.DEFINE_list(
  'manual_dir',
  None,
  'downloads of python -m tests.rehearsal, of different scales',
)
_OUTPUT = flags.DEFINE_string('output', None, 'folder for everything')
_EPOCHS = flags.DEFINE_integer('epochs', 1, 'of each training phase')
_FOLDS = flags.DEFINE_integer('folds', 3, 'of the cross-validation')


def main() -> None:
  """Runs all stages on each download and writes the table.

  Raises:
    InvalidValue: two downloads are of one size.
    StageFailed: a command failed.
  """
  from iqa_jax import run_directory

  output = pathlib.Path(_OUTPUT.value).expanduser()
  results = [
    stages.through(
      _DATASET.value,
      (data := pathlib.Path(place).expanduser()),
      output / data.name,
      _EPOCHS.value,
      _FOLDS.value,
    )
    for place in _MANUAL_DIR.value
  ]
  if len({r['photographs'] for r in results}) < len(results):
    raise errors.InvalidValue('two downloads have as many photographs')
  text = stages.table(_DATASET.value, results)
  run_directory.write_text(output / 'rehearsal.md', text)
  print(text)


if __name__ == '__main__':
  flags.mark_flags_as_required(['dataset', 'manual_dir', 'output'])
  command.run(main)
