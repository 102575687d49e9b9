"""From raw maps to what is shown: scaled, then laid over the picture."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float, Real
import numpy as np

from iqa_jax import errors
from iqa_jax.photograph import geometry
from iqa_jax.photograph import placement as placement_lib

SCALINGS = ('none', 'image', 'dataset', 'logit')


def status(maps: Float[Any, '*maps h w']) -> Any:
  """Returns what each raw map [..., h, w] is: a str, or an array of str.

  'ok'; 'empty' when nothing in it is positive, so that there is no evidence
  for the target and nothing to colour; 'not_finite' when the network ran over.
  """
  maps = np.asarray(maps)
  empty = ~(maps > 0).any(axis=(-2, -1))
  finite = np.isfinite(maps).all(axis=(-2, -1))
  found = np.where(finite, np.where(empty, 'empty', 'ok'), 'not_finite')
  return str(found) if found.ndim == 0 else found


def scale(
  maps: Any,
  how: str = 'image',
  size: tuple[int, int] | None = None,
  *,
  magnitude: float | None = None,
  constant: Any = 0.0,
  placement: Any = None,
) -> Float[np.ndarray, '*maps height width']:
  """Returns maps made presentable: scaled, then enlarged.

  Args:
    maps: raw maps [..., h, w], or a sequence of them, one a layer, that are
      scaled and enlarged one by one and averaged.
    how: 'none'; 'image', which shows each image's positive evidence from 0 to
      1 as pytorch-grad-cam does (an empty map becomes 0); 'dataset', which
      divides by `magnitude` and clips to [-1, 1], so that images compare;
      'logit', which multiplies by the number of cells and adds `constant`:
      what the logit would be, less its bias, if the whole picture looked like
      this place. True of the maps that additive.obstacle lets through.
    size: (height, width) of the result; None leaves the maps as they are.
    magnitude: for 'dataset', see `magnitude`.
    constant: for 'logit', a number or one a map [..., 1, 1], see
      additive.constants.
    placement: of `enlarge`; of several layers a sequence, or None.

  Returns:
    float32 [..., height, width].

  Raises:
    ValueError: no such scaling, no magnitude, or layers without a size.
  """
  errors.one_of('scaling', how, SCALINGS)
  if how == 'dataset' and not (magnitude and magnitude > 0):
    raise ValueError(
      f"scaling 'dataset' needs a positive magnitude, got {magnitude}"
    )
  layers = list(maps) if isinstance(maps, (list, tuple)) else [maps]
  if size is None and len(layers) > 1:
    raise ValueError('maps of several layers need a size to be averaged at')
  places = placement if isinstance(placement, (list, tuple)) else [placement]
  if len(places) < len(layers):
    places = list(places) * len(layers)
  result = np.mean(
    [
      _scale(m, how, size, magnitude, constant, place)
      for m, place in zip(layers, places, strict=True)
    ],
    axis=0,
  )
  return _stretch(result) if how == 'image' and size else result


def _scale(
  maps: np.ndarray,
  how: str,
  size: tuple[int, int] | None,
  magnitude: float | None,
  constant: Any,
  placement: placement_lib.Placement | None,
) -> np.ndarray:
  maps = np.asarray(maps, np.float32)
  if how == 'image':
    maps = _stretch(np.maximum(maps, 0))
  elif how == 'dataset':
    maps = np.clip(maps / np.float32(magnitude), -1, 1)
  elif how == 'logit':
    maps = maps * np.float32(maps.shape[-2] * maps.shape[-1])
    maps = maps + np.asarray(constant, np.float32)
  return maps if size is None else enlarge(maps, size, placement)


def magnitude(maps: Float[Any, 'n h w'], quantile: float = 0.99) -> float:
  """Returns the common unit of raw maps [n, h, w] for scaling 'dataset'.

  The quantile of the images' largest absolute values, so that a single odd
  image does not make all others pale.
  """
  largest = np.abs(np.asarray(maps)).max(axis=(-2, -1))
  return float(np.quantile(largest, quantile))


def enlarge(
  maps: Real[Any, '*maps h w'],
  size: tuple[int, int],
  placement: placement_lib.Placement | None = None,
) -> Float[np.ndarray, '*maps height width']:
  """Returns maps [..., h, w] resized bilinearly to float32 [..., *size].

  Args:
    maps: of any leading shape.
    size: (height, width) of the picture that they are laid over.
    placement: where the cells look, in pixels of that picture (see cam.placed);
      None for cells that share it evenly, as OpenCV's INTER_LINEAR has it.
      Beyond the outer cells' centres their values go on.
  """
  maps = np.asarray(maps, np.float32)
  rows, columns = (
    geometry.interpolation(
      (placement or placement_lib.evenly(new, old)).cells(np.arange(new) + 0.5),
      old,
    )
    for old, new in zip(maps.shape[-2:], size, strict=True)
  )
  return rows @ maps @ columns.T


def _stretch(maps: np.ndarray) -> np.ndarray:
  """Stretches each map from its least to its largest value to [0, 1]."""
  maps = maps - maps.min(axis=(-2, -1), keepdims=True)
  return maps / (np.float32(1e-7) + maps.max(axis=(-2, -1), keepdims=True))
