"""The simulator's truth: seeds, masks, thresholds, labels by measurement."""

import hashlib
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from iqa_jax import labels
from iqa_jax.photograph import geometry
from iqa_jax.simulation import faults, field, photograph

SIZE = 96


def test_the_same_seed_draws_the_same_photograph_and_others_do_not():
  a, b = (photograph.draw(7, SIZE, broken=('focus',)) for _ in range(2))
  np.testing.assert_array_equal(a.image, b.image)
  assert a.severities == b.severities
  assert np.abs(a.image - photograph.draw(8, SIZE).image.astype(int)).mean() > 3


def test_a_pinned_seed_still_draws_the_pinned_photograph():
  """Coarse means of one photograph, so that other machines agree on them."""
  image = photograph.draw(3, SIZE).image.astype(float)
  means = image.reshape(4, 24, 4, 24, 3).mean((1, 3)).mean(-1)
  expected = [
    [38.5, 89.3, 111.7, 38.4],
    [104.6, 167.6, 180.2, 128.2],
    [127.5, 177.8, 148.5, 120.5],
    [46.3, 141.1, 129.7, 37.1],
  ]
  np.testing.assert_allclose(means, expected, atol=0.5)


def _digest(seeds) -> str:
  """Returns a hash of each photograph's bytes and of all its truth."""
  lines = []
  for seed in seeds:
    drawn = photograph.draw(seed, SIZE, broken=labels.CRITERIA)
    truth = [drawn.landmarks, drawn.inside, drawn.vessels, *drawn.arcades]
    truth += [drawn.defects[kind] for kind in sorted(drawn.defects)]
    digest = hashlib.sha256(drawn.image.tobytes())
    for array in truth:
      digest.update(np.ascontiguousarray(array).tobytes())
    lines.append(f'{seed} {digest.hexdigest()}')
  return '\n'.join(lines)


def test_fresh_processes_however_threaded_or_split_draw_the_same_bytes():
  code = 'import sys; from tests.simulation import test_simulation as t; '
  code += 'print(t._digest(map(int, sys.argv[1:])))'

  def fresh(threads, *seeds):
    names = 'OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'MKL_NUM_THREADS'
    return subprocess.run(
      [sys.executable, '-c', code, *map(str, seeds)],
      check=True,
      capture_output=True,
      cwd=pathlib.Path(__file__).parents[2],
      env=os.environ | dict.fromkeys(names, threads),
      text=True,
    ).stdout.splitlines()

  split = fresh('2', 22) + fresh('1', 21, 20)
  assert sorted(split) == _digest([20, 21, 22]).splitlines()


@pytest.mark.parametrize('criterion', labels.CRITERIA)
def test_what_is_broken_is_labelled_and_nothing_else(criterion):
  for seed in range(6):
    drawn = photograph.draw(seed, SIZE, broken=(criterion,))
    expected = [int(name == criterion) for name in labels.CRITERIA]
    assert drawn.criteria.tolist() == expected
    assert drawn.quality == labels.INADEQUATE
    assert drawn.measurement.adequate == (criterion != 'image_field')


def test_adequate_photographs_hold_distractors_below_the_threshold():
  drawn = [photograph.draw(seed, 64) for seed in range(30)]
  severities = [s for d in drawn for s in d.severities.values()]
  assert all(d.quality == labels.ADEQUATE for d in drawn)
  assert len(severities) > 20
  assert max(severities) < faults.THRESHOLD


@pytest.mark.parametrize('kind', faults.CRITERION)
def test_a_fault_changes_its_mask_and_nothing_outside_the_field(kind):
  clean = photograph.draw(11, SIZE, distractors=False)
  rng = np.random.default_rng(5)
  image, mask = faults.apply(clean.image, clean.inside, kind, 0.8, rng)
  change = np.abs(image.astype(float) - clean.image).mean(-1)
  assert mask.shape == (SIZE, SIZE) and mask.dtype == np.float32
  assert 0 <= mask.min() and 0.5 < mask.max() <= 1
  assert change[~clean.inside].max() == 0
  assert change[mask > 0.5].mean() > 2
  # A stain softens its rim; nothing changes where the mask is empty.
  assert change[mask < 0.004].sum() <= 0.02 * change.sum()


@pytest.mark.parametrize('kind', faults.CRITERION)
def test_faults_get_worse_with_severity(kind):
  clean = photograph.draw(12, SIZE, distractors=False)
  change = []
  for severity in (0.0, 0.3, 0.6, 0.9):
    rng = np.random.default_rng(1)
    image, _ = faults.apply(clean.image, clean.inside, kind, severity, rng)
    change.append(np.abs(image.astype(float) - clean.image).mean())
  assert change[1] < change[2] < change[3]
  assert change[3] > 1


def test_wrong_faults_are_refused():
  drawn = photograph.draw(0, 64)
  rng = np.random.default_rng(0)
  with pytest.raises(ValueError, match='blur'):
    faults.apply(drawn.image, drawn.inside, 'blur', 0.5, rng)
  with pytest.raises(ValueError, match='severity'):
    faults.apply(drawn.image, drawn.inside, 'haze', 1.5, rng)
  with pytest.raises(ValueError, match='none of'):
    photograph.draw(0, 64, broken=('sharpness',))
  with pytest.raises(ValueError, match='no fault of focus'):
    photograph.draw(0, 64, broken=('focus',), kinds={'focus': 'haze'})


def _measure(disc_x, fovea_x=None, arcade=400.0):
  """A field of radius 200 about (200, 200), disc diameter 50, level."""
  view = geometry.Field(200, 200, 200, 0, 0, 400, 400, True)
  fovea_x = disc_x - 125 if fovea_x is None else fovea_x
  up = np.stack([np.full(200, disc_x), np.linspace(200, 200 - arcade, 200)], 1)
  down = up * [1, -1] + [0, 400]
  landmarks = np.array([disc_x, 200, 50, fovea_x, 200])
  return field.measure(view, landmarks, (up, down))


def test_the_image_field_rule_turns_at_its_thresholds():
  # The disc's margin lies 25 px from its centre, the edge at x = 400.
  assert _measure(400 - 25 - 50).nasal == pytest.approx(1.0)
  assert _measure(400 - 25 - 51).adequate
  assert not _measure(400 - 25 - 49).adequate
  # The fovea 2 DD = 100 px from the edge at x = 0.
  assert _measure(250, 100.1).adequate
  assert not _measure(250, 99.9).adequate
  # An arcade shorter than 2 DD, and one that leaves the field.
  assert not _measure(250, arcade=99).adequate
  assert _measure(250, arcade=101).adequate
  assert _measure(250).superior == pytest.approx(
    np.sqrt(200**2 - 50**2) / 50, abs=0.1
  )


def test_landmarks_lie_on_what_they_name():
  """The disc is brighter than its surround, the fovea darker."""
  ys, xs = np.mgrid[0.5:256, 0.5:256]
  brighter = darker = 0
  for seed in range(8):
    drawn = photograph.draw(seed, 256, distractors=False)
    grey = drawn.image.astype(float).mean(-1)
    x, y, diameter, fx, fy = drawn.landmarks
    from_disc = np.hypot(xs - x, ys - y) / diameter
    from_fovea = np.hypot(xs - fx, ys - fy) / diameter
    ring = (from_disc > 0.8) & (from_disc < 1.2) & drawn.inside
    brighter += grey[from_disc < 0.3].mean() > grey[ring].mean() + 10
    ring = (from_fovea > 0.9) & (from_fovea < 1.2) & drawn.inside
    darker += grey[from_fovea < 0.2].mean() < grey[ring].mean()
    assert (fx < x) == (drawn.eye == 'right')
    found = geometry.find_field(drawn.image)
    assert found.found
    assert abs(found.cx - drawn.view.cx) < 4
    assert abs(found.radius - drawn.view.radius) < 4
  assert brighter == 8
  assert darker >= 7
