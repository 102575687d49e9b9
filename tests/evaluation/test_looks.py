"""Tests of how many photographs a report says look like no fundus."""

import types

import numpy as np
import pytest

from iqa_jax.evaluation import looks
from iqa_jax.judging import familiar, features
from iqa_jax.photograph import prepare
from iqa_jax.simulation import cameras, photograph


def _source(images):
  table = {'patient_id': np.array([str(i) for i in range(len(images))])}
  return types.SimpleNamespace(table=table, images=np.stack(images))


@pytest.fixture
def batches(monkeypatch):
  """Yields images of a source, two a batch, the last padded."""

  def batches(source, plan, *, image_size, batch_size):
    assert image_size == 128 and batch_size
    for begin in range(0, len(plan.index), 2):
      images = source.images[plan.index[begin : begin + 2]]
      mask = np.arange(2) < len(images)
      padded = np.concatenate([images, images[:1]])[:2]
      yield {'image': padded, 'mask': mask.astype(np.float32)}

  monkeypatch.setattr(looks.pipeline, 'batches', batches)


def _drawn(seed, style):
  return photograph.draw(seed, 128, broken=(), style=style).image


def test_strangers_are_counted_and_fundus_photographs_are_not(batches):
  rng = np.random.default_rng(0)
  noise = rng.integers(0, 256, (128, 128, 3), np.uint8)
  images = [*(_drawn(i, 0) for i in range(4)), noise]
  found = looks.measure(_source(images), np.arange(5), 128, None)
  assert found['unlike_training'] is None
  assert found['not_fundus']['n'] == 5
  assert found['not_fundus']['value'] == pytest.approx(0.2)
  assert found['not_fundus']['low'] < 0.2 < found['not_fundus']['high']


def test_photographs_unlike_those_of_training_are_counted(batches):
  known = [_drawn(i, 0) for i in range(30)]
  rows = [
    features.features(image, prepare.with_field(image)[..., 3] > 0)
    for image in known
  ]
  record = familiar.fit(np.stack(rows))
  rng = np.random.default_rng(1)
  inside = prepare.with_field(known[0])[..., 3] > 0
  green = cameras.retake(
    known[0], inside, cameras.draw(rng, cameras.UNSEEN), rng
  )[0]
  found = looks.measure(_source([*known[:3], green]), np.arange(4), 128, record)
  assert found['unlike_training']['value'] == pytest.approx(0.25)


def test_of_many_photographs_some_are_looked_at(batches, monkeypatch):
  monkeypatch.setattr(looks, '_MOST', 3)
  images = [_drawn(0, 0)] * 10
  found = looks.measure(_source(images), np.arange(10), 128, None)
  assert found['not_fundus']['n'] == 3
