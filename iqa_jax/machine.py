"""How many cores and how much memory this process may use.

The machine may have more than what an affinity (taskset, Slurm) or a control
group (a container, Kubernetes, systemd) leaves to the process.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
import concurrent.futures
import itertools
import math
import multiprocessing
import os
import pathlib
from typing import TypeVar

_T = TypeVar('_T')
_R = TypeVar('_R')
_ROOT = pathlib.Path('/')


def cpu_count(root: pathlib.Path = _ROOT) -> int:
  """Returns how many cores' worth of work this process may do at a time.

  Args:
    root: where proc/ and sys/ lie.
  """
  if hasattr(os, 'sched_getaffinity'):
    count = len(os.sched_getaffinity(0))
  else:
    count = os.cpu_count() or 1
  for folder in _groups(root, 'cpu'):
    # Version 2 says 'QUOTA PERIOD', version 1 has a file for each.
    quota, period = (*_words(folder / 'cpu.max'), '', '')[:2]
    if not quota:
      quota, period = (
        ''.join(_words(folder / f'cpu.cfs_{name}_us'))
        for name in ('quota', 'period')
      )
    if quota.isdigit() and period.isdigit():
      count = min(count, math.ceil(int(quota) / int(period)))
  return max(count, 1)


def available_memory(root: pathlib.Path = _ROOT) -> int:
  """Returns how many bytes this process can take without any swapping.

  Files that the system merely remembers give way, and so count as available.

  Args:
    root: where proc/ and sys/ lie.
  """
  known = _table(root / 'proc' / 'meminfo')
  if 'MemAvailable:' in known:
    available = 1024 * known['MemAvailable:']
  else:
    available = os.sysconf('SC_AVPHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
  for folder in _groups(root, 'memory'):
    for limit, usage, cached in (
      ('memory.max', 'memory.current', 'inactive_file'),
      ('memory.limit_in_bytes', 'memory.usage_in_bytes', 'total_inactive_file'),
    ):
      most, used = _words(folder / limit), _words(folder / usage)
      if most and used and most[0].isdigit():
        gives_way = _table(folder / 'memory.stat').get(cached, 0)
        available = min(available, int(most[0]) - int(used[0]) + gives_way)
  return max(available, 0)


def in_threads(
  function: Callable[[_T], _R], items: Iterable[_T], ahead: int = 0
) -> Iterator[_R]:
  """Yields function(item) in order, computed by as many threads as cores.

  Pillow and NumPy work outside Python's lock. Items are taken no more than
  `ahead` before their results are asked for; 0: four a core.
  """
  workers, items = cpu_count(), iter(items)
  with concurrent.futures.ThreadPoolExecutor(workers) as pool:
    first = itertools.islice(items, ahead or 4 * workers)
    waiting = deque(pool.submit(function, item) for item in first)
    while waiting:
      done = waiting.popleft()
      waiting.extend(
        pool.submit(function, i) for i in itertools.islice(items, 1)
      )
      yield done.result()


def in_processes(
  function: Callable[[_T], _R], jobs: Sequence[_T], chunk: int
) -> Iterator[_R]:
  """Yields function(job) in order, computed by as many processes as cores.

  For what is mostly Python. Spawned, because TensorFlow's threads don't survive
  a fork; jobs travel `chunk` at a time.
  """
  context = multiprocessing.get_context('spawn')
  with concurrent.futures.ProcessPoolExecutor(cpu_count(), context) as pool:
    yield from pool.map(function, jobs, chunksize=chunk)


def _groups(root: pathlib.Path, controller: str) -> Iterator[pathlib.Path]:
  """Yields the folders of the control groups that this process is in."""
  try:
    lines = (root / 'proc/self/cgroup').read_text().splitlines()
  except OSError:
    return
  for line in lines:
    _, controllers, path = line.split(':', 2)
    if controllers and controller not in controllers.split(','):
      continue
    mount = root / 'sys/fs/cgroup'
    if controllers:
      mount /= controller
    # In a container the path may be the host's, of which it sees the end only.
    group = mount / path.strip('/')
    yield group
    while group != mount:
      group = group.parent
      yield group


def _words(path: pathlib.Path) -> list[str]:
  try:
    return path.read_text().split()
  except OSError:
    return []


def _table(path: pathlib.Path) -> dict[str, int]:
  """Returns a file of lines 'NAME NUMBER ...'."""
  try:
    lines = [line.split() for line in path.read_text().splitlines()]
  except OSError:
    return {}
  return {line[0]: int(line[1]) for line in lines if len(line) > 1}
