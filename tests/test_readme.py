"""Every command that README prints is one that its program takes.

Programs are asked in their own words: the flags that they define parse the
arguments, configs and their fields included, and what is left over is an
error. That commands do what README says is the business of other tests.
"""

from __future__ import annotations

import pathlib
import re
import shlex
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGES = [
  ROOT / 'README.md',
  ROOT / 'tests' / 'benchmarks' / 'README.md',
  *sorted((ROOT / 'iqa_jax').rglob('README.md')),
]
_FENCE = re.compile(r'^```(\w*)\n(.*?)^```', re.M | re.S)
_INLINE = re.compile(r'`((?:python -m|launch/\S+\.sh)[^`]*)`')
# What stands for something of the reader's.
_STANDS_FOR = {'CONFIG': 'demo', 'C': 'demo'}

# Flags are defined on import; the module is then asked, not run. A process of
# its own for each command: flags are of the whole process.
_PARSE = """
import importlib, inspect, sys
from unittest import mock

module, *arguments = sys.argv[1:]


def of_benchmarks():
  from tests.benchmarks import __main__ as runner, common

  calls = [[module, *arguments]]
  if module == 'tests.benchmarks':
    done = mock.Mock(returncode=0)
    with mock.patch.object(runner.subprocess, 'run', return_value=done) as run:
      runner.main(arguments)
    calls = [call.args[0][2:] for call in run.call_args_list]
  for name, *own in calls:
    def stand_in(**given):
      return []

    run = importlib.import_module(name).run
    stand_in.__signature__ = inspect.signature(run)
    with mock.patch.object(common, 'report'):
      common.main(stand_in, own)


def of_commands():
  from absl import flags
  from iqa_jax import config

  found = importlib.import_module(module)
  if hasattr(found, '__path__'):
    importlib.import_module(f'{module}.__main__')
  # A config's fields become flags when sys.argv names them.
  sys.argv = config.resolve_arguments([module, *arguments])
  left = flags.FLAGS(sys.argv)
  if left[1:]:
    sys.exit(f'left over: {left[1:]}')


of_benchmarks() if module.startswith('tests.bench') else of_commands()
"""


def commands(text: str) -> list[str]:
  """Returns the commands in a page's shell blocks, inline code and tables."""
  lines = []
  for language, block in _FENCE.findall(text):
    if language in ('', 'sh'):
      lines += block.replace('\\\n', ' ').splitlines()
  lines += [match.replace('\n', ' ') for match in _INLINE.findall(text)]
  # In the table of speeds, the last cell stands for NAME.
  if '| `NAME` |' in text:
    table = text.split('| `NAME` |', 1)[1].split('\n\n', 1)[0]
    names = re.findall(r'\| `([^`]+)` \|$', table, re.M)
    lines += [f'python -m tests.benchmarks {name}' for name in names]
  return [line for line in lines if 'python -m ' in line or 'launch/' in line]


def _arguments(line: str) -> tuple[str, list[str]] | None:
  """Returns a command's module and arguments; None where it has no module."""
  line = re.sub(r'\[--[^\]]*\]', '', line.split('#')[0])
  words = shlex.split(line.replace('...', '').replace('$SEED', '0'))
  if '-m' not in words:
    return None
  module, *rest = words[words.index('-m') + 1 :]
  rest = [w for w in rest if w not in ('NAME', '--help')]
  for word, meant in _STANDS_FOR.items():
    rest = [f'--config={meant}' if w == f'--config={word}' else w for w in rest]
  return module, rest


def _printed() -> list[list[str]]:
  found = {}
  for page in PAGES:
    for line in commands(page.read_text()):
      if (parsed := _arguments(line)) and parsed[0] not in ('pytest', 'venv'):
        found[parsed[0], *parsed[1]] = [parsed[0], *parsed[1]]
  return list(found.values())


def _ask(command: list[str]) -> subprocess.CompletedProcess:
  return subprocess.run(
    [sys.executable, '-c', _PARSE, *command],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=120,
    check=False,
  )


@pytest.mark.parametrize('command', _printed(), ids=' '.join)
def test_a_printed_command_is_understood(command):
  done = _ask(command)
  assert done.returncode == 0, done.stderr[-2000:]


def test_printed_scripts_exist():
  scripts = set()
  for page in PAGES:
    scripts |= set(re.findall(r'\blaunch/\w+\.sh', page.read_text()))
  assert scripts
  for script in scripts:
    assert (ROOT / script).is_file(), script


@pytest.mark.parametrize(
  'command',
  [
    ['tests.benchmarks', 'export', '--imagez=1'],
    ['iqa_jax.score', '--predicitons=P.csv'],
    ['iqa_jax.main', '--config=demo', '--config.data.foldz=1'],
  ],
  ids=' '.join,
)
def test_a_mistake_is_seen(command):
  done = _ask(command)
  assert done.returncode != 0
  wrong = command[-1].partition('=')[0].rpartition('.')[2]
  assert wrong.removeprefix('--') in done.stderr


def test_the_python_that_readme_shows_runs(tmp_path, monkeypatch):
  import numpy as np

  from tests.export import export_material

  export_material.make_run(tmp_path / 'runs' / 'eyeq')
  rng = np.random.default_rng(0)
  export_material.save(tmp_path / 'eye.jpg', rng)
  for i in range(6):
    export_material.save(tmp_path / 'photographs' / f'{i}.jpg', rng)
  text = (ROOT / 'README.md').read_text(encoding='utf-8')
  [code] = [b for _, b in _FENCE.findall(text) if 'iqa.load' in b]
  # What is drawn here is a textured circle.
  code = code.replace("iqa.load('runs/eyeq')",
                      "iqa.load('runs/eyeq', check_fundus=False)")  # fmt: skip
  monkeypatch.chdir(tmp_path)
  names = {'labels': [0, 1] * 3, 'patients': list('aabbcc')}
  exec(compile(code, 'README.md', 'exec'), names)
  assert (tmp_path / 'why.jpg').is_file()
  assert [v.status for v in names['verdicts']] == ['ok'] * 6
  assert 0 <= names['quality']['auc'].value <= 1


def test_the_csv_that_readme_writes_is_one_that_is_read(tmp_path, monkeypatch):
  folder = tmp_path / 'EYEQ'
  folder.mkdir()
  for split, number in (('train', 7), ('test', 9)):
    (folder / f'Label_EyeQ_{split}.csv').write_text(
      f',image,quality,DR_grade\n0,{number}_left.jpeg,2,0\n'
      f'1,{number}_right.jpeg,0,1\n',
      encoding='utf-8',
    )
  text = (ROOT / 'README.md').read_text(encoding='utf-8')
  [code] = [b for _, b in _FENCE.findall(text) if 'csv.writer' in b]
  monkeypatch.chdir(tmp_path)
  exec(compile(code, 'README.md', 'exec'), {})
  rows = (folder / 'labels.csv').read_text(encoding='utf-8').splitlines()
  assert rows[0] == 'path,patient,eye,grade,split'
  assert rows[1] == 'train/7_left.jpeg,7,left,reject,train'
  assert rows[4] == 'test/9_right.jpeg,9,right,good,test'
