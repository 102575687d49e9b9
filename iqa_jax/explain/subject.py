"""A trained network under study: its scores and maps of many photographs.

Everything runs in batches of one size, the last one padded, so that each
function is compiled once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from iqa_jax import errors, inference, models
from iqa_jax.explain import additive, cam
from iqa_jax.judging import calibration
from iqa_jax.models import evidence
from iqa_jax.photograph import prepare

OWN = 'evidence'  # the method of heads whose maps are the judgement


class Seen(NamedTuple):
  """What one pass says of photographs.

  Attributes:
    logits: float32 [n, k].
    maps: {method: raw maps float32 [n, h, w]} of each one's target.
    criteria: {local criterion: raw maps float32 [n, g, g]}, whatever the
      target, of a head of evidence; {} of others.
  """

  logits: np.ndarray
  maps: dict[str, np.ndarray]
  criteria: dict[str, np.ndarray]


class Subject:
  """Asks a trained network about photographs.

  Args:
    loaded: of inference.load.
    methods: some of cam.METHODS, or OWN of a network that has a head of
      evidence.
    layer: the explained feature point; None for the model's default. OWN looks
      at the evidence, whatever this is.
    placement: of placement.NAMES, how maps lie on the photographs.
    batch_size: photographs at a time.
    tick: called with the number of photographs whenever some are done.

  Raises:
    ValueError: the network has no such layer, or no maps of its own.
  """

  def __init__(
    self,
    loaded: inference.Loaded,
    *,
    methods: Sequence[str] = ('gradcam',),
    layer: str | None = None,
    placement: str = 'network',
    batch_size: int = 16,
    tick: Callable[[int], object] = lambda count: None,
  ):
    self.loaded = loaded
    self.methods = tuple(methods)
    self.layer = layer or loaded.model.default_layer
    self.placed = placement
    self.placement = cam.placed(loaded.model, self.layer, placement)
    self.batch_size, self.tick = batch_size, tick
    model, task = loaded.model, loaded.task
    has_own = isinstance(model.head, evidence.Head)
    if OWN in self.methods and not has_own:
      raise errors.InvalidValue(
        f'this network has no maps of its own; leave out the method {OWN}'
      )
    gradient = tuple(m for m in self.methods if m != OWN)

    @jax.jit
    def predict(variables, images):
      x = models.normalize(images)
      return loaded.judged(variables, x, model.apply(variables, x))

    @jax.jit
    def explain(variables, images, targets):
      x = models.normalize(images)
      # XLA sees that all of these begin with the same pass.
      logits = loaded.judged(variables, x, model.apply(variables, x))
      asked = functools.partial(cam.explain, model, variables, x, targets)
      maps, criteria = {}, {}
      if gradient:
        maps = asked(task=task, layer=self.layer, methods=gradient).maps
      if OWN in self.methods:
        # Grad-CAM of the evidence is the evidence, weighted as the head does.
        point = evidence.POINTS[-1]
        [maps[OWN]] = asked(task=task, layer=point).maps.values()
        cells: Any = model.apply(variables, x, stop=point)
        places = evidence.local(cells.shape[-1])
        criteria = {
          name: cells[..., i]
          for name, i in zip(evidence.LOCAL, places, strict=True)
        }
      return Seen(logits, maps, criteria)

    @jax.jit
    def likelihood(variables, images, targets):
      found = task.likelihoods(predict(variables, images))
      return jnp.take_along_axis(found, targets[:, None], 1)[:, 0]

    self._predict, self._explain = predict, explain
    self._likelihood = likelihood

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

  @property
  def likelihood(self) -> jax.tree_util.Partial:
    """The probability of each image's own target, for perturbation.Perturber.

    A function of images as the network takes them (`input`) and targets [b]:
    that of the class, of the fault, or (margins) of the verdict.
    """
    return jax.tree_util.Partial(self._likelihood, self.loaded.variables)

  def score(self, images: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Returns the probability [n] of each image's own target [n]."""
    return self._batched(self.likelihood, images, np.asarray(targets, np.int32))

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
    return self.explain(images, targets, variables).maps

  def explain(
    self, images: np.ndarray, targets: np.ndarray, variables: Any = None
  ) -> Seen:
    """Returns logits and raw maps of images [n, s, s, 3] of 0..255."""
    variables = self.loaded.variables if variables is None else variables
    seen = self._batched(
      functools.partial(self._explain, variables),
      images,
      np.asarray(targets, np.int32),
    )
    # JAX sorts what goes through it by name.
    return seen._replace(maps={name: seen.maps[name] for name in self.methods})

  def enlarged(
    self, name: str, maps: np.ndarray, size: tuple[int, int]
  ) -> np.ndarray:
    """Returns raw maps [n, h, w] at `size`, each cell where it looks.

    Args:
      name: a method; those that are none of this network's (occlusion, the
        evidence) share the picture evenly.
      maps: its maps.
      size: (height, width).
    """
    looks = name in self.methods and name != OWN
    return cam.enlarge(maps, size, self.placement if looks else None)

  def input(self, images: np.ndarray) -> np.ndarray:
    """Returns images [n, s, s, 3] with their field where the network takes it.

    Perturbed photographs keep the field of what they were made of.
    """
    if not self.loaded.model.takes_field or images.shape[-1] > 3:
      return images
    shown = np.clip(np.rint(images), 0, 255).astype(np.uint8)
    return np.stack([prepare.with_field(i) for i in shown])

  def _batched(self, function, *arrays):
    count, size = len(arrays[0]), self.batch_size
    if not count:
      raise ValueError('there is no image to look at')
    arrays = (self.input(arrays[0]), *arrays[1:])
    parts = []
    for first in range(0, count, size):
      batch = [a[first : first + size] for a in arrays]
      short = size - len(batch[0])
      # Repeats an image: zeros could be a network's only NaN.
      batch = [np.concatenate([b, b[:1].repeat(short, 0)]) for b in batch]
      found = jax.device_get(function(*batch))
      parts.append(jax.tree.map(lambda x, n=size - short: x[:n], found))
      self.tick(size - short)
    return jax.tree.map(lambda *x: np.concatenate(x), *parts)
