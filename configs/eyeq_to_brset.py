"""First hypothesis of the earlier work: learn from EyeQ, fine-tune on BRSet.

  python -m iqa_jax.main --config=eyeq_resnet50 --workdir=runs/eyeq ...
  python -m iqa_jax.main --config=eyeq_to_brset --workdir=runs/eyeq_to_brset \\
    --config.model.pretrained=runs/eyeq \\
    --config.data.manual_dir=DIR_WITH_LABELS_AND_FUNDUS_PHOTOS

Not run by us (BRSet is gated), so no result is quoted.
"""

from iqa_jax import config as config_lib


def get_config():
  c = config_lib.variant('brset_resnet50')
  c.model.pretrained = 'runs/eyeq'
  return c
