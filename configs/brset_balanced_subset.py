"""Second hypothesis of the earlier work: a balanced subset of BRSet suffices.

  python -m iqa_jax.main --config=brset_balanced_subset --workdir=runs/subset \\
    --config.data.manual_dir=DIR_WITH_LABELS_AND_FUNDUS_PHOTOS

As many Adequate as Inadequate training photographs, none twice; validation and
test keep their natural prevalence. Not run by us (BRSet is gated).
"""

from iqa_jax import config as config_lib


def get_config():
  c = config_lib.variant('brset_resnet50')
  c.data.balance = 'subset'
  c.task.class_weights = 'none'
  return c
