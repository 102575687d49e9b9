"""Finished photographs on their way into the journal, many at a time."""

from __future__ import annotations

import pathlib
import time

from iqa_jax.export import journal as journal_lib
from iqa_jax.export import records

_SYNC_SECONDS = 1.0  # between writes of the journal


class Ledger:
  """Brings finished records to the journal, many at a time.

  Attributes:
    failed: how many were not ok.
  """

  def __init__(self, output: pathlib.Path, journal: journal_lib.Journal):
    self.failed = 0
    self._output = output
    self._journal = journal
    self._finished: list[records.Record] = []
    self._synced = time.perf_counter()

  def add(self, record: records.Record) -> None:
    """Takes a finished photograph's record."""
    self.failed += record['status'] != 'ok'
    key = record['path']
    before = self._journal.read(key) if key in self._journal else {}
    if record != before:
      self._finished.append(record)
    if record['status'] != 'ok':
      journal_lib.remove(self._output, before)
    if time.perf_counter() - self._synced > _SYNC_SECONDS:
      self.sync()

  def sync(self) -> None:
    """Writes what is finished to the journal."""
    finished, self._finished = self._finished, []
    self._journal.append(finished)
    self._synced = time.perf_counter()
