"""EyeQ, Good against Usable and Reject: staged fine-tuning of ResNet50.

  python -m iqa_jax.main --config=eyeq_resnet50 --workdir=runs/eyeq \\
    --config.data.manual_dir=DIR_WITH_LABEL_FILES_AND_PHOTOGRAPHS

Meant for a GPU or TPU. Not run by us on all of EyeQ, so no result is quoted.
"""

from iqa_jax import config as config_lib


def get_config():
  c = config_lib.variant('brset_resnet50')
  c.data.name = 'eyeq'
  return c
