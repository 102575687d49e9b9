"""What is no fundus photograph, and what is unlike those of training."""

import importlib.resources

import numpy as np
from PIL import Image
import pytest

from iqa_jax import errors
from iqa_jax.judging import familiar, features, fundus
from iqa_jax.photograph import prepare
from iqa_jax.simulation import cameras, photograph, strangers

SIZE = 128
WEIGHTS = importlib.resources.files('iqa_jax') / 'bundled' / fundus.WEIGHTS


def rows_of(seeds, kind=cameras.FAMILIAR, **options):
  rows = []
  for seed in seeds:
    rng = np.random.default_rng([seed, 8])
    drawn = photograph.draw(9_000_000 + seed, SIZE, **options)
    image, inside, _ = cameras.retake(
      drawn.image, drawn.inside, cameras.draw(rng, kind), rng
    )
    rows.append(features.features(image, inside))
  return np.stack(rows)


def test_features_are_finite_whatever_is_seen():
  rng = np.random.default_rng(0)
  whole = np.ones((SIZE, SIZE), bool)
  for image in (
    np.zeros((SIZE, SIZE, 3), np.uint8),
    np.full((SIZE, SIZE, 3), 255, np.uint8),
    rng.integers(0, 256, (SIZE, SIZE, 3)).astype(np.uint8),
  ):
    for inside in (whole, np.zeros_like(whole)):
      row = features.features(image, inside)
      assert row.shape == (len(features.NAMES),) and row.dtype == np.float32
      assert np.isfinite(row).all()


def test_features_are_what_they_are_called():
  image = np.zeros((SIZE, SIZE, 3), np.uint8)
  image[:] = (180, 90, 45)
  image[: SIZE // 2] = (180, 90, 45)
  image[:, SIZE // 2 :] //= 2
  row = features.features(image, np.ones((SIZE, SIZE), bool))
  value = dict(zip(features.NAMES, row, strict=True))
  assert value['red_mean'] == pytest.approx(np.log(2), abs=0.08)
  assert value['light_mean'] == pytest.approx(0.75 * 105 / 255, abs=0.02)
  assert value['light_x'] > 0.05 > 0.01 > value['light_y']


def test_a_scorer_survives_its_file():
  rng = np.random.default_rng(0)
  k = len(features.NAMES)
  scorer = fundus.NotFundus(
    rng.normal(size=k).astype(np.float32),
    np.ones(k, np.float32),
    (
      rng.normal(size=(k, 4)).astype(np.float32),
      rng.normal(size=(4, 1)).astype(np.float32),
    ),
    (np.zeros(4, np.float32), np.zeros(1, np.float32)),
    0.75,
  )
  again = fundus.from_arrays(fundus.to_arrays(scorer))
  rows = rng.normal(size=(5, k))
  np.testing.assert_allclose(
    again.of_features(rows), scorer.of_features(rows), rtol=1e-5
  )
  assert again.flags(0.75) and not again.flags(0.74)
  wrong = fundus.to_arrays(scorer) | {'mean': np.zeros(3)}
  with pytest.raises(errors.InvalidValue, match='of 3 features'):
    fundus.from_arrays(wrong)


def test_what_is_familiar():
  rows = rows_of(range(40), style=0)
  record = familiar.fit(rows, flagged=0.05)
  fresh = rows_of(range(40, 60), style=0)
  shares = [familiar.unlike(row, record) for row in fresh]
  assert np.mean([flag for _, flag in shares]) <= 0.25
  blue = fresh[0].copy()
  blue[features.NAMES.index('blue_mean')] += 3
  share, flag = familiar.unlike(blue, record)
  assert flag and share > 1
  with pytest.raises(errors.InvalidValue, match='20 are needed'):
    familiar.fit(rows[:10])
  with pytest.raises(errors.InvalidValue, match='other statistics'):
    familiar.unlike(blue, record | {'names': ['x']})


@pytest.mark.skipif(not WEIGHTS.is_file(), reason='no scorer in the package')
def test_tells_strangers_from_drawn_photographs():
  """Figures of more pictures, and of real ones: iqa_jax/bundled/README.md."""
  scorer = fundus.load()
  rows = np.concatenate(
    [rows_of(range(12), cameras.UNSEEN), rows_of(range(12), broken=['focus'])]
  )
  assert (scorer.of_features(rows) >= scorer.threshold).mean() <= 0.1
  odd = []
  for seed in range(40):
    image = strangers.draw(np.random.default_rng([seed, 5]))
    done = prepare.photograph(Image.fromarray(image), SIZE)
    odd.append(scorer.flags(scorer.score(done.image, done.inside)))
  assert np.mean(odd) >= 0.85
