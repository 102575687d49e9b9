"""study: finds what is known of a constructed network; commands run."""

import json
import subprocess
import sys

import numpy as np
import pytest

from iqa_jax import run_directory
from iqa_jax.explain.subject import Subject
from iqa_jax.studies import study
from tests.explain import constructed


@pytest.fixture(scope='module')
def studied():
  photographs = constructed.photographs(5)
  # One with a bright spot, one that only shows the wrong place.
  photographs.images[3, 20:32, 36:48] = 255
  photographs.quality[3:] = 1
  photographs.criteria[3, 3] = 1
  photographs.criteria[4, 2] = 1
  subject = Subject(
    constructed.loaded(), methods=('gradcam', 'eigencam'), batch_size=8
  )
  return study.run(
    subject,
    photographs,
    target='margin',
    gradient_free=('occlusion',),
    baselines=('zero', 'mean'),
    steps=4,
    severity=0.9,
  )


def test_a_true_explanation_finds_the_planted_fault(studied):
  planted = studied[0]['planted']
  assert planted['reflection']['criterion'] == 'artifacts'
  found = planted['reflection']
  assert 0 < found['turned'] <= found['n'] == 3
  # Occlusion's window reaches over the rim of a thin reflection.
  for method, inside in (('gradcam', 0.8), ('occlusion', 0.6)):
    assert found['pointing'][method]['mean'] == 1
    energy = found['energy_over_area']
    for control in ('random', 'centre'):
      assert energy[method]['mean'] > 1.5 * energy[control]['mean']
    assert found['energy_inside'][method]['mean'] > inside
  # The random control lies where its area is: no bias towards the mask.
  assert found['energy_inside']['random']['mean'] < 0.5
  # A network that sees bright spots does not mind the dark.
  assert planted['under'] == {'criterion': 'illumination', 'n': 3, 'turned': 0}


def test_faults_without_a_place_are_reported_apart(studied):
  result = studied[0]
  everywhere = result['planted']['over']
  assert everywhere['turned'] == 3 and 'pointing' not in everywhere
  assert 'whole field' in everywhere['note']
  positional = result['positional']
  assert positional['n'] == 1 and positional['called_inadequate'] == 0
  assert 'no region that holds the evidence' in positional['note']


def test_measures_prefer_the_true_explanation():
  photographs = constructed.photographs(4)
  rng = np.random.default_rng(1)
  for image in photographs.images:
    y, x = rng.integers(14, 40, 2)
    image[y : y + 10, x : x + 10] = 255
  subject = Subject(constructed.loaded(), methods=('gradcam',), batch_size=8)
  result, _ = study.run(
    subject, photographs, target='margin', baselines=('mean',), steps=16
  )
  measures = result['measures']
  for measure, better in (
    ('deletion/mean', -1),
    ('insertion/mean', 1),
    ('average_drop/mean', -1),
  ):
    over = measures[measure]['gradcam']['over']
    for control in ('random', 'centre'):
      assert better * over[control]['mean'] > 0.03, (measure, control)
    worst = over['random']['low' if better > 0 else 'high']
    assert better * worst > 0, measure
  assert measures['outside_over_area']['gradcam']['mean'] == 0
  # A flat white square is imputed from its rim: the edges are what matters.
  assert measures['road']['gradcam']['mean'] > -0.05
  assert result['targets'] == {
    'adequate': 0,
    'inadequate': 0,
    'margin': 4,
    'adequate_margin': 0,
  }
  # Its only tensor holds equal values, which no shuffling changes.
  parts = result['randomisation']['gradcam']
  assert list(parts) == ['head']
  assert parts['head']['spearman']['mean'] == pytest.approx(1)
  # This network does not care which way round it sees.
  assert result['flip']['gradcam']['spearman']['mean'] > 0.999


def test_results_are_json_and_everything_can_be_shown(studied, tmp_path):
  result, shown = studied
  run_directory.write_json(tmp_path / 'result.json', result)
  assert json.loads((tmp_path / 'result.json').read_text()) == result
  text = study.table(result)
  for word in ('deletion/zero', 'road', 'reflection', 'occlusion', 'edges'):
    assert word in text
  assert 'nan' not in text.lower().replace('planted', '')
  paths = study.draw(result, shown, tmp_path / 'figures')
  assert {p.stem for p in paths} >= {'curves', 'planted', 'planted_examples'}
  assert all(p.stat().st_size > 5000 for p in paths)


def test_unknown_methods_are_refused():
  subject = Subject(constructed.loaded(), batch_size=2)
  with pytest.raises(ValueError, match=r"'lime' is none of gradcam.*rise"):
    study.run(
      subject, constructed.photographs(1), gradient_free=('lime',), steps=1
    )


def test_batches_are_padded_and_the_padding_dropped():
  photographs = constructed.photographs(5)
  photographs.images[2, 20:40, 20:40] = 255
  whole, small = (
    Subject(constructed.loaded(), batch_size=size) for size in (5, 2)
  )
  np.testing.assert_allclose(
    whole.logits(photographs.images), small.logits(photographs.images), 1e-5
  )
  targets = np.ones(5, int)
  np.testing.assert_allclose(
    whole.maps(photographs.images, targets)['gradcam'],
    small.maps(photographs.images, targets)['gradcam'],
    rtol=1e-5,
  )
  assert list(whole.score(photographs.images, targets) > 0.5) == [
    *(False, False, True, False, False)
  ]


@pytest.mark.parametrize(
  'command', ['evaluate_explanations', 'review_criteria']
)
def test_commands_start_without_heavy_imports(command):
  code = (
    f'import sys, iqa_jax.{command}; '
    "heavy = {'jax', 'tensorflow', 'numpy', 'matplotlib', 'scipy'}; "
    'sys.exit(", ".join(heavy & set(sys.modules)) or 0)'
  )
  done = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=False
  )
  assert not done.returncode, done.stderr


@pytest.mark.slow
def test_commands_write_what_they_say(tmp_path):
  from tests.benchmarks import _material

  _material.random_run(tmp_path, image_size=64, width=0.0625)
  for command, arguments, written in (
    (
      'evaluate_explanations',
      ['--examples=4', '--steps=2', '--methods=gradcam', '--baselines=mean'],
      ['explanations/explanations.json', 'explanations/figures/curves.png'],
    ),
    (
      'review_criteria',
      ['--examples=10'],
      ['review/review.json', 'review/review.md', 'review/figures/recall.pdf'],
    ),
  ):
    done = subprocess.run(
      [
        *(sys.executable, '-m', f'iqa_jax.{command}'),
        *(f'--workdir={tmp_path}', *arguments),
      ],
      capture_output=True,
      text=True,
      check=False,
    )
    assert not done.returncode, done.stderr
    assert done.stdout.startswith('# ')
    for name in written:
      assert (tmp_path / name).stat().st_size > 500
  done = subprocess.run(
    [
      *(sys.executable, '-m', 'iqa_jax.review_criteria'),
      f'--workdir={tmp_path / "nowhere"}',
    ],
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 1 and 'holds no trained model' in done.stderr
