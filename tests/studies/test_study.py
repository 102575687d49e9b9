"""study: finds what is known of a constructed network; commands run."""

import dataclasses
import json
import subprocess
import sys

import jax
import numpy as np
import pytest

from iqa_jax import models, run_directory
from iqa_jax.simulation import faults, pixel_labels, unfamiliar
from iqa_jax.studies import (
  figures,
  methods,
  planted,
  show,
  study,
)
from iqa_jax.studies import photographs as photographs_lib
from iqa_jax.studies.subject import Subject
from tests.explain import constructed


@pytest.fixture(scope='module')
def studied():
  photographs = constructed.photographs(5)
  # One with a bright spot, one that only shows the wrong place.
  photographs.images[3, 20:32, 36:48] = 255
  photographs.quality[3:] = 1
  photographs.criteria[3, 3] = 1
  photographs.criteria[4, 2] = 1
  photographs.patients[:] = ['a', 'a', 'b', 'c', 'd']
  truth = np.where(photographs.inside, 1, 0).astype(np.uint8)
  truth[3, 20:32, 36:48] = 3
  subject = Subject(
    constructed.loaded(), methods=('gradcam', 'eigencam'), batch_size=8
  )
  return study.run(
    subject,
    dataclasses.replace(photographs, truth=truth),
    gradient_free=('occlusion',),
    baselines=('zero', 'mean'),
    severity=0.9,
  )


def test_a_true_explanation_finds_the_planted_fault(studied):
  found = studied[0]['planted']
  assert (found['n'], found['n_patients']) == (3, 2)
  stain = found['kinds']['writing']
  assert stain['group'] == 'unfamiliar' and stain['rises']['n'] == 3
  bright = found['kinds']['reflection']
  assert bright['criterion'] == 'artifacts'
  rises = bright['rises']['mean']  # one of these ghosts is too faint
  assert rises == pytest.approx(2 / 3)
  measures = bright['measures']
  # What the network reacts to is found, and nothing else.
  assert measures['hits']['gradcam']['mean'] == pytest.approx(rises)
  assert measures['auc']['gradcam']['mean'] > 0.5 + 0.45 * rises
  assert measures['average_precision']['gradcam']['mean'] > 0.5
  assert 0.8 * rises < measures['energy']['gradcam']['mean'] <= rises
  energy = measures['energy_over_area']
  for control in ('random', 'centre'):
    assert energy['gradcam']['mean'] > 1.5 * energy[control]['mean']
  # A map that is even over the field has the energy of its share of the field.
  assert 0.5 < energy['random']['mean'] < 1.6
  # Before planting there was nothing to see: an empty map, and its ties.
  assert measures['auc_before']['gradcam']['mean'] == 0.5
  assert measures['auc']['gradcam']['over']['before']['mean'] > 0.45 * rises


def test_faults_that_are_not_found_count_as_misses(studied):
  # A network that sees bright spots does not mind the dark.
  shadow = studied[0]['planted']['kinds']['pupil_shadow']
  assert shadow['rises']['mean'] == 0 == shadow['turns']['mean']
  assert shadow['rises']['n'] == 3
  measures = shadow['measures']
  for measure, value in (('auc', 0.5), ('energy_over_area', 0), ('hits', 0)):
    assert measures[measure]['gradcam']['mean'] == value
    assert measures[measure]['gradcam']['n'] == 3
  # What is not seen can't be told for certain of three photographs.
  assert measures['hits']['gradcam']['high'] > 0.4


def test_gradient_free_methods_look_at_each_photograph_once(studied):
  kinds = studied[0]['planted']['kinds']
  looked = [
    k['measures']['auc'].get('occlusion', {'n': 0})['n']
    for k in kinds.values()
    if 'measures' in k
  ]
  assert sum(looked) == 3 and max(looked) == 1
  groups = studied[0]['planted']['groups']
  assert groups['named']['measures']['auc']['gradcam']['n'] == 3
  assert groups['named']['local_kinds'] == len(planted.GROUPS['named']) - len(
    planted.WHOLE
  )


@pytest.mark.parametrize('count', [1, 3, 8, 24, 31])
def test_each_photograph_has_a_turn_with_kinds_of_both_groups(count):
  turns = planted._turns(count)
  assert len(turns) == count
  local = [k for k in planted.kinds() if k not in planted.WHOLE]
  assert len(np.unique(turns)) == min(count, len(local))
  groups = [planted.kinds()[local[turn]][0] for turn in turns]
  if count > 2:
    named = len([k for k in local if k in faults.CRITERION]) / len(local)
    assert groups.count('named') / count == pytest.approx(named, abs=1 / count)


def test_faults_without_a_place_are_reported_apart(studied):
  result = studied[0]
  everywhere = result['planted']['kinds']['over']
  assert everywhere['turns']['mean'] == 1 and 'measures' not in everywhere
  positional = result['positional']
  assert positional['n'] == 1 and positional['called_inadequate'] == 0
  assert 'no region that holds the evidence' in positional['note']


def test_what_fills_the_field_is_known():
  photographs = constructed.photographs(2)
  for kind in planted.kinds():
    _, masks = planted.plant(photographs, kind, 0.8, 0)
    share = masks.sum((1, 2)) / photographs.inside.sum((1, 2))
    assert (share.max() > 0.98) == (kind in planted.WHOLE), kind


def test_kinds_that_a_run_was_not_shown_are_unfamiliar_to_it(studied):
  every = planted.kinds()
  found = planted.kinds(['dust', 'haze'])
  assert found.keys() == every.keys()
  moved = {kind for kind in every if found[kind] != every[kind]}
  assert moved == {'dust', 'haze'}
  assert found['dust'] == ('unfamiliar', 'artifacts')
  assert found['haze'] == ('unfamiliar', 'illumination')
  # Figures draw one line between the groups.
  groups = [group for group, _ in found.values()]
  assert groups == sorted(groups)


def test_labelled_pixels_are_ranked_by_criterion(studied):
  pixels = studied[0]['pixels']
  assert list(pixels) == ['all', 'artifacts']
  for found in pixels.values():
    assert found['auc']['gradcam']['mean'] > 0.99
    assert found['auc']['gradcam']['n'] == 1
    assert found['bad']['mean'] == pytest.approx(
      144 / constructed.photographs(1).inside.sum(), rel=0.02
    )
    assert abs(found['auc']['random']['mean'] - 0.5) < 0.3


def test_a_head_of_evidence_is_measured_by_its_own_maps():
  model = models.create('vgg16', 2, head='evidence', width=0.0625, cells=8)
  variables = models.init(model, jax.random.key(0), 32)
  loaded = dataclasses.replace(
    constructed.loaded(), model=model, variables=variables, image_size=32
  )
  subject = Subject(loaded, methods=('evidence', 'hirescam'), layer='cells')
  images = constructed.photographs(3).images[:, ::2, ::2]
  targets = np.full(3, 2)
  look = methods.look(subject, images, targets, 'artifacts')
  assert set(look.maps) == {'evidence', 'hirescam', methods.CRITERION_MAP}
  assert look.cells == (8, 8)
  # The logit less its bias, in units of the mean over the cells.
  head = variables['params']['head']
  total = subject.explain(images, targets).maps['evidence'].sum((1, 2))
  margin = look.logits[:, 1] - look.logits[:, 0]
  np.testing.assert_allclose(total, margin - head['bias'], rtol=1e-4)
  own = subject.explain(images, targets).criteria['artifacts']
  assert own.shape == (3, 8, 8) and (own >= 0).all()
  plain = Subject(constructed.loaded())
  assert methods.look(plain, images, targets, 'artifacts').maps.keys() == {
    'gradcam'
  }
  with pytest.raises(ValueError, match='no maps of its own'):
    Subject(constructed.loaded(), methods=('evidence',))


def test_measures_prefer_the_true_explanation():
  photographs = constructed.photographs(6)
  rng = np.random.default_rng(1)
  for image in photographs.images:
    y, x = rng.integers(14, 40, 2)
    image[y : y + 10, x : x + 10] = 255
  subject = Subject(constructed.loaded(), methods=('gradcam',), batch_size=8)
  result, _ = study.run(subject, photographs, baselines=('mean',), steps=16)
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
  assert measures['outside']['gradcam']['mean'] == 0
  # A flat white square is imputed from its rim: the edges are what matters.
  assert measures['road']['gradcam']['mean'] > -0.05
  assert result['targets'] == {
    'adequate': 0,
    'inadequate': 0,
    'margin': 6,
    'adequate_margin': 0,
  }
  # Its only tensor holds equal values, which no shuffling changes.
  parts = result['randomisation']['gradcam']
  assert list(parts) == ['head']
  assert parts['head']['spearman']['mean'] == pytest.approx(1)
  # This network does not care which way round it sees.
  assert result['flip']['gradcam']['spearman']['mean'] > 0.999
  # Nothing is called adequate, so nothing is planted.
  assert 'planted' not in result
  assert 'no photograph is called adequate' in show.report(result, 0.8)


def test_results_are_json_and_everything_can_be_shown(studied, tmp_path):
  result, shown = studied
  run_directory.write_json(tmp_path / 'result.json', result)
  assert json.loads((tmp_path / 'result.json').read_text()) == result
  text = show.report(result, 0.9)
  for word in (
    *('deletion/zero', 'road', 'reflection', 'occlusion', 'edges'),
    *('3 photographs of 2 patients', '5 photographs of 4 patients'),
  ):
    assert word in text
  assert 'nan' not in text.lower().replace('planted', '')
  both = show.overview([result, result])
  assert both.count('| gradcam |') == 2
  paths = figures.draw(result, shown, tmp_path / 'figures')
  assert {p.stem for p in paths} == {
    *('curves', 'randomisation', 'planted', 'kinds'),
    *('examples_named', 'examples_unfamiliar'),
  }
  assert all(p.stat().st_size > 5000 for p in paths)
  assert all(p.with_suffix('.pdf').is_file() for p in paths)


def test_a_part_alone_says_the_same_and_costs_no_more(studied, tmp_path):
  whole = studied[0]
  photographs = constructed.photographs(5)
  photographs.images[3, 20:32, 36:48] = 255
  photographs.quality[3:] = 1
  photographs.patients[:] = ['a', 'a', 'b', 'c', 'd']
  photographs.criteria[3, 3] = photographs.criteria[4, 2] = 1

  def alone(part):
    subject = Subject(
      constructed.loaded(), methods=('gradcam', 'eigencam'), batch_size=8
    )
    options = {'gradient_free': ('occlusion',), 'severity': 0.9}
    return study.run(
      subject, photographs, parts=[part], baselines=('zero', 'mean'), **options
    )

  told = {}
  for part in study.PARTS:
    result, shown = alone(part)
    run_directory.write_json(tmp_path / 'result.json', result)
    told[part] = show.report(result, 0.9)
    figures.draw(result, shown, tmp_path / part)
    assert ('planted faults' in result['seconds']) == (part == 'planted')
    for key in ('planted', 'measures', 'randomisation', 'flip'):
      if key in result:
        assert result[key] == whole[key], (part, key)
  assert 'gradcam' in told['planted'] and 'ROAD' in told['removal']
  assert 'no faults were planted' in told['removal']
  assert 'called adequate' in told['planted']
  with pytest.raises(ValueError, match='removals'):
    alone('removals')


def test_planted_faults_are_written_and_read_again(tmp_path):
  clean = constructed.photographs(1)
  count = planted.write(tmp_path, clean, 0.8, 0)
  assert count == len(planted.kinds())
  assert set(planted.kinds()) == {*faults.CRITERION, *unfamiliar.KINDS}
  found = photographs_lib.read(
    str(tmp_path / 'images'), 64, pixel_labels=tmp_path / 'pixel_labels'
  )
  assert len(found) == count
  _, masks = planted.plant(clean, 'dust', 0.8, 0)
  at = list(found.ids).index('dust_made-0')
  labels = pixel_labels.of_fault(masks[0], clean.inside[0])
  assert (labels == pixel_labels.BAD).any()
  # The photograph is cut to its field, a pixel or two.
  agree = (found.truth[at] == labels)[clean.inside[0] & found.inside[at]]
  assert agree.mean() > 0.9


def test_unknown_methods_are_refused():
  subject = Subject(constructed.loaded(), batch_size=2)
  with pytest.raises(ValueError, match=r"'lime' is none of evidence.*rise"):
    study.run(subject, constructed.photographs(1), gradient_free=('lime',))


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
