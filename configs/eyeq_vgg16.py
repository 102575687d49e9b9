"""EyeQ, Good against Usable and Reject: a new head on a frozen VGG16 trunk.

  python -m iqa_jax.main --config=eyeq_vgg16 --workdir=runs/eyeq \\
    --config.data.manual_dir=DIR_WITH_LABEL_FILES_AND_PHOTOGRAPHS \\
    --config.model.pretrained=vgg16.tv_in1k

The trunk's maps are computed once (flips are the only augmentation) and reused
by every epoch, so this trains in minutes without a GPU. README.md says what it
reaches on the sample it was measured on.
"""

from iqa_jax import config as config_lib


def get_config():
  c = config_lib.default()
  c.data.name = 'eyeq'
  c.task.class_weights = 'balanced'
  c.model.name = 'vgg16'
  # Quality is seen in texture more than in objects. Within the sample's
  # training split this point separates better than the trunk's end (README.md).
  c.model.last = 'block4_pool'
  c.model.head = 'standardized'
  c.model.pretrained = 'vgg16.tv_in1k'
  c.train.batch_size = 32
  c.train.phases = (
    config_lib.phase(
      name='head',
      learns='head',
      epochs=60,
      learning_rate=3e-3,
      schedule='cosine',
      weight_decay=0.1,
    ),
  )
  # The sample's validation fold is too small for its AUC to tell epochs apart.
  c.eval.select_by = 'loss'
  return c
