"""What tf.data does to one stored photograph: decode, cut, break, turn, size.

Every function takes the module `tensorflow`, which only training imports.
"""

from __future__ import annotations

from collections.abc import Mapping
import functools
import math

import numpy as np

from iqa_jax.data import planting
from iqa_jax.photograph import geometry, prepare

_WHOLE = np.asarray([0.0, 0.0, 1.0], np.float32)  # of a stored image


def boxes(table: Mapping[str, np.ndarray], index: np.ndarray) -> np.ndarray:
  """Returns where the prepared square lies in the stored image.

  float32 [n, 3]: left, top and side as shares of the stored image's width.
  """
  affine = table['affine'][index]
  side = affine[:, 0, 0] * table['size'][index]
  boxes = np.stack([affine[:, 0, 2], affine[:, 1, 2], side], 1)
  boxes /= table['width'][index, None]
  boxes[~table['original'][index]] = _WHOLE
  return boxes.astype(np.float32)


def decode(tf, data, box, through: int):
  """Returns the prepared square of a stored JPEG, uint8.

  Of a record that holds all pixels it is what prepare.stored makes of them,
  but halved by the JPEG's DCT, which saves most of the decoding.
  """
  shape = tf.cast(tf.image.extract_jpeg_shape(data)[:2], tf.float32)
  ratio = tf.maximum(tf.reduce_min(shape) / (2.0 * through), 1.0)
  level = tf.cast(tf.floor(tf.math.log(ratio) / math.log(2.0)), tf.int32)
  image = tf.switch_case(
    tf.minimum(level, 3),
    [
      functools.partial(
        tf.io.decode_jpeg,
        data,
        channels=3,
        ratio=ratio,
        # As Pillow does it; TensorFlow's own choice is off by up to 8 levels.
        dct_method='INTEGER_ACCURATE',
      )
      for ratio in (1, 2, 4, 8)
    ],
  )
  decoded = tf.shape(image)
  scaled = tf.cast(decoded[1], tf.float32) * box
  left, top, side = tf.unstack(tf.cast(tf.round(scaled), tf.int32))
  x0, y0 = tf.maximum(left, 0), tf.maximum(top, 0)
  x1 = tf.minimum(left + side, decoded[1])
  y1 = tf.minimum(top + side, decoded[0])
  return tf.pad(
    image[y0:y1, x0:x1],
    [[y0 - top, top + side - y1], [x0 - left, left + side - x1], [0, 0]],
  )


def fit(tf, image, box, through: int):
  """Brings a square cut out of a photograph to the size that records have."""

  def fit(pixels, box):
    whole = np.array_equal(box, _WHOLE)
    return pixels if whole else prepare.square(pixels, through)

  fitted = tf.numpy_function(fit, [image, box], tf.uint8)
  return tf.ensure_shape(fitted, (None, None, 3))


def fault(tf, image, step):
  """Puts a simulated fault of a criterion into a photograph."""

  def apply(pixels, criterion, seed, procedural):
    inside = prepare.with_field(pixels)[..., 3] > 0
    return planting.plant(pixels, inside, criterion, seed, procedural)[0]

  arguments = [image, step['fault'], step['seed'], step['procedural']]
  faulty = tf.numpy_function(apply, arguments, tf.uint8)
  return tf.ensure_shape(faulty, (None, None, 3))


def with_field_and_fault(tf, image, step, fields):
  """Returns [n, n, 5]: the photograph, its field, and where its fault is.

  `fields` are those of records seen before, by their index and side.
  """

  def apply(pixels, index, criterion, seed, procedural):
    key = int(index), len(pixels)
    if key not in fields:
      fields[key] = geometry.find_field(pixels)
    both = prepare.with_field(pixels, fields[key])
    mask = np.zeros(pixels.shape[:2], np.float32)
    if criterion >= 0:
      inside = both[..., 3] > 0
      both[..., :3], mask = planting.plant(
        pixels, inside, criterion, seed, procedural
      )
    fault = np.rint(255 * mask)[..., None].astype(np.uint8)
    return np.concatenate([both, fault], -1)

  names = ('index', 'fault', 'seed', 'procedural')
  arguments = [image, *(step[name] for name in names)]
  planes = tf.numpy_function(apply, arguments, tf.uint8)
  return tf.ensure_shape(planes, (None, None, 5))


def retake(tf, image, seed):
  """Takes a photograph again with another camera, its field and fault too."""

  def apply(planes, seed):
    from iqa_jax.simulation import cameras

    both = planes if planes.shape[-1] > 3 else prepare.with_field(planes)
    inside = both[..., 3] > 0
    mask = both[..., 4] if both.shape[-1] > 4 else None
    rng = np.random.default_rng(seed)
    pixels, inside, mask = cameras.retake(
      both[..., :3], inside, cameras.draw(rng), rng, mask
    )
    field = 255 * inside.astype(np.uint8)
    parts = [pixels, field[..., None], mask[..., None]]
    return np.concatenate(parts, -1)[..., : planes.shape[-1]]

  taken = tf.numpy_function(apply, [image, seed], tf.uint8)
  return tf.ensure_shape(taken, (None, None, image.shape[-1]))


def turn(tf, image, angle, shrink):
  """Rotates and shrinks about the centre, bilinear, black outside."""
  # At the stored size, before the downsize: interpolation blurs, and blur is
  # a fault that the network looks for.
  middle = tf.cast(tf.shape(image)[0], tf.float32) / 2.0 - 0.5
  cos = tf.cos(angle) / (1.0 - shrink)
  sin = tf.sin(angle) / (1.0 - shrink)
  zero = tf.zeros_like(cos)
  transform = tf.stack(
    [
      cos, -sin, middle - cos * middle + sin * middle,
      sin, cos, middle - sin * middle - cos * middle,
      zero, zero,
    ]
  )  # fmt: skip
  turned = tf.raw_ops.ImageProjectiveTransformV3(
    images=tf.cast(image, tf.float32)[None],
    transforms=transform[None],
    output_shape=tf.shape(image)[:2],
    fill_value=0.0,
    interpolation='BILINEAR',
    fill_mode='CONSTANT',
  )[0]
  return tf.cast(tf.round(turned), tf.uint8)


def resize(tf, image, size: int):
  """Brings an image to the network's size as every other path does."""
  resized = tf.numpy_function(
    lambda pixels: prepare.resize(pixels, size), [image], tf.uint8
  )
  return tf.ensure_shape(resized, (size, size, image.shape[-1]))
