"""Photographs that are nearly the same are found, and others are not."""

import io

import numpy as np
from PIL import Image
import pytest

from iqa_jax.data import duplicates
from iqa_jax.photograph import images
from iqa_jax.simulation import photograph


@pytest.fixture(scope='module')
def drawn():
  """Eight people's photographs."""
  return [Image.fromarray(photograph.draw(i, 256).image) for i in range(8)]


def jpeg(image, quality):
  file = io.BytesIO()
  image.save(file, 'JPEG', quality=quality)
  return Image.open(file).convert('RGB')


CHANGES = {
  'itself': lambda image: image,
  'compressed': lambda image: jpeg(image, 50),
  'smaller': lambda image: image.resize((150, 150), Image.Resampling.BILINEAR),
  'brighter': lambda image: image.point(lambda level: min(255, level * 1.2)),
  'other border': lambda image: Image.fromarray(
    np.pad(np.asarray(image), [(30, 60), (90, 10), (0, 0)])
  ),
} | {
  turn.name: lambda image, turn=turn: image.transpose(turn)
  for turn in Image.Transpose
}


@pytest.mark.parametrize('change', CHANGES)
def test_a_copy_is_found_among_others(drawn, change):
  codes = [duplicates.code(image)[0] for image in drawn]
  codes.append(duplicates.code(CHANGES[change](drawn[3]))[0])
  [(i, j, agreement)] = duplicates.pairs(codes)
  assert (i, j) == (3, 8)
  if change == 'itself':
    assert agreement == pytest.approx(1)


def test_frames_without_detail_are_like_nothing():
  black = Image.new('RGB', (128, 128))
  codes = [duplicates.code(black)[0]] * 3
  assert duplicates.pairs(codes) == []
  assert duplicates.pairs([]) == []


def brute(codes):
  """Every pair in every position, by plain sums."""
  signs = np.array(codes, int)
  signs[:, 0, 0] = 0
  most = np.full((len(codes), len(codes)), -1.0)
  odd = (-1) ** np.arange(24)
  for turned in (signs, signs.transpose(0, 2, 1)):
    for rows in (1, odd[:, None]):
      for columns in (1, odd):
        way = (turned * rows * columns).reshape(len(codes), -1)
        most = np.maximum(most, way @ signs.reshape(len(codes), -1).T / 575)
  near = np.triu(most >= duplicates.SAME, 1)
  return {(i, j): most[i, j] for i, j in zip(*np.nonzero(near), strict=True)}


@pytest.mark.parametrize('parts', [2**20, 50])
def test_as_a_plain_comparison_of_every_pair(parts, monkeypatch):
  monkeypatch.setattr(duplicates, '_PAIRS', parts)
  rng = np.random.default_rng(0)
  codes = list(rng.choice(np.int8([-1, 1]), (300, 24, 24)))
  for i in range(60):
    wrong = rng.random((24, 24)) < rng.uniform(0, 0.3)
    code = np.where(wrong, -codes[i], codes[i])
    code = code * (-1) ** (np.arange(24) * (i % 2))
    code = code * (-1) ** (np.arange(24)[:, None] * (i // 2 % 2))
    codes.append(code.T if i // 4 % 2 else code)
  codes += [codes[3], codes[3], np.zeros((24, 24), np.int8)]
  found = {(i, j): value for i, j, value in duplicates.pairs(codes)}
  truth = brute(codes)
  sure = {pair for pair, value in truth.items() if value > 0.66}
  assert 30 < len(sure) < len(truth)
  assert sure <= set(found) <= set(truth)
  assert found == pytest.approx({pair: truth[pair] for pair in found})


def test_of_pairs_at_the_threshold_99_in_100_are_found():
  """As the docstring says; at 0.67, all."""
  rng = np.random.default_rng(1)
  codes = rng.choice(np.int8([-1, 1]), (4000, 24, 24))
  for i in range(2000):
    wrong = 1 + rng.choice(575, 115 if i % 2 else 94, replace=False)
    copy = codes[i].ravel().copy()
    copy[wrong] *= -1
    codes[2000 + i] = copy.reshape(24, 24)
  found = {(i, j) for i, j, _ in duplicates.pairs(list(codes))}
  at = [[(i, 2000 + i) in found for i in range(k, 2000, 2)] for k in (0, 1)]
  assert all(at[0])
  assert np.mean(at[1]) >= 0.98


@pytest.mark.slow
def test_real_photographs_of_two_patients_are_told_apart(shared):
  folder = shared / 'data/eyeq_sample/test'
  paths = sorted(folder.iterdir())
  codes = [duplicates.code(images.read(p, 512).image)[0] for p in paths]
  patient = [p.stem.partition('_')[0] for p in paths]
  assert not [
    p for p in duplicates.pairs(codes) if patient[p[0]] != patient[p[1]]
  ]
