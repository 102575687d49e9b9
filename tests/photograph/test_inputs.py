"""Which photographs are found, and where their outputs may go."""

from __future__ import annotations

import itertools
import os
import pathlib

from hypothesis import given, settings
from hypothesis import strategies as st
import pytest

from iqa_jax.photograph import images, inputs


def touch(*paths: pathlib.Path) -> None:
  for path in paths:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b'x')


def find(images_, root=None):
  return inputs.find(str(images_), root, images.SUFFIXES)


def test_folder_with_links_and_loops(tmp_path):
  root = tmp_path / 'photographs'
  touch(root / 'b.JPG', root / 'a/é.png', root / 'notes.txt')
  (root / 'broken.jpeg').symlink_to('nowhere')
  (root / 'a/loop').symlink_to(root)
  touch(tmp_path / 'elsewhere/c.tif')
  (root / 'linked').symlink_to(tmp_path / 'elsewhere')
  found = find(root)
  assert found.keys == ['a/é.png', 'b.JPG', 'broken.jpeg', 'linked/c.tif']
  assert found.ignored == 1
  assert found.root == str(root)


def test_link_to_itself_is_an_input_like_others(tmp_path):
  touch(tmp_path / 'a.jpg')
  for name in ('loop.jpg', 'loop'):
    (tmp_path / name).symlink_to(name)
  found = find(tmp_path)
  assert (found.keys, found.ignored) == (['a.jpg', 'loop.jpg'], 1)


def test_file_and_pattern(tmp_path):
  touch(tmp_path / 'x/1.jpg', tmp_path / 'x/y/2.jpg', tmp_path / 'x/3.png')
  one = find(tmp_path / 'x/1.jpg')
  assert (one.root, one.keys) == (str(tmp_path / 'x'), ['1.jpg'])
  many = find(tmp_path / 'x/**/*.jpg')
  assert (many.root, many.keys) == (str(tmp_path / 'x'), ['1.jpg', 'y/2.jpg'])


@pytest.mark.parametrize('name', ['', 'nothing.jpg', 'no*.jpg', 'no.csv'])
def test_nothing_there(tmp_path, name):
  with pytest.raises(inputs.InputError, match=str(tmp_path)):
    find(tmp_path / name)


def test_list(tmp_path):
  touch(tmp_path / 'img1.png', tmp_path / 'sub/2.jpg')
  (tmp_path / 'list.csv').write_text(
    '\ufeffgrade,Image_ID\n0,img1\n1,sub/2.jpg\n0,img1\n1,gone.jpg\n', 'utf-8'
  )
  found = find(tmp_path / 'list.csv')
  assert found.keys == ['gone.jpg', 'img1.png', 'sub/2.jpg']
  assert found.repeated == 1
  assert find(tmp_path / 'list.csv', '/data').root == '/data'


def test_list_names_a_photograph_once_however_it_is_spelt(tmp_path):
  touch(
    tmp_path / 'a/p.jpg', tmp_path / 'far/off/q.jpg', tmp_path / 'far/p.jpg'
  )
  (tmp_path / 'a/link').symlink_to(tmp_path / 'far/off')
  names = [
    'a/p.jpg', './a/p.jpg', 'a//p.jpg', 'a/./p.jpg', 'a/../a/p.jpg', 'a/p',
    str(tmp_path / 'a/p.jpg'),
    # Behind a link, '..' is the parent of where it leads.
    'a/link/../p.jpg', 'gone/../p.jpg',
  ]  # fmt: skip
  (tmp_path / 'list.csv').write_text('path\n' + '\n'.join(names) + '\n')
  found = find(tmp_path / 'list.csv')
  assert found.keys == ['a/link/../p.jpg', 'a/p.jpg', 'gone/../p.jpg']
  assert found.repeated == 6


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    (b'', 'no column'),
    (b'a,b\n1,2\n', "found 'a', 'b'"),
    (b'image\n', 'lists no photograph'),
    (b'grade,image\n1,\n', 'line 2'),
    (b'image\na\0b\n', 'line 2|NUL'),
    (b'image\n\xff\xfe\n', 'not a CSV list'),
  ],
)
def test_damaged_lists_are_refused(tmp_path, text, message):
  path = tmp_path / 'list.csv'
  path.write_bytes(text)
  with pytest.raises(inputs.InputError, match=message):
    find(path)


NAMES = st.text(min_size=1, max_size=300) | st.sampled_from(
  ['../../etc/passwd', '/abs/x.jpg', '..', '.', '-rf.jpg', 'C:\\x\\y.jpg',
   'a/../../b.jpg', '=cmd.jpg', '\udcff\udcfe.jpg', 'x/' * 200 + 'y.png',
   'nul\nline.jpg', '.hidden.jpg', 'ü' * 250 + '.jpg']
)  # fmt: skip


@settings(max_examples=500, deadline=None)
@given(keys=st.lists(NAMES, min_size=2, max_size=6, unique=True))
def test_output_names_stay_inside_and_apart(keys):
  names = [inputs.output_name(key) for key in keys]
  # Also where the disk does not tell upper from lower case.
  assert len({name.casefold() for name in names}) == len(keys)
  for name in names:
    path = os.path.normpath(os.path.join('/out/overlay', f'{name}.jpg'))
    assert path.startswith('/out/overlay/')
    assert all(0 < len(os.fsencode(p)) <= 120 for p in name.split('/'))
    assert not any(p.startswith(('.', '-', '=')) for p in name.split('/'))
    assert name.isprintable()


def test_output_names_are_recognisable():
  assert inputs.output_name('left/img 1.jpg').startswith('left/img_1-')


def test_shards_cover_everything_once():
  keys = [f'{i}.jpg' for i in range(1000)]
  shards = [[k for k in keys if inputs.in_shard(k, s, 7)] for s in range(7)]
  assert sorted(itertools.chain(*shards)) == sorted(keys)
  assert min(map(len, shards)) > 100
  sample = [k for k in keys if inputs.sampled(k, 0.1)]
  assert 60 < len(sample) < 150
