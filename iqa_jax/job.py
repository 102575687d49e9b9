"""One run from start to end: set-up, data, training, evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
import contextlib
import importlib.metadata
import os
import pathlib
import platform
import subprocess
import sys

from absl import logging
import ml_collections

from iqa_jax import config as config_lib
from iqa_jax import remote, run_directory

# Where files lie and how much memory may be used is not what a run is.
_LOCATION_FIELDS = (
  'data.data_dir',
  'data.manual_dir',
  'data.test_manual_dir',
  'train.cache_gb',
)
_PACKAGES = (
  'jax',
  'jaxlib',
  'flax',
  'optax',
  'orbax-checkpoint',
  'numpy',
  'pillow',
  'tensorflow-cpu',
  'tensorflow-datasets',
)


def run(
  config: ml_collections.ConfigDict | None,
  workdir: str,
  *,
  mode: str = 'train_and_evaluate',
  ensemble: Sequence[str] = (),
  evaluation_dir: str | None = None,
  coordinator_address: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
  compilation_cache: str = '',
) -> None:
  """Trains and evaluates one run.

  Args:
    config: the configuration; None takes the run directory's own (evaluate).
    workdir: the run directory; may be remote (remote.py). In a run of several
      processes those but process 0 need not see it.
    mode: 'train_and_evaluate', 'train' or 'evaluate'.
    ensemble: further run directories whose predictions are averaged in.
    evaluation_dir: where an evaluation writes; None for `workdir`.
    coordinator_address: HOST:PORT of process 0 of a run of several processes.
    num_processes: how many processes the run has.
    process_id: which of them this is.
    compilation_cache: folder of compiled programs; '' for none.

  Raises:
    UserError: something that the message says how to mend.
    Interrupted: SIGINT or SIGTERM; the same call resumes.
  """
  from iqa_jax import processes

  if config is None:
    saved = run_directory.read_config(workdir)
    config = config_lib.from_json(saved)
  _refuse_remote(config, compilation_cache)
  _set_up_jax(config, compilation_cache)
  # Before anything touches a device.
  processes.initialize(coordinator_address, num_processes, process_id)
  with processes.together(), contextlib.ExitStack() as stack:
    home, push = stack.enter_context(_mirror(workdir, mode))
    output = home
    if evaluation_dir:
      output, _ = stack.enter_context(_mirror(evaluation_dir, mode))
    stack.enter_context(processes.lock(home))
    _run(config, home, mode, ensemble, output, push)


def _refuse_remote(
  config: ml_collections.ConfigDict, compilation_cache: str
) -> None:
  # array_record, which reads the records, knows local files alone, as do the
  # readers of photographs.
  names = ('data_dir', 'manual_dir', 'test_manual_dir')
  remote.refuse(
    compilation_cache=compilation_cache,
    **{f'data__{name}': config.data[name] for name in names},
  )


def _mirror(
  place: str, mode: str
) -> contextlib.AbstractContextManager[tuple[pathlib.Path, Callable[[], None]]]:
  """Returns a context with the local folder of a run and what copies it back.

  Process 0 alone has what lies there, and copies.
  """
  import jax

  if remote.is_remote(place):
    logging.warning(
      '%s cannot be locked: see to it that no other run writes there', place
    )
  return remote.mirror(
    place,
    leave_out=('checkpoints',) if mode == 'evaluate' else (),
    active=jax.process_index() == 0,
  )


def _run(
  config: ml_collections.ConfigDict,
  workdir: pathlib.Path,
  mode: str,
  ensemble: Sequence[str],
  output: pathlib.Path,
  push: Callable[[], None],
) -> None:
  from iqa_jax import processes
  from iqa_jax.data import source as source_lib
  from iqa_jax.data import splits as splits_lib
  from iqa_jax.evaluation import evaluate
  from iqa_jax.training import familiar, loop

  if mode != 'evaluate':
    processes.first(lambda: _claim(config, workdir))
  source = source_lib.open_source(config)
  splits = splits_lib.assign(source.table, config)
  logging.info(
    '%s: %s',
    config.data.name,
    ', '.join(f'{len(ids)} {name}' for name, ids in splits.items()),
  )
  if mode != 'evaluate':
    loop.train(config, workdir, source, splits, saved=push)
    processes.first(
      lambda: familiar.store(workdir, source, splits['train'], config)
    )
  if mode != 'train':
    evaluate.run(
      config, workdir, source, splits, ensemble=ensemble, output=output
    )
    logging.info('report: %s', output / 'report' / 'index.html')


def _claim(config: ml_collections.ConfigDict, folder: pathlib.Path) -> None:
  """Writes config.json and environment.json, or refuses a foreign directory."""
  environment = describe_environment()
  if (folder / 'config.json').is_file():
    changed = changes(folder, config)
    if changed:
      raise run_directory.RunDirectoryError(
        f'{folder} holds a run of another configuration:\n  '
        + '\n  '.join(changed)
        + '\nchoose another --workdir, or give the configuration it began with'
      )
    before = run_directory.read_json(folder / 'environment.json')
    for key in ('versions', 'devices', 'python', 'processes'):
      if before.get(key) != environment[key]:
        logging.warning(
          'resuming on other %s than the run began with, so it is not exactly '
          'repeatable: %s -> %s',
          key,
          before.get(key),
          environment[key],
        )
    return
  run_directory.write_text(folder / 'config.json', config_lib.to_json(config))
  run_directory.write_json(folder / 'environment.json', environment)


def changes(
  folder: pathlib.Path, config: ml_collections.ConfigDict
) -> list[str]:
  """Returns a line a field in which a run directory's run is another."""
  saved = config_lib.from_json(run_directory.read_config(folder))
  return [
    line
    for line in config_lib.diff(saved, config)
    if not line.startswith(_LOCATION_FIELDS)
  ]


def finished(
  workdir: str | os.PathLike, config: ml_collections.ConfigDict
) -> bool:
  """Returns whether a local run directory holds this run with its report."""
  if remote.is_remote(workdir):
    return False
  folder = pathlib.Path(workdir)
  # What an evaluation writes last.
  report = folder / 'report' / 'report.md'
  return report.is_file() and not changes(folder, config)


def describe_environment() -> dict:
  """Returns what a repeat of this run needs: revision, versions, devices."""
  import jax

  versions = {}
  for package in _PACKAGES:
    try:
      versions[package] = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
      versions[package] = 'absent'
  return {
    'command': sys.argv,
    'git': _git_revision(),
    'python': platform.python_version(),
    'platform': platform.platform(),
    'processes': jax.process_count(),
    'devices': [f'{d.platform} {d.device_kind}' for d in jax.devices()],
    'xla_flags': os.environ.get('XLA_FLAGS', ''),
    'versions': versions,
  }


def _git_revision() -> str:
  """Returns the checkout's revision, '-dirty' where changed, '' if none."""
  here = pathlib.Path(__file__).resolve().parent
  command = ['git', '-C', str(here), 'describe', '--always', '--dirty']
  try:
    top = subprocess.run(
      ['git', '-C', str(here), 'ls-files', '--error-unmatch', __file__],
      capture_output=True,
      check=False,
    )
    if top.returncode:
      return ''
    return subprocess.run(
      command, capture_output=True, text=True, check=True
    ).stdout.strip()
  except (OSError, subprocess.CalledProcessError):
    return ''


def _set_up_jax(
  config: ml_collections.ConfigDict, compilation_cache: str
) -> None:
  from iqa_jax import devices

  devices.use_compilation_cache(compilation_cache)
  if config.deterministic:
    flags = os.environ.get('XLA_FLAGS', '')
    if '--xla_gpu_deterministic_ops' not in flags:
      os.environ['XLA_FLAGS'] = f'{flags} --xla_gpu_deterministic_ops=true'
