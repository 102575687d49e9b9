"""The benchmarks' own machinery: ratios, peers, reports, discovery."""

import ast
import json
import pathlib
import shutil
import subprocess
import sys

import pytest

from tests.benchmarks import __main__ as suite
from tests.benchmarks import common

FOLDER = pathlib.Path(common.__file__).parent


def test_ratio_is_above_one_where_we_are_better():
  more = common.Row('a', [4.0, 8.0, 6.0], 'images/s', 'p', [2.0, 3.0, 100.0])
  less = common.Row('b', [2.0], 's', 'p', [6.0])
  alone = common.Row('c', [2.0], 's', 'p', note='peer skipped')
  assert (more.ratio, less.ratio, alone.ratio) == (2.0, 3.0, None)


def test_report_writes_medians_spreads_machine_and_versions(tmp_path, capsys):
  rows = [common.Row('a', [3.0, 1.0, 2.0], 's', 'p', [4.0], '2x', 'a note')]
  common.report('name', rows, tmp_path / 'new')
  record = json.loads((tmp_path / 'new' / 'name.json').read_text())
  (row,) = record['rows']
  assert (row['median'], row['least'], row['most']) == (2.0, 1.0, 3.0)
  assert row['peer_values']['median'] == 4.0
  assert row['ratio'] == 2.0
  assert record['machine']['cores'] >= 1
  assert record['versions']['python'] == sys.version.split()[0]
  table = capsys.readouterr().out
  assert '| a    | 2 (1-3)         | s    | p 4  | 2.00x | 2x     |' in table
  assert 'a: a note' in table


def test_alternate_takes_turns():
  order = []
  times = common.alternate(
    {'a': lambda: order.append('a'), 'b': lambda: order.append('b')}, repeats=2
  )
  assert order == list('ababab')
  assert len(times['a']) == len(times['b']) == 2


@pytest.fixture
def peer(monkeypatch, tmp_path):
  """A peer's module in a tree of its own, run by this interpreter."""
  folder = tmp_path / 'tests' / 'benchmarks'
  folder.mkdir(parents=True)
  # Regular packages, or an installed checkout's `tests` comes first.
  (folder / '__init__.py').touch()
  (folder.parent / '__init__.py').touch()
  shutil.copy(common.__file__, folder)
  (folder / 'peer_of_the_test.py').write_text("""
import time
from tests.benchmarks import common

def nap(seconds):
  print('noise that must not reach the pipe')
  time.sleep(seconds)
  return [1, 'é']

def fail():
  raise ValueError('on purpose')

if __name__ == '__main__':
  common.serve({'nap': nap, 'fail': fail}, versions=('pytest',))
""")
  monkeypatch.setattr(common, 'ROOT', tmp_path)
  monkeypatch.setenv('IQA_TORCH_PYTHON', sys.executable)
  return 'peer_of_the_test'


def test_peer_answers_and_is_charged_its_own_time(peer):
  with common.Peer(peer) as other:
    assert other('nap', seconds=0) == [1, 'é']
    times = common.alternate(
      {'peer': lambda: other('nap', seconds=0.05)}, repeats=1
    )
    assert 0.05 <= times['peer'][0] < 1
    with pytest.raises(RuntimeError, match='fail: ValueError: on purpose'):
      other('fail')
    assert other('nap', seconds=0) == [1, 'é']
  assert common.versions()['pytest'] == pytest.__version__


def test_absent_peer_says_so(monkeypatch, tmp_path):
  monkeypatch.setenv('IQA_TORCH_PYTHON', str(tmp_path / 'none'))
  with pytest.raises(common.PeerAbsent, match=r'skipped.*does not run'):
    common.Peer('peer_gpu')
  monkeypatch.delenv('IQA_TORCH_PYTHON')
  with pytest.raises(common.PeerAbsent, match='no no_such_package here'):
    common.Peer('peer_gpu', packages=('no_such_package',))


def test_every_benchmark_can_be_run_and_smoked():
  assert suite.names()
  for name in suite.names():
    tree = ast.parse((FOLDER / f'{name}.py').read_text())
    functions = {f.name: f for f in tree.body if isinstance(f, ast.FunctionDef)}
    assert 'run' in functions, name
    assert 'smoke' in [a.arg for a in functions['run'].args.kwonlyargs], name
    assert isinstance(tree.body[-1], ast.If), f'{name} is not a command'


def test_unknown_benchmark_is_named(capsys):
  with pytest.raises(SystemExit):
    suite.main(['no_such_benchmark'])
  assert "no benchmark 'no_such_benchmark'" in capsys.readouterr().err


def test_options_reach_the_one_benchmark_that_is_named(monkeypatch, capsys):
  ran = []

  def run(command, **_):
    ran.append(command[2:])
    return subprocess.CompletedProcess(command, 0)

  monkeypatch.setattr(subprocess, 'run', run)
  # As a shell gives --only='vgg16 224': with a space.
  assert suite.main(['gpu', '--only=vgg16 224', '--output', 'x y']) == 0
  assert suite.main(['gpu', 'explain', '--smoke']) == 0
  assert ran == [
    ['tests.benchmarks.gpu', '--only=vgg16 224', '--output=x y'],
    ['tests.benchmarks.gpu', '--smoke'],
    ['tests.benchmarks.explain', '--smoke'],
  ]
  with pytest.raises(SystemExit):
    suite.main(['gpu', 'explain', '--repeats=2'])
  assert 'Name one benchmark' in capsys.readouterr().err
