"""BRSet's four criteria at once, and the verdict that follows from them.

  python -m iqa_jax.main --config=brset_criteria --workdir=runs/criteria \\
    --config.data.manual_dir=DIR_WITH_LABELS_AND_FUNDUS_PHOTOS

Simulated faults of the three local criteria are put into a tenth of the
Adequate training photographs, because BRSet has 84 illumination and 57 artifact
cases in all. Not run by us (BRSet is gated), so no result is quoted.
"""

from iqa_jax import config as config_lib


def get_config():
  c = config_lib.variant('brset_resnet50')
  c.task.name = 'criteria'
  c.data.faults.focus = 0.03
  c.data.faults.illumination = 0.04
  c.data.faults.artifacts = 0.04
  return c
