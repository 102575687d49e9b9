"""Commands end with one line for what a user can mend, else a traceback."""

import pathlib
import subprocess
import sys

import pytest

import iqa_jax

PACKAGE = pathlib.Path(iqa_jax.__file__).parent
_IMPORTS = (
  'import os, signal\nfrom absl import app\n'
  'from iqa_jax import command, errors\n'
)


def _run(code, *arguments):
  return subprocess.run(
    [sys.executable, '-c', code, *arguments],
    capture_output=True,
    text=True,
    check=False,
  )


def _ends(body, *arguments):
  """Returns how a command whose `main` is `body` ends."""
  return _run(f'{_IMPORTS}def main():\n  {body}\ncommand.run(main)', *arguments)


@pytest.mark.parametrize(
  'body, code, last',
  [
    ('return', 0, None),
    ('return 3', 3, None),
    ("raise errors.UserError('mend this')", 1, 'mend this'),
    ("raise errors.InvalidValue('x is none of y')", 1, 'x is none of y'),
    # The operating system's own, by whichever call.
    ("open('/no/such/file')", 1, "'/no/such/file'"),
    ("raise errors.Interrupted(15, 'saved')", 143, 'SIGTERM: saved'),
    ("raise errors.Interrupted(2, 'saved')", 130, 'SIGINT: saved'),
    ('os.kill(os.getpid(), signal.SIGINT)', 130, 'interrupted'),
  ],
)
def test_what_is_expected_is_one_line(body, code, last):
  done = _ends(body)
  assert done.returncode == code, done.stderr
  assert 'Traceback' not in done.stderr
  lines = done.stderr.splitlines()
  assert len(lines) == (last is not None)
  assert last is None or last in lines[-1]


@pytest.mark.parametrize(
  'body',
  [
    "raise ValueError('a defect')",
    "raise RuntimeError('a defect')",
    "raise OSError('a defect')",  # a library's, not the system's
    "raise FileNotFoundError('a defect')",
  ],
)
def test_a_defect_shows_its_traceback(body):
  done = _ends(body)
  assert done.returncode == 1
  assert 'Traceback' in done.stderr and 'a defect' in done.stderr


def test_the_traceback_of_an_error_can_be_asked_for():
  done = _ends("raise errors.UserError('mend this')", '--verbosity=1')
  assert done.returncode == 1 and 'Traceback' in done.stderr


def test_arguments_that_are_no_flags_are_refused():
  done = _ends('return', 'photographs')
  assert done.returncode == 1
  assert "unexpected argument 'photographs'" in done.stderr


# What the command calls first, which fails here as a defect of ours would.
@pytest.mark.parametrize(
  'module, function, arguments',
  [
    (
      'main',
      'processes.initialize',
      ['--config=demo', '--workdir=w'],
    ),
    ('score', 'evaluation.scoring.run', ['--predictions=p', '--labels=l']),
    (
      'export_heatmaps',
      'export.run.run',
      ['--workdir=w', '--images=i', '--output=o'],
    ),
    ('evaluate_explanations', 'trained.load', ['--workdir=w']),
    ('review_criteria', 'trained.load', ['--workdir=w']),
    ('validate_data', 'machine.in_threads', None),
  ],
)
def test_no_command_hides_a_defect(module, function, arguments, tmp_path):
  if arguments is None:
    from tests.data import dummy

    dummy.eyeq(tmp_path)
    arguments = [
      '--dataset=eyeq', f'--manual_dir={tmp_path}',
      f'--output={tmp_path / "out.csv"}',
    ]  # fmt: skip
  where, name = f'iqa_jax.{function}'.rsplit('.', 1)
  done = _run(
    f'import importlib, runpy\n'
    f'def fail(*args, **kwargs): raise ValueError("a defect")\n'
    f'setattr(importlib.import_module({where!r}), {name!r}, fail)\n'
    f'runpy.run_module("iqa_jax.{module}", run_name="__main__")',
    *arguments,
  )
  assert done.returncode == 1
  assert 'Traceback' in done.stderr and 'a defect' in done.stderr


def test_every_command_ends_this_way():
  texts = {p: p.read_text(encoding='utf-8') for p in PACKAGE.rglob('*.py')}
  assert [p.name for p, t in texts.items() if 'app.run(' in t] == ['command.py']
  commands = {p.stem for p, t in texts.items() if 'command.run(main' in t}
  assert {'main', 'score', 'export_heatmaps', 'cross_validate'} <= commands
