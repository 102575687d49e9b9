"""Other cameras, sick eyes, and pictures that are no fundus photographs."""

import dataclasses

import numpy as np
import pytest

from iqa_jax.simulation import cameras, lesions, photograph, strangers

SIZE = 96
PLAIN = cameras.Camera(
  zoom=1.0, aspect=1.0, upside_down=False, gains=(1.0, 1.0, 1.0),
  saturation=1.0, gamma=1.0, contrast=1.0, black=0.0, falling=0.0, blur=0.0,
  sharpening=0.0, noise=0.0, coarse=1, quality=95, subsampling=0,
)  # fmt: skip


@pytest.fixture(scope='module')
def drawn():
  return photograph.draw(11, SIZE, distractors=False, style=1)


def taken(drawn, mask=None, **changes):
  camera = dataclasses.replace(PLAIN, **changes)
  rng = np.random.default_rng(0)
  return cameras.retake(drawn.image, drawn.inside, camera, rng, mask)


def test_a_plain_camera_changes_next_to_nothing(drawn):
  image, inside, mask = taken(drawn)
  difference = np.abs(image[inside].astype(int) - drawn.image[inside])
  assert np.median(difference) <= 2
  assert np.array_equal(inside, drawn.inside)
  assert not mask.any()


def test_zooming_takes_the_field_and_the_fault_along(drawn):
  mask = np.zeros((SIZE, SIZE), np.uint8)
  mask[40:56, 40:56] = 255  # in the middle: it grows by 1 / zoom
  image, inside, moved = taken(drawn, mask, zoom=0.5, aspect=0.75)
  assert inside.sum() == pytest.approx(0.75 * SIZE**2, rel=0.03)
  assert not inside[:10].any() and image[:10].max() < 12  # JPEG rings
  assert (moved > 127).sum() == pytest.approx(4 * 16**2, rel=0.1)


def test_an_upside_down_picture_is_the_same_eye(drawn):
  image, _, _ = taken(drawn, upside_down=True)
  plain, _, _ = taken(drawn)
  assert np.abs(image[::-1, ::-1].astype(int) - plain).mean() < 2


def test_gains_tint_and_gamma_darkens(drawn):
  plain, inside, _ = taken(drawn)
  green, _, _ = taken(drawn, gains=(0.7, 1.1, 0.9))
  dark, _, _ = taken(drawn, gamma=1.5)

  def ratio(image):
    return image[inside][:, 1].mean() / image[inside][:, 0].mean()

  assert ratio(green) > 1.4 * ratio(plain)
  assert dark[inside].mean() < plain[inside].mean() - 10


def test_unseen_cameras_lie_outside_the_familiar_ranges():
  rng = np.random.default_rng(1)
  drawn = {
    kind: [cameras.draw(rng, kind) for _ in range(300)]
    for kind in (cameras.FAMILIAR, cameras.UNSEEN)
  }

  def most(kind):
    return [abs(np.log(camera.gamma)) for camera in drawn[kind]]

  assert max(most(cameras.FAMILIAR)) <= 0.3 <= min(most(cameras.UNSEEN))
  assert all(0.5 <= c.saturation <= 1.35 for c in drawn[cameras.FAMILIAR])
  assert not any(0.5 < c.saturation < 1.35 for c in drawn[cameras.UNSEEN])
  assert len({c.zoom for c in drawn[cameras.FAMILIAR]}) > 50


def test_lesions_stay_inside_and_leave_most_as_it_was(drawn):
  changed = []
  for seed in range(12):
    sick = lesions.apply(drawn.image, drawn.inside, np.random.default_rng(seed))
    assert np.array_equal(sick[~drawn.inside], drawn.image[~drawn.inside])
    difference = np.abs(sick.astype(int) - drawn.image).max(-1)
    changed.append((difference[drawn.inside] > 40).mean())
  assert max(changed) > 0.001
  assert np.median(changed) < 0.1


def test_strangers_are_pictures_of_many_kinds():
  pictures = [np.full((80, 120, 3), 200, np.uint8)]
  looks = set()
  for seed in range(16):
    image = strangers.draw(np.random.default_rng(seed), pictures)
    assert image.dtype == np.uint8 and image.ndim == 3
    assert min(image.shape[:2]) >= 32
    looks.add(tuple(np.round(image.mean((0, 1)))))
  assert len(looks) > 12
