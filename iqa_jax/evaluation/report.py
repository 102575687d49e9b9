"""The report: one self-contained HTML file, and the same in Markdown."""

from __future__ import annotations

import base64
import collections
from collections.abc import Iterable, Mapping, Sequence
import json
import os
import pathlib

import jinja2

from iqa_jax import run_directory
from iqa_jax.aliases import Record
from iqa_jax.evaluation import assessment, breakdowns, figures, metrics
from iqa_jax.evaluation.examples import Example
from iqa_jax.evaluation.predictions import Predictions

_NOT_MEDICAL = (
  'Research software, not a medical device. Its verdicts say whether a '
  'photograph resembles those that graders called inadequate; they say '
  'nothing about disease.'
)


def write(
  output: str | os.PathLike,
  result: Record,
  tables: Mapping[str, Predictions],
  *,
  config: Record | None = None,
  history: Sequence[Record] = (),
  environment: Record | None = None,
  examples: Sequence[Example] = (),
  resamples: int = 2000,
) -> None:
  """Writes figures/, report/index.html and report/report.md.

  Args:
    output: the folder.
    result: what metrics.json holds.
    tables: the predictions of every split in it.
    config: the run's configuration, nested.
    history: lines of history.jsonl.
    environment: what environment.json holds.
    examples: photographs with maps.
    resamples: of the figures' bands.
  """
  output = pathlib.Path(output)
  drawn = figures.draw(result, tables, history, resamples=resamples)
  figures.save(drawn, output / 'figures')
  context = {
    **_context(result),
    'config': config or {},
    'config_text': json.dumps(config, indent=2) if config else '',
    'environment': environment or {},
    'facts': _facts(result, config or {}, environment or {}),
    'figures': [
      {'name': name, 'title': f.title, 'caption': f.caption}
      for name, f in drawn.items()
    ],
    'not_medical': _NOT_MEDICAL,
  }
  shown = {
    name: _uri((output / 'figures' / f'{name}.svg').read_bytes(), 'svg+xml')
    for name in drawn
  }
  kinds = _write_examples(output / 'report', examples)
  html = _environment(autoescape=True).get_template('report.html.j2')
  markdown = _environment(autoescape=False).get_template('report.md.j2')
  run_directory.write_text(
    output / 'report' / 'index.html',
    html.render(**context, uris=shown, examples=kinds),
  )
  run_directory.write_text(
    output / 'report' / 'report.md', markdown.render(**context, examples=kinds)
  )


def _context(result: Record) -> Record:
  splits = result['splits']
  main = figures.main_split(splits)
  measured = splits[main]
  return {
    'result': result,
    'main': main,
    'headline_title': _headline(result),
    'measured': measured,
    'headline': [
      {
        'title': metrics.TITLES[name].split(' (')[0],
        'measure': measured['verdict']['metrics'][name],
      }
      for name in breakdowns.MEASURES
    ],
    'verdict_rows': _rows({k: s['verdict'] for k, s in splits.items()}, main),
    'grade_rows': _rows({main: measured['grade']}, main)
    if 'grade' in measured
    else [],
    'criteria': measured.get('criteria', {}),
    'criteria_names': (
      *('auc', 'average_precision', 'sensitivity', 'specificity'),
      *('precision', 'f1', 'balanced_accuracy'),
    ),
    'titles': metrics.TITLES,
    'breakdown_titles': breakdowns.TITLES,
    'measures': breakdowns.MEASURES,
    'splits': splits,
    'warnings': list(_warnings(result, measured, main)),
    'maps_of': _maps_of(result.get('model', {})),
  }


def _maps_of(model: Record) -> str:
  """Returns what of a verdict the maps leave unexplained."""
  members = model.get('members', ())
  if len(members) > 1:
    return (
      f'The maps are those of {members[0]["run"]} alone; verdicts and '
      f'probabilities are of all {len(members)} members.'
    )
  if model.get('flip_tta'):
    return (
      'The maps are of the photograph alone; verdicts and probabilities are '
      'averaged with those of its mirror image.'
    )
  return ''


def _headline(result: Record) -> str:
  if 'n_folds' in result:
    return f'Cross-validation, {result["n_folds"]} folds'
  if 'model' in result:
    return 'Evaluation of a fundus image quality model'
  return 'Scored predictions'


def _rows(assessed: Record, main: str) -> list[Record]:
  """Returns one row a metric: its entry in each split, and the baseline."""
  return [
    {
      'title': metrics.title(name, ': '),
      'entries': [a['metrics'].get(name) for a in assessed.values()],
      'majority': assessed[main]['majority'].get(name),
    }
    for name in assessed[main]['metrics']
  ]


def _warnings(result: Record, measured: Record, main: str) -> Iterable[str]:
  """Yields what a reader must know before any number."""
  if result.get('pooled_on') == 'validation':
    yield from result['notes']
  if measured['n_not_finite']:
    yield (
      f'{measured["n_not_finite"]} of {measured["n"]} images got no finite '
      'score; they are not in the metrics'
    )
  for key, what in (
    ('calibration', 'not calibrated'),
    ('operating_point', 'the operating point is 0.5'),
  ):
    reason = result.get(key, {}).get('reason')
    if reason:
      yield f'{what}: {reason}'
  verdict = measured['verdict']
  few = min(verdict['n_inadequate'], verdict['n'] - verdict['n_inadequate'])
  if few < 30:
    yield (
      f'one class has only {few} images in the {main} split: read the '
      'intervals, not the numbers'
    )
  if any(d.get('dataset') == 'fundus_sim' for d in result.get('data', ())):
    yield (
      'these photographs are simulated: the figures say nothing about real '
      'photographs'
    )
  for shortcut in measured['breakdowns']['shortcuts']:
    value = shortcut['auc']['value']
    if shortcut['breakdown'] == 'camera' and value and value > 0.55:
      yield (
        f'prevalence differs by camera: the camera alone, without the '
        f'photograph, reaches AUC {value:.3f}'
      )


def _facts(
  result: Record, config: Record, environment: Record
) -> list[tuple[str, str]]:
  """Returns what the run was, as pairs of text."""
  facts: list[tuple[str, str]] = []
  model = result.get('model', {})
  if model:
    facts += [
      ('Model', f'{model["name"]}, {model["image_size"]} px, {result["task"]}'),
      *(
        ('Weights', f'{member["run"]}, sha256 {member["sha256"]}')
        for member in model['members']
      ),
      ('Kept', f'epoch {model.get("epoch")}, step {model.get("step")}'),
      ('Flip averaging', 'on' if model['flip_tta'] else 'off'),
    ]
  if config:
    phases = '; '.join(
      f'{p["name"] or p["learns"]}: {p["epochs"]} epochs, {p["optimizer"]}, '
      f'learning rate {p["learning_rate"]:g}'
      for p in config['train']['phases']
    )
    facts += [
      ('Training', phases),
      ('Batch size', str(config['train']['batch_size'])),
      ('Initial weights', config['model']['pretrained'] or 'random'),
      ('Seed', str(config['seed'])),
    ]
  for key, title in (
    (
      'not_fundus',
      'Look like no fundus photograph (exports don’t judge them)',
    ),
    ('unlike_training', 'Look unlike the training photographs'),
  ):
    share = result.get('looks', {}).get(key)
    if share:
      facts.append((title, f'{_measure(share)} of {share["n"]}'))
  facts += [
    (f'File of {n}', file) for n, file in result.get('files', {}).items()
  ]
  return facts + _environment_facts(environment)


def _environment_facts(environment: Record) -> list[tuple[str, str]]:
  facts = []
  for key, title in (
    ('git', 'Revision'),
    ('python', 'Python'),
    ('devices', 'Devices'),
  ):
    if environment.get(key):
      value = environment[key]
      if isinstance(value, list):
        counts = collections.Counter(value)
        # JAX says 'cpu cpu': platform and kind.
        value = ', '.join(
          f'{n} x {" ".join(dict.fromkeys(name.split()))}'
          for name, n in counts.items()
        )
      facts.append((title, str(value)))
  if environment.get('versions'):
    versions = environment['versions']
    facts.append(
      ('Versions', ', '.join(f'{k} {v}' for k, v in versions.items()))
    )
  return facts


def _write_examples(
  folder: pathlib.Path, examples: Sequence[Example]
) -> dict[str, list[dict[str, str]]]:
  """Writes the pictures; returns, by kind, what the report says of them."""
  kinds: dict[str, list[dict[str, str]]] = {}
  for number, example in enumerate(examples):
    file = f'examples/{number:03d}.jpg'
    kinds.setdefault(example.kind, []).append(
      {
        'name': example.name,
        'caption': example.caption,
        'uri': _uri(example.jpeg, 'jpeg'),
        'file': file,
      }
    )
    with run_directory.atomic_path(folder / file) as path:
      path.write_bytes(example.jpeg)
  return kinds


def _environment(*, autoescape: bool) -> jinja2.Environment:
  environment = jinja2.Environment(
    loader=jinja2.PackageLoader('iqa_jax.evaluation', 'templates'),
    autoescape=autoescape,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
    keep_trailing_newline=True,
  )
  environment.filters['measure'] = _measure
  environment.filters['number'] = _number
  environment.filters['cell'] = _cell
  environment.filters['words'] = lambda text: str(text).replace('_', ' ')
  return environment


def _measure(measure: Record | None) -> str:
  return '–' if measure is None else assessment.text(measure)


def _number(value: float | None, digits: int = 3) -> str:
  # 'z': no minus before a zero.
  return '–' if value is None else f'{value:z.{digits}f}'


def _cell(text: object) -> str:
  """Returns text that a Markdown table or HTML inside it can't mistake."""
  text = ' '.join(str(text).split())
  for sign in '\\`*_[]<>|#&':
    text = text.replace(sign, f'\\{sign}')
  return text


def _uri(data: bytes, kind: str) -> str:
  return f'data:image/{kind};base64,{base64.b64encode(data).decode("ascii")}'
