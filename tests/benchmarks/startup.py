"""How long until something happens: --help, the first heatmap, the first step.

Everything is timed from outside, from the start of the process: until the help
text is out, until the first picture of an export lies in its folder, and until
the first training step's checkpoint does (--config.train.checkpoint_every=1),
which is a little later than the step itself. Cold means that the compilation
cache is empty, warm that the run before filled it.
"""

from __future__ import annotations

from collections.abc import Callable
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

from tests.benchmarks import _material, common


def run(
  *,
  smoke: bool = False,
  repeats: int = 3,
  parts: str = 'help,export,training',
  data_dir: str = '',
) -> list[common.Row]:
  """Measures every command; the export at 224 px with a whole ResNet50.

  The demo's photographs are drawn once, unless `data_dir` has them.
  """
  if smoke:
    repeats = 1
  rows = []
  with tempfile.TemporaryDirectory() as scratch:
    folder = pathlib.Path(scratch)
    for part in parts.split(','):
      if part == 'help':
        rows += _helps(repeats)
      elif part == 'export':
        rows += _export(folder, smoke, repeats)
      else:
        rows += _training(folder, repeats, data_dir or folder / 'data')
  return rows


def commands() -> list[str]:
  """Returns the modules of iqa_jax that are commands for people."""
  package = common.ROOT / 'iqa_jax'
  return sorted(
    '.'.join(path.relative_to(common.ROOT).with_suffix('').parts)
    for path in package.rglob('*.py')
    if 'command.run(main' in path.read_text(encoding='utf-8')
  )


def _helps(repeats) -> list[common.Row]:
  return [
    common.Row(
      f'python -m {command} --help',
      common.measure(lambda command=command: _help(command), repeats=repeats),
      's',
      target='under 1 s',
    )
    for command in commands()
  ]


def _help(command: str) -> None:
  done = subprocess.run(
    [sys.executable, '-m', command, '--help'],
    cwd=common.ROOT,
    capture_output=True,
    check=False,
  )
  if b'flags:' not in done.stdout:
    raise RuntimeError(f'{command} --help: {done.stderr.decode()}')


def _until(command: list[str], happened: Callable[[], bool]) -> float:
  """Starts a command; returns the seconds until `happened`, then ends it."""
  start = time.perf_counter()
  process = subprocess.Popen(command, cwd=common.ROOT)
  try:
    while not happened():
      if process.poll() is not None and not happened():
        raise RuntimeError(f'{command} ended with {process.returncode}')
      time.sleep(0.01)
    return time.perf_counter() - start
  finally:
    process.send_signal(signal.SIGTERM)
    process.wait()


def _export(folder, smoke, repeats) -> list[common.Row]:
  _material.photographs(folder / 'images', 1, 1024)
  _material.random_run(folder / 'run', width=0.25 if smoke else 1.0)
  times: dict[str, list[float]] = {'cold': [], 'warm': []}
  for repeat in range(repeats):
    for state in times:
      output = folder / f'output_{state}_{repeat}'
      times[state].append(
        _until(
          [
            *(sys.executable, '-m', 'iqa_jax.export_heatmaps'),
            f'--workdir={folder / "run"}',
            f'--images={folder / "images"}',
            f'--output={output}',
            f'--compilation_cache={folder / "cache" / str(repeat)}',
          ],
          lambda output=output: any(output.rglob('000000*.jpg')),
        )
      )
  targets = {'cold': 'under 12 s', 'warm': 'under 6 s'}
  return [
    common.Row(
      f'first heatmap of an export, {state} compilation cache',
      values,
      's',
      target=targets[state],
    )
    for state, values in times.items()
  ]


def _training(folder, repeats, data_dir) -> list[common.Row]:
  def first_step(name):
    return _until(
      [
        *(sys.executable, '-m', 'iqa_jax.main', '--config=demo'),
        f'--workdir={folder / name}',
        '--mode=train',
        f'--compilation_cache={folder / "cache_main"}',
        f'--config.data.data_dir={data_dir}',
        '--config.train.checkpoint_every=1',
      ],
      lambda: any((folder / name / 'checkpoints').glob('[0-9]')),
    )

  cold = first_step('cold')
  warm = [first_step(f'warm{i}') for i in range(repeats)]
  return [
    common.Row(
      "main's first training step (demo), cold cache, data drawn if need be",
      [cold],
      's',
    ),
    common.Row(
      "main's first training step (demo), warm cache",
      warm,
      's',
      target='under 15 s',
    ),
  ]


if __name__ == '__main__':
  sys.exit(common.main(run))
