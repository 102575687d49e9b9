"""Draws a stand-in's photographs, as many as are missing.

Each is drawn at 512 px and enlarged to its size, with grain at full size, so
its files are as large as a camera's; what is finer than 1/512 of the field is
grain alone.
"""

from __future__ import annotations

from collections.abc import Sequence
import concurrent.futures
import functools
import itertools
import multiprocessing
import os
import pathlib
import shutil
import sys
import time

import numpy as np
from PIL import Image, ImageChops
import tqdm

from iqa_jax import errors, machine
from iqa_jax.simulation import photograph
from tests.rehearsal.downloads import Shot

SIZE = 512
_FIRST = 12  # drawn a process before the estimate
_TILE = 2048


class DiskFull(errors.UserError):
  """There is less room than the photographs will take."""


def draw(folder: pathlib.Path, shot: Shot) -> tuple[float, int]:
  """Draws one photograph; returns its seconds of processor time and bytes.

  The file gets its name when it is complete.
  """
  begun = time.process_time()
  drawn = photograph.draw(
    shot.seed,
    SIZE,
    broken=shot.broken,
    style=shot.style,
    eye=shot.eye,
    patient=shot.patient,
  )
  width, height = shot.size
  side = min(width, height)
  field = Image.fromarray(drawn.image).resize(
    (side, side), Image.Resampling.BICUBIC
  )
  whole = Image.new('RGB', shot.size, (2, 2, 2))
  whole.paste(field, ((width - side) // 2, (height - side) // 2))
  rng = np.random.default_rng([shot.seed, 7])
  whole = ImageChops.add(whole, _grain(rng, shot.size), offset=-128)
  path = folder / shot.path
  partial = path.with_suffix('.partial')
  whole.save(partial, 'JPEG', quality=int(rng.integers(88, 95)))
  if shot.truncated:
    os.truncate(partial, partial.stat().st_size * 3 // 5)
  size = partial.stat().st_size
  os.replace(partial, path)
  return time.process_time() - begun, size


@functools.cache
def _tile() -> np.ndarray:
  noise = np.random.default_rng(3).normal(128, 2, (_TILE, _TILE, 3))
  return np.rint(noise).astype(np.uint8)


def _grain(rng, size) -> Image.Image:
  """Returns noise about 128, put together of turns of one tile."""
  grain = Image.new('RGB', size)
  for left, top in itertools.product(*(range(0, side, _TILE) for side in size)):
    turned = np.rot90(_tile(), int(rng.integers(4)))
    shift = rng.integers(_TILE, size=2)
    grain.paste(Image.fromarray(np.roll(turned, shift, (0, 1))), (left, top))
  return grain


def draw_all(
  folder: pathlib.Path, shots: Sequence[Shot], processes: int = 0
) -> None:
  """Draws what is missing, having said how long and how much disk it takes.

  Args:
    folder: of the download.
    shots: of `downloads.write`.
    processes: 0: one a core.

  Raises:
    DiskFull: there is less room than that.
  """
  for parent in {(folder / shot.path).parent for shot in shots}:
    parent.mkdir(parents=True, exist_ok=True)
  missing = [shot for shot in shots if not (folder / shot.path).is_file()]
  print(
    f'{len(shots):,} photographs, {len(shots) - len(missing):,} there already',
    file=sys.stderr,
  )
  if not missing:
    return
  processes = min(processes or machine.cpu_count(), len(missing))
  context = multiprocessing.get_context('spawn')
  one = functools.partial(draw, folder)
  with concurrent.futures.ProcessPoolExecutor(processes, context) as pool:
    first = missing[: _FIRST * processes]
    begun = time.monotonic()
    measured = list(pool.map(one, first))
    wall = time.monotonic() - begun
    rest = missing[len(first) :]
    if rest:
      print(estimate(measured, wall, len(rest), processes), file=sys.stderr)
      need = len(rest) * float(np.mean([size for _, size in measured]))
      free = shutil.disk_usage(folder).free
      if need > 0.95 * free:
        raise DiskFull(
          f'{folder} has {free / 1e9:.1f} GB free, and {need / 1e9:.1f} GB '
          'are needed: a smaller --scale, or another --output'
        )
    bar = tqdm.tqdm(
      pool.map(one, rest, chunksize=4),
      'drawing',
      len(rest),
      unit='photograph',
      disable=None,
    )
    for _ in bar:
      pass


def estimate(
  measured: Sequence[tuple[float, int]], wall: float, rest: int, processes: int
) -> str:
  """Returns how long and how much disk the rest takes, with the formula.

  Args:
    measured: of `draw`, of the first photographs.
    wall: seconds that these took together.
    rest: photographs to come.
    processes: that draw.
  """
  used, size = np.mean(measured, axis=0)
  each = max(used, 0.001)
  return (
    f'the first {len(measured)} photographs took {each:.2f} s of processor '
    f'time and {size / 1e6:.2f} MB each, {wall:.0f} s of wall time together '
    '(start of the processes included)\n'
    f'time = photographs x {each:.2f} s / {processes} processes: '
    f'{rest:,} x {each:.2f} / {processes} = {rest * each / processes / 60:.1f} '
    'minutes on idle cores\n'
    f'disk = photographs x {size / 1e6:.2f} MB: {rest * size / 1e9:.2f} GB'
  )
