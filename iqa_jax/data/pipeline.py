"""From prepared records to batches: planned in NumPy, carried out by tf.data.

`plan` says which example comes when and how it is augmented, `decoding` what
becomes of one photograph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
import math
from types import ModuleType
from typing import TypeAlias

import numpy as np

from iqa_jax import machine
from iqa_jax.data import decoding, planting
from iqa_jax.data import source as source_lib
from iqa_jax.data.plan import Plan
from iqa_jax.data.records import DataError
from iqa_jax.data.source import Source
from iqa_jax.photograph import prepare

_Step: TypeAlias = Mapping[str, decoding.Tensor]  # of a plan

_READ = 64  # records fetched at a time


def batches(
  source: Source,
  plan: Plan,
  *,
  image_size: int,
  batch_size: int,
  field: bool = False,
  cells: int = 0,
  start_batch: int = 0,
  process_index: int = 0,
  process_count: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
  """Yields this process's share of every batch of a plan, in order.

  Args:
    source: the data.
    plan: what comes when.
    image_size: side of the images in pixels.
    batch_size: over all processes; a multiple of `process_count`.
    field: whether images come with their field of view.
    cells: for a head of evidence: side of the grid on which it learns where
      faults are; 0 for other heads.
    start_batch: the first batch wanted.
    process_index: which share.
    process_count: how many shares.

  Yields:
    With b = batch_size / process_count: 'image' uint8 [b, s, s, 3]; 'mask'
    float32 [b], 0 where the last batch is padded; 'index' int64 [b];
    'quality', 'grade' int32 [b]; 'criteria' int32 [b, 4]; 'landmarks' float32
    [b, 5], see `landmarks`; 'image_id' str [b]; 'cause' int32 [b, 3], see
    `planting.causes`. With `field`, 'image' uint8 [b, s, s, 4], the field of
    view as fourth channel; with `cells`, 'fault' uint8 [b, cells, cells], the
    share of a cell, of 255, that a fault that was put in covers.
  """
  if batch_size % process_count:
    raise ValueError(
      f'a batch of {batch_size} does not divide over {process_count} processes'
    )
  _check_size(source, plan, image_size)
  share = batch_size // process_count
  total = math.ceil(len(plan.index) / batch_size)
  slots = [
    np.arange(first, min(first + share, len(plan.index)))
    for b in range(start_batch, total)
    for first in [b * batch_size + process_index * share]
  ]
  shapes = _shapes(image_size, field, cells)
  pictures = _image_batches(source, plan, slots, share, shapes)
  for at in slots:
    found = next(pictures) if len(at) else {}
    filled = {
      key: np.zeros((share, *shape), np.uint8) for key, shape in shapes.items()
    }
    for key, value in found.items():
      filled[key][: len(at)] = value
    yield {**filled, **targets(source, plan, at, share)}


def with_fields(
  source: Source, plan: Plan, image_size: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Yields each photograph, uint8 [s, s, 3], and its field, bool [s, s].

  The field of view is looked for in what the network gets.

  Args:
    source: the data.
    plan: what comes when.
    image_size: side of the images in pixels.
  """
  for batch in batches(source, plan, image_size=image_size, batch_size=16):
    for image in batch['image'][batch['mask'] > 0]:
      yield image, prepare.with_field(image)[..., 3] > 0


def _shapes(
  image_size: int, field: bool, cells: int
) -> dict[str, tuple[int, ...]]:
  shapes: dict[str, tuple[int, ...]] = {
    'image': (image_size, image_size, 4 if field else 3)
  }
  return {**shapes, 'fault': (cells, cells)} if cells else shapes


def _check_size(source: Source, plan: Plan, image_size: int) -> None:
  """Raises DataError if records of photographs are smaller than the input.

  The network would learn from enlarged ones, and be shown sharper ones later.
  """
  table, index = source.table, np.unique(plan.index)
  # What is drawn has no finer original.
  filed = ~table['original'][index] & (table['dataset'][index] != 'fundus_sim')
  small = index[filed & (table['size'][index] < image_size)]
  if len(small):
    raise DataError(
      f'data.image_size={image_size} is more than the '
      f'{table["size"][small[0]]} px of the prepared photographs: give '
      '--config.data.builder_config=original, or a smaller image_size'
    )


def landmarks(
  table: Mapping[str, np.ndarray],
  index: np.ndarray,
  flip: np.ndarray,
  angle: np.ndarray | float = 0.0,
  shrink: np.ndarray | float = 0.0,
) -> np.ndarray:
  """Returns where the landmarks of augmented examples are.

  Args:
    table: of a Source.
    index: int [n], the examples.
    flip: bool [n], as of `Plan`, and so are `angle` and `shrink`.
    angle: in radians.
    shrink: share by which the field is smaller.

  Returns:
    float32 [n, 5], optic disc x, y, disc diameter, fovea x, y in shares of the
    image's side; NaN where unknown.
  """
  found = table['landmarks'][index] / table['size'][index][:, None]
  smaller = 1.0 - np.asarray(shrink)
  cos, sin = smaller * np.cos(angle), smaller * np.sin(angle)
  for x, y in ((0, 1), (3, 4)):
    dx, dy = found[:, x] - 0.5, found[:, y] - 0.5
    # The inverse of what `_turn` looks pixels up with.
    found[:, x] = 0.5 + cos * dx + sin * dy
    found[:, y] = 0.5 - sin * dx + cos * dy
    found[flip, x] = 1.0 - found[flip, x]
  found[:, 2] *= smaller
  return found.astype(np.float32)


def targets(
  source: Source, plan: Plan, at: np.ndarray, share: int
) -> dict[str, np.ndarray]:
  """Returns all of a batch but its pictures, padded to `share` examples.

  Args:
    source: the data.
    plan: what comes when.
    at: int [n], places in the plan, n <= share.
    share: examples of this process's part of a batch.
  """
  n = len(at)
  index = np.zeros(share, np.int64)
  index[:n] = plan.index[at]
  mask = np.zeros(share, np.float32)
  mask[:n] = 1.0
  table = source.table
  fault = np.full(share, -1, np.int8)
  fault[:n] = plan.fault[at]
  cause = planting.causes(
    table['quality'][index],
    table['grade'][index],
    table['criteria'][index],
    fault,
  )
  marks = np.full((share, 5), np.nan, np.float32)
  marks[:n] = landmarks(
    table, plan.index[at], plan.flip[at], plan.angle[at], plan.shrink[at]
  )
  return {
    'mask': mask,
    'index': index,
    **planting.after_faults(table, index, fault),
    'cause': cause,
    'landmarks': marks,
    'image_id': table['image_id'][index],
  }


def _image_batches(
  source: Source,
  plan: Plan,
  slots: Sequence[np.ndarray],
  share: int,
  shapes: Mapping[str, tuple[int, ...]],
) -> Iterator[dict[str, np.ndarray]]:
  """Yields the pictures, of `_shapes`, of each non-empty slot list."""
  tf = source_lib.tensorflow()
  order = np.concatenate([np.zeros(0, np.int64), *slots]).astype(np.int64)
  if not len(order):
    return
  decode = _decoder(tf, source, plan, order, shapes)

  def fetch(indices: decoding.Tensor) -> decoding.Tensor:
    return tf.numpy_function(
      lambda i: np.array(source.read(i), dtype=object), [indices], tf.string
    )

  steps = tf.data.Dataset.from_tensor_slices(
    {
      'flip': plan.flip[order],
      'angle': plan.angle[order],
      'shrink': plan.shrink[order],
      'fault': plan.fault[order].astype(np.int32),
      'seed': plan.seed[order].astype(np.int64),
      'procedural': plan.procedural[order],
      'camera': plan.camera[order],
      'box': decoding.boxes(source.table, plan.index[order]),
      'index': plan.index[order],
    }
  )
  found = (
    tf.data.Dataset.from_tensor_slices(plan.index[order])
    .batch(min(_READ, share))
    .map(fetch, num_parallel_calls=2, deterministic=True)
    .unbatch()
  )
  dataset = tf.data.Dataset.zip(found, steps).map(
    decode, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
  )
  options = tf.data.Options()
  # In the shared pool, of a thread a core, those that wait for records keep
  # those that decode from running: half the speed, on and off.
  options.threading.private_threadpool_size = 2 * machine.cpu_count() + 2
  dataset = dataset.with_options(options)
  # A share may be short only where the plan ends.
  iterator = dataset.batch(share).prefetch(2).as_numpy_iterator()
  yield from iterator


def _decoder(
  tf: ModuleType,
  source: Source,
  plan: Plan,
  order: np.ndarray,
  shapes: Mapping[str, tuple[int, ...]],
) -> Callable[[decoding.Tensor, _Step], dict[str, decoding.Tensor]]:
  """Returns the function from a record and its step of the plan to pictures."""
  import tensorflow_datasets as tfds

  original = bool(source.table['original'][plan.index[order]].any())
  image_size, _, channels = shapes['image']
  through = max(image_size, prepare.SIZE)
  faulty = bool(np.any(plan.fault[order] >= 0))
  retaken = bool(np.any(plan.camera[order] >= 0))
  turned = bool(np.any(plan.angle[order]) or np.any(plan.shrink[order]))

  def decode(
    record: decoding.Tensor, step: _Step
  ) -> dict[str, decoding.Tensor]:
    example = source.features.deserialize_example(
      record, decoders={'image': tfds.decode.SkipDecoding()}
    )
    image = decoding.decode(tf, example['image'], step['box'], through)
    if original:
      image = decoding.fit(tf, image, step['box'], through)
    if channels > 3 or 'fault' in shapes:
      image = decoding.with_field_and_fault(tf, image, step, source.fields)
    elif faulty:
      image = tf.cond(
        step['fault'] >= 0,
        lambda: decoding.fault(tf, image, step),
        lambda: image,
      )
    if retaken:
      # After the fault: a camera photographs a fault with the rest.
      image = tf.cond(
        step['camera'] >= 0,
        lambda: decoding.retake(tf, image, step['camera']),
        lambda: image,
      )
    if turned:
      image = decoding.turn(tf, image, step['angle'], step['shrink'])
    parts = {'image': decoding.resize(tf, image[..., :channels], image_size)}
    if 'fault' in shapes:
      # A grid is a picture too, of a pixel a cell.
      cells = shapes['fault'][0]
      parts['fault'] = decoding.resize(tf, image[..., 4:], cells)[..., 0]
    return {
      key: tf.ensure_shape(
        tf.cond(step['flip'], lambda v=value: v[:, ::-1], lambda v=value: v),
        shapes[key],
      )
      for key, value in parts.items()
    }

  return decode
