"""The batch export, in this process, with a tiny model."""

from __future__ import annotations

import csv
import dataclasses
import functools
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import threading
import time

import jax
import numpy as np
from PIL import Image
import pytest

from iqa_jax import inference, models, run_directory, runtimes, trained
from iqa_jax.explain import cam, scaling
from iqa_jax.export import crew, manifest, messages, worker
from iqa_jax.export import run as export
from iqa_jax.export.journal import ManifestError
from iqa_jax.export.model import Model
from iqa_jax.export.options import (
  DEFAULT_OUTPUTS,
  SCALINGS,
  ExportError,
  Options,
  Summary,
)
from iqa_jax.judging import advice
from iqa_jax.models import heads
from iqa_jax.photograph import geometry, images, prepare
from tests.export import export_material as material
from tests.photograph import dicom

JUDGED = {
  'calibration': {'method': 'platt', 'scale': 2.0, 'offset': 0.3},
  'operating_point': {'rule': 'fixed', 'threshold': 0.555},
  'uncertain_band': [0.5, 0.6],
}


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  path = tmp_path_factory.mktemp('run')
  material.make_run(path, **JUDGED)
  return path


@pytest.fixture(scope='module')
def photographs(tmp_path_factory):
  root = tmp_path_factory.mktemp('photographs')
  rng = np.random.default_rng(0)
  for i in range(9):
    material.save(root / f'{i}.jpg', rng, width=150 + 20 * i, height=140)
  material.save(root / 'left/1.jpg', rng)
  (root / 'gone.jpg').symlink_to('nowhere')
  (root / 'loop.jpg').symlink_to('loop.jpg')
  (root / 'text.jpg').write_text('no image')
  os.mkfifo(root / 'pipe.jpg')
  return root


def options(workdir, photographs, output, **changes):
  values = {
    'progress': False,
    'workers': 1,
    'outputs': manifest.KINDS,
    # What is drawn here is a textured circle.
    'check_fundus': False,
  }
  return Options(
    str(workdir), str(photographs), str(output), **(values | changes)
  )


_models: dict[tuple, Model] = {}


def run(some: Options) -> Summary:
  """Exports without loading and compiling what an earlier test has."""
  key = (some.workdir, some.method, some.layer, some.target, some.batch_size)
  if key not in _models:
    _models[key] = Model(some)
  return export.run(some, _models[key])


def read(path: pathlib.Path) -> dict[str, dict[str, str]]:
  with open(path, encoding='utf-8', newline='') as file:
    rows = list(csv.DictReader(file))
  found = {row['path']: row for row in rows}
  assert len(found) == len(rows)
  return found


@pytest.fixture(scope='module')
def done(workdir, photographs, tmp_path_factory):
  output = tmp_path_factory.mktemp('out')
  summary = run(options(workdir, photographs, output, batch_size=4, workers=2))
  return output, summary


def test_every_input_has_a_row(done):
  output, summary = done
  rows = read(output / 'manifest.csv')
  assert len(rows) == summary.total == 14
  failed = {p: r['status'] for p, r in rows.items() if r['status'] != 'ok'}
  assert failed == {
    'gone.jpg': 'missing',
    'loop.jpg': 'missing',
    'text.jpg': 'not_an_image',
    'pipe.jpg': 'not_an_image',
  }
  assert summary.statuses == {'ok': 10, 'missing': 2, 'not_an_image': 2}
  for row in rows.values():
    assert row['reason'] or row['status'] == 'ok'
    assert row['checkpoint']
  assert not (output / '.incomplete').exists()


def test_says_what_the_network_says(done, workdir, photographs):
  """Against the network run by itself, one photograph at a time."""
  output, _ = done
  loaded = trained.load(workdir)
  apply = jax.jit(loaded.model.apply)
  explain = jax.jit(
    functools.partial(cam.explain, loaded.model, task=loaded.task)
  )
  for path, row in read(output / 'manifest.csv').items():
    if row['status'] != 'ok':
      continue
    pixels = images.read(photographs / path).pixels
    prepared = prepare.photograph(pixels, 48)
    image = models.normalize(prepared.image[None])
    logits = apply(loaded.variables, image)
    p = jax.nn.softmax(logits)[0, 1]
    odds = float(jax.numpy.log(p / (1 - p)))
    calibrated = 1 / (1 + np.exp(-(2 * odds + 0.3)))
    assert float(row['p_inadequate']) == pytest.approx(float(p), abs=1e-4)
    assert float(row['p_calibrated']) == pytest.approx(calibrated, abs=1e-4)
    verdict = 'inadequate' if calibrated >= 0.555 else 'adequate'
    assert row['verdict'] == verdict
    told = 'margin' if verdict == 'inadequate' else 'adequate_margin'
    assert row['target'] == told
    assert row['uncertain'] == str(int(0.5 <= calibrated <= 0.6))
    target = np.array([loaded.task.targets.index(told)])
    found = explain(loaded.variables, image, target)
    raw = np.asarray(found.maps['gradcam'])[0]
    saved = np.load(output / row['npz'])
    np.testing.assert_allclose(saved['map'], raw, rtol=1e-3, atol=1e-5)
    assert float(row['raw_max']) == pytest.approx(raw.max(), rel=1e-3)
    assert float(row['raw_sum']) == pytest.approx(raw.sum(), rel=1e-3)
    np.testing.assert_array_equal(saved['affine'], prepared.affine)
    assert (saved['cell_offset'], saved['cell_stride']) == (0.5, 32)
    large = np.maximum(
      scaling.enlarge(raw, (48, 48), loaded.model.placement('stage4')), 0
    )
    assert row['layer'] == 'stage4' and row['operating_point'] == '0.555'
    size = (int(row['width']), int(row['height']))
    assert size == pixels.shape[1::-1]
    cover = 0.0 if row['empty_map'] == '1' else float(row['evidence_in_field'])
    inside = (large * prepared.inside).sum() / max(large.sum(), 1e-30)
    assert cover == pytest.approx(inside, abs=1e-3)
    for kind in ('overlay', 'contour', 'panel'):
      with Image.open(output / row[kind]) as picture:
        picture.load()
        if kind == 'overlay' and row['empty_map'] == '0':
          assert picture.size == size


def test_located_landmarks_are_told_and_drawn_where_they_are(tmp_path):
  material.make_run(tmp_path / 'run', task='criteria', head='landmarks')
  rng = np.random.default_rng(5)
  path = tmp_path / 'in/a.jpg'
  material.save(path, rng, width=420, height=300)
  output = tmp_path / 'out'
  run(options(tmp_path / 'run', path, output, outputs=('overlay',)))
  row = read(output / 'manifest.csv')['a.jpg']
  loaded = trained.load(tmp_path / 'run')
  prepared = prepare.photograph(images.read(path).pixels, 48)
  image = models.normalize(prepared.image[None])
  _, sown = loaded.model.apply(
    loaded.variables, image, mutable=['intermediates']
  )
  shares = np.asarray(heads.located(sown))[0]
  told = {}
  for name, (x, y) in {'disc': shares[:2], 'fovea': shares[3:]}.items():
    at = prepared.affine @ [x * 48, y * 48, 1]
    told[name] = float(row[f'{name}_x']), float(row[f'{name}_y'])
    np.testing.assert_allclose(told[name], at, atol=0.05)
  diameter = shares[2] * 48 * prepared.affine[0, 0]
  assert float(row['disc_diameter']) == pytest.approx(diameter, rel=1e-3)
  with Image.open(output / row['overlay']) as picture:
    drawn = np.asarray(picture).astype(int)
  # The middle of the cross, in the light of the ruler's lines.
  x, y = (round(v) for v in told['fovea'])
  assert drawn[y - 1 : y + 2, x - 1 : x + 2].min(-1).max() > 180
  # The photograph itself is darker everywhere.
  assert images.read(path).pixels.min(-1).max() < 150


def test_a_head_of_evidence_says_the_cause(tmp_path):
  material.make_run(
    tmp_path / 'run',
    head='evidence',
    head_scale=100.0,
    operating_point={'rule': 'fixed', 'threshold': 0.05},
  )
  rng = np.random.default_rng(5)
  for name in 'ab':
    material.save(tmp_path / f'in/{name}.jpg', rng)
  output = tmp_path / 'out'
  some = options(tmp_path / 'run', tmp_path / 'in', output, language='pt')
  run(some)
  loaded = trained.load(tmp_path / 'run')
  kinds = ('focus', 'illumination', 'artifacts')
  for name, row in read(output / 'manifest.csv').items():
    prepared = prepare.photograph(
      images.read(tmp_path / 'in' / name).pixels, 48, field=True
    )
    x = models.normalize(prepared.image[None])
    _, state = loaded.model.apply(
      loaded.variables, x, mutable=['intermediates']
    )
    (logits, share), told = heads.found(state).cells, heads.found(state).cause
    p = 1 / (1 + np.exp(-np.asarray(told)[0]))
    inside = np.asarray(share)[0, ..., None]
    affected = (np.asarray(logits)[0] > 0) * inside
    found = [float(row[f'p_{kind}']) for kind in kinds]
    np.testing.assert_allclose(found, p, atol=1e-5)
    found = [float(row[f'share_{kind}']) for kind in kinds]
    expected = affected.sum((0, 1)) / inside.sum()
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert row['verdict'] == 'inadequate'
    visible = p.max() >= 0.5 or expected.max() >= 0.05
    if p.max() >= 0.5:
      assert row['cause'] == kinds[p.argmax()]
    assert (row['cause'] == 'unknown') != visible
    assert row['advice'] == advice.sentence(row['cause'], 'pt')
    with np.load(output / row['npz']) as saved:
      assert saved['evidence'].shape == (6, 6, 3)
      assert tuple(saved['evidence_of']) == kinds
    assert row['advice'] in (output / 'index.html').read_text()
  # What the colours mean is the same in all photographs.
  settings = json.loads(next((output / 'journal').iterdir()).open().readline())
  assert settings['settings']['scaling'] == 'logit'
  with pytest.raises(ManifestError, match='language'):
    run(dataclasses.replace(some, language='en'))


def test_averages_with_the_mirror_image_as_the_operating_point_does(tmp_path):
  """Verdict and numbers are those of the evaluation, and of a Subject."""
  from iqa_jax.studies import subject

  judged = {**JUDGED['operating_point'], 'flip_tta': True}
  material.make_run(tmp_path / 'run', **{**JUDGED, 'operating_point': judged})
  rng = np.random.default_rng(1)
  for name in 'abc':
    material.save(tmp_path / f'in/{name}.jpg', rng)
  output = tmp_path / 'out'
  run(options(tmp_path / 'run', tmp_path / 'in', output, outputs=('npz',)))
  loaded = trained.load(tmp_path / 'run')
  prepared = np.stack(
    [
      prepare.photograph(
        images.read(tmp_path / f'in/{name}.jpg').pixels, 48
      ).image
      for name in 'abc'
    ]
  )
  index = np.arange(3)
  batch = {'image': prepared, 'mask': np.ones(3), 'index': index}
  batch['image_id'] = index.astype(str)
  rows = inference.predict(loaded, [batch])
  alone = inference.predict(loaded, [batch], flip_tta=False)
  assert np.abs(rows['logits'] - alone['logits']).max() > 1e-3
  for i, row in enumerate(read(output / 'manifest.csv').values()):
    found = [float(row['logit_adequate']), float(row['logit_inadequate'])]
    np.testing.assert_allclose(found, rows['logits'][i], atol=1e-5)
    assert float(row['p_inadequate']) == pytest.approx(
      float(rows['p_inadequate'][i]), abs=1e-5
    )
  np.testing.assert_allclose(
    subject.Subject(loaded, batch_size=3).logits(prepared),
    rows['logits'],
    atol=1e-5,
  )


def test_dicom_gets_an_overlay_and_a_row(workdir, tmp_path, monkeypatch):
  pytest.importorskip('pydicom')
  rng = np.random.default_rng(2)
  pixels = material.fundus(rng)
  (tmp_path / 'in').mkdir()
  dicom.save(tmp_path / 'in/colour.dcm', pixels)
  dicom.save(
    tmp_path / 'in/grey.dcm', pixels[..., 1].astype(np.uint16) << 4, bits=12
  )
  some = options(workdir, tmp_path / 'in', tmp_path / 'out', batch_size=4)
  assert run(some).statuses == {'ok': 2}
  for name, row in read(tmp_path / 'out/manifest.csv').items():
    assert (row['width'], row['height']) == ('180', '130'), name
    with Image.open(tmp_path / 'out' / row['overlay']) as picture:
      overlay = np.asarray(picture.convert('RGB')).astype(int)
    shown = pixels if name == 'colour.dcm' else pixels[..., [1, 1, 1]]
    if row['empty_map'] == '0':
      # The photograph is seen where there is little evidence.
      assert np.median(np.abs(overlay - shown)) < 30, name

  # A worker is a process of its own; there, too, it is as if not installed.
  (tmp_path / 'stub').mkdir()
  (tmp_path / 'stub/pydicom.py').write_text('raise ImportError')
  monkeypatch.setenv('PYTHONPATH', str(tmp_path / 'stub'), prepend=os.pathsep)
  some = options(workdir, tmp_path / 'in', tmp_path / 'none', batch_size=4)
  assert run(some).statuses == {'unreadable': 2}
  for row in read(tmp_path / 'none/manifest.csv').values():
    assert "pip install 'iqa_jax[dicom]'" in row['reason']


def test_both_verdicts_are_met(done):
  rows = read(done[0] / 'manifest.csv').values()
  assert {r['verdict'] for r in rows} == {'adequate', 'inadequate', ''}


def test_large_photographs_are_halved_first_and_land_in_place():
  rng = np.random.default_rng(0)
  image = np.asarray(
    Image.fromarray(material.fundus(rng, width=700, height=520)).resize(
      (2800, 2080), Image.Resampling.BICUBIC
    )
  )
  halved = prepare.photograph(image, 224)
  direct = geometry.prepare(image, 224)
  corner = np.array([224, 224, 1.0])
  assert np.abs((halved.affine - direct.affine) @ corner).max() < 12
  difference = np.abs(halved.image.astype(int) - direct.image)
  assert np.median(difference) <= 2


def test_again_does_nothing_and_changes_are_done_again(
  workdir, photographs, tmp_path
):
  root, output = tmp_path / 'p', tmp_path / 'out'
  shutil.copytree(photographs / 'left', root)
  rng = np.random.default_rng(5)
  for name in 'abc':
    material.save(root / f'{name}.jpg', rng)
  some = options(workdir, root, output, outputs=('overlay',))
  assert run(some).skipped == 0
  times = {p: p.stat().st_mtime_ns for p in output.glob('overlay/*')}
  assert run(some).skipped == 4
  assert times == {p: p.stat().st_mtime_ns for p in output.glob('overlay/*')}
  rows = read(output / 'manifest.csv')
  # A lost output, a half-written one, a changed, a new and a removed input.
  (output / rows['a.jpg']['overlay']).unlink()
  (output / rows['b.jpg']['overlay']).write_bytes(b'half')
  material.save(root / 'c.jpg', rng, width=200)
  material.save(root / 'd.jpg', rng)
  (root / '1.jpg').unlink()
  assert run(some).skipped == 0
  rows = read(output / 'manifest.csv')
  assert sorted(rows) == ['a.jpg', 'b.jpg', 'c.jpg', 'd.jpg']
  assert {r['status'] for r in rows.values()} == {'ok'}
  assert rows['c.jpg']['width'] == '200'
  for row in rows.values():
    Image.open(output / row['overlay']).verify()
  with pytest.raises(ManifestError, match='colors'):
    run(options(workdir, root, output, outputs=('overlay',), colors='jet'))
  assert read(output / 'manifest.csv') == rows


def pictures(output: pathlib.Path) -> set[str]:
  return {
    str(p.relative_to(output))
    for kind in (*manifest.KINDS, 'thumbnail')
    for p in (output / kind).rglob('*')
    if p.is_file()
  }


def test_pictures_of_what_is_gone_go_too(workdir, tmp_path):
  rng = np.random.default_rng(5)
  for name in 'abc':
    material.save(tmp_path / f'in/{name}.jpg', rng)
  output = tmp_path / 'out'
  some = options(workdir, tmp_path / 'in', output, outputs=('overlay',))
  run(some)
  (tmp_path / 'in/a.jpg').unlink()
  (tmp_path / 'in/b.jpg').write_text('no longer a photograph')
  run(some)
  rows = read(output / 'manifest.csv')
  assert {k: r['status'] for k, r in rows.items()} == {
    'b.jpg': 'not_an_image',
    'c.jpg': 'ok',
  }
  overlay = rows['c.jpg']['overlay']
  thumbnail = overlay.replace('overlay', 'thumbnail')
  assert pictures(output) == {overlay, thumbnail}


def test_another_list_does_not_drop_the_first_in_silence(workdir, tmp_path):
  rng = np.random.default_rng(5)
  for name in 'abc':
    material.save(tmp_path / f'{name}.jpg', rng)
  for name, keys in {'first': 'ab', 'second': 'bc', 'all': 'abc'}.items():
    text = 'path\n' + ''.join(f'{k}.jpg\n' for k in keys)
    (tmp_path / f'{name}.csv').write_text(text)
  output = tmp_path / 'out'

  def some(name, **more):
    images_ = tmp_path / f'{name}.csv'
    return options(workdir, images_, output, outputs=('npz',), **more)

  run(some('first'))
  before = (output / 'manifest.csv').read_bytes(), pictures(output)
  with pytest.raises(ManifestError, match=r'1 .*\(a\.jpg.*overwrite'):
    run(some('second'))
  assert before == ((output / 'manifest.csv').read_bytes(), pictures(output))
  assert run(some('all')).skipped == 2
  assert run(some('second', overwrite=True)).skipped == 2
  rows = read(output / 'manifest.csv')
  assert sorted(rows) == ['b.jpg', 'c.jpg']
  assert {p for p in pictures(output) if p.startswith('npz')} == {
    r['npz'] for r in rows.values()
  }
  assert len(pictures(output)) == 4


@pytest.mark.slow
def test_shards_merge_to_the_whole(workdir, photographs, done, tmp_path):
  for shard in range(3):
    some = options(
      workdir,
      photographs,
      tmp_path,
      batch_size=4,
      shard_index=shard,
      num_shards=3,
    )
    with pytest.raises(ManifestError, match='has not run'):
      export.merge(some)
    run(some)
  assert export.merge(some) == 14
  merged, whole = (
    read(tmp_path / 'manifest.csv'),
    read(done[0] / 'manifest.csv'),
  )
  assert merged.keys() == whole.keys()
  for path, row in whole.items():
    for column in ('status', 'verdict', 'overlay', 'width', 'target'):
      assert merged[path][column] == row[column]
  for row in merged.values():
    if row['status'] == 'ok':
      assert (tmp_path / row['overlay']).is_file()
  assert (tmp_path / 'index.html').is_file()


@pytest.mark.slow
def test_a_killed_shard_takes_its_workers_along_and_goes_on(workdir, tmp_path):
  rng = np.random.default_rng(0)
  for i in range(60):
    material.save(tmp_path / f'in/{i}.jpg', rng)
  output = tmp_path / 'out'
  shards = [
    options(
      workdir, tmp_path / 'in', output, outputs=('npz',), batch_size=4,
      shard_index=i, num_shards=2,
    )
    for i in (0, 1)
  ]  # fmt: skip
  process = subprocess.Popen(
    material.command(
      workdir, tmp_path / 'in', output, '--outputs=npz', '--batch_size=4',
      '--workers=1', '--shard_index=0', '--num_shards=2',
    ),
    env=material.environment(),
    cwd=material.ROOT,
  )  # fmt: skip
  until = time.monotonic() + 120
  while len(list(output.glob('npz/*'))) < 12:
    assert process.poll() is None and time.monotonic() < until
    time.sleep(0.01)
  [orphan] = children(process.pid)
  process.kill()
  process.wait()
  until = time.monotonic() + 60
  while pathlib.Path(f'/proc/{orphan}/cwd').exists():
    assert time.monotonic() < until, 'a worker outlives its export'
    time.sleep(0.05)
  run(shards[1])
  with pytest.raises(ManifestError, match=r'0 of 2 is unfinished'):
    export.merge(shards[0])
  assert run(shards[0]).skipped < 30
  export.merge(shards[0])
  whole = tmp_path / 'whole'
  run(options(workdir, tmp_path / 'in', whole, outputs=('npz',), batch_size=4))
  merged, expected = (read(o / 'manifest.csv') for o in (output, whole))
  assert merged.keys() == expected.keys() and len(merged) == 60
  for path, row in expected.items():
    assert merged[path]['verdict'] == row['verdict']
    with (
      np.load(output / merged[path]['npz']) as ours,
      np.load(whole / row['npz']) as theirs,
    ):
      np.testing.assert_allclose(ours['map'], theirs['map'], atol=1e-5)


def test_list_can_neither_write_outside_nor_collide(workdir, tmp_path):
  rng = np.random.default_rng(0)
  secret = tmp_path / 'secret'
  material.save(secret / 'x.jpg', rng)
  material.save(tmp_path / 'lists/a/x.jpg', rng)
  material.save(tmp_path / 'lists/b/x.jpg', rng)
  Image.open(tmp_path / 'lists/b/x.jpg').save(tmp_path / 'lists/b/x.png')
  names = [
    '../secret/x.jpg',
    'a/x.jpg',
    'b/x.jpg',
    'b/x.png',
    str(secret / 'x.jpg'),
  ]
  listed = tmp_path / 'lists/list.csv'
  listed.write_text('image\n' + '\n'.join(names) + '\n')
  before = {p for p in tmp_path.rglob('*') if p.is_file()}
  output = tmp_path / 'deep/er/out'
  run(options(workdir, listed, output, contact_sheet=False))
  rows = read(output / 'manifest.csv')
  assert sorted(rows) == sorted(names)
  written = {p for p in tmp_path.rglob('*') if p.is_file()} - before
  assert all(output in p.parents for p in written)
  pictures = [row['overlay'] for row in rows.values()]
  assert len(set(pictures)) == len(names)


@pytest.mark.slow
def test_explains_a_criterion_of_many_colours(workdir, photographs, tmp_path):
  weights = tmp_path / 'run'
  material.make_run(weights, task='criteria', size=32)
  for how, method, layer in (
    ('logit', 'hirescam', 'stage4'),
    ('dataset', 'layercam', 'stage3'),
  ):
    output = tmp_path / how
    run(
      options(
        weights,
        photographs,
        output,
        target='focus',
        method=method,
        layer=layer,
        scaling=how,
        outputs=('overlay', 'npz'),
        max_side=60,
      )
    )
    rows = read(output / 'manifest.csv')
    one = rows['0.jpg']
    assert (one['target'], one['method'], one['layer']) == (
      'focus', method, layer,
    )  # fmt: skip
    assert one['p_calibrated'] == one['uncertain'] == ''
    fault = [float(one[f'p_{c}']) for c in
             ('focus', 'illumination', 'image_field', 'artifacts')]  # fmt: skip
    assert float(one['p_inadequate']) == pytest.approx(
      1 - np.prod(1 - np.array(fault)), abs=1e-5
    )
    with Image.open(output / one['overlay']) as picture:
      assert max(picture.size) == 60 or one['empty_map'] == '1'
  scale = json.loads((tmp_path / 'dataset/scale.json').read_text())
  largest = [float(r['raw_max']) for r in rows.values() if r['raw_max']]
  assert (
    0
    < scale['magnitude']
    <= 1.01
    * max(
      *largest, *(-float(r['raw_min']) for r in rows.values() if r['raw_min'])
    )
  )


def test_empty_maps_are_said_to_be(photographs, tmp_path):
  weights = tmp_path / 'run'
  # With no weight in the head nothing speaks for anything.
  material.make_run(weights, head_scale=0.0)
  run(options(weights, photographs, tmp_path / 'out', colors='jet'))
  rows = read(tmp_path / 'out/manifest.csv')
  original = np.asarray(Image.open(photographs / '3.jpg')).astype(int)
  assert rows['3.jpg']['empty_map'] == '1'
  assert rows['3.jpg']['evidence_in_field'] == ''
  found = np.asarray(Image.open(tmp_path / 'out' / rows['3.jpg']['overlay']))
  assert found.shape[0] > original.shape[0]  # a sentence below
  same = found[: len(original) - 8].astype(int) - original[:-8]
  assert np.abs(same).mean() < 2  # and no blue
  assert 'Empty map' in (tmp_path / 'out/index.html').read_text()


def test_network_that_runs_over_is_a_status(photographs, tmp_path):
  weights = tmp_path / 'run'
  material.make_run(weights, head_scale=float('nan'))
  run(options(weights, photographs, tmp_path / 'out'))
  rows = read(tmp_path / 'out/manifest.csv')
  assert rows['3.jpg']['status'] == 'not_finite'
  assert not rows['3.jpg']['overlay']


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'outputs': ('overlay', 'film')}, 'film'),
    ({'colors': 'rainbow'}, 'rainbow'),
    ({'scaling': 'none'}, 'none'),
    ({'opacity': 1.5}, 'opacity'),
    ({'shard_index': 2, 'num_shards': 2}, 'shard_index'),
    ({'layer': 'stage9'}, 'stage9'),
    ({'target': 'beauty'}, 'beauty'),
    ({'scaling': 'logit', 'method': 'eigencam'}, 'maps of eigencam do not'),
    ({'scaling': 'logit', 'layer': 'stage3'}, 'not what the head averages'),
    ({'language': 'tlh'}, "language='tlh' is none of en, pt"),
    ({'placement': 'torch'}, "placement='torch' is none of network"),
    ({'method': 'magic'}, 'magic'),
    ({'workdir': '/nowhere'}, '/nowhere holds no trained model'),
    ({'images': '/nowhere'}, '/nowhere'),
  ],
)
def test_wrong_options_are_named(
  workdir, photographs, tmp_path, changes, message
):
  values = {'workdir': str(workdir), 'images': str(photographs)} | changes
  with pytest.raises(
    (ValueError, run_directory.RunDirectoryError), match=message
  ):
    export.run(Options(output=str(tmp_path / 'o'), progress=False, **values))


def test_output_that_cannot_be_written_ends_with_the_reason(
  workdir, photographs, tmp_path
):
  output = tmp_path / 'out'
  output.mkdir()
  (output / 'overlay').write_text('in the way')
  with pytest.raises(ExportError, match=r'overlay.* cannot be written'):
    run(options(workdir, photographs, output, outputs=('npz', 'overlay')))
  (output / 'overlay').unlink()
  run(options(workdir, photographs, output, outputs=('npz', 'overlay')))
  assert read(output / 'manifest.csv')['0.jpg']['status'] == 'ok'
  with pytest.raises(ExportError, match='cannot be written to'):
    run(options(workdir, photographs, photographs / '0.jpg'))


def test_full_disk(workdir, photographs, tmp_path):
  disk = tmp_path / 'disk'
  disk.mkdir()
  mounted = subprocess.run(
    ['mount', '-t', 'tmpfs', '-o', 'size=300k', 'tmpfs', str(disk)],
    capture_output=True,
    check=False,
  )
  if mounted.returncode:
    pytest.skip('may not mount a small disk here')
  try:
    with pytest.raises(ExportError, match='No space left'):
      run(options(workdir, photographs, disk / 'out'))
    for path in (disk / 'out').rglob('*.jpg'):
      Image.open(path).verify()
    lines = next((disk / 'out/journal').iterdir()).read_bytes().splitlines()
    assert json.loads(lines[0])['settings']
  finally:
    subprocess.run(['umount', str(disk)], check=True)


def children(parent: int | None = None) -> list[int]:
  """Returns the worker processes of a process, by default of this one."""
  parent = parent or os.getpid()
  found = []
  for path in pathlib.Path('/proc').glob('[0-9]*/stat'):
    try:
      fields = path.read_text().rpartition(')')[2].split()
      command = (path.parent / 'cmdline').read_text()
    except OSError:
      continue
    if int(fields[1]) == parent and 'export import worker' in command:
      found.append(int(path.parent.name))
  return found


def meanwhile(action):
  """Runs `action` on worker ids in a thread until it says that it is done."""

  def loop():
    until = time.monotonic() + 60
    while time.monotonic() < until:
      if any([action(pid) for pid in children()]):
        return
      time.sleep(0.002)

  thread = threading.Thread(target=loop)
  thread.start()
  return thread


def holds(pid: int, path: pathlib.Path) -> bool:
  try:
    return any(
      os.readlink(f'/proc/{pid}/fd/{fd}') == str(path)
      for fd in os.listdir(f'/proc/{pid}/fd')
    )
  except OSError:
    return False


@pytest.fixture
def slow(tmp_path):
  """Three photographs, of which one takes a second to decode."""
  rng = np.random.default_rng(0)
  root = tmp_path / 'slow'
  for name in 'ac':
    material.save(root / f'{name}.jpg', rng)
  large = rng.integers(0, 255, (4000, 4000, 3), np.uint8)
  Image.fromarray(large).save(root / 'b.png', compress_level=1)
  return root


@pytest.mark.slow
def test_worker_that_dies_once_costs_nothing(workdir, slow, tmp_path):
  def kill(pid):
    if holds(pid, slow / 'b.png'):
      os.kill(pid, signal.SIGKILL)
      return True
    return False

  thread = meanwhile(kill)
  run(options(workdir, slow, tmp_path / 'out', outputs=('npz',)))
  thread.join()
  rows = read(tmp_path / 'out/manifest.csv')
  assert {r['status'] for r in rows.values()} == {'ok'}


@pytest.mark.slow
def test_photograph_that_kills_its_decoder_fails_alone(workdir, slow, tmp_path):
  killed = []

  def kill(pid):
    if pid not in killed and holds(pid, slow / 'b.png'):
      os.kill(pid, signal.SIGKILL)
      killed.append(pid)
    return len(killed) > 1

  thread = meanwhile(kill)
  run(options(workdir, slow, tmp_path / 'out', outputs=('npz',)))
  thread.join()
  rows = read(tmp_path / 'out/manifest.csv')
  assert {p: r['status'] for p, r in rows.items()} == {
    'a.jpg': 'ok',
    'b.png': 'crashed',
    'c.jpg': 'ok',
  }


@pytest.mark.slow
def test_photograph_that_hangs_fails_alone(
  workdir, slow, tmp_path, monkeypatch
):
  monkeypatch.setattr(crew, 'PATIENCE', 4.0)

  def stop(pid):
    if holds(pid, slow / 'b.png'):
      os.kill(pid, signal.SIGSTOP)
      return True
    return False

  thread = meanwhile(stop)
  run(options(workdir, slow, tmp_path / 'out', outputs=('npz',)))
  thread.join()
  rows = read(tmp_path / 'out/manifest.csv')
  assert rows['b.png']['status'] == 'timeout'
  assert rows['a.jpg']['status'] == rows['c.jpg']['status'] == 'ok'


@pytest.mark.slow
def test_memory_that_is_kept_is_bounded(workdir, photographs, tmp_path, done):
  """With no budget all is decoded twice, to the same pictures."""
  run(options(workdir, photographs, tmp_path, memory_gb=0, batch_size=4))
  rows = read(tmp_path / 'manifest.csv')
  for path, row in read(done[0] / 'manifest.csv').items():
    if row['status'] == 'ok':
      same = (tmp_path / rows[path]['overlay']).read_bytes()
      assert (done[0] / row['overlay']).read_bytes() == same


def test_worker_budget(tmp_path, photographs):
  settings = messages.Settings(
    output=str(tmp_path),
    temporary=str(tmp_path),
    outputs=('overlay',),
    size=32,
    colors='viridis',
    opacity=0.5,
    quality=90,
    max_side=0,
    budget=4 * 3 * 190 * 140,
  )
  one = worker.Worker(settings)
  for number in range(9):
    assert isinstance(
      one.decode(number, str(photographs / f'{number}.jpg')), messages.Prepared
    )
    assert one._bytes <= settings.budget
  assert sum(h.photograph is not None for h in one._held.values()) == 3
  for number in range(9):
    one.forget(number)
  assert one._bytes == 0 and not one._held


@pytest.mark.slow
@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_signals_leave_a_manifest_and_go_on(workdir, tmp_path, number):
  rng = np.random.default_rng(0)
  for i in range(120):
    material.save(tmp_path / f'in/{i}.jpg', rng, width=600, height=500)
  line = material.command(
    workdir, tmp_path / 'in', tmp_path / 'out', '--workers=1', '--batch_size=4'
  )
  process = subprocess.Popen(
    line,
    env=material.environment(),
    cwd=material.ROOT,
    stderr=subprocess.PIPE,
    text=True,
  )
  until = time.monotonic() + 60
  while not list((tmp_path / 'out').glob('panel/*')):
    assert process.poll() is None and time.monotonic() < until
    time.sleep(0.05)
  process.send_signal(number)
  _, errors = process.communicate(timeout=60)
  assert process.returncode == 128 + number, errors
  assert 'the same command goes on' in errors
  rows = read(tmp_path / 'out/manifest.csv')
  statuses = [r['status'] for r in rows.values()]
  assert len(rows) == 120 and set(statuses) == {'ok', 'pending'}
  finished = statuses.count('ok')
  assert finished == len(list((tmp_path / 'out').glob('panel/*')))
  again = run(
    options(workdir, tmp_path / 'in', tmp_path / 'out', outputs=DEFAULT_OUTPUTS)
  )
  assert again.skipped == finished
  assert again.statuses == {'ok': 120}


def _output_of(code: str) -> str:
  """Returns what Python code prints in a process of its own."""
  return subprocess.run(
    [sys.executable, '-c', code],
    env=material.environment(),
    cwd=material.ROOT,
    capture_output=True,
    text=True,
    check=True,
  ).stdout


def test_help_is_quick_and_imports_nothing_heavy():
  code = (
    'import sys, runpy; sys.argv = ["x", "--help"]\n'
    'try: runpy.run_module("iqa_jax.export_heatmaps", run_name="__main__")\n'
    'except SystemExit: pass\n'
    'print(sorted({"jax", "tensorflow", "numpy", "PIL"} & set(sys.modules)))'
  )
  out = _output_of(code)
  assert out.strip().endswith('[]')
  assert '--num_shards' in out


def test_flags_offer_what_there_is():
  """They are spelt out there, so that --help needs no import."""
  from iqa_jax.explain import overlay

  # In a process of its own: other commands define flags of the same names.
  code = (
    'import json\nfrom absl import flags\n'
    'from iqa_jax import export_heatmaps\n'
    'print(json.dumps({n: [flags.FLAGS[n].default, '
    'getattr(flags.FLAGS[n].parser, "enum_values", None)] '
    'for n in flags.FLAGS}))'
  )
  defined = json.loads(_output_of(code))
  assert tuple(defined['method'][1]) == cam.METHODS
  assert tuple(defined['colors'][1]) == overlay.COLORS
  assert tuple(defined['scaling'][1]) == SCALINGS
  assert tuple(defined['runtime'][1]) == runtimes.NAMES
  assert tuple(defined['language'][1]) == tuple(advice.LANGUAGES)
  assert tuple(defined['outputs'][0]) == DEFAULT_OUTPUTS
  defaults = {f.name: f.default for f in dataclasses.fields(Options)}
  for name in ('opacity', 'quality', 'sheet_limit', 'sheet_page', 'memory_gb',
               'num_shards', 'batch_size', 'workers', 'max_side'):  # fmt: skip
    assert defined[name][0] == defaults[name], name


def test_export_needs_no_tensorflow(workdir, photographs, tmp_path):
  """Nor orbax, matplotlib or scikit-learn, which would cost its start."""
  code = (
    'import sys\n'
    'from iqa_jax.export import run\n'
    'from iqa_jax.export.options import Options\n'
    f'run.run(Options({str(workdir)!r}, '
    f'{str(photographs / "left")!r}, {str(tmp_path)!r}, '
    'progress=False, check_fundus=False))\n'
    'print(sorted({"tensorflow", "orbax", "matplotlib", "sklearn"} & '
    'set(sys.modules)))'
  )
  out = _output_of(code)
  assert out.strip() == '[]'
