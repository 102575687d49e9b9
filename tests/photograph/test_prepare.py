"""prepare: every path hands the network the same pixels."""

import numpy as np
from PIL import Image
import pytest
from scipy import ndimage

from iqa_jax.data import decoding, records
from iqa_jax.export import worker
from iqa_jax.photograph import images, prepare
from iqa_jax.studies import photographs
from tests.export import export_material as material

# Below and above the sizes from which photographs are halved first.
_SIZES = ((700, 520), (2300, 2100))


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp('photographs')
  rng = np.random.default_rng(0)
  for width, height in _SIZES:
    small = material.fundus(rng, width=width // 2, height=height // 2)
    large = Image.fromarray(small).resize((width, height))
    for ending in ('png', 'jpg'):
      large.save(folder / f'{width}_{ending}.{ending}')
  return folder


def _exported(path, size):
  settings = worker.Settings(
    output='', temporary='', outputs=('npz',), size=size, colors='viridis',
    opacity=0.5, quality=90, max_side=0, budget=0,
  )  # fmt: skip
  return worker.Worker(settings).decode(0, str(path)).image


def _batched(record, size):
  """Returns what tf.data makes of a record."""
  import tensorflow as tf

  stored = record['image'].getvalue()
  whole = np.asarray([0, 0, 1], np.float32)
  image = decoding.decode(tf, stored, whole, max(size, prepare.SIZE))
  return decoding.resize(tf, image, size).numpy()


@pytest.mark.parametrize('size', [64, 224, 448])
def test_all_paths_hand_over_the_same_pixels(folder, size):
  studied = photographs.read(str(folder), size)
  assert len(studied) == 2 * len(_SIZES)
  for name, image in zip(studied.ids, studied.images, strict=True):
    [path] = folder.glob(f'{name}.*')
    np.testing.assert_array_equal(image, _exported(path, size))
    # A record is that, but for its JPEG, of which both sides start here.
    record = records.from_file(path)
    held = prepare.stored(images.read(path).image, prepare.SIZE).image
    assert record['image'].getvalue() == records.encode(held).getvalue()
    np.testing.assert_array_equal(image, prepare.resize(held, size))
    unpacked = np.asarray(Image.open(record['image']))
    batched = _batched(record, size)
    np.testing.assert_array_equal(batched, prepare.resize(unpacked, size))
    # And at 224 px the JPEG leaves the sharpness that is judged alone.
    green = [x[..., 1].astype(float) for x in (image, batched)]
    one, other = (np.std(ndimage.laplace(x)) for x in green)
    assert size > 224 or other == pytest.approx(one, rel=0.02)


def test_all_pixels_of_a_record_are_prepared_as_its_file_is(folder):
  """Records that hold whole files: alike but for the halving by the DCT."""
  import tensorflow as tf

  for path in sorted(folder.glob('*.jpg')):
    record = records.from_file(path, original=True)
    table = {
      'affine': record['affine'][None],
      'size': np.array([record['size']]),
      'width': np.array([record['width']]),
      'original': np.array([True]),
    }
    box = decoding.boxes(table, np.array([0]))[0]
    image = decoding.decode(tf, record['image'].getvalue(), box, prepare.SIZE)
    image = decoding.fit(tf, image, tf.constant(box), prepare.SIZE)
    found = decoding.resize(tf, image, 224).numpy().astype(int)
    expected = _exported(path, 224).astype(int)
    assert np.abs(found - expected).mean() < 0.5
    one, other = (
      np.std(ndimage.laplace(x[..., 1].astype(float)))
      for x in (found, expected)
    )
    assert other == pytest.approx(one, rel=0.02)


def test_where_the_pixels_come_from(folder):
  for width, height in _SIZES:
    pixels = images.read(folder / f'{width}_png.png').pixels
    done = prepare.photograph(pixels, 96)
    assert done.image.shape == (96, 96, 3) and done.inside.shape == (96, 96)
    x, y = done.affine @ [48, 48, 1]
    assert abs(x - done.field.cx) < width / 96
    assert abs(y - done.field.cy) < height / 96
    seen = done.image.max(-1) > 40
    assert (seen != done.inside).mean() < 0.02
