"""300 photographs, 60 of them damaged, killed five times and started again."""

from __future__ import annotations

import csv
import io
import os
import pathlib
import random
import shutil
import subprocess
import time
import zlib

import numpy as np
from PIL import Image
import pytest

from tests.export import export_material as material

KILLS = 5
# Kinds of damage, five photographs each.
CUT = ('truncated', 'unreadable', 'not_an_image')


def _damaged(root: pathlib.Path, rng: np.random.Generator):
  """Writes 60 odd files; returns key -> (statuses it may have, size or None).

  The size is that of the upright photograph, for those that can be read.
  """
  expected: dict[str, tuple[tuple[str, ...], tuple[int, int] | None]] = {}
  root.mkdir()

  def add(name, statuses, size=None):
    expected[name] = (statuses, size)
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    return path

  for i in range(5):
    pixels = material.fundus(rng)
    photograph = Image.fromarray(pixels)
    size = photograph.size
    whole = root / 'whole.tmp'
    photograph.save(whole, 'JPEG')
    data = whole.read_bytes()
    whole.unlink()
    cut = int(rng.integers(1, len(data) - 200))
    add(f'cut{i}.jpg', CUT).write_bytes(data[:cut])
    if i % 2:
      add(f'zero{i}.jpg', ('not_an_image',)).write_bytes(b'')
    else:
      add(f'text{i}.jpg', ('not_an_image',)).write_text('dear diary ' * 50)
    photograph.convert('CMYK').save(add(f'cmyk{i}.jpg', ('ok',), size))
    grey = pixels.mean(2)
    deep = Image.fromarray((257 * grey).astype(np.uint16))
    deep.save(add(f'deep{i}.png', ('ok',), size))
    shallow = Image.fromarray(grey.astype(np.uint8))
    shallow.save(add(f'grey{i}.{("png", "jpg", "tif")[i % 3]}', ('ok',), size))
    if i % 2:
      photograph.quantize(64).save(add(f'palette{i}.png', ('ok',), size))
    else:
      alpha = photograph.copy()
      alpha.putalpha(200)
      alpha.save(add(f'alpha{i}.png', ('ok',), size))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    photograph.save(add(f'turned{i}.jpg', ('ok',), size[::-1]), exif=exif)
    if i % 2:
      Image.new('RGB', (1, 1)).save(add(f'dot{i}.png', ('too_small',)))
    else:
      wide = Image.new('RGB', (20_000, 40), (90, 50, 20))
      wide.save(add(f'wide{i}.jpg', ('ok',), wide.size))
    if i == 0:
      # As root every file is readable; another user's is not.
      hidden = add('hidden.jpg', ('permission',) if os.geteuid() else ('ok',),
                   None if os.geteuid() else size)  # fmt: skip
      photograph.save(hidden)
      hidden.chmod(0)
    elif i < 3:
      bomb = bytearray(_png(photograph.resize((64, 64))))
      bomb[16:24] = b'\x00\x00\x80\x00' * 2  # says 32768 x 32768
      bomb[29:33] = zlib.crc32(bomb[12:29]).to_bytes(4, 'big')
      add(f'bomb{i}.png', ('too_large',)).write_bytes(bomb)
    else:
      add(f'broken{i}.jpg', ('missing',)).symlink_to('nowhere.jpg')
    photograph.save(add(f'{"left" if i % 2 else "right"}/{i // 2}.jpg', ('ok',),
                        size))  # fmt: skip
    name = ('眼底', 'œil', 'Ωμέγα', 'глаз', 'a b\'";&<b>')[i]
    photograph.save(add(f'{name}.jpg', ('ok',), size))
    photograph.save(add('n' * 240 + f'{i}.jpg', ('ok',), size))
  return expected


def _written(output: pathlib.Path) -> int:
  try:
    return len(os.listdir(output / 'npz'))
  except FileNotFoundError:
    return 0


def _png(image: Image.Image) -> bytes:
  file = io.BytesIO()
  image.save(file, 'PNG')
  return file.getvalue()


@pytest.mark.slow
def test_killed_five_times_and_nothing_is_lost(tmp_path):
  rng = np.random.default_rng(7)
  root, output = tmp_path / 'photographs', tmp_path / 'out'
  expected = _damaged(root, rng)
  assert len(expected) == 60
  for i in range(240):
    width, height = int(rng.integers(420, 560)), int(rng.integers(400, 460))
    material.save(root / f'{i}.jpg', rng, width=width, height=height)
    expected[f'{i}.jpg'] = (('ok',), (width, height))
  material.make_run(tmp_path / 'run', size=32)
  cache = tmp_path / 'cache'
  cache.mkdir(mode=0o700)
  line = material.command(
    tmp_path / 'run',
    root,
    output,
    '--workers=1',
    '--batch_size=8',
    '--outputs=overlay,contour,npz',
    f'--compilation_cache={cache}',
  )

  def start():
    return subprocess.Popen(
      line,
      env=material.environment(),
      cwd=material.ROOT,
      stderr=subprocess.PIPE,
      text=True,
    )

  chance = random.Random(1)
  cut_short = 0
  for _ in range(KILLS):
    written = _written(output)
    process = start()
    until = time.monotonic() + 60
    wanted = written + chance.randint(5, 40)
    while _written(output) < wanted:
      assert time.monotonic() < until
      if process.poll() is not None:
        break
      time.sleep(chance.uniform(0.02, 0.06))
    cut_short += process.poll() is None
    process.kill()
    process.communicate()
  assert cut_short == KILLS, 'an export was too quick to be killed'

  process = start()
  _, errors = process.communicate(timeout=120)
  assert process.returncode == 0, errors
  with open(output / 'manifest.csv', encoding='utf-8', newline='') as file:
    rows = list(csv.DictReader(file))
  assert sorted(r['path'] for r in rows) == sorted(expected)
  pictures = []
  for row in rows:
    statuses, size = expected[row['path']]
    assert row['status'] in statuses, row
    if row['status'] != 'ok':
      assert row['reason'] and not row['overlay']
      continue
    # EXIF rotation is honoured: the sizes are those of the upright picture.
    assert (int(row['width']), int(row['height'])) == size, row['path']
    for kind in ('overlay', 'contour'):
      with Image.open(output / row[kind]) as picture:
        picture.load()
        assert picture.width == size[0]
        if row['empty_map'] == '0':
          assert picture.height == size[1]
    with np.load(output / row['npz']) as saved:
      assert saved['map'].max() == pytest.approx(
        float(row['raw_max']), rel=1e-5
      )
    pictures.append(row['overlay'])
  assert len(set(pictures)) == len(pictures)
  # Nothing half-written is left, and nothing that no row names.
  files = {str(p.relative_to(output)) for p in output.rglob('overlay/**/*.jpg')}
  assert files == set(pictures)
  assert not (output / '.incomplete').exists()

  # Each picture is its own photograph's: the same as exported in one go.
  line[line.index(f'--output={output}')] = f'--output={tmp_path / "whole"}'
  process = start()
  _, errors = process.communicate(timeout=120)
  assert process.returncode == 0, errors
  for row in rows:
    if row['status'] == 'ok':
      with (
        np.load(output / row['npz']) as ours,
        np.load(tmp_path / 'whole' / row['npz']) as theirs,
      ):
        np.testing.assert_allclose(ours['map'], theirs['map'], atol=1e-5)
      ours, theirs = (
        np.asarray(Image.open(o / row['overlay'])).astype(int)
        for o in (output, tmp_path / 'whole')
      )
      assert np.abs(ours - theirs).mean() < 0.5, row['path']
  shutil.rmtree(output)
