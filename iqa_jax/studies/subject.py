"""An Explainer for studies: a head's own maps, and scores of changed pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from iqa_jax import devices, errors, models
from iqa_jax.aliases import PyTree, Variables
from iqa_jax.explain import cam, scaling
from iqa_jax.explain.explainer import Explainer
from iqa_jax.models import evidence
from iqa_jax.trained import Trained

OWN = 'evidence'  # the method of heads whose maps are the judgement


class Look(NamedTuple):
  """What one pass says of photographs.

  Attributes:
    logits: float32 [n, k].
    maps: {method: raw maps float32 [n, h, w]} of each one's target.
    criteria: {local criterion: raw maps float32 [n, g, g]}, whatever the
      target, of a head of evidence if its OWN maps are wanted; else {}.
  """

  logits: np.ndarray
  maps: dict[str, np.ndarray]
  criteria: dict[str, np.ndarray]


class Subject(Explainer):
  """Asks a trained network about photographs, and about changed ones.

  Args:
    trained: the model.
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
    trained: Trained,
    *,
    methods: Sequence[str] = ('gradcam',),
    layer: str | None = None,
    placement: str = 'network',
    batch_size: int = 16,
    tick: Callable[[int], object] = lambda count: None,
  ):
    self.gradient = tuple(m for m in methods if m != OWN)
    super().__init__(
      trained, methods=self.gradient, layer=layer, placement=placement,
      batch_size=batch_size,
    )  # fmt: skip
    self.methods, self.tick = tuple(methods), tick
    if OWN in methods and not isinstance(trained.model.head, evidence.Head):
      raise errors.InvalidValue(
        f'this network has no maps of its own; leave out the method {OWN}'
      )

  def maps(
    self,
    images: np.ndarray,
    targets: np.ndarray,
    variables: Variables | None = None,
  ) -> dict[str, np.ndarray]:
    """Returns {method: raw maps float32 [n, h, w]} of each image's target."""
    return self.explain(images, targets, variables).maps

  def explain(
    self,
    images: np.ndarray,
    targets: np.ndarray,
    variables: Variables | None = None,
  ) -> Look:
    """Returns logits and raw maps of images [n, s, s, 3] of 0..255."""
    variables = self.trained.variables if variables is None else variables
    seen = self._batched(
      self._everything, variables, images, np.asarray(targets, np.int32)
    )
    # JAX sorts what goes through it by name.
    return seen._replace(maps={name: seen.maps[name] for name in self.methods})

  @functools.cached_property
  def _everything(self) -> Callable[..., PyTree]:
    trained, model, task = self.trained, self.trained.model, self.trained.task

    def everything(
      variables: Variables, images: jax.Array, targets: jax.Array
    ) -> Look:
      x = models.normalize(images)
      # XLA sees that all of these begin with the same pass.
      logits = trained.judged(variables, x, model.apply(variables, x))
      explain = functools.partial(
        cam.explain, model, variables, x, targets, task=task
      )
      maps, criteria = {}, {}
      if self.gradient:
        maps = explain(layer=self.layer, methods=self.gradient).maps
      if OWN in self.methods:
        # Grad-CAM of the evidence is the evidence, weighted as the head does.
        point = evidence.POINTS[-1]
        [maps[OWN]] = explain(layer=point).maps.values()
        cells: Any = model.apply(variables, x, stop=point)
        places = evidence.local(cells.shape[-1])
        criteria = {
          name: cells[..., i]
          for name, i in zip(evidence.LOCAL, places, strict=True)
        }
      return Look(logits, maps, criteria)

    return devices.parallel(everything, in_axes=(None, 0, 0))

  @functools.cached_property
  def likelihood(self) -> jax.tree_util.Partial:
    """The probability of each image's own target, for perturbation.Perturber.

    A function of images as the network takes them (`input`) and targets [b]:
    that of the class, of the fault, or (margins) of the verdict.
    """
    trained, task = self.trained, self.trained.task

    def likelihood(
      variables: Variables, images: jax.Array, targets: jax.Array
    ) -> jax.Array:
      x = models.normalize(images)
      logits = trained.judged(variables, x, trained.model.apply(variables, x))
      found = task.likelihoods(logits)
      return jnp.take_along_axis(found, targets[:, None], 1)[:, 0]

    return jax.tree_util.Partial(likelihood, trained.variables)

  def enlarged(
    self, name: str, maps: np.ndarray, size: tuple[int, int]
  ) -> np.ndarray:
    """Returns raw maps [n, h, w] at `size`, each cell where it looks.

    Args:
      name: a method; those that are none of this network's (occlusion), and
        the evidence, share the picture evenly.
      maps: its maps.
      size: (height, width).
    """
    looks = name in self.gradient
    return scaling.enlarge(maps, size, self.placement if looks else None)

  def _batched(
    self,
    function: Callable[..., PyTree],
    variables: Variables,
    images: np.ndarray,
    *others: np.ndarray,
  ) -> PyTree:
    found = super()._batched(function, variables, images, *others)
    self.tick(len(images))
    return found
