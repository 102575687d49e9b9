"""What each pixel of a photograph with faults is, as FunPiQ labels it.

One number a pixel: 0 background, 1 good, 2 usable, 3 bad; files are indexed
PNGs. iqa_jax.studies.pixel_truth reads them.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from iqa_jax.simulation import faults

if TYPE_CHECKING:
  from iqa_jax.simulation.photograph import Drawn

BACKGROUND, GOOD, USABLE, BAD = range(4)
# Of a fault's mask: from here on its pixels are usable, and bad.
_SLIGHT, _CLEAR = 0.1, 0.5
_COLOURS = (0, 0, 0, 60, 160, 90, 240, 200, 60, 210, 50, 50)


def of_fault(
  mask: np.ndarray, inside: np.ndarray, severity: float = 1.0
) -> np.ndarray:
  """Returns what the pixels are of a photograph with a fault, uint8 [h, w].

  Args:
    mask: [h, w] of 0..1, how strongly each pixel is affected.
    inside: bool [h, w], the field of view.
    severity: of the fault; below faults.THRESHOLD its pixels are usable.
  """
  worst = BAD if severity >= faults.THRESHOLD else USABLE
  labels = np.where(mask >= _SLIGHT, USABLE, GOOD)
  labels = np.where(mask >= _CLEAR, worst, labels)
  return np.where(inside, labels, BACKGROUND).astype(np.uint8)


def of_drawn(drawn: Drawn) -> np.ndarray:
  """Returns what the pixels of a simulation.photograph.Drawn are, [h, w]."""
  labels = of_fault(np.zeros(drawn.inside.shape), drawn.inside)
  for kind, mask in drawn.defects.items():
    severity = drawn.severities[kind]
    labels = np.maximum(labels, of_fault(mask, drawn.inside, severity))
  return labels


def write(path: str | os.PathLike, labels: np.ndarray) -> None:
  """Writes what pixels are, uint8 [h, w] of 0..3, as an indexed PNG."""
  image = Image.fromarray(labels).convert('P')
  image.putpalette(_COLOURS)
  image.save(path)
