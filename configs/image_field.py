"""Disc and fovea located beside the verdict: the image field by measurement.

  python -m iqa_jax.main --config=image_field --workdir=runs/image_field
  python -m iqa_jax.export_heatmaps --workdir=runs/image_field --images=DIR \\
    --output=DIR

Simulated photographs, whose landmarks are known; exports then draw the disc,
the fovea and BRSet's three distances in disc diameters, and the manifest lists
them. The run learns nothing of real photographs.
"""

from iqa_jax import config as config_lib


def get_config():
  c = config_lib.variant('demo')
  c.task.name = 'criteria'
  c.task.landmark_weight = 3.0
  c.model.head = 'landmarks'
  # Cells of a sixteenth of the side's pixels: finer than the last stage's.
  c.model.last = 'stage3'
  c.model.width = 0.5
  c.train.phases = (
    config_lib.phase(
      epochs=24,
      learning_rate=1e-3,
      schedule='cosine',
      warmup_epochs=1.0,
      weight_decay=1e-4,
    ),
  )
  return c
