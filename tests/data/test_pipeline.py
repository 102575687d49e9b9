"""Batches: every image once, the same at any parallelism, labels in step."""

import collections
import copy
import dataclasses

import numpy as np
import pytest

from iqa_jax import config as config_lib
from iqa_jax import errors, labels, tasks
from iqa_jax.data import decoding, pipeline, planting, records
from iqa_jax.data import plan as plan_lib
from iqa_jax.data import source as source_lib
from iqa_jax.data.records import METADATA
from iqa_jax.simulation import faults, photograph, procedural
from tests.data import dummy

SIZE = 32
_COUNT = 23


@pytest.fixture(scope='module')
def source(tmp_path_factory):
  """A source of drawn photographs at 64 px, without a build of 512 px."""
  import tensorflow_datasets as tfds

  class Small(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version('1.0.0')
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name='64')]
    name = 'small'

    def _info(self):
      return self.dataset_info_from_configs(features=records.features())

    def _split_generators(self, dl_manager):
      return {'train': self._generate_examples()}

    def _generate_examples(self):
      for i in range(_COUNT):
        broken = ('focus',) if i % 3 == 0 else ()
        drawn = photograph.draw(i, 64, broken=broken)
        yield (
          f'{i:02d}',
          METADATA
          | {
            'image': records.encode(drawn.image),
            'image_id': f'{i:02d}',
            'patient_id': str(i // 2),
            'eye': drawn.eye,
            'quality': drawn.quality,
            'criteria': drawn.criteria,
            'landmarks': drawn.landmarks,
            'field_found': 1,
            'affine': np.eye(2, 3),
            'size': 64,
            'height': 64,
            'width': 64,
          },
        )

  builder = Small(
    data_dir=str(tmp_path_factory.mktemp('small')), file_format='array_record'
  )
  builder.download_and_prepare(
    download_config=tfds.download.DownloadConfig(try_download_gcs=False)
  )
  return source_lib.Source([builder])


def configuration(**augment):
  config = config_lib.default()
  config.data.augment.update(augment)
  return config


def everything(source):
  return np.arange(len(source.table['image_id']))


def collect(source, plan, **options):
  options = {'image_size': SIZE, 'batch_size': 8} | options
  return list(pipeline.batches(source, plan, **options))


def assert_same(a, b):
  assert a.keys() == b.keys()
  for key in a:
    np.testing.assert_array_equal(a[key], b[key], err_msg=key)


def test_every_image_is_scored_exactly_once(source):
  plan = plan_lib.plan_eval(everything(source))
  for processes in (1, 2, 4):
    seen = collections.Counter()
    for process in range(processes):
      got = collect(
        source, plan, process_index=process, process_count=processes
      )
      assert len(got) == 3  # on every process, or they would wait for ever
      for batch in got:
        assert batch['image'].shape == (8 // processes, SIZE, SIZE, 3)
        seen.update(batch['image_id'][batch['mask'] > 0])
    assert seen == collections.Counter(source.table['image_id'])


def test_a_batch_is_what_was_stored(source):
  plan = plan_lib.plan_eval(everything(source))
  stored = dummy.stored(source, 7)
  batch = collect(source, plan, image_size=64)[0]
  np.testing.assert_array_equal(batch['image'][7], stored)
  last = collect(source, plan)[-1]
  np.testing.assert_array_equal(last['mask'], [1] * 7 + [0])
  assert not last['image'][7].any()
  table = source.table
  for key in ('image_id', 'quality', 'grade', 'criteria'):
    np.testing.assert_array_equal(batch[key], table[key][:8])
  assert batch['image'].dtype == np.uint8
  assert batch['quality'].dtype == np.int32


def test_processes_share_the_batch_of_one(source):
  config = configuration(rotation=10.0, scale=0.1)
  plan = plan_lib.plan_train(source, everything(source), config, 3)
  whole = collect(source, plan)
  halves = [
    collect(source, plan, process_index=p, process_count=2) for p in (0, 1)
  ]
  for batch, first, second in zip(whole, *halves, strict=True):
    assert_same(
      batch, {k: np.concatenate([first[k], second[k]]) for k in first}
    )


def test_any_batch_can_be_made_at_any_time(source):
  config = configuration(rotation=10.0, scale=0.1)
  config.data.faults.focus = 0.4
  plan = plan_lib.plan_train(source, everything(source), config, 1)
  whole = collect(source, plan)
  for start in (1, 2):
    for a, b in zip(
      whole[start:], collect(source, plan, start_batch=start), strict=True
    ):
      assert_same(a, b)
  assert collect(source, plan, start_batch=3) == []


def test_a_plan_depends_on_seed_epoch_and_examples_alone(source):
  config = configuration(rotation=10.0, scale=0.1)
  config.data.faults.focus = 0.3
  all_of_it = everything(source)

  def drawn(indices, epoch=0, seed=0):
    config.seed = seed
    plan = plan_lib.plan_train(source, indices, config, epoch)
    return [column.tolist() for column in dataclasses.astuple(plan)]

  whole = drawn(all_of_it)
  assert drawn(all_of_it) == whole
  assert drawn(all_of_it, epoch=1) != whole
  assert drawn(all_of_it, seed=1) != whole
  first, second = (
    plan_lib.plan_train(source, all_of_it, config, e).index for e in (0, 1)
  )
  assert (first != second).any()
  np.testing.assert_array_equal(np.sort(first), all_of_it)


def test_a_flip_mirrors_image_and_landmarks(source):
  plan = plan_lib.plan_train(source, everything(source), configuration(), 0)
  assert 0 < plan.flip.sum() < _COUNT
  straight = {
    i: (image, marks)
    for b in collect(source, plan_lib.plan_eval(everything(source)))
    for i, image, marks, real in zip(
      b['index'], b['image'], b['landmarks'], b['mask'], strict=True
    )
    if real
  }
  at = 0
  for batch in collect(source, plan):
    for k in np.nonzero(batch['mask'])[0]:
      image, marks = straight[batch['index'][k]]
      if plan.flip[at]:
        image = image[:, ::-1]
        marks = marks.copy()
        marks[[0, 3]] = 1 - marks[[0, 3]]
      np.testing.assert_array_equal(batch['image'][k], image)
      np.testing.assert_allclose(batch['landmarks'][k], marks, atol=1e-4)
      at += 1


def turned(source, index, angle, shrink):
  plan = plan_lib.plan_eval(np.array([index]))
  plan = plan_lib.Plan(
    plan.index, plan.flip, np.float32([angle]), np.float32([shrink]),
    plan.fault, plan.seed, plan.procedural, plan.variant, plan.camera,
  )  # fmt: skip
  return collect(source, plan, image_size=64, batch_size=1)[0]['image'][0]


def test_a_quarter_turn_is_exact(source):
  stored = dummy.stored(source, 5)
  for quarters in (1, 2, 3):
    # Counterclockwise or clockwise is all one; twice must undo once back.
    image = turned(source, 5, quarters * np.pi / 2, 0.0).astype(int)
    direct = np.rot90(stored, -quarters).astype(int)
    assert min(
      np.abs(image - direct).mean(),
      np.abs(image - np.rot90(stored, quarters)).mean(),
    ) < 1  # fmt: skip


@pytest.mark.parametrize('flip', [False, True])
def test_landmarks_go_where_the_image_goes(source, monkeypatch, flip):
  """A spot painted on the photograph is found where its landmark says."""
  plan = plan_lib.plan_eval(np.array([5]))
  plan = plan_lib.Plan(
    plan.index, np.array([flip]), np.float32([0.4]), np.float32([0.2]),
    plan.fault, plan.seed, plan.procedural, plan.variant, plan.camera,
  )  # fmt: skip
  spot = np.zeros((64, 64, 3), np.uint8)
  spot[12:17, 40:45] = 255
  monkeypatch.setattr(decoding, 'decode', lambda tf, *_: tf.constant(spot))
  marks = source.table['landmarks'].copy()
  marks[5] = (42.5, 14.5, 8.0, 42.5, 14.5)
  monkeypatch.setitem(source.table, 'landmarks', marks)
  [batch] = collect(source, plan, image_size=64, batch_size=1)
  light = batch['image'][0].astype(float).sum(2)
  grid = np.arange(64) + 0.5
  centre = [light.sum(0) @ grid, light.sum(1) @ grid] / light.sum()
  disc_x, disc_y, diameter, *fovea = 64 * batch['landmarks'][0]
  np.testing.assert_allclose([disc_x, disc_y], centre, atol=0.1)
  np.testing.assert_allclose(fovea, centre, atol=0.1)
  assert diameter == pytest.approx(8 * 0.8)


def test_scaling_makes_the_whole_field_smaller(source):
  stored = dummy.stored(source, 5)
  smaller = turned(source, 5, 0.0, 0.25)
  lit = lambda image: (image.max(2) > 20).any(0).sum()  # noqa: E731
  assert lit(smaller) == pytest.approx(0.75 * lit(stored), abs=2)
  assert not smaller[:7].any() and not smaller[-7:].any()


def test_finite_views():
  assert plan_lib.finite_views(configuration()) == [0, 1]
  assert plan_lib.finite_views(configuration(flip=False)) == [0]
  assert plan_lib.finite_views(configuration(rotation=5.0)) is None
  config = configuration()
  config.data.faults.focus = 0.1
  assert plan_lib.finite_views(config) is None


def test_balanced_sampling_balances_training_only(source):
  config = configuration()
  config.data.balance = 'sampling'
  quality = source.table['quality']
  share = np.mean([
    quality[plan_lib.plan_train(source, everything(source), config, e).index]
    for e in range(60)
  ])  # fmt: skip
  assert quality.mean() < 0.4
  assert share == pytest.approx(0.5, abs=0.05)


def test_a_photograph_drawn_again_looks_different(source):
  """Augmentation is drawn for each time that it comes, not once an epoch."""
  config = configuration(rotation=10.0, scale=0.1)
  config.data.balance = 'sampling'
  config.data.faults.focus = 0.5
  rare = np.nonzero(source.table['quality'] == labels.INADEQUATE)[0][:1]
  common = np.nonzero(source.table['quality'] == labels.ADEQUATE)[0]
  indices = np.concatenate([rare, common])
  plans = [plan_lib.plan_train(source, indices, config, e) for e in range(9)]
  plan = max(plans, key=lambda plan: (plan.index == rare[0]).sum())
  again = plan.index == rare[0]
  assert again.sum() > 4
  assert len(np.unique(plan.flip[again])) == 2
  for column in (plan.angle, plan.shrink):
    assert len(np.unique(column[again])) == again.sum()
  one = np.repeat(common[:1], 400)  # by hand, as often as it takes
  plan = plan_lib.plan_train(source, one, config, 0)
  assert (plan.fault >= 0).mean() == pytest.approx(0.5, abs=0.1)


def test_planned_labels_are_those_of_the_batches(source):
  config = configuration()
  config.data.balance = 'sampling'
  config.data.faults.focus = 0.3
  config.data.faults.artifacts = 0.2
  indices = everything(source)[4:]
  planned = plan_lib.planned_labels(source, indices, config, epochs=3)
  seen: dict[str, list] = {key: [] for key in planned}
  for epoch in range(3):
    plan = plan_lib.plan_train(source, indices, config, epoch)
    for batch in collect(source, plan):
      for key, values in seen.items():
        values.extend(batch[key][batch['mask'] > 0])
  for key, values in seen.items():
    np.testing.assert_array_equal(planned[key], values)
  assert len(planned['quality']) == 3 * len(indices)


def table_source(count, positives, rng):
  """A source of labels alone; of `positives` a criterion is broken."""
  criteria = np.zeros((count, 4), np.int64)
  at = rng.permutation(count)
  for column, number in enumerate(positives):
    criteria[at[:number], column] = 1
    at = at[number:]

  class Labels:
    table = {
      'image_id': np.arange(count).astype(str),
      'quality': criteria.any(1).astype(np.int64),
      'grade': np.where(criteria.any(1), 2, 0),
      'criteria': criteria,
    }

  return Labels()


def balanced(source, task, config):
  config.task.name = task
  config.task.class_weights = 'balanced'
  indices = np.arange(len(source.table['image_id']))
  planned = plan_lib.planned_labels(source, indices, config, epochs=5)
  return tasks.Task.from_config(config, planned).class_weights


def test_balanced_weights_count_planted_faults():
  """Of 10,000, 50 are too dark and 400 get a simulated fault that is."""
  source = table_source(10_000, (900, 50, 0, 0), np.random.default_rng(0))
  config = configuration()
  config.data.faults.illumination = rate = 0.04
  weights = balanced(source, 'criteria', config)
  adequate = 10_000 - 950
  positive = 50 + rate * adequate
  expected = (10_000 - positive) / positive
  assert weights[1] == pytest.approx(expected, rel=0.1)
  assert weights[1] < 25
  # By the label file alone it would have been the bound.
  assert tasks.Task('criteria').balanced_weights(source.table)[1] == 100


def test_balanced_weights_after_balanced_sampling_are_even():
  source = table_source(4000, (400, 0, 0, 0), np.random.default_rng(0))
  config = configuration()
  config.data.balance = 'sampling'
  assert balanced(source, 'quality', config) == pytest.approx((1, 1), abs=0.03)
  config.data.balance = 'none'
  assert balanced(source, 'quality', config) == pytest.approx(
    (0.5556, 5.0), rel=1e-3
  )


def test_faults_change_adequate_photographs_and_their_labels(source):
  config = configuration(flip=False)
  config.data.faults.focus = 0.5
  config.data.faults.artifacts = 0.5
  table = source.table
  plan = plan_lib.plan_train(source, everything(source), config, 0)
  adequate = table['quality'][plan.index] == labels.ADEQUATE
  assert (plan.fault[adequate] >= 0).all()
  assert (plan.fault[~adequate] == -1).all()
  assert set(plan.fault[adequate]) == {0, 3}
  stored = [dummy.stored(source, i) for i in plan.index]
  at = 0
  for batch in collect(source, plan, image_size=64):
    for k in np.nonzero(batch['mask'])[0]:
      if adequate[at]:
        assert (batch['image'][k] != stored[at]).any()
        assert batch['quality'][k] == labels.INADEQUATE
        expected = table['criteria'][plan.index[at]].copy()
        expected[plan.fault[at]] = labels.INADEQUATE
      else:
        np.testing.assert_array_equal(batch['image'][k], stored[at])
        expected = table['criteria'][plan.index[at]]
      np.testing.assert_array_equal(batch['criteria'][k], expected)
      at += 1


def test_fault_rates_over_one_are_refused(source):
  config = configuration()
  config.data.faults.focus = config.data.faults.artifacts = 0.6
  with pytest.raises(ValueError, match=r'sum to 1\.2, over 1'):
    plan_lib.plan_train(source, everything(source), config, 0)


def test_a_batch_that_does_not_divide_is_refused(source):
  plan = plan_lib.plan_eval(everything(source))
  with pytest.raises(ValueError, match='8 does not divide over 3'):
    collect(source, plan, process_count=3)


def test_photographs_are_not_enlarged(source):
  size = int(source.table['size'].max())
  plan = plan_lib.plan_eval(everything(source)[:2])
  filed, drawn = copy.copy(source), copy.copy(source)
  for some, name in ((filed, 'eyeq'), (drawn, 'fundus_sim')):
    dataset = np.full(len(source.table['dataset']), name)
    some.table = {**source.table, 'dataset': dataset}
  with pytest.raises(records.DataError, match='builder_config=original'):
    next(pipeline.batches(filed, plan, image_size=size + 1, batch_size=2))
  for some, side in ((filed, size), (drawn, size + 1)):
    batch = next(pipeline.batches(some, plan, image_size=side, batch_size=2))
    assert batch['image'].shape == (2, side, side, 3)


@pytest.mark.parametrize('orientation', [1, 6])
def test_raw_photographs_are_prepared_like_records(tmp_path, orientation):
  """`original` records, cropped in the pipeline, against prepare.photograph."""
  from PIL import Image
  import tensorflow as tf

  from iqa_jax.photograph import images, prepare

  drawn = photograph.draw(2, 400, distractors=False).image
  frame = np.zeros((600, 900, 3), np.uint8)
  frame[100:500, 250:650] = drawn
  exif = Image.Exif()
  exif[0x0112] = orientation
  path = tmp_path / 'a.jpg'
  Image.fromarray(frame).save(path, quality=95, exif=exif)
  record = records.from_file(path, original=True)
  stored = record['image'].getvalue()
  assert (stored == path.read_bytes()) == (orientation == 1)
  table = {
    'affine': record['affine'][None],
    'size': np.array([record['size']]),
    'width': np.array([record['width']]),
    'original': np.array([True]),
  }
  box = decoding.boxes(table, np.array([0]))[0]
  assert record['field_found']
  for size in (64, 224):
    image = decoding.decode(tf, stored, box, prepare.SIZE)
    image = decoding.fit(tf, image, tf.constant(box), prepare.SIZE)
    image = decoding.resize(tf, image, size).numpy()
    expected = prepare.photograph(images.read(path).image, size).image
    # What isn't upright is compressed anew.
    off = np.abs(image.astype(int) - expected).mean()
    assert off <= (0 if orientation == 1 else 0.5)


def faulty_configuration(**rates):
  config = configuration()
  for name, rate in rates.items():
    config.data.faults[name] = rate
  return config


@pytest.mark.parametrize('rotation', [0.0, 20.0])
def test_masks_lie_on_what_was_put_in(source, rotation):
  """Where the mask says fault the picture changed, elsewhere it did not."""
  config = faulty_configuration(artifacts=0.5, procedural=0.4)
  config.data.augment.rotation = rotation
  plan = plan_lib.plan_train(source, everything(source), config, 0)
  clean = dataclasses.replace(plan, fault=np.full(len(plan.index), -1))
  size, cells, seen = 64, 16, 0
  made, as_it_was = (
    collect(source, p, image_size=size, field=True, cells=cells, batch_size=4)
    for p in (plan, clean)
  )
  for with_fault, without in zip(made, as_it_was, strict=True):
    assert with_fault['image'].shape == (4, size, size, 4)
    assert with_fault['fault'].shape == (4, cells, cells)
    assert not without['fault'].any()
    np.testing.assert_array_equal(
      with_fault['image'][..., 3], without['image'][..., 3]
    )
    change = np.abs(
      with_fault['image'][..., :3].astype(int) - without['image'][..., :3]
    ).max(-1)
    change = change.reshape(4, cells, 4, cells, 4).max((2, 4))
    for k in np.nonzero(with_fault['mask'])[0]:
      fault = with_fault['fault'][k]
      # A pixel beside the cell's edge may have been drawn into it.
      assert change[k][fault == 0].max(initial=0) < 60
      if fault.max() > 128 and not fault.all():
        seen += 1
        assert change[k][fault > 128].mean() > change[k][fault == 0].mean()
  assert seen > 4


def test_pictures_without_cells_are_the_same(source):
  config = faulty_configuration(artifacts=0.5)
  plan = plan_lib.plan_train(source, everything(source), config, 0)
  plain = collect(source, plan, image_size=64, batch_size=4)
  field = collect(source, plan, image_size=64, batch_size=4, field=True)
  cells = collect(source, plan, image_size=64, batch_size=4, cells=8)
  both = collect(source, plan, image_size=64, batch_size=4, field=True, cells=8)
  for a, b, c, d in zip(plain, field, cells, both, strict=True):
    np.testing.assert_array_equal(a['image'], d['image'][..., :3])
    np.testing.assert_array_equal(b['image'], d['image'])
    np.testing.assert_array_equal(c['image'], a['image'])
    np.testing.assert_array_equal(c['fault'], d['fault'])
    assert 'fault' not in {**a, **b}


def test_the_field_is_the_fourth_channel(source):
  plan = plan_lib.plan_eval(np.arange(4))
  [batch] = collect(source, plan, image_size=64, batch_size=4, field=True)
  field = batch['image'][..., 3]
  for k in range(4):
    inside = photograph.draw(k, 64).inside
    assert 0.3 < inside.mean() < 1
    # Found at 64 px, and after a JPEG: a pixel off all round is 0.1.
    assert np.abs(field[k] / 255 - inside).mean() < 0.1


def test_what_is_known_of_the_causes():
  unknown = [-1] * 4
  found = planting.causes(
    quality=np.array([0, 1, 0, 0, 1, 0]),
    grade=np.array([-1, -1, 1, 0, -1, 0]),
    criteria=np.array(
      [unknown, unknown, unknown, unknown, [1, 0, 1, 0], unknown]
    ),
    fault=np.array([-1, -1, -1, labels.CRITERIA.index('artifacts'), -1, 0]),
  )
  expected = [
    [0, 0, 0],  # adequate: nothing is wrong
    [-1, -1, -1],  # inadequate, who knows why
    [-1, -1, -1],  # Usable, though it counts as adequate
    [0, 0, 2],  # Good, with an artifact put in
    [1, 0, 0],  # labelled by criterion; the image field has no place
    [2, 0, 0],
  ]
  np.testing.assert_array_equal(found, expected)


def test_fixed_variants_are_few_and_come_again(source):
  config = faulty_configuration(artifacts=0.4, procedural=0.5)
  config.data.fault_variants = 2
  assert plan_lib.finite_views(config) == [0, 1, 2, 3, 4, 5]
  seen = collections.defaultdict(set)
  for epoch in range(6):
    plan = plan_lib.plan_train(source, everything(source), config, epoch)
    for row in zip(
      plan.index, plan.view, plan.fault, plan.seed, plan.procedural, strict=True
    ):
      seen[row[:2]].add(row[2:])
  # All that tells a picture is the example and its view.
  assert all(len(found) == 1 for found in seen.values())
  assert {view for _, view in seen} == set(range(6))
  for (_, view), [(fault, *_)] in seen.items():
    assert (fault >= 0) == (view > 1)
  for view in range(6):
    plan = plan_lib.plan_views(source, everything(source), config, view)
    for row in zip(
      plan.index, plan.view, plan.fault, plan.seed, plan.procedural, strict=True
    ):
      assert seen.get(row[:2], {row[2:]}) == {row[2:]}
  inadequate = np.nonzero(source.table['quality'] == labels.INADEQUATE)[0]
  assert not len(plan_lib.plan_views(source, inadequate, config, 2).index)


@pytest.mark.parametrize('variants', [0, 3])
def test_kinds_that_are_left_out_are_never_planted(
  source, monkeypatch, variants
):
  config = faulty_configuration(focus=0.2, artifacts=0.5, procedural=0.2)
  config.data.fault_variants = variants
  planted = []
  monkeypatch.setattr(
    faults, 'apply', lambda *given: planted.append(given[2]) or (None, None)
  )
  monkeypatch.setattr(procedural, 'apply', lambda *given: (None, None))

  def kinds():
    planted.clear()
    plans = [
      plan_lib.plan_train(source, everything(source), config, epoch)
      for epoch in range(20)
    ]
    plans += [
      plan_lib.plan_views(source, everything(source), config, view)
      for view in plan_lib.finite_views(config) or ()
    ]
    for plan in plans:
      hit = plan.fault >= 0
      for row in zip(
        plan.fault[hit], plan.seed[hit], plan.procedural[hit], strict=True
      ):
        planting.plant(None, None, *row)
    return list(planted), plans

  whole, before = kinds()
  wanted = {*faults.KINDS['focus'], *faults.KINDS['artifacts']}
  assert set(whole) == wanted
  config.data.left_out_faults = ('dust', 'motion', 'central_flare')
  fewer, after = kinds()
  assert set(fewer) == wanted - {'dust', 'motion', 'central_flare'}
  # As many faults, and what was another kind before is as it was.
  pairs = [*zip(whole, fewer, strict=True)]
  assert all(new == old for old, new in pairs if old in fewer)
  for old, new in zip(before, after, strict=True):
    same = old.procedural | (old.fault < 0)
    np.testing.assert_array_equal(new.seed[same], old.seed[same])


@pytest.mark.parametrize(
  ('left_out', 'message'),
  [
    (('dus',), 'dus'),
    (faults.KINDS['focus'], 'every fault of focus is left out'),
  ],
)
def test_what_cannot_be_left_out_is_refused(source, left_out, message):
  config = faulty_configuration(focus=0.5)
  config.data.left_out_faults = left_out
  with pytest.raises(errors.InvalidValue, match=message):
    plan_lib.plan_train(source, everything(source), config, 0)


def test_other_cameras_take_field_and_fault_along(source):
  config = faulty_configuration(artifacts=0.8)
  config.data.augment.cameras = 1.0
  plan = plan_lib.plan_train(source, everything(source), config, 0)
  assert (plan.camera >= 0).all() and len(set(plan.camera)) == _COUNT
  assert plan_lib.finite_views(config) is None
  own = dataclasses.replace(plan, camera=np.full(_COUNT, -1))
  cells = {'image_size': 64, 'field': True, 'cells': 16}
  made, as_it_was = (
    collect(source, p, batch_size=_COUNT, **cells)[0] for p in (plan, own)
  )
  # The same twice, another every epoch.
  again = collect(source, plan, batch_size=_COUNT, **cells)[0]
  assert_same(made, again)
  other = plan_lib.plan_train(source, everything(source), config, 1)
  assert set(plan.camera).isdisjoint(other.camera)
  field = made['image'][..., 3] > 127
  assert np.median(made['image'][~field]) <= 1
  zoomed = field.mean((1, 2)) > (as_it_was['image'][..., 3] > 127).mean((1, 2))
  assert zoomed.any() and not zoomed.all()
  lost = (as_it_was['fault'].max((1, 2)) > 200) & ~made['fault'].any((1, 2))
  assert lost.mean() < 0.3  # a few leave the frame
  plain = collect(source, plan, image_size=64, batch_size=_COUNT)[0]
  np.testing.assert_array_equal(plain['image'], made['image'][..., :3])


def test_fields_that_were_found_are_kept(source, monkeypatch):
  plan = plan_lib.plan_eval(np.arange(4))
  [first] = collect(
    source, plan, image_size=64, batch_size=4, field=True, cells=8
  )
  monkeypatch.setattr(
    decoding.geometry, 'find_field', lambda _: pytest.fail('looked again')
  )
  [second] = collect(
    source, plan, image_size=64, batch_size=4, field=True, cells=8
  )
  assert_same(first, second)
