"""Other runtimes say what JAX says of the same photographs."""

import csv
import importlib.util
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import iqa_jax as iqa
from iqa_jax import errors, runtimes
from iqa_jax.export import run as export
from iqa_jax.export.options import Options
from iqa_jax.models import pooling
from iqa_jax.photograph.placement import Window
from iqa_jax.runtimes import sessions
from tests.export import export_material

pytest.importorskip('onnx', reason='the extra onnx is not installed')

# Maps without a gradient, with Grad-CAM's, and with a pool's in between.
MODELS = {
  # Explained as configs/eyeq_evidence.py says, the same for all photographs.
  'evidence': {'head': 'evidence', 'size': 48, 'target': 'margin'},
  'linear': {'head': 'linear', 'size': 48},
  'vgg16': {'head': 'mlp', 'network': 'vgg16', 'size': 48},
}
OTHERS = ('onnxruntime', 'openvino')


def needs(runtime):
  # Importing it here would be no use of ours: see the test of reports.
  if not importlib.util.find_spec(runtime):
    pytest.skip(f'{runtime} is not installed')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp('runtimes')
  rng = np.random.default_rng(5)
  for number in range(3):
    export_material.save(folder / 'photographs' / f'{number}.jpg', rng)
  for name, about in MODELS.items():
    export_material.make_run(
      folder / name,
      head_scale=30.0 if name == 'linear' else 1.0,
      operating_point={'threshold': 0.5, 'flip_tta': name == 'vgg16'},
      calibration={'method': 'platt', 'scale': 0.8, 'offset': -0.1},
      **about,
    )
  return folder


@pytest.fixture(scope='module')
def said(folder):
  """Returns what JAX says: {model: explanations}."""
  return {name: explained(folder, name, 'jax') for name in MODELS}


def explained(folder, name, runtime):
  grader = iqa.load(folder / name, check_fundus=False, runtime=runtime)
  photographs = sorted((folder / 'photographs').iterdir())
  found = grader.explain(photographs)
  for verdict, one in zip(grader.judge(photographs), found, strict=True):
    assert verdict.verdict == one.verdict.verdict
    assert verdict.p_inadequate == pytest.approx(
      one.verdict.p_inadequate, rel=1e-5
    )
  return found


def assert_close(found, expected):
  np.testing.assert_allclose(
    found, expected, rtol=0, atol=1e-5 * np.abs(expected).max()
  )


@pytest.mark.parametrize('runtime', OTHERS)
@pytest.mark.parametrize('name', MODELS)
def test_says_what_jax_says(folder, said, name, runtime):
  needs(runtime)
  found = explained(folder, name, runtime)
  assert len(found) == len(said[name]) == 3
  for one, expected in zip(found, said[name], strict=True):
    row, wanted = one.verdict.to_dict(), expected.verdict.to_dict()
    assert row.keys() == wanted.keys()
    for key, value in wanted.items():
      if isinstance(value, float):
        assert row[key] == pytest.approx(value, rel=1e-5), key
      else:
        assert row[key] == value, key
    assert one.target == expected.target
    assert np.abs(expected.raw).max() > 0
    assert_close(one.raw, expected.raw)
    for criterion, cells in expected.cells.items():
      assert_close(one.cells[criterion], cells)


@pytest.mark.parametrize('runtime', OTHERS)
def test_a_pools_gradient_goes_to_the_first_of_the_largest(runtime):
  needs(runtime)

  def gradient(weight, images):
    def score(x):
      return (weight * pooling.max_pool(x, Window(2, 2, 0)) ** 2).sum()

    return jax.grad(score)(images.astype(jnp.float32))

  images = np.random.default_rng(0).integers(1, 4, (4, 2, 5, 7, 3), 'u1')
  weight = jnp.float32(2)
  expected, found = (
    sessions.parallel(gradient, name, weight, images.shape[2:])(weight, images)
    for name in ('jax', runtime)
  )
  assert np.asarray(expected).any()
  np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize('name', MODELS)
def test_bfloat16_shows_what_jax_shows(folder, said, name):
  needs('openvino')
  grader = iqa.load(
    folder / name, check_fundus=False, runtime='openvino_bfloat16'
  )
  found = grader.explain(sorted((folder / 'photographs').iterdir()))
  for one, expected in zip(found, said[name], strict=True):
    assert one.verdict.p_inadequate == pytest.approx(
      expected.verdict.p_inadequate, abs=0.005
    )
    alike = np.corrcoef(one.raw.flat, expected.raw.flat)[0, 1]
    assert alike >= 0.999


@pytest.mark.parametrize('layers', [1, 2])
def test_bfloat16_sees_what_is_faint_in_a_photograph(layers):
  """Edges of one grey level of 200, which eight bits do not hold."""
  needs('openvino')

  def edges(weight, images):
    x = (images.astype(jnp.float32) / 255 - 0.45) / 0.225
    for kernel in weight[:layers]:
      x = jax.lax.conv_general_dilated(
        x, kernel, (1, 1), 'VALID', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
      )
      x = jax.nn.relu(x)
    return x

  weight = [jnp.array([[[[1.0]], [[-1.0]]]]), jnp.ones((1, 1, 1, 1))]
  shape = (1, 2, 16, 16, 1)
  images = np.random.default_rng(0).integers(200, 205, shape).astype('u1')
  expected, found = (
    np.asarray(
      sessions.parallel(edges, name, weight, shape[2:])(weight, images)
    )
    for name in ('jax', 'openvino_bfloat16')
  )
  assert found.shape == expected.shape
  # Alone it is no network's first layer, and computed in bfloat16.
  atol = 0.02 if layers == 1 else 1e-3
  np.testing.assert_allclose(found, expected, rtol=0.01, atol=atol)


@pytest.mark.parametrize('runtime', OTHERS)
def test_blocks_of_a_map_are_reduced_over_their_own_axes(runtime):
  needs(runtime)

  def reduced(weight, images):
    x = weight * images
    blocks = x.reshape(-1, 2, 3, 4, 2, 3)
    others = x.reshape(-1, 4, 2, 3, 2, 3)  # of 8 by 6, which x is not
    return (
      [f(blocks, axis=(2, 4)) for f in (jnp.sum, jnp.max, jnp.min)],
      [jnp.sum(blocks, axis=axes) for axes in ((1, 2, 5), (3,))],
      [f(others, axis=(2, 4)) for f in (jnp.sum, jnp.max)],
    )

  images = np.random.default_rng(1).integers(0, 255, (1, 5, 6, 8, 3), 'u1')
  weight = jnp.float32(0.3)
  expected, found = (
    sessions.parallel(reduced, name, weight, images.shape[2:])(weight, images)
    for name in ('jax', runtime)
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found, expected
  )


def test_blocks_of_a_convolution_are_pooled_where_they_lie():
  from iqa_jax.runtimes import onnx_graph

  def features(images):
    x = jax.lax.conv_general_dilated(
      images.astype(jnp.float32),
      jnp.ones((3, 3, 1, 5)),
      (1, 1),
      'SAME',
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )
    blocks = jax.nn.relu(x).reshape(-1, 2, 3, 4, 2, 5)
    return [blocks.mean((2, 4)), blocks.max((2, 4))]

  (batch,) = jax.export.symbolic_shape('batch')
  made = onnx_graph.convert(
    features,
    jax.ShapeDtypeStruct((batch, 6, 8, 1), np.uint8),
    input_name='images',
    output_names=['mean', 'largest'],
  )
  inputs = {node.output[0]: node for node in made.graph.node}
  for pool in ('AveragePool', 'MaxPool'):
    (node,) = (node for node in made.graph.node if node.op_type == pool)
    before = inputs[node.input[0]]
    assert before.op_type == 'Relu'
    assert inputs[before.input[0]].op_type == 'Conv'


def test_an_export_is_the_same_and_says_what_computed(folder, tmp_path):
  needs('onnxruntime')
  tables = []
  for runtime in ('jax', 'onnxruntime'):
    options = Options(
      str(folder / 'evidence'),
      str(folder / 'photographs'),
      str(tmp_path / runtime),
      outputs=('npz',),
      workers=1,
      check_fundus=False,
      progress=False,
      runtime=runtime,
    )
    assert export.run(options).statuses == {'ok': 3}
    with open(tmp_path / runtime / 'manifest.csv', encoding='utf-8') as file:
      tables.append(list(csv.DictReader(file)))
    assert {row.pop('runtime') for row in tables[-1]} == {runtime}
  for ours, theirs in zip(*tables, strict=True):
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
      try:
        number = float(value)
      except ValueError:
        assert theirs[name] == value, name
      else:
        assert float(theirs[name]) == pytest.approx(number, rel=1e-5), name


def test_nothing_is_reported_to_anybody():
  """Importing openvino would start a process that calls a server."""
  needs('openvino')
  code = (
    'import os, sys\nimport jax.numpy as jnp\nimport numpy as np\n'
    'os.register_at_fork(before=lambda: os._exit(3))\n'
    'from iqa_jax.runtimes import sessions\n'
    'run = sessions.parallel(lambda w, x: x * w, "openvino", '
    'jnp.float32(2), (2,))\n'
    'print(run, sys.modules["openvino_telemetry"])'
  )
  done = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=False
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout.strip().endswith('None')


def test_ensembles_are_computed_too(folder):
  needs('onnxruntime')
  members = [folder / 'linear', folder / 'vgg16']
  photograph = folder / 'photographs' / '0.jpg'
  ours, theirs = (
    iqa.load(members, check_fundus=False, runtime=runtime).judge(photograph)
    for runtime in ('jax', 'onnxruntime')
  )
  assert theirs.spread > 0
  assert theirs.p_inadequate == pytest.approx(ours.p_inadequate, rel=1e-5)


def test_what_a_runtime_cannot_do_is_one_sentence(folder, monkeypatch):
  needs('onnxruntime')
  with pytest.raises(errors.UserError, match="'tensorrt' is none of jax"):
    iqa.load(folder / 'linear', runtime='tensorrt')
  grader = iqa.load(folder / 'linear', runtime='onnxruntime')
  with pytest.raises(errors.UserError, match='onnxruntime cannot compute'):
    grader.explain(folder / 'photographs' / '0.jpg', method='eigencam')
  monkeypatch.setattr(runtimes, '_EXTRAS', {'nothing': 'nothing'})
  monkeypatch.setattr(runtimes, 'NAMES', ('jax', 'nothing'))
  with pytest.raises(errors.UserError, match='not installed'):
    iqa.load(folder / 'linear', runtime='nothing')


def test_weights_that_are_not_finite_are_not_computed(tmp_path):
  """A ReLU of theirs could take NaN for 0."""
  needs('onnxruntime')
  export_material.make_run(tmp_path, head_scale=float('nan'))
  with pytest.raises(errors.UserError, match='not finite'):
    iqa.load(tmp_path, runtime='onnxruntime')
