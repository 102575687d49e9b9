"""Judged photographs: the one record of them, and its file predictions.csv."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import csv
import dataclasses
import os
from typing import Any

import numpy as np

from iqa_jax import labels, run_directory
from iqa_jax.aliases import Record
from iqa_jax.judging.operating_record import OperatingRecord

_TEXT = (
  *('image_id', 'dataset', 'patient_id', 'camera', 'site', 'eye'),
  'split',
)
_WHOLE = (
  *('grade', 'quality', *labels.CRITERIA),
  *('field_found', 'width', 'height', 'uncertain'),
)
_VERDICTS = ('unknown', *labels.QUALITY)  # by verdict + 1


@dataclasses.dataclass(frozen=True, eq=False)
class Predictions:
  """What is known and what is said of photographs, a row each.

  What a source has no word for is None.

  Attributes:
    image_id: str [n].
    patient_id: str [n], whom the photographs are of.
    quality: int [n], the label: 0 adequate, 1 inadequate, -1 unknown.
    p_inadequate: float [n], uncalibrated.
    p_calibrated: float [n].
    verdict: int [n], 0 adequate, 1 inadequate, -1 without a finite score.
    uncertain: bool [n], to be looked at by a person.
    log_odds: float64 [n], of p_inadequate: saturates nowhere.
    grade: int [n], EyeQ's label 0, 1, 2, or -1.
    criteria: int [n, 4], BRSet's labels, or -1.
    dataset: str [n].
    camera: str [n].
    site: str [n], where they were taken.
    eye: str [n].
    split: str [n].
    field_found: int [n], whether the field of view was found.
    width: int [n], of the original photograph, in pixels.
    height: int [n].
    outputs: names of the network's k outputs.
    logits: float [n, k].
    probabilities: float [n, k].
    spread: float [n], standard deviation of p_inadequate over ensemble members
      and mirror images.
    compared: float [n], what another system ranks the photographs by.
  """

  image_id: np.ndarray
  patient_id: np.ndarray
  quality: np.ndarray
  p_inadequate: np.ndarray
  p_calibrated: np.ndarray
  verdict: np.ndarray
  uncertain: np.ndarray
  log_odds: np.ndarray | None = None
  grade: np.ndarray | None = None
  criteria: np.ndarray | None = None
  dataset: np.ndarray | None = None
  camera: np.ndarray | None = None
  site: np.ndarray | None = None
  eye: np.ndarray | None = None
  split: np.ndarray | None = None
  field_found: np.ndarray | None = None
  width: np.ndarray | None = None
  height: np.ndarray | None = None
  outputs: tuple[str, ...] = ()
  logits: np.ndarray | None = None
  probabilities: np.ndarray | None = None
  spread: np.ndarray | None = None
  compared: np.ndarray | None = None

  def __len__(self) -> int:
    return len(self.image_id)

  def __getitem__(self, rows: Any) -> Predictions:
    """Returns some rows, by mask, index or slice."""
    return dataclasses.replace(
      self, **{k: v[rows] for k, v in self._arrays().items()}
    )

  @property
  def names(self) -> list[tuple[str, str]]:
    """Dataset ('' if unknown) and image_id: what tells photographs apart."""
    datasets = [''] * len(self) if self.dataset is None else self.dataset
    pairs = zip(datasets, self.image_id, strict=True)
    return [(str(dataset), str(name)) for dataset, name in pairs]

  @property
  def ranks(self) -> np.ndarray:
    """What ranks the photographs, float [n]: log-odds, or p_inadequate."""
    return self.p_inadequate if self.log_odds is None else self.log_odds

  @property
  def judged(self) -> np.ndarray:
    """Which have a label and a finite score, bool [n]."""
    return (self.quality >= 0) & np.isfinite(self.p_calibrated)

  def label(self, name: str) -> np.ndarray:
    """Returns the labels int [n] of a criterion, -1 where unknown."""
    if self.criteria is None:
      return np.full(len(self), labels.UNKNOWN)
    return self.criteria[:, labels.CRITERIA.index(name)]

  def probability(self, name: str) -> np.ndarray:
    """Returns the probabilities float [n] of an output.

    Raises:
      ValueError: there is no such output.
    """
    if self.probabilities is None:
      raise ValueError(f'there are no probabilities, so none of {name}')
    return self.probabilities[:, self.outputs.index(name)]

  def judged_by(self, record: OperatingRecord) -> Predictions:
    """Returns them with the verdicts of a record."""
    p, verdict, uncertain = record.judge(self.p_inadequate)
    return dataclasses.replace(
      self, p_calibrated=p, verdict=verdict, uncertain=uncertain
    )

  def to_columns(self) -> dict[str, np.ndarray]:
    """Returns the columns of predictions.csv, [n] each."""
    columns: Record = {
      key: getattr(self, key)
      for key in (
        *('image_id', 'dataset', 'patient_id', 'camera', 'site', 'eye'),
        'grade',
        *('split', 'quality'),
      )
    }
    if self.criteria is not None:
      columns |= {name: self.label(name) for name in labels.CRITERIA}
    for key in ('field_found', 'width', 'height'):
      columns[key] = getattr(self, key)
    for i, name in enumerate(self.outputs):
      if self.logits is not None:
        columns[f'logit_{name}'] = self.logits[:, i]
      if self.probabilities is not None:
        columns[f'p_{name}'] = self.probabilities[:, i]
    # The quality task's own output has this name too, and the same value.
    columns['p_inadequate'] = self.p_inadequate
    for key in ('log_odds', 'spread', 'p_calibrated'):
      columns[key] = getattr(self, key)
    columns['verdict'] = np.array(_VERDICTS)[self.verdict + 1]
    columns['uncertain'] = self.uncertain.astype(int)
    return {key: v for key, v in columns.items() if v is not None}

  @classmethod
  def from_columns(cls, columns: Mapping[str, np.ndarray]) -> Predictions:
    """Returns the record of columns as `to_columns` gives them.

    Raises:
      KeyError: one that every record has is missing.
      ValueError: a verdict is none.
    """
    outputs = tuple(
      key.removeprefix('logit_') for key in columns if key.startswith('logit_')
    )

    def stacked(names: Sequence[str]) -> np.ndarray | None:
      if not names or not all(name in columns for name in names):
        return None
      return np.stack([columns[name] for name in names], axis=1)

    verdict = [_VERDICTS.index(v) - 1 for v in columns['verdict']]
    return cls(
      image_id=columns['image_id'],
      patient_id=columns['patient_id'],
      quality=columns['quality'],
      p_inadequate=columns['p_inadequate'],
      p_calibrated=columns['p_calibrated'],
      verdict=np.array(verdict, int),
      uncertain=np.asarray(columns['uncertain']) == 1,
      log_odds=columns.get('log_odds'),
      grade=columns.get('grade'),
      criteria=stacked(labels.CRITERIA),
      dataset=columns.get('dataset'),
      camera=columns.get('camera'),
      site=columns.get('site'),
      eye=columns.get('eye'),
      split=columns.get('split'),
      field_found=columns.get('field_found'),
      width=columns.get('width'),
      height=columns.get('height'),
      outputs=outputs,
      logits=stacked([f'logit_{name}' for name in outputs]),
      probabilities=stacked([f'p_{name}' for name in outputs]),
      spread=columns.get('spread'),
    )

  def _arrays(self) -> dict[str, np.ndarray]:
    return {
      field.name: value
      for field in dataclasses.fields(self)
      if isinstance(value := getattr(self, field.name), np.ndarray)
    }


def concatenate(parts: Sequence[Predictions]) -> Predictions:
  """Returns the rows of all parts; of what a part lacks, none.

  Raises:
    ValueError: there are no parts, or their outputs differ.
  """
  if len({part.outputs for part in parts}) != 1:
    raise ValueError('only predictions of the same outputs can be joined')
  arrays = [part._arrays() for part in parts]
  joined: Record = {
    key: np.concatenate([a[key] for a in arrays])
    if all(key in a for a in arrays)
    else None
    for key in arrays[0]
  }
  return dataclasses.replace(parts[0], **joined)


def write(path: str | os.PathLike, parts: Sequence[Predictions]) -> None:
  """Writes every row of all parts once, as CSV; verdicts by name."""
  with run_directory.atomic_path(path) as temporary:
    with open(temporary, 'w', encoding='utf-8', newline='') as file:
      writer = csv.writer(file)
      tables = [part.to_columns() for part in parts]
      names = list(tables[0]) if tables else []
      writer.writerow(names)
      for columns in tables:
        rows = zip(*(columns[k].tolist() for k in names), strict=True)
        writer.writerows(rows)


def read(path: str | os.PathLike) -> Predictions:
  """Reads a predictions.csv that `write` wrote.

  Raises:
    RunDirectoryError: it can't be read, or is none.
  """
  try:
    with open(path, encoding='utf-8', newline='') as file:
      rows = list(csv.DictReader(file))
    columns: dict[str, np.ndarray] = {}
    for key in rows[0]:
      values = [row[key] for row in rows]
      if key in _TEXT or key == 'verdict':
        columns[key] = np.array(values)
      else:
        columns[key] = np.array(values, int if key in _WHOLE else np.float64)
    return Predictions.from_columns(columns)
  except (OSError, LookupError, ValueError, TypeError) as error:
    raise run_directory.RunDirectoryError(
      f'{path} is no predictions.csv of an evaluation: {error}'
    ) from error
