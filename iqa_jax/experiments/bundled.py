"""What the bundled model is worth, on drawings and on real photographs.

  python -m iqa_jax.experiments.bundled --workdir=iqa_jax/bundled
  python -m iqa_jax.experiments.bundled --workdir=iqa_jax/bundled --eyeq=DIR

Without --eyeq: faults of named, procedural and unfamiliar kinds are put into
adequate drawings by cameras outside the ranges of training, and it is counted
how many are called inadequate at the operating point, how often the strongest
cell of the evidence lies in the fault, and how much of the evidence does. With
--eyeq: AUC on both splits of an EyeQ folder, of which nothing was learned or
chosen. That is a test set: look at it once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeAlias

from absl import app, flags

from iqa_jax import command

if TYPE_CHECKING:
  import jax
  import numpy as np

  from iqa_jax.trained import Trained

Judged: TypeAlias = 'tuple[np.ndarray, np.ndarray]'

_WORKDIR = flags.DEFINE_string('workdir', None, 'run directory')
_EYEQ = flags.DEFINE_string('eyeq', None, 'folder of EyeQ, as downloaded')
_EXAMPLES = flags.DEFINE_integer('examples', 60, 'drawings for each fault')
_FIRST_SEED = 6_000_000  # apart from every split of fundus_sim
_BATCH = 16


def main() -> None:
  if not _WORKDIR.value:
    raise app.UsageError('--workdir is needed')
  from iqa_jax import trained

  loaded = trained.load(_WORKDIR.value)
  lines = on_eyeq(loaded, _EYEQ.value) if _EYEQ.value else on_drawings(loaded)
  for line in lines:
    print(line)


def judged(loaded: Trained, images: np.ndarray) -> Judged:
  """Returns log-odds [n] and maps of evidence [n, g, g, 3] of pictures.

  Args:
    loaded: a run with a head of evidence.
    images: uint8 [n, s, s, 4], the field of view as fourth channel.
  """
  import jax
  import numpy as np

  from iqa_jax import models

  @jax.jit
  def forward(batch: jax.Array) -> tuple[jax.Array, jax.Array]:
    logits, kept = loaded.model.apply(
      loaded.variables, models.normalize(batch), mutable=['intermediates']
    )
    return logits, kept['intermediates']['evidence'][0]

  n = len(images)
  padded = np.concatenate([images, np.zeros_like(images[: -n % _BATCH])])
  parts = [
    forward(padded[i : i + _BATCH]) for i in range(0, len(padded), _BATCH)
  ]
  logits, maps = (
    np.concatenate([np.asarray(p[k]) for p in parts])[:n] for k in (0, 1)
  )
  return loaded.task.log_odds(logits), maps


def _calls(loaded: Trained, odds: np.ndarray) -> np.ndarray:
  """Returns which photographs are called inadequate."""
  from iqa_jax.judging import calibration

  p = loaded.judges.judge(calibration.sigmoid(odds)).p_calibrated
  return p >= loaded.judges.threshold


def on_drawings(loaded: Trained) -> Iterator[str]:
  """Yields a line for each group of faults."""
  import numpy as np

  from iqa_jax.simulation import (
    cameras,
    canvas,
    faults,
    photograph,
    procedural,
    unfamiliar,
  )

  ways: dict[str, Callable[..., canvas.Faulty]] = {
    'no fault': lambda pixels, inside, rng: (pixels, np.zeros_like(inside)),
    'named': lambda pixels, inside, rng: faults.apply(
      pixels,
      inside,
      str(rng.choice(sorted(faults.CRITERION))),
      rng.uniform(faults.THRESHOLD, 1),
      rng,
    ),
    'procedural': lambda pixels, inside, rng: procedural.apply(
      pixels, inside, 'artifacts', rng
    ),
    'unfamiliar': lambda pixels, inside, rng: unfamiliar.apply(
      pixels, inside, str(rng.choice(unfamiliar.KINDS)), rng
    ),
  }
  size = loaded.image_size
  for title, plant in ways.items():
    images, masks = [], []
    for i in range(_EXAMPLES.value):
      rng = np.random.default_rng([_FIRST_SEED + i, 5])
      drawn = photograph.draw(_FIRST_SEED + i, size)
      pixels, mask = plant(drawn.image, drawn.inside, rng)
      camera = cameras.draw(rng, cameras.UNSEEN)
      where = np.rint(255 * np.asarray(mask, float)).astype(np.uint8)
      pixels, inside, where = cameras.retake(
        pixels, drawn.inside, camera, rng, where
      )
      field = 255 * inside.astype(np.uint8)
      images.append(np.concatenate([pixels, field[..., None]], -1))
      masks.append((where > 127) & inside)
    odds, maps = judged(loaded, np.stack(images))
    called = _calls(loaded, odds)
    line = f'{title:11s} called inadequate {called.mean():.3f} of {len(called)}'
    if title != 'no fault':
      line += _places(np.stack(images)[..., 3] > 0, np.stack(masks), maps)
    yield line


def _places(inside: np.ndarray, masks: np.ndarray, maps: np.ndarray) -> str:
  """Returns how often, and how much, evidence lies in faults of some size."""
  import numpy as np

  g = maps.shape[1]
  k = masks.shape[1] // g

  def cells(x: np.ndarray) -> np.ndarray:
    return x.reshape(len(x), g, k, g, k).mean((2, 4))

  share = masks.sum((1, 2)) / inside.sum((1, 2))
  local = (share > 0.002) & (share < 0.5)
  evidence = maps.sum(-1)[local]
  within = cells(masks)[local]
  top = evidence.reshape(len(evidence), -1).argmax(1)
  hit = within.reshape(len(within), -1)[np.arange(len(top)), top] > 0
  inner = (evidence * within).sum((1, 2)) / evidence.sum((1, 2))
  lift = inner / share[local]
  return (
    f'; of {len(hit)} that cover 0.2 to 50 % of the field: strongest cell in '
    f'the fault {hit.mean():.3f} (by chance {share[local].mean():.3f}), '
    f'evidence in it over its area, median {np.median(lift):.1f}'
  )


def on_eyeq(loaded: Trained, folder: str) -> Iterator[str]:
  """Yields AUCs, with intervals clustered by patient, and calls by grade."""
  import pathlib

  import numpy as np

  from iqa_jax.data.eyeq import labels
  from iqa_jax.evaluation import intervals
  from iqa_jax.judging import fundus
  from iqa_jax.photograph import images, prepare

  pictures, grades, patients, strange = [], [], [], []
  for split in ('train', 'test'):
    for row in labels.read(pathlib.Path(folder) / f'Label_EyeQ_{split}.csv'):
      paths = sorted((pathlib.Path(folder) / split).glob(f'{row.image_id}.*'))
      if not paths:
        continue
      done = prepare.photograph(
        images.read(paths[0]).image, loaded.image_size, field=True
      )
      pictures.append(done.image)
      grades.append(row.grade)
      patients.append(row.patient_id)
      pixels, inside = done.image[..., :3], done.image[..., 3] > 127
      strange.append(fundus.load().score(pixels, inside))
  odds, _ = judged(loaded, np.stack(pictures))
  grade, patient = np.array(grades), np.array(patients)
  for title, keep, truth in (
    ('Reject against Good', grade != 1, grade == 2),
    ('the rest against Good', grade >= 0, grade > 0),
  ):
    value, low, high = intervals.auc(truth[keep], odds[keep], patient[keep])
    yield f'AUC of {title}: {value:.3f} (95 % {low:.3f} to {high:.3f})'
  called, flagged = _calls(loaded, odds), np.array(strange)
  for number, name in enumerate(('Good', 'Usable', 'Reject')):
    at = grade == number
    none = flagged[at] >= fundus.load().threshold
    yield (
      f'{name}: {at.sum()}, called inadequate {called[at].mean():.3f}, called '
      f'no fundus photograph {none.mean():.3f}'
    )


if __name__ == '__main__':
  command.run(main)
