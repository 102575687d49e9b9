"""Photographs with what is known of them, for studies of explanations.

They come from files (a folder, a glob pattern or a CSV list), from the files a
run was tested on, or are drawn (fundus_sim). Without TensorFlow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import dataclasses
import os
import pathlib

import ml_collections
import numpy as np

from iqa_jax import config as config_lib
from iqa_jax import errors
from iqa_jax import labels as L
from iqa_jax.aliases import Record
from iqa_jax.photograph import images, inputs, prepare
from iqa_jax.simulation import pixel_labels as labels_lib
from iqa_jax.studies import label_table, pixel_truth
from iqa_jax.trained import Trained

# Beyond all seeds of the dataset.
_FIRST_SEED = 2**40


@dataclasses.dataclass(frozen=True)
class Photographs:
  """Prepared photographs; what is not known is -1, '' or NaN.

  Attributes:
    ids: names, as their source calls them.
    images: uint8 [n, s, s, 3].
    inside: bool [n, s, s], the field of view.
    quality: int [n], 1 inadequate.
    grade: int [n], EyeQ's.
    criteria: int [n, 4], 1 inadequate.
    eyes: 'left', 'right' or '', [n].
    landmarks: float [n, 5], disc x, y and diameter, fovea x, y in pixels.
    patients: whose photographs they are, [n]; '' where unknown.
    skipped: (name, reason) of photographs that could not be read.
    source: where they come from, for people.
    truth: uint8 [n, s, s], what each pixel is (see pixel_truth); 0 where that
      isn't known. None: of no photograph.
  """

  ids: np.ndarray
  images: np.ndarray
  inside: np.ndarray
  quality: np.ndarray
  grade: np.ndarray
  criteria: np.ndarray
  eyes: np.ndarray
  landmarks: np.ndarray
  patients: np.ndarray
  skipped: tuple[tuple[str, str], ...]
  source: str
  truth: np.ndarray | None = None

  def __len__(self) -> int:
    return len(self.ids)

  @property
  def labels(self) -> dict[str, np.ndarray]:
    """The labels as cam.choose_targets takes them."""
    return {
      'quality': self.quality,
      'grade': self.grade,
      'criteria': self.criteria,
    }

  @property
  def people(self) -> np.ndarray:
    """Whom they are of, [n]; who is unknown is a patient of their own."""
    return np.where(self.patients == '', self.ids, self.patients)

  def take(self, indices: np.ndarray | slice | Sequence[int]) -> Photographs:
    """Returns some of the photographs."""
    chosen = {
      f.name: getattr(self, f.name)[indices]
      for f in dataclasses.fields(self)
      if isinstance(getattr(self, f.name), np.ndarray)
    }
    return dataclasses.replace(self, **chosen)


def read(
  where: str,
  size: int,
  *,
  labels: str | os.PathLike | None = None,
  pixel_labels: str | os.PathLike | None = None,
  split: str = '',
  limit: int = 0,
  usable: str = 'inadequate',
  seed: int = 0,
) -> Photographs:
  """Reads photographs from files.

  Args:
    where: a folder, a glob pattern or a CSV list.
    size: side of the prepared photographs in pixels.
    labels: a CSV file that names photographs, see label_table.read; those it
      does not name are left out, and who has no patient is one of their own.
      None: a CSV list is its own labels, a folder has none.
    pixel_labels: a folder of PNGs with what each pixel is, see pixel_truth;
      photographs that have none there are left out. None: it isn't known.
    split: keep rows whose column `split` says so only; '' for all.
    limit: read at most this many, drawn by lot but evenly over the labels
      adequate and inadequate; 0 for all.
    usable: what grade 1 counts as, see labels.USABLE.
    seed: of the lot.

  Raises:
    ValueError: nothing is there, or a label is not understood.
  """
  if labels is None and where.lower().endswith('.csv'):
    labels = where
  known = label_table.read(labels, split, usable) if labels else None
  listing = inputs.find(where, suffixes=images.SUFFIXES)
  paths = [pathlib.Path(listing.root) / key for key in listing.keys]
  if known is not None:
    paths = [p for p in paths if label_table.stem(p.name) in known]
    if not paths:
      raise errors.InvalidValue(
        f'none of the {len(listing.keys)} photographs of {where} is named in '
        f'{labels}' + (f' with split {split}' if split else '')
      )
  if pixel_labels:
    folder = pathlib.Path(pixel_labels)
    paths = [p for p in paths if pixel_truth.path(folder, p).is_file()]
    if not paths:
      raise errors.InvalidValue(
        f'{folder} holds a PNG of the name of none of the photographs of '
        f'{where}'
      )
  rows = [(known or {}).get(label_table.stem(p.name), {}) for p in paths]
  quality = np.asarray([row.get('quality', L.UNKNOWN) for row in rows])
  chosen = _lot(quality, limit, seed)
  source = f'{where}, labels of {labels}' if known is not None else where
  readers = [
    lambda i=i: _prepare(paths[i], size, rows[i], pixel_labels) for i in chosen
  ]
  names = [label_table.stem(paths[i].name) for i in chosen]
  return _collect(readers, names, source)


def drawn(
  count: int, size: int, *, drawn_at: int = prepare.SIZE, seed: int = 0
) -> Photographs:
  """Draws simulated photographs, none of which the fundus_sim dataset holds.

  Every other one meets all criteria; the others fail one, in turn, and every
  tenth a second one.

  Args:
    count: how many.
    size: side in pixels.
    drawn_at: side in pixels at which they are drawn, that of the records.
    seed: of the first; the same seed draws the same photographs.
  """
  from iqa_jax.simulation import photograph

  def make(number: int) -> Record:
    broken = set()
    if number % 2:
      broken.add(L.CRITERIA[number // 2 % 4])
      if number % 10 == 9:
        broken.add(L.CRITERIA[(number // 2 + 1) % 4])
    found = photograph.draw(
      _FIRST_SEED + seed + number, drawn_at, broken=broken
    )
    shrink = size / drawn_at
    centres = np.arange(size) + 0.5
    return {
      'image': prepare.resize(found.image, size),
      'truth': pixel_truth.nearest(
        labels_lib.of_drawn(found), drawn_at * centres / size
      ),
      'inside': found.view.scaled(shrink, shrink).inside(
        centres[None, :], centres[:, None]
      ),
      'quality': found.quality,
      'criteria': found.criteria,
      'eye': found.eye,
      'landmarks': np.asarray(found.landmarks, float) * shrink,
    }

  names = [f'drawn-{seed + i}' for i in range(count)]
  makers = [lambda i=i: make(i) for i in range(count)]
  return _collect(makers, names, f'{count} simulated photographs')


def _prepare(
  path: pathlib.Path,
  size: int,
  row: Record,
  pixel_labels: str | os.PathLike | None = None,
) -> Record:
  photograph = images.read(path)
  prepared = prepare.photograph(photograph.image, size)
  landmarks = np.asarray(row.get('landmarks', [np.nan] * 5), float)
  found = {
    **row,
    'image': prepared.image,
    'inside': prepared.inside,
    'landmarks': _to_prepared(landmarks, prepared.affine),
  }
  if pixel_labels:
    file = pixel_truth.path(pathlib.Path(pixel_labels), path)
    found['truth'] = pixel_truth.prepared(
      pixel_truth.read(file), photograph.image.size, prepared.affine, size
    )
  return found


def _to_prepared(landmarks: np.ndarray, affine: np.ndarray) -> np.ndarray:
  """Returns landmarks of the file's pixels in prepared pixels."""
  x = (landmarks[[0, 3]] - affine[0, 2]) / affine[0, 0]
  y = (landmarks[[1, 4]] - affine[1, 2]) / affine[1, 1]
  diameter = landmarks[2] / affine[0, 0]
  return np.asarray([x[0], y[0], diameter, x[1], y[1]])


def _collect(
  readers: Sequence[Callable[[], Record]], names: Sequence[str], source: str
) -> Photographs:
  kept, rows, skipped = [], [], []
  for name, reader in zip(names, readers, strict=True):
    try:
      rows.append(reader())
      kept.append(name)
    except images.ImageError as error:
      skipped.append((name, f'{error.status}: {error.reason}'))
  if not rows:
    raise errors.InvalidValue(
      f'{source}: none of {len(names)} photographs can be read'
      + (f'; the first: {": ".join(skipped[0])}' if skipped else '')
    )

  def column(key: str, missing: object, dtype: type) -> np.ndarray:
    return np.asarray([row.get(key, missing) for row in rows], dtype)

  return Photographs(
    ids=np.asarray(kept),
    images=np.stack([row['image'] for row in rows]),
    inside=np.stack([row['inside'] for row in rows]),
    quality=column('quality', L.UNKNOWN, np.int64),
    grade=column('grade', L.UNKNOWN, np.int64),
    criteria=column('criteria', [L.UNKNOWN] * 4, np.int64),
    eyes=column('eye', '', str),
    landmarks=column('landmarks', [np.nan] * 5, np.float64),
    patients=column('patient', '', str),
    skipped=tuple(skipped),
    source=source,
    truth=np.stack([row['truth'] for row in rows])
    if 'truth' in rows[0]
    else None,
  )


def _lot(quality: np.ndarray, limit: int, seed: int) -> list[int]:
  """Returns `limit` indices, as evenly over the labels as they allow."""
  rng = np.random.default_rng(seed)
  order = rng.permutation(len(quality))
  if not limit or limit >= len(order):
    return list(range(len(order)))
  turn = np.empty(len(order), int)
  for value in np.unique(quality):
    group = order[quality[order] == value]
    turn[group] = np.arange(len(group))
  chosen = order[np.argsort(turn[order], kind='stable')][:limit]
  return sorted(int(i) for i in chosen)


def choose(
  loaded: Trained,
  workdir: str | os.PathLike,
  *,
  images: str = '',
  labels: str | None = None,
  pixel_labels: str | None = None,
  limit: int = 0,
  seed: int = 0,
) -> Photographs:
  """Returns the photographs named, or those of the run when none are.

  Of a run on files its test photographs (predictions.csv says which) are looked
  for among the files it was made from; a run on fundus_sim gets new drawings.

  Args:
    loaded: the run's model (trained.Trained).
    workdir: its run directory.
    images: see `read`; '' for the run's.
    labels: see `read`; of `images` only.
    pixel_labels: see `read`; drawings know their own.
    limit: how many at most; 0 for all there are (drawn: 200).
    seed: of the lot.

  Raises:
    ValueError: there are none, or not where the run found them.
  """
  data, size = loaded.config.data, loaded.image_size
  name, split = data.test_name or data.name, ''
  if labels and not images:
    raise errors.InvalidValue(
      'labels without images: say which photographs they name'
    )
  if not images and name == 'fundus_sim':
    from iqa_jax.simulation import photograph

    # The builder's default is the first.
    sizes = photograph.SIZES
    at = sizes[data.builder_config or next(iter(sizes))]
    return drawn(limit or 200, size, drawn_at=at, seed=seed)
  if not images:
    images, labels, split = *_tested(data, name, workdir), 'test'
  return read(
    images,
    size,
    labels=labels,
    pixel_labels=pixel_labels,
    split=split,
    limit=limit,
    usable=loaded.config.task.usable,
    seed=seed,
  )


def _tested(
  data: ml_collections.ConfigDict, name: str, workdir: str | os.PathLike
) -> tuple[str, str]:
  """Returns the folder and the labels of a run's test photographs."""
  folder = config_lib.of_dataset(data.test_manual_dir or data.manual_dir, name)
  folder = os.path.expanduser(folder)
  table = os.path.join(workdir, 'predictions.csv')
  there = os.path.isfile(table)
  if not folder or not os.path.isdir(folder) or not there:
    raise errors.InvalidValue(
      f'the test photographs of {workdir} cannot be found: it names '
      f'data.manual_dir={folder!r}, and predictions.csv is '
      f'{"there" if there else "missing"}; give --images'
    )
  return folder, table
