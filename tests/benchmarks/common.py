"""What every benchmark shares: timing, peers in another process, reporting.

A benchmark is a module of tests/benchmarks with one function

  def run(*, smoke: bool = False, ...) -> list[Row]

whose keyword parameters become flags (`--smoke`, `--images=100`), and ends in

  if __name__ == '__main__':
    sys.exit(common.main(run))

`smoke` asks for the smallest sizes at which the code still does everything.
A peer (PyTorch, pytorch-grad-cam) is measured in a process of its own, in turn
with ours, so that neither shares threads or memory with the other:

  # tests/benchmarks/peer_step.py, importing torch but neither jax nor iqa_jax
  if __name__ == '__main__':
    common.serve({'step': step}, versions=('torch',))  # step(batch=8) -> any

  # tests/benchmarks/train_step.py
  try:
    with common.Peer('peer_step') as peer:
      times = common.alternate(
        {'ours': ours, 'peer': lambda: peer('step', batch=8)}, repeats=5
      )
  except common.PeerAbsent as reason: ...   # Row(..., note=str(reason))

This module imports the standard library only: peers import it too.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
import contextlib
import dataclasses
import datetime
import importlib.metadata
import importlib.util
import inspect
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[2]
_PACKAGES = (
  'jax',
  'jaxlib',
  'flax',
  'optax',
  'numpy',
  'onnxruntime',
  'openvino',
  'pillow',
  'tensorflow-cpu',
  'tensorflow-datasets',
)
_peer_versions: dict[str, str] = {}


class PeerAbsent(Exception):
  """There is no interpreter with the peer's packages; the text says why."""


@dataclasses.dataclass(frozen=True)
class Row:
  """One measured quantity, beside its peer's where there is one.

  Attributes:
    name: what was measured, with the sizes that matter.
    values: every repeat's value, in `unit`; one value is allowed, none is not.
    unit: 'images/s', 's', 'ms', 'MB', 'x', ... More is better of what ends in
      '/s' and of 'x' and '%', less of everything else.
    peer: the peer's name; '' when there is none to compare with.
    peer_values: the peer's repeats in the same unit; () when it was absent.
    target: the issue's target in words, for the table.
    note: what a reader must know; says so when a peer was skipped.
  """

  name: str
  values: Sequence[float]
  unit: str
  peer: str = ''
  peer_values: Sequence[float] = ()
  target: str = ''
  note: str = ''

  @property
  def ratio(self) -> float | None:
    """How many times better than the peer, from the medians; None alone."""
    if not self.peer_values:
      return None
    ours = statistics.median(self.values)
    theirs = statistics.median(self.peer_values)
    more_is_better = self.unit.endswith('/s') or self.unit in ('x', '%')
    over, under = (ours, theirs) if more_is_better else (theirs, ours)
    return over / under if under else None


def seconds(function: Callable[[], Any]) -> float:
  """Returns the wall time of one call, waiting for JAX's result."""
  start = time.perf_counter()
  result = function()
  if 'jax' in sys.modules:
    sys.modules['jax'].block_until_ready(result)
  return time.perf_counter() - start


def measure(
  function: Callable[[], Any], *, repeats: int = 5, warmup: int = 1
) -> list[float]:
  """Returns the seconds of `repeats` calls after `warmup` unmeasured ones."""
  return alternate({'': function}, repeats=repeats, warmup=warmup)['']


def alternate(
  functions: Mapping[str, Callable[[], Any]],
  *,
  repeats: int = 5,
  warmup: int = 1,
) -> dict[str, list[float]]:
  """Returns each function's seconds, measured in turn: a b, a b, a b.

  Taking turns spreads a machine's slow minutes over all of them. A function
  that calls a `Peer` is charged what the peer itself measured, not the pipe.
  """
  for _ in range(warmup):
    for function in functions.values():
      seconds(function)
  times: dict[str, list[float]] = {name: [] for name in functions}
  for _ in range(repeats):
    for name, function in functions.items():
      _last_peer_seconds.clear()
      elapsed = seconds(function)
      times[name].append(sum(_last_peer_seconds) or elapsed)
  return times


def rates(items: float, times: Iterable[float]) -> list[float]:
  """Returns items per second of each repeat."""
  return [items / t for t in times]


_last_peer_seconds: list[float] = []


def peer_python(*packages: str) -> str:
  """Returns the interpreter that has the peers' packages.

  It is IQA_TORCH_PYTHON, or this interpreter when `packages` are installed.

  Raises:
    PeerAbsent: neither.
  """
  named = os.environ.get('IQA_TORCH_PYTHON')
  if named:
    if os.access(named, os.X_OK):
      return named
    raise PeerAbsent(f'peer skipped: IQA_TORCH_PYTHON={named} does not run')
  missing = [p for p in packages if importlib.util.find_spec(p) is None]
  if missing:
    raise PeerAbsent(
      f'peer skipped: no {", ".join(missing)} here; pip install '
      "'iqa_jax[benchmarks]' or set IQA_TORCH_PYTHON to an interpreter with it"
    )
  return sys.executable


class Peer(contextlib.AbstractContextManager):
  """A peer's process: `peer('function', argument=value)` calls into it.

  Args:
    module: a module of tests/benchmarks that ends in `serve`.
    *arguments: its command line.
    packages: what it imports, to look for when IQA_TORCH_PYTHON is not set.

  Raises:
    PeerAbsent: no interpreter with those packages, or an import failed there.
  """

  def __init__(
    self,
    module: str,
    *arguments: str,
    packages: Sequence[str] = ('torch',),
  ):
    self._process = subprocess.Popen(
      [
        peer_python(*packages),
        '-m',
        f'tests.benchmarks.{module}',
        *arguments,
      ],
      cwd=ROOT,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )
    try:
      _peer_versions.update(self._read())
    except RuntimeError as error:
      raise PeerAbsent(f'peer skipped: {error}') from error

  def _read(self) -> Any:
    assert self._process.stdout is not None
    line = self._process.stdout.readline()
    if not line:
      raise RuntimeError(
        f'the peer ended with code {self._process.wait()}; its message is above'
      )
    reply = json.loads(line)
    if 'error' in reply:
      raise RuntimeError(f'in the peer: {reply["error"]}')
    if 'seconds' in reply:
      _last_peer_seconds.append(reply['seconds'])
    return reply['result']

  def __call__(self, function: str, **arguments: Any) -> Any:
    """Calls the peer's function and returns its result (JSON values)."""
    assert self._process.stdin is not None
    json.dump([function, arguments], self._process.stdin)
    self._process.stdin.write('\n')
    self._process.stdin.flush()
    return self._read()

  def __exit__(self, *unused):
    assert self._process.stdin and self._process.stdout
    self._process.stdin.close()
    self._process.wait()
    self._process.stdout.close()


def serve(
  functions: Mapping[str, Callable[..., Any]], versions: Sequence[str] = ()
) -> None:
  """Answers a `Peer` until it closes: the peer's end of the pipe.

  Functions must wait for their device themselves. Their results must be JSON
  (None will do). Whatever they print goes to stderr.
  """
  replies = os.fdopen(os.dup(1), 'w')
  os.dup2(2, 1)

  def reply(**message):
    json.dump(message, replies)
    replies.write('\n')
    replies.flush()

  reply(result={p: importlib.metadata.version(p) for p in versions})
  for line in sys.stdin:
    name, arguments = json.loads(line)
    try:
      start = time.perf_counter()
      result = functions[name](**arguments)
      elapsed = time.perf_counter() - start
    except Exception as error:
      reply(error=f'{name}: {type(error).__name__}: {error}')
      continue
    reply(result=result, seconds=elapsed)


def machine() -> dict[str, Any]:
  """Returns what the figures depend on: processor, cores, load, devices."""
  model = platform.processor()
  with contextlib.suppress(OSError):
    for line in pathlib.Path('/proc/cpuinfo').read_text().splitlines():
      if line.startswith('model name'):
        model = line.partition(':')[2].strip()
        break
  description: dict[str, Any] = {
    'processor': model,
    'cores': len(os.sched_getaffinity(0)),
    'load': round(os.getloadavg()[0], 2),
    'memory_gb': round(
      os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30
    ),
  }
  if 'jax' in sys.modules:
    devices = sys.modules['jax'].devices()
    description['devices'] = f'{len(devices)} x {devices[0].device_kind}'
  return description


def versions() -> dict[str, str]:
  """Returns the versions of Python, of our packages and of the peers'."""
  found = {'python': platform.python_version()}
  for package in _PACKAGES:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
      found[package] = importlib.metadata.version(package)
  return found | _peer_versions


def spread(values: Sequence[float]) -> dict[str, Any]:
  """Returns median, least, most and all of the values."""
  return {
    'median': statistics.median(values),
    'least': min(values),
    'most': max(values),
    'values': list(values),
  }


def resident(pid: int) -> float:
  """Returns the resident memory of a process and its children in MB."""
  total, waiting = 0.0, [pid]
  while waiting:
    process = pathlib.Path(f'/proc/{waiting.pop()}')
    try:
      total += int((process / 'statm').read_text().split()[1]) * 4096 / 2**20
      for task in (process / 'task').iterdir():
        waiting += map(int, (task / 'children').read_text().split())
    except OSError:
      continue
  return total


def report(
  name: str,
  rows: Sequence[Row],
  output: str | os.PathLike | None = None,
  load: float | None = None,
) -> dict[str, Any]:
  """Prints the rows as a Markdown table and writes `output`/`name`.json.

  Args:
    name: the benchmark's name.
    rows: what it measured.
    output: a folder, made when missing; None prints the JSON instead.
    load: the machine's load before the benchmark began.

  Returns:
    The JSON's content.
  """
  record = {
    'benchmark': name,
    'command': ' '.join(sys.orig_argv[1:]),
    'date': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
    'machine': machine() | ({} if load is None else {'load': round(load, 2)}),
    'versions': versions(),
    'rows': [
      {
        'name': row.name,
        'unit': row.unit,
        **spread(row.values),
        'peer': row.peer,
        'peer_values': spread(row.peer_values) if row.peer_values else None,
        'ratio': row.ratio,
        'target': row.target,
        'note': row.note,
      }
      for row in rows
    ],
  }
  print(f'\n## {name}\n')
  table = [['what', 'median (spread)', 'unit', 'peer', 'ratio', 'target']]
  for row in rows:
    peer = row.peer
    if row.peer_values:
      peer += f' {_figure(row.peer_values)}'
    ratio = '' if row.ratio is None else f'{row.ratio:.2f}x'
    table.append(
      [row.name, _figure(row.values), row.unit, peer, ratio, row.target]
    )
  widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
  table.insert(1, ['-' * width for width in widths])
  for line in table:
    cells = (cell.ljust(w) for cell, w in zip(line, widths, strict=True))
    print('|', ' | '.join(cells), '|')
  notes: dict[str, list[str]] = {}
  for row in rows:
    notes.setdefault(row.note, []).append(row.name)
  for note, names in notes.items():
    if note:
      print(
        f'\n{"; ".join(names) if len(names) < 3 else names[0] + " ..."}: {note}'
      )
  print('\n' + json.dumps(record['machine']))
  print(json.dumps(record['versions']))
  text = json.dumps(record, indent=2)
  if output is None:
    print(text)
  else:
    folder = pathlib.Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f'{name}.json').write_text(text + '\n', encoding='utf-8')
  return record


def _figure(values: Sequence[float]) -> str:
  median = f'{statistics.median(values):.4g}'
  if len(values) == 1:
    return median
  return f'{median} ({min(values):.4g}-{max(values):.4g})'


def main(
  run: Callable[..., list[Row]], argv: Sequence[str] | None = None
) -> int:
  """Runs one benchmark from the command line; returns the exit code.

  Every keyword parameter of `run` with a default becomes a flag.
  """
  spec = sys.modules['__main__'].__spec__
  name = (spec.name if spec else run.__module__).rpartition('.')[2]
  load = os.getloadavg()[0]
  parser = argparse.ArgumentParser(
    description=(inspect.getmodule(run).__doc__ or '').split('\n')[0]
  )
  parser.add_argument('--output', help='folder for the JSON')
  for parameter in inspect.signature(run).parameters.values():
    flag = '--' + parameter.name.replace('_', '-')
    if isinstance(parameter.default, bool):
      parser.add_argument(flag, action=argparse.BooleanOptionalAction)
    else:
      parser.add_argument(flag, type=type(parameter.default))
    parser.set_defaults(**{parameter.name: parameter.default})
  arguments = vars(parser.parse_args(argv))
  output = arguments.pop('output')
  report(name, run(**arguments), output, load)
  return 0
