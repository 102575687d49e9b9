"""Is it a fundus photograph, and is it like those that a model learned from?

Two questions, two scores, both from the same few statistics (features.py).
`not_fundus` asks whether the picture shows a retina at all. It comes trained
with the package (`load`), on drawn photographs by many simulated cameras,
good and bad, against natural pictures, drawn external eyes, charts, noise and
the like (python -m iqa_jax.experiments.not_fundus); it knows no run, and works
beside any model. `unlike_training` asks whether colours and texture are those
of a run's training photographs (familiar.py).
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import functools
import importlib.resources
from typing import Any

import numpy as np

from iqa_jax import errors
from iqa_jax.judging import familiar as familiar_lib
from iqa_jax.judging.features import NAMES, features

WEIGHTS = 'not_fundus.safetensors'
_CLIP = 4.0  # deviations beyond which a feature says no more


@dataclasses.dataclass(frozen=True)
class NotFundus:
  """Tells what is no fundus photograph.

  Attributes:
    mean: float32 [k], of the features of what it learned from.
    deviation: float32 [k], likewise.
    weights: of the layers, float32 [k, h] and so on to [h, 1].
    biases: of the layers.
    threshold: score from which on a picture is called none.
  """

  mean: np.ndarray
  deviation: np.ndarray
  weights: tuple[np.ndarray, ...]
  biases: tuple[np.ndarray, ...]
  threshold: float

  def score(self, image: np.ndarray, inside: np.ndarray) -> float:
    """Returns how little a picture is a fundus photograph, 0 to 1.

    Args:
      image: uint8 [s, s, 3], prepared.
      inside: bool [s, s], its field of view.
    """
    return float(self.of_features(features(image, inside)[None])[0])

  def of_features(self, rows: np.ndarray) -> np.ndarray:
    """Returns the scores [n] of features [n, k]."""
    x = np.clip((rows - self.mean) / self.deviation, -_CLIP, _CLIP)
    for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
      x = np.maximum(x @ weight + bias, 0)
    odds = (x @ self.weights[-1] + self.biases[-1])[:, 0]
    return 1 / (1 + np.exp(-np.clip(odds, -30, 30)))

  def flags(self, score: float) -> bool:
    """Returns whether a picture of this score gets no verdict."""
    return score >= self.threshold


@functools.cache
def load() -> NotFundus:
  """Returns the scorer that comes with the package."""
  import safetensors.numpy

  path = importlib.resources.files('iqa_jax') / 'bundled' / WEIGHTS
  return from_arrays(safetensors.numpy.load(path.read_bytes()))


def from_arrays(arrays: Mapping[str, np.ndarray]) -> NotFundus:
  """Returns the scorer whose arrays `to_arrays` gave.

  Raises:
    InvalidValue: they are of other features.
  """
  wide = {k: np.asarray(v, np.float32) for k, v in arrays.items()}
  if wide['mean'].shape != (len(NAMES),):
    raise errors.InvalidValue(
      f'{WEIGHTS} is of {wide["mean"].size} features, there are {len(NAMES)}'
    )
  count = sum(name.startswith('weight') for name in wide)
  return NotFundus(
    mean=wide['mean'],
    deviation=wide['deviation'],
    weights=tuple(wide[f'weight{i}'] for i in range(count)),
    biases=tuple(wide[f'bias{i}'] for i in range(count)),
    threshold=float(wide['threshold'][0]),
  )


def to_arrays(scorer: NotFundus) -> dict[str, np.ndarray]:
  """Returns a scorer as float32 arrays by name, for a safetensors file."""
  layers = {
    f'{name}{i}': value
    for name, values in (('weight', scorer.weights), ('bias', scorer.biases))
    for i, value in enumerate(values)
  }
  return {
    'mean': scorer.mean,
    'deviation': scorer.deviation,
    'threshold': np.array([scorer.threshold], np.float32),
    **layers,
  }


@dataclasses.dataclass(frozen=True)
class Looks:
  """What a picture looks like, whatever its quality.

  Attributes:
    not_fundus: score of being no fundus photograph, 0 to 1.
    flagged: whether it gets no verdict therefore.
    unlike_training: how unlike the photographs that the model learned from, 1
      at the limit; None where the model doesn't know.
  """

  not_fundus: float
  flagged: bool
  unlike_training: float | None

  @property
  def reason(self) -> str:
    """Why there is no verdict, in words."""
    return (
      f'not a fundus photograph: score {self.not_fundus:.3f}, the limit is '
      f'{load().threshold:.3f}'
    )


def look(
  image: np.ndarray,
  inside: np.ndarray,
  familiar: Mapping[str, Any] | None = None,
) -> Looks:
  """Returns what a prepared photograph looks like.

  Args:
    image: uint8 [s, s, 3], prepared.
    inside: bool [s, s], its field of view.
    familiar: of familiar.fit, of the model's model.json; None without.
  """
  row = features(image, inside)
  score = float(load().of_features(row[None])[0])
  unlike = None
  if familiar is not None:
    unlike = familiar_lib.unlike(row, familiar)[0]
  return Looks(score, load().flags(score), unlike)
