"""The earlier work's schedule: VGG16, dense head, 30 epochs in two phases.

  python -m iqa_jax.main --config=earlier_work --workdir=runs/earlier \\
    --config.data.name=brset --config.data.manual_dir=DIR

Adam at 1e-5 on the head alone for 10 epochs, then the last convolutional block
with it at a tenth of that; batch 128, 224 px, flips. What is frozen is computed
once. Unlike the earlier work, patients never cross splits.
"""

from iqa_jax import config as config_lib


def get_config():
  c = config_lib.default()
  c.data.name = 'brset'
  c.data.image_size = 224
  c.data.balance = 'subset'
  c.model.name = 'vgg16'
  c.model.head = 'mlp'
  c.model.pretrained = 'vgg16.tv_in1k'
  c.train.batch_size = 128
  c.train.phases = (
    config_lib.phase(
      name='head',
      learns='head',
      epochs=10,
      optimizer='adam',
      learning_rate=1e-5,
    ),
    config_lib.phase(
      name='last block',
      learns='block5+head',
      epochs=20,
      optimizer='adam',
      learning_rate=1e-6,
    ),
  )
  return c
