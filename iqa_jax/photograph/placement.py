"""Where the cells of a feature map look.

Each convolution or pooling of a network is a window that slides over the cells
below it; padding and strides say where its centre comes to lie. Windows one
after another give a feature point's placement:

  Placement().then(Window(7, 2, 3), Window(3, 2, 1))  # cell j: 4 j + 0.5

With torch's padding, the same on all sides, ResNet's cell j of stage 4 looks at
32 j + 0.5, and not at 32 (j + 1/2), where maps are usually drawn. Coordinates
are continuous: pixel i covers [i, i + 1), its centre is i + 0.5. Without JAX.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

# How a map can be laid over the picture: each cell where the network's cell
# looks, or as pytorch-grad-cam does, in the middle of its share of the picture.
NAMES = ('network', 'pytorch_grad_cam')


class Window(NamedTuple):
  """A square window of a convolution or a pooling.

  Attributes:
    size: cells across.
    stride: cells between the windows of neighbours.
    padding: cells added on every side.
  """

  size: int
  stride: int = 1
  padding: int = 0


@dataclasses.dataclass(frozen=True)
class Placement:
  """Cell j of a map is centred on `offset` + `stride` j, in pixels.

  Attributes:
    offset: of the first cell's centre, in x and in y.
    stride: between the centres of neighbours.
  """

  offset: float = 0.5
  stride: float = 1.0

  def then(self, *windows: Window) -> Placement:
    """Returns where the cells look that windows, one after another, make."""
    offset, stride = self.offset, self.stride
    for window in windows:
      offset += stride * ((window.size - 1) / 2 - window.padding)
      stride *= window.stride
    return Placement(offset, stride)

  def scaled(self, factor: float) -> Placement:
    """Returns the placement in pixels of which there are `factor` times."""
    return Placement(self.offset * factor, self.stride * factor)

  def cells(self, at: np.ndarray) -> np.ndarray:
    """Returns where pixels lie on the map: the centre of cell j is j + 0.5."""
    return (at - self.offset) / self.stride + 0.5


def evenly(side: float, count: int) -> Placement:
  """Returns the placement of `count` cells that share `side` pixels evenly."""
  return Placement(side / count / 2, side / count)
