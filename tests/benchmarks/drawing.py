"""Drawing simulated photographs: how fast one core draws.

In processor time, so that what else runs on the machine does not count: drawing
uses one core, and the builder one process a core (see --processes).
"""

from __future__ import annotations

import concurrent.futures
import functools
import multiprocessing
import sys
import time

from tests.benchmarks import common


def run(
  *,
  smoke: bool = False,
  size: int = 512,
  photographs: int = 40,
  repeats: int = 3,
  processes: int = 2,
) -> list[common.Row]:
  """Draws one half adequate photographs, the others with a fault each."""
  if smoke:
    size, photographs, repeats = 64, 4, 2
  # Spawned as by the fundus_sim builder.
  context = multiprocessing.get_context('spawn')
  with concurrent.futures.ProcessPoolExecutor(processes, context) as pool:
    draw = functools.partial(_seconds, photographs, size)
    # At once: cores that share caches and memory slow each other down.
    rounds = [list(pool.map(draw, range(processes))) for _ in range(repeats)]
  core = [n for used in rounds for n in common.rates(photographs, used)]
  together = [sum(common.rates(photographs, used)) for used in rounds]
  what = f'drawn {size} px'
  return [
    common.Row(f'{what}, a core', core, 'images/s'),
    common.Row(
      f'{what}, {processes} processes',
      together,
      'images/s',
      target='20 at 512 px on 2 cores',
      note="the processes' rates by processor time, added up",
    ),
  ]


def _seconds(photographs: int, size: int, worker: int) -> float:
  """Returns the processor time of drawing; runs in a worker process."""
  from iqa_jax import labels
  from iqa_jax.simulation import photograph

  def draw(seed):
    name = labels.CRITERIA[seed // 2 % 4]
    photograph.draw(seed, size, broken=(name,) if seed % 2 else ())

  draw(0)  # fills the caches
  first = worker * photographs
  start = time.process_time()
  for seed in range(first, first + photographs):
    draw(seed)
  return time.process_time() - start


if __name__ == '__main__':
  sys.exit(common.main(run))
