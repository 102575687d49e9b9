"""Feature maps and their gradients -> signed class activation maps.

One forward pass up to the explained layer, which Flax keeps among the
intermediates; from there `jax.vjp` of the rest of the network, so nothing
below the layer is differentiated. All methods and targets share that pass:

  explainer = jax.jit(functools.partial(
    cam.explain, model, task=task, methods=('gradcam', 'hirescam')))
  explanation = explainer(variables, models.normalize(images), targets)

The maps are signed and unscaled, so that they can be compared between images.
Behind a global average and one linear layer, Grad-CAM's and HiResCAM's sum to
the logit less its bias. Making them presentable is another step (scaling.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import functools
from typing import Any, NamedTuple, Protocol, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Float
import numpy as np

from iqa_jax import errors
from iqa_jax.aliases import Record, Variables
from iqa_jax.explain import methods as methods_lib
from iqa_jax.models import evidence, heads
from iqa_jax.models.classifier import Classifier
from iqa_jax.photograph import placement as placement_lib
from iqa_jax.tasks import Task

METHODS = tuple(methods_lib.COMBINE)

Maps: TypeAlias = Any  # a map, or a tuple of one of each layer
# int [b] or [t, b], or a function from logits to those.
Indices: TypeAlias = jax.Array | np.ndarray
Targets: TypeAlias = Indices | Callable[[jax.Array], Indices]


class Scored(Protocol):
  """What `explain` needs of a task (see tasks.Task)."""

  def scores(
    self, logits: Float[jax.Array, 'batch k']
  ) -> Float[jax.Array, 'batch targets']:
    """Returns the explainable scores [b, n] of logits [b, k]."""


class Explanation(NamedTuple):
  """What one forward pass says; a pytree.

  Attributes:
    logits: float32 [b, k].
    targets: int32 [b] or [t, b], the explained scores' indices.
    scores: float32, of the shape of `targets`, the explained scores.
    maps: {method: float32 [b, h, w] or [t, b, h, w]}, signed and unscaled;
      where several layers were asked for, a tuple of those, in their order.
    landmarks: float32 [b, 5] of a head that locates them (heads.located), else
      NaN.
    cells: of a head of evidence (logits [b, g, g, 3] of a fault of each of
      labels.LOCAL_CRITERIA, field share [b, g, g]), float32; else None.
    cause: float32 [b, 3], logits of such a fault in the whole photograph; else
      None.
  """

  logits: jax.Array
  targets: jax.Array
  scores: jax.Array
  maps: dict[str, Maps]
  landmarks: jax.Array
  cells: tuple[jax.Array, jax.Array] | None = None
  cause: jax.Array | None = None


def explain(
  model: Classifier,
  variables: Variables,
  images: Float[jax.Array, 'batch height width channels'],
  targets: Targets,
  *,
  task: Scored,
  layer: str | Sequence[str] | None = None,
  methods: Sequence[str] = ('gradcam',),
) -> Explanation:
  """Explains each image's own target.

  A pure function of `variables`, `images` and `targets`, to be jitted whole.
  Images don't touch each other, so a batch is worth its images one by one.

  Args:
    model: a models.Classifier.
    variables: its parameters and statistics.
    images: normalised [b, h, w, 3], or with the field as a fourth channel.
    targets: what to explain, indices into the columns of `task.scores`: int
      [b], or [t, b] for t targets of every image, or a function from the
      logits [b, k] to those (see `choose_targets`).
    task: says what the scores are.
    layer: a feature point, None for the model's default, or several.
    methods: some of METHODS.

  Raises:
    ValueError: an unknown method or layer, or targets that do not fit. Of
      targets that are traced only the shape can be checked: one that does not
      exist gives a NaN score and a NaN map.
  """
  for method in methods:
    errors.one_of('method', method, METHODS)
  layers = _layers(model, layer)
  order = sorted(layers, key=model.points.index)
  found = _pass(model, variables, images, task, order)
  wanted = targets(found.logits) if callable(targets) else targets
  ids = _checked(wanted, found.scores)
  # Inside jit a target that does not exist can't raise; let it not pass for 0.
  exists = (ids >= 0) & (ids < found.scores.shape[1])
  chosen = jax.nn.one_hot(ids, found.scores.shape[1], dtype=found.scores.dtype)
  chosen = jnp.where(exists[..., None], chosen, jnp.nan)
  combine = functools.partial(_combine, found, order, methods)
  maps = jax.vmap(combine)(chosen) if ids.ndim == 2 else combine(chosen)
  several = layer is not None and not isinstance(layer, str)
  landmarks = found.told.landmarks
  if landmarks is None:
    landmarks = jnp.full((images.shape[0], 5), jnp.nan)
  return Explanation(
    logits=found.logits.astype(jnp.float32),
    targets=ids,
    scores=jnp.where(chosen == 0, 0, chosen * found.scores).sum(-1),
    maps={
      method: tuple(of[p] for p in layers) if several else of[layers[0]]
      for method, of in maps.items()
    },
    landmarks=landmarks,
    cells=_local(found.told.cells),
    cause=found.told.cause,
  )


def _local(
  cells: tuple[jax.Array, jax.Array] | None,
) -> tuple[jax.Array, jax.Array] | None:
  """Returns cells' logits of labels.LOCAL_CRITERIA alone, and field shares."""
  if cells is None:
    return None
  logits, share = cells
  return logits[..., list(evidence.local(logits.shape[-1]))], share


class _Pass(NamedTuple):
  """A forward pass that can be walked back, point by point.

  Attributes:
    logits: [b, k].
    scores: [b, n].
    maps: {point: its map [b, h, w, c]}.
    pulls: {point: from the gradient of what follows to that of its map}.
    told: what the pass tells beside the logits.
  """

  logits: jax.Array
  scores: jax.Array
  maps: dict[str, jax.Array]
  pulls: dict[str, Callable[[jax.Array], tuple[jax.Array]]]
  told: heads.Found


def _pass(
  model: Classifier,
  variables: Variables,
  images: jax.Array,
  task: Scored,
  order: Sequence[str],
) -> _Pass:
  """Passes through the network, differentiable from point `order[0]` on."""
  # Which maps don't carry on.
  extra: Record = {'field': images[..., 3]} if images.shape[-1] > 3 else {}
  _, state = model.apply(
    variables, images, stop=order[0], mutable=['intermediates']
  )
  maps = {order[0]: state['intermediates'][order[0]][0]}
  told = [heads.found(state)]
  pulls = {}
  for below, point in zip(order, (*order[1:], None), strict=True):

    def run(
      x: jax.Array, below: str = below, point: str | None = point
    ) -> tuple[jax.Array, tuple[jax.Array, heads.Found]]:
      out, kept = model.apply(
        variables,
        x,
        start=below,
        stop=point,
        mutable=['intermediates'],
        **extra,
      )
      result = out if point else task.scores(out)
      return result, (out, heads.found(kept))

    result, pulls[below], (logits, also) = jax.vjp(
      run, maps[below], has_aux=True
    )
    told.append(also)
    if point:
      maps[point] = result
  first = heads.Found(
    *(
      next((part for part in parts if part is not None), None)
      for parts in zip(*told, strict=True)
    )
  )
  return _Pass(logits, result, maps, pulls, first)


def _combine(
  found: _Pass,
  order: Sequence[str],
  methods: Sequence[str],
  cotangent: jax.Array,
) -> dict[str, dict[str, jax.Array]]:
  """Returns {method: {point: map}} of the gradient [b, n] of the scores."""
  maps: dict[str, dict[str, jax.Array]] = {m: {} for m in methods}
  for point in reversed(order):
    (cotangent,) = found.pulls[point](cotangent)
    a, g = found.maps[point].astype(jnp.float32), cotangent.astype(jnp.float32)
    for method in methods:
      maps[method][point] = methods_lib.COMBINE[method](a, g)
  return maps


def choose_targets(
  task: Task,
  target: str,
  logits: np.ndarray | jax.Array,
  *,
  threshold: float = 0.5,
  labels: Mapping[str, np.ndarray] | None = None,
) -> np.ndarray | jax.Array:
  """Returns the index [b] into `task.targets` of what is to be explained.

  Given to `explain` as functools.partial(choose_targets, task, target), it
  chooses from the logits of the very pass that is being explained.

  Args:
    task: a tasks.Task.
    target: 'predicted' (the margin towards the verdict at the operating
      point), 'labelled', or one of `task.targets`: a class, a criterion,
      'margin', 'adequate_margin'.
    logits: [b, k], of NumPy or JAX.
    threshold: the operating point, of the probability of inadequate.
    labels: for 'labelled': {'quality' or 'grade': int [b]} or {'criteria': int
      [b, 4]}. Of several criteria at fault it is the one with the largest
      logit, of none the margin.

  Raises:
    ValueError: no such target, or an image without label.
  """
  if target == 'predicted':
    p_inadequate = task.p_inadequate(jnp.asarray(logits))
    return task.predicted_targets(p_inadequate, threshold)
  if target == 'labelled':
    if labels is None:
      raise errors.InvalidValue('the target "labelled" needs labels')
    label = np.asarray(labels[task.name])
    unknown = np.flatnonzero((label < 0).reshape(len(label), -1).any(axis=1))
    if len(unknown):
      raise errors.InvalidValue(
        f'{len(unknown)} of {len(label)} images have no label {task.name!r} '
        f'(the first is number {unknown[0]}): leave them out, or explain '
        'another target'
      )
    if task.name != 'criteria':
      return label
    at_fault = jnp.where(label == 1, jnp.asarray(logits), -jnp.inf)
    margin = task.targets.index('margin')
    return jnp.where((label == 1).any(axis=1), at_fault.argmax(axis=1), margin)
  errors.one_of('target', target, ('predicted', 'labelled', *task.targets))
  # Traceable for any number of photographs, as other runtimes' programs are.
  shape = jnp.shape(logits)[:1]
  return jnp.full(shape, task.targets.index(target), jnp.int32)


def placed(
  model: Classifier, layer: str | None, how: str = 'network'
) -> placement_lib.Placement | None:
  """Returns where a layer's maps are to be laid, for scaling.enlarge.

  Args:
    model: a models.Classifier.
    layer: a feature point; None for the model's default.
    how: one of placement.NAMES: where the cells look, or evenly, as
      pytorch-grad-cam does.

  Raises:
    ValueError: no such layer or placement.
  """
  errors.one_of('placement', how, placement_lib.NAMES)
  [layer] = _layers(model, layer)
  return None if how == 'pytorch_grad_cam' else model.placement(layer)


def _layers(
  model: Classifier, layer: str | Sequence[str] | None
) -> tuple[str, ...]:
  if layer is None:
    layer = model.default_layer
  layers = (layer,) if isinstance(layer, str) else tuple(layer)
  for name in layers:
    errors.one_of('layer', name, model.points)
  if not layers or len(set(layers)) < len(layers):
    raise errors.InvalidValue(f'layers {layers} are empty or name one twice')
  return layers


def _checked(targets: Indices, scores: jax.Array) -> jax.Array:
  count, columns = scores.shape
  if jnp.ndim(targets) not in (1, 2) or jnp.shape(targets)[-1] != count:
    raise ValueError(
      f'targets of shape {jnp.shape(targets)} for {count} images: give one an '
      'image [b], or several [t, b]'
    )
  if not isinstance(targets, jax.core.Tracer):
    values = np.asarray(targets)
    if values.min() < 0 or values.max() >= columns:
      raise ValueError(
        f'target {values.min() if values.min() < 0 else values.max()} is '
        f'outside the {columns} scores'
      )
  return jnp.asarray(targets, jnp.int32)
