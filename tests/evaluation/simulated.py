"""Simulated photographs' labels and scores: what evaluation is tested on.

Nothing here comes from a network or a photograph.
"""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import json
from unittest import mock

import numpy as np
from scipy import special

from iqa_jax import config as config_lib
from iqa_jax import labels, run_directory
from iqa_jax.evaluation.predictions import Predictions
from iqa_jax.tasks import Task


class Source:
  """The part of data.source.Source that evaluation reads."""

  def __init__(self, count: int, seed: int = 0):
    rng = np.random.default_rng(seed)
    criteria = (rng.random((count, 4)) < [0.12, 0.03, 0.1, 0.02]).astype(int)
    nikon = np.repeat(rng.random((count + 1) // 2) < 0.35, 2)[:count]
    criteria[:, 0] |= nikon & (rng.random(count) < 0.12)
    quality = criteria.max(axis=1)
    width = rng.choice([1024, 1600, 2304, 3872], count)
    self.criteria_truth = criteria
    self.table = {
      'image_id': np.array([f'simulated_{i:05d}' for i in range(count)]),
      'dataset': np.full(count, 'simulated'),
      'patient_id': np.array([f'patient_{i // 2:05d}' for i in range(count)]),
      'camera': np.where(nikon, 'NIKON NF5050', 'Canon CR'),
      'eye': np.where(np.arange(count) % 2, 'right', 'left'),
      'grade': np.where(quality, rng.integers(1, 3, count), 0),
      'quality': quality,
      'criteria': criteria,
      'field_found': (rng.random(count) > 0.03).astype(int),
      'width': width,
      'height': (width * 0.75).astype(int),
    }
    self.description = [
      {
        'dataset': 'simulated',
        'version': '1.0.0',
        'builder_config': 'test',
        'splits': {'train': count},
        'left_out': 0,
        'fingerprint': '',
      }
    ]


def splits(count: int) -> dict[str, np.ndarray]:
  """Returns half for training, a quarter for validation and for testing."""
  a, b = count // 2 // 2 * 2, 3 * count // 4 // 2 * 2
  index = np.arange(count)
  return {'train': index[:a], 'validation': index[a:b], 'test': index[b:]}


def logits(source: Source, task: str, seed: int = 1) -> np.ndarray:
  """Returns logits [n, k] that know the labels, with noise and overconfidence.

  Faults of illumination are the hardest to see, and Nikon's are harder.
  """
  rng = np.random.default_rng(seed)
  table = source.table
  strength = np.array([5.0, 1.5, 6.0, 3.5])
  evidence = (table['criteria'] * strength).max(axis=1) - 2.2
  evidence = evidence * np.where(table['camera'] == 'Canon CR', 1, 0.6)
  evidence = 1.6 * (evidence + rng.normal(0, 1.3, len(evidence)))
  if task == 'quality':
    return np.stack([-evidence / 2, evidence / 2], axis=1).astype(np.float32)
  if task == 'grade':
    worse = np.where(table['grade'] == 2, 2.0, -1.0) + rng.normal(
      0, 1.5, len(evidence)
    )
    return np.stack(
      [-evidence / 2, evidence / 2, evidence / 2 + worse], axis=1
    ).astype(np.float32)
  noise = rng.normal(0, 1.3, table['criteria'].shape)
  return (table['criteria'] * strength - 3.2 + noise).astype(np.float32)


def predictions(columns: Mapping[str, np.ndarray]) -> Predictions:
  """Returns the record of columns; verdicts are numbers, what lacks is 0."""
  n = len(columns['quality'])
  given = dict.fromkeys(
    ('image_id', 'patient_id', 'p_inadequate', 'uncertain'), np.zeros(n)
  )
  names = np.array(['unknown', *labels.QUALITY])
  return Predictions.from_columns(
    {**given, **columns, 'verdict': names[columns['verdict'] + 1]}
  )


@contextlib.contextmanager
def no_network() -> Iterator[Callable]:
  """Makes `evaluate` find simulated logits where a network would predict.

  Yields make(folder, task, count) -> (config, workdir, source, splits).
  """
  from iqa_jax import inference, trained
  from iqa_jax.data import pipeline
  from iqa_jax.data import plan as plan_lib
  from iqa_jax.evaluation import looks

  # There are no photographs to look at.
  unseen = {'not_fundus': None, 'unlike_training': None}
  stored: dict = {}

  def make(folder, task_name='quality', count=800, seed=1, **changes):
    source = Source(count)
    config = config_lib.default()
    config.task.name = task_name
    config.eval.bootstrap = 100
    config.explain.examples = 0
    for key, value in changes.items():
      config.eval[key] = value
    task = Task.from_config(config)
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
      ''.join(json.dumps(line) + '\n' for line in HISTORY),
    )
    stored[str(folder)] = (task, logits(source, task_name, seed), config)
    return config, folder, source, splits(count)

  def load(workdir):
    task, found, config = stored[str(workdir)]
    saved = run_directory.load_model(workdir)
    return trained.Trained(
      model=None,
      variables={'logits': found},
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

  with (
    mock.patch.object(trained, 'load', load),
    mock.patch.object(inference, 'predict', predict),
    mock.patch.object(plan_lib, 'plan_eval', lambda index: index),
    mock.patch.object(pipeline, 'batches', lambda source, plan, **_: plan),
    mock.patch.object(looks, 'measure', lambda *_: unseen),
  ):
    yield make


def extreme(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
  """Returns labels [n] and scores [n] as no sensible system gives them."""
  n = int(rng.integers(1, 60))
  truth = rng.integers(0, 2, n)
  truth[:] = (
    truth,
    np.zeros(n),
    np.ones(n),
    rng.random(n) < 0.03,
    rng.random(n) > 0.03,
  )[rng.integers(5)]
  kinds = [
    np.zeros(n),
    np.ones(n),
    np.full(n, rng.random()),
    rng.integers(0, 2, n),
    truth,
    1 - truth,
    rng.random(n) * 5e-324,
    rng.random(n) * 1e-310,
    1 - rng.random(n) * 1e-15,
    np.round(rng.random(n), 1),
    special.expit(rng.normal(0, 60, n)),
    0.5 + rng.random(n) * 1e-16,
    np.where(truth, 0.5 + 1e-16 * rng.random(n), 0.5),
    10.0 ** rng.uniform(-320, 0, n),
  ]
  first, second = rng.integers(0, len(kinds), 2)
  some = rng.random(n) < rng.choice([0.02, 0.5, 1.0])
  return truth, np.where(some, kinds[first], kinds[second]).astype(float)


HISTORY = [
  {
    'phase': 'head' if epoch <= 4 else 'all',
    'epoch': epoch,
    'step': 30 * epoch,
    'learning_rate': 1e-3 if epoch <= 4 else 1e-4,
    'train_loss': 0.6 * 0.85**epoch + 0.05,
    'train_accuracy': 0.98 - 0.35 * 0.75**epoch,
    'validation_loss': 0.6 * 0.87**epoch
    + 0.12
    + 0.002 * max(epoch - 9, 0) ** 2,
    'validation_accuracy': 0.94 - 0.3 * 0.78**epoch,
    'validation_auc': 0.97 - 0.3 * 0.75**epoch,
    'validation_balanced_accuracy': 0.92 - 0.35 * 0.78**epoch,
    'best': epoch <= 10,
  }
  for epoch in range(1, 15)
]

assert labels.CRITERIA == ('focus', 'illumination', 'image_field', 'artifacts')
