"""EyeQ: what the parts of a modern fine-tuning recipe buy, on VGG16.

  python -m iqa_jax.main --config=eyeq_fine_tuning --workdir=runs/tuned \\
    --config.data.manual_dir=DIR --config.model.pretrained=WEIGHTS

The head learns first, then the last convolutional block with it. To see what a
part buys, leave it out and compare (iqa_jax.cross_validate takes the same
arguments):

  the second phase      --config.train.phases[1].epochs=0
  AdamW                 --config.train.phases[0].optimizer=adam
                        --config.train.phases[1].optimizer=adam
  discriminative rates  --config.train.phases[1].layer_decay=1.0
  warm-up and cosine    --config.train.phases[1].schedule=constant
                        --config.train.phases[1].warmup_epochs=0.0
  label smoothing       --config.task.label_smoothing=0.0
  weights' average      --config.train.ema_decay=0.0

On the sample of EyeQ no part made a difference that its 229 photographs could
tell (README.md), so eyeq_vgg16 is the plain recipe.
"""

from iqa_jax import config as config_lib


def get_config():
  c = config_lib.variant('eyeq_vgg16')
  c.data.image_size = 112  # 6 epochs of the block in a minute on two cores
  c.task.label_smoothing = 0.05
  c.train.ema_decay = 0.95
  c.train.phases = (
    config_lib.phase(
      name='head',
      learns='head',
      epochs=20,
      learning_rate=3e-3,
      weight_decay=0.1,
    ),
    config_lib.phase(
      name='last block',
      learns='block4+head',
      epochs=6,
      learning_rate=3e-4,
      schedule='cosine',
      warmup_epochs=1.0,
      weight_decay=1e-2,
      layer_decay=0.3,
    ),
  )
  return c
