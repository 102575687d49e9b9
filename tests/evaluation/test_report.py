"""The report and its figures: complete, self-contained, not to be broken."""

import html.parser
import io
import json
import re

import numpy as np
from PIL import Image
import pytest

from iqa_jax.evaluation import (
  assessment,
  evaluate,
  examples,
  figures,
  learning_curves,
  report,
)
from iqa_jax.evaluation.examples import Example
from iqa_jax.judging.operating_record import OperatingRecord
from tests.evaluation import simulated


class Page(html.parser.HTMLParser):
  """Collects what a page loads and runs."""

  def __init__(self, text):
    super().__init__()
    self.sources, self.tags, self.open = [], [], []
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    if tag not in ('meta', 'br', 'img', 'link', 'input'):
      self.open.append(tag)
    self.sources += [v for k, v in attrs if k in ('src', 'href')]
    assert not any(k.startswith('on') for k, _ in attrs)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag


@pytest.fixture
def evaluated(simulated_run, monkeypatch):
  """Returns the arguments with which a simulated run's report is written."""
  calls = []
  monkeypatch.setattr(
    evaluate.report, 'write', lambda *a, **k: calls.append((a, k))
  )

  def make(task='criteria', **options):
    config, folder, source, splits = simulated_run(task, **options)
    evaluate.run(config, folder, source, splits)
    return calls[-1]

  return make


def test_one_file_that_holds_everything_and_runs_nothing(
  evaluated, tmp_path, monkeypatch
):
  (_, result, tables), options = evaluated()
  monkeypatch.undo()
  jpeg = b'\xff\xd8not really'
  evil = '<script>alert(1)</script>"onload=x|`_*[a](b)'
  options['examples'] = [Example('Missed', evil, evil, jpeg)]
  options['environment'] = {'git': evil}
  report.write(tmp_path, result, tables, **options)
  text = (tmp_path / 'report' / 'index.html').read_text()
  page = Page(text)
  assert not page.open
  assert not {'script', 'iframe', 'link', 'object'} & set(page.tags)
  assert all(s.startswith('data:image/') for s in page.sources)
  assert '<script>alert' not in text and '&lt;script&gt;' in text
  markdown = (tmp_path / 'report' / 'report.md').read_text()
  assert '<script' not in markdown.replace('\\<', '')
  # Every row of a table has as many cells as its head.
  for table in re.findall(r'(?:^\|.*\n)+', markdown, re.MULTILINE):
    cells = {len(re.findall(r'(?<!\\)\|', row)) for row in table.splitlines()}
    assert len(cells) == 1, table
  # Every figure is stated with its positive class, and in both formats.
  for name in figures.draw(result, tables, options['history'], resamples=5):
    assert f'figures/{name}.png' in markdown
    with Image.open(tmp_path / 'figures' / f'{name}.png') as picture:
      assert min(picture.size) > 200
    svg = (tmp_path / 'figures' / f'{name}.svg').read_text()
    assert '<svg' in svg and 'dc:date' not in svg
  shown = assessment.summary(result['splits']['test']['verdict'], 'auc')
  assert shown in text and shown in markdown
  for section in ('Criteria', 'On whom it fails', 'Data', 'model card'):
    assert section in text
  assert (tmp_path / 'report' / 'examples' / '000.jpg').read_bytes() == jpeg


def test_maps_of_one_member_are_called_so(evaluated, tmp_path, monkeypatch):
  (_, result, tables), options = evaluated('quality')
  monkeypatch.undo()
  options['examples'] = [Example('Missed', 'a', 'b', b'')]
  monkeypatch.setattr(figures, 'draw', lambda *_, **__: {})
  member = result['model']['members'][0]
  for members in ([member], [member, {**member, 'run': 'second'}]):
    result['model']['members'] = members
    report.write(tmp_path, result, tables, **options)
    for name in ('index.html', 'report.md'):
      text = (tmp_path / 'report' / name).read_text()
      assert ('those of run alone' in text) == (len(members) == 2)


@pytest.mark.parametrize('task', ['quality', 'grade', 'criteria'])
def test_every_figure_of_a_task_is_drawn(evaluated, task):
  (_, result, tables), options = evaluated(task)
  drawn = figures.draw(result, tables, options['history'], resamples=5)
  expected = {
    'history', 'confusion', 'roc', 'precision_recall', 'calibration', 'scores',
    'coverage', 'scores_by_criterion', 'groups',
  }  # fmt: skip
  assert set(drawn) == expected | (
    {'confusion_grade'} if task == 'grade' else set()
  )
  for name, figure in drawn.items():
    if name not in ('scores_by_criterion', 'coverage', 'groups'):
      assert 'nadequate' in figure.caption, name


@pytest.mark.parametrize('begun', [0, 5, 14])
def test_epochs_without_accuracy_leave_a_gap(begun):
  """Older versions of this package wrote none."""
  history = [
    {k: v for k, v in h.items() if 'accuracy' not in k or h['epoch'] > begun}
    for h in simulated.HISTORY
  ]
  panels = learning_curves.draw(history).axes
  titles = [axes.get_title('left') or axes.get_title() for axes in panels]
  assert ('Accuracy' in titles) == (begun < 14)
  if 'Accuracy' in titles:
    training = panels[titles.index('Accuracy')].lines[0].get_ydata()
    assert np.isfinite(training).sum() == 14 - begun


@pytest.mark.parametrize('kept', ['none', 'one', 'good', 'bad'])
def test_too_little_to_draw_is_no_crash(simulated_run, kept, monkeypatch):
  if kept in ('good', 'bad'):
    monkeypatch.setattr(figures, 'save', lay_out)
  config, folder, source, splits = simulated_run('grade', count=200)
  test = splits['test']
  quality = source.table['quality'][test]
  splits['test'] = {
    'none': test[:0],
    'one': test[:1],
    'good': test[quality == 0][:4],
    'bad': test[quality == 1][:4],
  }[kept]
  evaluate.run(config, folder, source, splits)
  assert (folder / 'report' / 'index.html').is_file()
  json.loads((folder / 'metrics.json').read_text())


def test_examples_show_each_photograph_with_its_own_map(monkeypatch):
  from iqa_jax import config as config_lib
  from iqa_jax import trained
  from iqa_jax.data import pipeline
  from iqa_jax.data import plan as plan_lib
  from iqa_jax.explain import explainer as explainer_lib
  from iqa_jax.tasks import Task

  n, size = 9, 32
  rng = np.random.default_rng(0)
  source = rng.integers(40, 220, (n, size, size, 3)).astype(np.uint8)
  seen = {}

  class Explainer:
    placement = None

    """A map is bright in the row that the image's first pixel says."""

    def __init__(self, loaded, *, methods, layer, batch_size):
      pass

    def maps(self, images, targets):
      seen.update(images=images, targets=targets)
      maps = np.zeros((len(images), 4, 4), np.float32)
      maps[0] -= 1
      maps[1:, 0] = 1
      return {'gradcam': maps}

  def batches(source, plan, *, image_size, batch_size, field, cells):
    assert not field and not cells
    for first in range(0, len(plan), batch_size):
      index = plan[first : first + batch_size]
      padded = np.resize(index, batch_size)
      yield {
        'image': source[padded],
        'mask': (np.arange(batch_size) < len(index)).astype(np.float32),
      }

  monkeypatch.setattr(explainer_lib, 'Explainer', Explainer)
  monkeypatch.setattr(plan_lib, 'plan_eval', lambda index: index)
  monkeypatch.setattr(pipeline, 'batches', batches)
  config = config_lib.default()
  config.explain.examples = n
  truth, called = np.array([1, 1, 1, 0, 0, 0, 1, 0, 1]), np.arange(n) % 2
  c = {
    'image_id': np.array([f'photo_{i}' for i in range(n)]),
    'quality': truth,
    'grade': np.full(n, -1),
    **{k: truth for k in ('focus', 'illumination', 'image_field', 'artifacts')},
    'p_calibrated': np.where(called, 0.9, 0.2) + 0.001 * np.arange(n),
    'verdict': called,
    'uncertain': np.zeros(n, int),
    'logit_adequate': np.zeros(n),
    'logit_inadequate': np.zeros(n),
  }
  loaded = trained.Trained(None, {}, Task(), config, {'epoch': 1}, '', size)
  # The verdicts' own operating point, not that of the file loaded before.
  record = OperatingRecord(operating_point={'threshold': 0.7})
  indices = np.arange(n)[::-1]
  drawn = examples.draw(
    loaded, record, config, source, indices, simulated.predictions(c)
  )
  assert sorted(e.name for e in drawn) == sorted(c['image_id'])
  rows = [int(e.name.removeprefix('photo_')) for e in drawn]
  np.testing.assert_array_equal(seen['images'], source[indices[rows]])
  # What is explained is the verdict, though one network alone may differ.
  margins = [Task().targets.index(t) for t in ('adequate_margin', 'margin')]
  np.testing.assert_array_equal(
    seen['targets'], np.array(margins)[called[rows]]
  )
  for i, (row, example) in enumerate(zip(rows, drawn, strict=True)):
    assert f'P(inadequate) = {c["p_calibrated"][row]:.3f}' in example.caption
    assert f'labelled {("adequate", "inadequate")[truth[row]]}' in (
      example.caption
    )
    assert ('the map is empty' in example.caption) == (i == 0)
    with Image.open(io.BytesIO(example.jpeg)) as picture:
      left, right = np.hsplit(np.asarray(picture).astype(int), 2)
    assert (np.abs(left - right).mean() > 3) == (i > 0)


def lay_out(drawn, folder):
  folder.mkdir(parents=True)
  for name, (figure, _, _) in drawn.items():
    figure.draw_without_rendering()
    (folder / f'{name}.svg').write_text('')


def test_examples_are_dealt_in_turn_and_never_twice():
  rng = np.random.default_rng(0)
  n = 300
  truth = rng.integers(0, 2, n)
  p = np.clip(0.5 + 0.3 * (2 * truth - 1) + rng.normal(0, 0.3, n), 0, 1)
  p[0] = np.nan
  c = {
    'p_calibrated': p,
    'quality': truth,
    'verdict': (p >= 0.5).astype(int),
    'uncertain': (np.abs(p - 0.5) < 0.05).astype(int),
  }
  chosen = examples.choose(simulated.predictions(c), 24)
  rows = [row for found in chosen.values() for row in found]
  assert len(rows) == len(set(rows)) == 24 and 0 not in rows
  assert {len(v) for v in chosen.values()} <= {4, 5}
  missed = [i for i in range(1, n) if truth[i] == 1 and p[i] < 0.5]
  assert chosen['missed'][0] == min(missed, key=lambda i: p[i])
  right = simulated.predictions(c)[:2]
  assert sum(map(len, examples.choose(right, 24).values())) == 1
