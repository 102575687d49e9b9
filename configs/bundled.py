"""The model that comes with the package: simulated photographs alone.

  python -m iqa_jax.experiments.drawings --output=runs/drawings
  python -m iqa_jax.main --config=bundled --workdir=runs/bundled \\
    --config.model.pretrained=runs/drawings
  python -m iqa_jax.bundle --workdir=runs/bundled

The first command teaches the trunk and the cells, on a GPU in minutes. Here the
verdict is fitted to what the cells find: drawn photographs, each by several
cameras, most of them with a fault. Validation and test are by cameras that
training never draws. The verdict leaves the image field out. Figures on real
photographs, and what the model is not for: iqa_jax/bundled/README.md.
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
  c.model.name = 'vgg16'
  c.model.width = 0.7
  c.model.head = 'evidence'
  c.model.cells = 32
  c.model.cell_units = 64
  c.task.ranking_weight = 1.0
  c.train.batch_size = 64
  c.train.phases = (
    config_lib.phase(
      name='verdict',
      learns='head',
      epochs=60,
      learning_rate=1e-2,
      schedule='cosine',
    ),
  )
  # Of half of the real photographs that a new camera takes nobody knows the
  # share that fails: the point costs a missed fault as much as a false alarm.
  c.eval.calibration = 'platt'
  c.eval.select_by = 'loss'
  c.eval.operating_point = 'youden'
  c.explain.examples = 12
  return c
