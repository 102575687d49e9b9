"""The stream of photographs through decoding, network and drawing.

Worker processes (crew.py) and one thread that computes batches of one static
shape go on at once. How many photographs are on their way is bounded.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
import concurrent.futures
import contextlib
import dataclasses
import os
import signal
import threading
import time
from types import FrameType
from typing import Any, Protocol

import numpy as np

from iqa_jax.export import crew as crew_lib
from iqa_jax.export import messages
from iqa_jax.export.crew import Photo
from iqa_jax.export.options import ExportError, Interrupted


class Network(Protocol):
  """What the pool needs of a network (see model.Model)."""

  @property
  def batch_size(self) -> int:
    """Photographs a batch; once it is ready."""

  @property
  def devices(self) -> int:
    """How many share a batch; once it is ready."""

  def load(self) -> None:
    """Makes it ready; called in the thread that computes."""

  def explain(self, pixels: Sequence[np.ndarray], size: int) -> Any:
    """Returns what it says of images, computed in a batch of `size`.

    It can be indexed by their numbers.
    """


@dataclasses.dataclass(frozen=True)
class Judged:
  """The network has looked at a photograph: what is to be drawn is asked.

  Attributes:
    key: of the photograph.
    prepared: without its pixels.
    found: of Network.explain, of this photograph.
    draw: takes the drawing; where it is not called, nothing is drawn, and no
      event of this photograph follows.
  """

  key: str
  prepared: messages.Prepared
  found: Any
  photo: Photo

  def draw(self, drawing: messages.Drawing) -> None:
    """Has it drawn."""
    self.photo.drawing = drawing


@dataclasses.dataclass(frozen=True)
class Done:
  """A photograph is drawn, or failed."""

  key: str
  answer: messages.Drawn | messages.Failed


class Pool:
  """Worker processes and the thread that computes.

  Attributes:
    crew: the processes, started when the first photograph comes.
    network: what looks at photographs.
    stopped: the number of the signal that asks to stop; 0 for none.
    seconds: of processor time by stage; the network's is that of this process
      meanwhile.
  """

  def __init__(
    self, settings: messages.Settings, workers: int, network: Network
  ):
    self.crew = crew_lib.Crew(settings, workers)
    self.network = network
    self.stopped = 0
    self.seconds = dict.fromkeys(
      ('decode', 'prepare', 'network', 'render', 'encode'), 0.0
    )
    self._device = concurrent.futures.ThreadPoolExecutor(1)

  def __enter__(self) -> Pool:
    return self

  def __exit__(self, *unused: object) -> None:
    self.crew.stop()
    self._device.shutdown(wait=True, cancel_futures=True)

  def submit(
    self, function: Callable[..., object], *arguments: object
  ) -> concurrent.futures.Future:
    """Has `function` called in the thread that computes."""
    future = self._device.submit(function, *arguments)
    future.add_done_callback(self.crew.notify)
    return future

  @contextlib.contextmanager
  def stream(
    self, root: str, keys: Sequence[str]
  ) -> Iterator[Iterator[Judged | Done]]:
    """Sends photographs through; gives the events, to be worked off.

    Args:
      root: what the keys are relative to.
      keys: the photographs.

    Raises:
      Interrupted: SIGINT or SIGTERM came; what was under way is finished.
      ExportError: outputs can't be written, or workers don't start.
    """
    stream = _Stream(self, root, keys)
    with self._signals():
      yield stream.events()
      if self.stopped and stream.left:
        raise Interrupted(self.stopped, len(keys) - stream.left, len(keys))

  @contextlib.contextmanager
  def _signals(self) -> Iterator[None]:
    """Turns the first SIGINT or SIGTERM into a wish to stop."""
    if threading.current_thread() is not threading.main_thread():
      yield
      return
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
      for number, handler in before.items():
        signal.signal(number, handler)

    def note(number: int, frame: FrameType | None) -> None:
      del frame
      self.stopped = number
      self.crew.notify()
      restore()  # a second one ends at once

    for number in before:
      signal.signal(number, note)
    try:
      yield
    finally:
      restore()


class _Stream:
  """One pass of photographs through a pool.

  Attributes:
    left: how many are not finished.
  """

  def __init__(self, pool: Pool, root: str, keys: Sequence[str]):
    self.left = len(keys)
    self._pool = pool
    self._crew = pool.crew
    self._coming = (
      Photo(number, key, os.path.join(root, key))
      for number, key in enumerate(keys)
    )
    self._again: deque[Photo] = deque()  # to decode once more
    self._ready: deque[Photo] = deque()  # prepared, to be computed
    self._drawings: deque[Photo] = deque()  # computed, to be drawn
    self._batches: deque[tuple[list[Photo], concurrent.futures.Future]] = (
      deque()
    )
    self._decoding = 0
    self._held = 0  # decoded or being so, not yet drawn
    self._exhausted = False
    self._batch = 0  # photographs; 0 until the network is there

  def events(self) -> Iterator[Judged | Done]:
    if not self.left:
      return
    pool = self._pool
    self._crew.start()
    # Loads the network while the first photographs are decoded.
    loading: concurrent.futures.Future | None = pool.submit(pool.network.load)
    while True:
      if loading is not None and loading.done():
        loading.result()
        # One shape for all batches; a few photographs need no large one.
        few = 1 << max(self.left - 1, 0).bit_length()
        network = pool.network
        self._batch = min(network.batch_size, max(few, network.devices))
        loading = None
      self._feed()
      self._launch()
      if not (self._crew.busy or self._batches or self._drawings):
        if pool.stopped or (not self._ready and not self._more()):
          return
        if loading is None:
          continue
      for event in self._crew.wait():
        if isinstance(event, crew_lib.Lost):
          yield from self._lost(event)
        else:
          yield from self._answered(event)
      while self._batches and self._batches[0][1].done():
        photos, future = self._batches.popleft()
        yield from self._computed(photos, future.result())

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
    # Photographs lie with the worker that decoded them.
    for photo in list(self._drawings):
      holder = photo.holder
      if holder is None or holder not in self._crew.members:
        holder = self._crew.least_busy()[0]
      if len(holder.asked) < 2:
        self._drawings.remove(photo)
        holder.ask('draw', photo, photo.drawing)
    members = self._crew.least_busy()
    window = 3 * (self._batch or 8) + 2 * len(members)
    for member in members:
      while len(member.asked) < 2 and self._held < window:
        if self._pool.stopped or not self._more():
          return
        photo = self._again.popleft()
        photo.holder = member
        self._held += 1
        self._decoding += 1
        member.ask('decode', photo)

  def _launch(self) -> None:
    """Starts a batch when one is full, or nothing will fill it."""
    if self._pool.stopped or not self._batch:
      return
    while self._ready and len(self._batches) < 2:
      if len(self._ready) < self._batch and (self._decoding or self._more()):
        return
      photos = [
        self._ready.popleft() for _ in range(min(self._batch, len(self._ready)))
      ]
      pixels = [p.prepared.image for p in photos if p.prepared is not None]
      future = self._pool.submit(self._compute, pixels, self._batch)
      self._batches.append((photos, future))

  def _compute(self, pixels: list[np.ndarray], size: int) -> Any:
    start = time.process_time()
    found = self._pool.network.explain(pixels, size)
    self._pool.seconds['network'] += time.process_time() - start
    return found

  def _answered(self, event: crew_lib.Answer) -> Iterator[Done]:
    photo, answer = event.photo, event.answer
    if event.what == 'decode':
      self._decoding -= 1
    if isinstance(answer, messages.Failed):
      if answer.fatal:
        raise ExportError(
          f'{answer.reason}; what was written before stays, the same command '
          'goes on'
        )
      yield self._finished(photo, answer)
      return
    for stage, seconds in answer.seconds.items():
      self._pool.seconds[stage] += seconds
    if isinstance(answer, messages.Prepared):
      photo.prepared = answer
      self._ready.append(photo)
    else:
      yield self._finished(photo, answer)

  def _finished(
    self, photo: Photo, answer: messages.Drawn | messages.Failed
  ) -> Done:
    self._held -= 1
    self.left -= 1
    return Done(photo.key, answer)

  def _computed(self, photos: list[Photo], found: Any) -> Iterator[Judged]:
    for i, photo in enumerate(photos):
      assert photo.prepared is not None
      # The pixels have served; a long queue mustn't hold them.
      photo.prepared = dataclasses.replace(
        photo.prepared, image=np.empty(0, np.uint8)
      )
      yield Judged(photo.key, photo.prepared, found[i], photo)
      if photo.drawing is not None:
        self._drawings.append(photo)
        continue
      self._held -= 1
      self.left -= 1
      if photo.holder in self._crew.members:
        photo.holder.forget(photo)

  def _lost(self, event: crew_lib.Lost) -> Iterator[Done]:
    """Tries a photograph again whose worker ended, or gives it up."""
    photo = event.photo
    photo.attempts += event.begun
    if event.what == 'decode':
      self._decoding -= 1
    if event.begun and (photo.attempts > 1 or event.why == 'timeout'):
      reason = (
        f'took more than {crew_lib.PATIENCE:.0f} s'
        if event.why == 'timeout'
        else f'the process that worked on it ended twice (exit code '
        f'{event.code})'
      )
      yield self._finished(photo, messages.Failed(event.why, reason))
    elif event.what == 'decode':
      self._held -= 1
      self._again.appendleft(photo)
    else:
      self._drawings.append(photo)
