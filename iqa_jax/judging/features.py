"""The few statistics of a field of view that tell what sort of picture it is.

NumPy, SciPy and Pillow; some milliseconds a photograph.
"""

from __future__ import annotations

from typing import Any

from jaxtyping import Bool, Float, UInt8
import numpy as np
from PIL import Image
from scipy import ndimage

SIDE = 96  # pixels across of what is looked at
_SCALES = (0.7, 1.5, 3.0, 6.0, 12.0)
_EPS = 0.03
_LEAST = 60  # pixels; a smaller field has no statistics

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


def features(
  image: UInt8[np.ndarray, 's s 3'], inside: Bool[np.ndarray, 's s']
) -> Float[np.ndarray, ' k']:
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
  squared = centred * centred  # NumPy's powers take ten times as long
  skew = float((squared * centred).mean() / deviation**3)
  peak = float((squared * squared).mean() / deviation**4)
  return float(np.arcsinh(skew)), float(np.log(peak + 0.1))


def _colour(
  pixels: np.ndarray, red: np.ndarray, blue: np.ndarray
) -> np.ndarray:
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


def _light(light: np.ndarray) -> np.ndarray:
  counts, _ = np.histogram(light, 32, (0, 1))
  share = counts[counts > 0] / len(light)
  return np.array(
    [
      light.mean(), _log(light.std()), *np.percentile(light, [2, 50, 98]),
      *_moments(light), (light < 0.04).mean(), (light > 0.96).mean(),
      -(share * np.log(share)).sum(),
    ]
  )  # fmt: skip


def _texture(
  light: np.ndarray, red: np.ndarray, mask: np.ndarray
) -> np.ndarray:
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


def _edges(light: np.ndarray, mask: np.ndarray) -> np.ndarray:
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


def _layout(
  light: np.ndarray, red: np.ndarray, blue: np.ndarray, mask: np.ndarray
) -> np.ndarray:
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
