"""Runtimes: do they say what JAX says, and what a photograph costs each.

  python -m tests.benchmarks runtimes --workdirs=runs/e0,runs/e1 \\
    --images=FOLDER --labels=LABELS.csv

Every run judges and explains the same photographs by every runtime that is
installed (`iqa.load(run, runtime=...)`), JAX first: the network's pass in the
processor's time, the verdicts that differ, AUC where there are labels, and how
maps of evidence for inadequate correlate with JAX's. Without --workdirs an
untrained ResNet50 sees simulated photographs.
"""

from __future__ import annotations

from collections.abc import Sequence
import pathlib
import sys
import tempfile
import time
from typing import Any

from iqa_jax import runtimes
from tests.benchmarks import _material, common

_MAPS = 24  # photographs whose maps are compared
_TARGETS = {
  'AUC less that of jax': 'bfloat16: within 0.002',
  'verdicts that differ': '0 in float32',
  'correlation with the map of jax': 'bfloat16: at least 0.999',
}


def run(
  *,
  smoke: bool = False,
  workdirs: str = '',
  images: str = '',
  labels: str = '',
  computed: str = ','.join(runtimes.NAMES),
  repeats: int = 5,
) -> list[common.Row]:
  """Measures every run by every runtime.

  Args:
    smoke: an untrained small network on four photographs.
    workdirs: run directories, joined by commas.
    images: folder of photographs.
    labels: CSV of their labels (iqa_jax.studies.label_table).
    computed: runtimes, the first is what others are compared with; those that
      are not installed are left out.
    repeats: of the pass of a batch.
  """
  names = [name for name in computed.split(',') if _material.installed(name)]
  rows: list[common.Row] = []
  with tempfile.TemporaryDirectory() as folder:
    paths = [pathlib.Path(path) for path in workdirs.split(',') if path]
    if not paths:
      paths = [pathlib.Path(folder) / 'resnet50']
      size, width = (64, 0.1) if smoke else (224, 1.0)
      _material.random_run(paths[0], image_size=size, width=width)
    if not images:
      _drawn(pathlib.Path(folder) / 'images', 4 if smoke else _MAPS)
    photographs = sorted(pathlib.Path(images or f'{folder}/images').iterdir())
    for path in paths:
      found = [_ask(path, name, photographs, repeats) for name in names]
      rows += _rows(path.name, names, found, _truth(labels, photographs))
  return rows


def _drawn(folder: pathlib.Path, count: int) -> None:
  from PIL import Image

  from iqa_jax.simulation import photograph

  folder.mkdir()
  for i in range(count):
    Image.fromarray(photograph.draw(i, 512).image).save(folder / f'{i}.png')


def _truth(labels: str, photographs: Sequence[pathlib.Path]) -> Any:
  """Returns whether each is inadequate, int [n], -1 where nobody says."""
  import numpy as np

  from iqa_jax.studies import label_table

  known = label_table.read(labels) if labels else {}
  return np.array(
    [known.get(p.stem, {}).get('quality', -1) for p in photographs]
  )


def _ask(
  workdir: pathlib.Path,
  runtime: str,
  photographs: Sequence[pathlib.Path],
  repeats: int,
) -> dict[str, Any]:
  """Returns what a runtime says of photographs, and what its pass takes."""
  import numpy as np

  import iqa_jax as iqa
  from iqa_jax.explain.explainer import Explainer

  grader = iqa.load(workdir, runtime=runtime)
  verdicts = list(grader.judge(photographs))
  member = grader.members[0]
  usable = [
    path
    for path, verdict in zip(photographs, verdicts, strict=True)
    if verdict.log_odds is not None
  ][:_MAPS]
  explained = grader.explain(usable, target='margin')
  explainer = Explainer(
    member, methods=('gradcam',), target='margin', runtime=runtime
  )
  pixels = np.stack(
    [
      iqa.read(path)
      .prepared(member.image_size, field=member.model.takes_field)
      .image
      for path in usable[: explainer.batch_size]
    ]
  )
  explainer.look(pixels)
  rates = []
  for _ in range(repeats):
    start = time.process_time()
    explainer.look(pixels)
    rates.append(len(pixels) / (time.process_time() - start))
  odds = [np.nan if v.log_odds is None else v.log_odds for v in verdicts]
  return {
    'odds': np.array(odds, float),
    'verdicts': [v.verdict for v in verdicts],
    'maps': [one.raw for one in explained],
    'rates': rates,
  }


def _rows(
  run: str, names: Sequence[str], found: Sequence[dict[str, Any]], truth: Any
) -> list[common.Row]:
  import numpy as np
  from sklearn.metrics import roc_auc_score

  first = found[0]
  judged = np.isfinite(first['odds'])
  known = judged & (truth >= 0)
  told = len(np.unique(truth[known])) > 1
  rows = []

  def add(what: str, name: str, values: Sequence[float], unit: str, note: str):
    target = _TARGETS.get(what, '')
    label = f'{run}, {name}: {what}'
    plain = [float(value) for value in values]
    rows.append(common.Row(label, plain, unit, target=target, note=note))

  for name, one in zip(names, found, strict=True):
    add(
      'a pass with Grad-CAM',
      name,
      one['rates'],
      'images/s',
      'of processor time',
    )
    if told:
      auc = roc_auc_score(truth[known], one['odds'][known])
      add('AUC', name, [auc], '', f'{known.sum()} photographs')
    if one is first:
      continue
    if told:
      less = auc - roc_auc_score(truth[known], first['odds'][known])
      add('AUC less that of jax', name, [less], '', '')
    pairs = zip(one['verdicts'], first['verdicts'], strict=True)
    differ = sum(a != b for a, b in pairs)
    add('verdicts that differ', name, [differ], '', f'{judged.sum()} judged')
    apart = np.abs(one['odds'] - first['odds'])[judged].max()
    add('largest difference of log-odds', name, [apart], '', '')
    maps = [*zip(one['maps'], first['maps'], strict=True)]
    furthest = [
      np.abs(a - b).max() / np.abs(b).max() for a, b in maps if b.any()
    ]
    add('difference of a map, of its largest value', name, furthest, '', '')
    alike = [np.corrcoef(a.flat, b.flat)[0, 1] for a, b in maps if b.std() > 0]
    if alike:
      add('correlation with the map of jax', name, alike, '', 'a value a map')
  return rows


if __name__ == '__main__':
  sys.exit(common.main(run))
