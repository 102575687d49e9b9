"""Random weights and images that every witness makes for itself.

The same rule as that of the reference outputs made with torchvision: a tensor
depends on its torch name and the seed only. Golden values computed under these
weights replace a download of several hundred megabytes.
"""

import zlib

import numpy as np


def weights(shapes: dict[str, list[int]], seed: int = 0) -> dict:
  """Returns {torch name: array} in torch's layout for {torch name: shape}."""
  return {name: _tensor(name, shape, seed) for name, shape in shapes.items()}


def _tensor(name: str, shape: list[int], seed: int) -> np.ndarray:
  rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
  if name.endswith('num_batches_tracked'):
    return np.asarray(1000, np.int64)
  if name.endswith('running_var'):
    value = rng.uniform(0.5, 1.5, shape)
  elif name.endswith(('running_mean', 'bias')):
    value = 0.1 * rng.standard_normal(shape)
  elif len(shape) == 1:  # BatchNorm's scale; small on the residual branch
    top = 0.4 if name.endswith('bn3.weight') else 1.2
    value = rng.uniform(0.5 * top, top, shape)
  else:  # He normal
    fan_in = int(np.prod(shape[1:]))
    value = rng.standard_normal(shape) * np.sqrt(2.0 / fan_in)
  return np.asarray(value, np.float32)


def images(height: int, width: int, count: int = 2, seed: int = 0):
  """Returns smooth [count, height, width, 3] float32 images, normalised."""
  rng = np.random.default_rng([seed, height, width])
  coarse = rng.standard_normal((count, 8, 8, 3))
  ys, xs = np.linspace(0, 7, height), np.linspace(0, 7, width)
  y, x = np.minimum(ys.astype(int), 6), np.minimum(xs.astype(int), 6)
  fy, fx = (ys - y)[:, None, None], (xs - x)[:, None]
  rows = coarse[:, y] * (1 - fy) + coarse[:, y + 1] * fy
  smooth = rows[:, :, x] * (1 - fx) + rows[:, :, x + 1] * fx
  noise = 0.1 * rng.standard_normal(smooth.shape)
  return (smooth + noise).astype(np.float32)
