"""A map with its photograph: what a grader answers when asked why."""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import io

from jaxtyping import Float
import numpy as np
from PIL import Image

from iqa_jax import tasks
from iqa_jax.aliases import Record
from iqa_jax.explain import overlay as pictures
from iqa_jax.explain import panel as panel_lib
from iqa_jax.explain import ruler, scaling
from iqa_jax.judging import advice
from iqa_jax.judging.verdict import Verdict
from iqa_jax.photograph import geometry
from iqa_jax.photograph.photo import Photo
from iqa_jax.photograph.placement import Placement


@dataclasses.dataclass(frozen=True)
class Explanation:
  """Where the network found its evidence, and for what.

  Attributes:
    photo: the photograph that is explained.
    verdict: on it.
    raw: float32 [h, w], the signed map over the prepared square: positive
      where the place speaks for `target`.
    method: one of cam.METHODS.
    layer: the feature point whose map this is.
    target: what it is evidence for, one of `Task.targets`.
    size: side of the prepared square in pixels.
    affine: float64 [2, 3], prepared (x, y, 1) -> (x, y) of the photograph.
    placement: where the map's cells look, in pixels of the prepared square;
      None for cells that share it evenly.
    landmarks: float [5], optic disc x, y, disc diameter, fovea x, y in pixels
      of the photograph; NaN of models that locate none.
    cells: {criterion: float32 [g, g]}, probability of its fault in each cell
      of the prepared square, 0 outside the field; {} of models without cells.
    inside: bool [size, size], the field of view that the network was told of,
      outside which there is no evidence; None of networks that look everywhere.
    constant: of maps that sum to the score, what it holds beside them and its
      bias, so that pictures compare; None of others.
  """

  photo: Photo
  verdict: Verdict
  raw: np.ndarray
  method: str
  layer: str
  target: str
  size: int
  affine: np.ndarray
  placement: Placement | None
  landmarks: np.ndarray
  cells: Mapping[str, np.ndarray]
  inside: np.ndarray | None = None
  constant: float | None = None

  @property
  def empty(self) -> bool:
    """Whether nothing speaks for the target: there is nothing to colour."""
    return scaling.status(self.raw) == 'empty'

  def on_photograph(self) -> Float[np.ndarray, 'height width']:
    """Returns the signed map at the photograph's size, float32 [h, w].

    Bilinear between the centres of the cells, 0 beyond the prepared square
    and, of networks that are told the field of view, beyond that.
    """
    shape = self.photo.height, self.photo.width
    laid = geometry.to_original(
      self.raw, self.affine, shape, self.size, self.placement
    )
    if self.inside is not None and self.verdict.field is not None:
      x, y = np.arange(shape[1]) + 0.5, np.arange(shape[0]) + 0.5
      laid[~self.verdict.field.inside(x[None], y[:, None])] = 0
    return laid

  def shown(self) -> Float[np.ndarray, 'h w']:
    """Returns the raw map from 0 to 1, as pictures show its evidence.

    1 is the most in this photograph or, of maps that sum to the score, what
    would make it overlay.LOGIT_TOP everywhere, so that photographs compare.
    """
    if self.constant is None:
      return scaling.scale(self.raw)
    logits = scaling.scale(self.raw, 'logit', constant=self.constant)
    return np.clip(logits / pictures.LOGIT_TOP, 0, 1)

  def overlay(
    self, *, colors: str = 'viridis', opacity: float = 0.55
  ) -> Image.Image:
    """Returns the photograph with the positive evidence laid over it.

    Disc, fovea and the field's distances are drawn where they are known.

    Args:
      colors: one of overlay.COLORS.
      opacity: of the strongest evidence, 0 to 1.
    """
    look = pictures.Look(self.placement, colors, opacity, self.inside)
    picture = pictures.overlay(
      self.photo.image, self.shown(), self.affine, self.size, look
    )
    self.draw_ruler(picture)
    return picture

  def panel(
    self, *, colors: str = 'viridis', opacity: float = 0.55
  ) -> Image.Image:
    """Returns photograph and overlay side by side, as `overlay`, in words."""
    return panel_lib.draw(
      self.photo.image,
      self.shown(),
      self.affine,
      self.size,
      pictures.Look(self.placement, colors, opacity, self.inside),
      caption=self._caption(),
      decorate=self.draw_ruler,
    )

  def draw_ruler(self, picture: Image.Image) -> None:
    """Draws disc, fovea and distances onto the photograph at any size."""
    if self.verdict.field is not None:
      size = self.photo.image.size
      ruler.draw(picture, self.landmarks, self.verdict.field, size)

  def to_dict(self) -> Record:
    """Returns the verdict's row and what the map is, without its values."""
    return self.verdict.to_dict() | {
      'method': self.method,
      'layer': self.layer,
      'target': self.target,
      'raw_min': float(self.raw.min()),
      'raw_max': float(self.raw.max()),
      'empty_map': self.empty,
    }

  def _caption(self) -> panel_lib.Caption:
    p = self.verdict.p_inadequate
    return panel_lib.Caption(
      name=self.photo.name,
      verdict=self.verdict.verdict,
      probability='' if p is None else f'P(inadequate) = {p:.3f}',
      uncertain=self.verdict.uncertain,
      target=f'evidence for {tasks.evidence_for(self.target)}',
      source=f'{self.method}, {self.layer}',
      bar=f'most in this photograph ({self.raw.max():.3g})'
      if self.constant is None
      else f'{pictures.LOGIT_TOP:.3g} logits or more',
      note=self._note(),
      cause=advice.name(self.verdict.cause),
      advice=self.verdict.advice,
      criteria=tuple(
        panel_lib.Criterion(
          advice.name(name),
          found.p,
          found.share,
          self.cells.get(name),
          name == self.verdict.cause,
        )
        for name, found in self.verdict.criteria.items()
      ),
    )

  def _note(self) -> str:
    if not self.empty:
      return ''
    return pictures.NO_FAULT if self.cells else pictures.EMPTY

  def _repr_png_(self) -> bytes:
    data = io.BytesIO()
    self.panel().save(data, 'PNG')
    return data.getvalue()
