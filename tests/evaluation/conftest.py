"""A simulated run: evaluation without a network."""

import json

import numpy as np
import pytest

from iqa_jax import config as config_lib
from iqa_jax import run_directory
from iqa_jax.tasks import Task
from tests.evaluation import simulated


@pytest.fixture
def simulated_run(tmp_path, monkeypatch):
  """Returns make(task, count) -> (config, workdir, source, splits).

  `evaluate` then finds simulated logits where a network would predict.
  """
  from iqa_jax import inference, trained
  from iqa_jax.data import pipeline
  from iqa_jax.data import plan as plan_lib
  from iqa_jax.evaluation import looks

  def make(task_name='quality', count=800, seed=1, workdir='run', **changes):
    source = simulated.Source(count)
    config = config_lib.default()
    config.task.name = task_name
    config.eval.bootstrap = 100
    config.explain.examples = 0
    for key, value in changes.items():
      config.eval[key] = value
    task = Task.from_config(config)
    folder = tmp_path / workdir
    logits = simulated.logits(source, task_name, seed)
    run_directory.save_model(
      folder,
      {'params': {'w': np.full(1, seed, np.float32)}},
      {
        'config': json.loads(config_lib.to_json(config)),
        'outputs': list(task.outputs),
        'image_size': 32,
        'epoch': 3,
        'step': 30,
        'source': {},
      },
    )
    run_directory.write_text(folder / 'config.json', config_lib.to_json(config))
    run_directory.write_text(
      folder / 'history.jsonl',
      ''.join(json.dumps(line) + '\n' for line in simulated.HISTORY),
    )
    stored[str(folder)] = (task, logits, config)
    return config, folder, source, simulated.splits(count)

  stored: dict = {}

  def load(workdir):
    task, logits, config = stored[str(workdir)]
    saved = run_directory.load_model(workdir)
    return trained.Trained(
      model=None,
      variables={'logits': logits},
      task=task,
      config=config,
      record=saved.record,
      digest=saved.digest,
      image_size=32,
    )

  def predict(loaded, batches, *, flip_tta=False):
    index = batches
    found = loaded.variables['logits'][index]
    return {
      'index': index,
      'image_id': np.array([str(i) for i in index]),
      'logits': found,
      'p_inadequate': np.asarray(loaded.task.p_inadequate(found)),
      'spread': np.full(len(index), 0.01 * flip_tta, np.float32),
    }

  monkeypatch.setattr(trained, 'load', load)
  monkeypatch.setattr(inference, 'predict', predict)
  monkeypatch.setattr(plan_lib, 'plan_eval', lambda source, index: index)
  monkeypatch.setattr(pipeline, 'batches', lambda source, plan, **_: plan)
  # There are no photographs to look at.
  seen = {'not_fundus': None, 'unlike_training': None}
  monkeypatch.setattr(looks, 'measure', lambda *_: seen)
  return make
