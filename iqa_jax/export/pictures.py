"""A photograph's pictures and arrays, by the kinds of manifest.KINDS."""

from __future__ import annotations

import dataclasses

import numpy as np
from PIL import Image

from iqa_jax.aliases import Record
from iqa_jax.explain import overlay, panel, ruler
from iqa_jax.export.messages import Drawing, Settings
from iqa_jax.photograph import geometry
from iqa_jax.photograph import placement as placement_lib


@dataclasses.dataclass
class Held:
  """A decoded photograph.

  Attributes:
    photograph: what is drawn on; None where it is not kept, or not needed.
    prepared: uint8 [s, s, 3], the network's input.
    affine: float64 [2, 3], of that (x, y, 1) -> (x, y) of the photograph.
    inside: bool [s, s], the field of view.
    field: in pixels of the whole photograph.
    width: of the whole photograph, also where what is drawn on is smaller.
    height: likewise.
  """

  photograph: Image.Image | None
  prepared: np.ndarray
  affine: np.ndarray
  inside: np.ndarray
  field: geometry.Field
  width: int
  height: int


class Pictures:
  """Makes them, each method one kind."""

  def __init__(self, held: Held, drawing: Drawing, settings: Settings):
    self._held = held
    self._drawing = drawing
    self._settings = settings
    self._look = overlay.Look(
      drawing.placement,
      settings.colors,
      settings.opacity,
      # Networks that take the field find nothing outside.
      held.inside if settings.field else None,
    )

  def _map(self) -> tuple[np.ndarray, np.ndarray, int]:
    """Returns what overlays take: map, affine, prepared size."""
    held, photograph = self._held, self._photograph
    # Downsized pictures have their own pixels.
    stretch = np.array(
      [[photograph.width / held.width], [photograph.height / held.height]]
    )
    return self._drawing.shown, held.affine * stretch, self._settings.size

  @property
  def _photograph(self) -> Image.Image:
    assert self._held.photograph is not None
    return self._held.photograph

  def _measured(self, picture: Image.Image) -> Image.Image:
    """Draws landmarks and distances, if there are any."""
    held = self._held
    size = held.width, held.height
    ruler.draw(picture, self._drawing.landmarks, held.field, size)
    return picture

  def contour(self) -> Image.Image:
    """Returns the photograph with lines of equal evidence."""
    note = self._drawing.caption.note
    if note:
      return overlay.noted(self._measured(self._photograph.copy()), note)
    return self._measured(
      overlay.contour(self._photograph, *self._map(), self._look)
    )

  def panel(self) -> Image.Image:
    """Returns photograph and overlay side by side, captioned."""
    return panel.draw(
      self._photograph,
      *self._map(),
      self._look,
      caption=self._drawing.caption,
      decorate=self._measured,
    )

  def npz(self) -> Record:
    """Returns the raw map, and how it lies on the photograph."""
    drawing, held, size = self._drawing, self._held, self._settings.size
    columns = drawing.raw.shape[1]
    where = drawing.placement or placement_lib.evenly(size, columns)
    return drawing.facts | {
      'map': drawing.raw,
      'affine': held.affine,
      'prepared_size': size,
      'cell_offset': where.offset,
      'cell_stride': where.stride,
      'width': held.width,
      'height': held.height,
    }

  def thumbnail(self) -> Image.Image:
    """Returns prepared photograph and overlay side by side."""
    shown = self._drawing.shown
    if self._drawing.caption.note:
      shown = np.zeros_like(shown)
    return overlay.thumbnail(self._held.prepared, shown, self._look)

  def overlay(self) -> Image.Image:
    """Returns the photograph under the map; draws on the photograph itself."""
    note = self._drawing.caption.note
    if note:
      return overlay.noted(self._measured(self._photograph), note)
    return self._measured(
      overlay.overlay(self._photograph, *self._map(), self._look, in_place=True)
    )
