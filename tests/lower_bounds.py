"""The tests with the oldest versions that pyproject.toml allows.

  python3.11 tests/lower_bounds.py VENV [arguments of pytest]

Makes the virtual environment VENV, unless it is there, with every dependency of
the package and of its tests at its lower bound, and runs the tests in it. What
they need in turn is as new as they allow.
"""

from __future__ import annotations

import os
import pathlib
import re
import subprocess
import sys
import tomllib
import venv

HOME = pathlib.Path(__file__).resolve().parents[1]


def bounds(text: str) -> list[str]:
  """Returns 'name==bound' for every 'name>=bound' that pyproject.toml has.

  Args:
    text: of pyproject.toml.

  Raises:
    ValueError: a dependency of the package or its tests has no lower bound.
  """
  project = tomllib.loads(text)['project']
  wanted = [
    *project['dependencies'],
    *project['optional-dependencies']['tests'],
  ]
  pinned = []
  for requirement in wanted:
    found = re.fullmatch(r'([\w.-]+(?:\[[\w,-]+\])?)>=([\w.]+)', requirement)
    if not found:
      raise ValueError(f'{requirement!r} is not of the form name>=bound')
    pinned.append(f'{found[1]}=={found[2]}')
  return pinned


def main(folder: str, *arguments: str) -> int:
  """Returns pytest's exit code."""
  python = pathlib.Path(folder).absolute() / 'bin' / 'python'
  if not python.exists():
    venv.create(folder, with_pip=True)
  pins = bounds((HOME / 'pyproject.toml').read_text())
  pip = [python, '-m', 'pip', 'install', '-q']
  subprocess.run([*pip, *pins], check=True)
  # Last, and alone: where a bound is too low for another package, pip says so.
  subprocess.run([*pip, '--no-deps', '-e', str(HOME)], check=True)
  subprocess.run([python, '-m', 'pip', 'check'], check=True)
  return subprocess.run(
    [python, '-m', 'pytest', *arguments],
    check=False,
    cwd=HOME,
    env={**os.environ, 'PYTHONPATH': str(HOME)},
  ).returncode


if __name__ == '__main__':
  if len(sys.argv) < 2 or sys.argv[1].startswith('-'):
    sys.exit(__doc__)
  sys.exit(main(*sys.argv[1:]))
