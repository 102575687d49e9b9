"""Reading photographs of every kind, and of no kind at all."""

import io
import os
import struct
import zlib

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
import numpy as np
from PIL import Image
import pytest

from iqa_jax.photograph import images
from iqa_jax.simulation import photograph
from tests.photograph import dicom


@pytest.fixture(scope='module')
def drawn():
  return photograph.draw(3, 96, distractors=False).image


def save(path, pixels, **options):
  Image.fromarray(pixels).save(path, **options)
  return path


def test_formats_agree(tmp_path, drawn):
  for suffix in ('png', 'tif'):
    read = images.read(save(tmp_path / f'a.{suffix}', drawn))
    np.testing.assert_array_equal(read.pixels, drawn)
  jpeg = images.read(save(tmp_path / 'a.jpg', drawn, quality=98))
  assert np.abs(jpeg.pixels.astype(int) - drawn).mean() < 3


@pytest.mark.parametrize('orientation', range(1, 9))
def test_exif_orientation_is_honoured(tmp_path, drawn, orientation):
  landscape = drawn[:60]
  turns = {
    1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud,
    5: lambda a: a.swapaxes(0, 1), 6: lambda a: np.rot90(a, 1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1), 8: lambda a: np.rot90(a, -1),
  }  # fmt: skip
  stored = Image.fromarray(np.ascontiguousarray(turns[orientation](landscape)))
  exif = Image.Exif()
  exif[0x0112] = orientation
  stored.save(tmp_path / 'a.png', exif=exif)
  read = images.read(tmp_path / 'a.png')
  np.testing.assert_array_equal(read.pixels, landscape)
  assert (read.height, read.width) == landscape.shape[:2]


def test_other_modes(tmp_path, drawn):
  rgb = Image.fromarray(drawn)
  grey = np.asarray(rgb.convert('L'))
  save(tmp_path / 'grey.png', grey)
  Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / 'deep.png')
  rgb.convert('CMYK').save(tmp_path / 'cmyk.jpg', quality=98)
  rgb.quantize(256).save(tmp_path / 'palette.png')
  rgba = np.dstack([drawn, np.full(drawn.shape[:2], 255, np.uint8)])
  rgba[:10, :, 3] = 0
  save(tmp_path / 'alpha.png', rgba)
  for name in ('grey.png', 'deep.png'):
    read = images.read(tmp_path / name).pixels
    np.testing.assert_array_equal(read, np.repeat(grey[..., None], 3, 2))
  for name in ('cmyk.jpg', 'palette.png'):
    read = images.read(tmp_path / name).pixels
    assert np.abs(read.astype(int) - drawn).mean() < 6
  read = images.read(tmp_path / 'alpha.png').pixels
  assert not read[:10].any()
  np.testing.assert_array_equal(read[10:], drawn[10:])


def test_dicom(tmp_path, drawn):
  pytest.importorskip('pydicom')
  dicom.save(tmp_path / 'a.dcm', drawn)
  read = images.read(tmp_path / 'a.dcm')
  np.testing.assert_array_equal(read.pixels, drawn)
  grey = drawn[..., 1]
  for bits, kind in (
    (8, 'MONOCHROME2'),
    (12, 'MONOCHROME2'),
    (8, 'MONOCHROME1'),
  ):
    stored = grey.astype(np.uint16) << (bits - 8) if bits > 8 else grey
    dicom.save(tmp_path / 'g.dcm', stored, bits=bits, kind=kind)
    found = images.read(tmp_path / 'g.dcm').pixels
    expected = 255 - grey if kind == 'MONOCHROME1' else grey
    np.testing.assert_array_equal(found, np.repeat(expected[..., None], 3, 2))
  data = (tmp_path / 'a.dcm').read_bytes()
  (tmp_path / 'b.dcm').write_bytes(data[: len(data) // 2])
  with pytest.raises(images.ImageError):
    images.read(tmp_path / 'b.dcm')


def test_draft_scales_jpegs_by_their_dct(tmp_path, drawn):
  large = np.asarray(Image.fromarray(drawn[:64]).resize((3000, 2000)))
  path = save(tmp_path / 'a.jpg', large, quality=90)
  read = images.read(path, 224)
  # 1/4 leaves 750 x 500, which is over twice 224; 1/8 would not be.
  assert read.pixels.shape == (500, 750, 3)
  assert (read.height, read.width) == (2000, 3000)
  assert read.scale == (4.0, 4.0)
  small = Image.fromarray(large).resize((750, 500), Image.Resampling.BOX)
  assert np.abs(read.pixels.astype(int) - np.asarray(small)).mean() < 2


def test_statuses(tmp_path, drawn):
  jpeg = save(tmp_path / 'a.jpg', drawn, quality=95).read_bytes()
  cases = {
    'empty.jpg': (b'', 'not_an_image'),
    'text.jpg': (b'no image at all', 'not_an_image'),
    'cut.jpg': (jpeg[: len(jpeg) // 2], 'truncated'),
    'header.jpg': (jpeg[:30], 'truncated'),
  }
  for name, (data, status) in cases.items():
    (tmp_path / name).write_bytes(data)
    for min_size in (None, 32):
      with pytest.raises(images.ImageError, match=name) as caught:
        images.read(tmp_path / name, min_size)
      assert (
        caught.value.status in (status, 'unreadable')[: 1 + (name[0] == 'h')]
      )
  save(tmp_path / 'tiny.png', drawn[:1, :1])
  (tmp_path / 'link.jpg').symlink_to(tmp_path / 'nowhere.jpg')
  (tmp_path / 'folder.jpg').mkdir()
  for name, status in (
    ('tiny.png', 'too_small'),
    ('link.jpg', 'missing'),
    ('nowhere.jpg', 'missing'),
    ('folder.jpg', 'unreadable'),
  ):
    with pytest.raises(images.ImageError) as caught:
      images.read(tmp_path / name)
    assert caught.value.status == status


def test_unreadable_by_permission(tmp_path, drawn, monkeypatch):
  path = save(tmp_path / 'a.png', drawn)
  if os.geteuid() == 0:  # root reads everything

    def refused(*unused, **unused_too):
      raise PermissionError(13, 'Permission denied')

    monkeypatch.setattr('builtins.open', refused)
  else:
    path.chmod(0)
  with pytest.raises(images.ImageError) as caught:
    images.read(path)
  assert caught.value.status == 'permission'


def test_decompression_bomb_is_refused_from_its_header(tmp_path):
  path = tmp_path / 'bomb.png'
  Image.new('1', (30000, 30000)).save(path)
  assert path.stat().st_size < 1e6
  with pytest.raises(images.ImageError) as caught:
    images.read(path)
  assert caught.value.status == 'too_large'
  assert '30000' in caught.value.reason or 'exceeds' in caught.value.reason


def _encoded(pixels):
  made = []
  for form, options in (
    ('JPEG', {'quality': 80}),
    ('JPEG', {'progressive': True}),
    ('PNG', {}),
    ('TIFF', {'compression': 'tiff_lzw'}),
    ('TIFF', {}),
  ):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form, **options)
    made.append(file.getvalue())
  return made


_FILES = _encoded(photograph.draw(1, 48, distractors=False).image)


@settings(
  max_examples=1000,
  deadline=None,
  derandomize=True,
  suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
  which=st.integers(0, len(_FILES) - 1),
  edits=st.lists(
    st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=4)), max_size=6
  ),
  keep=st.floats(0, 1),
  whole=st.booleans(),
  min_size=st.sampled_from([None, 16, 224]),
)
@pytest.mark.filterwarnings('ignore::UserWarning:PIL')
def test_damage_raises_nothing_but_image_errors(
  tmp_path, which, edits, keep, whole, min_size
):
  data = bytearray(_FILES[which])
  for where, replacement in edits:
    at = int(where * len(data))
    data[at : at + len(replacement)] = replacement
  path = tmp_path / 'a.jpg'
  path.write_bytes(bytes(data if whole else data[: int(keep * len(data))]))
  try:
    read = images.read(path, min_size)
  except images.ImageError as error:
    assert error.status in images.STATUSES
    assert error.reason and '\n' not in error.reason
  else:
    assert read.pixels.dtype == np.uint8 and read.pixels.shape[2] == 3


def save_tiff(path, pixels, **tags):
  from PIL import TiffImagePlugin

  info = TiffImagePlugin.ImageFileDirectory_v2()
  for tag, value in tags.items():
    info[int(tag[1:])] = value
  Image.fromarray(pixels).save(path, tiffinfo=info)


@pytest.mark.parametrize('hot', [False, True])
@pytest.mark.parametrize('suffix', ['png', 'tif'])
def test_twelve_bits_in_sixteen_are_not_black(tmp_path, drawn, suffix, hot):
  grey = drawn[..., 1]
  deep = np.rint(grey * (4095 / 255)).astype(np.uint16)
  if hot:
    deep[40, 40] = 65535
  path = tmp_path / f'a.{suffix}'
  save(path, deep)
  found = images.read(path).pixels[..., 0]
  same = np.ones_like(grey, bool)
  same[40, 40] = not hot
  np.testing.assert_array_equal(found[same], grey[same])


def test_a_dark_photograph_of_sixteen_bits_stays_dark(tmp_path, drawn):
  dark = drawn[..., 1].astype(np.uint16) * 257 // 6
  save(tmp_path / 'a.png', dark)
  found = images.read(tmp_path / 'a.png').pixels[..., 0]
  np.testing.assert_array_equal(found, np.rint(dark / 257))


def test_a_declared_depth_counts_whatever_the_values_are(tmp_path, drawn):
  grey = drawn[..., 1] // 5
  save_tiff(tmp_path / 'a.tif', grey.astype(np.uint16) << 6, t281=2**14 - 1)
  found = images.read(tmp_path / 'a.tif').pixels[..., 0].astype(int)
  assert np.abs(found - grey).max() <= 1
  # The largest value that happens to be there is no depth.
  deep = drawn[..., 1].astype(np.uint16) * 100
  save_tiff(tmp_path / 'b.tif', deep, t281=int(deep.max()))
  found = images.read(tmp_path / 'b.tif').pixels[..., 0]
  np.testing.assert_array_equal(found, np.rint(deep / 257))


def deep_png(pixels) -> bytes:
  """Returns uint16 [h, w, 3] as a PNG of 16 bits, which Pillow can't write."""
  h, w = pixels.shape[:2]
  rows = pixels.astype('>u2').reshape(h, -1).view(np.uint8)
  rows = np.pad(rows, [(0, 0), (1, 0)])
  file = b'\x89PNG\r\n\x1a\n'
  for name, data in (
    (b'IHDR', struct.pack('>IIBBBBB', w, h, 16, 2, 0, 0, 0)),
    (b'IDAT', zlib.compress(rows.tobytes())),
    (b'IEND', b''),
  ):
    check = struct.pack('>I', zlib.crc32(name + data))
    file += struct.pack('>I', len(data)) + name + data + check
  return file


def test_colours_of_twelve_bits_are_refused_not_black(tmp_path, drawn):
  for factor, refused in ((16, True), (257, False)):
    path = tmp_path / f'{factor}.png'
    path.write_bytes(deep_png(drawn.astype(np.uint16) * factor))
    if refused:
      with pytest.raises(images.ImageError, match='unreadable: colours of 12'):
        images.read(path)
    else:
      np.testing.assert_array_equal(images.read(path).pixels, drawn)


def test_a_tiff_of_several_pages_is_refused(tmp_path, drawn):
  pages = [Image.fromarray(drawn), Image.fromarray(drawn[::-1].copy())]
  pages[0].save(tmp_path / 'a.tif', save_all=True, append_images=pages[1:])
  with pytest.raises(images.ImageError, match='unreadable: a TIFF of 2 pages'):
    images.read(tmp_path / 'a.tif')
  # A smaller copy of the same photograph is none.
  from PIL import TiffImagePlugin

  smaller = Image.fromarray(drawn).reduce(2)
  smaller.encoderinfo = {'tiffinfo': TiffImagePlugin.ImageFileDirectory_v2()}
  smaller.encoderinfo['tiffinfo'][254] = 1
  pages[0].save(tmp_path / 'b.tif', save_all=True, append_images=[smaller])
  np.testing.assert_array_equal(images.read(tmp_path / 'b.tif').pixels, drawn)


def _swapped_profile() -> bytes:
  """A profile of sRGB's curves whose red primary is sRGB's blue."""
  from PIL import ImageCms

  data = bytearray(
    ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()
  )
  count = int.from_bytes(data[128:132], 'big')
  at = {bytes(data[i : i + 4]): i for i in range(132, 132 + 12 * count, 12)}
  red, blue = at[b'rXYZ'] + 4, at[b'bXYZ'] + 4
  data[red : red + 8], data[blue : blue + 8] = (
    data[blue : blue + 8],
    data[red : red + 8],
  )
  return bytes(data).replace('sRGB'.encode('utf-16-be'), b'\0T\0e\0s\0t')


@pytest.mark.parametrize('suffix', ['png', 'tif', 'jpg'])
def test_colour_profiles_are_heeded(tmp_path, drawn, suffix):
  from PIL import ImageCms

  path = tmp_path / f'a.{suffix}'
  options = {'quality': 100, 'subsampling': 0} if suffix == 'jpg' else {}
  save(path, drawn, icc_profile=_swapped_profile(), **options)
  found = images.read(path).pixels.astype(int)
  # Of a file whose red is blue the channels change places.
  tolerance = 8 if suffix == 'jpg' else 2
  assert np.abs(found - drawn[..., ::-1]).max() <= tolerance
  # sRGB's own, none and a damaged one change no bit.
  save(path, drawn, **options)
  plain = images.read(path).pixels
  srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()
  for profile in (srgb, b'no profile at all'):
    save(path, drawn, icc_profile=profile, **options)
    np.testing.assert_array_equal(images.read(path).pixels, plain)


def test_records_of_other_colours_hold_srgb(tmp_path, drawn):
  from iqa_jax.data import records

  path = tmp_path / 'a.jpg'
  options = {'quality': 95, 'subsampling': 0}
  save(path, drawn, icc_profile=_swapped_profile(), **options)
  stored = records.from_file(path, original=True)['image']
  expected = images.read(path).pixels.astype(int)
  assert np.abs(np.asarray(Image.open(stored)) - expected).mean() < 2
