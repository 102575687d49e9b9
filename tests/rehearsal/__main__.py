"""Draw a stand-in for a download of BRSet or EyeQ, as large as the real one.

  python -m tests.rehearsal --dataset=brset --output=DIR --scale=0.1

Label files in the published format with the published counts, photographs
from the simulator with faults that fit their labels, a thousandth of them
truncated. Simulated: figures on it say nothing of real photographs. The same
command again draws what is missing. --scale=0.1 keeps a tenth of the patients.
EyeQ's published grades are taken from IQA_SHARED/data/eyeq_labels where they
are there, otherwise as many of each are dealt.
"""

import os
import pathlib

from absl import flags

from iqa_jax import command

_DATASET = flags.DEFINE_enum('dataset', None, ['brset', 'eyeq'], 'which')
_OUTPUT = flags.DEFINE_string('output', None, 'the folder to make')
_SCALE = flags.DEFINE_float('scale', 1.0, 'share of the patients, up to 1')
_PROCESSES = flags.DEFINE_integer('processes', 0, '0: one a core')


def main() -> None:
  """Writes the label files and draws the photographs that are missing.

  Raises:
    RunDirectoryError: the folder holds something else.
  """
  from iqa_jax import run_directory
  from tests.rehearsal import downloads, drawing

  folder = pathlib.Path(_OUTPUT.value).expanduser()
  record = folder / 'SIMULATED.json'
  wanted = {'simulated': True, 'dataset': _DATASET.value, 'scale': _SCALE.value}
  if folder.is_dir() and any(folder.iterdir()):
    there = run_directory.read_json(record)
    if there != wanted:
      raise run_directory.RunDirectoryError(
        f'{folder} holds {there}, not {wanted}: choose another --output'
      )
  published = pathlib.Path(
    os.environ.get('IQA_SHARED', '../shared'), 'data', 'eyeq_labels'
  )
  run_directory.write_json(record, wanted)
  shots = downloads.write(
    _DATASET.value,
    folder,
    _SCALE.value,
    published if published.is_dir() else None,
  )
  drawing.draw_all(folder, shots, _PROCESSES.value)


if __name__ == '__main__':
  flags.mark_flags_as_required(['dataset', 'output'])
  command.run(main)
