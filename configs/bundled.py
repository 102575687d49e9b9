"""The model that comes with the package: simulated photographs alone.

  python -m iqa_jax.main --config=bundled --workdir=runs/bundled
  python -m iqa_jax.bundle --workdir=runs/bundled

Drawn photographs, taken again in every epoch by another camera, most of them
with a fault whose place teaches the cells; validation and test are by cameras
that training never draws. The verdict leaves the image field out. Figures on
real photographs, and what the model is not for: iqa_jax/bundled/README.md.
"""

from iqa_jax import config as config_lib


def get_config():
  c = config_lib.default()
  c.data.name = 'fundus_sim'
  c.data.builder_config = 'cameras'
  c.data.image_size = 256
  c.data.augment.cameras = 0.95
  c.data.augment.flip = False
  c.data.faults.focus = 0.1
  c.data.faults.illumination = 0.1
  c.data.faults.artifacts = 0.11
  c.data.faults.procedural = 0.16
  c.data.fault_variants = 2
  c.model.name = 'filters'
  c.model.head = 'evidence'
  c.model.cells = 16
  c.model.cell_units = 64
  c.train.batch_size = 16
  c.train.clip_norm = 5.0
  c.train.ema_decay = 0.995
  c.train.phases = (
    config_lib.phase(
      epochs=60,
      learning_rate=2e-3,
      schedule='cosine',
      warmup_epochs=3.0,
      weight_decay=0.01,
    ),
  )
  # Of half of the real photographs that a new camera takes nobody knows the
  # share that fails: the point costs a missed fault as much as a false alarm.
  c.eval.calibration = 'platt'
  # Longer runs rank drawings better and are surer of them than they should be:
  # their validation loss rises, and real photographs fare worse.
  c.eval.select_by = 'loss'
  c.eval.operating_point = 'youden'
  c.explain.examples = 12
  return c
