"""Tests of what the network that learns from drawings is shown."""

import concurrent.futures

import jax
import numpy as np
import pytest

from iqa_jax.experiments import shown as shown_lib


@pytest.fixture(scope='module')
def shown():
  parts = [shown_lib.show(seed, 3, 96, 16, unseen=False) for seed in range(5)]
  return {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}


def test_what_is_shown_says_what_is_wrong_and_where(shown):
  assert shown['image'].shape == (15, 96, 96, 4)
  assert shown['fault'].shape == (15, 16, 16, 3)
  faulty = shown['cause'] == 2
  assert {*np.unique(shown['cause'])} == {0, 2}  # some good, some bad
  np.testing.assert_array_equal(shown['quality'], faulty.any(1))
  # A mask for every cause; where there is none, at most a fault's soft rim.
  most = shown['fault'].max((1, 2))
  assert most[faulty].min() > 60
  assert most[~faulty].max() < 160
  # Faults lie in the field of view, but for what resizing smears.
  field = shown['image'][..., 3].reshape(15, 16, 6, 16, 6).max((2, 4)) > 0
  assert shown['fault'][~field].max() < 64


def test_the_same_seed_shows_the_same(shown):
  again = shown_lib.show(1, 3, 96, 16, unseen=False)
  for name, values in again.items():
    np.testing.assert_array_equal(values, shown[name][3:6])
  other = shown_lib.show(1, 3, 96, 16, unseen=True)
  assert not np.array_equal(other['image'], again['image'])


def test_a_batch_turns_photograph_and_faults_together():
  rng = np.random.default_rng(0)
  image = np.zeros((1, 32, 32, 4), np.uint8)
  spot = rng.integers(0, 8, 2)
  image[0, 4 * spot[0] : 4 * spot[0] + 4, 4 * spot[1] : 4 * spot[1] + 4] = 200
  fault = np.zeros((1, 8, 8, 3), np.uint8)
  fault[0, spot[0], spot[1], 2] = 255
  held = {
    'image': image,
    'fault': fault,
    'cause': np.array([[0, 0, 2]], np.int8),
    'quality': np.array([1], np.int32),
  }
  batch = shown_lib.batch(held, np.zeros(64, int), jax.random.key(0))
  lit = np.asarray(batch['image'])[0, ..., 0].reshape(64, 8, 4, 8, 4) > 0
  places = np.asarray(batch['fault'])[0, ..., 2] > 0
  np.testing.assert_array_equal(lit.all((2, 4)), places)
  assert len(np.unique(places.reshape(64, -1), axis=0)) == 4


def test_a_batch_is_toned_inside_the_field_and_mildly(shown):
  n = len(shown['image'])
  key = jax.random.key(3)
  batch = shown_lib.batch(shown, np.tile(np.arange(n), 20), key)
  image = np.asarray(batch['image'])[0].reshape(20, n, 96, 96, 4)
  inside = shown['image'][..., 3] > 127
  # However a picture was turned, its field holds as many pixels.
  np.testing.assert_array_equal(
    (image[..., 3] > 127).sum((2, 3)), np.tile(inside.sum((1, 2)), (20, 1))
  )
  for i in range(n):
    field = image[:, i, ..., 3] > 127
    before = shown['image'][i, inside[i], :3].astype(float)
    pictures = [*zip(image[:, i], field, strict=True)]
    after = [x[f, :3].astype(float) for x, f in pictures]
    # The dark outside is as it was: the same values, turned.
    dark = np.sort(shown['image'][i][~inside[i]], axis=None)
    for x, f in pictures:
      np.testing.assert_array_equal(np.sort(x[~f], axis=None), dark)
    tones = np.array([x.mean() for x in after])
    assert len(np.unique(tones)) == 20  # each by another sensor
    assert np.abs(tones / before.mean() - 1).max() < 0.6
    # What is light and what is dark stays so.
    plain = shown['image'][i]
    for x in image[:, i]:
      for y in (plain, plain[:, ::-1], plain[::-1, ::-1], plain[::-1]):
        if np.array_equal(y[..., 3], x[..., 3]):
          light = x[..., :3].mean(-1)[y[..., 3] > 127]
          truth = y[..., :3].mean(-1)[y[..., 3] > 127]
          if np.corrcoef(light, truth)[0, 1] > 0.75:
            break
      else:
        raise AssertionError('a toned picture is no longer the one it was')


def test_drawing_is_never_far_ahead_of_learning(monkeypatch):
  submitted, wanted = [], []

  class Pool:
    def __init__(self, *_):
      pass

    def __enter__(self):
      return self

    def __exit__(self, *_):
      return None

    def shutdown(self, cancel_futures):
      assert cancel_futures

    def submit(self, _, job):
      seeds, times, size, cells, unseen = job
      assert (times, size, cells) == (1 if unseen else 6, 64, 8)
      submitted.append(seeds)
      return Errand(seeds, unseen)

  class Errand:
    def __init__(self, seeds, unseen):
      self.seeds, self.unseen = seeds, unseen

    def result(self):
      wanted.append(self.seeds)
      return {'seed': np.array(self.seeds), 'unseen': np.array([self.unseen])}

  monkeypatch.setattr(concurrent.futures, 'ProcessPoolExecutor', Pool)
  seen, waiting = [], []
  for shown in shown_lib.rounds(48 * 70 + 5, 6, 64, 8):
    seen.append(shown)
    waiting.append(len(submitted) - len(wanted))
  assert max(waiting) == shown_lib.AHEAD and waiting[-1] == 0
  assert seen[0]['unseen'].all() and not any(
    s['unseen'].any() for s in seen[1:]
  )
  assert [len(s['unseen']) for s in seen[1:]] == [16, 16, 16, 16, 7]
  trained = np.concatenate([s['seed'] for s in seen[1:]])
  first = shown_lib.FIRST
  np.testing.assert_array_equal(trained, first + np.arange(48 * 70 + 5))
