"""faithfulness and perturbation, on scores whose true explanation is known."""

import jax
import numpy as np
import pytest
from scipy import sparse
from scipy.sparse import linalg

from iqa_jax import models
from iqa_jax.explain import cam, faithfulness, perturbation

_SIZE = 32
# The score is the mean brightness of the top left quarter, and nothing else.
_REGION = np.zeros((_SIZE, _SIZE))
_REGION[:16, :16] = 1
_WHITE = np.full((2, _SIZE, _SIZE, 3), 255.0, np.float32)
_BLACK = np.zeros_like(_WHITE)
_TARGETS = np.zeros(2, int)


def _brightness(images, targets):
  assert images.dtype == np.float32 and len(images) == len(targets)
  return (images.mean(-1) * _REGION).sum((1, 2)) / _REGION.sum() / 255


def _maps(one):
  return np.repeat(np.asarray(one, np.float32)[None], 2, 0)


def test_occlusion_finds_exactly_what_is_covered():
  maps = perturbation.occlusion(
    _brightness, _WHITE, _TARGETS, _BLACK, cells=8, window=1
  )
  expected = np.zeros((8, 8))
  expected[:4, :4] = 1 / 16  # a cell is a sixteenth of the region
  np.testing.assert_allclose(maps, _maps(expected), atol=1e-6)
  # A window of two cells also reaches the region from just outside of it.
  wide = perturbation.occlusion(
    _brightness, _WHITE, _TARGETS, _BLACK, cells=8, window=2
  )
  np.testing.assert_allclose(
    wide[0, 2, 1:6], [16, 16, 12, 4, 0] / np.array(64.0)
  )
  # What is as bright as what covers it does not matter.
  assert not perturbation.occlusion(
    _brightness, _BLACK, _TARGETS, _BLACK, cells=8
  ).any()


def test_rise_finds_the_region_and_is_centred():
  maps = perturbation.rise(
    _brightness, _WHITE, _TARGETS, _BLACK, masks=2000, cells=4, seed=1
  )
  assert maps.shape == (2, _SIZE, _SIZE)
  np.testing.assert_array_equal(maps[0], maps[1])  # the same masks
  # Far from the region a pixel says nothing about the score.
  assert np.abs(maps[0, 24:, 24:]).max() < 0.2 * maps[0, :16, :16].min()
  np.testing.assert_array_equal(
    np.unravel_index(maps[0].argmax(), maps[0].shape) < np.array([16, 16]), True
  )
  again = perturbation.rise(
    _brightness, _WHITE, _TARGETS, _BLACK, masks=2000, cells=4, seed=1
  )
  np.testing.assert_array_equal(maps, again)


def test_deletion_and_insertion_have_their_known_areas():
  def areas(maps):
    deletion, insertion = (
      faithfulness.area(
        faithfulness.replacement_curve(
          _brightness, a, _TARGETS, maps, b, steps=64
        )
      )
      for a, b in ((_WHITE, _BLACK), (_BLACK, _WHITE))
    )
    return np.stack([deletion, insertion])

  # A right map deletes the score with the first quarter of the pixels.
  np.testing.assert_allclose(areas(_maps(_REGION)), [[1 / 8] * 2, [7 / 8] * 2])
  np.testing.assert_allclose(areas(_maps(-_REGION)), [[7 / 8] * 2, [1 / 8] * 2])
  # One that says nothing is a random one, whatever its value.
  np.testing.assert_allclose(areas(_maps(0 * _REGION)), 0.5, atol=0.03)


def test_a_curve_starts_and_ends_at_the_two_images():
  rng = np.random.default_rng(0)
  images, other = rng.uniform(0, 255, (2, 2, _SIZE, _SIZE, 3)).astype('f4')
  curve = faithfulness.replacement_curve(
    _brightness, images, _TARGETS, rng.random((2, _SIZE, _SIZE)), other, steps=7
  )
  np.testing.assert_allclose(curve[:, 0], _brightness(images, _TARGETS), 1e-6)
  np.testing.assert_allclose(curve[:, -1], _brightness(other, _TARGETS), 1e-6)


def test_each_image_is_judged_on_its_own_target():
  def score(images, targets):
    return np.where(targets == 1, images.mean((1, 2, 3)) / 255, 0.25)

  curve = faithfulness.replacement_curve(
    score, _WHITE, np.asarray([0, 1]), _maps(_REGION), _BLACK, steps=4
  )
  np.testing.assert_allclose(curve[0], 0.25)
  np.testing.assert_allclose(curve[1], [1, 0.75, 0.5, 0.25, 0])


def test_drop_and_increase():
  measure = faithfulness.drop_and_increase
  right = measure(_brightness, _WHITE, _TARGETS, _maps(_REGION), _BLACK)
  np.testing.assert_allclose(right, 0, atol=1e-6)
  wrong = measure(_brightness, _WHITE, _TARGETS, _maps(1 - _REGION), _BLACK)
  np.testing.assert_allclose(wrong, [[1, 1], [0, 0]], atol=1e-6)

  def disturbed(images, targets):
    outside = (images.mean(-1) * (1 - _REGION)).sum((1, 2)) / _REGION.sum()
    return _brightness(images, targets) + 0.5 - 0.1 * outside / 255

  drop, increase = measure(disturbed, _WHITE, _TARGETS, _maps(_REGION), _BLACK)
  np.testing.assert_array_equal(drop, 0)
  np.testing.assert_array_equal(increase, 1)


def _texture(images, targets):
  """The contrast between neighbours in the region: what imputing removes."""
  rough = np.abs(np.diff(images.mean(-1), axis=2))[:, :16, :15]
  return rough.mean((1, 2)) / 255


def test_road_ranks_right_above_random_above_wrong():
  images = np.random.default_rng(0).uniform(0, 255, _WHITE.shape)
  images = images.astype(np.float32)
  right, random, wrong = (
    faithfulness.road(_texture, images, _TARGETS, _maps(m))
    for m in (_REGION, 0 * _REGION, -_REGION)
  )
  assert (right > 0.02).all()
  np.testing.assert_allclose(right, -wrong, rtol=0.2)
  assert (np.abs(random) < 0.2 * right).all()


def test_imputation_solves_the_linear_system():
  rng = np.random.default_rng(0)
  image = rng.uniform(0, 255, (20, 27, 3))
  known = rng.random((20, 27)) > 0.7
  known[4:17, 5:20] = False  # a large hole too
  index = np.full(known.shape, -1)
  index[~known] = np.arange((~known).sum())
  matrix = sparse.lil_matrix(((~known).sum(),) * 2)
  right = np.zeros(((~known).sum(), 3))
  for y, x in zip(*np.nonzero(~known), strict=True):
    row = index[y, x]
    for dy in (-1, 0, 1):
      for dx in (-1, 0, 1):
        v, u = y + dy, x + dx
        if (dy or dx) and 0 <= v < 20 and 0 <= u < 27:
          weight = 1 / 12 if dy and dx else 1 / 6
          matrix[row, row] += weight
          if known[v, u]:
            right[row] += weight * image[v, u]
          else:
            matrix[row, index[v, u]] -= weight
  expected = image.copy()
  expected[~known] = linalg.spsolve(sparse.csc_matrix(matrix), right)
  found = faithfulness.impute(image[None], known[None])[0]
  np.testing.assert_allclose(found, expected, atol=0.05)
  np.testing.assert_array_equal(found[known], image[known].astype(np.float32))


def test_energy_and_pointing():
  mask = _maps(_REGION)
  maps = _maps(np.ones_like(_REGION))
  maps[0] -= 3 * (1 - _REGION)  # all positive evidence inside
  np.testing.assert_allclose(faithfulness.energy(maps, mask), [1, 0.25])
  np.testing.assert_array_equal(faithfulness.energy(-maps, mask), [0, np.nan])

  places = np.zeros((4, 224, 224))
  region = np.zeros((4, 224, 224))
  region[:3, 50:60, 100:110] = 1
  for i, column in enumerate((105, 109 + 15, 109 + 16, 105)):
    places[i, 55, column] = 1
  np.testing.assert_array_equal(
    faithfulness.pointing(places, region), [1, 1, 0, 0]
  )
  assert np.isnan(faithfulness.pointing(-places[:1], region[:1])).all()


def test_structural_similarity_is_that_of_its_definition():
  rng = np.random.default_rng(0)
  a = rng.random((1, 14, 13))
  b = 0.7 * a + 0.3 * rng.random((1, 14, 13))
  at = np.arange(-5, 6)
  window = np.exp(-(at[:, None] ** 2 + at[None] ** 2) / (2 * 1.5**2))
  window /= window.sum()
  values = []
  for y in range(4):
    for x in range(3):
      p, q = (m[0, y : y + 11, x : x + 11] for m in (a, b))
      mean_p, mean_q = (window * p).sum(), (window * q).sum()
      var_p = (window * (p - mean_p) ** 2).sum()
      var_q = (window * (q - mean_q) ** 2).sum()
      cov = (window * (p - mean_p) * (q - mean_q)).sum()
      values.append(
        (2 * mean_p * mean_q + 1e-4)
        * (2 * cov + 9e-4)
        / ((mean_p**2 + mean_q**2 + 1e-4) * (var_p + var_q + 9e-4))
      )
  np.testing.assert_allclose(faithfulness.ssim(a, b), np.mean(values), 1e-6)
  np.testing.assert_allclose(faithfulness.ssim(a, a), 1)


def test_rank_correlation():
  a = np.random.default_rng(0).random((1, 5, 5))
  np.testing.assert_allclose(faithfulness.spearman(a, np.exp(9 * a)), 1)
  np.testing.assert_allclose(faithfulness.spearman(a, -a), -1)
  assert np.isnan(faithfulness.spearman(a, 0 * a)).all()


@pytest.mark.parametrize('name', models.names())
def test_randomising_goes_from_the_top_down(name):
  model = models.create(name, 2, width=0.125, depth=0.34)
  shapes = models.shapes(model, 32)
  rng = np.random.default_rng(0)
  variables = jax.tree.map(lambda s: rng.random(s.shape), shapes)
  flat = jax.tree_util.tree_leaves_with_path(variables)
  parts, destroyed = [], set()
  for part, broken in faithfulness.randomised(model, variables, seed=0):
    parts.append(part)
    for (path, before), after in zip(
      flat, jax.tree.leaves(broken), strict=True
    ):
      np.testing.assert_array_equal(np.sort(before, None), np.sort(after, None))
      names = {key.key for key in path}
      if before.size > 8 and not np.array_equal(before, after):
        destroyed |= names
      touched = names & set(parts)
      if before.size > 8:
        assert bool(touched) != np.array_equal(before, after), path
  assert parts[0] == 'head'
  assert [p for p in reversed(model.points) if p in parts] == parts[1:]
  assert len(parts) == 6  # the head and five stages or blocks


def test_controls_know_the_photograph_but_not_the_network():
  images = np.zeros((3, 30, 40, 3), np.uint8)
  images[:, :, 20:] = 200
  found = faithfulness.controls(images, (6, 8), seed=0)
  assert set(found) == set(faithfulness.CONTROLS)
  for maps in found.values():
    assert maps.shape == (3, 6, 8) and maps.min() >= 0
  assert (found['edges'][:, :, 3:5] > 0).all()
  assert not found['edges'][:, :, [0, 1, 6, 7]].any()
  centre = found['centre'][0]
  np.testing.assert_allclose(centre, centre[::-1, ::-1])
  assert centre[2:4, 3:5].min() == centre.max()
  again = faithfulness.controls(images, (6, 8), seed=0)
  np.testing.assert_array_equal(found['random'], again['random'])
  assert len(np.unique(found['random'])) == 3 * 48


def test_intervals_cover_the_mean_and_comparisons_are_paired():
  rng = np.random.default_rng(0)
  covered = 0
  for seed in range(200):
    found = faithfulness.interval(
      rng.normal(1, 2, 40), resamples=400, seed=seed
    )
    covered += found['low'] <= 1 <= found['high']
  assert 0.89 <= covered / 200 <= 0.985
  control = rng.normal(0, 5, 30)
  table = faithfulness.compare({'gradcam': control + 1, 'random': control})
  over = table['gradcam']['over']['random']
  assert over['mean'] == pytest.approx(1) == over['low']
  assert 'over' not in table['random']
  assert faithfulness.interval([np.nan, 3.0]) == {
    'mean': 3.0,
    'low': None,
    'high': None,
    'n': 1,
  }
  assert faithfulness.interval([np.nan])['mean'] is None


def test_baselines():
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (2, 40, 40, 3)).astype(np.uint8)
  inside = np.zeros((2, 40, 40), bool)
  inside[:, 10:30, 10:30] = True
  assert not perturbation.baseline(images, inside, 'zero').any()
  mean = perturbation.baseline(images, inside, 'mean')
  np.testing.assert_allclose(
    mean[:, 15, 15], images[:, 10:30, 10:30].mean((1, 2)), rtol=1e-5
  )
  assert not mean[~inside].any() and mean[inside].min() > 0
  blur = perturbation.baseline(images, inside, 'blur')
  assert blur.std() < 0.2 * images.std()
  np.testing.assert_allclose(blur.mean(), images.mean(), rtol=0.02)
  with pytest.raises(ValueError, match="'grey' is none of zero"):
    perturbation.baseline(images, inside, 'grey')


def test_energy_of_a_uniform_map_is_the_share_of_the_area():
  maps = cam.enlarge(np.ones((2, 7, 7)), (_SIZE, _SIZE))
  np.testing.assert_allclose(
    faithfulness.energy(maps, _maps(_REGION)), _REGION.mean(), rtol=1e-6
  )
