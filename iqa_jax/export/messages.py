"""What an export and its worker processes say to each other."""

from __future__ import annotations

import dataclasses

import numpy as np

from iqa_jax.aliases import Record
from iqa_jax.explain import panel
from iqa_jax.judging import fundus
from iqa_jax.photograph import geometry
from iqa_jax.photograph.placement import Placement


@dataclasses.dataclass(frozen=True)
class Settings:
  """What every photograph's outputs have in common.

  Attributes:
    output: the output directory.
    temporary: folder on the same disk for files that are being written.
    outputs: some of manifest.KINDS.
    size: side of the network's input.
    colors: see overlay.COLORS.
    opacity: see overlay.overlay.
    quality: of the JPEGs.
    max_side: of the overlays and contours in pixels; 0 for the original's.
    budget: bytes of decoded photographs to keep.
    field: whether the network takes the field of view too (prepare.photograph).
    check_fundus: whether to look if photographs are of a fundus.
    familiar: what the model learned from, see fundus.look.
  """

  output: str
  temporary: str
  outputs: tuple[str, ...]
  size: int
  colors: str
  opacity: float
  quality: int
  max_side: int
  budget: int
  field: bool = False
  check_fundus: bool = True
  familiar: Record | None = None


@dataclasses.dataclass(frozen=True)
class Prepared:
  """What a worker answers to `decode`.

  Attributes:
    image: uint8 [size, size, 3 or 4], the network's input.
    width: of the upright photograph.
    height: likewise.
    field: in pixels of the upright photograph.
    affine: float64 [2, 3], input (x, y, 1) -> (x, y) of that.
    field_share: share of the input's area inside the field of view.
    source: (bytes, modification time in ns) of the file.
    seconds: by stage.
    looks: whether it is of a fundus; None where nobody looked.
  """

  image: np.ndarray
  width: int
  height: int
  field: geometry.Field
  affine: np.ndarray
  field_share: float
  source: tuple[int, int]
  seconds: dict[str, float]
  looks: fundus.Looks | None = None


@dataclasses.dataclass(frozen=True)
class Drawing:
  """What is to be drawn of a photograph.

  Attributes:
    name: relative path of its outputs, without ending.
    shown: float32 [h, w], see overlay.
    raw: float32 [h, w], the signed map.
    placement: where the map's cells look, see overlay.overlay.
    caption: the panel's words; its note also goes onto the overlay.
    landmarks: float [5] in pixels of the photograph, see ruler.columns.
    thumbnail: whether the contact sheet shows it.
    facts: further arrays and texts of the NPZ.
  """

  name: str
  shown: np.ndarray
  raw: np.ndarray
  placement: Placement | None
  caption: panel.Caption
  landmarks: np.ndarray
  thumbnail: bool
  facts: Record


@dataclasses.dataclass(frozen=True)
class Drawn:
  """What a worker answers to `draw`.

  Attributes:
    files: kind -> (path relative to the output directory, bytes).
    evidence_in_field: share of the map's positive evidence inside the field;
      None of an empty map.
    seconds: by stage.
  """

  files: dict[str, tuple[str, int]]
  evidence_in_field: float | None
  seconds: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Failed:
  """The photograph can't be used, or (`fatal`) the outputs not be written."""

  status: str
  reason: str
  fatal: bool = False
