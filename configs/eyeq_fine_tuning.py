"""EyeQ: what the parts of the modern fine-tuning recipe buy, on VGG16.

  python -m iqa_jax.main --config=eyeq_fine_tuning --workdir=runs/all_parts \\
    --config.data.manual_dir=DIR --config.model.pretrained=WEIGHTS

The head learns first, then the last convolutional block with it. Leave a part
out, and compare:

  AdamW               --config.train.phases[1].optimizer=adam
  discriminative rates --config.train.phases[1].layer_decay=1.0
  warm-up and cosine  --config.train.phases[1].schedule=constant
                      --config.train.phases[1].warmup_epochs=0.0
  label smoothing     --config.task.label_smoothing=0.0
  EMA                 --config.train.ema_decay=0.0
  the second phase    --config.train.phases[1].epochs=0
"""

from iqa_jax import config as config_lib


def get_config():
  c = config_lib.variant('eyeq_vgg16')
  c.data.image_size = 112
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
      epochs=10,
      learning_rate=3e-4,
      schedule='cosine',
      warmup_epochs=1.0,
      weight_decay=1e-2,
      layer_decay=0.3,
    ),
  )
  return c
