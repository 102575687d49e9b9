"""The evaluation of a run, from logits to files."""

import csv
import decimal
import json

import numpy as np
import pytest
from scipy import special
from sklearn import metrics as sk

from iqa_jax import labels, run_directory, trained
from iqa_jax.evaluation import evaluate, scoring
from iqa_jax.judging import operating_record
from iqa_jax.studies import photographs as photographs_lib
from iqa_jax.studies import review
from iqa_jax.studies import subject as subject_lib
from tests.evaluation import simulated


@pytest.fixture(autouse=True)
def no_report(monkeypatch):
  """Leaves figures to test_report."""
  monkeypatch.setattr(evaluate.report, 'write', lambda *_, **__: None)


def read(path):
  with open(path, newline='') as file:
    return list(csv.DictReader(file))


@pytest.mark.parametrize('task', ['quality', 'grade', 'criteria'])
def test_every_image_once_and_measures_of_the_file(simulated_run, task):
  config, folder, source, splits = simulated_run(task)
  result = evaluate.run(config, folder, source, splits)
  assert json.loads((folder / 'metrics.json').read_text()) == result
  rows = read(folder / 'predictions.csv')
  index = np.concatenate([splits['validation'], splits['test']])
  expected = source.table['image_id'][index]
  assert sorted(r['image_id'] for r in rows) == sorted(expected)
  # Every number of metrics.json can be had from the file alone.
  test = [r for r in rows if r['split'] == 'test']
  truth = np.array([int(r['quality']) for r in test])
  p = np.array([float(r['p_calibrated']) for r in test])
  called = np.array([r['verdict'] == 'inadequate' for r in test])
  measured = result['splits']['test']['verdict']
  values = {k: v['value'] for k, v in measured['metrics'].items()}
  assert values['auc'] == pytest.approx(sk.roc_auc_score(truth, p))
  assert values['sensitivity'] == pytest.approx(sk.recall_score(truth, called))
  assert values['brier'] == pytest.approx(sk.brier_score_loss(truth, p))
  assert measured['confusion'] == sk.confusion_matrix(truth, called).tolist()
  assert (p >= result['operating_point']['threshold']).tolist() == (
    called.tolist()
  )
  saved = run_directory.read_json(folder / 'model' / 'model.json')
  for key in ('calibration', 'operating_point', 'uncertain_band'):
    assert saved[key] == result[key]


@pytest.mark.parametrize('task', ['quality', 'grade', 'criteria'])
def test_saturated_probabilities_are_still_ranked(
  simulated_run, monkeypatch, task
):
  plain = simulated.logits
  monkeypatch.setattr(simulated, 'logits', lambda *a: 30 * plain(*a))
  config, folder, source, splits = simulated_run(task)
  result = evaluate.run(config, folder, source, splits)
  test = splits['test']
  logits = (30 * plain(source, task)[test]).astype(np.float64)
  if task == 'quality':
    odds = logits[:, 1] - logits[:, 0]
  elif task == 'grade':
    odds = special.logsumexp(logits[:, 1:], axis=1) - logits[:, 0]
  else:
    odds = np.array([_noisy_or_log_odds(row) for row in logits])
  rows = [r for r in read(folder / 'predictions.csv') if r['split'] == 'test']
  written = np.array([float(r['log_odds']) for r in rows])
  np.testing.assert_allclose(written, odds, rtol=1e-12)
  truth = source.table['quality'][test]
  expected = sk.roc_auc_score(truth, odds)
  single = special.expit(odds.astype(np.float32))
  assert abs(expected - sk.roc_auc_score(truth, single)) > 1e-4
  measured = result['splits']['test']
  for found in (
    measured['verdict']['metrics'],
    measured['breakdowns']['overall'],
  ):
    assert found['auc']['value'] == pytest.approx(expected, abs=1e-12)
  path = str(folder / 'predictions.csv')
  again = scoring.run(path, path, scoring.Options(resamples=5))['splits'][
    'scored'
  ]
  assert again['verdict']['metrics']['auc']['value'] == pytest.approx(expected)


def _noisy_or_log_odds(logits):
  """Returns the log-odds of any fault, by the definition in 400 digits."""
  with decimal.localcontext(prec=400):
    adequate = decimal.Decimal(1)
    for logit in logits:
      adequate /= 1 + decimal.Decimal(float(logit)).exp()
    return float(((1 - adequate) / adequate).ln())


def test_test_labels_change_nothing_that_is_chosen(simulated_run):
  config, folder, source, splits = simulated_run()
  before = evaluate.run(config, folder, source, splits)
  source.table['quality'][splits['test']] ^= 1
  after = evaluate.run(config, folder, source, splits)
  for key in ('calibration', 'operating_point', 'uncertain_band'):
    assert before[key] == after[key]
  metrics = (r['splits']['test']['verdict']['metrics'] for r in (before, after))
  first, second = (m['auc']['value'] for m in metrics)
  assert first + second == pytest.approx(1)


def test_elsewhere_the_model_is_judged_as_it_was_stored(
  simulated_run, tmp_path
):
  config, folder, source, splits = simulated_run()
  first = evaluate.run(config, folder, source, splits)
  shifted = {**splits, 'validation': splits['validation'][:100]}
  second = evaluate.run(
    config, folder, source, shifted, output=tmp_path / 'other'
  )
  assert second['operating_point'] == first['operating_point']
  assert (tmp_path / 'other' / 'metrics.json').is_file()
  saved = run_directory.read_json(folder / 'metrics.json')
  assert saved['splits']['validation']['n'] == len(splits['validation'])


def test_flip_averaging_goes_with_the_operating_point(simulated_run, tmp_path):
  config, folder, source, splits = simulated_run(flip_tta=True)
  evaluate.run(config, folder, source, splits)
  saved = run_directory.read_json(folder / 'model' / 'model.json')
  assert saved['operating_point']['flip_tta'] is True
  # Whatever the configuration of the other place says.
  config.eval.flip_tta = False
  other = tmp_path / 'other'
  result = evaluate.run(config, folder, source, splits, output=other)
  assert result['model']['flip_tta'] is True
  assert {r['spread'] for r in read(other / 'predictions.csv')} != {'0.0'}
  # Chosen anew, it is of what it was chosen on.
  result = evaluate.run(config, folder, source, splits)
  assert result['model']['flip_tta'] is False
  assert result['operating_point']['flip_tta'] is False


def test_an_ensemble_averages_probabilities_and_tells_the_spread(
  simulated_run, tmp_path
):
  config, folder, source, splits = simulated_run(seed=1, workdir='a')
  _, other, _, _ = simulated_run(seed=2, workdir='b')
  rows = {}
  for name, workdir, members in (
    ('a', folder, ()),
    ('b', other, ()),
    ('both', folder, (str(other),)),
  ):
    evaluate.run(
      config,
      workdir,
      source,
      splits,
      ensemble=members,
      output=tmp_path / f'out_{name}',
    )
    rows[name] = read(tmp_path / f'out_{name}' / 'predictions.csv')
  p = {
    k: np.array([float(r['p_inadequate']) for r in v]) for k, v in rows.items()
  }
  np.testing.assert_allclose(p['both'], (p['a'] + p['b']) / 2, atol=1e-7)
  spread = np.array([float(r['spread']) for r in rows['both']])
  np.testing.assert_allclose(spread, np.abs(p['a'] - p['b']) / 2, atol=1e-6)
  odds = {
    k: np.array([float(r['log_odds']) for r in v]) for k, v in rows.items()
  }
  mean = (special.expit(odds['a']) + special.expit(odds['b'])) / 2
  np.testing.assert_allclose(odds['both'], special.logit(mean), rtol=1e-8)
  # A single model's record is never that of an ensemble.
  saved = run_directory.read_json(folder / 'model' / 'model.json')
  assert 'operating_point' not in saved


class Known(subject_lib.Subject):
  """A network whose logits are known of photographs that hold their index."""

  def __init__(self, loaded):
    self.trained, self.methods, self.layer = loaded, ('gradcam',), 'map'
    self.placement = None

  def logits(self, images, variables=None):
    high, low = images[:, 0, 0, :2].astype(int).T
    return self.trained.variables['logits'][256 * high + low]

  def maps(self, images, targets, variables=None):
    return {'gradcam': np.zeros((len(images), 2, 2), np.float32)}

  def constants(self):
    return {}


@pytest.mark.parametrize('task', ['quality', 'criteria'])
def test_the_review_of_criteria_has_the_same_recalls(simulated_run, task):
  config, folder, source, splits = simulated_run(
    task, operating_point='sensitivity', operating_target=0.8
  )
  measured = evaluate.run(config, folder, source, splits)['splits']['test']
  test = splits['test']
  table = {key: values[test] for key, values in source.table.items()}
  images = np.zeros((len(test), 8, 8, 3), np.uint8)
  images[:, 0, 0, :2] = np.stack([test // 256, test % 256], axis=1)
  photographs = photographs_lib.Photographs(
    ids=table['image_id'],
    images=images,
    inside=np.ones((len(test), 8, 8), bool),
    quality=table['quality'],
    grade=table['grade'],
    criteria=table['criteria'],
    eyes=table['eye'],
    landmarks=np.full((len(test), 5), 4.0),
    patients=table['patient_id'],
    skipped=(),
    source='simulated',
  )
  loaded = trained.load(folder)
  groups = review.run(Known(loaded), photographs)[0]['groups']
  expected = {'adequate': measured['verdict']['metrics']['specificity']}
  if task == 'criteria':
    for name in labels.CRITERIA:
      found = measured['criteria'][name]
      assert found['threshold'] != 0.5
      expected[name] = found['metrics']['sensitivity']
  else:
    for row in measured['breakdowns']['groups']:
      if (row['breakdown'], row['group']) == ('fault', 'none'):
        expected['adequate'] = row['specificity']
  for name, entry in expected.items():
    group = groups[name]
    assert group['recall'] == pytest.approx(entry['value']), name
    assert group['low'] == pytest.approx(entry['low']), name
    assert group['high'] == pytest.approx(entry['high']), name


def test_stored_points_of_criteria_judge_elsewhere(simulated_run, tmp_path):
  config, folder, source, splits = simulated_run('criteria')
  first = evaluate.run(config, folder, source, splits)
  shifted = {**splits, 'validation': splits['validation'][:100]}
  second = evaluate.run(config, folder, source, shifted, output=tmp_path / 'o')
  key = operating_record.CRITERIA_POINTS
  assert set(first[key]) == set(labels.CRITERIA)
  assert second[key] == first[key]


def test_members_of_different_tasks_are_refused(simulated_run):
  config, folder, source, splits = simulated_run('quality', workdir='a')
  _, other, _, _ = simulated_run('grade', workdir='b')
  with pytest.raises(run_directory.RunDirectoryError, match='one task'):
    evaluate.run(config, folder, source, splits, ensemble=[str(other)])


def test_scores_that_are_not_numbers_are_counted_not_hidden(
  simulated_run, monkeypatch
):
  from iqa_jax import inference

  config, folder, source, splits = simulated_run()
  predict = inference.predict

  def broken(loaded, batches, **options):
    rows = predict(loaded, batches, **options)
    rows['logits'][:7] = np.nan
    return rows

  # Undone before the fixture's own, which otherwise would stay for good.
  with monkeypatch.context() as patched:
    patched.setattr(inference, 'predict', broken)
    result = evaluate.run(config, folder, source, splits)
  test = result['splits']['test']
  assert test['n_not_finite'] == 7
  assert test['verdict']['n'] == test['n'] - 7
  rows = [
    r for r in read(folder / 'predictions.csv') if r['verdict'] == 'unknown'
  ]
  assert len(rows) == 14 and all(r['uncertain'] == '1' for r in rows)


@pytest.mark.parametrize('task', ['quality', 'grade', 'criteria'])
@pytest.mark.parametrize('label', [0, 1])
def test_a_test_split_of_one_class_is_no_crash(simulated_run, task, label):
  config, folder, source, splits = simulated_run(task, count=400)
  kept = source.table['quality'][splits['test']] == label
  splits['test'] = splits['test'][kept][:5]
  result = evaluate.run(config, folder, source, splits)
  auc = result['splits']['test']['verdict']['metrics']['auc']
  absent = 'inadequate' if label == 0 else 'adequate'
  assert auc['value'] is None and auc['note'] == f'no {absent} image'


def test_a_validation_split_of_one_class_says_what_it_could_not_choose(
  simulated_run,
):
  config, folder, source, splits = simulated_run(count=400)
  good = source.table['quality'][splits['validation']] == 0
  splits['validation'] = splits['validation'][good]
  result = evaluate.run(config, folder, source, splits)
  assert result['operating_point']['threshold'] == 0.5
  assert 'one class' in result['operating_point']['reason']
  assert 'one class' in result['calibration']['reason']


def test_a_temperature_at_its_bound_is_told_in_the_log_and_the_file(
  simulated_run, monkeypatch
):
  told = []
  monkeypatch.setattr(
    evaluate.logging, 'warning', lambda text, *args: told.append(text % args)
  )
  config, folder, source, splits = simulated_run(calibration='temperature')
  validation = splits['validation']
  source.table['quality'][validation] ^= 1
  evaluate.run(config, folder, source, splits)
  saved = run_directory.read_json(folder / 'metrics.json')['calibration']
  assert saved['method'] == 'none' and 'above 20' in saved['reason']
  assert told == [f'not calibrated: {saved["reason"]}']
  for row in read(folder / 'predictions.csv'):
    assert row['p_calibrated'] == row['p_inadequate']


def test_without_validation_and_with_one_image(simulated_run):
  config, folder, source, splits = simulated_run(count=400)
  splits['validation'] = splits['validation'][:0]
  splits['test'] = splits['test'][:1]
  result = evaluate.run(config, folder, source, splits)
  assert list(result['splits']) == ['test']
