"""A figure for print: made, and written as PNG and PDF."""

from __future__ import annotations

from collections.abc import Mapping
import os
import pathlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from matplotlib.figure import Figure


def create(width: float, height: float) -> Figure:
  """Returns an empty figure of a size in inches."""
  from matplotlib.figure import Figure

  return Figure(figsize=(width, height), layout='constrained')


def save(
  figures: Mapping[str, Figure], folder: str | os.PathLike
) -> list[pathlib.Path]:
  """Writes figures by name to a folder; returns the PNGs' paths."""
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  for name, figure in figures.items():
    figure.savefig(folder / f'{name}.png', dpi=200)
    figure.savefig(folder / f'{name}.pdf')
  return [folder / f'{name}.png' for name in figures]
