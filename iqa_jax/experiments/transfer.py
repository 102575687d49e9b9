"""Does learning from simulated photographs carry over to real ones?

  python -m iqa_jax.experiments.transfer --eyeq=DIR \
    --weights=vgg16_edges_features.safetensors --cache=/tmp/transfer

Logistic regressions on the pooled features of a frozen VGG16 trunk, and on
colour statistics, learn from simulated photographs, from EyeQ's training split,
or from both, and are tested on EyeQ's test split. Prints the AUC with 95 %
intervals (clustered by patient) of Reject against Good and of Good against
the rest. --cache keeps the features, which take most of the time.

The label of a simulated photograph is the AND of focus, illumination and
artifacts: EyeQ's graders did not apply BRSet's image-field rule, so the field
varies but isn't judged. What is drawn was chosen by the AUC on EyeQ's training
split of the model that learned from simulated photographs alone: it has seen
no label of it, so for that model it is a development set. The penalty is
chosen by cross-validation within each training set, over patients; the test
split chooses nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
import pathlib
from typing import TYPE_CHECKING, Any, TypeAlias

from absl import app, flags

from iqa_jax import command

if TYPE_CHECKING:
  import jax
  import numpy as np

Features: TypeAlias = 'dict[str, np.ndarray]'
# Photographs, their fields, grades and patients.
Drawn: TypeAlias = 'tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]'

_EYEQ = flags.DEFINE_string('eyeq', None, 'folder of EyeQ, as downloaded')
_WEIGHTS = flags.DEFINE_string('weights', None, 'VGG16 trunk to freeze')
_CACHE = flags.DEFINE_string('cache', None, 'folder for the features')
_SIMULATED = flags.DEFINE_integer('simulated', 600, 'photographs to draw')
_SIZE = flags.DEFINE_integer('image_size', 224, 'side in pixels')
_FIRST_SEED = 5_000_000  # apart from every split of fundus_sim
_COPIES = 2  # faulty copies of each real Good training photograph


def main() -> None:
  if not (_EYEQ.value and _WEIGHTS.value and _CACHE.value):
    raise app.UsageError('--eyeq, --weights and --cache are needed')
  import numpy as np

  cache = pathlib.Path(_CACHE.value)
  cache.mkdir(parents=True, exist_ok=True)
  sets = {}
  for name, make in (
    (f'simulated-{_SIMULATED.value}', _draw),
    ('train', lambda: _real('train')),
    ('test', lambda: _real('test')),
    ('faulty', _faulty),
  ):
    path = cache / f'{name}-{_SIZE.value}.npz'
    if not path.is_file():
      images, inside, grade, patient = make()
      np.savez(
        path,
        trunk=_trunk_features(images, name),
        colour=_colour_features(images, inside),
        grade=grade,
        patient=patient,
      )
    sets[name.split('-')[0]] = dict(np.load(path))
  for line in report(sets):
    print(line)


def report(sets: Mapping[str, Features]) -> Iterator[str]:
  """Yields the table, one line a model.

  Args:
    sets: of 'simulated', 'train', 'faulty' and 'test': dicts of features
      'trunk' and 'colour' [n, k], 'grade' [n] (0 Good, 1 Usable, 2 Reject;
      simulated ones 0 or 2) and 'patient' [n].
  """
  import numpy as np

  def joined(*names: str) -> Features:
    parts = [sets[name] for name in names]
    return {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}

  real, test = sets['train'], sets['test']
  trainings = {
    'simulated only': sets['simulated'],
    'real only': real,
    'real + faults put into real': joined('train', 'faulty'),
    'real + simulated': joined('train', 'simulated'),
    'real + simulated + faults': joined('train', 'simulated', 'faulty'),
  }
  counts = np.bincount(test['grade'], minlength=3)
  yield (
    f'test: {counts[0]} Good, {counts[1]} Usable, {counts[2]} Reject; '
    f'train: {len(real["grade"])} real, {len(sets["simulated"]["grade"])} '
    f'simulated, {len(sets["faulty"]["grade"])} faulty copies of Good'
  )
  for kind in ('trunk', 'colour'):
    for name, training in trainings.items():
      score = _fit(training, kind)
      yield f'{kind:7s} {name:30s} {_aucs(score(test[kind]), test)}'
      if name == 'simulated only':
        yield (
          f'{kind:7s} {"  the same on training split":30s} '
          f'{_aucs(score(real[kind]), real)}'
        )
        # No label of it was used, so the training split may test as well.
        everyone = joined('train', 'test')
        yield (
          f'{kind:7s} {"  the same on all real":30s} '
          f'{_aucs(score(everyone[kind]), everyone)}'
        )
        # Unlabelled real photographs say how each feature is spread.
        adapted = _fit(training, kind, unlabelled=real[kind])
        yield (
          f'{kind:7s} {"  scaled by unlabelled real":30s} '
          f'{_aucs(adapted(test[kind]), test)}'
        )


def _fit(
  training: Features, kind: str, unlabelled: np.ndarray | None = None
) -> Callable[[np.ndarray], np.ndarray]:
  """Returns a function from features to the score of being inadequate.

  With `unlabelled` features, those scored are standardised by their mean and
  deviation and those learned from by their own.
  """
  import numpy as np
  from sklearn import linear_model, model_selection

  x, y = training[kind], training['grade'] > 0
  mean, deviation = x.mean(0), x.std(0) + 1e-6
  folds = list(
    model_selection.StratifiedGroupKFold(5, shuffle=True, random_state=0).split(
      x, y, training['patient']
    )
  )
  search = model_selection.GridSearchCV(
    linear_model.LogisticRegression(max_iter=2000, class_weight='balanced'),
    {'C': np.logspace(-5, 0, 6)},
    scoring='roc_auc',
    cv=folds,
  ).fit((x - mean) / deviation, y)
  if unlabelled is not None:
    mean, deviation = unlabelled.mean(0), unlabelled.std(0) + 1e-6
  return lambda other: search.decision_function((other - mean) / deviation)


def _aucs(score: np.ndarray, test: Features) -> str:
  from iqa_jax.evaluation import intervals

  grade = test['grade']
  cells = []
  for title, keep, truth in (
    ('Reject/Good', grade != 1, grade == 2),
    ('rest/Good', grade >= 0, grade > 0),
  ):
    value, low, high = intervals.auc(
      truth[keep], score[keep], test['patient'][keep]
    )
    cells.append(f'{title} {value:.3f} ({low:.3f}-{high:.3f})')
  return '  '.join(cells)


def _draw() -> Drawn:
  import numpy as np
  import tqdm

  from iqa_jax.simulation import faults, photograph

  images, insides, grade, patient = [], [], [], []
  names = tuple(faults.KINDS)
  for i in tqdm.trange(_SIMULATED.value, desc='drawing', disable=None):
    rng = np.random.default_rng([_FIRST_SEED + i, 9])
    broken = set()
    if i % 2:  # what EyeQ rejects mostly has several faults
      count = int(rng.integers(1, 4))
      broken = {str(n) for n in rng.choice(names, count, replace=False)}
    field = {'image_field'} if rng.random() < 0.3 else set()
    drawn = photograph.draw(_FIRST_SEED + i, _SIZE.value, broken=broken | field)
    images.append(drawn.image)
    insides.append(drawn.inside)
    grade.append(2 if broken else 0)
    patient.append(f'simulated {i}')
  return np.stack(images), np.stack(insides), np.array(grade), patient


def _real(split: str) -> Drawn:
  import numpy as np

  from iqa_jax.data.eyeq import labels
  from iqa_jax.photograph import geometry, images

  folder = pathlib.Path(str(_EYEQ.value))
  found, insides, grade, patient = [], [], [], []
  for row in labels.read(folder / f'Label_EyeQ_{split}.csv'):
    paths = sorted((folder / split).glob(f'{row.image_id}.*'))
    if not paths:
      continue
    pixels = images.read(paths[0], _SIZE.value).pixels
    prepared = geometry.prepare(pixels, _SIZE.value)
    found.append(prepared.image)
    insides.append(prepared.inside)
    grade.append(row.grade)
    patient.append(row.patient_id)
  return np.stack(found), np.stack(insides), np.array(grade), patient


def _faulty() -> Drawn:
  """Real Good training photographs with simulated faults."""
  import numpy as np

  from iqa_jax.simulation import faults

  images, inside, grade, patient = _real('train')
  rng = np.random.default_rng(0)
  kinds = sorted(faults.CRITERION)
  chosen = np.repeat(np.flatnonzero(grade == 0), _COPIES)
  made = [
    faults.apply(
      images[i],
      inside[i],
      str(rng.choice(kinds)),
      float(rng.uniform(faults.THRESHOLD, 1)),
      rng,
    )[0]
    for i in chosen
  ]
  owners = [patient[i] for i in chosen]
  return np.stack(made), inside[chosen], np.full(len(chosen), 2), owners


def _trunk_features(images: np.ndarray, name: str) -> np.ndarray:
  """Returns each channel's mean in the last pooled map, float32 [n, 512]."""
  import jax
  import numpy as np
  import tqdm

  from iqa_jax import models
  from iqa_jax.models import pretrained

  model = models.create('vgg16', 2)
  variables = models.init(model, jax.random.key(0), _SIZE.value)
  variables, _ = pretrained.load(_WEIGHTS.value, model, variables)

  @jax.jit
  def pooled(batch: jax.Array) -> jax.Array:
    maps: Any = model.apply(
      variables, models.normalize(batch), stop='block5_pool', train=False
    )
    return maps.mean((1, 2))

  size = 8
  padded = np.concatenate([images, images[: -len(images) % size]])
  batches = padded.reshape(-1, size, *images.shape[1:])
  bar = tqdm.tqdm(batches, f'features of {name}', disable=None)
  return np.concatenate([np.asarray(pooled(b)) for b in bar])[: len(images)]


def _colour_features(images: np.ndarray, inside: np.ndarray) -> np.ndarray:
  """Returns mean, deviation and five percentiles of R, G, B in the field."""
  import numpy as np

  rows = []
  for image, mask in zip(images, inside, strict=True):
    pixels = image[mask].astype(np.float32)
    rows.append(
      np.concatenate(
        [
          pixels.mean(0),
          pixels.std(0),
          np.percentile(pixels, [2, 25, 50, 75, 98], axis=0).ravel(),
        ]
      )
    )
  return np.stack(rows).astype(np.float32)


if __name__ == '__main__':
  command.run(main)
