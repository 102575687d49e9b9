"""What a run's training photographs look like, kept with its model.

So that whoever uses the model is told of a photograph unlike all of them
(judging/familiar.py).
"""

from __future__ import annotations

import dataclasses
import os

import jax
import ml_collections
import numpy as np

from iqa_jax import run_directory
from iqa_jax.data import pipeline
from iqa_jax.data import plan as plan_lib
from iqa_jax.data import source as source_lib
from iqa_jax.judging import familiar, features

FIELD = 'familiar'  # of model.json
_COUNT = 400  # photographs; their features take a hundredth of a second each
_LEAST = 20


def store(
  workdir: str | os.PathLike,
  source: source_lib.Source,
  indices: np.ndarray,
  config: ml_collections.ConfigDict,
) -> None:
  """Adds `FIELD` to a trained model's record, unless it is there.

  Nothing is said of fewer than 20 photographs.

  Args:
    workdir: the run directory.
    source: the data.
    indices: the training examples.
    config: the run's; photographs are augmented as in its first epoch, for
      that is what was learned from.
  """
  saved = run_directory.load_model(workdir).record
  if jax.process_index() or FIELD in saved or len(indices) < _LEAST:
    return
  rows = _features(source, indices, config)
  run_directory.update_model_record(workdir, **{FIELD: familiar.fit(rows)})


def _features(
  source: source_lib.Source,
  indices: np.ndarray,
  config: ml_collections.ConfigDict,
) -> np.ndarray:
  plan = plan_lib.plan_train(source, indices, config, 0)
  some = {
    field.name: getattr(plan, field.name)[:_COUNT]
    for field in dataclasses.fields(plan)
  }
  shown = pipeline.with_fields(
    source, plan_lib.Plan(**some), config.data.image_size
  )
  return np.stack([features.features(*one) for one in shown])
