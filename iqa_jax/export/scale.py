"""What the colours of an export's maps mean."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import hashlib
import heapq
import os
import pathlib

from absl import logging
import numpy as np

from iqa_jax import run_directory
from iqa_jax.explain.overlay import LOGIT_TOP
from iqa_jax.export.model import Model
from iqa_jax.export.options import ExportError, Options
from iqa_jax.export.pool import Judged, Pool

_SAMPLE = 256  # photographs that a dataset's scale is taken from


@dataclasses.dataclass(frozen=True)
class Scale:
  """From a raw map to what is shown, 0 to 1.

  Attributes:
    how: one of options.SCALINGS.
    top: what 1 stands for; of 'image' nothing.
  """

  how: str
  top: float

  def shown(self, raw: np.ndarray, constant: float) -> tuple[np.ndarray, str]:
    """Returns a map [h, w] from 0 to 1, and what 1 stands for.

    Args:
      raw: [h, w].
      constant: see additive.constants; for 'logit'.
    """
    from iqa_jax.explain import scaling

    if self.how == 'image':
      return scaling.scale(raw), f'most in this photograph ({raw.max():.3g})'
    if self.how == 'logit':
      logits = scaling.scale(raw, 'logit', constant=constant)
      shown = np.clip(logits / self.top, 0, 1)
      return shown, f'{self.top:.3g} logits or more'
    shown = np.clip(scaling.scale(raw, 'dataset', magnitude=self.top), 0, 1)
    return shown, f'{self.top:.3g} or more, in all photographs'


def choose(
  options: Options, model: Model, pool: Pool, root: str, keys: Sequence[str]
) -> Scale:
  """Returns the scale of an export of the photographs `keys`.

  Args:
    options: of the export.
    model: that is explained.
    pool: to look at a sample of photographs, where the scale is taken from one.
    root: what keys are relative to.
    keys: of the whole listing, so that shards agree.

  Raises:
    ExportError: no photograph of the sample has a map.
  """
  top = options.color_max
  if not top and model.scaling == 'logit':
    top = LOGIT_TOP
  if not top and model.scaling == 'dataset':
    top = _of_dataset(options, model, pool, root, keys)
  return Scale(model.scaling, top)


def _of_dataset(
  options: Options, model: Model, pool: Pool, root: str, keys: Sequence[str]
) -> float:
  """Returns the raw value at the top of the colour bar for all photographs.

  It is taken from a fixed sample, and kept, so that later runs agree.
  """
  from iqa_jax.explain import scaling

  path = pathlib.Path(options.output) / 'scale.json'
  explained = {
    'checkpoint': model.digest,
    'method': model.method,
    'layer': model.layer or 'default',
    'target': model.target,
  }
  if path.is_file():
    saved = run_directory.read_json(path)
    if isinstance(saved, dict) and explained.items() <= saved.items():
      return float(saved['magnitude'])
  sample = heapq.nsmallest(
    _SAMPLE, keys, key=lambda k: hashlib.sha256(os.fsencode(k)).digest()
  )
  logging.info('taking the scale from %d photographs', len(sample))
  with pool.stream(root, sample) as events:
    largest = np.array(
      [np.abs(e.found.raw).max() for e in events if isinstance(e, Judged)],
      np.float64,
    )
  finite = largest[np.isfinite(largest) & (largest > 0)]
  if not len(finite):
    raise ExportError(
      f'none of {len(sample)} photographs has a map to take the scale from; '
      'give --color_max, or another --scaling'
    )
  magnitude = scaling.magnitude(finite[:, None, None])
  run_directory.write_json(path, {**explained, 'magnitude': magnitude})
  return magnitude
