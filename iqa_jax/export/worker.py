"""A process that decodes photographs and draws their maps.

It talks to an export through a socket whose descriptor is its argument. It
holds neither JAX nor TensorFlow, so it starts at once and what a damaged file
does to a decoder ends here. Photographs stay in its memory between decoding
and drawing, within a budget; what does not fit is decoded again.
"""

from __future__ import annotations

import errno
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

import numpy as np
from PIL import Image

from iqa_jax import errors
from iqa_jax.export import manifest, pictures
from iqa_jax.export.messages import Drawing, Drawn, Failed, Prepared, Settings
from iqa_jax.judging import fundus
from iqa_jax.photograph import geometry, images, prepare
from iqa_jax.photograph import placement as placement_lib
from iqa_jax.photograph.placement import Placement

# Beyond the photographs kept: one being decoded at its largest, with what
# decoding, drawing and encoding need at the same time.
_WORKING_BYTES = 3 << 30


class Worker:
  """Decodes and draws; one photograph at a time."""

  def __init__(self, settings: Settings):
    self._settings = settings
    self._held: dict[int, pictures.Held] = {}
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
      if isinstance(error, OSError) and error.errno == errno.ELOOP:
        return Failed('missing', 'a link that leads to itself')
      return Failed('unreadable', str(error))
    decoded = time.thread_time()
    prepared = prepare.photograph(
      photograph.image, self._settings.size, field=self._settings.field
    )
    picture = self._picture(photograph.image)
    held = _held(photograph, prepared, picture)
    if picture is not None:
      size = 4 * picture.width * picture.height  # as Pillow lays it out
      if self._bytes + size > self._settings.budget:
        held.photograph = None
      else:
        self._bytes += size
    self._held[number] = held
    looks = None
    if self._settings.check_fundus:
      looks = fundus.look(
        prepared.image[..., :3], prepared.inside, self._settings.familiar
      )
    return Prepared(
      prepared.image,
      photograph.width,
      photograph.height,
      prepared.field,
      prepared.affine,
      float(prepared.inside.mean()),
      (status.st_size, status.st_mtime_ns),
      {'decode': decoded - start, 'prepare': time.thread_time() - decoded},
      looks,
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
    made = pictures.Pictures(held, drawing, self._settings)
    # The overlay last, because it draws on the photograph itself.
    for kind in ('contour', 'panel', 'npz', manifest.THUMBNAIL, 'overlay'):
      thumbnail = kind == manifest.THUMBNAIL
      wanted = (
        drawing.thumbnail if thumbnail else kind in self._settings.outputs
      )
      if not wanted:
        continue
      start = time.thread_time()
      picture = getattr(made, kind)()
      rendered = time.thread_time()
      ending = 'npz' if kind == 'npz' else 'jpg'
      name = f'{kind}/{drawing.name}.{ending}'
      data = io.BytesIO()
      if isinstance(picture, dict):
        np.savez(data, **picture)
      else:
        quality = 72 if thumbnail else self._settings.quality
        picture.save(data, 'JPEG', quality=quality)
      files[kind] = (name, self._write(name, data.getbuffer()))
      seconds['render'] += rendered - start
      seconds['encode'] += time.thread_time() - rendered
    return Drawn(
      files, _share(drawing.raw, held.inside, drawing.placement), seconds
    )

  def _needs_photograph(self) -> bool:
    return bool({'overlay', 'contour', 'panel'} & set(self._settings.outputs))

  def _decode_again(
    self, held: pictures.Held | None, path: str
  ) -> Failed | tuple[pictures.Held, float]:
    """Returns what is to be drawn on, whatever the budget, and the seconds."""
    start = time.thread_time()
    try:
      photograph = images.read(path)
    except images.ImageError as error:
      return Failed(error.status, error.reason)
    if held is None:
      prepared = prepare.photograph(photograph.image, self._settings.size)
      held = _held(photograph, prepared)
    held.photograph = self._picture(photograph.image)
    return held, time.thread_time() - start

  def _write(self, name: str, data: bytes | memoryview) -> int:
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


def _held(
  photograph: images.Photograph,
  prepared: geometry.Prepared,
  picture: Image.Image | None = None,
) -> pictures.Held:
  return pictures.Held(
    picture,
    prepared.image[..., :3],
    prepared.affine,
    prepared.inside,
    prepared.field,
    photograph.width,
    photograph.height,
  )


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

  def listen() -> None:
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
    answer: Prepared | Drawn | Failed
    try:
      method = worker.decode if what == 'decode' else worker.draw
      answer = method(number, *arguments)
    except OutputError as error:
      answer = Failed('output', str(error), fatal=True)
    except MemoryError:
      answer = Failed('too_large', 'out of memory')
    except Exception as error:
      answer = Failed('unreadable', f'{type(error).__name__}: {error}'[:300])
    pipe.send(answer)


def main() -> None:
  """Serves the socket whose descriptor is the argument, until it closes."""
  # The terminal sends Ctrl-C to all; the export decides when to stop.
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  signal.signal(signal.SIGTERM, signal.SIG_IGN)
  _serve(connection.Connection(int(sys.argv[1])))
