"""The stages of a rehearsal: what they run, how they are measured and told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import math
import os
import pathlib
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
_FASTER = 1.15  # a growth of more is told; n log n has less


class StageFailed(errors.UserError):
  """A command of the rehearsal failed; its log is named."""


def stages(
  dataset: str, data: str, home: pathlib.Path, epochs: int, folds: int
) -> dict[str, list[str]]:
  """Returns the commands by what they do, in order."""
  first, second = _CONFIGS[dataset]
  narrow = [
    *(f'--config.data.{k}' for k in (
      f'manual_dir={data}', f'data_dir={home / "records"}',
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
    f'build, and train {first}': [
      *('main', f'--config={first}', f'--workdir={run}', '--mode=train'),
      *narrow,
    ],
    'evaluate': ['main', f'--workdir={run}', '--mode=evaluate'],
    f'train and evaluate {second}': [
      *('main', f'--config={second}', f'--workdir={other}', *narrow)
    ],
    f'cross_validate, {folds} folds': [
      *('cross_validate', f'--config={first}', f'--config.data.folds={folds}'),
      *(f'--workdir={home / "folds"}', *narrow),
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
  }
  return {
    name: [sys.executable, '-m', f'iqa_jax.{module}', *arguments]
    for name, (module, *arguments) in found.items()
  }


def measure(
  arguments: Sequence[str], folder: pathlib.Path, log: pathlib.Path
) -> dict[str, float]:
  """Runs a command; returns 'seconds', 'memory_gb' and 'disk_gb' (added).

  Raises:
    StageFailed: it ended with another exit code than 0.
  """
  before, begun, peak = disk(folder), time.monotonic(), 0.0
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
    'seconds': seconds,
    'memory_gb': peak / 1024,
    'disk_gb': (disk(folder) - before) / 1e9,
  }


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


def growth(small: float, large: float, counts: tuple[int, int]) -> float:
  """Returns k of cost ~ n^k between two counts; NaN where nothing is there."""
  if min(small, large) <= 0:
    return math.nan
  return math.log(large / small) / math.log(counts[1] / counts[0])


def extrapolated(
  small: float, large: float, counts: tuple[int, int], n: int
) -> float:
  """Returns the cost of n by the line through both: start and each one's."""
  each = (large - small) / (counts[1] - counts[0])
  return max(large + each * (n - counts[1]), 0.0)


def table(dataset: str, results: Sequence[Mapping[str, Any]]) -> str:
  """Returns the report as Markdown, of one download or two."""
  results = sorted(results, key=lambda r: r['photographs'])
  counts = tuple(r['photographs'] for r in results)
  targets = (ALL[dataset], 1_000_000)
  lines = [
    f'# Rehearsal of {dataset}: simulated photographs, narrow networks',
    '',
    f'Load of the machine at the end {os.getloadavg()[0]:.1f}, cores '
    f'{len(os.sched_getaffinity(0))}. Two small downloads tell little of large '
    'ones: most of their time is the start of processes and compilation.',
    'Extrapolated: cost(n) = cost of the larger + (n - its photographs) x '
    '(difference of costs) / (difference of photographs). Growth: k of n^k.',
    '',
  ]
  header = ['stage', 'quantity', *(f'{n:,} photographs' for n in counts)]
  if len(counts) == 2:
    header += ['growth', *(f'{n:,} (extrapolated)' for n in targets)]
  rows = [header, ['---'] * len(header)]
  for stage in results[-1]['stages']:
    for key, unit in (
      ('seconds', 's'), ('memory_gb', 'GB memory'), ('disk_gb', 'GB disk'),
    ):  # fmt: skip
      values = [r['stages'][stage][key] for r in results]
      row = [stage, unit, *(f'{v:.3g}' for v in values)]
      if len(counts) == 2:
        k = growth(*values, counts)
        row.append('' if math.isnan(k) else f'{k:.2f}' + '!' * (k > _FASTER))
        row += [f'{extrapolated(*values, counts, n):.3g}' for n in targets]
      if key == 'memory_gb' and max(values) > _MEMORY_GB:
        row[1] += f' (over {_MEMORY_GB:g})'
      rows.append(row)
  return '\n'.join([*lines, *('| ' + ' | '.join(r) + ' |' for r in rows), ''])
