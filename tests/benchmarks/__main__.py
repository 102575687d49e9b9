"""Runs the benchmarks, each in a fresh process, one after the other.

  python -m tests.benchmarks                      # all of them
  python -m tests.benchmarks explain --output=/tmp/figures
  python -m tests.benchmarks export --images=48 --repeats=2   # its own options
  python -m tests.benchmarks --smoke              # do they run at all?

A fresh process each: the number of virtual devices, the compilation cache and
the peak memory belong to a process, and must not pass from one to the next.
"""

import argparse
import pkgutil
import subprocess
import sys

import tests.benchmarks
from tests.benchmarks import common


def names() -> list[str]:
  """Returns the names of the benchmarks in this folder."""
  return sorted(
    module.name
    for module in pkgutil.iter_modules(tests.benchmarks.__path__)
    if module.name not in ('__main__', 'common')
    and not module.name.startswith(('peer_', 'test_', '_'))
  )


def main(argv: list[str] | None = None) -> int:
  """Runs the named benchmarks; returns 1 when any of them failed.

  Options that are not the runner's go to the benchmark, if it is just one.
  """
  parser = argparse.ArgumentParser(description=(__doc__ or '').split('\n')[0])
  parser.add_argument('names', nargs='*', metavar='NAME', help='all if none')
  parser.add_argument('--output', help='folder for the JSON, one file each')
  parser.add_argument('--smoke', action='store_true', help='smallest sizes')
  parser.add_argument('--list', action='store_true', help='names only')
  argv = sys.argv[1:] if argv is None else argv
  known = ('-h', '--help', '--output', '--smoke', '--list')
  # Left to argparse, an unknown '--only=vgg16 224' is a name for its space.
  own = [a for a in argv if a[:1] == '-' and a.split('=')[0] not in known]
  arguments = parser.parse_args([a for a in argv if a not in own])
  if arguments.list:
    print('\n'.join(names()))
    return 0
  for name in arguments.names:
    if name not in names():
      parser.error(f'no benchmark {name!r}; there are: {", ".join(names())}')
  if own and len(arguments.names) != 1:
    parser.error(f'{" ".join(own)}: whose? Name one benchmark')
  failed = []
  for name in arguments.names or names():
    command = [sys.executable, '-m', f'tests.benchmarks.{name}', *own]
    if arguments.output:
      command.append(f'--output={arguments.output}')
    if arguments.smoke:
      command.append('--smoke')
    if subprocess.run(command, cwd=common.ROOT, check=False).returncode:
      failed.append(name)
  if failed:
    print(f'failed: {", ".join(failed)}', file=sys.stderr)
  return bool(failed)


if __name__ == '__main__':
  sys.exit(main())
