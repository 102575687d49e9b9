"""What a run directory holds, and how it is read and written safely.

  config.json        the configuration, all fields
  environment.json   git revision, versions, devices
  run.lock           held while a process writes here
  history.jsonl      one line an epoch and phase; history.csv the same
  tensorboard/       the same for TensorBoard
  checkpoints/       orbax: the latest training states, to resume from
  model/             the best model, self-contained: what evaluation, export
                     and fine-tuning read (variables.safetensors, model.json)
  metrics.json       the evaluation, schema in iqa_jax/evaluation/README.md
  predictions.csv    every image of every evaluated split once
  figures/ report/   what people look at

A remote run directory (gs://...) is read here, and worked in by remote.mirror.
A model directory is data only: safetensors and JSON. Nothing in it is ever
executed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
import contextlib
import dataclasses
import fcntl
import hashlib
import importlib.resources
import json
import os
import pathlib
import tempfile
from typing import Any

import numpy as np

from iqa_jax import errors, remote
from iqa_jax.aliases import PyTree, Record, Variables

MODEL_FORMAT = 1


class RunDirectoryError(errors.UserError):
  """A run directory is missing, foreign, damaged or in use."""


@dataclasses.dataclass(frozen=True)
class SavedModel:
  """A model as it lies on disk.

  Attributes:
    variables: {'params': tree, 'batch_stats': tree} of float32 arrays.
    record: what model.json holds: 'config' (the run's configuration as nested
      dict), 'outputs' (logit names), 'image_size', 'step', 'epoch',
      'operating_point', 'calibration', 'uncertain_band', 'source'.
    digest: sha256 of variables.safetensors, hex.
  """

  variables: Variables
  record: Record
  digest: str


def bundled() -> str:
  """Returns where the model lies that comes with the package.

  It learned from simulated photographs only (iqa_jax/bundled/README.md).

  Raises:
    UserError: this installation has none.
  """
  folder = importlib.resources.files('iqa_jax') / 'bundled'
  if not (folder / 'model' / 'model.json').is_file():
    raise errors.UserError(
      'this installation of iqa_jax carries no model: give the run directory '
      'of one trained by iqa_jax.main'
    )
  return str(folder)


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[pathlib.Path]:
  """Yields a temporary path that replaces `path` when the block succeeds.

  The temporary file lies in the same folder, so the replacement is atomic; it
  is removed when the block raises, so a full disk leaves the old file intact.

  Raises:
    InvalidValue: `path` is remote.
  """
  remote.refuse(output=path)
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  handle, name = tempfile.mkstemp(prefix='.tmp-', dir=path.parent)
  os.close(handle)
  temporary = pathlib.Path(name)
  try:
    yield temporary
    with open(temporary, 'rb+') as written:
      os.fsync(written.fileno())
    umask = os.umask(0)
    os.umask(umask)
    temporary.chmod(0o666 & ~umask)
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)


def write_text(path: str | os.PathLike, text: str) -> None:
  """Writes `text` to `path` atomically, as UTF-8."""
  with atomic_path(path) as temporary:
    temporary.write_text(text, encoding='utf-8')


def write_json(path: str | os.PathLike, value: object) -> None:
  """Writes `value` to `path` atomically; NaN is refused (not JSON)."""
  write_text(path, json.dumps(value, indent=2, allow_nan=False) + '\n')


def read_json(path: str | os.PathLike) -> Any:
  """Reads a JSON file.

  Raises:
    RunDirectoryError: the file is missing or not JSON.
  """
  try:
    return json.loads(pathlib.Path(path).read_text(encoding='utf-8'))
  except FileNotFoundError as error:
    raise RunDirectoryError(f'{path} does not exist') from error
  except (ValueError, RecursionError) as error:
    raise RunDirectoryError(f'{path} is not valid JSON: {error}') from error


def read_config(workdir: str | os.PathLike) -> str:
  """Returns the text of a run's config.json.

  Raises:
    RunDirectoryError: `workdir` is no run directory.
  """
  with remote.mirror(workdir, only='config.json') as (folder, _):
    path = folder / 'config.json'
    try:
      return path.read_text(encoding='utf-8')
    except OSError as error:
      raise RunDirectoryError(
        f'{workdir} is no run directory: {path.name} cannot be read ({error})'
      ) from error


@contextlib.contextmanager
def lock(workdir: str | os.PathLike) -> Iterator[None]:
  """Holds the run directory for this process; released when it ends.

  Raises:
    RunDirectoryError: another process is writing there.
  """
  path = pathlib.Path(workdir) / 'run.lock'
  path.parent.mkdir(parents=True, exist_ok=True)
  with open(path, 'a+', encoding='utf-8') as handle:
    try:
      fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      handle.seek(0)
      raise RunDirectoryError(
        f'{workdir} is in use by another run ({handle.read().strip()}); '
        'wait for it, stop it, or choose another --workdir'
      ) from None
    handle.truncate(0)
    handle.write(f'process {os.getpid()} on {os.uname().nodename}\n')
    handle.flush()
    yield


def save_model(
  workdir: str | os.PathLike, variables: Variables, record: Record
) -> str:
  """Writes the model directory of a run and returns its digest.

  The weights are written first under a name that holds their digest, then
  model.json, which names them, replaces the old one: a reader sees either the
  old model or the new one, never a mixture.
  """
  import safetensors.numpy

  folder = pathlib.Path(workdir) / 'model'
  folder.mkdir(parents=True, exist_ok=True)
  flat = {k: np.ascontiguousarray(v) for k, v in _flatten(variables).items()}
  data = safetensors.numpy.save(flat)
  digest = hashlib.sha256(data).hexdigest()
  name = f'variables-{digest[:12]}.safetensors'
  with atomic_path(folder / name) as temporary:
    temporary.write_bytes(data)
  write_json(
    folder / 'model.json',
    {**record, 'format': MODEL_FORMAT, 'weights': name, 'sha256': digest},
  )
  for old in folder.glob('variables-*.safetensors'):
    if old.name != name:
      old.unlink()
  return digest


def save_halved(workdir: str | os.PathLike, output: str | os.PathLike) -> int:
  """Writes a run's model with half of its digits; returns bytes of weights.

  Raises:
    RunDirectoryError: the run holds no model.
    InvalidValue: a weight is beyond what float16 holds.
  """
  saved = load_model(workdir)

  def halved(tree: PyTree, path: str) -> PyTree:
    if isinstance(tree, dict):
      return {k: halved(v, f'{path}/{k}') for k, v in tree.items()}
    with np.errstate(over='ignore'):
      half = np.asarray(tree).astype(np.float16)
    if not np.isfinite(half).all():
      raise errors.InvalidValue(f'{path} is beyond what float16 holds')
    return half

  # Statistics stay as they are: a variance may be tiny.
  params = halved(saved.variables['params'], 'params')
  of_the_file = ('format', 'weights', 'sha256')
  kept = {k: v for k, v in saved.record.items() if k not in of_the_file}
  kept['made_from'] = {'sha256': saved.digest}
  data = kept.get('config', {}).get('data', {})
  # Where files lay on the machine that trained it is nobody's business.
  for name in ('data_dir', 'manual_dir', 'test_manual_dir'):
    if name in data:
      data[name] = ''
  for where, name in (
    (kept.get('config', {}).get('model', {}), 'pretrained'),
    (kept.get('source', {}), 'source'),
    (kept.get('source', {}), 'file'),
  ):
    if where.get(name):
      where[name] = pathlib.Path(where[name]).name
  save_model(output, {**saved.variables, 'params': params}, kept)
  (weights,) = (pathlib.Path(output) / 'model').glob('*.safetensors')
  return weights.stat().st_size


def update_model_record(workdir: str | os.PathLike, **fields: object) -> None:
  """Adds fields (operating point, calibration) to a saved model's record."""
  path = pathlib.Path(workdir) / 'model' / 'model.json'
  write_json(path, {**read_json(path), **fields})


def load_model(workdir: str | os.PathLike) -> SavedModel:
  """Reads the model of a run directory, which may be remote.

  Raises:
    RunDirectoryError: there is none, or it is damaged or of another format.
    UserError: the remote place can't be reached.
  """
  with remote.mirror(workdir, only='model') as (home, _):
    return _load_model(home / 'model', workdir)


def _load_model(folder: pathlib.Path, workdir: str | os.PathLike) -> SavedModel:
  import safetensors
  import safetensors.numpy

  if not (folder / 'model.json').is_file():
    raise RunDirectoryError(
      f'{workdir} holds no trained model (model/model.json is missing); give '
      'the --workdir of a run of iqa_jax.main that has finished an epoch'
    )
  record = read_json(folder / 'model.json')
  if not isinstance(record, dict) or record.get('format') != MODEL_FORMAT:
    raise RunDirectoryError(
      f'{folder}/model.json is not of format {MODEL_FORMAT}'
    )
  # Only the base name: a foreign record can't point outside its directory.
  weights = folder / pathlib.Path(str(record.get('weights'))).name
  try:
    data = weights.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    if digest != record.get('sha256'):
      raise RunDirectoryError(
        f'{weights} is damaged: its sha256 is {digest[:12]}..., model.json '
        f'says {str(record.get("sha256"))[:12]}...; restore it or train again'
      )
    flat = safetensors.numpy.load(data)
  except OSError as error:
    raise RunDirectoryError(f'{weights} cannot be read: {error}') from error
  except safetensors.SafetensorError as error:
    raise RunDirectoryError(f'{weights} is not safetensors: {error}') from error
  # The bundled model is stored with half of its digits.
  wide = {
    path: value.astype(np.float32) if value.dtype == np.float16 else value
    for path, value in flat.items()
  }
  return SavedModel(_unflatten(wide), record, digest)


def _flatten(tree: Variables, prefix: str = '') -> dict[str, np.ndarray]:
  flat: dict[str, np.ndarray] = {}
  for key, value in tree.items():
    path = f'{prefix}{key}'
    if isinstance(value, Mapping):
      flat.update(_flatten(value, f'{path}/'))
    else:
      flat[path] = np.asarray(value)
  return flat


def _unflatten(flat: Mapping[str, np.ndarray]) -> Record:
  tree: Record = {}
  for path, value in flat.items():
    *parents, leaf = path.split('/')
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[leaf] = value
  return tree
