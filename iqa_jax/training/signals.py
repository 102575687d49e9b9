"""SIGTERM and SIGINT while training: noted, and heeded between two steps."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

from absl import logging
import jax

from iqa_jax import errors


class Interrupted(errors.Interrupted):
  """A signal stopped the run after its state was saved."""

  def __init__(self, signal_number: int, step: int):
    super().__init__(
      signal_number, f'training saved at step {step}; the same command resumes'
    )


class Signals:
  """Notes SIGTERM and SIGINT while training; a second one acts as before."""

  def __init__(self) -> None:
    self.received = 0
    self._before: dict[int, Any] = {}

  def alone(self) -> bool:
    """Returns whether to stop at once: no other process must agree."""
    return bool(self.received) and jax.process_count() == 1

  def __enter__(self) -> Signals:
    if threading.current_thread() is threading.main_thread():
      for number in (signal.SIGTERM, signal.SIGINT):
        self._before[number] = signal.signal(number, self._note)
    return self

  def __exit__(self, *_: object) -> None:
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def _note(self, number: int, _: FrameType | None) -> None:
    self.received = number
    logging.warning(
      '%s: saving after the current step; once more ends at once',
      signal.Signals(number).name,
    )
    signal.signal(number, self._before[number])
