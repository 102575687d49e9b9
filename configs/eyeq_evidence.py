"""EyeQ with a head of evidence: maps by criterion that are the judgement.

  python -m iqa_jax.main --config=eyeq_evidence --workdir=runs/eyeq_evidence \\
    --config.data.manual_dir=EYEQ_DIR

Simulated faults, of named kinds and of none, are put into Good photographs of
the training split and teach the cells where faults are; EyeQ's grades teach
the verdict. The trunk is frozen and each photograph has a few fixed faults of
its own, so all passes through it once. --config.data.learn_inadequate=False
learns from the Good photographs and those faults alone.

The trunk is that of the model which comes with the package: nothing is
downloaded. On a sample of EyeQ (161 train, 68 test photographs, 17 of them not
Good), seeds 0 to 2: AUC 0.979 to 0.987; planted faults' pixel AUC 0.976 of
kinds trained on (dust least, 0.93) and 0.948 of unfamiliar ones, one of them
hardly found (double exposure, 0.76; measured by tests/benchmarks/evidence.py).
"""

from iqa_jax import config as config_lib


def get_config():
  c = config_lib.default()
  c.data.name = 'eyeq'
  c.data.image_size = 448  # the trunk sees half of it
  c.data.augment.flip = False
  c.data.faults.focus = 0.05
  c.data.faults.illumination = 0.1
  c.data.faults.artifacts = 0.15
  c.data.faults.procedural = 0.6
  c.data.fault_variants = 24
  c.task.class_weights = 'balanced'
  c.task.ranking_weight = 3.0
  c.model.name = 'vgg16'
  c.model.head = 'evidence'
  c.model.cell_spread = (0.0, 0.8, 1.7)
  c.model.detail = True
  # It learned from simulated photographs where faults are; within the sample's
  # training split its cells find more than those of a trunk for edges.
  c.model.pretrained = 'bundled'
  c.model.width = 0.7  # as that one has it
  c.train.batch_size = 16
  c.train.cache_gb = 16.0
  c.train.cell_stride = 2
  c.train.phases = (
    config_lib.phase(
      name='evidence',
      learns='evidence+head',
      epochs=300,
      learning_rate=5e-3,
      schedule='cosine',
      weight_decay=0.01,
    ),
  )
  # The first layer of 448 px takes 0.1 GB a photograph.
  c.eval.batch_size = 16
  # Validation knows verdicts only; the cells learn to the end.
  c.eval.select_by = 'last'
  # Evidence only speaks against a photograph.
  c.explain.target = 'margin'
  return c
