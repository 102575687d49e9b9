"""One photograph in memory: read from wherever it is, prepared on demand."""

from __future__ import annotations

import io
import os
from typing import TypeAlias

import numpy as np
from PIL import Image

from iqa_jax import errors
from iqa_jax.photograph import geometry, images, prepare

Source: TypeAlias = (
  'str | os.PathLike[str] | bytes | np.ndarray | Image.Image | Photo'
)


class Photo:
  """A decoded fundus photograph.

  Attributes:
    image: of mode RGB, upright, at the file's own size.
    name: the path it was read from, or what `read` was told; '' for neither.
  """

  def __init__(self, image: Image.Image, name: str = ''):
    self.image = image
    self.name = name
    self._prepared: dict[tuple[int, bool], geometry.Prepared] = {}

  @property
  def width(self) -> int:
    """In pixels."""
    return self.image.width

  @property
  def height(self) -> int:
    """In pixels."""
    return self.image.height

  @property
  def pixels(self) -> np.ndarray:
    """The photograph as uint8 [height, width, 3]."""
    return np.asarray(self.image)

  def prepared(self, size: int, *, field: bool = False) -> geometry.Prepared:
    """Returns what a network of this input size gets, computed once.

    Args:
      size: side of the network's input in pixels.
      field: whether it takes the field of view too; see prepare.photograph.
    """
    if (size, field) not in self._prepared:
      self._prepared[size, field] = prepare.photograph(
        self.image, size, field=field
      )
    return self._prepared[size, field]

  def _repr_png_(self) -> bytes | None:
    return self.image._repr_png_()

  def __repr__(self) -> str:
    return f'Photo({self.name!r}, {self.width}x{self.height})'


def read(source: Source, name: str | None = None) -> Photo:
  """Reads one photograph.

  >>> import numpy as np
  >>> read(np.zeros((600, 800, 3), np.uint8), name='dark')
  Photo('dark', 800x600)

  Args:
    source: path of a JPEG, PNG, TIFF or (with the extra `dicom`) DICOM file,
      or such a file's bytes; uint8 array [h, w, 3], RGB, or [h, w], grey; an
      image of Pillow; or a Photo, which is returned as it is.
    name: how results call it; None for the path, or ''.

  Raises:
    ImageError: the file is missing, damaged, no image, or of absurd size; its
      `status` says which.
    InvalidValue: an array of another shape or type.
  """
  if isinstance(source, Photo):
    return source
  if isinstance(source, np.ndarray):
    source = _of_array(source)
  if isinstance(source, Image.Image):
    image = images.upright_rgb(source)
    if min(image.size) < images.MIN_SIDE:
      raise images.ImageError(
        name or 'photograph',
        'too_small',
        f'{image.width}x{image.height}; at least {images.MIN_SIDE} px are '
        'needed',
      )
    return Photo(image, name or '')
  if isinstance(source, bytes):
    photograph = images.decode(io.BytesIO(source), name or 'photograph')
    return Photo(photograph.image, name or '')
  path = os.fspath(source)
  photograph = images.read(path)
  return Photo(photograph.image, path if name is None else name)


def _of_array(pixels: np.ndarray) -> Image.Image:
  grey = pixels.ndim == 2
  if pixels.dtype != np.uint8 or not (
    grey or (pixels.ndim == 3 and pixels.shape[-1] == 3)
  ):
    raise errors.InvalidValue(
      f'a photograph is uint8 [h, w, 3] or [h, w], got {pixels.dtype} '
      f'{list(pixels.shape)}; scale floats to 0..255 and convert them'
    )
  return Image.fromarray(pixels)
