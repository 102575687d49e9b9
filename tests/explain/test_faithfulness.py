"""faithfulness and perturbation, on scores whose true explanation is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage, sparse
from scipy.sparse import linalg

from iqa_jax import models
from iqa_jax.explain import faithfulness, perturbation, road, scaling

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


_ASK = perturbation.Perturber(_brightness, batch_size=7)


def _curves(ask, images, targets, maps, other, **options):
  ends = ask.plain(images, targets), ask.plain(other, targets)
  return faithfulness.replacement_curves(
    ask, images, targets, maps, other, ends=ends, **options
  )


def _maps(one):
  return np.repeat(np.asarray(one, np.float32)[None], 2, 0)


def test_occlusion_finds_exactly_what_is_covered():
  maps = perturbation.occlusion(
    _ASK, _WHITE, _TARGETS, _BLACK, cells=8, window=1
  )
  expected = np.zeros((8, 8))
  expected[:4, :4] = 1 / 16  # a cell is a sixteenth of the region
  np.testing.assert_allclose(maps, _maps(expected), atol=1e-6)
  # A window of two cells also reaches the region from just outside of it.
  wide = perturbation.occlusion(
    _ASK, _WHITE, _TARGETS, _BLACK, cells=8, window=2
  )
  np.testing.assert_allclose(
    wide[0, 2, 1:6], [16, 16, 12, 4, 0] / np.array(64.0), atol=1e-6
  )
  # What is as bright as what covers it does not matter.
  assert not perturbation.occlusion(
    _ASK, _BLACK, _TARGETS, _BLACK, cells=8
  ).any()


def test_rise_finds_the_region_and_is_centred():
  maps = perturbation.rise(
    _ASK, _WHITE, _TARGETS, _BLACK, masks=2000, cells=4, seed=1
  )
  assert maps.shape == (2, _SIZE, _SIZE)
  np.testing.assert_array_equal(maps[0], maps[1])  # the same masks
  # Far from the region a pixel says nothing about the score.
  assert np.abs(maps[0, 24:, 24:]).max() < 0.2 * maps[0, :16, :16].min()
  np.testing.assert_array_equal(
    np.unravel_index(maps[0].argmax(), maps[0].shape) < np.array([16, 16]), True
  )
  again = perturbation.rise(
    _ASK, _WHITE, _TARGETS, _BLACK, masks=2000, cells=4, seed=1
  )
  np.testing.assert_array_equal(maps, again)


def test_deletion_and_insertion_have_their_known_areas():
  def areas(maps):
    pair = _curves(_ASK, _WHITE, _TARGETS, maps, _BLACK, steps=64)
    return np.stack([faithfulness.area(curve) for curve in pair])

  # A right map deletes the score with the first quarter of the pixels.
  np.testing.assert_allclose(
    areas(_maps(_REGION)), [[1 / 8] * 2, [7 / 8] * 2], rtol=1e-5
  )
  np.testing.assert_allclose(
    areas(_maps(-_REGION)), [[7 / 8] * 2, [1 / 8] * 2], rtol=1e-5
  )
  # One that says nothing is a random one, whatever its value.
  np.testing.assert_allclose(areas(_maps(0 * _REGION)), 0.5, atol=0.03)


def test_curves_start_and_end_at_the_two_images():
  rng = np.random.default_rng(0)
  images, other = rng.uniform(0, 255, (2, 2, _SIZE, _SIZE, 3)).astype('f4')
  maps = rng.random((2, _SIZE, _SIZE))
  deletion, insertion = _curves(_ASK, images, _TARGETS, maps, other, steps=7)
  whole, nothing = _brightness(images, _TARGETS), _brightness(other, _TARGETS)
  for curve, start, end in (
    (deletion, whole, nothing),
    (insertion, nothing, whole),
  ):
    assert curve.shape == (2, 8)
    np.testing.assert_allclose(curve[:, 0], start, 1e-6)
    np.testing.assert_allclose(curve[:, -1], end, 1e-6)


def test_each_image_is_judged_on_its_own_target():
  def score(images, targets):
    return jnp.where(targets == 1, images.mean((1, 2, 3)) / 255, 0.25)

  deletion, _ = _curves(
    perturbation.Perturber(score),
    *(_WHITE, np.asarray([0, 1]), _maps(_REGION), _BLACK),
    steps=4,
  )
  np.testing.assert_allclose(deletion[0], 0.25)
  np.testing.assert_allclose(deletion[1], [1, 0.75, 0.5, 0.25, 0], atol=1e-6)


def test_batches_of_any_size_say_the_same_and_all_frames_are_counted():
  rng = np.random.default_rng(0)
  images, other = rng.uniform(0, 255, (2, 3, _SIZE, _SIZE, 3)).astype('f4')
  keep = rng.random((11, _SIZE, _SIZE)).astype('f4')
  which = rng.integers(0, 3, 11)
  targets = np.zeros(3, int)
  mixed = [
    k[..., None] * images[i] + (1 - k[..., None]) * other[i]
    for i, k in zip(which, keep, strict=True)
  ]
  expected = _brightness(np.stack(mixed), np.zeros(11))
  for size in (1, 4, 11, 16):
    done = []
    ask = perturbation.Perturber(_brightness, batch_size=size, tick=done.append)
    found = ask(
      perturbation.blend,
      *((images, other), targets, zip(which, keep, strict=True)),
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert sum(done) == 11


def test_the_field_travels_with_what_is_perturbed():
  def field(images, targets):
    return images[..., 3].mean((1, 2))

  images = np.random.default_rng(0).uniform(0, 255, (2, _SIZE, _SIZE, 4))
  inside = images[..., 3] > 100
  ask = perturbation.Perturber(field)
  expected = images[..., 3].mean((1, 2))
  for kind in perturbation.BASELINES:
    other = perturbation.baseline(images, inside, kind)
    np.testing.assert_allclose(ask.plain(other, _TARGETS), expected, 1e-5)
  # So that no removal changes the score.
  np.testing.assert_allclose(
    road.road(ask, images, _TARGETS, _maps(_REGION)), 0, atol=1e-4
  )


def test_drop_and_increase():
  def measure(score, maps):
    ask = perturbation.Perturber(score)
    return faithfulness.drop_and_increase(
      *(ask, _WHITE, _TARGETS, maps, _BLACK),
      before=ask.plain(_WHITE, _TARGETS),
    )

  np.testing.assert_allclose(measure(_brightness, _maps(_REGION)), 0, atol=1e-6)
  wrong = measure(_brightness, _maps(1 - _REGION))
  np.testing.assert_allclose(wrong, [[1, 1], [0, 0]], atol=1e-6)

  def disturbed(images, targets):
    outside = (images.mean(-1) * (1 - _REGION)).sum((1, 2)) / _REGION.sum()
    return _brightness(images, targets) + 0.5 - 0.1 * outside / 255

  drop, increase = measure(disturbed, _maps(_REGION))
  np.testing.assert_array_equal(drop, 0)
  np.testing.assert_array_equal(increase, 1)


def _texture(images, targets):
  """The contrast between neighbours in the region: what imputing removes."""
  rough = jnp.abs(jnp.diff(images.mean(-1), axis=2))[:, :16, :15]
  return rough.mean((1, 2)) / 255


def test_road_ranks_right_above_random_above_wrong():
  images = np.random.default_rng(0).uniform(0, 255, _WHITE.shape)
  ask = perturbation.Perturber(_texture)
  right, random, wrong = (
    road.road(ask, images.astype(np.float32), _TARGETS, _maps(m))
    for m in (_REGION, 0 * _REGION, -_REGION)
  )
  assert (right > 0.02).all()
  np.testing.assert_allclose(right, -wrong, rtol=0.2)
  assert (np.abs(random) < 0.2 * right).all()


def _solved(image, known):
  """ROAD's system of linear equations, solved directly."""
  height, width = known.shape
  index = np.full(known.shape, -1)
  index[~known] = np.arange((~known).sum())
  matrix = sparse.lil_matrix(((~known).sum(),) * 2)
  right = np.zeros(((~known).sum(), 3))
  for y, x in zip(*np.nonzero(~known), strict=True):
    row = index[y, x]
    for dy in (-1, 0, 1):
      for dx in (-1, 0, 1):
        v, u = y + dy, x + dx
        if (dy or dx) and 0 <= v < height and 0 <= u < width:
          weight = 1 / 12 if dy and dx else 1 / 6
          matrix[row, row] += weight
          if known[v, u]:
            right[row] += weight * image[v, u]
          else:
            matrix[row, index[v, u]] -= weight
  expected = image.copy()
  expected[~known] = linalg.spsolve(sparse.csc_matrix(matrix), right)
  return expected


def test_imputation_solves_the_linear_system():
  rng = np.random.default_rng(0)
  image = rng.uniform(0, 255, (20, 27, 3))
  known = rng.random((20, 27)) > 0.7
  known[4:17, 5:20] = False  # a large hole too
  found = np.asarray(road.impute(image[None], known[None]))[0]
  np.testing.assert_allclose(found, _solved(image, known), atol=0.05)
  np.testing.assert_array_equal(found[known], image[known].astype(np.float32))


@pytest.mark.parametrize('hole', ['pixels', 'disc', 'rim', 'winding'])
@pytest.mark.parametrize('size', [(20, 27), (131, 150)])
def test_imputation_solves_it_in_holes_of_any_shape(hole, size):
  rng = np.random.default_rng(0)
  image = ndimage.gaussian_filter(rng.uniform(0, 255, (*size, 3)), (6, 6, 0))
  image = (image - image.min()) * 255 / np.ptp(image)
  y, x = (np.arange(n)[:, None] / n - 0.5 for n in size)
  away = np.hypot(y, x.T)
  known = {
    'pixels': rng.random(size) > 0.7,
    'disc': away > 0.4,
    'rim': away < 0.3,
    'winding': ndimage.gaussian_filter(rng.random(size), size[0] / 15) > 0.5,
  }[hole]
  expected = _solved(image, known)
  found = np.asarray(road.impute(image[None], known[None]))[0]
  # The noise that is added to it has a standard deviation of 2.55.
  np.testing.assert_allclose(found, expected, atol=1)
  assert np.abs(found - expected).mean() < 0.15
  np.testing.assert_array_equal(found[known], image[known].astype(np.float32))


def test_imputation_does_not_depend_on_the_others_of_a_batch():
  rng = np.random.default_rng(0)
  images = rng.uniform(0, 255, (3, 40, 40, 3)).astype(np.float32)
  known = rng.random((3, 40, 40)) > np.array([0.9, 0.5, 0.1])[:, None, None]
  together = np.asarray(road.impute(images, known))
  alone = [np.asarray(road.impute(images[[i]], known[[i]])) for i in range(3)]
  np.testing.assert_allclose(together, np.concatenate(alone), atol=1e-3)


def test_energy_and_pointing():
  mask = _maps(_REGION)
  maps = _maps(np.ones_like(_REGION))
  maps[0] -= 3 * (1 - _REGION)  # all positive evidence inside
  np.testing.assert_allclose(faithfulness.energy(maps, mask), [1, 0.25])
  # An empty map is a miss.
  np.testing.assert_array_equal(faithfulness.energy(-maps, mask), [0, 0])

  places = np.zeros((4, 224, 224))
  region = np.zeros((4, 224, 224))
  region[:3, 50:60, 100:110] = 1
  for i, column in enumerate((105, 109 + 15, 109 + 16, 105)):
    places[i, 55, column] = 1
  np.testing.assert_array_equal(
    faithfulness.pointing(places, region), [1, 1, 0, 0]
  )
  assert faithfulness.pointing(-places[:1], region[:1]) == [0]


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


@pytest.mark.parametrize('name', ['resnet50', 'vgg16'])
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
  inside = np.zeros((3, 30, 40), bool)
  inside[:, 4:26, 4:36] = True
  found = faithfulness.controls(images, inside, (6, 8), seed=0)
  assert set(found) == set(faithfulness.CONTROLS)
  for maps in found.values():
    assert maps.shape == (3, 30, 40) and maps.min() >= 0
    # Outside there is nothing to find.
    assert not maps[~inside].any() and maps[inside].any()
  assert (found['edges'][:, 10:20, 18:22] > 0).all()
  # Neither far from the edge, nor at the rim of the field.
  assert not found['edges'][:, :, [4, 5, 6, 33, 34, 35]].any()
  centre = found['centre'][0]
  np.testing.assert_allclose(centre, centre[::-1, ::-1])
  assert centre[14:16, 19:21].min() == centre.max()
  again = faithfulness.controls(images, inside, (6, 8), seed=0)
  np.testing.assert_array_equal(found['random'], again['random'])
  assert len(np.unique(found['random'])) > 500
  # A field that lies elsewhere has its centre elsewhere.
  moved = np.zeros_like(inside)
  moved[:, 4:16, 4:20] = True
  centre = faithfulness.controls(images, moved, (6, 8), seed=0)['centre'][0]
  assert centre[9:11, 11:13].min() == centre.max()


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
  maps = scaling.enlarge(np.ones((2, 7, 7)), (_SIZE, _SIZE))
  np.testing.assert_allclose(
    faithfulness.energy(maps, _maps(_REGION)), _REGION.mean(), rtol=1e-6
  )
