"""Train on BRSet, test on EyeQ.

  python -m iqa_jax.main --config=brset_on_eyeq --workdir=runs/brset_on_eyeq \\
    --config.data.manual_dir=BRSET_DIR --config.data.test_manual_dir=EYEQ_DIR

EyeQ's own test split tests. Not run by us (BRSet is gated), so no result is
quoted.
"""

from iqa_jax import config as config_lib


def get_config():
  c = config_lib.variant('brset_resnet50')
  c.data.test_name = 'eyeq'
  return c
