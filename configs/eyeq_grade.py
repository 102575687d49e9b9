"""EyeQ's own three grades: Good, Usable, Reject.

  python -m iqa_jax.main --config=eyeq_grade --workdir=runs/grade \\
    --config.data.manual_dir=DIR_WITH_LABEL_FILES_AND_PHOTOGRAPHS

Not run by us on all of EyeQ, so no result is quoted. MCF-Net's published
accuracy on the same test split is 0.8800 (see iqa_jax.score).
"""

from iqa_jax import config as config_lib


def get_config():
  c = config_lib.variant('eyeq_resnet50')
  c.task.name = 'grade'
  return c
