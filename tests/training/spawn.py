"""Starts tests/training/driver.py in processes of their own."""

import os
import pathlib
import socket
import subprocess
import sys

DRIVER = pathlib.Path(__file__).with_name('driver.py')


def start(workdir, *arguments, devices=1, cache=None, largest_file=None):
  """Returns the running process; its output is a pipe of text."""
  environment = dict(os.environ)
  environment['XLA_FLAGS'] = f'--xla_force_host_platform_device_count={devices}'
  environment['JAX_PLATFORMS'] = 'cpu'
  if cache is not None:
    # Compiling takes longer than everything else these processes do.
    environment['JAX_COMPILATION_CACHE_DIR'] = str(cache)
    environment['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
    environment['JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES'] = '-1'
  command = [sys.executable, str(DRIVER), str(workdir), *map(str, arguments)]
  if largest_file is not None:
    # As a full disk does, this fails the writing of files, wherever it happens.
    limit = f'ulimit -f {largest_file // 1024}; exec "$@"'
    command = ['bash', '-c', limit, 'bash', *command]
  return subprocess.Popen(
    command,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    env=environment,
  )


def finish(process, timeout=240):
  """Returns the exit code and the output."""
  output, _ = process.communicate(timeout=timeout)
  return process.returncode, output


def free_port() -> int:
  with socket.socket() as probe:
    probe.bind(('127.0.0.1', 0))
    return probe.getsockname()[1]
