"""Every kind of pixel as 8-bit sRGB: deep greys, alpha, palettes, profiles.

What a file declares decides. A 16-bit file that declares nothing else may hold
the 12 bits of a camera unscaled, which read as 16 would be black; so where 999
of 1,000 pixels fit into 8 or 12 bits, these are taken for its depth. (A true
16-bit photograph of that kind has no level above 16 of 255.) One bright pixel
changes nothing. PNG's sBIT is no such declaration: there, samples of fewer bits
have been scaled up to all 16.
"""

from __future__ import annotations

import dataclasses
import io

import numpy as np
from PIL import Image, ImageCms

from iqa_jax import errors

_MOST = 0.999  # of the pixels
_TOPS = (2**8 - 1, 2**12 - 1, 2**16 - 1, 2**32 - 1)
_BITS_PER_SAMPLE, _MAX_SAMPLE_VALUE = 258, 281  # TIFF's tags
_SPACES = {'RGB': 'RGB', 'L': 'GRAY', 'CMYK': 'CMYK'}


@dataclasses.dataclass(frozen=True)
class Depth:
  """What a file says of its samples.

  Attributes:
    top: the largest value that they can have, None where it isn't declared.
    cut: whether Pillow keeps the upper eight of sixteen bits only.
  """

  top: float | None = None
  cut: bool = False


def depth(image: Image.Image) -> Depth:
  """Returns the depth that an opened file declares, before it is decoded."""
  tags = getattr(image, 'tag_v2', {})
  bits = _first(tags.get(_BITS_PER_SAMPLE))
  top = _first(tags.get(_MAX_SAMPLE_VALUE))
  cut = image.mode == 'RGB' and ';16' in str(getattr(image, 'tile', ''))
  # Others write the largest value there is, which is no depth.
  if 255 < top < 2**bits - 1 and (top & (top + 1)) == 0:
    return Depth(float(top), cut)
  return Depth(float(2**bits - 1) if 8 < bits < 16 else None, cut)


def to_rgb(image: Image.Image, declared: Depth | None = None) -> Image.Image:
  """Returns an image as mode RGB in sRGB, over black where transparent.

  An RGB image without a profile, or with sRGB's, is returned as it is.

  Args:
    image: of any mode.
    declared: of its file.

  Raises:
    InvalidValue: colours of 12 bits, unscaled, of which Pillow keeps four.
  """
  mode, info = image.mode, image.info
  declared = declared or Depth()
  if mode.startswith(('I', 'F')):
    return _grey(np.asarray(image), declared.top)
  # What Pillow, which keeps the upper eight bits, makes black.
  if declared.cut and (
    declared.top or np.quantile(np.asarray(image), _MOST) <= 15
  ):
    raise errors.InvalidValue(
      'colours of 12 bits unscaled in 16: save them scaled, or as 8 bits'
    )
  if mode in ('LA', 'PA', 'RGBA', 'RGBa', 'La') or 'transparency' in info:
    rgba = image.convert('RGBA')
    black = Image.new('RGBA', image.size, (0, 0, 0, 255))
    image = Image.alpha_composite(black, rgba).convert('RGB')
  elif mode not in _SPACES:
    image = image.convert('RGB')
  profile = profile_of(image.mode, info.get('icc_profile'))
  if profile is not None:
    converted = ImageCms.profileToProfile(
      image,
      profile,
      ImageCms.createProfile('sRGB'),
      ImageCms.Intent.RELATIVE_COLORIMETRIC,
      'RGB',
    )
    assert converted is not None
    return converted
  return image if image.mode == 'RGB' else image.convert('RGB')


def profile_of(
  mode: str, data: bytes | None
) -> ImageCms.ImageCmsProfile | None:
  """Returns the profile by which an image's colours have to be converted.

  Args:
    mode: of the image.
    data: the ICC profile that its file embeds, if any.

  Returns:
    None where there is none, it is sRGB's, or it is damaged or not of `mode`
    and so says nothing about these pixels.
  """
  if not data or mode not in _SPACES:
    return None
  try:
    profile = ImageCms.ImageCmsProfile(io.BytesIO(data))
    name = ImageCms.getProfileDescription(profile)
  except (ImageCms.PyCMSError, OSError):
    return None
  fits = profile.profile.xcolor_space.strip() == _SPACES[mode]
  return profile if fits and 'sRGB' not in name else None


def _grey(values: np.ndarray, top: float | None) -> Image.Image:
  """Returns grey values of 16 or 32 bits, or floats, as RGB."""
  real = values.dtype.kind == 'f'
  values = np.nan_to_num(values.astype(np.float64))
  if top is None:
    most = float(np.quantile(values, _MOST))
    tops = ((1.0,) if real else ()) + _TOPS
    top = next((t for t in tops if most <= t), most)
  values = np.clip(np.rint(values * (255.0 / top)), 0, 255)
  return Image.fromarray(values.astype(np.uint8)).convert('RGB')


def _first(value: object) -> int:
  """Returns a tag's first value as a whole number, 0 where it has none."""
  value = value[0] if isinstance(value, tuple) and value else value
  return int(value) if isinstance(value, int | float) else 0
