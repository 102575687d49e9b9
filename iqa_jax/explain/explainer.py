"""A trained model under explanation: its scores and maps of many photographs.

The one batched predictor of arrays: what exports, studies, reports and the API
ask of a network goes through an Explainer. Photographs run in batches of one
size over this process's devices, the last one padded, so that each function is
compiled once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Float, Integer, Real, UInt8
import numpy as np

from iqa_jax import devices, errors, labels, models, runtimes
from iqa_jax.aliases import PyTree, Variables
from iqa_jax.explain import additive, cam
from iqa_jax.judging import cause as cause_lib
from iqa_jax.judging.verdict import Criterion
from iqa_jax.photograph import prepare
from iqa_jax.photograph.placement import Placement
from iqa_jax.runtimes import sessions
from iqa_jax.trained import Trained

_IN_FLIGHT = 1  # batches computed while the host prepares the next one


@dataclasses.dataclass(frozen=True)
class Seen:
  """What a network said of photographs in one pass.

  Attributes:
    logits: float32 [n, k], those that the operating point is one of.
    probabilities: float32 [n, k], of every output.
    p_inadequate: float32 [n], before calibration.
    targets: int32 [n], into `Task.targets`: what the maps explain.
    raw: float32 [n, h, w], signed maps.
    landmarks: float32 [n, 5], see cam.Explanation.
    criteria: float32 [n, c], probability of a fault of each of
      Explainer.criteria; None where it knows none.
    evidence: float32 [n, g, g, 3] of labels.LOCAL_CRITERIA in each cell, see
      cause.shares; None of heads without cells.
    field_share: float32 [n, g, g], of each cell in the field; None likewise.

  An index or a slice of it is of one photograph or of some.
  """

  logits: np.ndarray
  probabilities: np.ndarray
  p_inadequate: np.ndarray
  targets: np.ndarray
  raw: np.ndarray
  landmarks: np.ndarray
  criteria: np.ndarray | None = None
  evidence: np.ndarray | None = None
  field_share: np.ndarray | None = None

  def __len__(self) -> int:
    return len(self.logits)

  def __getitem__(self, index: int | slice) -> Seen:
    values: dict[str, np.ndarray | None] = {
      f.name: getattr(self, f.name) for f in dataclasses.fields(self)
    }
    return Seen(**{k: v[index] for k, v in values.items() if v is not None})

  def cells(self) -> dict[str, Float[np.ndarray, 'g g']]:
    """Returns {criterion: probability [g, g] of its fault in each cell}.

    Of one photograph; 0 outside the field; {} of heads without cells.
    """
    if self.evidence is None or self.field_share is None:
      return {}
    faulty = -np.expm1(-self.evidence) * self.field_share[..., None]
    maps = np.moveaxis(faulty.astype(np.float32), -1, 0)
    return dict(zip(labels.LOCAL_CRITERIA, maps, strict=True))


class Explainer:
  """Asks a trained model about photographs, and why.

  Args:
    trained: the model.
    methods: some of cam.METHODS; the first is what `look` draws.
    layer: the explained feature point; None for the model's default.
    target: what `look` explains: 'predicted' or one of `Task.targets`.
    placement: of placement.NAMES, how maps lie on the photographs.
    batch_size: photographs at a time, over all devices; 0 for
      devices.batch_size.
    runtime: of runtimes.NAMES, what computes `look` and `logits`.

  Raises:
    InvalidValue: no such method, layer, target, placement or runtime.
    UserError: the runtime is not installed.
  """

  def __init__(
    self,
    trained: Trained,
    *,
    methods: Sequence[str] = ('gradcam',),
    layer: str | None = None,
    target: str = 'predicted',
    placement: str = 'network',
    batch_size: int = 0,
    runtime: str = 'jax',
  ):
    runtimes.check(runtime)
    self.runtime = runtime
    self.trained = trained
    self.methods = tuple(methods)
    self.layer = layer or trained.model.default_layer
    self.target = target
    self.placed = placement
    self.placement: Placement | None = cam.placed(
      trained.model, self.layer, placement
    )
    self.batch_size = devices.batch_size(batch_size)
    for method in self.methods:
      errors.one_of('method', method, cam.METHODS)
    if target not in ('predicted', 'labelled', *trained.task.targets):
      raise errors.InvalidValue(
        f'target {target!r} is none of predicted, '
        f'{", ".join(trained.task.targets)}'
      )

  def prepare(self) -> None:
    """Makes what `look` runs.

    Raises:
      UserError: the runtime can't compute the map that was asked for.
    """
    _ = self._look

  @property
  def criteria(self) -> tuple[str, ...]:
    """The criteria whose probability of a fault the model tells."""
    if self.trained.task.name == 'criteria':
      return labels.CRITERIA
    return labels.LOCAL_CRITERIA if self.trained.model.takes_field else ()

  def cause(self, seen: Seen, verdict: str) -> tuple[str, dict[str, Criterion]]:
    """Returns the cause of one photograph's verdict, see cause.find."""
    if seen.criteria is None:
      return '', {}
    judges = self.trained.judges
    return cause_lib.find(
      verdict,
      dict(zip(self.criteria, seen.criteria.tolist(), strict=True)),
      seen.evidence,
      seen.field_share,
      thresholds={k: judges.criterion_threshold(k) for k in self.criteria},
    )

  @property
  def threshold(self) -> float:
    """The operating point, on the calibrated probability; 0.5 without one."""
    return self.trained.judges.threshold

  def look(self, images: UInt8[np.ndarray, 'n s s c']) -> Seen:
    """Judges and explains each photograph in one pass.

    Args:
      images: uint8 [n, s, s, 3 or 4], prepared.
    """
    found = self._batched(self._look, self.trained.variables, images)
    return Seen(**found)

  def logits(
    self, images: Real[np.ndarray, 'n s s c']
  ) -> Float[np.ndarray, 'n k']:
    """Returns logits [n, k] of images [n, s, s, 3] of 0..255.

    Averaged with the mirror images' where the operating point is one of such.
    """
    return self._batched(self._predict, self.trained.variables, images)

  def score(
    self,
    images: Real[np.ndarray, 'n s s c'],
    targets: Integer[np.ndarray, ' n'],
  ) -> Float[np.ndarray, ' n']:
    """Returns the probability [n] of each image's own target [n].

    That of the class, of the fault, or (margins) of the verdict.
    """
    found = self.trained.task.likelihoods(jnp.asarray(self.logits(images)))
    return np.asarray(found)[np.arange(len(images)), targets]

  def p_inadequate(
    self, logits: Float[np.ndarray, 'n k']
  ) -> Float[np.ndarray, ' n']:
    """Returns the calibrated probability [n] of the verdict inadequate."""
    return self.trained.p_inadequate(logits)

  def targets(
    self,
    target: str,
    logits: Float[np.ndarray, 'n k'],
    labels: Mapping[str, np.ndarray] | None = None,
  ) -> Integer[np.ndarray, ' n']:
    """Returns what is to be explained, int [n]; see cam.choose_targets."""
    return np.asarray(
      cam.choose_targets(
        self.trained.task,
        target,
        logits,
        threshold=self.trained.raw_threshold,
        labels=labels,
      )
    )

  def maps(
    self,
    images: Real[np.ndarray, 'n s s c'],
    targets: Integer[np.ndarray, ' n'],
    variables: Variables | None = None,
  ) -> dict[str, Float[np.ndarray, 'n h w']]:
    """Returns {method: raw maps float32 [n, h, w]} of each image's target."""
    variables = self.trained.variables if variables is None else variables
    targets = np.asarray(targets, np.int32)
    return self._batched(self._maps, variables, images, targets)

  def constants(self) -> dict[str, float]:
    """Returns {target: additive.constants} where maps add up to the score."""
    model, task = self.trained.model, self.trained.task
    found = additive.constants(model, self.trained.variables, task)
    return {
      target: float(found[i])
      for i, target in enumerate(task.targets)
      if not additive.obstacle(
        model, task, method=self.methods[0], layer=self.layer, target=target
      )
    }

  def comparable(self) -> dict[int, float]:
    """Returns `constants` by number of the target, of heads of evidence alone.

    Their maps are logits by design; of other heads where they add up.
    """
    if not self.trained.model.takes_field:
      return {}
    targets = self.trained.task.targets
    return {targets.index(t): c for t, c in self.constants().items()}

  @functools.cached_property
  def _predict(self) -> Callable[..., PyTree]:
    trained = self.trained

    def predict(variables: Variables, images: jax.Array) -> jax.Array:
      x = models.normalize(images)
      return trained.judged(variables, x, trained.model.apply(variables, x))

    return self._parallel(predict)

  @functools.cached_property
  def _maps(self) -> Callable[..., PyTree]:
    def maps(
      variables: Variables, images: jax.Array, targets: jax.Array
    ) -> dict[str, cam.Maps]:
      return self._explain(variables, models.normalize(images), targets).maps

    return devices.parallel(maps, in_axes=(None, 0, 0))

  @functools.cached_property
  def _look(self) -> Callable[..., PyTree]:
    trained, task = self.trained, self.trained.task
    choose = functools.partial(
      cam.choose_targets, task, self.target, threshold=trained.raw_threshold
    )

    def look(variables: Variables, images: jax.Array) -> dict[str, jax.Array]:
      x = models.normalize(images)
      # The map stays that of the photograph as it is.
      judged = functools.partial(trained.judged, variables, x)
      found = self._explain(variables, x, lambda logits: choose(judged(logits)))
      logits = judged(found.logits)
      seen = {
        'logits': logits,
        'probabilities': task.probabilities(logits),
        'p_inadequate': task.p_inadequate(logits),
        'targets': found.targets,
        'raw': found.maps[self.methods[0]],
        'landmarks': found.landmarks,
      }
      if task.name == 'criteria':
        seen['criteria'] = task.probabilities(logits)
      elif found.cause is not None:
        seen['criteria'] = jax.nn.sigmoid(found.cause)
      if found.cells is not None:
        cells, share = found.cells
        seen |= {'evidence': jax.nn.softplus(cells), 'field_share': share}
      return seen

    return self._parallel(look)

  def _parallel(self, function: Callable[..., PyTree]) -> Callable[..., PyTree]:
    trained = self.trained
    channels = 4 if trained.model.takes_field else 3
    return sessions.parallel(
      function,
      self.runtime,
      trained.variables,
      (trained.image_size, trained.image_size, channels),
    )

  def _explain(
    self, variables: Variables, x: jax.Array, targets: cam.Targets
  ) -> cam.Explanation:
    return cam.explain(
      self.trained.model,
      variables,
      x,
      targets,
      task=self.trained.task,
      layer=self.layer,
      methods=self.methods,
    )

  def input(
    self, images: Real[np.ndarray, 'n s s c']
  ) -> Real[np.ndarray, 'n s s d']:
    """Returns images [n, s, s, 3] with their field where the network takes it.

    Perturbed photographs come without; they still show their field.
    """
    if not self.trained.model.takes_field or images.shape[-1] > 3:
      return images
    shown = np.clip(np.rint(images), 0, 255).astype(np.uint8)
    return np.stack([prepare.with_field(i) for i in shown])

  def _batched(
    self,
    function: Callable[..., PyTree],
    variables: Variables,
    images: np.ndarray,
    *others: np.ndarray,
  ) -> PyTree:
    if not len(images):
      raise ValueError('there is no image to look at')
    images = self.input(images)
    size = self._size(len(images))

    def begun() -> Iterator[tuple[PyTree, int]]:
      for first in range(0, len(images), size):
        batch = [a[first : first + size] for a in (images, *others)]
        results = function(variables, *(_split(rows, size) for rows in batch))
        yield results, len(batch[0])

    parts = [devices.joined(*one) for one in devices.ahead(begun(), _IN_FLIGHT)]
    return jax.tree.map(lambda *x: np.concatenate(x), *parts)

  def _size(self, count: int) -> int:
    """Returns the batch size: of few photographs, no more than twice them."""
    size = devices.local_count()
    while size < min(count, self.batch_size):
      size *= 2
    return min(size, self.batch_size)


def _split(rows: np.ndarray, size: int) -> np.ndarray:
  """Returns up to `size` rows as [devices, b, ...], filled up."""
  short = size - len(rows)
  # Repeats an image: zeros could be a network's only NaN.
  full = np.concatenate([rows, rows[:1].repeat(short, 0)]) if short else rows
  return full.reshape(devices.local_count(), -1, *rows.shape[1:])
