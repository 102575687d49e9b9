"""Other systems' predictions: published figures, files as people have them."""

import csv
import subprocess
import sys

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
import numpy as np
import pytest
from sklearn import metrics as sk

from iqa_jax.evaluation import evaluate, scoring


def write(path, header, rows):
  with open(path, 'w', newline='', encoding='utf-8') as file:
    csv.writer(file).writerows([header, *rows])
  return str(path)


@pytest.fixture
def files(tmp_path):
  """Returns make(scores, labels) -> paths of two small files."""

  def make(scores=None, labels=None):
    names = [f'{i}_{side}' for i in range(10) for side in ('left', 'right')]
    rng = np.random.default_rng(0)
    truth = [int(v) for v in rng.permutation([0, 1] * 10)]
    p = np.clip(0.3 + 0.4 * np.array(truth) + rng.normal(0, 0.2, 20), 0, 1)
    scores = scores or (
      ['image', 'score'],
      [[f'{n}.jpeg', f'{v:.4f}'] for n, v in zip(names, p, strict=True)],
    )
    labels = labels or (
      ['image', 'quality'],
      [[f'{n}.jpeg', v] for n, v in zip(names, truth, strict=True)],
    )
    return (
      write(tmp_path / 'p.csv', *scores),
      write(tmp_path / 'l.csv', *labels),
      names,
      np.array(truth),
      p,
    )

  return make


def test_published_figures_of_mcf_net(shared):
  folder = shared / 'data' / 'eyeq_labels'
  result = scoring.run(
    str(folder / 'MCF-Net_test_predictions.csv'),
    str(folder / 'Label_EyeQ_test.csv'),
    scoring.Options(resamples=20),
  )
  scored = result['splits']['scored']
  assert scored['n'] == 16249
  grade = {k: v['value'] for k, v in scored['grade']['metrics'].items()}
  # Fu et al. 2019, as corrected by the authors.
  assert round(grade['accuracy'], 4) == 0.88
  assert round(grade['f1_macro'], 4) == 0.8606
  assert round(scored['verdict']['metrics']['auc']['value'], 4) == 0.9748
  assert round(scored['normalised']['auc'], 4) == 0.9746
  assert any('do not sum to 1' in note for note in result['notes'])
  assert 'Accuracy' in scoring.as_text(result)


def test_names_are_aligned_across_folders_orders_and_extensions(files):
  p_file, l_file, names, truth, p = files()
  rows = [
    [f'some/folder/{n}.PNG', f'{v:.4f}'] for n, v in zip(names, p, strict=True)
  ][::-1]
  p_file = write(p_file, ['File_Name', 'Score'], rows)
  result = scoring.run(p_file, l_file, scoring.Options(resamples=20))
  auc = result['splits']['scored']['verdict']['metrics']['auc']['value']
  assert auc == pytest.approx(sk.roc_auc_score(truth, np.round(p, 4)))
  assert (
    'patients: from the names (NUMBER_left, NUMBER_right)' in (result['notes'])
  )
  assert result['splits']['scored']['verdict']['n_patients'] == 10


def test_own_predictions_are_scored_as_they_were_judged(
  simulated_run, tmp_path, monkeypatch
):
  monkeypatch.setattr(evaluate.report, 'write', lambda *_, **__: None)
  config, folder, source, splits = simulated_run('grade')
  own = evaluate.run(config, folder, source, splits)
  path = str(folder / 'predictions.csv')
  result = scoring.run(path, path, scoring.Options(resamples=20))
  again = result['splits']['scored']['verdict']
  first = own['splits']['test']['verdict']
  assert again['confusion'] == first['confusion']
  for name, measure in first['metrics'].items():
    assert again['metrics'][name]['value'] == pytest.approx(measure['value'])
  grades = own['splits']['test']['grade']['confusion']
  assert result['splits']['scored']['grade']['confusion'] == grades


def test_comparison_is_paired_and_report_is_written(files, tmp_path):
  p_file, l_file, names, *_ = files()
  rng = np.random.default_rng(1)
  other = write(
    tmp_path / 'q.csv',
    ['image', 'score'],
    [[n, v] for n, v in zip(names, rng.random(20), strict=True)],
  )
  result = scoring.run(
    p_file,
    l_file,
    scoring.Options(resamples=50),
    compare=other,
    output=str(tmp_path / 'out'),
  )
  found = result['comparison']['auc']
  assert found['first'] - found['second'] == pytest.approx(found['difference'])
  assert found['difference'] > 0 and found['p_value'] < 0.05
  accuracy = result['comparison']['metrics']['accuracy']
  mine, others = accuracy['of_each']
  assert mine - others == pytest.approx(accuracy['value'])
  measured = result['splits']['scored']['verdict']['metrics']
  assert mine == pytest.approx(measured['accuracy']['value'])
  html = (tmp_path / 'out' / 'report' / 'index.html').read_text()
  assert 'Comparison with q.csv' in html
  for name, title in (('roc', 'AUC'), ('precision_recall', 'AP')):
    drawn = (tmp_path / 'out' / 'figures' / f'{name}.svg').read_text()
    assert f'q.csv: {title} ' in drawn
  assert (tmp_path / 'out' / 'metrics.json').is_file()
  assert 'DeLong' in scoring.as_text(result)


@pytest.mark.parametrize(
  'usable, expected', [('inadequate', 2), ('adequate', 1), ('exclude', 1)]
)
def test_usable_counts_as_told(files, usable, expected):
  p_file, l_file, *_ = files(
    (
      ['image', 'Good', 'Usable', 'Reject'],
      [['a', 0.9, 0.1, 0.0], ['b', 0.2, 0.7, 0.1], ['c', 0.1, 0.2, 0.7]],
    ),
    (['image', 'quality'], [['a', 0], ['b', 1], ['c', 2]]),
  )
  result = scoring.run(
    p_file, l_file, scoring.Options(usable=usable, resamples=20)
  )
  verdict = result['splits']['scored']['verdict']
  assert verdict['n_inadequate'] == expected
  assert verdict['n'] == (2 if usable == 'exclude' else 3)
  assert (
    result['splits']['scored']['grade']['metrics']['accuracy']['value'] == 1
  )


@pytest.mark.parametrize('usable', ['adequate', 'exclude'])
def test_usable_of_labels_that_are_no_grades_is_refused(files, usable):
  p_file, l_file, *_ = files()
  with pytest.raises(
    scoring.ScoringError, match=f'usable={usable} .*no 2 among'
  ):
    scoring.run(p_file, l_file, scoring.Options(usable=usable, resamples=5))
  # Named for what they are, 0 and 1 are grades.
  l_file = write(l_file, ['image', 'grade'], [['a', 0], ['b', 1]])
  p_file = write(p_file, ['image', 'score'], [['a', 0.1], ['b', 0.2]])
  result = scoring.run(
    p_file,
    l_file,
    scoring.Options(usable=usable, label_column='grade', resamples=5),
  )
  assert result['splits']['scored']['verdict']['n_inadequate'] == 0


def test_usable_of_graded_scores_beside_verdicts_is_told(files):
  p_file, l_file, *_ = files(
    (
      ['image', 'Good', 'Usable', 'Reject'],
      [['a', 1, 0, 0], ['b', 0, 0.6, 0.4]],
    ),
    (['image', 'quality'], [['a', 'adequate'], ['b', 'inadequate']]),
  )
  result = scoring.run(
    p_file, l_file, scoring.Options(usable='adequate', resamples=5)
  )
  assert any('in the scores only' in note for note in result['notes'])


PROBLEMS = {
  'twice': (
    (['image', 'score'], [['a', 0.1], ['b', 0.2], ['a', 0.3]]),
    None,
    r"p.csv has 'a' twice, in lines 2 and 4",
  ),
  'missing': (
    (['image', 'score'], [['a', 0.1]]),
    None,
    r'1 of 2 images of .*l.csv are missing from .*p.csv: b',
  ),
  'unlabelled': (
    (['image', 'score'], [['a', 0.1], ['b', 0.1], ['c', 0.1]]),
    None,
    r'1 of 3 images of .*p.csv are missing from .*l.csv: c',
  ),
  'above one': (
    (['image', 'score'], [['a', 0.1], ['b', 1.2]]),
    None,
    r'p.csv, line 3 \(b\): score is 1.2, not a probability',
  ),
  'nan': (
    (['image', 'score'], [['a', 'nan'], ['b', 0.2]]),
    None,
    r'line 2 \(a\): score is nan, not a probability',
  ),
  'words': (
    (['image', 'score'], [['a', 'high'], ['b', 0.2]]),
    None,
    r"line 2 \(a\): score is 'high', not a number",
  ),
  'column': (
    (['image', 'probabilty'], [['a', 0.1], ['b', 0.2]]),
    None,
    r"no column of scores .*nearest is 'probabilty'",
  ),
  'half of the grades': (
    (['image', 'Good', 'Rejected', 'Usable'], [['a', 0.1, 0.2, 0.7]]),
    None,
    r"no column of scores .*'?Reject.*nearest is 'Rejected'",
  ),
  'no names': (
    (['picture', 'score'], [['a', 0.1]]),
    None,
    r'no column of image names',
  ),
  'same stem': (
    (['image', 'score'], [['a.png', 0.1], ['a.jpg', 0.2], ['b', 0.1]]),
    None,
    r"p.csv has 'a' twice",
  ),
  'label': (
    None,
    (['image', 'quality'], [['a', 0], ['b', 7]]),
    r"l.csv, line 3 \(b\): quality is '7', none of 0, 1, 2",
  ),
  'mixed': (
    None,
    (['image', 'quality'], [['a', 'good'], ['b', 'inadequate']]),
    r'mixes grades',
  ),
  'empty': ((['image', 'score'], []), None, r'p.csv has no rows'),
}


@pytest.mark.parametrize('problem', PROBLEMS)
def test_problems_are_named(files, problem):
  scores, labels, message = PROBLEMS[problem]
  p_file, l_file, *_ = files(
    scores or (['image', 'score'], [['a', 0.1], ['b', 0.9]]),
    labels or (['image', 'quality'], [['a', 0], ['b', 1]]),
  )
  with pytest.raises(scoring.ScoringError, match=message):
    scoring.run(p_file, l_file, scoring.Options(resamples=10))


CELL = st.text(max_size=6) | st.sampled_from(
  ['0', '1', '0.5', 'a', 'b', '-1', 'nan', '1e400', '"', 'a.jpeg', '٣', 'good']
)


@settings(
  max_examples=80,
  deadline=None,
  suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
  st.lists(
    st.sampled_from(['image', 'score', 'quality', 'Good', 'Usable', 'Reject'])
    | CELL,
    min_size=1,
    max_size=4,
  ),
  st.lists(st.lists(CELL, max_size=4), max_size=4),
  st.booleans(),
)
def test_any_text_is_scored_or_refused(tmp_path, header, rows, raw):
  path = tmp_path / 'any.csv'
  if raw:
    text = '\n'.join(','.join(r) for r in [header, *rows])
    path.write_bytes(text.encode('utf-8', 'surrogatepass'))
  else:
    with open(path, 'w', newline='', errors='replace') as file:
      csv.writer(file).writerows([header, *rows])
  good = write(tmp_path / 'good.csv', ['image', 'quality', 'p'], [['a', 0, 0]])
  for predictions, labels in ((str(path), good), (good, str(path))):
    try:
      scoring.run(predictions, labels, scoring.Options(resamples=5))
    except scoring.ScoringError as error:
      assert '.csv' in str(error)


def test_command_says_what_is_wrong_in_its_last_line(files):
  p_file, l_file, *_ = files((['image', 'score'], [['x', 0.5]]))
  done = subprocess.run(
    [
      *(sys.executable, '-m', 'iqa_jax.score'),
      *(f'--predictions={p_file}', f'--labels={l_file}'),
    ],
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 1
  assert 'missing from' in done.stderr.splitlines()[-1]
  assert 'Traceback' not in done.stderr
