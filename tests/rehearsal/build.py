"""Build the records that a configuration needs, and nothing else.

  python -m tests.rehearsal.build --config=brset_resnet50 \\
    --config.data.manual_dir=DIR --config.data.data_dir=RECORDS

iqa_jax.main builds as well, but trains in the same process: here the build is
measured alone.
"""

import os

from absl import flags
from ml_collections import config_flags

from iqa_jax import command
from iqa_jax import config as config_lib

_CONFIG = config_flags.DEFINE_config_file(
  'config', help_string='configuration file or name', lock_config=True
)


def main() -> None:
  """Builds; raises as `source.open_source` does."""
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
  from iqa_jax.data import source

  source.open_source(_CONFIG.value)


if __name__ == '__main__':
  flags.mark_flags_as_required(['config'])
  command.run(main, flags_parser=config_lib.parse_flags)
