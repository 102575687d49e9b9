"""Learns to tell what is no fundus photograph (judging/fundus.py).

  pip install scikit-image
  python -m iqa_jax.experiments.not_fundus --output=not_fundus.safetensors

A network of two small layers on some seventy statistics: drawn fundus
photographs by many cameras, good and bad, against natural pictures (those in
scikit-image and scikit-learn; they are looked at here and never passed on),
drawn external eyes, slit-lamp pictures, charts, noise and the like. Validation
is by cameras outside the ranges of training, and on natural pictures of which
nothing was learned. The threshold is as high as the wanted share of those
strangers allows: how unlike drawings real fundus photographs are, nobody knows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import pathlib
from typing import TYPE_CHECKING, TypeAlias
import warnings

from absl import app, flags

from iqa_jax import command, errors, machine

if TYPE_CHECKING:
  import numpy as np
  from sklearn.neural_network import MLPClassifier

  from iqa_jax.judging.fundus import NotFundus

Job: TypeAlias = tuple[int, int, int]  # seed, which set, number of the eye
Layers: TypeAlias = 'tuple[np.ndarray, ...]'
Rows: TypeAlias = 'tuple[list[np.ndarray], list[bool], list[np.ndarray]]'

_OUTPUT = flags.DEFINE_string('output', None, 'file to write, .safetensors')
_EYES = flags.DEFINE_integer('eyes', 1000, 'eyes to draw for training')
_CACHE = flags.DEFINE_string('cache', None, 'file to keep the features in')
_SEED = flags.DEFINE_integer('seed', 0, 'of everything drawn')
_SIZE = 224
_LOOKS = 3  # photographs of each eye
_FLAGGED = 0.93  # of the strangers in validation
_NETWORKS = 5  # whose odds are averaged
_BROKEN = (
  (), (), ('focus',), ('illumination',), ('artifacts',),
  ('focus', 'illumination'),
)  # fmt: skip
# Natural pictures that validation looks at and training never does.
_APART = ('coffee', 'chelsea', 'rocket', 'flower', 'clock_motion', 'coins')
_OTHERS = (
  'astronaut', 'brick', 'camera', 'cell', 'chessboard_GRAY', 'color', 'grass',
  'gravel', 'horse', 'hubble_deep_field', 'ihc', 'logo', 'moon',
  'motorcycle_left', 'motorcycle_right', 'page', 'phantom', 'text', 'china',
)  # fmt: skip


def main() -> None:
  if not _OUTPUT.value:
    raise app.UsageError('--output is needed')
  import safetensors.numpy

  from iqa_jax.judging import fundus

  sets = _drawn()
  scorer, lines = learn(sets, _SEED.value)
  for line in lines:
    print(line)
  path = pathlib.Path(_OUTPUT.value)
  safetensors.numpy.save_file(fundus.to_arrays(scorer), path)


def _drawn() -> dict[str, dict[str, np.ndarray]]:
  """Returns the sets that `learn` takes, from --cache where they are."""
  import numpy as np
  import tqdm

  cache = pathlib.Path(_CACHE.value or '')
  if _CACHE.value and cache.is_file():
    with np.load(cache) as kept:
      arrays = dict(kept)
  else:
    arrays = {}
    for name, eyes, apart in (('train', _EYES.value, 0), ('val', 300, 1)):
      jobs = [(_SEED.value, apart, i) for i in range(eyes)]
      drawn = machine.in_processes(_rows, jobs, 4)
      rows = list(tqdm.tqdm(drawn, 'eyes', eyes, disable=None))
      for k, kind in enumerate(('fundus', 'bad', 'strangers')):
        arrays[f'{name}/{kind}'] = np.array(
          [r for part in rows for r in part[k]]
        )
    if _CACHE.value:
      np.savez(cache, **arrays)
  return {
    name: {
      kind: arrays[f'{name}/{kind}'] for kind in ('fundus', 'bad', 'strangers')
    }
    for name in ('train', 'val')
  }


def _rows(job: Job) -> Rows:
  """Returns features of an eye's photographs, which are bad, and of others."""
  import numpy as np

  from iqa_jax.judging.features import features
  from iqa_jax.photograph import prepare
  from iqa_jax.simulation import (
    cameras,
    lesions,
    photograph,
    procedural,
    strangers,
  )

  seed, apart, number = job
  rng = np.random.default_rng([seed, apart, number, 6])
  broken = _BROKEN[rng.integers(len(_BROKEN))]
  where = ('image_field',) if rng.random() < 0.25 else ()
  eye = 7_000_000 + 1_000_000 * apart + number
  drawn = photograph.draw(eye, _SIZE, broken=broken + where)
  pixels, inside = drawn.image, drawn.inside
  if rng.random() < 0.4:
    pixels = lesions.apply(pixels, inside, rng)
  own, bad = [], []
  for look in range(_LOOKS):
    faulty = look == _LOOKS - 1 and rng.random() < 0.5
    seen = pixels
    if faulty:
      seen, _ = procedural.apply(pixels, inside, 'artifacts', rng)
    kind = cameras.UNSEEN if apart and look else cameras.FAMILIAR
    image, field, _ = cameras.retake(seen, inside, cameras.draw(rng, kind), rng)
    if image[field].mean() < 6:
      continue  # nobody could tell it from a frame without light
    own.append(features(image, field))
    bad.append(bool(broken or faulty))
  others = []
  for _ in range(_LOOKS):
    picture = strangers.draw(rng, _pictures(_APART if apart else _OTHERS))
    done = prepare.photograph(picture, _SIZE)
    image, field = done.image, done.inside
    if rng.random() < 0.4:
      image, field, _ = cameras.retake(image, field, cameras.draw(rng), rng)
    others.append(features(image, field))
  return own, bad, others


@functools.cache
def _pictures(names: tuple[str, ...]) -> list[np.ndarray]:
  """Returns natural pictures, uint8 [h, w, 3], of the packages that have some.

  Raises:
    UserError: scikit-image is not installed.
  """
  import importlib.util

  from iqa_jax.photograph import images

  found = importlib.util.find_spec('skimage')
  if found is None or found.origin is None:
    raise errors.UserError(
      'natural pictures are needed: pip install scikit-image'
    )
  import sklearn.datasets

  folders = [
    pathlib.Path(found.origin).parent / 'data',
    pathlib.Path(sklearn.datasets.__file__).parent / 'images',
  ]
  files = [f for folder in folders for f in sorted(folder.iterdir())]
  return [
    images.read(f).pixels
    for f in files
    if f.stem in names and f.suffix in ('.png', '.jpg')
  ]


def learn(
  sets: Mapping[str, Mapping[str, np.ndarray]], seed: int
) -> tuple[NotFundus, list[str]]:
  """Returns the scorer, and what is to be said of it.

  Args:
    sets: 'train' and 'val', each of 'fundus' and 'strangers', features
      [n, k], and 'bad', bool of the former.
    seed: of the network.
  """
  import numpy as np
  from sklearn import metrics, neural_network

  from iqa_jax.judging import fundus

  def joined(name: str) -> tuple[np.ndarray, np.ndarray]:
    part = sets[name]
    rows = np.concatenate([part['fundus'], part['strangers']])
    truth = np.r_[
      np.zeros(len(part['fundus'])), np.ones(len(part['strangers']))
    ]
    return rows, truth

  rows, truth = joined('train')
  mean, deviation = rows.mean(0), rows.std(0) + 1e-3
  x = np.clip((rows - mean) / deviation, -4, 4)
  networks = [
    neural_network.MLPClassifier(
      (32, 16), alpha=0.3, max_iter=60, random_state=seed + i, tol=0
    )
    for i in range(_NETWORKS)
  ]
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')  # that they stop where they are told to
    for network in networks:
      network.fit(x, truth)
  scorer = fundus.NotFundus(mean, deviation, *_beside(networks), 0.5)
  rows, truth = joined('val')
  score, bad = scorer.of_features(rows), np.array(sets['val']['bad'])
  own, strangers = score[truth == 0], score[truth == 1]
  threshold = float(np.clip(np.quantile(strangers, 1 - _FLAGGED), 0.3, 0.99))
  lines = [
    f'AUC {metrics.roc_auc_score(truth, score):.4f}, threshold {threshold:.3f}',
    f'flagged: {(strangers >= threshold).mean():.3f} of {len(strangers)} '
    f'strangers, {(own[~bad] >= threshold).mean():.3f} of {(~bad).sum()} good '
    f'and {(own[bad] >= threshold).mean():.3f} of {bad.sum()} bad fundus '
    'photographs by cameras outside the training ranges',
  ]
  return dataclasses.replace(scorer, threshold=threshold), lines


def _beside(
  networks: Sequence[MLPClassifier],
) -> tuple[Layers, Layers]:
  """Returns weights and biases of one network: the mean of several' odds."""
  import numpy as np
  from scipy import linalg

  first, *middle, last = zip(*(n.coefs_ for n in networks), strict=True)
  biases = list(zip(*(n.intercepts_ for n in networks), strict=True))
  weights = [
    np.concatenate(first, 1),
    *(linalg.block_diag(*parts) for parts in middle),
    np.concatenate(last) / len(networks),
  ]
  wide = [np.concatenate(parts) for parts in biases[:-1]]
  wide.append(np.mean(biases[-1], axis=0))
  return (
    tuple(w.astype(np.float32) for w in weights),
    tuple(b.astype(np.float32) for b in wide),
  )


if __name__ == '__main__':
  command.run(main)
