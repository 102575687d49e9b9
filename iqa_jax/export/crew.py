"""The worker processes, seen from the export: asked, awaited, replaced."""

from __future__ import annotations

from collections import deque
import contextlib
import dataclasses
from multiprocessing import connection
import os
import pathlib
import socket
import subprocess
import sys
import time
from typing import Any

from iqa_jax.export import messages
from iqa_jax.export.options import ExportError

PATIENCE = 300.0  # seconds for one photograph
_CODE = 'from iqa_jax.export import worker; worker.main()'


@dataclasses.dataclass
class Photo:
  """A photograph on its way through an export.

  Attributes:
    number: by which the workers know it.
    key: see inputs.
    path: of its file.
    attempts: how often a worker ended over it.
    holder: the worker that decoded it, and keeps it.
    prepared: what came of decoding it, the pixels only until they are computed.
    drawing: what is to be drawn.
  """

  number: int
  key: str
  path: str
  attempts: int = 0
  holder: Member | None = None
  prepared: messages.Prepared | None = None
  drawing: messages.Drawing | None = None


@dataclasses.dataclass(frozen=True)
class Answer:
  """A worker has done what it was asked, or couldn't.

  Attributes:
    what: 'decode' or 'draw'.
    photo: what the task was about.
    answer: Prepared of 'decode', Drawn of 'draw', or Failed.
  """

  what: str
  photo: Photo
  answer: messages.Prepared | messages.Drawn | messages.Failed


@dataclasses.dataclass(frozen=True)
class Lost:
  """A worker ended before it answered.

  Attributes:
    what: 'decode' or 'draw'.
    photo: what the task was about.
    why: 'crashed' or 'timeout'.
    code: the process's exit code.
    begun: whether the worker was at it, rather than at what came before.
  """

  what: str
  photo: Photo
  why: str
  code: int
  begun: bool


class Member:
  """A worker process."""

  def __init__(self, settings: messages.Settings):
    ours, theirs = socket.socketpair()
    environment = dict(os.environ)
    package = str(pathlib.Path(__file__).resolve().parents[2])
    path = environment.get('PYTHONPATH')
    environment['PYTHONPATH'] = f'{package}{os.pathsep}{path}' if path else (
      package
    )  # fmt: skip
    # The network has the cores; a worker is one of several.
    environment |= {'OMP_NUM_THREADS': '1', 'OPENBLAS_NUM_THREADS': '1'}
    with theirs:
      self.process = subprocess.Popen(
        [sys.executable, '-c', _CODE, str(theirs.fileno())],
        pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        env=environment,
      )
    self.pipe = connection.Connection(ours.detach())
    self.pipe.send(settings)
    # What it was asked and has not answered, in order, and since when the
    # first of it is being done.
    self.asked: deque[tuple[str, Photo]] = deque()
    self.since = time.monotonic()
    self.answers = 0

  def ask(self, what: str, photo: Photo, *arguments: object) -> None:
    """Gives it a task, see worker.Worker."""
    if not self.asked:
      self.since = time.monotonic()
    self.asked.append((what, photo))
    # A worker that has just died is noticed when its answer is awaited.
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
      self.pipe.send((what, photo.number, photo.path, *arguments))

  def forget(self, photo: Photo) -> None:
    """Lets the worker drop a photograph that won't be drawn."""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
      self.pipe.send(('forget', photo.number))

  def answer(self) -> Answer:
    """Returns its next answer.

    Raises:
      OSError, EOFError: it has ended.
    """
    answer = self.pipe.recv()
    what, photo = self.asked.popleft()
    self.since = time.monotonic()
    self.answers += 1
    return Answer(what, photo, answer)

  def stop(self) -> int:
    """Ends the process; returns its exit code."""
    code = self.process.poll()
    self.pipe.close()
    self.process.kill()
    self.process.wait()
    return self.process.returncode if code is None else code


class Crew:
  """A number of worker processes; one that ends is replaced.

  Attributes:
    members: those that run.
  """

  def __init__(self, settings: messages.Settings, count: int):
    self.members: list[Member] = []
    self._settings = settings
    self._count = count
    self._early_deaths = 0
    self._wake, self._waker = socket.socketpair()
    self._wake.setblocking(False)
    self._waker.setblocking(False)

  def start(self) -> None:
    """Starts as many as there should be."""
    while len(self.members) < self._count:
      self.members.append(Member(self._settings))

  def stop(self) -> None:
    """Ends all."""
    for member in self.members:
      member.stop()
    self.members = []
    self._wake.close()
    self._waker.close()

  @property
  def busy(self) -> bool:
    """Whether an answer is awaited."""
    return any(member.asked for member in self.members)

  def least_busy(self) -> list[Member]:
    """Returns the members, those with the fewest tasks first."""
    return sorted(self.members, key=lambda member: len(member.asked))

  def notify(self, *unused: object) -> None:
    """Ends a `wait`; from any thread or signal handler."""
    with contextlib.suppress(BlockingIOError):
      self._waker.send(b'.')

  def wait(self) -> list[Answer | Lost]:
    """Waits for answers, for `notify`, or a few seconds.

    Raises:
      ExportError: processes end at once, one after the other.
    """
    events: list[Answer | Lost] = []
    pipes: dict[Any, Member] = {m.pipe: m for m in self.members}
    for ready in connection.wait([*pipes, self._wake], timeout=5.0):
      if ready is self._wake:
        self._wake.recv(4096)
        continue
      member = pipes[ready]
      try:
        events.append(member.answer())
      except (EOFError, OSError):
        events += self._replace(member, 'crashed')
    for member in list(self.members):
      if member.asked and time.monotonic() - member.since > PATIENCE:
        events += self._replace(member, 'timeout')
    return events

  def _replace(self, member: Member, why: str) -> list[Lost]:
    code = member.stop()
    self.members.remove(member)
    if not member.answers:
      self._early_deaths += 1
      if self._early_deaths > 2 * self._count:
        raise ExportError(
          f'the processes that decode photographs end at once (exit code {code}'
          '); their messages are above'
        )
    self.start()
    return [
      Lost(what, photo, why, code, begun=i == 0)
      for i, (what, photo) in enumerate(member.asked)
    ]
