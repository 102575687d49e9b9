"""A PyTorch DataLoader as people write it: decode, resize, normalise."""

from __future__ import annotations

import os
import pathlib

import numpy as np
from PIL import Image
import torch

from tests.benchmarks import common

_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
_DEVIATION = np.array([0.229, 0.224, 0.225], np.float32)
_current: dict = {}


class Photographs(torch.utils.data.Dataset):
  """Photographs of a folder as normalised float32 [3, size, size]."""

  def __init__(self, folder: str, size: int, passes: int = 1):
    self.paths = sorted(pathlib.Path(folder).glob('*.jpeg')) * passes
    self.size = size

  def __len__(self) -> int:
    return len(self.paths)

  def __getitem__(self, index: int) -> torch.Tensor:
    image = Image.open(self.paths[index]).convert('RGB')
    image = image.resize((self.size, self.size), Image.Resampling.BILINEAR)
    pixels = np.asarray(image, np.float32) / 255
    pixels = (pixels - _MEAN) / _DEVIATION
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())


def prepare(folder: str, size: int, batch: int, passes: int) -> int:
  """Starts as many workers as cores, which stay; returns how many."""
  workers = len(os.sched_getaffinity(0))
  _current['loader'] = torch.utils.data.DataLoader(
    Photographs(folder, size, passes),
    batch_size=batch,
    num_workers=workers,
    persistent_workers=True,
  )
  return workers


def read() -> int:
  """Reads all of them once; returns how many."""
  return sum(len(batch) for batch in _current['loader'])


if __name__ == '__main__':
  common.serve({'prepare': prepare, 'read': read}, versions=('torch', 'pillow'))
