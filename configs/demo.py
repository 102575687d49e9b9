"""A quality model trained on simulated fundus photographs, in minutes.

  python -m iqa_jax.main --config=demo --workdir=runs/demo

No download, no GPU: a narrow ResNet50 at 128 px from random initialisation on
drawn photographs with known faults. It shows the whole way from data to report;
its figures say nothing about real photographs.
"""

from iqa_jax import config as config_lib


def get_config():
  c = config_lib.default()
  c.data.name = 'fundus_sim'
  c.data.builder_config = 'demo'
  c.data.image_size = 128
  c.data.augment.rotation = 5.0
  c.model.name = 'resnet50'
  c.model.width = 0.25
  c.model.depth = 0.5
  c.train.batch_size = 16
  c.train.phases = (
    config_lib.phase(
      epochs=16,
      learning_rate=2e-3,
      schedule='cosine',
      warmup_epochs=1.0,
      weight_decay=1e-4,
    ),
  )
  return c
