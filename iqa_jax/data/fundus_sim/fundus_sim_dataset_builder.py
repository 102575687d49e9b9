"""fundus_sim: simulated fundus photographs with known faults."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import multiprocessing

import numpy as np
import tensorflow_datasets as tfds
import tqdm

from iqa_jax import labels, machine
from iqa_jax.data import records
from iqa_jax.simulation import photograph

# Every split has patients of its own; seeds start here.
_FIRST_SEED = {'train': 0, 'validation': 1_000_000, 'test': 2_000_000}
_PER_PATIENT = 2  # one photograph of each eye

# BRSet's counts (16,266 photographs): those of one sole fault and the rest of
# each criterion's, which come in pairs.
_BRSET = {
  ('image_field',): 1322 / 16266,
  ('focus',): 470 / 16266,
  ('illumination',): 58 / 16266,
  ('artifacts',): 42 / 16266,
  ('image_field', 'focus'): 70 / 16266,
  ('illumination', 'image_field'): 12 / 16266,
  ('artifacts', 'illumination'): 13 / 16266,
}
_BALANCED = {(name,): 0.11 for name in labels.CRITERIA} | {
  ('focus', 'illumination'): 0.03,
  ('image_field', 'artifacts'): 0.03,
}


@dataclasses.dataclass(kw_only=True)
class Config(tfds.core.BuilderConfig):
  """How many photographs of which size, and how often they fail.

  Attributes:
    size: side in pixels.
    counts: photographs of train, validation and test.
    brset_like: fail as often as BRSet's, else one half fails.
  """

  size: int = 512
  counts: tuple[int, int, int] = (8000, 1000, 2000)
  brset_like: bool = False


class Builder(tfds.core.GeneratorBasedBuilder):
  """Simulated photographs, drawn here; nothing is downloaded."""

  VERSION = tfds.core.Version('2.0.0')
  RELEASE_NOTES = {
    '2.0.0': 'Drawn anew, nearer to EyePACS photographs: every byte changed.',
    '1.0.0': 'First drawn.',
  }
  BUILDER_CONFIGS = [
    Config(
      name='demo',
      description='Small and quick, one half fails.',
      size=photograph.SIZES['demo'],
      counts=(1200, 300, 500),
    ),
    Config(name='512', description='512 px, one half fails.'),
    Config(
      name='brset_like',
      description='512 px, failing as often and of what BRSet fails.',
      counts=(10000, 3000, 3266),
      brset_like=True,
    ),
  ]

  def __init__(self, **kwargs):
    super().__init__(file_format='array_record', **kwargs)

  def _info(self):
    return self.dataset_info_from_configs(features=records.features())

  def _split_generators(self, dl_manager):
    del dl_manager
    counts = zip(_FIRST_SEED, self.builder_config.counts, strict=True)
    return {name: self._generate_examples(name, n) for name, n in counts}

  def _generate_examples(self, split, count):
    config = self.builder_config
    first = _FIRST_SEED[split]
    broken = _deal(first, count, _BRSET if config.brset_like else _BALANCED)
    jobs = [
      (first + i, config.size, broken[i], first + i // _PER_PATIENT)
      for i in range(count)
    ]
    # Processes, not threads: drawing is mostly Python. Spawned, because
    # TensorFlow's threads don't survive a fork.
    context = multiprocessing.get_context('spawn')
    workers = machine.cpu_count()
    with concurrent.futures.ProcessPoolExecutor(workers, context) as pool:
      drawn = pool.map(_record, jobs, chunksize=8)
      bar = tqdm.tqdm(
        drawn, f'drawing {split}', count, unit='photograph', disable=None
      )
      for record in bar:
        yield record['image_id'], record


def _deal(seed, count, shares) -> list[tuple[str, ...]]:
  """Returns what each photograph fails of, in exactly these shares."""
  dealt = [
    kinds
    for kinds, share in shares.items()
    for _ in range(round(share * count))
  ]
  dealt += [()] * (count - len(dealt))
  np.random.default_rng([seed, 3]).shuffle(dealt)
  return [tuple(kinds) for kinds in dealt]


def _record(job):
  """Draws one photograph; runs in a worker process."""
  seed, size, broken, patient = job
  drawn = photograph.draw(
    seed,
    size,
    broken=broken,
    patient=patient,
    eye='right' if seed % _PER_PATIENT else 'left',
  )
  return {
    **records.METADATA,
    'image': records.encode(drawn.image),
    'image_id': f'simulated_{seed:07d}',
    'patient_id': f'simulated_{patient:07d}',
    'camera': drawn.camera,
    'eye': drawn.eye,
    'age': round(drawn.age),
    'quality': drawn.quality,
    'criteria': drawn.criteria,
    'field_found': 1,
    'affine': np.eye(2, 3),
    'size': size,
    'height': size,
    'width': size,
    'landmarks': drawn.landmarks,
  }
