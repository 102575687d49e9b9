"""A run from end to end in one process: history, best model, early stop."""

import csv
import json
import shutil

import jax
import numpy as np
import pytest
import sklearn.metrics

from iqa_jax import config as config_lib
from iqa_jax import inference, run_directory, trained
from iqa_jax.tasks import Task
from iqa_jax.training import history as history_lib
from iqa_jax.training import loop
from iqa_jax.training import run as run_lib

COUNT, VALIDATION = 20, 6


def make_config(*phases, **train):
  c = config_lib.default()
  c.data.image_size = 32
  c.train.batch_size = c.eval.batch_size = 8
  c.model.name, c.model.width, c.model.depth = 'vgg16', 0.06, 0.1
  c.train.checkpoint_seconds = 0.0
  c.train.phases = phases or (
    config_lib.phase(learns='head', epochs=3, learning_rate=1e-2),
    config_lib.phase(learns='block5+head', epochs=1),
  )
  for key, value in train.items():
    c.train[key] = value
  return c


def train(memory, workdir, config):
  source = memory.Source(COUNT)
  workdir.mkdir(exist_ok=True)
  loop.train(config, workdir, source, memory.split(COUNT, VALIDATION))
  return source


def history(workdir):
  text = (workdir / 'history.jsonl').read_text()
  return [json.loads(line) for line in text.splitlines()]


def test_a_run_leaves_history_and_the_best_model(memory, tmp_path):
  config = make_config()
  source = train(memory, tmp_path, config)
  records = history(tmp_path)
  assert [r['phase'] for r in records] == ['head'] * 3 + ['block5+head']
  assert [r['epoch'] for r in records] == [1, 2, 3, 4]
  assert [r['step'] for r in records] == [2, 4, 6, 8]
  with open(tmp_path / 'history.csv') as file:
    rows = list(csv.DictReader(file))
  assert [list(map(str, r.values())) for r in records] == [
    list(row.values()) for row in rows
  ]
  assert any((tmp_path / 'tensorboard').iterdir())
  # The saved model is that of the best epoch, and gives its measures again.
  best = [r for r in records if r['best']][-1]
  top = max((r['validation_auc'], -r['validation_loss']) for r in records)
  assert (best['validation_auc'], -best['validation_loss']) == top
  loaded = trained.load(tmp_path)
  assert loaded.record['epoch'] == best['epoch']
  assert loaded.record['outputs'] == ['adequate', 'inadequate']
  indices = memory.split(COUNT, VALIDATION)['validation']
  rows = inference.predict(
    loaded,
    memory.batches(
      source,
      memory.plan_eval(indices),
      image_size=32,
      batch_size=5,
    ),
  )
  measured = history_lib.measure(loaded.task, rows, source.table)
  for key, value in measured.items():
    assert value == pytest.approx(best[f'validation_{key}'], rel=1e-5)


def test_the_last_epoch_is_kept_on_request(memory, tmp_path):
  # The last phase is far too fast, so that an earlier epoch is the best.
  config = make_config(
    config_lib.phase(learns='head', epochs=2, learning_rate=1e-2),
    config_lib.phase(learns='head', epochs=1, learning_rate=10.0),
  )
  config.eval.select_by = 'last'
  train(memory, tmp_path, config)
  records = history(tmp_path)
  assert trained.load(tmp_path).record['epoch'] == records[-1]['epoch']
  losses = [r['validation_loss'] for r in records]
  assert min(losses) < losses[-1]  # else this shows nothing


def test_a_finished_run_is_left_as_it_is(memory, tmp_path):
  config = make_config()
  train(memory, tmp_path, config)
  model = tmp_path / 'model' / 'model.json'
  before = model.read_bytes(), model.stat().st_mtime_ns
  source = train(memory, tmp_path, config)
  assert (model.read_bytes(), model.stat().st_mtime_ns) == before
  assert source.reads == 0


def test_resumed_from_the_checkpoint_before_it_is_the_same_run(
  memory, tmp_path, monkeypatch
):
  """The history is cut back to what the older checkpoint knew."""
  config = make_config()
  train(memory, tmp_path / 'a', config)
  train(memory, tmp_path / 'b', config)
  saved = sorted((tmp_path / 'b' / 'checkpoints').iterdir())
  shutil.rmtree(saved[-1])
  (tmp_path / 'b' / 'history.jsonl').write_text('nonsense')
  source = train(memory, tmp_path / 'b', config)
  assert source.reads > 0
  assert history(tmp_path / 'a') == history(tmp_path / 'b')
  digests = [run_directory.load_model(tmp_path / x).digest for x in 'ab']
  assert digests[0] == digests[1]


def test_training_accuracy_is_that_of_the_training_split(memory, tmp_path):
  """Of a network that does not change, seen in whichever batches."""
  config = make_config(
    config_lib.phase(learns='head', epochs=2, learning_rate=0.0)
  )
  config.data.augment.flip = False
  source = train(memory, tmp_path, config)
  rows = inference.predict(
    trained.load(tmp_path),
    memory.batches(
      source,
      memory.plan_eval(memory.split(COUNT, VALIDATION)['train']),
      image_size=32,
      batch_size=14,
    ),
  )
  expected = history_lib.measure(Task(), rows, source.table)['accuracy']
  assert [r['train_accuracy'] for r in history(tmp_path)] == [expected] * 2


def test_a_run_of_an_older_version_goes_on(memory, tmp_path):
  """Its history has no accuracy, and nor do the epochs it had finished."""
  config = make_config()
  train(memory, tmp_path, config)
  latest = max((tmp_path / 'checkpoints').iterdir(), key=lambda p: int(p.name))
  shutil.rmtree(latest)
  for file in tmp_path.glob('checkpoints/*/record/metadata'):
    record = json.loads(file.read_text())
    progress = record['progress']
    del progress['known'], progress['right']
    for epoch in (progress['best'], *progress['history']):
      del epoch['train_accuracy'], epoch['validation_accuracy']
    file.write_text(json.dumps(record))
  train(memory, tmp_path, config)
  *before, last = history(tmp_path)
  assert all('train_accuracy' not in r for r in before)
  with open(tmp_path / 'history.csv') as file:
    rows = list(csv.DictReader(file))
  assert [r['train_accuracy'] for r in rows] == (
    [''] * 3 + [str(last['train_accuracy'])]
  )
  assert [r['epoch'] for r in rows] == ['1', '2', '3', '4']


def test_early_stopping_ends_a_phase(memory, tmp_path):
  config = make_config(
    # Nothing changes, so nothing gets better after the first epoch.
    config_lib.phase(learns='head', epochs=9, learning_rate=0.0),
    config_lib.phase(learns='block5+head', epochs=9, learning_rate=0.0),
    early_stop=2,
  )
  train(memory, tmp_path, config)
  assert [r['phase'] for r in history(tmp_path)] == (
    ['head'] * 3 + ['block5+head'] * 2
  )
  # And it is over for good.
  assert train(memory, tmp_path, config).reads == 0


def test_epochs_shorter_than_the_interval_save_once_a_phase(
  memory, tmp_path, monkeypatch
):
  saved = []
  save = loop.checkpoints.Store.save

  def note(store, state, record):
    saved.append(record['progress']['total_epochs'])
    save(store, state, record)

  monkeypatch.setattr(loop.checkpoints.Store, 'save', note)
  config = make_config(
    config_lib.phase(learns='head', epochs=3),
    config_lib.phase(learns='block5+head', epochs=2),
    checkpoint_seconds=1e9,
  )
  train(memory, tmp_path, config)
  assert saved == [3, 5]
  # What is finished stays so.
  assert train(memory, tmp_path, config).reads == 0


def test_a_loss_that_is_not_finite_names_the_step(memory, tmp_path):
  config = make_config(
    config_lib.phase(
      learns='all', epochs=4, learning_rate=1e30, optimizer='sgd'
    ),
    checkpoint_every=1,
  )
  with pytest.raises(loop.TrainingError, match=r'at step \d+: ') as e:
    train(memory, tmp_path, config)
  step = int(str(e.value).split('at step ')[1].split(':')[0])
  source = memory.Source(COUNT)
  splits = memory.split(COUNT, VALIDATION)
  # The rate is to blame, and no photograph.
  assert 'image_' not in str(e.value)
  # No checkpoint holds what came of it.
  run = run_lib.Run(config, tmp_path, source, splits)
  with loop.checkpoints.Store(tmp_path) as store:
    if (tmp_path / 'checkpoints').iterdir():
      state, _ = run_lib.start(run, store)
      assert state.finite and int(state.step) < step
      for leaf in jax.tree.leaves(state.params):
        assert np.isfinite(leaf).all()


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'eval.select_by': 'luck'}, 'select_by=.luck. is none of'),
    ({'train.accumulate': 0}, 'accumulate=0 is below 1'),
    ({'train.batch_size': 0}, 'batch_size=0'),
    ({'task.class_weights': 'heavy'}, 'none of none, balanced'),
  ],
)
def test_wrong_fields_are_refused_before_training(
  memory, tmp_path, change, message
):
  config = make_config()
  config.update_from_flattened_dict(change)
  with pytest.raises(ValueError, match=message):
    train(memory, tmp_path, config)


def test_a_wrong_last_phase_is_refused_before_the_first(memory, tmp_path):
  config = make_config(
    config_lib.phase(learns='head'), config_lib.phase(learns='stage4')
  )
  with pytest.raises(ValueError, match=r'stage4.*matches no parameter'):
    train(memory, tmp_path, config)
  assert not (tmp_path / 'history.jsonl').exists()


def test_empty_splits_are_refused(memory, tmp_path):
  source = memory.Source(5)
  with pytest.raises(ValueError, match='validation split is empty'):
    loop.train(make_config(), tmp_path, source, memory.split(5, 0))


def test_measures_against_scikit_learn():
  rng = np.random.default_rng(0)
  # Ties; eighths, whose differences float32 holds exactly.
  logits = np.round(8 * rng.normal(size=(40, 2))).astype(np.float32) / 8
  quality = rng.integers(-1, 2, 60)
  index = rng.permutation(60)[:40]
  task = Task()
  rows = {
    'index': index,
    'logits': logits,
    'p_inadequate': np.asarray(task.p_inadequate(logits)),
  }
  table = {
    'quality': quality,
    'grade': quality * 2,
    'criteria': np.zeros((60, 4), int),
  }
  found = history_lib.measure(task, rows, table)
  truth = quality[index]
  known = truth >= 0
  p = rows['p_inadequate']
  assert found['auc'] == pytest.approx(
    sklearn.metrics.roc_auc_score(truth[known], p[known])
  )
  assert found['accuracy'] == pytest.approx(
    sklearn.metrics.accuracy_score(truth[known], logits[known].argmax(1))
  )
  assert found['balanced_accuracy'] == pytest.approx(
    sklearn.metrics.balanced_accuracy_score(truth[known], p[known] >= 0.5)
  )
  assert found['loss'] == pytest.approx(
    sklearn.metrics.log_loss(truth[known], p[known]), rel=1e-5
  )
  # Probabilities that are all 0 or 1 in float32 are ranked as before.
  sharp = {
    **rows,
    'logits': 256 * logits,
    'p_inadequate': np.asarray(task.p_inadequate(256 * logits)),
  }
  assert len(np.unique(sharp['p_inadequate'])) < len(np.unique(p))
  assert history_lib.measure(task, sharp, table)['auc'] == found['auc']
  one_class = history_lib.measure(
    task, rows, {**table, 'quality': np.ones(60, int)}
  )
  assert one_class['auc'] is None and one_class['loss'] > 0
