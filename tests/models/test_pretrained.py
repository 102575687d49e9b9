"""Checkpoints of every kind that people have, damaged and malicious ones."""

import hashlib
import io
import os
import pathlib
import pickle
import socket
import struct
import zipfile

import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from iqa_jax import models, run_directory
from iqa_jax.models import pretrained, torch_file
from tests.models import reference, test_models

HERE = pathlib.Path(__file__).parent
SMALL = {'width': 1 / 16, 'depth': 0.3}


def small(name='vgg16', num_outputs=2, head='mlp'):
  model = models.create(name, num_outputs, head=head, **SMALL)
  return model, models.init(model, jax.random.key(0), 64)


def checkpoint(name, num_outputs=1000, head='imagenet'):
  """Returns the tensors of a torchvision checkpoint of a small model."""
  model = models.create(name, num_outputs, head=head, **SMALL)
  names = test_models.torch_names(model, models.shapes(model, 64))
  return reference.weights(dict(names.values()))


def save(tensors, path):
  safetensors.numpy.save_file(
    {k: np.ascontiguousarray(v) for k, v in tensors.items()}, path
  )
  return path


def leaves(variables):
  return {
    '/'.join(p.key for p in path): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables)
  }


def test_nothing_asked_for_changes_nothing():
  model, variables = small()
  for source in ('', None):
    loaded, record = pretrained.load(source, model, variables)
    jax.tree.map(np.testing.assert_array_equal, loaded, variables)
    assert record['loaded'] == [] and record['sha256'] is None
    assert set(record['initialised']) == set(leaves(variables))


@pytest.mark.parametrize('kind', ['zip', 'legacy'])
def test_loads_the_earlier_work_s_checkpoint(kind):
  """Saved by torch itself, every layer of the trunk under two names."""
  path = HERE / f'earlier_{kind}.pth'
  model = models.create('vgg16', 2, head='mlp', width=1 / 64)
  variables, record = pretrained.load(
    path, model, models.init(model, jax.random.key(0), 64)
  )
  logits = model.apply(variables, reference.images(64, 64))
  expected = test_models.GOLDEN['earlier/64x64/logits']
  assert test_models.relative_error(logits, expected) < 1e-4
  assert record['initialised'] == record['unused'] == []
  assert record['sha256'] == hashlib.sha256(path.read_bytes()).hexdigest()
  assert record['file'] == str(path)


@pytest.mark.parametrize('name', models.names())
def test_a_new_head_on_a_published_trunk(name, tmp_path):
  tensors = checkpoint(name)
  if name == 'resnet50':
    tensors['bn1.num_batches_tracked'] = np.asarray(1000)
  path = save(tensors, tmp_path / 'published.safetensors')
  for head, num_outputs in (
    ('linear', 2),
    ('mlp', 2),
    ('imagenet', 3),
    ('standardized', 2),
  ):
    model, variables = small(name, num_outputs, head)
    loaded, record = pretrained.load(path, model, variables)
    new, old = leaves(loaded), leaves(variables)
    assert set(record['loaded']) | set(record['initialised']) == set(new)
    for place in new:
      same = np.array_equal(new[place], old[place])
      assert same == (place in record['initialised']), place
      assert new[place].dtype == jnp.float32
    kept = set(record['initialised'])
    assert all(p.split('/')[1] == 'head' for p in kept)
    if (name, head) == ('vgg16', 'imagenet'):
      assert kept == {'params/head/logits/kernel', 'params/head/logits/bias'}
    else:
      assert kept == {p for p in new if p.split('/')[1] == 'head'}
    if name == 'resnet50':
      assert 'bn1.num_batches_tracked' in record['unused']
      assert 'fc.weight' in record['unused']


@pytest.mark.parametrize(
  'name, last', [('vgg16', 'block4_pool'), ('resnet50', 'stage3')]
)
def test_a_shortened_trunk_takes_the_layers_that_it_has(name, last, tmp_path):
  tensors = checkpoint(name)
  path = save(tensors, tmp_path / 'published.safetensors')
  whole = models.create(name, 2, **SMALL)
  short = models.create(name, 2, last=last, **SMALL)
  key = jax.random.key(0)
  loaded, _ = pretrained.load(path, whole, models.init(whole, key, 64))
  cut, record = pretrained.load(path, short, models.init(short, key, 64))
  beyond = {'vgg16': 'features.24.weight', 'resnet50': 'layer4.0.conv1.weight'}
  assert beyond[name] in record['unused']
  # The file's dense layers follow another map than the new head does.
  assert {p.split('/')[1] for p in record['initialised']} == {'head'}
  images = reference.images(64, 64)
  expected = whole.apply(loaded, images, stop=last)
  np.testing.assert_array_equal(short.apply(cut, images, stop=last), expected)
  logits = short.apply(cut, images)
  head = cut['params']['head']['logits']
  pooled = expected.mean((1, 2)) @ head['kernel'] + head['bias']
  np.testing.assert_allclose(logits, pooled, rtol=1e-5, atol=1e-6)

  # Its own run directory gives all of it back, head included.
  config = {'model': {'name': name, 'head': 'linear', 'last': last, **SMALL}}
  run_directory.save_model(tmp_path / 'run', cut, {'config': config})
  again, record = pretrained.load(
    tmp_path / 'run', short, models.init(short, jax.random.key(1), 64)
  )
  jax.tree.map(np.testing.assert_array_equal, again, cut)
  assert record['unused'] == []
  with pytest.raises(pretrained.WeightsError, match=r'missing|mis-shaped'):
    pretrained.load(tmp_path / 'run', whole, loaded)


def test_timm_s_vgg16_equals_torchvision_s(tmp_path):
  tensors = checkpoint('vgg16')
  timm = {}
  for name, value in tensors.items():
    for theirs, ours in (
      ('classifier.0', 'pre_logits.fc1'),
      ('classifier.3', 'pre_logits.fc2'),
      ('classifier.6', 'head.fc'),
    ):
      name = name.replace(theirs, ours)
    if name == 'pre_logits.fc1.weight':
      value = value.reshape(len(value), -1, 7, 7)
    elif name == 'pre_logits.fc2.weight':
      value = value[:, :, None, None]
    timm[name] = value
  model, variables = small('vgg16', 1000, 'imagenet')
  first, second = (
    pretrained.load(save(t, tmp_path / f'{i}.safetensors'), model, variables)
    for i, t in enumerate((tensors, timm))
  )
  assert second[1]['initialised'] == []
  jax.tree.map(np.testing.assert_array_equal, first[0], second[0])


def test_prefixes_duplicates_and_dense_layers_nobody_needs(tmp_path):
  tensors = checkpoint('vgg16', 2, 'mlp')
  wrapped = {f'module.{name}': value for name, value in tensors.items()}
  wrapped |= {
    f'module.model.{name}': value
    for name, value in tensors.items()
    if name.startswith('features')
  }
  wrapped['module.model.classifier.6.weight'] = np.zeros((1000, 9), 'f4')
  model, variables = small()
  path = save(wrapped, tmp_path / 'wrapped.safetensors')
  _, record = pretrained.load(path, model, variables)
  assert record['initialised'] == []
  assert record['unused'] == ['module.model.classifier.6.weight']

  wrapped['module.model.features.0.bias'] = np.ones(4, np.float32)
  save(wrapped, path)
  with pytest.raises(pretrained.WeightsError, match='same layer but differ'):
    pretrained.load(path, model, variables)


@pytest.mark.parametrize(
  'change, message',
  [
    (lambda t: t.pop('features.5.bias'), 'missing tensor.*block2/conv1/bias'),
    (lambda t: t.pop('fc1.bias'), 'missing tensor.*head/hidden0/bias'),
    (lambda t: t.pop('fc2.bias'), 'missing tensor.*head/logits/bias'),
    (
      lambda t: t.update({'features.1.weight': t['features.0.weight']}),
      'unexpected tensor: features.1.weight',
    ),
    (
      lambda t: t.update({'features.0.running_mean': t['features.0.bias']}),
      'unexpected tensor: features.0.running_mean',
    ),
    (
      lambda t: t.update({'features.0.weight': np.zeros((4, 1, 3, 3), 'f4')}),
      r'mis-shaped tensor: features.0.weight \(as ours \[3, 3, 1, 4\]',
    ),
    (
      lambda t: t.update({'fc1.weight': np.zeros((9, 9), 'f4')}),
      'mis-shaped tensor: fc1.weight',
    ),
    (
      lambda t: t['features.0.weight'].fill(np.nan),
      'block1/conv1/kernel holds nan at 108 of 108 places',
    ),
    (
      lambda t: t['fc2.bias'].__setitem__(1, np.inf),
      'head/logits/bias holds inf at 1 of 2 places',
    ),
    (
      lambda t: t.update({'fc2.bias': np.zeros(2, np.int64)}),
      'head/logits/bias is int64, expected floats',
    ),
    (
      lambda t: t.update({'fc2.bias': np.zeros(2, np.int8)}),
      'fc2.bias has type I8',
    ),
  ],
)
def test_what_does_not_fit_is_named(change, message, tmp_path):
  tensors = checkpoint('vgg16', 2, 'mlp')
  change(tensors)
  path = save(tensors, tmp_path / 'w.safetensors')
  model, variables = small()
  with pytest.raises(pretrained.WeightsError, match=message) as error:
    pretrained.load(path, model, variables)
  assert str(path) in str(error.value)


def test_a_negative_variance_is_refused(tmp_path):
  tensors = checkpoint('resnet50')
  tensors['layer1.0.bn2.running_var'][3] = -1
  path = save(tensors, tmp_path / 'w.safetensors')
  model, variables = small('resnet50', 2, 'linear')
  with pytest.raises(pretrained.WeightsError, match=r'norm2/var holds -1\.0'):
    pretrained.load(path, model, variables)


def test_another_network_s_weights_are_refused(tmp_path):
  path = save(checkpoint('resnet50'), tmp_path / 'w.safetensors')
  with pytest.raises(pretrained.WeightsError, match='does not fit VGG'):
    pretrained.load(path, *small())
  wide = models.create('resnet50', 2, width=1 / 8, depth=0.3)
  with pytest.raises(pretrained.WeightsError, match='mis-shaped'):
    pretrained.load(path, wide, models.init(wide, jax.random.key(0), 32))


@pytest.mark.parametrize('dtype', [np.float16, jnp.bfloat16, np.float64])
def test_other_float_types_become_float32(dtype, tmp_path):
  tensors = checkpoint('vgg16', 2, 'mlp')
  cast = {name: value.astype(dtype) for name, value in tensors.items()}
  model, variables = small()
  path = save(cast, tmp_path / 'w.safetensors')
  loaded, _ = pretrained.load(path, model, variables)
  bias = loaded['params']['backbone']['block1']['conv1']['bias']
  assert bias.dtype == jnp.float32
  expected = np.asarray(cast['features.0.bias'], np.float32)
  np.testing.assert_array_equal(bias, expected)


@pytest.mark.parametrize('head', ['linear', 'imagenet', 'mlp', 'standardized'])
def test_goes_on_from_a_run_directory(head, tmp_path):
  model, variables = small('resnet50', 2, head)
  config = {'model': {'name': 'resnet50', 'head': head, **SMALL}}
  digest = run_directory.save_model(tmp_path, variables, {'config': config})
  other = models.init(model, jax.random.key(1), 64)
  loaded, record = pretrained.load(tmp_path, model, other)
  jax.tree.map(np.testing.assert_array_equal, loaded, variables)
  assert record['sha256'] == digest and record['initialised'] == []

  # Another task: the last layer starts anew, the rest goes on.
  model, fresh = small('resnet50', 4, head)
  loaded, record = pretrained.load(tmp_path, model, fresh)
  assert record['initialised'] == [
    'params/head/logits/bias',
    'params/head/logits/kernel',
  ]
  if head == 'mlp':
    hidden = loaded['params']['head']['hidden0']['kernel']
    np.testing.assert_array_equal(
      hidden, variables['params']['head']['hidden0']['kernel']
    )
    # Another head: only the backbone goes on.
    _, record = pretrained.load(tmp_path, *small('resnet50', 2, 'linear'))
    assert all(p.startswith('params/head') for p in record['initialised'])
    assert 'params/head/hidden0/kernel' in record['unused']


@pytest.mark.parametrize(
  'changed', [{'cell_units': 16}, {'detail': True}, {'taps': ('stage2',)}]
)
def test_cells_that_see_something_else_learn_anew(changed, tmp_path):
  def made(**options):
    model = models.create('resnet50', 2, head='evidence', **SMALL, **options)
    return model, models.init(model, jax.random.key(len(options)), 64)

  options = {'cells': 8, 'cell_units': 8}
  model, variables = made(**options)
  config = {'model': {'name': 'resnet50', 'head': 'evidence', **SMALL}}
  run_directory.save_model(tmp_path, variables, {'config': config})
  loaded, record = pretrained.load(tmp_path, model, made(**options)[1])
  jax.tree.map(np.testing.assert_array_equal, loaded, variables)
  other, fresh = made(**(options | changed))
  loaded, record = pretrained.load(tmp_path, other, fresh)
  for part in ('neck', 'head'):
    jax.tree.map(
      np.testing.assert_array_equal,
      loaded['params'][part],
      fresh['params'][part],
    )
  trunk = loaded['params']['backbone']
  assert trunk  # of the taps that it has
  for name, layers in trunk.items():
    jax.tree.map(
      np.testing.assert_array_equal,
      layers,
      variables['params']['backbone'][name],
    )
  assert any('neck/evidence/hidden' in path for path in record['initialised'])
  # A trunk of another width is still refused.
  with pytest.raises(pretrained.WeightsError, match='mis-shaped'):
    wider = models.create(
      'resnet50', 2, head='evidence', **(SMALL | {'width': 0.5}), **options
    )
    pretrained.load(tmp_path, wider, models.init(wider, jax.random.key(0), 64))


def test_the_bundled_model_s_trunk_serves_another_head(monkeypatch):
  monkeypatch.setattr(pretrained, '_download', None)  # nothing is asked for
  options = {'head': 'evidence', 'width': 0.7, 'detail': True}
  model = models.create('vgg16', 2, **options)
  fresh = models.init(model, jax.random.key(0), 64)
  loaded, record = pretrained.load('bundled', model, fresh)
  saved = run_directory.load_model(run_directory.bundled())
  jax.tree.map(
    np.testing.assert_array_equal,
    loaded['params']['backbone'],
    jax.tree.map(np.float32, saved.variables['params']['backbone']),
  )
  assert record['source'] == 'bundled' and record['sha256'] == saved.digest
  assert {p.split('/')[1] for p in record['initialised']} == {'head', 'neck'}
  with pytest.raises(pretrained.WeightsError, match='does not fit'):
    narrow = models.create('vgg16', 2, **(options | {'width': 0.5}))
    pretrained.load(
      'bundled', narrow, models.init(narrow, jax.random.key(0), 64)
    )


def test_damaged_run_directories_are_refused(tmp_path):
  model, variables = small()
  with pytest.raises(pretrained.WeightsError, match='no trained model'):
    pretrained.load(tmp_path, model, variables)
  config = {'model': {'name': 'vgg16', 'head': 'mlp'}}
  run_directory.save_model(tmp_path, variables, {'config': config})
  (weights,) = (tmp_path / 'model').glob('*.safetensors')
  weights.write_bytes(weights.read_bytes()[:-1] + b'x')
  with pytest.raises(pretrained.WeightsError, match='damaged'):
    pretrained.load(tmp_path, model, variables)


def test_real_trunk_loads(shared):
  model = models.create('vgg16', 2, head='mlp', dropout=0.5)
  variables = models.init(model, jax.random.key(0), 224)
  path = shared / 'weights' / 'vgg16_edges_features.safetensors'
  loaded, record = pretrained.load(path, model, variables)
  assert len(record['loaded']) == 26 and record['unused'] == []
  assert {p.split('/')[1] for p in record['initialised']} == {'head'}
  tensors, _ = pretrained.read(path)
  kernel = loaded['params']['backbone']['block5']['conv3']['kernel']
  np.testing.assert_array_equal(
    np.asarray(kernel)[0, 2, 5, 7], tensors['features.28.weight'][7, 5, 0, 2]
  )


def test_no_network_unless_a_tag_is_asked_for(tmp_path, monkeypatch):
  asked = []

  def refuse(*args, **kwargs):
    asked.append(args)
    raise OSError('no network in this test')

  monkeypatch.setattr(socket, 'create_connection', refuse)
  monkeypatch.setattr(socket, 'getaddrinfo', refuse)
  model, variables = small()
  pretrained.load('', model, variables)
  pretrained.load(
    save(checkpoint('vgg16', 2, 'mlp'), tmp_path / 'w.safetensors'),
    model,
    variables,
  )
  for source in ('vgg16.imagenet', 'no/such/file.pth'):
    with pytest.raises(pretrained.WeightsError, match=r'vgg16\.tv_in1k'):
      pretrained.load(source, model, variables)
  assert not asked


def test_a_tag_is_found_by_hand_in_the_cache_or_explained(
  tmp_path, monkeypatch
):
  import huggingface_hub

  def fetch(repo, filename, local_files_only=False):
    asked.append((repo, filename, local_files_only))
    if found is None:
      raise huggingface_hub.errors.LocalEntryNotFoundError('offline')
    return str(found)

  monkeypatch.setattr(huggingface_hub, 'hf_hub_download', fetch)
  monkeypatch.setenv('HOME', str(tmp_path))
  model, variables = small('vgg16', 1000, 'imagenet')
  tag, repo = 'vgg16.tv_in1k', ('timm/vgg16.tv_in1k', 'model.safetensors')

  asked, found = [], None
  with pytest.raises(pretrained.WeightsError) as error:
    pretrained.load(tag, model, variables)
  by_hand = tmp_path / '.cache' / 'iqa_jax' / 'weights' / f'{tag}.safetensors'
  assert str(by_hand) in str(error.value)
  url = 'https://huggingface.co/timm/vgg16.tv_in1k/resolve/main/'
  assert url + 'model.safetensors' in str(error.value)
  assert asked == [(*repo, True), (*repo, False)]

  asked, found = [], tmp_path / 'model.safetensors'
  save(checkpoint('vgg16'), found)
  _, record = pretrained.load(tag, model, variables)
  assert record['source'] == tag and record['initialised'] == []
  assert asked == [(*repo, True)]

  asked = []
  by_hand.parent.mkdir(parents=True)
  os.rename(found, by_hand)
  _, record = pretrained.load(tag, model, variables)
  assert record['file'] == str(by_hand) and not asked


def test_torchvision_s_name_carries_a_checksum(tmp_path):
  data = (HERE / 'earlier_zip.pth').read_bytes()
  digest = hashlib.sha256(data).hexdigest()
  good = tmp_path / f'vgg16-{digest[:8]}.pth'
  bad = tmp_path / 'vgg16-397923af.pth'
  good.write_bytes(data)
  bad.write_bytes(data)
  assert pretrained.read(good)[1] == digest
  with pytest.raises(pretrained.WeightsError, match='its name says 397923af'):
    pretrained.read(bad)


def test_reads_torch_s_views_types_and_training_checkpoints():
  numbers = np.arange(60, dtype=np.float32).reshape(6, 10)
  tensors = torch_file.read(HERE / 'training.pth')
  expected = {
    'transposed': numbers.T,
    'part': numbers[2:4, 1:9:2],
    'half': numbers[0].astype(np.float16),
    'bfloat16': numbers[1].astype(jnp.bfloat16),
    'integers': np.asarray([1, 2**40]),
    'scalar': np.asarray(7),
    'parameter': numbers[5],
  }
  assert tensors.keys() == expected.keys()
  for name, value in expected.items():
    assert tensors[name].dtype == value.dtype
    np.testing.assert_array_equal(tensors[name], value)


def zipped(data_pkl, path, **members):
  with zipfile.ZipFile(path, 'w') as archive:
    archive.writestr('archive/data.pkl', data_pkl)
    for name, data in members.items():
      archive.writestr(f'archive/data/{name}', data)
  return path


class Attack:
  """Unpickling it would make a directory."""

  def __init__(self, path):
    self.path = str(path)

  def __reduce__(self):
    return os.mkdir, (self.path,)


@pytest.mark.parametrize('protocol', [0, 2, 4])
@pytest.mark.parametrize('layout', ['zip', 'legacy', 'bare'])
def test_a_malicious_checkpoint_is_refused(layout, protocol, tmp_path):
  mark = tmp_path / 'attacked'
  attack = pickle.dumps({'features.0.weight': Attack(mark)}, protocol)
  path = tmp_path / 'model.pth'
  if layout == 'zip':
    zipped(attack, path)
  elif layout == 'legacy':
    head = [0x1950A86A20F9469CFC6C, 1001, {'little_endian': True}]
    path.write_bytes(b''.join(pickle.dumps(x, 2) for x in head) + attack)
  else:
    path.write_bytes(attack)
  model, variables = small()
  message = 'refused: .*mkdir|opcode|not saved by torch'
  with pytest.raises(pretrained.WeightsError, match=message):
    pretrained.load(path, model, variables)
  assert not mark.exists()
  pickle.loads(attack)
  assert mark.exists(), 'the attack must be a real one'


TENSOR = (
  b'ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\n'
  b'FloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ'
)


@pytest.mark.parametrize(
  'layout, message',
  [
    # storage_offset, (size,), (stride,), requires_grad, hooks
    (b'K\x00(K\x04t(K\x01t\x89Nt', None),
    (b'K\x01(K\x04t(K\x01t\x89Nt', 'outside its storage'),
    (b'K\x00(K\x04t(K\x02t\x89Nt', 'outside its storage'),
    (b'K\x00(J\xff\xff\xff\x7ft(K\x00t\x89Nt', 'outside its storage'),
    (b'K\x00(J\xff\xff\xff\xfft(K\x01t\x89Nt', 'impossible layout'),
    (b'J\xfe\xff\xff\xff(K\x01t(K\x01t\x89Nt', 'impossible layout'),
    (b'K\x00(K\x04t(K\x01K\x01t\x89Nt', 'damaged'),
    (b'K\x00X\x01\x00\x00\x00a(K\x01t\x89Nt', 'impossible layout|damaged'),
  ],
)
def test_tensors_stay_within_their_storage(layout, message, tmp_path):
  data_pkl = b'\x80\x02}X\x01\x00\x00\x00a' + TENSOR + layout + b'Rs.'
  numbers = np.arange(4, dtype=np.float32)
  path = zipped(data_pkl, tmp_path / 'a.pth', **{'0': numbers.tobytes()})
  if message is None:
    np.testing.assert_array_equal(torch_file.read(path)['a'], numbers)
  else:
    with pytest.raises(torch_file.TorchFileError, match=message):
      torch_file.read(path)


def test_bombs_do_not_go_off(tmp_path):
  # Thirty doublings: walking, hashing or printing it would take for ever.
  laughs = b'N' + b'q\x01h\x01\x86' * 60
  # A memo index of four thousand million, for which pickle makes room.
  memo = b'\x80\x02Nr\xff\xff\xff\xff.'
  for body in (
    b'\x80\x02' + laughs + b'.',
    b'\x80\x02}' + laughs + b'Ns.',
    b'\x80\x02' + laughs + b'Q.',
    b'\x80\x02ctorch._utils\n_rebuild_tensor_v2\n' + laughs + b'R.',
    b'\x80\x02}X\x01\x00\x00\x00a' + laughs + b's.',
    memo,
  ):
    with pytest.raises(torch_file.TorchFileError):
      torch_file.read(zipped(body, tmp_path / 'bomb.pth'))
  path = tmp_path / 'deflated.pth'
  with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
    archive.writestr('archive/data.pkl', b'\x80\x02}.')
  with pytest.raises(torch_file.TorchFileError, match='compressed'):
    torch_file.read(path)
  header = struct.pack('<Q', 2**40) + b'{}'
  path = tmp_path / 'a.safetensors'
  path.write_bytes(header)
  with pytest.raises(pretrained.WeightsError, match='not safetensors'):
    pretrained.read(path)


@pytest.mark.parametrize(
  'name', ['empty.pth', 'text.pth', 'empty.safetensors', 'text.safetensors']
)
def test_what_is_no_checkpoint_is_refused(name, tmp_path):
  path = tmp_path / name
  path.write_bytes(b'<html>404</html>\n' if 'text' in name else b'')
  with pytest.raises(pretrained.WeightsError, match=name):
    pretrained.read(path)
  other = tmp_path / 'weights.h5'
  other.write_bytes(b'')
  with pytest.raises(pretrained.WeightsError, match=r"unknown kind '\.h5'"):
    pretrained.read(other)


def _originals():
  tensors = {
    'a.weight': np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2),
    'a.bias': np.ones(2, np.float16),
  }
  yield 'a.safetensors', safetensors.numpy.save(tensors)
  for name in ('earlier_zip.pth', 'earlier_legacy.pth', 'training.pth'):
    yield name, (HERE / name).read_bytes()


@pytest.mark.parametrize('name, original', list(_originals()))
@hypothesis.given(data=st.data())
@hypothesis.settings(
  max_examples=80,
  deadline=None,
  suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
def test_damage_gives_the_documented_error_or_a_reading(
  name, original, data, tmp_path
):
  """Flipped bytes, mostly where the structure is, and cut ends."""
  damaged = bytearray(original)
  # The pickles and headers: the first and last kilobytes.
  near = st.integers(0, 3000) | st.integers(-3000, -1)
  for _ in range(data.draw(st.integers(1, 4))):
    position = data.draw(near) % len(damaged)
    damaged[position] = data.draw(st.integers(0, 255))
  if data.draw(st.booleans()):
    damaged = damaged[: data.draw(st.integers(0, len(damaged)))]
  path = tmp_path / name
  path.write_bytes(bytes(damaged))
  try:
    tensors, _ = pretrained.read(path)
  except pretrained.WeightsError as error:
    assert str(path) in str(error)
  else:
    buffer = io.BytesIO()
    np.savez(buffer, *tensors.values())  # every element can be reached
    assert len(buffer.getvalue()) < 20 * len(original)
