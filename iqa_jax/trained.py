"""A trained model: the network of a run directory and what its logits mean."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from iqa_jax import config as config_lib
from iqa_jax import devices, models, processes, run_directory
from iqa_jax.aliases import PyTree, Record, Variables
from iqa_jax.judging.operating_record import OperatingRecord
from iqa_jax.models.classifier import Classifier
from iqa_jax.tasks import Task


@dataclasses.dataclass(frozen=True)
class Trained:
  """A trained model, ready to look at photographs.

  Attributes:
    model: the classifier.
    variables: {'params': ..., 'batch_stats': ...}, on this process's devices.
    task: what the logits mean.
    config: the run's configuration.
    record: model.json (operating point, calibration, ...).
    digest: sha256 of the weights, hex.
    image_size: side of the input in pixels.
  """

  model: Classifier
  variables: Variables
  task: Task
  config: ml_collections.ConfigDict
  record: Record
  digest: str
  image_size: int

  @functools.cached_property
  def judges(self) -> OperatingRecord:
    """How its probabilities become verdicts."""
    return OperatingRecord.from_model(self.record)

  def judged(self, variables: Variables, x: jax.Array, logits: Any) -> Any:
    """Returns the logits that the operating point is one of.

    Args:
      variables: of the model.
      x: normalised images [b, s, s, 3].
      logits: theirs, [b, k]; averaged with those of the mirror images where
        `judges.flip_tta` says so.
    """
    if not self.judges.flip_tta:
      return logits
    return (logits + self.model.apply(variables, x[:, :, ::-1])) / 2

  @functools.cached_property
  def raw_threshold(self) -> float:
    """The operating point on the uncalibrated probability."""
    return self.judges.raw_threshold

  def p_inadequate(self, logits: np.ndarray) -> np.ndarray:
    """Returns the calibrated probability [n] of the verdict inadequate."""
    p = np.asarray(self.task.p_inadequate(jnp.asarray(logits)))
    return self.judges.judge(p).p_calibrated


def load(workdir: str | os.PathLike) -> Trained:
  """Loads the best model of a run directory.

  In a run of several processes process 0 reads it and sends it to the others.

  Raises:
    RunDirectoryError: there is none, or it is damaged, or its weights are not
      those of the model that its record describes.
  """
  saved = processes.load_model(workdir)
  where = f'{workdir}/model/model.json'
  try:
    config = config_lib.from_json(json.dumps(saved.record['config']))
    task = Task.from_config(config)
    model = models.from_config(config, task.num_outputs)
    image_size = int(saved.record['image_size'])
    expected = models.shapes(model, image_size)
    # Refuses a damaged record now, not in the middle.
    OperatingRecord.from_model(saved.record)
  except (KeyError, TypeError, ValueError) as error:
    raise run_directory.RunDirectoryError(
      f'{where} does not describe a model: {error}'
    ) from error
  _check(saved.variables, expected, f'{workdir}/model')
  return Trained(
    model=model,
    variables=devices.place(saved.variables),
    task=task,
    config=config,
    record=saved.record,
    digest=saved.digest,
    image_size=image_size,
  )


def _check(variables: Variables, expected: Variables, where: str) -> None:
  """Raises unless `variables` have the structure and shapes expected."""

  def shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
      jax.tree_util.keystr(path, simple=True, separator='/'): leaf.shape
      for path, leaf in leaves
    }

  found, wanted = shapes(variables), shapes(expected)
  for name in sorted(found.keys() | wanted.keys()):
    if found.get(name) != wanted.get(name):
      raise run_directory.RunDirectoryError(
        f'{where}: {name} is {found.get(name, "absent")}, the model that '
        f'model.json describes has {wanted.get(name, "no such tensor")}'
      )
