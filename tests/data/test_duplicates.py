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


def test_blocks_change_nothing(monkeypatch):
  """Against a plain comparison of every pair in every position."""
  rng = np.random.default_rng(0)
  codes = list(rng.choice(np.int8([-1, 1]), (40, 24, 24)))
  codes += [np.rot90(codes[5].T, 0), codes[7] * (-1) ** np.arange(24)]
  codes.append(np.where(rng.random((24, 24)) < 0.1, -codes[11], codes[11]))
  whole = duplicates.pairs(codes)
  assert [pair[:2] for pair in whole] == [(5, 40), (7, 41), (11, 42)]
  flips = codes[11].ravel()[1:] @ codes[42].ravel()[1:].astype(int)
  assert whole[2][2] == pytest.approx(flips / 575)
  monkeypatch.setattr(duplicates, '_BLOCK', 7)
  monkeypatch.setattr(duplicates, '_WIDE', 9)
  assert duplicates.pairs(codes) == whole


@pytest.mark.slow
def test_real_photographs_of_two_patients_are_told_apart(shared):
  folder = shared / 'data/eyeq_sample/test'
  paths = sorted(folder.iterdir())
  codes = [duplicates.code(images.read(p, 512).image)[0] for p in paths]
  patient = [p.stem.partition('_')[0] for p in paths]
  assert not [
    p for p in duplicates.pairs(codes) if patient[p[0]] != patient[p[1]]
  ]
