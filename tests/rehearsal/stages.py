"""The stages of a rehearsal: what they run, how they are measured and told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import math
import os
import pathlib
import resource
import shlex
import subprocess
import sys
import time
from typing import Any

from absl import logging

from iqa_jax import errors
from tests.benchmarks.common import resident

ALL = {'brset': 16266, 'eyeq': 28792}
_CONFIGS = {
  'brset': ('brset_resnet50', 'brset_criteria'),
  'eyeq': ('eyeq_resnet50', 'eyeq_grade'),
}
_MEMORY_GB = 4.0
QUANTITIES = {
  'cpu': 's of processors',
  'seconds': 's',
  'memory_gb': 'GB memory',
  'disk_gb': 'GB disk',
}


class StageFailed(errors.UserError):
  """A command of the rehearsal failed; its log is named."""


def stages(
  dataset: str, data: str, home: pathlib.Path, epochs: int, folds: int
) -> dict[str, list[str]]:
  """Returns the commands by what they do, in order."""
  first, second = _CONFIGS[dataset]
  records = home / 'records'
  narrow = [
    *(f'--config.data.{k}' for k in (
      f'manual_dir={data}', f'data_dir={records}',
      'allow_missing=True', 'image_size=64',
    )),
    *(f'--config.model.{k}' for k in (
      'width=0.125', 'depth=0.34', 'pretrained=', 'dtype=float32',
    )),
    '--config.train.batch_size=16',
    *(f'--config.train.phases[{i}].epochs={epochs}' for i in (0, 1)),
  ]  # fmt: skip
  run, other = home / 'run', home / 'other'
  photographs = f'{data}/{"fundus_photos" if dataset == "brset" else "test"}'
  export = [
    *('export_heatmaps', f'--workdir={run}', f'--output={home / "maps"}'),
    '--num_shards=2',
  ]
  found = {
    'validate_data': [
      *('validate_data', f'--dataset={dataset}', f'--manual_dir={data}'),
      *(f'--output={home / "validation.csv"}', '--allow_missing'),
    ],
    'build': ['tests.rehearsal.build', f'--config={first}', *narrow],
    f'train {first}': [
      *('main', f'--config={first}', f'--workdir={run}', '--mode=train'),
      *narrow,
    ],
    'evaluate': ['main', f'--workdir={run}', '--mode=evaluate'],
    f'train and evaluate {second}': [
      *('main', f'--config={second}', f'--workdir={other}', *narrow)
    ],
    'export, shard 1 of 2': [
      *(*export, f'--images={photographs}', '--shard_index=0')
    ],
    'export, shard 2 of 2': [
      *(*export, f'--images={photographs}', '--shard_index=1')
    ],
    'export, merge': [*export, '--merge'],
    'score': [
      *('score', f'--predictions={run / "predictions.csv"}'),
      f'--labels={run / "predictions.csv"}',
      f'--output={home / "score"}',
    ],
    'review_criteria': ['review_criteria', f'--workdir={run}'],
    'compare_runs': [
      *('compare_runs', f'--workdirs={run},{other}', '--note=simulated'),
      f'--output={home / "comparison"}',
    ],
    f'cross_validate, {folds} folds': [
      *('cross_validate', f'--config={first}', f'--config.data.folds={folds}'),
      *(f'--workdir={home / "folds"}', *narrow),
    ],
  }
  return {
    name: [
      *(sys.executable, '-m'),
      module if '.' in module else f'iqa_jax.{module}',
      *arguments,
    ]
    for name, (module, *arguments) in found.items()
  }


def measure(
  arguments: Sequence[str], folder: pathlib.Path, log: pathlib.Path
) -> dict[str, float]:
  """Runs a command; returns its `QUANTITIES`.

  Of the command and its children: processor time, and the most resident
  memory, in which shared pages count in each. Disk is what was added.

  Raises:
    StageFailed: it ended with another exit code than 0.
  """
  before, begun, peak = disk(folder), time.monotonic(), 0.0
  used = _children()
  with open(log, 'w', encoding='utf-8') as file:
    process = subprocess.Popen(arguments, stdout=file, stderr=subprocess.STDOUT)
    while True:
      try:
        code = process.wait(0.25)
        break
      except subprocess.TimeoutExpired:
        peak = max(peak, resident(process.pid))
  seconds = time.monotonic() - begun
  if code:
    raise StageFailed(
      f'{shlex.join(arguments)}\nended with exit code {code}: see {log}'
    )
  return {
    'cpu': _children() - used,
    'seconds': seconds,
    'memory_gb': peak / 1024,
    'disk_gb': (disk(folder) - before) / 1e9,
  }


def _children() -> float:
  """Returns the seconds of processor time of all that were waited for."""
  used = resource.getrusage(resource.RUSAGE_CHILDREN)
  return used.ru_utime + used.ru_stime


def disk(folder: pathlib.Path) -> int:
  """Returns the bytes of all files below a folder."""
  return sum(
    os.lstat(os.path.join(parent, name)).st_size
    for parent, _, names in os.walk(folder)
    for name in names
  )


def through(
  dataset: str, data: pathlib.Path, home: pathlib.Path, epochs: int, folds: int
) -> dict[str, Any]:
  """Runs what is not done yet; returns 'photographs' and 'stages'."""
  from iqa_jax import run_directory

  home.mkdir(parents=True, exist_ok=True)
  record = home / 'measured.json'
  result: dict[str, Any] = {
    **run_directory.read_json(data / 'SIMULATED.json'),
    'photographs': sum(
      path.suffix in ('.jpg', '.jpeg') for path in data.rglob('*')
    ),
    'stages': {},
  }
  if record.is_file():
    result['stages'] = run_directory.read_json(record)['stages']
  commands = stages(dataset, str(data), home, epochs, folds)
  for number, (name, arguments) in enumerate(commands.items()):
    if name not in result['stages']:
      logging.info('%s: %s', data.name, name)
      log = home / f'{number:02d}.log'
      result['stages'][name] = measure(arguments, home, log)
      run_directory.write_json(record, result)
  return result


def growth(costs: Sequence[float], counts: Sequence[int]) -> float:
  """Returns k of n^k; NaN where there is nothing to compare.

  Of two, between them; of more, of what the last two cost beyond the first,
  which has the start of processes and compilation in it.
  """
  if len(costs) > 2:
    costs = [cost - costs[0] for cost in costs[-2:]]
    counts = [count - counts[0] for count in counts[-2:]]
  if min(costs) <= 0:
    return math.nan
  return math.log(costs[1] / costs[0]) / math.log(counts[1] / counts[0])


def extrapolated(
  costs: Sequence[float], counts: Sequence[int], n: int
) -> float:
  """Returns the cost of n by the line through the two largest."""
  each = (costs[-1] - costs[-2]) / (counts[-1] - counts[-2])
  return max(costs[-1] + each * (n - counts[-1]), 0.0)


def table(dataset: str, results: Sequence[Mapping[str, Any]]) -> str:
  """Returns the report as Markdown, of one download or more."""
  results = sorted(results, key=lambda r: r['photographs'])
  counts = [r['photographs'] for r in results]
  targets = (ALL[dataset], 1_000_000)
  lines = [
    f'# Rehearsal of {dataset}: simulated photographs, narrow networks',
    '',
    f'Load of the machine at the end {os.getloadavg()[0]:.1f}, cores '
    f'{len(os.sched_getaffinity(0))}. Small downloads tell little of large '
    'ones: most of their time is the start of processes and compilation.',
    'Extrapolated: the line through the two largest. Growth: k of n^k, of '
    'three downloads of what costs beyond the smallest; ! where it is a tenth '
    'over that of n log n.',
    '',
  ]
  header = ['stage', 'quantity', *(f'{n:,} photographs' for n in counts)]
  several = len(counts) > 1
  if several:
    header += ['growth', *(f'{n:,} (extrapolated)' for n in targets)]
    allowed = 1.1 * growth([n * math.log(n) for n in counts], counts)
  rows = [header, ['---'] * len(header)]
  for stage in results[-1]['stages']:
    for key, unit in QUANTITIES.items():
      values = [r['stages'][stage][key] for r in results]
      row = [stage, unit, *(f'{v:.3g}' for v in values)]
      if several:
        k = growth(values, counts)
        row.append('' if math.isnan(k) else f'{k:.2f}' + '!' * (k > allowed))
        row += [f'{extrapolated(values, counts, n):.3g}' for n in targets]
      if key == 'memory_gb' and max(values) > _MEMORY_GB:
        row[1] += f' (over {_MEMORY_GB:g})'
      rows.append(row)
  return '\n'.join([*lines, *('| ' + ' | '.join(r) + ' |' for r in rows), ''])
