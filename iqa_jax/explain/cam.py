"""Feature maps and their gradients -> signed class activation maps.

One forward pass up to the explained layer, which Flax keeps among the
intermediates; from there `jax.vjp` of the rest of the network, so nothing
below the layer is differentiated. All methods and targets share that pass:

  explainer = jax.jit(functools.partial(
    cam.explain, model, task=task, methods=('gradcam', 'hirescam')))
  explanation = explainer(variables, models.normalize(images), targets)

The maps are signed and unscaled, so that they can be compared between images.
Behind a global average and one linear layer, Grad-CAM's and HiResCAM's sum to
the logit less its bias. Making them presentable is a separate step, `scale`.

Methods, of the maps A [h, w, c] and gradients G of the explained score:

  gradcam    sum_c mean(G_c) A_c                  Selvaraju et al. 2017
  gradcampp  Grad-CAM++, equation 19              Chattopadhay et al. 2018
  hirescam   sum_c G_c A_c                        Draelos and Carin 2020
  layercam   sum_c relu(G_c) A_c                  Jiang et al. 2021
  xgradcam   sum_c (sum G_c A_c / sum A_c) A_c    Fu et al. 2020
  eigencam   A projected on its first principal component, whatever the target
             (Muhammad and Yeasin 2020)

Arithmetic as in pytorch-grad-cam 1.5.7. EigenCAM's sign is arbitrary there;
here it is positive where the activation, summed over channels, is larger.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from iqa_jax import errors
from iqa_jax.models import evidence, heads
from iqa_jax.photograph import geometry
from iqa_jax.photograph import placement as placement_lib

METHODS = (
  'gradcam',
  'gradcampp',
  'hirescam',
  'layercam',
  'xgradcam',
  'eigencam',
)
SCALINGS = ('none', 'image', 'dataset', 'logit')

# A map, or one of each layer.
Maps = Any
Targets = Any  # int [b] or [t, b], or a function from logits to those


class Scored(Protocol):
  """What `explain` needs of a task (see tasks.Task)."""

  def scores(self, logits: jax.Array) -> jax.Array:
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
  model: Any,
  variables: Mapping[str, Any],
  images: jax.Array,
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
    check_method(method)
  layers = _layers(model, layer)
  order = sorted(layers, key=model.points.index)

  # Which maps don't carry on.
  field = {'field': images[..., 3]} if images.shape[-1] > 3 else {}
  _, state = model.apply(
    variables, images, stop=order[0], mutable=['intermediates']
  )
  maps = {order[0]: state['intermediates'][order[0]][0]}
  told = [heads.found(state)]
  pulls: dict[str, Callable[[jax.Array], tuple[jax.Array]]] = {}
  for below, point in zip(order, (*order[1:], None), strict=True):

    def run(x, below=below, point=point):
      out, kept = model.apply(
        variables,
        x,
        start=below,
        stop=point,
        mutable=['intermediates'],
        **field,
      )
      result = out if point else task.scores(out)
      return result, (out, heads.found(kept))

    result, pulls[below], (logits, also) = jax.vjp(
      run, maps[below], has_aux=True
    )
    told.append(also)
    if point is None:
      scores = result
    else:
      maps[point] = result

  ids = _checked(targets(logits) if callable(targets) else targets, scores)

  chosen = jax.nn.one_hot(ids, scores.shape[1], dtype=scores.dtype)
  # Inside jit a target that does not exist can't raise; let it not pass for 0.
  exists = (ids >= 0) & (ids < scores.shape[1])
  chosen = jnp.where(exists[..., None], chosen, jnp.nan)

  def combine(cotangent):
    found: dict[str, dict[str, jax.Array]] = {m: {} for m in methods}
    for point in reversed(order):
      (cotangent,) = pulls[point](cotangent)
      a, g = maps[point].astype(jnp.float32), cotangent.astype(jnp.float32)
      for method in methods:
        found[method][point] = _COMBINE[method](a, g)
    return found

  found = jax.vmap(combine)(chosen) if ids.ndim == 2 else combine(chosen)
  several = layer is not None and not isinstance(layer, str)
  landmarks, cells, cause = (
    next((part for part in parts if part is not None), None)
    for parts in zip(*told, strict=True)
  )
  if landmarks is None:
    landmarks = jnp.full((images.shape[0], 5), jnp.nan)
  if cells is not None:
    of_local = list(evidence.local(cells[0].shape[-1]))
    cells = cells[0][..., of_local], cells[1]
  return Explanation(
    logits=logits.astype(jnp.float32),
    targets=ids,
    scores=jnp.where(chosen == 0, 0, chosen * scores).sum(-1),
    maps={
      method: tuple(of[p] for p in layers) if several else of[layers[0]]
      for method, of in found.items()
    },
    landmarks=landmarks,
    cells=cells,
    cause=cause,
  )


def check_method(method: str) -> None:
  """Raises InvalidValue unless there is such a method."""
  if method not in METHODS:
    raise errors.InvalidValue(
      f'method {method!r} is none of {", ".join(METHODS)}'
    )


def choose_targets(
  task: Any,
  target: str,
  logits: Any,
  *,
  threshold: float = 0.5,
  labels: Mapping[str, np.ndarray] | None = None,
) -> Any:
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
  if target not in task.targets:
    names = ', '.join(('predicted', 'labelled', *task.targets))
    raise errors.InvalidValue(f'target {target!r} is none of {names}')
  return np.full(len(logits), task.targets.index(target), np.int32)


def status(maps: np.ndarray) -> Any:
  """Returns what each raw map [..., h, w] is: a str, or an array of str.

  'ok'; 'empty' when nothing in it is positive, so that there is no evidence
  for the target and nothing to colour; 'not_finite' when the network ran over.
  """
  maps = np.asarray(maps)
  empty = ~(maps > 0).any(axis=(-2, -1))
  finite = np.isfinite(maps).all(axis=(-2, -1))
  found = np.where(finite, np.where(empty, 'empty', 'ok'), 'not_finite')
  return str(found) if found.ndim == 0 else found


def scale(
  maps: Any,
  how: str = 'image',
  size: tuple[int, int] | None = None,
  *,
  magnitude: float | None = None,
  constant: Any = 0.0,
  placement: Any = None,
) -> np.ndarray:
  """Returns maps made presentable: scaled, then enlarged.

  Args:
    maps: raw maps [..., h, w], or a sequence of them, one a layer, that are
      scaled and enlarged one by one and averaged.
    how: 'none'; 'image', which shows each image's positive evidence from 0 to
      1 as pytorch-grad-cam does (an empty map becomes 0); 'dataset', which
      divides by `magnitude` and clips to [-1, 1], so that images compare;
      'logit', which multiplies by the number of cells and adds `constant`:
      what the logit would be, less its bias, if the whole picture looked like
      this place. True of the maps that additive.obstacle lets through.
    size: (height, width) of the result; None leaves the maps as they are.
    magnitude: for 'dataset', see `magnitude`.
    constant: for 'logit', a number or one a map [..., 1, 1], see
      additive.constants.
    placement: of `enlarge`; of several layers a sequence, or None.

  Returns:
    float32 [..., height, width].

  Raises:
    ValueError: no such scaling, no magnitude, or layers without a size.
  """
  if how not in SCALINGS:
    raise errors.InvalidValue(
      f'scaling {how!r} is none of {", ".join(SCALINGS)}'
    )
  if how == 'dataset' and not (magnitude and magnitude > 0):
    raise ValueError(
      f"scaling 'dataset' needs a positive magnitude, got {magnitude}"
    )
  layers = list(maps) if isinstance(maps, (list, tuple)) else [maps]
  if size is None and len(layers) > 1:
    raise ValueError('maps of several layers need a size to be averaged at')
  places = placement if isinstance(placement, (list, tuple)) else [placement]
  if len(places) < len(layers):
    places = list(places) * len(layers)
  result = np.mean(
    [
      _scale(m, how, size, magnitude, constant, place)
      for m, place in zip(layers, places, strict=True)
    ],
    axis=0,
  )
  return _stretch(result) if how == 'image' and size else result


def _scale(maps, how, size, magnitude, constant, placement):
  maps = np.asarray(maps, np.float32)
  if how == 'image':
    maps = _stretch(np.maximum(maps, 0))
  elif how == 'dataset':
    maps = np.clip(maps / np.float32(magnitude), -1, 1)
  elif how == 'logit':
    maps = maps * np.float32(maps.shape[-2] * maps.shape[-1])
    maps = maps + np.asarray(constant, np.float32)
  return maps if size is None else enlarge(maps, size, placement)


def magnitude(maps: np.ndarray, quantile: float = 0.99) -> float:
  """Returns the common unit of raw maps [n, h, w] for scaling 'dataset'.

  The quantile of the images' largest absolute values, so that a single odd
  image does not make all others pale.
  """
  largest = np.abs(np.asarray(maps)).max(axis=(-2, -1))
  return float(np.quantile(largest, quantile))


def enlarge(
  maps: np.ndarray,
  size: tuple[int, int],
  placement: placement_lib.Placement | None = None,
) -> np.ndarray:
  """Returns maps [..., h, w] resized bilinearly to float32 [..., *size].

  Args:
    maps: of any leading shape.
    size: (height, width) of the picture that they are laid over.
    placement: where the cells look, in pixels of that picture (see `placed`);
      None for cells that share it evenly, as OpenCV's INTER_LINEAR has it.
      Beyond the outer cells' centres their values go on.
  """
  maps = np.asarray(maps, np.float32)
  rows, columns = (
    geometry.interpolation(
      (placement or placement_lib.evenly(new, old)).cells(np.arange(new) + 0.5),
      old,
    )
    for old, new in zip(maps.shape[-2:], size, strict=True)
  )
  return rows @ maps @ columns.T


def placed(
  model: Any, layer: str | None, how: str = 'network'
) -> placement_lib.Placement | None:
  """Returns where a layer's maps are to be laid, for `enlarge`.

  Args:
    model: a models.Classifier.
    layer: a feature point; None for the model's default.
    how: one of placement.NAMES: where the cells look, or evenly, as
      pytorch-grad-cam does.

  Raises:
    ValueError: no such layer or placement.
  """
  if how not in placement_lib.NAMES:
    raise errors.InvalidValue(
      f'placement {how!r} is none of {", ".join(placement_lib.NAMES)}'
    )
  [layer] = _layers(model, layer)
  return None if how == 'pytorch_grad_cam' else model.placement(layer)


def _stretch(maps):
  """Stretches each map from its least to its largest value to [0, 1]."""
  maps = maps - maps.min(axis=(-2, -1), keepdims=True)
  return maps / (np.float32(1e-7) + maps.max(axis=(-2, -1), keepdims=True))


def _layers(model, layer) -> tuple[str, ...]:
  if layer is None:
    layer = model.default_layer
  layers = (layer,) if isinstance(layer, str) else tuple(layer)
  for name in layers:
    if name not in model.points:
      raise errors.InvalidValue(
        f'layer {name!r} is none of {", ".join(model.points)}'
      )
  if not layers or len(set(layers)) < len(layers):
    raise errors.InvalidValue(f'layers {layers} are empty or name one twice')
  return layers


def _checked(targets, scores) -> jax.Array:
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


def _weighted(activations, weights):
  return jnp.einsum(
    'bhwc,bc->bhw', activations, weights, precision=lax.Precision.HIGHEST
  )


def _gradcam(a, g):
  return _weighted(a, g.mean((1, 2)))


def _gradcampp(a, g):
  total = a.sum((1, 2), keepdims=True)
  alpha = g**2 / (2 * g**2 + total * g**3 + 1e-6)
  # Where g < 0 the denominator can vanish; the weight is 0 there anyway.
  return _weighted(a, jnp.where(g > 0, g * alpha, 0).sum((1, 2)))


def _hirescam(a, g):
  return (g * a).sum(-1)


def _layercam(a, g):
  return (jax.nn.relu(g) * a).sum(-1)


def _xgradcam(a, g):
  total = a.sum((1, 2), keepdims=True)
  return _weighted(a, (g * a / (total + 1e-7)).sum((1, 2)))


def _eigencam(a, g):
  del g  # depends on the activations only
  b, h, w, c = a.shape
  flat = a.reshape(b, h * w, c)
  # Without the mean the first component would be the mean.
  flat = flat - flat.mean(1, keepdims=True)
  # The eigenvectors of the smaller of the two Gram matrices.
  wide = c > h * w
  gram = jnp.einsum(
    'bic,bjc->bij' if wide else 'bic,bid->bcd',
    flat,
    flat,
    precision=lax.Precision.HIGHEST,
  )
  values, vectors = jnp.linalg.eigh(gram)
  first = vectors[:, :, -1]
  if wide:
    # A singular value times its left vector is the projection on the right.
    projection = first * jnp.sqrt(jnp.maximum(values[:, -1:], 0))
  else:
    projection = _weighted(flat[:, None], first)[:, 0]
  along = (projection * flat.sum(2)).sum(1, keepdims=True)
  return (projection * jnp.where(along < 0, -1, 1)).reshape(b, h, w)


_COMBINE = {
  'gradcam': _gradcam,
  'gradcampp': _gradcampp,
  'hirescam': _hirescam,
  'layercam': _layercam,
  'xgradcam': _xgradcam,
  'eigencam': _eigencam,
}
