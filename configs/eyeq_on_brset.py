"""Train on EyeQ, test on BRSet: the reverse of brset_on_eyeq.

  python -m iqa_jax.main --config=eyeq_on_brset --workdir=runs/eyeq_on_brset \\
    --config.data.manual_dir=EYEQ_DIR --config.data.test_manual_dir=BRSET_DIR

All of BRSet tests. Not run by us (BRSet is gated), so no result is quoted.
"""

from iqa_jax import config as config_lib


def get_config():
  c = config_lib.variant('eyeq_resnet50')
  c.data.test_name = 'brset'
  return c
