"""A backbone and a head, run whole or from one feature point to another."""

from __future__ import annotations

from collections.abc import Collection
import functools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from iqa_jax import errors
from iqa_jax.models import evidence, grid, heads, layers, platforms
from iqa_jax.photograph.placement import Placement, Window

HEAD = 'head'
HEAD_INPUT = 'head_input'
_HALF = Window(2, 2)


class Classifier(nn.Module):
  """An image classifier whose feature points can be entered and left.

  Variables: {'params': {'backbone': {point: ...}, 'head': ...},
  'batch_stats': {'backbone': {point: ...}}}, all float32; with a neck
  {'neck': {'evidence': ...}} besides.

  Attributes:
    backbone: a module with `points`, `default_layer`, `dtype`,
      `windows(point)` and `__call__(x, point, train=, mask=)`, which know
      'detail' besides: the first layer.
    head: what follows the last point.
    last: the backbone's point that the head follows; None for its last one.
    neck: what lies between backbone and head; None for nothing. Its points
      follow the backbone's.
    field_pooling: of a head that averages: the last map is 0 outside the field
      of view, and its average over all cells is that over the field.
  """

  backbone: nn.Module
  head: heads.Head | evidence.Head
  last: str | None = None
  neck: evidence.Neck | None = None
  field_pooling: bool = False

  @property
  def points(self) -> tuple[str, ...]:
    """The names of the feature points, in order."""
    points = self.backbone.points
    if self.last:
      points = points[: points.index(self.last) + 1]
    return (*points, *evidence.POINTS) if self.neck else points

  @property
  def stages(self) -> tuple[str, ...]:
    """Where a pass can be left and entered: the points, then 'head_input'.

    The last is what the head takes in (Head.takes): of a head that averages,
    one vector an image, and no map.
    """
    return (*self.points, HEAD_INPUT)

  @property
  def entries(self) -> tuple[str, ...]:
    """The stages that a pass can be entered at without the field of view."""
    first = 0
    if self.takes_field:
      first = self.stages.index('cells' if self.neck else self.points[-1])
    return self.stages[first:]

  @property
  def takes_field(self) -> bool:
    """Whether images come with their field of view as a fourth channel."""
    return self.neck is not None or self.field_pooling

  @property
  def default_layer(self) -> str:
    """The point that explanations look at unless told otherwise."""
    if self.neck:
      return evidence.POINTS[-1]
    if not self.last:
      return self.backbone.default_layer
    before = self.last.removesuffix('_pool')
    return before if before in self.points else self.last

  def placement(self, point: str) -> Placement | None:
    """Returns where the cells of a feature point look, in pixels of the image.

    None of a neck's points, whose cells share the image evenly.

    Raises:
      ValueError: no such point.
    """
    if point not in self.points:
      raise ValueError(f'no feature point {point!r}; there are {self.points}')
    if point not in self.backbone.points:
      return None
    placed = Placement()
    if self.neck and self.neck.detail:
      placed = placed.then(_HALF)
    for name in self.points[: self.points.index(point) + 1]:
      placed = placed.then(*self.backbone.windows(name))
    return placed

  def __call__(
    self,
    x: Float[jax.Array, 'b ...'],
    *,
    start: str | None = None,
    stop: str | None = None,
    train: bool | Collection[str] = False,
    mask: layers.Mask = None,
    field: Float[jax.Array, 'b s s'] | None = None,
  ) -> Float[jax.Array, 'b ...']:
    """Runs what lies after `start`, up to and including `stop`.

    Every point's map on the way is sown into 'intermediates' under its name.

    Args:
      x: normalised images [b, h, w, 3] when `start` is None, or with their
        field of view as a fourth channel (models.normalize); else what a pass
        up to `start` returned.
      start: the stage whose result `x` is; None for images.
      stop: the stage whose result is wanted; None for the logits.
      train: whether BatchNorm uses (and updates) batch statistics and dropout
        is on: everywhere, nowhere, or in the named points and 'head'.
      mask: [b], 0 for padded examples, which stay out of the statistics.
      field: [b, s, s] in 0..1, the field of view, where `x` comes without.

    Returns:
      Logits [b, num_outputs] float32; or the map [b, h', w', c] of the point
      `stop` in the compute type; or what the head takes in.

    Raises:
      ValueError: no such stage, or the images are too small.
    """
    if isinstance(train, bool):
      train = (*self.stages, HEAD) if train else ()
    points = self._between(start, stop, train)
    size = x.shape[1:3]
    if start is None:
      if x.shape[-1] > 3:
        field = x[..., 3]
      elif field is None:  # the whole frame
        field = jnp.ones(x.shape[:3])
      x = x[..., :3]
    if start in (None, *self.backbone.points):
      x = x.astype(self.backbone.dtype)
    seen: list[jax.Array] = []  # by the cells
    if self.neck and self.neck.detail and start is None:
      seen.append(self._detail(x, self.neck.cells))
      x = _halved(x)
    for point in points:
      if self.neck and point == 'cells':
        count = len(self.neck.taps) + self.neck.detail
        if field is None or len(seen) < count:
          raise ValueError(f'cells look at several points, {start} is beyond')
        x = self.neck.gather(seen, field)
      elif self.neck and point == 'evidence':
        x = self.neck(x)
      else:
        x = self.backbone(x, point, train=point in train, mask=mask)
      if self.field_pooling and point == self.points[-1]:
        if field is None:
          raise ValueError(f'{start} comes without the field of view')
        x = grid.inside(x, field, self.placement(point))
      if self.neck and field is not None and point in self.neck.taps:
        where = self.neck.cells, self.placement(point), field.shape[1:]
        seen.append(grid.features(x, *where))
      if 0 in x.shape[1:3]:
        raise errors.InvalidValue(
          f'{size[0]}x{size[1]} is too small: empty at {point}'
        )
      self.sow('intermediates', point, x)
    if stop in self.points:
      return x
    if start != HEAD_INPUT:
      x = self.head.takes(x)
    return x if stop else self.head(x, train=HEAD in train)

  def _detail(self, x: Float[jax.Array, 'b h w 3'], cells: int) -> jax.Array:
    """Returns what cells see of the backbone's first layer of the image."""
    size, windows = x.shape[1:3], self.backbone.windows('detail')
    looks = Placement().then(*windows)
    in_strips = grid.in_strips(windows, cells, size)
    if self.is_initializing() or not in_strips:
      whole = self.backbone(x, 'detail', train=False, mask=None)
      return grid.features(whole, cells, looks, size)
    backbone, variables = self.backbone.unbind()

    def layer(x: jax.Array, variables: Any) -> Any:
      return backbone.apply(variables, x, 'detail', train=False, mask=None)

    def plain(x: jax.Array, variables: Any) -> jax.Array:
      return grid.features(layer(x, variables), cells, looks, size)

    def by_strips(x: jax.Array, variables: Any) -> jax.Array:
      own = functools.partial(layer, variables=variables)
      return grid.features_by_strips(own, x, cells, windows[0])

    return platforms.by_platform(plain, x, variables, cpu=by_strips)

  def _between(
    self, start: str | None, stop: str | None, train: Collection[str]
  ) -> tuple[str, ...]:
    """Returns the points after `start` up to `stop`; all names must exist."""
    names = (*self.stages, HEAD)
    for name in (*train, *(p for p in (start, stop) if p)):
      if name not in names:
        raise ValueError(f'no feature point {name!r}; there are {names}')
    first = 0 if start is None else names.index(start) + 1
    end = len(names) if stop is None else names.index(stop) + 1
    if first > end:
      raise ValueError(f'{stop} comes before {start}')
    return self.points[first:end]


def _halved(x: Float[jax.Array, 'b h w c']) -> jax.Array:
  """Returns images of half the size, each pixel the mean of four."""
  b, h, w, c = x.shape
  if h % 2 or w % 2:
    raise errors.InvalidValue(f'{h}x{w}: model.detail wants even sizes')
  return x.reshape(b, h // 2, 2, w // 2, 2, c).mean((2, 4))
