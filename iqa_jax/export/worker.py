"""A process that decodes photographs and draws their maps.

It talks to an export through a socket whose descriptor is its argument. It
holds neither JAX nor TensorFlow, so it starts at once and what a damaged file
does to a decoder ends here. Photographs stay in its memory between decoding
and drawing, within a budget; what does not fit is decoded again.
"""

from __future__ import annotations

import dataclasses
import io
import itertools
from multiprocessing import connection
import os
import pathlib
import queue
import resource
import signal
import stat
import sys
import threading
import time
from typing import Any

import numpy as np
from PIL import Image

from iqa_jax import errors
from iqa_jax.explain import overlay, ruler
from iqa_jax.photograph import geometry, images, prepare
from iqa_jax.photograph import placement as placement_lib
from iqa_jax.photograph.placement import Placement

# Beyond the photographs kept: one being decoded at its largest, with what
# decoding, drawing and encoding need at the same time.
_WORKING_BYTES = 3 << 30


@dataclasses.dataclass(frozen=True)
class Settings:
  """What every photograph's outputs have in common.

  Attributes:
    output: the output directory.
    temporary: folder on the same disk for files that are being written.
    outputs: some of manifest.KINDS.
    size: side of the network's input.
    colors: see overlay.COLORS.
    opacity: see overlay.overlay.
    quality: of the JPEGs.
    max_side: of the overlays and contours in pixels; 0 for the original's.
    budget: bytes of decoded photographs to keep.
    field: whether the network takes the field of view too (prepare.photograph).
  """

  output: str
  temporary: str
  outputs: tuple[str, ...]
  size: int
  colors: str
  opacity: float
  quality: int
  max_side: int
  budget: int
  field: bool = False


@dataclasses.dataclass(frozen=True)
class Prepared:
  """What a worker answers to `decode`.

  Attributes:
    image: uint8 [size, size, 3 or 4], the network's input.
    width: of the upright photograph.
    height: likewise.
    field: in pixels of the upright photograph.
    affine: float64 [2, 3], input (x, y, 1) -> (x, y) of that.
    field_share: share of the input's area inside the field of view.
    source: (bytes, modification time in ns) of the file.
    seconds: by stage.
  """

  image: np.ndarray
  width: int
  height: int
  field: geometry.Field
  affine: np.ndarray
  field_share: float
  source: tuple[int, int]
  seconds: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Drawing:
  """What is to be drawn of a photograph.

  Attributes:
    name: relative path of its outputs, without ending.
    shown: float32 [h, w], see overlay.
    raw: float32 [h, w], the signed map.
    placement: where the map's cells look, see overlay.overlay.
    caption: the panel's words; its note also goes onto the overlay.
    landmarks: float [5] in pixels of the photograph, see ruler.columns.
    thumbnail: whether the contact sheet shows it.
    facts: further arrays and texts of the NPZ.
  """

  name: str
  shown: np.ndarray
  raw: np.ndarray
  placement: Placement | None
  caption: overlay.Caption
  landmarks: np.ndarray
  thumbnail: bool
  facts: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Drawn:
  """What a worker answers to `draw`.

  Attributes:
    files: kind -> (path relative to the output directory, bytes).
    evidence_in_field: share of the map's positive evidence inside the field;
      None of an empty map.
    seconds: by stage.
  """

  files: dict[str, tuple[str, int]]
  evidence_in_field: float | None
  seconds: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Failed:
  """The photograph can't be used, or (`fatal`) the outputs not be written."""

  status: str
  reason: str
  fatal: bool = False


@dataclasses.dataclass
class _Held:
  photograph: Image.Image | None
  prepared: np.ndarray
  affine: np.ndarray
  inside: np.ndarray
  field: geometry.Field
  width: int
  height: int


class Worker:
  """Decodes and draws; one photograph at a time."""

  def __init__(self, settings: Settings):
    self._settings = settings
    self._held: dict[int, _Held] = {}
    self._bytes = 0
    self._numbers = itertools.count()

  def decode(self, number: int, path: str) -> Prepared | Failed:
    """Reads a photograph, keeps it as `number`, and returns it prepared."""
    start = time.thread_time()
    try:
      status = os.stat(path)
      if not stat.S_ISREG(status.st_mode):
        # Opening a named pipe would wait for ever.
        return Failed('not_an_image', 'not a regular file')
      photograph = images.read(path)
    except images.ImageError as error:
      return Failed(error.status, error.reason)
    except FileNotFoundError:
      link = os.path.islink(path)
      return Failed('missing', 'a broken link' if link else 'no such file')
    except PermissionError:
      return Failed('permission', 'not readable by this user')
    except (OSError, ValueError) as error:
      return Failed('unreadable', str(error))
    decoded = time.thread_time()
    prepared = prepare.photograph(
      photograph.image, self._settings.size, field=self._settings.field
    )
    picture = self._picture(photograph.image)
    held = _Held(
      picture,
      prepared.image[..., :3],
      prepared.affine,
      prepared.inside,
      prepared.field,
      photograph.width,
      photograph.height,
    )
    if picture is not None:
      size = 4 * picture.width * picture.height  # as Pillow lays it out
      if self._bytes + size > self._settings.budget:
        held.photograph = None
      else:
        self._bytes += size
    self._held[number] = held
    return Prepared(
      prepared.image,
      photograph.width,
      photograph.height,
      prepared.field,
      prepared.affine,
      float(prepared.inside.mean()),
      (status.st_size, status.st_mtime_ns),
      {'decode': decoded - start, 'prepare': time.thread_time() - decoded},
    )

  def forget(self, number: int) -> None:
    """Drops a photograph that won't be drawn."""
    held = self._held.pop(number, None)
    if held is not None and held.photograph is not None:
      self._bytes -= 4 * held.photograph.width * held.photograph.height

  def _picture(self, picture: Image.Image) -> Image.Image | None:
    """Returns what is drawn on, shrunk in place; None for nothing."""
    if not self._needs_photograph():
      return None
    if self._settings.max_side:
      side = self._settings.max_side
      picture.thumbnail((side, side), Image.Resampling.BILINEAR)
    return picture

  def draw(self, number: int, path: str, drawing: Drawing) -> Drawn | Failed:
    """Writes the outputs of the photograph `number`."""
    seconds = dict.fromkeys(('decode', 'prepare', 'render', 'encode'), 0.0)
    held = self._held.get(number)
    self.forget(number)
    if held is None or (held.photograph is None and self._needs_photograph()):
      again = self._decode_again(held, path)
      if isinstance(again, Failed):
        return again
      held, seconds['decode'] = again
    files: dict[str, tuple[str, int]] = {}
    for kind, ending, make in self._pictures(held, drawing):
      start = time.thread_time()
      picture = make()
      rendered = time.thread_time()
      name = f'{kind}/{drawing.name}.{ending}'
      data = io.BytesIO()
      if isinstance(picture, dict):
        np.savez(data, **picture)
      elif kind == 'thumbnail':
        picture.save(data, 'JPEG', quality=72)
      else:
        picture.save(data, 'JPEG', quality=self._settings.quality)
      files[kind] = (name, self._write(name, data.getbuffer()))
      seconds['render'] += rendered - start
      seconds['encode'] += time.thread_time() - rendered
    return Drawn(
      files, _share(drawing.raw, held.inside, drawing.placement), seconds
    )

  def _needs_photograph(self) -> bool:
    return bool({'overlay', 'contour', 'panel'} & set(self._settings.outputs))

  def _decode_again(self, held: _Held | None, path: str):
    """Returns what is to be drawn on, whatever the budget, and the seconds."""
    start = time.thread_time()
    try:
      photograph = images.read(path)
    except images.ImageError as error:
      return Failed(error.status, error.reason)
    if held is None:
      prepared = prepare.photograph(photograph.image, self._settings.size)
      held = _Held(
        None,
        prepared.image,
        prepared.affine,
        prepared.inside,
        prepared.field,
        photograph.width,
        photograph.height,
      )
    held.photograph = self._picture(photograph.image)
    return held, time.thread_time() - start

  def _pictures(self, held: _Held, drawing: Drawing):
    """Yields (kind, file ending, function that makes it)."""
    s = self._settings
    photograph = held.photograph
    look: dict[str, Any] = {
      'placement': drawing.placement,
      'colors': s.colors,
      'opacity': s.opacity,
    }
    laid: Any = ()
    note = drawing.caption.note
    if photograph is not None:
      # Downsized pictures have their own pixels.
      stretch = np.array(
        [[photograph.width / held.width], [photograph.height / held.height]]
      )
      laid = (photograph, drawing.shown, held.affine * stretch, s.size)

    def measured(picture):
      sx, sy = picture.width / held.width, picture.height / held.height
      stretch = [sx, sy, (sx * sy) ** 0.5, sx, sy]
      marks = drawing.landmarks * stretch
      ruler.draw(picture, marks, held.field.scaled(sx, sy))
      return picture

    if 'contour' in s.outputs:
      yield (
        'contour',
        'jpg',
        lambda: (
          overlay.noted(measured(laid[0].copy()), note)
          if note
          else measured(
            overlay.contour(*laid, placement=drawing.placement, colors=s.colors)
          )
        ),
      )
    if 'panel' in s.outputs:
      yield (
        'panel',
        'jpg',
        lambda: overlay.panel(
          *laid, caption=drawing.caption, decorate=measured, **look
        ),
      )
    if 'npz' in s.outputs:
      columns = drawing.raw.shape[1]
      where = drawing.placement or placement_lib.evenly(s.size, columns)
      facts = drawing.facts | {
        'map': drawing.raw,
        'affine': held.affine,
        'prepared_size': s.size,
        'cell_offset': where.offset,
        'cell_stride': where.stride,
        'width': held.width,
        'height': held.height,
      }
      yield 'npz', 'npz', lambda: facts
    if drawing.thumbnail:
      shown = drawing.shown
      yield (
        'thumbnail',
        'jpg',
        lambda: overlay.thumbnail(
          held.prepared,
          np.zeros_like(shown) if drawing.caption.note else shown,
          **look,
        ),
      )
    # Last, because it draws on the photograph itself.
    if 'overlay' in s.outputs:
      yield (
        'overlay',
        'jpg',
        lambda: (
          overlay.noted(measured(laid[0]), note)
          if note
          else measured(overlay.overlay(*laid, **look, in_place=True))
        ),
      )

  def _write(self, name: str, data) -> int:
    """Writes an output so that it is there as a whole or not at all."""
    target = pathlib.Path(self._settings.output, name)
    temporary = pathlib.Path(
      self._settings.temporary, f'{os.getpid()}-{next(self._numbers)}'
    )
    try:
      try:
        temporary.write_bytes(data)
        os.replace(temporary, target)
      except FileNotFoundError:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(data)
        os.replace(temporary, target)
    except OSError as error:
      temporary.unlink(missing_ok=True)
      raise OutputError(f'{target} cannot be written: {error}') from error
    return len(data)


class OutputError(errors.UserError):
  """The output directory can't be written to."""


def _share(
  raw: np.ndarray, inside: np.ndarray, placement: Placement | None
) -> float | None:
  """Returns the share of the positive evidence that lies inside the field."""
  if not np.isfinite(raw).all():
    return None
  size = len(inside)
  rows, columns = (
    geometry.interpolation(
      (placement or placement_lib.evenly(size, count)).cells(
        np.arange(size) + 0.5
      ),
      count,
    )
    for count in raw.shape
  )
  positive = np.maximum(rows @ raw.astype(np.float32) @ columns.T, 0)
  total = float(positive.sum(dtype=np.float64))
  if not total > 0:
    return None
  return float((positive * inside).sum(dtype=np.float64) / total)


def _serve(pipe: connection.Connection) -> None:
  settings = pipe.recv()
  with_limit = settings.budget + _WORKING_BYTES
  # A photograph that asks for more memory fails alone.
  resource.setrlimit(resource.RLIMIT_AS, (with_limit, with_limit))
  worker = Worker(settings)
  tasks: queue.SimpleQueue = queue.SimpleQueue()

  def listen():
    # Always ready to read, so that the other end never waits in a send. Its
    # end is ours too: with nobody to answer there is nothing to finish.
    try:
      while True:
        tasks.put(pipe.recv())
    except (EOFError, OSError):
      os._exit(0)

  threading.Thread(target=listen, daemon=True).start()
  while True:
    what, number, *arguments = tasks.get()
    if what == 'forget':
      worker.forget(number)
      continue
    answer: Any
    try:
      method = worker.decode if what == 'decode' else worker.draw
      answer = method(number, *arguments)
    except OutputError as error:
      answer = Failed('output', str(error), fatal=True)
    except MemoryError:
      answer = Failed('too_large', 'out of memory')
    except Exception as error:
      answer = Failed('unreadable', f'{type(error).__name__}: {error}'[:300])
    pipe.send((number, answer))


def main() -> None:
  """Serves the socket whose descriptor is the argument, until it closes."""
  # The terminal sends Ctrl-C to all; the export decides when to stop.
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  signal.signal(signal.SIGTERM, signal.SIG_IGN)
  _serve(connection.Connection(int(sys.argv[1])))
