"""Is it a fundus photograph, and is it like those that a model learned from?

Two questions, two scores, both from the same few statistics of what lies in
the field of view (`features`): NumPy, SciPy and Pillow, some milliseconds.

`not_fundus` asks whether the picture shows a retina at all. It comes trained
with the package (`load`), on drawn photographs by many simulated cameras,
good and bad, against natural pictures, drawn external eyes, charts, noise and
the like (python -m iqa_jax.experiments.not_fundus); it knows no run, and works
beside any model. `unlike_training` asks whether colours and texture are those
of a run's training photographs (`fit_familiar`): another camera is a fundus
photograph all the same, but nobody knows the model's error rates there.
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import functools
import importlib.resources
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage

from iqa_jax import errors

SIDE = 96  # pixels across of what is looked at
WEIGHTS = 'not_fundus.safetensors'
_SCALES = (0.7, 1.5, 3.0, 6.0, 12.0)
_EPS = 0.03
_LEAST = 60  # pixels; a smaller field has no statistics
_CLIP = 4.0  # deviations beyond which a feature says no more

_COLOUR = (
  'red_mean', 'red_std', 'red_p5', 'red_p95',
  'blue_mean', 'blue_std', 'blue_p5', 'blue_p95',
  'saturation_mean', 'saturation_std', 'chroma_wide', 'chroma_narrow',
  'hue_unity', 'second_colour', 'third_colour',
)  # fmt: skip
_LIGHT = (
  'light_mean', 'light_std', 'light_p2', 'light_p50', 'light_p98',
  'light_skew', 'light_peak', 'share_dark', 'share_bright', 'entropy',
)  # fmt: skip
_TEXTURE = tuple(
  f'{what}_{i}'
  for i in range(len(_SCALES) - 1)
  for what in ('band_rms', 'band_skew', 'band_peak', 'chroma_rms')
)
_EDGES = (
  'edge_p50', 'edge_p90', 'edge_p99', 'one_way', 'two_ways',
  'dark_lines', 'dark_over_bright', 'thin',
)  # fmt: skip
_LAYOUT = (
  *(f'{what}_ring{i}' for i in range(4) for what in ('light', 'red', 'blue')),
  'light_x', 'light_y', 'red_x', 'red_y',
)  # fmt: skip
NAMES = (*_COLOUR, *_LIGHT, *_TEXTURE, *_EDGES, *_LAYOUT)
# What a camera gives its photographs, whatever they show.
FAMILIAR = tuple(
  NAMES.index(name)
  for name in (
    'red_mean', 'red_std', 'blue_mean', 'blue_std', 'saturation_mean',
    'chroma_narrow', 'light_mean', 'light_std', 'light_p98', 'band_rms_0',
    'band_rms_1', 'band_rms_2', 'chroma_rms_0', 'light_ring0', 'light_ring3',
  )
)  # fmt: skip


def features(image: np.ndarray, inside: np.ndarray) -> np.ndarray:
  """Returns the statistics of what lies in the field, float32 [len(NAMES)].

  Args:
    image: uint8 [s, s, 3], a prepared photograph (photograph/prepare.py).
    inside: bool [s, s], its field of view.

  Returns:
    The statistics in the order of `NAMES`, finite; zeros where there is next
    to no field.
  """
  shape = (SIDE, SIDE)
  small = np.asarray(
    Image.fromarray(image).resize(shape, Image.Resampling.BOX), np.float32
  )
  mask = np.asarray(
    Image.fromarray(255 * inside.astype(np.uint8)).resize(
      shape, Image.Resampling.BOX
    )
  )
  mask = ndimage.binary_erosion(mask > 250, iterations=2, border_value=1)
  if mask.sum() < _LEAST:
    return np.zeros(len(NAMES), np.float32)
  pixels = small / 255
  light = pixels.mean(2)
  logs = np.log(pixels + _EPS)
  red, blue = logs[..., 0] - logs[..., 1], logs[..., 2] - logs[..., 1]
  parts = [
    _colour(pixels[mask], red[mask], blue[mask]),
    _light(light[mask]),
    _texture(light, red, mask),
    _edges(light, mask),
    _layout(light, red, blue, mask),
  ]
  return np.nan_to_num(np.concatenate(parts)).astype(np.float32)


def _log(x: Any) -> Any:
  return np.log(np.maximum(x, 1e-4))


def _moments(x: np.ndarray) -> tuple[float, float]:
  """Returns skewness and, compressed, the excess of the kurtosis."""
  centred = x - x.mean()
  deviation = max(float(x.std()), 1e-4)
  skew = float((centred**3).mean() / deviation**3)
  peak = float((centred**4).mean() / deviation**4)
  return float(np.arcsinh(skew)), float(np.log(peak + 0.1))


def _colour(pixels, red, blue) -> np.ndarray:
  ends = [*np.percentile(red, [5, 95]), *np.percentile(blue, [5, 95])]
  top, bottom = pixels.max(1), pixels.min(1)
  saturation = (top - bottom) / (top + _EPS)
  total = pixels.sum(1) + _EPS
  u = (pixels[:, 0] - pixels[:, 1]) / total
  v = (pixels[:, 0] + pixels[:, 1] - 2 * pixels[:, 2]) / total
  narrow, wide = np.linalg.eigvalsh(np.cov(u, v))
  length = np.hypot(u, v).sum() + 1e-3
  spread = np.linalg.eigvalsh(np.cov(pixels.T))
  return np.array(
    [
      red.mean(), red.std(), ends[0], ends[1],
      blue.mean(), blue.std(), ends[2], ends[3],
      saturation.mean(), saturation.std(),
      0.5 * _log(wide), 0.5 * _log(narrow),
      np.hypot(u.sum(), v.sum()) / length,
      0.5 * _log(spread[1] / (spread[2] + 1e-6)),
      0.5 * _log(spread[0] / (spread[2] + 1e-6)),
    ]
  )  # fmt: skip


def _light(light) -> np.ndarray:
  counts, _ = np.histogram(light, 32, (0, 1))
  share = counts[counts > 0] / len(light)
  return np.array(
    [
      light.mean(), _log(light.std()), *np.percentile(light, [2, 50, 98]),
      *_moments(light), (light < 0.04).mean(), (light > 0.96).mean(),
      -(share * np.log(share)).sum(),
    ]
  )  # fmt: skip


def _texture(light, red, mask) -> np.ndarray:
  """Bands of the spectrum, relative to the light; outside is levelled."""
  level = light[mask].mean()
  planes = (np.where(mask, light / (level + 0.05), 1.0), red)
  planes = (planes[0], np.where(mask, red, red[mask].mean()))
  blurred = [[ndimage.gaussian_filter(p, s) for s in _SCALES] for p in planes]
  values: list[float] = []
  for i in range(len(_SCALES) - 1):
    band = (blurred[0][i] - blurred[0][i + 1])[mask]
    chroma = (blurred[1][i] - blurred[1][i + 1])[mask]
    values += [_log(band.std()), *_moments(band), _log(chroma.std())]
  return np.array(values)


def _edges(light, mask) -> np.ndarray:
  smooth = ndimage.gaussian_filter(
    np.where(mask, light / (light[mask].mean() + 0.05), 1.0), 1.2
  )
  gy, gx = np.gradient(smooth)
  yy, yx = np.gradient(gy)
  xy, xx = np.gradient(gx)
  across, along = gx[mask], gy[mask]
  size = np.hypot(across, along) + 1e-6
  angle = np.arctan2(along, across)
  ways = [np.abs((size * np.exp(1j * k * angle)).sum()) for k in (2, 4)]
  half = (xx + yy)[mask] / 2
  root = np.sqrt(((xx - yy)[mask] / 2) ** 2 + (xy + yx)[mask] ** 2 / 4)
  most, least = half + root, half - root
  dark, bright = np.maximum(most, 0).mean(), np.maximum(-least, 0).mean()
  lines = (most > 2.5 * np.abs(least)) & (most > 0.01)
  return np.array(
    [
      *_log(np.percentile(size, [50, 90, 99])),
      ways[0] / size.sum(), ways[1] / size.sum(),
      _log(dark), _log(dark) - _log(bright), lines.mean(),
    ]
  )  # fmt: skip


def _layout(light, red, blue, mask) -> np.ndarray:
  ys, xs = np.nonzero(mask)
  radius = np.sqrt(mask.sum() / np.pi)
  x, y = (xs - xs.mean()) / radius, (ys - ys.mean()) / radius
  rings = np.minimum((np.hypot(x, y) * 3.5).astype(int), 3)
  level = light[mask] / (light[mask].mean() + _EPS)
  planes = (level, red[mask] - red[mask].mean(), blue[mask] - blue[mask].mean())
  values = [
    float(plane[rings == i].mean()) if (rings == i).any() else 0.0
    for i in range(4)
    for plane in planes
  ]
  slopes = [
    abs(float((plane * axis).mean())) for plane in planes[:2] for axis in (x, y)
  ]
  return np.array(values + slopes)


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
    familiar: of `fit_familiar`, of the model's model.json; None without.
  """
  row = features(image, inside)
  score = float(load().of_features(row[None])[0])
  unlike = None
  if familiar is not None:
    unlike = unlike_training(row, familiar)[0]
  return Looks(score, load().flags(score), unlike)


def fit_familiar(rows: np.ndarray, flagged: float = 0.015) -> dict[str, Any]:
  """Returns what is familiar to a run, as a record for its model.json.

  A Gaussian with a shrunk covariance (Ledoit and Wolf 2004) of `FAMILIAR`
  features; its threshold is that of photographs left out of the fit.

  Args:
    rows: float [n, len(NAMES)], `features` of training photographs.
    flagged: share of such photographs that may be called unlike them.

  Raises:
    InvalidValue: fewer than 20 photographs.
  """
  from sklearn.covariance import LedoitWolf

  rows = np.asarray(rows, np.float64)[:, FAMILIAR]
  if len(rows) < 20:
    raise errors.InvalidValue(
      f'{len(rows)} photographs do not say what is familiar; 20 are needed'
    )
  folds = np.arange(len(rows)) % 5
  apart = np.empty(len(rows))
  for fold in range(5):
    apart[folds == fold] = _distance(
      rows[folds == fold], *_gaussian(LedoitWolf(), rows[folds != fold])
    )
  mean, deviation, precision = _gaussian(LedoitWolf(), rows)
  return {
    'names': [NAMES[i] for i in FAMILIAR],
    'mean': mean.tolist(),
    'deviation': deviation.tolist(),
    'precision': precision.tolist(),
    'threshold': float(np.quantile(apart, 1 - flagged)),
    'flagged': flagged,
    'n': len(rows),
  }


def _gaussian(model, rows):
  mean, deviation = rows.mean(0), rows.std(0) + 1e-6
  model.fit((rows - mean) / deviation)
  return mean, deviation, model.precision_


def _distance(rows, mean, deviation, precision) -> np.ndarray:
  z = (rows - mean) / deviation
  return np.sqrt(np.maximum(np.einsum('ni,ij,nj->n', z, precision, z), 0))


def unlike_training(
  row: np.ndarray, record: Mapping[str, Any]
) -> tuple[float, bool]:
  """Returns how unlike the training photographs one is, and whether to say so.

  Args:
    row: float [len(NAMES)], its `features`.
    record: of `fit_familiar`.

  Returns:
    The Mahalanobis distance over the record's threshold (1 is the threshold),
    and whether it is beyond.

  Raises:
    InvalidValue: the record is of other features.
  """
  if list(record['names']) != [NAMES[i] for i in FAMILIAR]:
    raise errors.InvalidValue(
      'the run was trained with other statistics of its photographs; '
      'evaluate it again'
    )
  arrays = [np.asarray(record[k]) for k in ('mean', 'deviation', 'precision')]
  values = np.asarray(row, np.float64)[None, list(FAMILIAR)]
  distance = float(_distance(values, *arrays)[0])
  share = distance / float(record['threshold'])
  return share, share > 1
