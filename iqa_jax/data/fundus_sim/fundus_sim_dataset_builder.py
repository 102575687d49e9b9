"""fundus_sim: simulated fundus photographs with known faults."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
import dataclasses
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
import tqdm

from iqa_jax import labels, machine
from iqa_jax.aliases import Record
from iqa_jax.data import records
from iqa_jax.simulation import cameras, lesions, photograph

# Every split has patients of its own; seeds start here.
_FIRST_SEED = {'train': 0, 'validation': 1_000_000, 'test': 2_000_000}
_PER_PATIENT = 2  # one photograph of each eye

# BRSet's counts (16,266 photographs): those of one sole fault and the rest of
# each criterion's, which come in pairs.
_BRSET: dict[tuple[str, ...], float] = {
  ('image_field',): 1322 / 16266,
  ('focus',): 470 / 16266,
  ('illumination',): 58 / 16266,
  ('artifacts',): 42 / 16266,
  ('image_field', 'focus'): 70 / 16266,
  ('illumination', 'image_field'): 12 / 16266,
  ('artifacts', 'illumination'): 13 / 16266,
}
_BALANCED: dict[tuple[str, ...], float] = {
  **{(name,): 0.11 for name in labels.CRITERIA},
  ('focus', 'illumination'): 0.03,
  ('image_field', 'artifacts'): 0.03,
}

# Several faults at once, as hopeless photographs have; by whether they train.
_MIXED: dict[tuple[str, ...], float] = {
  ('focus',): 0.16,
  ('illumination',): 0.2,
  ('artifacts',): 0.2,
  ('focus', 'illumination'): 0.16,
  ('illumination', 'artifacts'): 0.08,
  ('focus', 'artifacts'): 0.04,
  ('focus', 'illumination', 'artifacts'): 0.06,
  ('image_field',): 0.1,
}
_SEVERAL = {
  # Half of validation and test fail, two in seven of training.
  False: {kinds: 0.56 * share for kinds, share in _MIXED.items()},
  True: {kinds: 0.32 * share for kinds, share in _MIXED.items()},
}


@dataclasses.dataclass(kw_only=True)
class Config(tfds.core.BuilderConfig):
  """How many photographs of which size, and how often they fail.

  Attributes:
    size: side in pixels.
    counts: photographs of train, validation and test.
    brset_like: fail as often as BRSet's, else one half fails.
    cameras: for a model of any camera: sick eyes among healthy ones, several
      faults at once, and validation and test by cameras that training never
      draws (simulation/cameras.py). The verdict leaves the image field out,
      which varies and is not judged.
  """

  size: int = 512
  counts: tuple[int, int, int] = (8000, 1000, 2000)
  brset_like: bool = False
  cameras: bool = False


class Builder(tfds.core.GeneratorBasedBuilder):
  """Simulated photographs, drawn here; nothing is downloaded."""

  VERSION = tfds.core.Version('2.2.0')
  RELEASE_NOTES = {
    '2.2.0': 'cameras: fine vessels, sheen and mottled choroids. Others: no '
    'change.',
    '2.1.0': 'Faults nearer to real Rejects: darker, greyer; murk is new. '
    'Records name a site (here none).',
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
    Config(
      name='cameras',
      description='320 px, sick eyes too, tested by cameras never seen.',
      size=photograph.SIZES['cameras'],
      counts=(2400, 400, 400),
      cameras=True,
    ),
  ]

  def __init__(self, **kwargs: Any):
    super().__init__(file_format='array_record', **kwargs)

  def _info(self) -> tfds.core.DatasetInfo:
    return self.dataset_info_from_configs(features=records.features())

  def _split_generators(
    self, dl_manager: tfds.download.DownloadManager
  ) -> dict[str, Iterator]:
    del dl_manager
    counts = zip(_FIRST_SEED, self.builder_config.counts, strict=True)
    return {name: self._generate_examples(name, n) for name, n in counts}

  def _generate_examples(self, split: str, count: int) -> Iterator:
    config = self.builder_config
    first = _FIRST_SEED[split]
    shares = _BRSET if config.brset_like else _BALANCED
    if config.cameras:
      # In training most faults are put in later, where their place is known.
      shares = _SEVERAL[split == 'train']
    broken = _deal(first, count, shares)
    kind = '' if not config.cameras else cameras.UNSEEN
    kind = cameras.FAMILIAR if kind and split == 'train' else kind
    jobs = [
      (first + i, config.size, broken[i], first + i // _PER_PATIENT, kind)
      for i in range(count)
    ]
    drawn = machine.in_processes(_record, jobs, 8)
    for record in tqdm.tqdm(
      drawn, f'drawing {split}', count, unit='photograph', disable=None
    ):
      yield record['image_id'], record


def _deal(
  seed: int, count: int, shares: Mapping[tuple[str, ...], float]
) -> list[tuple[str, ...]]:
  """Returns what each photograph fails of, in exactly these shares."""
  dealt = [
    kinds
    for kinds, share in shares.items()
    for _ in range(round(share * count))
  ]
  dealt += [()] * (count - len(dealt))
  np.random.default_rng([seed, 3]).shuffle(dealt)
  return [tuple(kinds) for kinds in dealt]


def _record(job: tuple[int, int, tuple[str, ...], int, str]) -> Record:
  """Draws one photograph; runs in a worker process."""
  seed, size, broken, patient, kind = job
  drawn = photograph.draw(
    seed,
    size,
    broken=broken,
    patient=patient,
    eye='right' if seed % _PER_PATIENT else 'left',
  )
  pixels, criteria, quality = drawn.image, drawn.criteria, drawn.quality
  if kind:
    pixels = _by_any_camera(drawn, seed, kind)
    judged = [labels.CRITERIA.index(name) for name in labels.LOCAL_CRITERIA]
    quality = int(criteria[judged].max())
  return {
    **records.METADATA,
    'image': records.encode(pixels),
    'image_id': f'simulated_{seed:07d}',
    'patient_id': f'simulated_{patient:07d}',
    'camera': drawn.camera,
    'eye': drawn.eye,
    'age': round(drawn.age),
    'quality': quality,
    'criteria': criteria,
    'field_found': 1,
    'affine': np.eye(2, 3),
    'size': size,
    'height': size,
    'width': size,
    'landmarks': drawn.landmarks,
  }


def _by_any_camera(drawn: photograph.Drawn, seed: int, kind: str) -> np.ndarray:
  """Returns the pixels of an eye, sick in two of five, by another camera.

  In training the camera changes every epoch (data.augment.cameras).
  """
  rng = np.random.default_rng([seed, 4])
  pixels = drawn.image
  if rng.random() < 0.4:
    pixels = lesions.apply(pixels, drawn.inside, rng)
  if kind == cameras.FAMILIAR:
    return pixels
  camera = cameras.draw(rng, kind if rng.random() < 0.7 else cameras.FAMILIAR)
  return cameras.retake(pixels, drawn.inside, camera, rng)[0]
