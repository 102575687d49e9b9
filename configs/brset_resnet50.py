"""BRSet, Adequate against Inadequate: staged fine-tuning of ResNet50.

  python -m iqa_jax.main --config=brset_resnet50 --workdir=runs/brset \\
    --config.data.manual_dir=DIR_WITH_LABELS_AND_FUNDUS_PHOTOS

Meant for a GPU or TPU. Not run by us: BRSet is gated (PhysioNet) and no
accelerator was at hand, so no result is quoted.
"""

from iqa_jax import config as config_lib


def get_config():
  c = config_lib.default()
  c.data.name = 'brset'
  c.data.image_size = 448
  c.data.augment.rotation = 5.0
  c.data.augment.scale = 0.05
  c.task.class_weights = 'balanced'
  c.task.label_smoothing = 0.05
  c.model.name = 'resnet50'
  c.model.pretrained = 'resnet50.tv2_in1k'
  c.model.dtype = 'bfloat16'
  c.train.batch_size = 64
  c.train.clip_norm = 1.0
  c.train.ema_decay = 0.999
  c.train.early_stop = 6
  c.train.phases = modern_phases(epochs=20)
  return c


def modern_phases(epochs: int):
  """A warmed-up head first, then everything at discriminative rates."""
  return (
    config_lib.phase(
      name='head',
      learns='head',
      epochs=2,
      learning_rate=1e-3,
      weight_decay=1e-2,
    ),
    config_lib.phase(
      name='all',
      learns='all',
      epochs=epochs,
      learning_rate=3e-4,
      schedule='cosine',
      warmup_epochs=1.0,
      weight_decay=1e-2,
      layer_decay=0.7,
    ),
  )
