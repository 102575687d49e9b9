"""Train and evaluate a fundus image quality model.

  python -m iqa_jax.main --config=demo --workdir=runs/demo
  python -m iqa_jax.main --config=configs/eyeq_vgg16.py --workdir=runs/eyeq \\
    --config.data.manual_dir=~/data/eyeq --config.model.pretrained=vgg16.tv_in1k

--config takes a file or the name of one that comes with iqa_jax; every field
can be overridden on the command line (--config.train.batch_size=32; of a
training phase: --config.train.phases[0].epochs=3). iqa_jax/config.py says what
each field means.

The run directory (--workdir) holds everything the run makes. The same command
again resumes an interrupted run, or does nothing but the evaluation when the
training is complete. Exit codes: 0 done, 1 an error that the last line
explains, 130 or 143 interrupted (SIGINT, SIGTERM) and ready to resume.
"""

import os

from absl import app, flags
from ml_collections import config_flags

from iqa_jax import command
from iqa_jax import config as config_lib

_CONFIG = config_flags.DEFINE_config_file(
  'config', help_string='configuration file or name', lock_config=True
)
_WORKDIR = flags.DEFINE_string('workdir', None, 'run directory')
_MODE = flags.DEFINE_enum(
  'mode',
  'train_and_evaluate',
  ['train_and_evaluate', 'train', 'evaluate'],
  'what to do; evaluate needs a trained run directory',
)
_ENSEMBLE = flags.DEFINE_list(
  'ensemble', [], 'further run directories whose predictions are averaged in'
)
_EVALUATION_DIR = flags.DEFINE_string(
  'evaluation_dir',
  None,
  'where --mode=evaluate writes (default: the run directory); needed to '
  'evaluate a run on other data than its own, with another --config',
)
_COORDINATOR = flags.DEFINE_string(
  'coordinator_address', None, 'HOST:PORT of process 0, for several processes'
)
_NUM_PROCESSES = flags.DEFINE_integer(
  'num_processes', None, 'processes of this run, where no cluster says so'
)
_PROCESS_ID = flags.DEFINE_integer('process_id', None, 'number of this process')
_CACHE = flags.DEFINE_string(
  'compilation_cache',
  os.path.join('~', '.cache', 'iqa_jax', 'xla'),
  'folder of compiled programs, kept between runs; empty for none. Must not be '
  'writable by others: compiled code is loaded from it',
)


def main() -> None:
  """Sets up the process and dispatches to training and evaluation."""
  if not _WORKDIR.value:
    raise app.UsageError('--workdir is needed: a new or interrupted run')
  if _CONFIG.value is None and _MODE.value != 'evaluate':
    raise app.UsageError(
      f'--config is needed: a file, or one of {", ".join(config_lib.names())}'
    )
  # TensorFlow only reads data here; its greetings would hide our messages.
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')

  from iqa_jax import job

  job.run(
    _CONFIG.value,
    os.path.expanduser(_WORKDIR.value),
    mode=_MODE.value,
    ensemble=_ENSEMBLE.value,
    evaluation_dir=_EVALUATION_DIR.value,
    coordinator_address=_COORDINATOR.value,
    num_processes=_NUM_PROCESSES.value,
    process_id=_PROCESS_ID.value,
    compilation_cache=_CACHE.value,
  )


if __name__ == '__main__':
  command.run(main, flags_parser=config_lib.parse_flags)
