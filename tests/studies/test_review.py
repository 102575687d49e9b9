"""review: recall, examples, common frame and regions of known evidence."""

import dataclasses

import numpy as np
import pytest

from iqa_jax import run_directory
from iqa_jax.studies import places as places_lib
from iqa_jax.studies import review, review_figures
from iqa_jax.studies.subject import Subject
from tests.explain import constructed

_SIDE = constructed.SIZE


def _spotted(count=6):
  """Photographs with a bright spot nasal of the middle; odd ones left eyes."""
  photographs = constructed.photographs(
    count,
    quality=np.ones(count, int),
    criteria=np.tile([0, 0, 0, 1], (count, 1)),
  )
  photographs.images[:, 28:36, 50:54] = 255
  odd = slice(1, None, 2)
  photographs.images[odd] = photographs.images[odd, :, ::-1].copy()
  photographs.landmarks[odd, 0] = _SIDE - photographs.landmarks[odd, 0]
  photographs.landmarks[odd, 3] = _SIDE - photographs.landmarks[odd, 3]
  photographs.eyes[odd] = 'left'
  return photographs


def _reviewed(photographs, task='quality', **kwargs):
  subject = Subject(constructed.loaded(task), batch_size=8)
  return review.run(subject, photographs, **kwargs)


def test_evidence_is_found_in_its_region_in_both_eyes():
  photographs = _spotted()
  result, _ = _reviewed(photographs)
  found = result['groups']['artifacts']
  assert found['n'] == 6 and found['recall'] == 1
  assert found['target'] == 'margin'
  shares = {r: found['regions'][r]['share']['mean'] for r in places_lib.REGIONS}
  assert sum(shares.values()) == pytest.approx(1)
  assert shares['nasal'] > 0.8 and shares['temporal'] == 0
  areas = {r: found['regions'][r]['area']['mean'] for r in places_lib.REGIONS}
  # Of the field; what is outside, of the frame.
  outside = areas.pop('outside')
  assert sum(areas.values()) == pytest.approx(1)
  assert outside == pytest.approx((~photographs.inside).mean())
  nasal = found['regions']['nasal']['over_area']['mean']
  assert nasal == pytest.approx(shares['nasal'] / areas['nasal'], rel=0.01)
  assert nasal > 3
  # Told wrongly which eye it is, the same evidence is temporal.
  swapped = dataclasses.replace(
    photographs,
    eyes=np.where(photographs.eyes == 'left', 'right', 'left'),
  )
  wrong = _reviewed(swapped)[0]['groups']['artifacts']['regions']
  assert wrong['temporal']['share']['mean'] > 0.8


@pytest.mark.parametrize('frame', places_lib.FRAMES)
def test_mean_maps_line_up_both_eyes(frame):
  photographs = _spotted()
  # Moved about: in the disc's frame the spot stays where it is.
  shifts = (0, 2, 4, 0, 2, 4)
  for i, shift in enumerate(shifts):
    photographs.images[i] = np.roll(photographs.images[i], shift, 0)
    photographs.landmarks[i, [1, 4]] += shift
  mean = _reviewed(photographs, frame=frame)[1]['groups']['artifacts']['mean']
  y, x = np.unravel_index(np.nanargmax(mean['mean']), mean['mean'].shape)
  left, _, top, _ = places_lib.EXTENT[frame]
  x, y = left + x / places_lib.CELLS, top + y / places_lib.CELLS
  radius = 0.48 * _SIDE
  origin = 44 if frame == 'disc' else 32
  assert x * radius == pytest.approx(52 - origin, abs=2.5)
  if frame == 'disc':
    assert y * radius == pytest.approx(0, abs=2.5)
  assert np.isfinite(mean['mean']).sum() > 0.3 * mean['mean'].size
  # Nothing is seen on the other side of the disc.
  assert np.nanmean(mean['mean'][:, : mean['mean'].shape[1] // 3]) < 1e-3


def test_recall_and_examples_follow_the_operating_point():
  photographs = constructed.photographs(
    8,
    quality=np.asarray([0, 0, 0, 1, 1, 1, 1, 1]),
    criteria=np.asarray([[0] * 4] * 3 + [[0, 0, 0, 1]] * 5),
  )
  for i, side in enumerate((0, 0, 10, 0, 4, 6, 12, 16)):
    photographs.images[i, 20 : 20 + side, 20 : 20 + side] = 255
  result, shown = _reviewed(photographs)
  p = shown['groups']['artifacts']['group'].p
  right = p >= 0.5
  assert 0 < right.sum() < 5 and (np.diff(p) > 0).all()
  found = result['groups']['artifacts']
  assert found['recall'] == right.mean()
  assert found['low'] < found['recall'] < found['high']
  assert found['examples']['right'][0] == 'made-7'
  assert found['examples']['wrong'][0] == 'made-3'
  nearest = 3 + np.abs(p - 0.5).argmin()
  assert found['examples']['borderline'][0] == f'made-{nearest}'
  adequate = result['groups']['adequate']
  assert adequate['recall'] == pytest.approx(2 / 3)
  assert adequate['examples']['wrong'] == ['made-2']
  # No positive evidence for adequate: this network has none.
  assert adequate['target'] == 'adequate_margin' and adequate['empty'] == 3
  assert adequate['regions']['centre']['share']['mean'] is None
  assert 'focus' not in result['groups']


def test_the_criteria_task_explains_each_criterion_itself():
  result, _ = _reviewed(_spotted(), 'criteria')
  assert result['groups']['artifacts']['target'] == 'artifacts'
  assert result['groups']['artifacts']['recall'] == 1
  relabelled = _spotted()
  relabelled.criteria[:] = [1, 0, 0, 1]
  result, _ = _reviewed(relabelled, 'criteria')
  # Spots are not seen as a fault of focus, though the verdict is right.
  assert result['groups']['focus']['recall'] == 0
  assert result['groups']['focus']['empty'] == 6


def test_without_criteria_the_verdict_is_reviewed():
  photographs = _spotted()
  photographs.criteria[:] = -1
  result, _ = _reviewed(photographs)
  assert list(result['groups']) == ['inadequate']
  photographs.quality[:] = -1
  with pytest.raises(ValueError, match='no photograph has a label'):
    _reviewed(photographs)


def test_unknown_discs_and_eyes_are_estimated_and_said_to_be():
  photographs = constructed.photographs(4)
  photographs.landmarks[1:] = np.nan
  photographs.eyes[:] = ''
  photographs.images[:, 28:36, 40:48] = (250, 220, 150)
  photographs.images[2] = photographs.images[2, :, ::-1]
  places = places_lib.Places.of(photographs)
  assert list(places.disc_estimated) == [False, True, True, True]
  np.testing.assert_allclose(places.disc[0], [44, 32])
  np.testing.assert_allclose(places.disc[1], [44, 32], atol=1.5)
  np.testing.assert_allclose(places.disc[2], [20, 32], atol=1.5)
  assert list(places.left) == [False, False, True, False]
  assert places.eye_estimated.all()
  result, _ = _reviewed(photographs)
  assert result['disc'] == {'known': 1, 'estimated': 3}
  assert (
    'estimated (the brightest spot of its size) in 3'
    in review_figures.table(result)
  )


def test_regions_are_a_partition():
  inside = constructed.photographs(1).inside[0]
  for left in (False, True):
    masks = places_lib.regions(inside, np.asarray([32, 32]), 30.72, left)
    assert (sum(m.astype(int) for m in masks.values()) == 1).all()
    assert masks['nasal'][32, 10] == left
    assert masks['temporal'][32, 10] != left
  assert tuple(masks) == places_lib.REGIONS


def test_everything_can_be_shown(tmp_path):
  result, shown = _reviewed(_spotted())
  run_directory.write_json(tmp_path / 'review.json', result)
  paths = review_figures.draw(result, shown, tmp_path)
  assert [p.name for p in paths] == [
    'recall.png',
    'regions.png',
    'mean_maps.png',
    'examples_artifacts.png',
  ]
  for path in paths:
    assert path.stat().st_size > 5000
    assert path.with_suffix('.pdf').stat().st_size > 2000
  with pytest.raises(ValueError, match="'macula' is none of disc, field"):
    _reviewed(_spotted(), frame='macula')
