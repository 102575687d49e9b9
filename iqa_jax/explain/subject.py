"""A trained network under study: its scores and maps of many photographs.

Everything runs in batches of one size, the last one padded, so that each
function is compiled once.
"""

from __future__ import annotations

from collections.abc import Sequence
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from iqa_jax import inference, models
from iqa_jax.explain import additive, cam
from iqa_jax.judging import calibration
from iqa_jax.photograph import prepare


class Subject:
  """Asks a trained network about photographs.

  Args:
    loaded: of inference.load.
    methods: some of cam.METHODS.
    layer: the explained feature point; None for the model's default.
    placement: of placement.NAMES, how maps lie on the photographs.
    batch_size: photographs at a time.
  """

  def __init__(
    self,
    loaded: inference.Loaded,
    *,
    methods: Sequence[str] = ('gradcam',),
    layer: str | None = None,
    placement: str = 'network',
    batch_size: int = 16,
  ):
    self.loaded = loaded
    self.methods = tuple(methods)
    self.layer = layer or loaded.model.default_layer
    self.placed = placement
    self.placement = cam.placed(loaded.model, self.layer, placement)
    self._batch_size = batch_size
    model, task = loaded.model, loaded.task
    explain = functools.partial(
      cam.explain, model, task=task, layer=self.layer, methods=self.methods
    )

    @jax.jit
    def predict(variables, images):
      x = models.normalize(images)
      return loaded.judged(variables, x, model.apply(variables, x))

    @jax.jit
    def maps(variables, images, targets):
      return explain(variables, models.normalize(images), targets).maps

    @jax.jit
    def likelihoods(logits):
      return task.likelihoods(logits)

    self._predict, self._maps, self._likelihoods = predict, maps, likelihoods

  @property
  def threshold(self) -> float:
    """The operating point, on the calibrated probability; 0.5 without one."""
    return self.loaded.record.get('operating_point', {}).get('threshold', 0.5)

  def criterion_threshold(self, name: str) -> float:
    """The operating point of a criterion, on its probability; 0.5 without."""
    points = self.loaded.record.get('criteria_operating_points', {})
    return points.get(name, {}).get('threshold', 0.5)

  def logits(self, images: np.ndarray, variables: Any = None) -> np.ndarray:
    """Returns logits [n, k] of images [n, s, s, 3] of 0..255.

    Averaged with the mirror images' where the operating point is one of such.
    """
    variables = self.loaded.variables if variables is None else variables
    return self._batched(functools.partial(self._predict, variables), images)

  def score(self, images: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Returns the probability [n] of each image's own target [n].

    That of the class, of the fault, or (margins) of the verdict.
    """
    found = np.asarray(self._likelihoods(self.logits(images)))
    return found[np.arange(len(found)), targets]

  def p_inadequate(self, logits: np.ndarray) -> np.ndarray:
    """Returns the calibrated probability [n] of the verdict inadequate."""
    p = np.asarray(self.loaded.task.p_inadequate(jnp.asarray(logits)))
    return calibration.apply(self.loaded.record.get('calibration'), p)

  def targets(
    self, target: str, logits: np.ndarray, labels: Any = None
  ) -> np.ndarray:
    """Returns what is to be explained, int [n]; see cam.choose_targets."""
    task = self.loaded.task
    if target == 'predicted':
      p_inadequate = self.p_inadequate(logits)
      return np.asarray(task.predicted_targets(p_inadequate, self.threshold))
    return np.asarray(cam.choose_targets(task, target, logits, labels=labels))

  def constants(self) -> dict[str, float]:
    """Returns {target: additive.constants} where maps add up to the score."""
    model, task = self.loaded.model, self.loaded.task
    method, layer = self.methods[0], self.layer
    additive_ones = [
      target
      for target in task.targets
      if not additive.obstacle(
        model, task, method=method, layer=layer, target=target
      )
    ]
    if not additive_ones:
      return {}
    found = additive.constants(model, self.loaded.variables, task)
    return {t: float(found[task.targets.index(t)]) for t in additive_ones}

  def maps(
    self, images: np.ndarray, targets: np.ndarray, variables: Any = None
  ) -> dict[str, np.ndarray]:
    """Returns {method: raw maps float32 [n, h, w]}."""
    variables = self.loaded.variables if variables is None else variables
    return self._batched(
      functools.partial(self._maps, variables),
      images,
      np.asarray(targets, np.int32),
    )

  def _batched(self, function, *arrays):
    count, size = len(arrays[0]), self._batch_size
    if not count:
      raise ValueError('there is no image to look at')
    images = arrays[0]
    if self.loaded.model.takes_field and images.shape[-1] == 3:
      # Perturbed photographs come without; they still show their field.
      shown = np.clip(np.rint(images), 0, 255).astype(np.uint8)
      arrays = (np.stack([prepare.with_field(i) for i in shown]), *arrays[1:])
    parts = []
    for first in range(0, count, size):
      batch = [a[first : first + size] for a in arrays]
      short = size - len(batch[0])
      # Repeats an image: zeros could be a network's only NaN.
      batch = [np.concatenate([b, b[:1].repeat(short, 0)]) for b in batch]
      found = jax.device_get(function(*batch))
      parts.append(jax.tree.map(lambda x, n=size - short: x[:n], found))
    return jax.tree.map(lambda *x: np.concatenate(x), *parts)
