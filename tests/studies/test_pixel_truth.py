"""pixel_truth: FunPiQ's format, the way to the prepared square, ranking."""

import numpy as np
from PIL import Image
import pytest
from sklearn import metrics

from iqa_jax import errors
from iqa_jax.simulation import photograph as simulated
from iqa_jax.simulation import pixel_labels
from iqa_jax.studies import photographs, pixel_truth


def _maps_and_labels(count=3, size=112):
  rng = np.random.default_rng(0)
  labels = rng.integers(0, 4, (count, size, size)).astype(np.uint8)
  maps = rng.random(labels.shape).round(2) + 0.2 * (labels == pixel_labels.BAD)
  return maps, labels  # rounded: with ties


def test_ranks_are_those_of_scikit_learn():
  maps, labels = _maps_and_labels()
  labels[1][labels[1] == pixel_labels.USABLE] = pixel_labels.GOOD
  found = pixel_truth.rank(maps, labels)
  for i in range(len(maps)):
    for suffix, bad in (('', (3,)), ('_usable', (2, 3))):
      seen = np.isin(labels[i], (1, *bad))
      truth, values = np.isin(labels[i], bad)[seen], maps[i][seen]
      assert found[f'auc{suffix}'][i] == pytest.approx(
        metrics.roc_auc_score(truth, values), abs=1e-9
      )
      assert found[f'average_precision{suffix}'][i] == pytest.approx(
        metrics.average_precision_score(truth, values), abs=1e-9
      )
  # What lies outside the field does not matter.
  moved = np.where(labels == pixel_labels.BACKGROUND, 99, maps)
  again = pixel_truth.rank(moved, labels)
  np.testing.assert_array_equal(found['auc'], again['auc'])


def test_ties_and_empty_maps_are_misses():
  maps, labels = _maps_and_labels()
  share = [(one == 3).sum() / np.isin(one, (1, 3)).sum() for one in labels]
  for nothing in (0 * maps, -maps, maps - 5, 0 * maps + 7, maps * np.nan):
    found = pixel_truth.rank(nothing, labels)
    np.testing.assert_allclose(found['auc'], 0.5)
    np.testing.assert_allclose(found['average_precision'], share)
  # Negative evidence ranks where there is positive evidence too.
  assert (pixel_truth.rank(maps - 0.9, labels)['auc'] > 0.6).all()
  # Without pixels of both kinds nothing can be ranked.
  good = np.where(labels == 3, 1, labels)
  assert np.isnan(pixel_truth.rank(maps, good)['auc']).all()
  assert np.isfinite(pixel_truth.rank(maps, good)['auc_usable']).all()


def test_large_maps_are_looked_at_on_a_grid():
  rng = np.random.default_rng(0)
  labels = np.kron(
    rng.integers(1, 4, (1, 14, 14)), np.ones((1, 32, 32), int)
  ).astype(np.uint8)
  maps = rng.random(labels.shape) + (labels == 3)
  seen = labels[0] != 2
  whole = metrics.roc_auc_score(labels[0][seen] == 3, maps[0][seen])
  assert pixel_truth.rank(maps, labels)['auc'][0] == pytest.approx(
    whole, abs=0.01
  )


def test_an_indexed_png_comes_back(tmp_path):
  labels = np.arange(4, dtype=np.uint8).repeat(6).reshape(4, 6)
  pixel_labels.write(tmp_path / 'a.png', labels)
  with Image.open(tmp_path / 'a.png') as image:
    assert image.mode == 'P'
  np.testing.assert_array_equal(pixel_truth.read(tmp_path / 'a.png'), labels)
  Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(tmp_path / 'b.png')
  with pytest.raises(errors.UserError, match=r'b\.png: expected an indexed'):
    pixel_truth.read(tmp_path / 'b.png')
  Image.fromarray(labels + 1).save(tmp_path / 'c.png')
  with pytest.raises(errors.UserError, match='3 bad; found 4'):
    pixel_truth.read(tmp_path / 'c.png')


@pytest.mark.parametrize('shrink', [1, 2])
def test_labels_follow_the_photograph_to_its_prepared_square(tmp_path, shrink):
  """A bright square in a wide photograph, labelled at its place."""
  height, width = 300, 420
  y, x = np.mgrid[:height, :width]
  inside = np.hypot(x - 230, y - 150) < 130
  image = np.where(inside[..., None], (150, 80, 50), 0).astype(np.uint8)
  labels = inside.astype(np.uint8)
  spot = (slice(100, 140), slice(200, 260))
  image[spot], labels[spot] = 255, pixel_labels.BAD
  files, folder = tmp_path / 'photographs', tmp_path / 'labels'
  files.mkdir()
  folder.mkdir()
  Image.fromarray(image).save(files / 'one.png')
  pixel_labels.write(folder / 'one.png', labels[::shrink, ::shrink])
  found = photographs.read(str(files), 112, pixel_labels=folder)
  assert len(found) == 1
  bright = found.images[0].min(-1) > 150
  bad = found.truth[0] == pixel_labels.BAD
  assert 300 < bad.sum()
  assert (bright & bad).sum() / (bright | bad).sum() > 0.93
  # And so does the field.
  assert ((found.truth[0] > 0) == found.inside[0]).mean() > 0.97
  # Another photograph's labels are refused.
  pixel_labels.write(folder / 'one.png', labels[:, ::2])
  with pytest.raises(errors.UserError, match='not of a photograph of 420 x'):
    photographs.read(str(files), 112, pixel_labels=folder)
  (folder / 'one.png').unlink()
  with pytest.raises(errors.UserError, match='PNG of the name of none'):
    photographs.read(str(files), 112, pixel_labels=folder)


def test_drawn_photographs_know_their_pixels():
  drawn = simulated.draw(3, 128, broken=('artifacts',), distractors=False)
  labels = pixel_labels.of_drawn(drawn)
  [mask] = drawn.defects.values()
  np.testing.assert_array_equal(labels == 3, (mask >= 0.5) & drawn.inside)
  np.testing.assert_array_equal(labels == 0, ~drawn.inside)
  slight = pixel_labels.of_fault(mask, drawn.inside, 0.3)
  assert slight.max() == pixel_labels.USABLE
  found = photographs.drawn(2, 64, drawn_at=128)
  assert found.truth.shape == (2, 64, 64)
  assert found.take([1]).truth.shape == (1, 64, 64)
