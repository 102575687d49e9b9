"""A data pipeline in memory: the interface of data/plan.py and pipeline.py.

Images are noise whose brightness and contrast tell the class, drawn from the
example's number, so that any process can draw any of them.
"""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Plan:
  index: np.ndarray
  flip: np.ndarray

  @property
  def view(self) -> np.ndarray:
    return self.flip.astype(int)


class Source:
  def __init__(self, count: int):
    rng = np.random.default_rng(3)
    quality = rng.integers(0, 2, count)
    self.table = {
      'image_id': np.array([f'image_{i}' for i in range(count)]),
      'quality': quality,
      'grade': quality * 2,
      'criteria': np.repeat(quality[:, None], 4, axis=1),
      'landmarks': rng.random((count, 5)).astype(np.float32),
    }
    # Epochs that run from a feature cache must leave this alone.
    self.reads = 0

  def image(self, i: int, size: int) -> np.ndarray:
    noise = np.random.default_rng(i).normal(size=(size, size, 3))
    bright = 90 + 50 * self.table['quality'][i]
    ramp = np.linspace(-30, 30, size)[None, :, None]
    return np.clip(bright + ramp + 40 * noise, 0, 255).astype(np.uint8)


def split(count: int, validation: int) -> dict[str, np.ndarray]:
  return {
    'train': np.arange(count - validation),
    'validation': np.arange(count - validation, count),
  }


def finite_views(config):
  return [0, 1] if config.data.augment.flip else [0]


def plan_train(source, indices, config, epoch):
  del source
  rng = np.random.default_rng([config.seed, epoch])
  flip = rng.random(len(indices)) < 0.5
  return Plan(rng.permutation(indices), flip & config.data.augment.flip)


def plan_eval(indices):
  return Plan(np.asarray(indices), np.zeros(len(indices), bool))


def planned_labels(source, indices, config, epochs):
  del config, epochs
  keys = ('quality', 'grade', 'criteria')
  return {key: source.table[key][indices] for key in keys}


def plan_views(source, indices, config, view):
  del source, config
  return Plan(np.asarray(indices), np.full(len(indices), bool(view)))


def landmarks(table, index, flip):
  found = table['landmarks'][index]
  found[flip] = np.abs([1, 0, 0, 1, 0] - found[flip])
  return found


def batches(
  source,
  plan,
  *,
  image_size,
  batch_size,
  field=False,
  cells=0,
  start_batch=0,
  process_index=0,
  process_count=1,
):
  share = batch_size // process_count
  for first in range(start_batch * batch_size, len(plan.index), batch_size):
    begin = first + process_index * share
    at = np.arange(begin, begin + share)
    at = at[at < len(plan.index)]
    images = np.zeros((share, image_size, image_size, 3), np.uint8)
    for row, place in enumerate(at):
      source.reads += 1
      image = source.image(plan.index[place], image_size)
      images[row] = image[:, ::-1] if plan.flip[place] else image
    yield {'image': images, **targets(source, plan, at, share)}


def targets(source, plan, at, share):
  index, flip = np.zeros(share, int), np.zeros(share, bool)
  index[: len(at)], flip[: len(at)] = plan.index[at], plan.flip[at]
  return {
    'mask': (np.arange(share) < len(at)).astype(np.float32),
    'index': index,
    **{k: source.table[k][index] for k in ('quality', 'grade', 'criteria')},
    'landmarks': landmarks(source.table, index, flip),
    'image_id': source.table['image_id'][index],
  }
