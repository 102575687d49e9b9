"""The one way from a photograph to the network's pixels.

Records, exports, studies and whatever else looks at a file go through here,
because each step of a downsize blurs a little, and blur is what is judged:

  file --images.read--> all pixels --stored--> `SIZE` px --resize--> input

`stored` is what a record holds (as a JPEG, so that what went through a record
differs by that compression and by nothing else), `resize` what tf.data does to
it; `photograph` is both. NumPy and Pillow only.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from iqa_jax.photograph import geometry

SIZE = 512  # side of the prepared photograph in the default configs


def photograph(
  image: np.ndarray | Image.Image, size: int, *, field: bool = False
) -> geometry.Prepared:
  """Returns a photograph as the network gets it, at `size`.

  Args:
    image: uint8 [h, w, 3], or an image of mode RGB, at the file's own size.
    size: side of the network's input.
    field: whether the network also takes the field of view, as a fourth
      channel of `image` (see `with_field`).
  """
  done = stored(image, max(size, SIZE))
  through = len(done.image)
  affine = done.affine * np.array([through / size, through / size, 1.0])
  centres = (np.arange(size) + 0.5) * affine[0, 0]
  inside = done.field.inside(
    centres[None, :] + affine[0, 2], centres[:, None] + affine[1, 2]
  )
  pixels = with_field(done.image) if field else done.image
  return geometry.Prepared(resize(pixels, size), affine, done.field, inside)


def with_field(
  pixels: np.ndarray, field: geometry.Field | None = None
) -> np.ndarray:
  """Returns uint8 [n, n, 4]: a prepared photograph and its field of view.

  The field is looked for in the prepared photograph, because that is all a
  record holds; 255 inside, 0 outside.

  Args:
    pixels: uint8 [n, n, 3], prepared.
    field: what was found in these pixels before; None looks for it.
  """
  at = np.arange(len(pixels)) + 0.5
  field = geometry.find_field(pixels) if field is None else field
  inside = field.inside(at[None], at[:, None])
  return np.concatenate([pixels, 255 * inside[..., None].astype(np.uint8)], -1)


def stored(image: np.ndarray | Image.Image, size: int) -> geometry.Prepared:
  """Returns a photograph cropped to its field, as a record holds it.

  Large photographs are halved by averaging first, while four times `size`
  remains: that antialiases, and is most of the work done cheaply.
  """
  whole = geometry.as_image(image)
  width, height = whole.size
  factor = halvings(min(width, height), size)
  # The field is looked for at 256 px; whole pixels are averaged faster first.
  coarse = max(factor, max(height, width) // 640)
  field = None
  if coarse > 1:
    found = geometry.find_field(whole.reduce(coarse))
    field = found.scaled(coarse / factor, coarse / factor)
    if factor > 1:
      whole = whole.reduce(factor)
  done = geometry.prepare(whole, size, field)
  return geometry.Prepared(
    done.image,
    done.affine * float(factor),
    done.field.scaled(factor, factor),
    done.inside,
  )


def halvings(side: float, size: int) -> int:
  """Returns the power of two, at most 8, by which `side` is reduced first."""
  factor = 1
  while factor < 8 and side >= 4 * factor * size:
    factor *= 2
  return factor


def square(pixels: np.ndarray, size: int) -> np.ndarray:
  """Returns the square that `stored` cuts out, [n, n, 3], at `size`."""
  return np.asarray(geometry.shrink(Image.fromarray(pixels), size, size))


def resize(pixels: np.ndarray, size: int) -> np.ndarray:
  """Returns uint8 [n, n, c] at [size, size, c], bilinear and antialiased."""
  if pixels.shape[:2] == (size, size):
    return pixels
  if pixels.shape[-1] != 3:  # with the field of view, or a mask
    planes = [
      Image.fromarray(np.ascontiguousarray(plane)).resize(
        (size, size), Image.Resampling.BILINEAR
      )
      for plane in np.moveaxis(pixels, -1, 0)
    ]
    return np.stack([np.asarray(plane) for plane in planes], -1)
  return np.array(
    Image.fromarray(pixels).resize((size, size), Image.Resampling.BILINEAR)
  )
