"""Reads photographs as 8-bit sRGB, whatever a camera or archive wrote.

JPEG, PNG, TIFF and, with the `dicom` extra, DICOM. Whatever is wrong with a
file, the one exception that comes out is `ImageError`, whose status goes into
manifests. Nothing in a file is executed.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
from typing import BinaryIO
import warnings

import numpy as np
from PIL import Image, ImageOps, TiffImagePlugin

from iqa_jax import errors
from iqa_jax.photograph import colour

SUFFIXES = ('.jpg', '.jpeg', '.png', '.tif', '.tiff', '.dcm')

# About four times the largest fundus camera's frame: 268 MB as RGB. A file that
# announces more is a decompression bomb or a mistake.
MAX_PIXELS = 89_478_485
MIN_SIDE = 32
_SUBFILE, _REDUCED_OR_MASK = 254, 5  # TIFF's tag NewSubfileType, bits 0 and 2

STATUSES = (
  'missing',
  'permission',
  'not_an_image',
  'truncated',
  'unreadable',
  'too_large',
  'too_small',
)

# The check below refuses them with a message of its own.
warnings.filterwarnings('ignore', category=Image.DecompressionBombWarning)


class ImageError(errors.UserError):
  """A photograph can't be used.

  Attributes:
    status: one of `STATUSES`.
    reason: what was found, for people.
  """

  def __init__(self, path: str | os.PathLike, status: str, reason: str):
    super().__init__(f'{os.fspath(path)}: {status}: {reason}')
    self.status = status
    self.reason = reason


@dataclasses.dataclass(frozen=True)
class Photograph:
  """A decoded photograph.

  Attributes:
    image: of mode RGB, upright (EXIF orientation applied), without metadata.
    height: of the file's full image, upright, in pixels.
    width: likewise.
  """

  image: Image.Image
  height: int
  width: int

  @functools.cached_property
  def pixels(self) -> np.ndarray:
    """The image as uint8 [h, w, 3]."""
    return np.asarray(self.image)

  @property
  def scale(self) -> tuple[float, float]:
    """Full-size pixels per decoded pixel, in x and y (1 unless reduced)."""
    w, h = self.image.size
    return self.width / w, self.height / h


def read(path: str | os.PathLike, min_size: int | None = None) -> Photograph:
  """Reads a photograph.

  Args:
    path: the file.
    min_size: allow a JPEG to be decoded at 1/2, 1/4 or 1/8 (by its DCT, which
      antialiases) while both sides stay at least twice this. None: full size.

  Raises:
    ImageError: the file is missing, damaged, no image, or of absurd size.
  """
  path = pathlib.Path(path)
  try:
    with open(path, 'rb') as file:
      return decode(file, path, min_size)
  except FileNotFoundError as error:
    reason = 'a broken link' if path.is_symlink() else 'no such file'
    raise ImageError(path, 'missing', reason) from error
  except PermissionError as error:
    raise ImageError(path, 'permission', 'not readable by this user') from error
  except OSError as error:
    reason = error.strerror or str(error)
    raise ImageError(path, 'unreadable', reason) from error


def decode(
  file: BinaryIO, name: str | os.PathLike, min_size: int | None = None
) -> Photograph:
  """Reads a photograph from an open file.

  Args:
    file: binary, from its beginning; it can be moved about in.
    name: what errors call it; its ending tells DICOM without preamble.
    min_size: as of `read`.

  Raises:
    ImageError: it is damaged, no image, or of absurd size.
  """
  path = pathlib.Path(name)
  try:
    head = file.read(132)
    if not head:
      raise ImageError(path, 'not_an_image', 'the file is empty')
    file.seek(0)
    if head[128:132] == b'DICM' or path.suffix.lower() == '.dcm':
      return _checked(path, *_read_dicom(path, file))
    return _checked(path, *_read_pillow(path, file, min_size))
  except ImageError:
    raise
  except MemoryError as error:
    raise ImageError(path, 'too_large', 'out of memory') from error
  except Image.UnidentifiedImageError as error:
    raise ImageError(path, 'not_an_image', 'no known image format') from error
  except Image.DecompressionBombError as error:
    raise ImageError(path, 'too_large', str(error)) from error
  except Exception as error:  # decoders raise anything on damaged bytes
    text = str(error) or type(error).__name__
    cut = 'truncated' in text.lower() or isinstance(error, EOFError)
    status = 'truncated' if cut else 'unreadable'
    raise ImageError(path, status, text.splitlines()[0][:200]) from error


def _checked(
  path: pathlib.Path, image: Image.Image, height: int, width: int
) -> Photograph:
  if min(height, width) < MIN_SIDE:
    raise ImageError(
      path, 'too_small', f'{width}x{height}; at least {MIN_SIDE} px are needed'
    )
  # A file's comment would be saved again with what is drawn on the image.
  image.info = {}
  return Photograph(image, height, width)


def _check_size(path: pathlib.Path, width: int, height: int) -> None:
  if width * height > MAX_PIXELS:
    raise ImageError(
      path,
      'too_large',
      f'{width}x{height} is over {MAX_PIXELS / 1e6:.0f} million pixels',
    )


def _read_pillow(
  path: pathlib.Path, file: BinaryIO, min_size: int | None
) -> tuple[Image.Image, int, int]:
  with Image.open(file, formats=('JPEG', 'PNG', 'TIFF')) as image:
    width, height = image.size
    _check_size(path, width, height)
    if isinstance(image, TiffImagePlugin.TiffImageFile):
      _check_one_page(path, image)
    if min_size is not None and image.format in ('JPEG', 'MPO'):
      # draft never goes below what is asked for.
      shorter = min(width, height)
      wanted = min(2 * min_size / shorter, 1.0)
      image.draft('RGB', (int(width * wanted), int(height * wanted)))
    upright = upright_rgb(image)
    if upright.size != image.size and upright.size == image.size[::-1]:
      width, height = height, width
    return upright, height, width


def upright_rgb(image: Image.Image) -> Image.Image:
  """Returns an image as Pillow opened it, upright, of mode RGB and in sRGB."""
  depth = colour.depth(image)
  return colour.to_rgb(ImageOps.exif_transpose(image), depth)


def _check_one_page(
  path: pathlib.Path, image: TiffImagePlugin.TiffImageFile
) -> None:
  """Raises ImageError for a TIFF of several photographs.

  Smaller copies and masks, as its NewSubfileType names them, are no pages.
  """
  pages = 0
  for page in range(getattr(image, 'n_frames', 1)):
    image.seek(page)
    pages += not image.tag_v2.get(_SUBFILE, 0) & _REDUCED_OR_MASK
  image.seek(0)
  if pages > 1:
    raise ImageError(
      path,
      'unreadable',
      f'a TIFF of {pages} pages: save the photograph as a file of its own',
    )


def _read_dicom(
  path: pathlib.Path, file: BinaryIO
) -> tuple[Image.Image, int, int]:
  try:
    import pydicom
    from pydicom import pixels
  except ImportError as error:
    raise ImageError(
      path, 'unreadable', "DICOM needs: pip install 'iqa_jax[dicom]'"
    ) from error
  try:
    dataset = pydicom.dcmread(file)
  except pydicom.errors.InvalidDicomError as error:
    raise ImageError(path, 'not_an_image', 'no DICOM header') from error
  width, height = int(dataset.Columns), int(dataset.Rows)
  _check_size(path, width, height)
  if int(dataset.get('NumberOfFrames', 1) or 1) > 1:
    raise ImageError(path, 'unreadable', 'a DICOM of several frames')
  # pixel_array turns YBR into RGB and undoes the compression.
  values, bits = pixels.pixel_array(dataset), int(dataset.BitsStored)
  if dataset.PhotometricInterpretation == 'PALETTE COLOR':
    values = pixels.apply_color_lut(values, dataset)
    bits = 8 * values.dtype.itemsize
  top = 2**bits - 1
  values = np.clip(values, 0, top)
  if dataset.PhotometricInterpretation == 'MONOCHROME1':
    values = top - values
  # Of 12 bits in 16 the upper eight are those that are used.
  values = (values >> max(bits - 8, 0)).astype(np.uint8)
  if values.ndim == 2:
    values = np.repeat(values[..., None], 3, axis=-1)
  values = np.ascontiguousarray(values[..., :3])
  image = Image.fromarray(values)
  image.info['icc_profile'] = dataset.get('ICCProfile')
  return colour.to_rgb(image), height, width
