"""Many photographs -> maps, pictures, a manifest and a contact sheet.

Worker processes decode photographs and prepare them (worker.py); this process
computes batches of one static shape; the workers draw and write what came out.
All three go on at once. How many photographs are on their way is bounded, and
so are the bytes that each worker keeps, so memory doesn't grow with their
number. What is finished goes into a journal (manifest.py), from which the same
command goes on after whatever ended it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
import concurrent.futures
import contextlib
import dataclasses
import functools
import hashlib
import heapq
import json
from multiprocessing import connection
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import Any

from absl import logging
import numpy as np
import tqdm

from iqa_jax import errors, run_directory
from iqa_jax.explain import overlay, ruler
from iqa_jax.export import contact_sheet, manifest
from iqa_jax.export import worker as worker_lib
from iqa_jax.judging import calibration, operating_points
from iqa_jax.photograph import images as images_lib
from iqa_jax.photograph import inputs, placement
from iqa_jax.photograph.placement import Placement

SCALINGS = ('image', 'logit', 'dataset')
DEFAULT_OUTPUTS = ('overlay', 'panel', 'npz')

_SCALE_SAMPLE = 256  # photographs that a dataset's scale is taken from
_LOGIT_TOP = 5.0  # logits at the top of the colour bar
_PATIENCE = 300.0  # seconds for one photograph
_SYNC_SECONDS = 1.0  # between writes of the journal
_EMPTY = (
  'Empty map: nothing in this layer speaks for what is explained, so there is '
  'nothing to colour.'
)


class ExportError(errors.UserError):
  """The export can't go on; the message says what to do."""


class Interrupted(errors.Interrupted):
  """A signal ended the export early."""

  def __init__(self, number: int, done: int, total: int):
    super().__init__(
      number,
      f'stopped with {done} of {total} photographs done; the same command '
      'goes on',
    )


@dataclasses.dataclass(frozen=True)
class Options:
  """What an export is to do; see the flags of export_heatmaps.

  Attributes:
    workdir: run directory of the model.
    images: folder, file, glob pattern or CSV list.
    output: the output directory.
    root: what the paths of a list are relative to; None for its folder.
    outputs: some of manifest.KINDS.
    method: of cam.METHODS; None as the run's configuration says.
    layer: feature point; None likewise.
    target: 'predicted' or one of the task's targets; None likewise.
    placement: of placement.NAMES, how maps lie on the photographs.
    scaling: one of SCALINGS.
    color_max: what the top of the colour bar stands for ('logit': in logits;
      'dataset': in raw units); 0 for the default.
    colors: one of overlay.COLORS.
    opacity: of the strongest evidence, 0 to 1.
    quality: of JPEGs, 1 to 95.
    max_side: of overlays and contours, in pixels; 0 for the original's.
    contact_sheet: whether to make one.
    sheet_limit: most photographs on it; of more a fixed random sample.
    sheet_page: photographs a page.
    batch_size: over all devices; 0 for 8 a processor, 32 an accelerator.
    workers: processes that decode and draw; 0 for one a core.
    memory_gb: bound of the photographs that all workers keep decoded.
    shard_index: which shard this process does.
    num_shards: how many there are.
    overwrite: replace an export of other settings.
    progress: whether to show a bar.
    compilation_cache: folder of compiled programs; '' for none.
  """

  workdir: str
  images: str
  output: str
  root: str | None = None
  outputs: tuple[str, ...] = DEFAULT_OUTPUTS
  method: str | None = None
  layer: str | None = None
  target: str | None = None
  placement: str = 'network'
  scaling: str = 'image'
  color_max: float = 0.0
  colors: str = 'viridis'
  opacity: float = 0.55
  quality: int = 90
  max_side: int = 0
  contact_sheet: bool = True
  sheet_limit: int = 20_000
  sheet_page: int = 300
  batch_size: int = 0
  workers: int = 0
  memory_gb: float = 2.0
  shard_index: int = 0
  num_shards: int = 1
  overwrite: bool = False
  progress: bool = True
  compilation_cache: str = ''


@dataclasses.dataclass
class Summary:
  """What an export did.

  Attributes:
    total: photographs of this shard.
    skipped: of them, complete before.
    statuses: status -> photographs, of the whole shard.
    seconds: processor time by stage: decode, prepare, network, render, encode.
      The network's is that of this process meanwhile.
    wall_s: time of the pipeline, start-up excluded.
    first_s: seconds from the start to the first finished photograph.
  """

  total: int = 0
  skipped: int = 0
  statuses: dict[str, int] = dataclasses.field(default_factory=dict)
  seconds: dict[str, float] = dataclasses.field(default_factory=dict)
  wall_s: float = 0.0
  first_s: float | None = None


def run(options: Options, model: Model | None = None) -> Summary:
  """Exports one shard, or what is left of it.

  Args:
    options: what to do.
    model: of the same workdir, method, layer, target and batch size; to save
      several exports from loading and compiling it again.

  Raises:
    InputError, ManifestError, RunDirectoryError, ExportError, ValueError: the
      message says what to do. What was written before stays.
    Interrupted: after SIGINT or SIGTERM; the manifest has been written.
  """
  start = time.perf_counter()
  _check(options)
  listing = inputs.find(options.images, options.root, images_lib.SUFFIXES)
  keys = [
    key
    for key in listing.keys
    if inputs.in_shard(key, options.shard_index, options.num_shards)
  ]
  if listing.ignored:
    logging.info('%d files ignored: no images by their names', listing.ignored)
  if listing.repeated:
    logging.info('%d entries of the list are repetitions', listing.repeated)
  model = Model(options) if model is None else model
  sheet_share = options.sheet_limit / max(len(listing.keys), 1)
  output = pathlib.Path(options.output)
  temporary = output / '.incomplete' / f'shard-{options.shard_index:05d}'
  summary = Summary(total=len(keys))
  with contextlib.ExitStack() as stack:
    try:
      output.mkdir(parents=True, exist_ok=True)
      color_max = options.color_max
      pool = stack.enter_context(_Pool(options, model, temporary))
      if not color_max and options.scaling == 'logit':
        color_max = _LOGIT_TOP
      if not color_max and options.scaling == 'dataset':
        color_max = _dataset_scale(options, model, pool, listing)
      settings = _settings(options, model, listing, color_max)
      journal = stack.enter_context(
        manifest.Journal(
          output, options.shard_index, settings, overwrite=options.overwrite
        )
      )
      _clear(temporary)
    except OSError as error:
      raise ExportError(f'{output} cannot be written to: {error}') from error
    todo = [k for k in keys if not _complete(output, listing.root, journal, k)]
    summary.skipped = len(keys) - len(todo)
    if summary.skipped:
      logging.info('%d photographs are complete already', summary.skipped)
    wanted = set(keys)
    job = _Job(options, model, journal, sheet_share, color_max)
    try:
      journal.forget([k for k in journal.keys() if k not in wanted])
      with job.progress(len(keys), summary.skipped):
        pool.run(listing.root, todo, job.draw, job.done)
      job.sync()
      journal.finish()
    except OSError as error:
      raise ExportError(
        f'the journal in {output} cannot be written: {error}; what is in it '
        'stays, the same command goes on'
      ) from error
    finally:
      if not isinstance(sys.exc_info()[1], ExportError):
        _write_manifest(options, journal, keys, model, summary)
      summary.seconds = dict(pool.seconds)
      summary.wall_s = job.wall_s
      if job.first is not None:
        summary.first_s = job.first - start
      shutil.rmtree(temporary, ignore_errors=True)
      with contextlib.suppress(OSError):
        temporary.parent.rmdir()
    if options.num_shards == 1 and options.contact_sheet:
      _write_sheet(output, lambda: map(journal.read, keys), settings, options)
  return summary


def merge(options: Options) -> int:
  """Makes one manifest and one contact sheet of all shards.

  Returns:
    The number of photographs.

  Raises:
    ManifestError: a shard is unfinished.
  """
  output = pathlib.Path(options.output)
  journals, settings = manifest.open_finished(output, options.num_shards)
  with contextlib.ExitStack() as stack:
    for journal in journals:
      stack.enter_context(journal)
    try:
      count = manifest.write(
        output / 'manifest.csv', manifest.merged(journals), settings['logits']
      )
      if options.contact_sheet:
        _write_sheet(
          output, lambda: manifest.merged(journals), settings, options
        )
    except OSError as error:
      raise ExportError(f'{output} cannot be written to: {error}') from error
  return count


def _check(options: Options) -> None:
  unknown = [o for o in options.outputs if o not in manifest.KINDS]
  if unknown or not options.outputs:
    raise errors.InvalidValue(
      f'--outputs={",".join(options.outputs)}: expected some of '
      f'{", ".join(manifest.KINDS)}'
    )
  overlay.palette(options.colors)
  if options.scaling not in SCALINGS:
    raise errors.InvalidValue(
      f'--scaling={options.scaling} is none of {", ".join(SCALINGS)}'
    )
  if options.placement not in placement.NAMES:
    raise errors.InvalidValue(
      f'--placement={options.placement} is none of {", ".join(placement.NAMES)}'
    )
  for name, low, high in (
    ('opacity', 0, 1),
    ('quality', 1, 95),
    ('num_shards', 1, 100_000),
    ('shard_index', 0, options.num_shards - 1),
    ('memory_gb', 0, 10_000),
    ('max_side', 0, 100_000),
    ('color_max', 0, 1e30),
    ('sheet_page', 1, 10_000),
    ('sheet_limit', 1, 10_000_000),
    ('batch_size', 0, 100_000),
    ('workers', 0, 1024),
  ):
    value = getattr(options, name)
    if not low <= value <= high:
      raise errors.InvalidValue(
        f'--{name}={value} is not within {low} to {high}'
      )


class Model:
  """The model: what its record says at once, its network when needed."""

  def __init__(self, options: Options):
    path = pathlib.Path(options.workdir) / 'model' / 'model.json'
    if not path.is_file():
      raise run_directory.RunDirectoryError(
        f'{options.workdir} holds no trained model ({path} is missing); give '
        'the --workdir of a run of iqa_jax.main that has finished an epoch'
      )
    record = run_directory.read_json(path)
    try:
      explain = record['config']['explain']
      self.outputs = tuple(map(str, record['outputs']))
      self.size = int(record['image_size'])
      self.digest = str(record['sha256'])
      self.method = options.method or str(explain['method'])
      self.layer = options.layer or str(explain['layer']) or None
      self.target = options.target or str(explain['target'])
      self.record = record
      self.calibrated = record.get('calibration')
      point = record.get('operating_point')
      self.threshold = 0.5 if point is None else float(point['threshold'])
      self.band = record.get('uncertain_band')
      # Refuses a damaged record now, not in the middle.
      calibration.apply(self.calibrated, np.array([0.5]))
    except (KeyError, TypeError, ValueError) as error:
      raise run_directory.RunDirectoryError(
        f'{path} does not describe a model: {type(error).__name__}: {error}'
      ) from error
    self._options = options

  def _raw_threshold(self) -> float:
    """Returns the operating point on the uncalibrated probability."""
    odds = np.linspace(-40, 40, 400_001)
    p = 1 / (1 + np.exp(-odds))
    reached = calibration.apply(self.calibrated, p) >= self.threshold
    return float(p[reached.argmax()]) if reached.any() else np.inf

  @functools.cached_property
  def network(self) -> Any:
    """The loaded model, and everything of JAX."""
    from iqa_jax import devices, inference
    from iqa_jax.explain import additive

    devices.use_compilation_cache(self._options.compilation_cache)
    loaded = inference.load(self._options.workdir)
    if loaded.digest != self.digest:
      raise ExportError('the model was replaced just now; start again')
    if self.target not in ('predicted', *loaded.task.targets):
      raise errors.InvalidValue(
        f'--target={self.target} is none of predicted, '
        f'{", ".join(loaded.task.targets)}'
      )
    if self._options.scaling == 'logit':
      why = additive.obstacle(
        loaded.model,
        loaded.task,
        method=self.method,
        layer=self.layer,
        target=self.target,
      )
      if why:
        raise errors.InvalidValue(
          f'--scaling=logit needs maps that add up to the logit: {why}; or '
          'another --scaling'
        )
    return loaded

  def placed(self, how: str) -> Placement | None:
    """Returns where the cells of the explained layer look, see cam.placed."""
    from iqa_jax.explain import cam

    return cam.placed(self.network.model, self.layer, how)

  @functools.cached_property
  def constants(self) -> np.ndarray:
    """What the targets' scores hold beside their maps, for scaling 'logit'."""
    from iqa_jax.explain import additive

    network = self.network
    return additive.constants(network.model, network.variables, network.task)

  @functools.cached_property
  def batch_size(self) -> int:
    """Photographs a batch, over all devices."""
    from iqa_jax import devices

    return devices.batch_size(self._options.batch_size)

  @functools.cached_property
  def _step(self) -> Callable:
    from iqa_jax import devices, models
    from iqa_jax.explain import cam

    loaded = self.network
    choose = functools.partial(
      cam.choose_targets,
      loaded.task,
      self.target,
      threshold=self._raw_threshold(),
    )

    def step(variables, pixels):
      x = models.normalize(pixels)

      # The map stays that of the photograph as it is.
      judged = functools.partial(loaded.judged, variables, x)
      found = cam.explain(
        loaded.model,
        variables,
        x,
        lambda logits: choose(judged(logits)),
        task=loaded.task,
        layer=self.layer,
        methods=(self.method,),
      )
      logits = judged(found.logits)
      p = loaded.task.probabilities(logits)
      inadequate = loaded.task.p_inadequate(logits)
      raw = found.maps[self.method]
      return logits, p, inadequate, found.targets, raw, found.landmarks

    return devices.parallel(step, in_axes=(None, 0))

  def explain(self, pixels: Sequence[np.ndarray], size: int):
    """Returns what the network says of up to `size` images.

    Returns:
      numpy arrays: logits [n, k], probabilities [n, k], p_inadequate [n],
      index of the target [n], raw maps [n, h, w], landmarks [n, 5] (see
      cam.Explanation).
    """
    import jax

    from iqa_jax import devices

    step, count = self._step, len(pixels)
    batch = np.zeros((size, *pixels[0].shape), np.uint8)
    batch[:count] = pixels
    batch = batch.reshape(devices.local_count(), -1, *batch.shape[1:])
    found = jax.device_get(step(self.network.variables, batch))
    return devices.joined(found, count)

  def judge(self, p_inadequate: float) -> tuple[float, str, bool]:
    """Returns calibrated probability, verdict, and whether it is uncertain."""
    p = float(calibration.apply(self.calibrated, np.array([p_inadequate]))[0])
    verdict = 'inadequate' if p >= self.threshold else 'adequate'
    uncertain = self.band is not None and bool(
      operating_points.is_uncertain(np.array(p), self.band)
    )
    return p, verdict, uncertain


def _settings(options, model: Model, listing, color_max) -> dict[str, Any]:
  """Returns all that the outputs depend on, as JSON values."""
  judged = {
    key: model.record.get(key)
    for key in ('calibration', 'operating_point', 'uncertain_band')
  }
  text = json.dumps(judged, sort_keys=True)
  return {
    'checkpoint': model.digest,
    'root': listing.root,
    'logits': list(model.outputs),
    'image_size': model.size,
    'calibration': hashlib.sha256(text.encode()).hexdigest()[:16],
    'operating_point': model.threshold,
    'method': model.method,
    'layer': model.layer or 'default',
    'target': model.target,
    'placement': options.placement,
    'scaling': options.scaling,
    'color_max': color_max,
    'outputs': sorted(options.outputs),
    'colors': options.colors,
    'opacity': options.opacity,
    'quality': options.quality,
    'max_side': options.max_side,
    'contact_sheet': options.contact_sheet,
    'num_shards': options.num_shards,
  }


def _dataset_scale(options, model: Model, pool: _Pool, listing) -> float:
  """Returns the raw value at the top of the colour bar for all photographs.

  It is taken from a fixed sample of the whole listing, so that shards agree,
  and kept, so that later runs do.
  """
  from iqa_jax.explain import cam

  path = pathlib.Path(options.output) / 'scale.json'
  of = {
    'checkpoint': model.digest,
    'method': model.method,
    'layer': model.layer or 'default',
    'target': model.target,
  }
  if path.is_file():
    saved = run_directory.read_json(path)
    if isinstance(saved, dict) and of.items() <= saved.items():
      return float(saved['magnitude'])
  sample = heapq.nsmallest(
    _SCALE_SAMPLE, listing.keys, key=lambda k: hashlib.sha256(
      os.fsencode(k)).digest()
  )  # fmt: skip
  largest: list[float] = []

  def look(photo, found):
    del photo
    largest.append(float(np.abs(found.raw).max()))

  logging.info('taking the scale from %d photographs', len(sample))
  pool.run(listing.root, sample, look, lambda photo, answer: None)
  finite = [v for v in largest if np.isfinite(v) and v > 0]
  if not finite:
    raise ExportError(
      f'none of {len(sample)} photographs has a map to take the scale from; '
      'give --color_max, or another --scaling'
    )
  magnitude = cam.magnitude(np.array(finite)[:, None, None])
  run_directory.write_json(path, {**of, 'magnitude': magnitude})
  return magnitude


def _complete(output: pathlib.Path, root: str, journal, key: str) -> bool:
  """Whether a photograph is done, and its file and outputs are unchanged."""
  if key not in journal:
    return False
  record = journal.read(key)
  if record['status'] != 'ok':
    return False  # the cause may have gone, and failing again is cheap
  try:
    source = os.stat(os.path.join(root, key))
    if record['source'] != [source.st_size, source.st_mtime_ns]:
      return False
    return all(
      os.stat(output / name).st_size == size
      for name, size in record['files'].values()
    )
  except OSError:
    return False


def _clear(temporary: pathlib.Path) -> None:
  """Makes the folder of unfinished files, empty."""
  shutil.rmtree(temporary, ignore_errors=True)
  temporary.mkdir(parents=True, exist_ok=True)


def _write_manifest(options, journal, keys, model, summary) -> None:
  name = 'manifest.csv'
  if options.num_shards > 1:
    name = f'manifest-{options.shard_index:05d}-of-{options.num_shards:05d}.csv'
  statuses: dict[str, int] = {}

  def rows():
    for key in keys:
      row = {'path': key, 'status': 'pending', 'reason': 'not reached yet'}
      if key in journal:
        row = journal.read(key)
      statuses[row['status']] = statuses.get(row['status'], 0) + 1
      yield row

  path = pathlib.Path(options.output) / name
  try:
    manifest.write(path, rows(), model.outputs)
  except OSError as error:
    raise ExportError(
      f'{path} cannot be written: {error}; the journal holds what is done, the '
      'same command goes on'
    ) from error
  summary.statuses = statuses


def _write_sheet(output, records, settings, options) -> None:
  try:
    contact_sheet.write(
      output,
      records,
      outputs=settings['logits'],
      target=settings['target'],
      scaling=settings['scaling'],
      colors=settings['colors'],
      page=options.sheet_page,
    )
  except OSError as error:
    raise ExportError(
      f'the contact sheet cannot be written: {error}; the pictures and the '
      'manifest are complete'
    ) from error


@dataclasses.dataclass
class _Photo:
  """A photograph on its way."""

  number: int
  key: str
  attempts: int = 0
  holder: _Process | None = None
  prepared: worker_lib.Prepared | None = None
  drawing: worker_lib.Drawing | None = None


@dataclasses.dataclass(frozen=True)
class _Found:
  """What the network said of one photograph."""

  logits: np.ndarray
  probabilities: np.ndarray
  p_inadequate: float
  target: int
  raw: np.ndarray
  landmarks: np.ndarray


class _Job:
  """Turns what the network said into drawings and records."""

  def __init__(self, options, model, journal, sheet_share, color_max):
    self._options = options
    self._model = model
    self._journal = journal
    self._sheet_share = sheet_share
    self._color_max = color_max
    self._records: dict[str, dict[str, Any]] = {}
    self._finished: list[dict[str, Any]] = []
    self._synced = time.perf_counter()
    self._failed = 0
    self._bar: tqdm.tqdm | None = None
    self.first: float | None = None
    self.wall_s = 0.0

  @contextlib.contextmanager
  def progress(self, total: int, done: int) -> Iterator[None]:
    """Shows a progress bar while photographs are done."""
    start = time.perf_counter()
    shards = self._options.num_shards
    with tqdm.tqdm(
      total=total,
      initial=done,
      unit='photo',
      desc=f'shard {self._options.shard_index}/{shards}'
      if shards > 1
      else None,
      disable=not self._options.progress,
      mininterval=0.2 if sys.stderr.isatty() else 10.0,
    ) as self._bar:
      try:
        yield
      finally:
        self.wall_s = time.perf_counter() - start
        self.sync()

  def draw(self, photo: _Photo, found: _Found) -> worker_lib.Drawing | None:
    """Returns what is to be drawn; None where the network failed."""
    from iqa_jax import tasks
    from iqa_jax.explain import cam

    model, options = self._model, self._options
    task = model.network.task
    assert photo.prepared is not None
    finite = bool(
      np.isfinite(found.logits).all() and np.isfinite(found.raw).all()
    )
    record: dict[str, Any] = {
      'path': photo.key,
      'status': 'ok' if finite else 'not_finite',
      'reason': '',
      'width': photo.prepared.width,
      'height': photo.prepared.height,
      'field_found': photo.prepared.field.found,
      'field_share': photo.prepared.field_share,
      'method': model.method,
      'layer': model.layer or model.network.model.default_layer,
      'checkpoint': model.digest,
      'operating_point': model.threshold,
      'source': list(photo.prepared.source),
    }
    if not finite:
      record['reason'] = 'the network ran over: its logits or map are infinite'
      self._add(record)
      return None
    landmarks = ruler.to_original(
      found.landmarks, photo.prepared.affine, model.size
    )
    record |= ruler.columns(landmarks, photo.prepared.field)
    p, verdict, uncertain = model.judge(found.p_inadequate)
    for i, name in enumerate(model.outputs):
      record[f'logit_{name}'] = float(found.logits[i])
      record[f'p_{name}'] = float(found.probabilities[i])
    empty = cam.status(found.raw) == 'empty'
    target = task.targets[found.target]
    record |= {
      'p_inadequate': found.p_inadequate,
      'p_calibrated': None if model.calibrated is None else p,
      'verdict': verdict,
      'uncertain': uncertain if model.band is not None else None,
      'target': target,
      'raw_min': float(found.raw.min()),
      'raw_max': float(found.raw.max()),
      'raw_sum': float(found.raw.sum(dtype=np.float64)),
      'empty_map': empty,
    }
    self._records[photo.key] = record
    shown, bar = self._shown(found.raw, found.target)
    how = 'not calibrated' if model.calibrated is None else 'calibrated'
    return worker_lib.Drawing(
      name=inputs.output_name(photo.key),
      shown=shown,
      raw=found.raw,
      placement=model.placed(options.placement),
      caption=overlay.Caption(
        name=photo.key,
        verdict=verdict,
        probability=f'P(inadequate) = {p:.3f}, {how}',
        uncertain=uncertain,
        target=f'evidence for {tasks.evidence_for(target)}',
        source=f'{model.method}, {record["layer"]}',
        bar=bar,
        note=_EMPTY if empty else '',
      ),
      landmarks=landmarks,
      thumbnail=options.contact_sheet
      and inputs.sampled(photo.key, self._sheet_share),
      facts={
        'logits': found.logits,
        'outputs': np.array(model.outputs),
        'p_inadequate': found.p_inadequate,
        'target': target,
        'layer': record['layer'],
        'method': model.method,
        'checkpoint': model.digest,
      },
    )

  def _shown(self, raw: np.ndarray, target: int) -> tuple[np.ndarray, str]:
    """Returns the map from 0 to 1, and what 1 stands for."""
    from iqa_jax.explain import cam

    how, top = self._options.scaling, self._color_max
    if how == 'image':
      return cam.scale(raw), f'most in this photograph ({raw.max():.3g})'
    if how == 'logit':
      constant = self._model.constants[target]
      logits = cam.scale(raw, 'logit', constant=constant)
      shown = np.clip(logits / top, 0, 1)
      return shown, f'{top:.3g} logits or more'
    shown = np.clip(cam.scale(raw, 'dataset', magnitude=top), 0, 1)
    return shown, f'{top:.3g} or more, in all photographs'

  def done(
    self, photo: _Photo, answer: worker_lib.Drawn | worker_lib.Failed
  ) -> None:
    """Records a photograph that is drawn, or that failed."""
    record = self._records.pop(photo.key, {})
    if isinstance(answer, worker_lib.Failed):
      self._add(
        {
          'path': photo.key,
          'status': answer.status,
          'reason': answer.reason,
          'checkpoint': self._model.digest,
        }
      )
      return
    record['evidence_in_field'] = answer.evidence_in_field
    record['files'] = {kind: list(f) for kind, f in answer.files.items()}
    record |= {kind: name for kind, (name, _) in answer.files.items()}
    self._add(record)

  def _add(self, record: dict[str, Any]) -> None:
    now = time.perf_counter()
    if record['status'] == 'ok' and self.first is None:
      self.first = now
    self._failed += record['status'] != 'ok'
    known = record['path'] in self._journal
    if not known or self._journal.read(record['path']) != record:
      self._finished.append(record)
    if now - self._synced > _SYNC_SECONDS:
      self.sync()
    if self._bar is not None:
      if self._failed:
        self._bar.set_postfix(not_ok=self._failed, refresh=False)
      self._bar.update()

  def sync(self) -> None:
    """Writes what is finished to the journal."""
    finished, self._finished = self._finished, []
    self._journal.append(finished)
    self._synced = time.perf_counter()


class _Process:
  """A worker process, seen from here."""

  def __init__(self, settings: worker_lib.Settings):
    ours, theirs = socket.socketpair()
    environment = dict(os.environ)
    package = pathlib.Path(__file__).resolve().parents[2]
    path = environment.get('PYTHONPATH')
    environment['PYTHONPATH'] = f'{package}{os.pathsep}{path}' if path else str(
      package
    )  # fmt: skip
    # The network has the cores; a worker is one of several.
    environment |= {'OMP_NUM_THREADS': '1', 'OPENBLAS_NUM_THREADS': '1'}
    with theirs:
      self.process = subprocess.Popen(
        [
          sys.executable,
          '-c',
          'from iqa_jax.export import worker; worker.main()',
          str(theirs.fileno()),
        ],
        pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        env=environment,
      )
    self.pipe = connection.Connection(ours.detach())
    self.pipe.send(settings)
    # What it was asked and has not answered, in order, and since when the
    # first of it is being done.
    self.asked: deque[tuple[str, _Photo]] = deque()
    self.since = time.monotonic()
    self.answers = 0

  def ask(self, what: str, photo: _Photo, *arguments: Any) -> None:
    if not self.asked:
      self.since = time.monotonic()
    self.asked.append((what, photo))
    # A worker that has just died is noticed when its answer is awaited.
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
      self.pipe.send((what, photo.number, *arguments))

  def forget(self, number: int) -> None:
    """Lets the worker drop a photograph that won't be drawn."""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
      self.pipe.send(('forget', number))

  def stop(self) -> None:
    self.pipe.close()
    self.process.kill()
    self.process.wait()


class _Pool:
  """Worker processes, and the stream of photographs through them."""

  def __init__(self, options: Options, model: Model, temporary: pathlib.Path):
    count = options.workers or len(os.sched_getaffinity(0))
    self._settings = worker_lib.Settings(
      output=os.path.abspath(options.output),
      temporary=os.path.abspath(temporary),
      outputs=options.outputs,
      size=model.size,
      field=model.network.model.takes_field,
      colors=options.colors,
      opacity=options.opacity,
      quality=options.quality,
      max_side=options.max_side,
      budget=int(options.memory_gb * 2**30 / count),
    )
    self._model = model
    self._count = count
    self._processes: list[_Process] = []
    self._device = concurrent.futures.ThreadPoolExecutor(1)
    self._wake, self._waker = socket.socketpair()
    self._wake.setblocking(False)
    self._waker.setblocking(False)
    self._signal = 0
    self._early_deaths = 0
    self.seconds = dict.fromkeys(
      ('decode', 'prepare', 'network', 'render', 'encode'), 0.0
    )

  def __enter__(self) -> _Pool:
    return self

  def __exit__(self, *unused) -> None:
    for process in self._processes:
      process.stop()
    self._device.shutdown(wait=True, cancel_futures=True)
    self._wake.close()
    self._waker.close()

  def run(
    self,
    root: str,
    keys: Iterable[str],
    draw: Callable[[_Photo, _Found], worker_lib.Drawing | None],
    done: Callable[[_Photo, worker_lib.Drawn | worker_lib.Failed], None],
  ) -> None:
    """Sends photographs through decoding, network and drawing.

    Args:
      root: what the keys are relative to.
      keys: the photographs.
      draw: says what to draw of what the network found; None for nothing.
      done: is told of every photograph that was drawn or failed.

    Raises:
      Interrupted: SIGINT or SIGTERM came; what was under way is finished.
      ExportError: outputs can't be written, or workers don't start.
    """
    keys = list(keys)
    if not keys:
      return
    stream = _Stream(self, root, keys, draw, done)
    with self._signals():
      stream.run()
      if self._signal and stream.left:
        raise Interrupted(self._signal, stream.finished, len(keys))

  @contextlib.contextmanager
  def _signals(self) -> Iterator[None]:
    """Turns the first SIGINT or SIGTERM into a wish to stop."""
    if threading.current_thread() is not threading.main_thread():
      yield
      return
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}

    def note(number, frame):
      del frame
      self._signal = number
      self._notify()
      for n, handler in before.items():
        signal.signal(n, handler)  # a second one ends at once

    for n in before:
      signal.signal(n, note)
    try:
      yield
    finally:
      for n, handler in before.items():
        signal.signal(n, handler)

  def _notify(self, *unused) -> None:
    """Ends the wait for answers."""
    with contextlib.suppress(BlockingIOError):
      self._waker.send(b'.')

  def _start(self) -> None:
    while len(self._processes) < self._count:
      self._processes.append(_Process(self._settings))

  def _compute(self, pixels: list[np.ndarray], size: int):
    network = self._model.network  # its time is start-up, not work
    start = time.process_time()
    found = self._model.explain(pixels, size)
    self.seconds['network'] += time.process_time() - start
    del network
    return found


class _Stream:
  """One pass of photographs through a pool."""

  def __init__(self, pool: _Pool, root: str, keys, draw, done):
    self._pool = pool
    self._root = root
    self._draw = draw
    self._done = done
    self.left = len(keys)
    self.finished = 0
    self._coming = iter(_Photo(number, key) for number, key in enumerate(keys))
    self._again: deque[_Photo] = deque()  # to decode once more
    self._ready: deque[_Photo] = deque()  # prepared, to be computed
    self._drawings: deque[_Photo] = deque()  # computed, to be drawn
    self._batches: deque[tuple[list[_Photo], Any]] = deque()
    self._decoding = 0
    self._held = 0  # decoded or being so, not yet drawn
    self._exhausted = False
    self._batch = 0

  def run(self) -> None:
    pool = self._pool
    pool._start()
    # Loads the network while the first photographs are decoded.
    started = pool._device.submit(
      lambda: (pool._model.network, pool._model.batch_size)
    )
    started.add_done_callback(pool._notify)
    loading: concurrent.futures.Future | None = started
    while True:
      if loading is not None and loading.done():
        # One shape for all batches; a few photographs need no large one.
        few = 1 << max(self.left - 1, 0).bit_length()
        self._batch = min(loading.result()[1], max(few, _devices()))
        loading = None
      self._feed()
      self._launch()
      busy = any(p.asked for p in pool._processes)
      if not busy and not self._batches and not self._drawings:
        if pool._signal or (not self._ready and not self._more()):
          return
        if loading is None:
          continue
      self._wait()

  def _more(self) -> bool:
    """Whether there are photographs to be decoded."""
    if not self._again and not self._exhausted:
      photo = next(self._coming, None)
      if photo is None:
        self._exhausted = True
      else:
        self._again.append(photo)
    return bool(self._again)

  def _feed(self) -> None:
    """Gives every worker something to do, drawing first."""
    processes = self._pool._processes
    # Photographs lie with the worker that decoded them.
    for photo in list(self._drawings):
      holder = photo.holder
      if holder not in processes:
        holder = min(processes, key=lambda p: len(p.asked))
      if len(holder.asked) < 2:
        self._drawings.remove(photo)
        holder.ask('draw', photo, self._path(photo), photo.drawing)
    window = 3 * (self._batch or 8) + 2 * len(processes)
    for process in sorted(processes, key=lambda p: len(p.asked)):
      while len(process.asked) < 2 and self._held < window:
        if self._pool._signal or not self._more():
          return
        photo = self._again.popleft()
        photo.holder = process
        self._held += 1
        self._decoding += 1
        process.ask('decode', photo, self._path(photo))

  def _path(self, photo: _Photo) -> str:
    return os.path.join(self._root, photo.key)

  def _launch(self) -> None:
    """Starts a batch when one is full, or nothing will fill it."""
    if self._pool._signal or not self._batch:
      return
    while self._ready and len(self._batches) < 2:
      if len(self._ready) < self._batch and (self._decoding or self._more()):
        return
      photos = [
        self._ready.popleft() for _ in range(min(self._batch, len(self._ready)))
      ]
      pixels = [p.prepared.image for p in photos if p.prepared is not None]
      future = self._pool._device.submit(
        self._pool._compute, pixels, self._batch
      )
      future.add_done_callback(self._pool._notify)
      self._batches.append((photos, future))

  def _wait(self) -> None:
    pool = self._pool
    pipes: dict[Any, _Process] = {p.pipe: p for p in pool._processes}
    for ready in connection.wait([*pipes, pool._wake], timeout=5.0):
      if ready is pool._wake:
        pool._wake.recv(4096)
        continue
      process = pipes[ready]
      try:
        number, answer = process.pipe.recv()
      except (EOFError, ConnectionResetError, OSError):
        self._replace(process, 'crashed')
        continue
      what, photo = process.asked.popleft()
      assert photo.number == number
      process.since = time.monotonic()
      process.answers += 1
      self._answered(what, photo, answer)
    while self._batches and self._batches[0][1].done():
      photos, future = self._batches.popleft()
      self._computed(photos, future.result())
    for process in list(pool._processes):
      if process.asked and time.monotonic() - process.since > _PATIENCE:
        self._replace(process, 'timeout')

  def _answered(self, what: str, photo: _Photo, answer: Any) -> None:
    if isinstance(answer, worker_lib.Failed) and answer.fatal:
      raise ExportError(
        f'{answer.reason}; what was written before stays, the same command '
        'goes on'
      )
    if isinstance(answer, worker_lib.Failed):
      if what == 'decode':
        self._decoding -= 1
      self._finish(photo, answer)
      return
    for stage, seconds in answer.seconds.items():
      self._pool.seconds[stage] += seconds
    if what == 'decode':
      self._decoding -= 1
      photo.prepared = answer
      self._ready.append(photo)
    else:
      self._finish(photo, answer)

  def _finish(self, photo: _Photo, answer) -> None:
    self._held -= 1
    self.left -= 1
    self.finished += 1
    self._done(photo, answer)

  def _computed(self, photos: list[_Photo], results) -> None:
    for photo, *values in zip(photos, *results, strict=True):
      logits, probabilities, p_inadequate, target, raw, landmarks = values
      found = _Found(
        logits, probabilities, float(p_inadequate), int(target), raw, landmarks
      )
      photo.drawing = self._draw(photo, found)
      assert photo.prepared is not None
      # The pixels have served; a long queue mustn't hold them.
      photo.prepared = dataclasses.replace(
        photo.prepared, image=np.empty(0, np.uint8)
      )
      if photo.drawing is not None:
        self._drawings.append(photo)
        continue
      self._held -= 1
      self.left -= 1
      self.finished += 1
      if photo.holder in self._pool._processes:
        photo.holder.forget(photo.number)

  def _replace(self, process: _Process, why: str) -> None:
    """Ends a worker and goes on with another."""
    pool = self._pool
    code = process.process.poll()
    process.stop()
    code = process.process.returncode if code is None else code
    pool._processes.remove(process)
    if not process.answers:
      pool._early_deaths += 1
      if pool._early_deaths > 2 * pool._count:
        raise ExportError(
          f'the processes that decode photographs end at once (exit code {code}'
          '); their messages are above'
        )
    for i, (what, photo) in enumerate(process.asked):
      if i == 0:
        photo.attempts += 1
        if photo.attempts > 1 or why == 'timeout':
          reason = (
            f'took more than {_PATIENCE:.0f} s'
            if why == 'timeout'
            else f'the process that worked on it ended twice (exit code {code})'
          )
          if what == 'decode':
            self._decoding -= 1
          self._finish(photo, worker_lib.Failed(why, reason))
          continue
      if what == 'decode':
        self._decoding -= 1
        self._held -= 1
        self._again.appendleft(photo)
      else:
        self._drawings.append(photo)
    pool._start()


def _devices() -> int:
  from iqa_jax import devices

  return devices.local_count()
