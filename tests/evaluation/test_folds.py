"""Folds are pooled image by image, at their own operating points."""

import shutil
import subprocess
import sys

from absl.testing import flagsaver
import numpy as np
import pytest
from sklearn import metrics as sk

from iqa_jax import command as command_lib
from iqa_jax import config as config_lib
from iqa_jax import cross_validate, run_directory
from iqa_jax.evaluation import evaluate, figures, folds, predictions, report

# ml_collections loads configuration files by what Python has deprecated.
ML_COLLECTIONS = pytest.mark.filterwarnings(
  'ignore:the load_module:DeprecationWarning'
)


_WRITE = report.write


@pytest.fixture
def five(simulated_run, tmp_path, monkeypatch):
  """Returns make(shared_test) -> (workdir, config, source) of five folds."""
  monkeypatch.setattr(evaluate.report, 'write', lambda *_, **__: None)

  def make(shared_test=False):
    for k in range(5):
      config, folder, source, _ = simulated_run(
        count=500, seed=k, workdir=f'fold_{k}'
      )
      patient = np.arange(500) // 2
      if shared_test:
        rest, test = np.arange(400), np.arange(400, 500)
        splits = {
          'train': rest[patient[rest] % 5 != k],
          'validation': rest[patient[rest] % 5 == k],
          'test': test,
        }
      else:
        splits = {
          name: np.flatnonzero(inside)
          for name, inside in (
            ('train', ~np.isin(patient % 5, (k, (k + 1) % 5))),
            ('validation', patient % 5 == k),
            ('test', patient % 5 == (k + 1) % 5),
          )
        }
      evaluate.run(config, folder, source, splits)
    return tmp_path, config, source

  return make


def test_every_image_is_tested_once_at_its_folds_own_point(five):
  workdir, config, source = five()
  result = folds.pool(workdir, 5, config)
  assert result['pooled_on'] == 'test' and not result['notes']
  pooled = result['splits']['pooled']['verdict']
  assert pooled['n'] == 500
  rows = {}
  for k in range(5):
    table = predictions.read(workdir / f'fold_{k}' / 'predictions.csv')
    test = table[table.split == 'test']
    found = zip(test.p_calibrated, test.verdict, strict=True)
    rows |= dict(zip(test.image_id, found, strict=True))
  p, called = np.array([rows[i] for i in source.table['image_id']]).T
  truth = source.table['quality']
  values = {k: v['value'] for k, v in pooled['metrics'].items()}
  assert values['auc'] == pytest.approx(sk.roc_auc_score(truth, p))
  assert values['sensitivity'] == pytest.approx(sk.recall_score(truth, called))
  each = [
    run_directory.read_json(workdir / f'fold_{k}' / 'metrics.json')['splits'][
      'test'
    ]['verdict']['metrics']['auc']['value']
    for k in range(5)
  ]
  found = result['folds']['auc']
  assert found['values'] == each
  assert (found['least'], found['most']) == (min(each), max(each))
  assert found['mean'] == pytest.approx(np.mean(each))
  line = next(
    row for row in folds.as_text(result).split('\n') if row[:7] == 'ROC AUC'
  )
  assert f'({min(each):.3f} to {max(each):.3f})' in line


def test_the_page_draws_what_its_numbers_are_of(five, monkeypatch):
  workdir, config, _ = five()
  # Scores of different models are on different scales.
  for k in range(5):
    path = workdir / f'fold_{k}' / 'predictions.csv'
    header, *lines = path.read_text().splitlines()
    at = header.split(',').index('p_inadequate')
    rows = [line.split(',') for line in lines]
    for row in rows:
      row[at] = str((float(row[at]) + 3 * k) / 16)
    path.write_text('\n'.join([header, *map(','.join, rows)]) + '\n')
  drawn = {}

  def keep(_, result, tables, **options):
    drawn.update(figures.draw(result, tables, **options))

  monkeypatch.setattr(folds.report, 'write', keep)
  result = folds.pool(workdir, 5, config)
  measured = result['splits']['pooled']['verdict']['metrics']
  axes = {name: drawn[name].figure.axes[0] for name in drawn}
  x, y = axes['roc'].lines[0].get_data()
  assert np.trapezoid(y, x) == pytest.approx(measured['auc']['value'])
  x, y = axes['precision_recall'].lines[0].get_data()
  area = -np.sum(np.diff(np.append(x, 0)) * y)
  assert area == pytest.approx(measured['average_precision']['value'])


def test_a_metric_that_some_folds_lack_says_so(five):
  workdir, config, _ = five()
  for k in range(5):
    path = workdir / f'fold_{k}' / 'metrics.json'
    written = run_directory.read_json(path)
    measured = written['splits']['test']['verdict']['metrics']
    measured['mcc']['value'] = None
    del measured['brier']
    if k < 2:
      measured['auc']['value'] = None
    run_directory.write_json(path, written)
  found = folds.pool(workdir, 5, config)['folds']
  assert found['auc']['note'] == 'undefined in 2 folds'
  assert found['auc']['mean'] is not None
  for name in ('mcc', 'brier'):
    assert found[name]['least'] is None
    assert found[name]['note'] == 'undefined in every fold'


def test_a_shared_test_split_is_not_counted_five_times(five, monkeypatch):
  workdir, config, _ = five(shared_test=True)
  monkeypatch.setattr(folds.report, 'write', _WRITE)
  result = folds.pool(workdir, 5, config)
  assert result['pooled_on'] == 'validation'
  assert result['splits']['pooled']['verdict']['n'] == 400
  assert 'flatter' in result['notes'][0]
  page = (workdir / 'report' / 'report.md').read_text()
  assert page.index('flatter') < page.index('## ')
  assert 'Student' not in page and 'the least and the most' in page


def test_damage_is_named(five, tmp_path):
  workdir, config, _ = five()
  path = workdir / 'fold_3' / 'predictions.csv'
  path.write_text('image_id,verdict\na,maybe\n')
  with pytest.raises(run_directory.RunDirectoryError, match='fold_3'):
    folds.pool(workdir, 5, config)


@pytest.fixture
def command(monkeypatch):
  """Returns call(arguments, codes) -> exit code and the folds' commands."""

  def call(arguments, codes):
    ran = []

    def run(line, check):
      ran.append(line)
      return subprocess.CompletedProcess(line, codes[len(ran) - 1])

    argv = ['cross_validate', *arguments]
    monkeypatch.setattr(sys, 'argv', argv)
    monkeypatch.setattr(cross_validate.subprocess, 'run', run)
    with flagsaver.flagsaver():
      config_lib.parse_flags(argv)
      return command_lib.exit_code(cross_validate.main), ran

  return call


@ML_COLLECTIONS
def test_the_command_runs_every_fold_then_pools(five, command, capsys):
  workdir, *_ = five()
  arguments = ['--config=demo', f'--workdir={workdir}', '--config.seed=3']
  code, ran = command(arguments, [0] * 5)
  assert code == 0
  for k, line in enumerate(ran):
    assert line[1:3] == ['-m', 'iqa_jax.main']
    assert line[4:] == [
      '--config.seed=3',
      f'--config.data.fold={k}',
      f'--workdir={workdir}/fold_{k}',
    ]
    assert line[3].startswith('--config=') and 'demo' in line[3]
  assert len(ran) == 5
  assert '5 folds; positive class: Inadequate' in capsys.readouterr().out
  result = run_directory.read_json(workdir / 'metrics.json')
  assert result['splits']['pooled']['verdict']['n'] == 500


@ML_COLLECTIONS
def test_finished_folds_are_skipped_unless_they_are_of_another_run(
  five, command
):
  workdir, *_ = five()
  config = config_lib.variant('demo')
  config.seed, config.data.manual_dir = 3, 'elsewhere'
  for k, files in {0: ('report.md',), 1: ('index.html',), 3: ()}.items():
    folder = workdir / f'fold_{k}'
    config.data.fold = k
    run_directory.write_text(folder / 'config.json', config_lib.to_json(config))
    shutil.rmtree(folder / 'report', ignore_errors=True)
    for name in files:
      run_directory.write_text(folder / 'report' / name, 'a report')
  arguments = ['--config=demo', f'--workdir={workdir}', '--config.seed=3']
  code, ran = command(arguments, [0] * 5)
  assert code == 0
  assert [line[-1][-1] for line in ran] == ['1', '2', '3', '4']
  # The run itself refuses another configuration, and says how they differ.
  arguments[-1] = '--config.seed=4'
  assert len(command(arguments, [0] * 5)[1]) == 5


@ML_COLLECTIONS
def test_the_command_stops_where_a_fold_does(command, tmp_path, capsys):
  arguments = ['--config=demo', f'--workdir={tmp_path}']
  assert command(arguments, [0, 143])[0] == 143
  # Killed outright: the shell's convention.
  assert command(arguments, [-9])[0] == 137
  code, ran = command([*arguments, '--folds=1,3'], [0, 0])
  assert code == 0 and len(ran) == 2
  assert 'not pooled yet: folds [0, 1, 2, 3, 4]' in capsys.readouterr().err


@pytest.mark.parametrize('command', ['score', 'cross_validate'])
def test_help_imports_nothing_heavy(command):
  done = subprocess.run(
    [sys.executable, '-X', 'importtime', '-m', f'iqa_jax.{command}', '--help'],
    capture_output=True,
    text=True,
    check=False,
  )
  assert f'python -m iqa_jax.{command}' in done.stdout
  heavy = ('jax', 'tensorflow', 'sklearn', 'matplotlib', 'scipy', 'numpy')
  loaded = {
    line.rpartition('|')[2].strip() for line in done.stderr.splitlines()
  }
  assert not loaded & set(heavy)


def test_arguments_are_handed_on_but_for_its_own():
  given = [
    '--config=demo',
    '--workdir=a',
    '--folds',
    '0,1',
    '--config.seed=3',
    '--config.data.fold=2',
    '-workdir',
    'b',
  ]
  assert cross_validate._handed_on(given) == [
    '--config=demo',
    '--config.seed=3',
  ]
