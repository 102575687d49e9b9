"""What a prepared photograph holds, the same for every dataset builder."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import io
import os
import pathlib
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import ExifTags, Image

from iqa_jax import errors, labels
from iqa_jax.aliases import Record
from iqa_jax.photograph import colour, images, prepare

if TYPE_CHECKING:
  import tensorflow_datasets as tfds

# Chroma at full resolution: subsampling would touch colour, an illumination
# cue. See iqa_jax/data/README.md for what this quality was shown to keep.
JPEG = {'quality': 95, 'subsampling': 0}

NO_LANDMARKS = np.full(5, np.nan, np.float32)
METADATA = {
  'image_id': '',
  'patient_id': '',
  'camera': '',
  'site': '',
  'eye': '',
  'sex': '',
  'age': labels.UNKNOWN,
  'quality': labels.UNKNOWN,
  'grade': labels.UNKNOWN,
  'criteria': np.full(4, labels.UNKNOWN, np.int64),
  'landmarks': NO_LANDMARKS,
}


class DataError(errors.UserError):
  """A dataset can't be read or built; the message says what to do."""


def refuse(problem: str) -> None:
  """Raises DataError: what readers do about a problem unless told otherwise."""
  raise DataError(problem)


@dataclasses.dataclass(frozen=True)
class Entry:
  """A labelled photograph of a downloaded dataset.

  Attributes:
    path: its file, None where it is absent.
    metadata: its known fields of `METADATA`, plain values.
    others: further files of that name, which are not used.
  """

  path: pathlib.Path | None
  metadata: Record
  others: Sequence[pathlib.Path] = ()

  @property
  def image_id(self) -> str:
    return self.metadata['image_id']


def features() -> tfds.features.FeaturesDict:
  """Returns the tfds features of a prepared photograph.

  image: encoded; image_id, patient_id, camera, site (where it was taken), eye
  ('left', 'right', ''), sex: text; age: years; quality (0 adequate, 1
  inadequate), grade (EyeQ's 0, 1, 2) and criteria [4] (labels.CRITERIA; 1
  inadequate): -1 where unknown;
  field_found: 0 or 1; affine float64 [2, 3]: prepared -> original pixels;
  size: side of the prepared frame that `affine` and `landmarks` are in;
  height, width: of the original; landmarks float32 [5]: optic disc x, y and
  diameter, fovea x, y in prepared pixels, NaN where unknown.
  """
  import tensorflow_datasets as tfds

  def text() -> tfds.features.Text:
    return tfds.features.Text()

  whole = np.int64
  return tfds.features.FeaturesDict(
    {
      'image': tfds.features.Image(shape=(None, None, 3)),
      'image_id': text(),
      'patient_id': text(),
      'camera': text(),
      'site': text(),
      'eye': text(),
      'sex': text(),
      'age': whole,
      'quality': whole,
      'grade': whole,
      'criteria': tfds.features.Tensor(shape=(4,), dtype=np.int64),
      'field_found': whole,
      'affine': tfds.features.Tensor(shape=(2, 3), dtype=np.float64),
      'size': whole,
      'height': whole,
      'width': whole,
      'landmarks': tfds.features.Tensor(shape=(5,), dtype=np.float32),
    }
  )


def from_file(
  path: str | os.PathLike, *, original: bool = False, **metadata: Any
) -> Record:
  """Returns the record of a photograph.

  Args:
    path: the file.
    original: keep all pixels, of an upright JPEG its very bytes; `affine`
      still says where the prepared frame lies. Default: crop to the field,
      pad, resize to `prepare.SIZE`.
    **metadata: fields of `METADATA`; the rest is unknown.

  Raises:
    images.ImageError: the file can't be read.
  """
  photograph = images.read(path)
  prepared = prepare.stored(photograph.image, prepare.SIZE)
  if original:
    stored = _own_bytes(path) or encode(photograph.pixels)
  else:
    stored = encode(prepared.image)
  return {
    **METADATA,
    **metadata,
    'image': stored,
    'field_found': int(prepared.field.found),
    'affine': prepared.affine,
    'size': prepare.SIZE,
    'height': photograph.height,
    'width': photograph.width,
  }


def _own_bytes(path: str | os.PathLike) -> io.BytesIO | None:
  """Returns a file's bytes if they are what the pipeline decodes."""
  with Image.open(path) as image:
    upright = image.getexif().get(ExifTags.Base.Orientation, 1) == 1
    plain = image.mode in ('RGB', 'L') and not colour.profile_of(
      image.mode, image.info.get('icc_profile')
    )
    if image.format == 'JPEG' and plain and upright:
      return io.BytesIO(pathlib.Path(path).read_bytes())
  return None


def encode(pixels: np.ndarray) -> io.BytesIO:
  """Returns uint8 [h, w, 3] as a JPEG that keeps the labels' evidence."""
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, 'JPEG', **JPEG)
  file.seek(0)
  return file
