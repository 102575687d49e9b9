"""Many photographs -> maps, pictures, a manifest and a contact sheet.

What is finished goes into a journal (journal.py), from which the same command
goes on after whatever ended it. Memory doesn't grow with the number of
photographs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
import contextlib
import os
import pathlib
import shutil
import sys
import time

from absl import logging
import tqdm

from iqa_jax.aliases import Record
from iqa_jax.export import contact_sheet, manifest, messages, records, scale
from iqa_jax.export import journal as journal_lib
from iqa_jax.export import options as options_lib
from iqa_jax.export import settings as settings_lib
from iqa_jax.export.model import Model
from iqa_jax.export.options import ExportError, Options, Summary
from iqa_jax.export.pool import Done, Judged, Pool
from iqa_jax.photograph import images as images_lib
from iqa_jax.photograph import inputs


def run(options: Options, model: Model | None = None) -> Summary:
  """Exports one shard, or what is left of it.

  Args:
    options: what to do.
    model: of the same workdir, method, layer, target, placement, scaling and
      batch size; to save several exports from loading and compiling it again.

  Raises:
    InputError, ManifestError, RunDirectoryError, ExportError, InvalidValue:
      the message says what to do. What was written before stays.
    Interrupted: after SIGINT or SIGTERM; the manifest has been written.
  """
  start = time.perf_counter()
  options_lib.check(options)
  listing = inputs.find(options.images, options.root, images_lib.SUFFIXES)
  if listing.ignored:
    logging.info('%d files ignored: no images by their names', listing.ignored)
  if listing.repeated:
    logging.info('%d entries of the list are repetitions', listing.repeated)
  export = _Export(options, listing, Model(options) if model is None else model)
  with contextlib.ExitStack() as stack:
    export.open(stack)
    try:
      export.work(start)
    finally:
      # Where the disk refused, it would refuse the manifest too.
      if not isinstance(sys.exc_info()[1], ExportError):
        export.write_manifest()
      export.close()
    export.drop_gone()
    if options.num_shards == 1 and options.contact_sheet:
      export.write_sheet()
  return export.summary


def merge(options: Options) -> int:
  """Makes one manifest and one contact sheet of all shards.

  Returns:
    The number of photographs.

  Raises:
    ManifestError: a shard is unfinished.
  """
  output = pathlib.Path(options.output)
  journals, settings = journal_lib.open_finished(output, options.num_shards)
  with contextlib.ExitStack() as stack:
    for journal in journals:
      stack.enter_context(journal)
    try:
      count = manifest.write(
        output / 'manifest.csv',
        journal_lib.merged(journals),
        settings['logits'],
        settings.get('criteria', ()),
      )
    except OSError as error:
      raise ExportError(f'{output} cannot be written to: {error}') from error
    if options.contact_sheet:
      _write_sheet(
        options, lambda: journal_lib.merged(journals), settings, count
      )
  return count


class _Export:
  """One shard's export.

  Attributes:
    summary: what it did.
  """

  def __init__(self, options: Options, listing: inputs.Listing, model: Model):
    self._options = options
    self._listing = listing
    self._model = model
    self._keys = [
      key
      for key in listing.keys
      if inputs.in_shard(key, options.shard_index, options.num_shards)
    ]
    self._output = pathlib.Path(options.output)
    shard = f'shard-{options.shard_index:05d}'
    self._temporary = self._output / '.incomplete' / shard
    self._gone: list[str] = []
    self.summary = Summary(total=len(self._keys))

  def open(self, stack: contextlib.ExitStack) -> None:
    """Makes the output directory ready, and starts workers and journal."""
    options, model, listing = self._options, self._model, self._listing
    try:
      self._output.mkdir(parents=True, exist_ok=True)
      settings = settings_lib.of_workers(options, model, self._temporary)
      self._pool = stack.enter_context(
        Pool(settings, settings_lib.workers(options), model)
      )
      self._scale = scale.choose(
        options, model, self._pool, listing.root, listing.keys
      )
      self._settings = settings_lib.of_outputs(
        options, model, listing.root, self._scale.top
      )
      self._journal = stack.enter_context(
        journal_lib.Journal(
          self._output,
          options.shard_index,
          self._settings,
          overwrite=options.overwrite,
        )
      )
      self._gone = self._no_longer_named()
      shutil.rmtree(self._temporary, ignore_errors=True)
      self._temporary.mkdir(parents=True, exist_ok=True)
    except OSError as error:
      raise ExportError(
        f'{self._output} cannot be written to: {error}'
      ) from error

  def _no_longer_named(self) -> list[str]:
    """Returns the photographs of the journal whose rows are to go.

    Raises:
      ManifestError: some are still there, so this is another list.
    """
    named = set(self._keys)
    gone, there = [], []
    for key in self._journal.keys():
      if key in named:
        continue
      try:
        os.lstat(os.path.join(self._listing.root, key))
        there.append(key)
      except (FileNotFoundError, NotADirectoryError):
        gone.append(key)
      except OSError:
        pass  # can't be seen now; what is known of it stays in the journal
    if there and not self._options.overwrite:
      raise journal_lib.ManifestError(
        f'{self._output} holds {len(there)} photographs that '
        f'--images={self._options.images} does not name ({there[0]}'
        f'{", ..." if len(there) > 1 else ""}): name them too, give another '
        '--output, or --overwrite to drop them'
      )
    return gone + there

  def work(self, start: float) -> None:
    """Exports what is not complete; `start` is when the export began."""
    todo = [key for key in self._keys if not self._complete(key)]
    self.summary.skipped = len(self._keys) - len(todo)
    if self.summary.skipped:
      logging.info('%d photographs are complete already', self.summary.skipped)
    ledger = journal_lib.Ledger(self._output, self._journal)
    began = time.perf_counter()
    try:
      with (
        self._progress() as bar,
        self._pool.stream(self._listing.root, todo) as events,
      ):
        try:
          for record in self._records(events):
            if record['status'] == 'ok' and self.summary.first_s is None:
              self.summary.first_s = time.perf_counter() - start
            ledger.add(record)
            if ledger.failed:
              bar.set_postfix(not_ok=ledger.failed, refresh=False)
            bar.update()
        finally:
          self.summary.wall_s = time.perf_counter() - began
          ledger.sync()
    except OSError as error:
      raise self._journal_error(error) from error

  def _complete(self, key: str) -> bool:
    """Whether a photograph is done, and its file and outputs are unchanged."""
    if key not in self._journal:
      return False
    record = self._journal.read(key)
    if record['status'] != 'ok':
      return False  # the cause may have gone, and failing again is cheap
    try:
      source = os.stat(os.path.join(self._listing.root, key))
      if record['source'] != [source.st_size, source.st_mtime_ns]:
        return False
      return all(
        os.stat(self._output / name).st_size == size
        for name, size in record['files'].values()
      )
    except OSError:
      return False

  def _records(self, events: Iterable[Judged | Done]) -> Iterator[Record]:
    """Has drawn what is judged; yields the records of what is finished."""
    model = self._model
    share = self._sheet_share(len(self._listing.keys))
    language = self._options.language
    waiting: dict[str, Record] = {}
    for event in events:
      if isinstance(event, Judged):
        key, prepared, found = event.key, event.prepared, event.found
        record = records.judged(key, prepared, found, model, language)
        if record['status'] != 'ok':
          yield record
          continue
        waiting[key] = record
        thumbnail = self._options.contact_sheet and inputs.sampled(key, share)
        event.draw(
          records.drawing(
            record, prepared, found, model, scale=self._scale,
            thumbnail=thumbnail,
            language=language,
          )
        )  # fmt: skip
        continue
      known = waiting.pop(event.key, {})
      if isinstance(event.answer, messages.Failed):
        yield records.failed(event.key, event.answer, model)
      else:
        yield records.drawn(known, event.answer)

  def _sheet_share(self, count: int) -> float:
    return self._options.sheet_limit / max(count, 1)

  def _progress(self) -> tqdm.tqdm:
    options = self._options
    return tqdm.tqdm(
      total=len(self._keys),
      initial=self.summary.skipped,
      unit='photo',
      desc=f'shard {options.shard_index}/{options.num_shards}'
      if options.num_shards > 1
      else None,
      disable=not options.progress,
      mininterval=0.2 if sys.stderr.isatty() else 10.0,
    )

  def write_manifest(self) -> None:
    """Writes a row for every photograph, reached or not."""
    index, shards = self._options.shard_index, self._options.num_shards
    name = 'manifest.csv'
    if shards > 1:
      name = f'manifest-{index:05d}-of-{shards:05d}.csv'
    statuses: dict[str, int] = {}

    def rows() -> Iterator[Record]:
      for key in self._keys:
        row = {'path': key, 'status': 'pending', 'reason': 'not reached yet'}
        if key in self._journal:
          row = self._journal.read(key)
        statuses[row['status']] = statuses.get(row['status'], 0) + 1
        yield row

    path = self._output / name
    try:
      manifest.write(path, rows(), self._model.outputs, self._model.criteria)
    except OSError as error:
      raise ExportError(
        f'{path} cannot be written: {error}; the journal holds what is done, '
        'the same command goes on'
      ) from error
    self.summary.statuses = statuses

  def close(self) -> None:
    """Removes what is no output."""
    self.summary.seconds = dict(self._pool.seconds)
    shutil.rmtree(self._temporary, ignore_errors=True)
    with contextlib.suppress(OSError):
      self._temporary.parent.rmdir()

  def drop_gone(self) -> None:
    """Removes what no row of the manifest names, and ends the journal."""
    try:
      if self._gone:
        logging.info(
          '%d photographs are no longer there, or no longer named (%s, ...): '
          'their rows and pictures are removed',
          len(self._gone),
          self._gone[0],
        )
      for key in self._gone:
        journal_lib.remove(self._output, self._journal.read(key))
      self._journal.forget(self._gone)
      self._journal.finish()
    except OSError as error:
      raise self._journal_error(error) from error

  def _journal_error(self, error: OSError) -> ExportError:
    return ExportError(
      f'the journal in {self._output} cannot be written: {error}; what is in '
      'it stays, the same command goes on'
    )

  def write_sheet(self) -> None:
    """Writes the contact sheet of this only shard."""
    known = [key for key in self._keys if key in self._journal]
    _write_sheet(
      self._options,
      lambda: map(self._journal.read, known),
      self._settings,
      len(known),
    )


def _write_sheet(
  options: Options,
  rows: Callable[[], Iterable[Record]],
  settings: Record,
  count: int,
) -> None:
  """Writes the contact sheet of `count` photographs."""
  try:
    contact_sheet.write(
      options.output,
      rows,
      outputs=settings['logits'],
      target=settings['target'],
      scaling=settings['scaling'],
      colors=settings['colors'],
      page=options.sheet_page,
      share=options.sheet_limit / max(count, 1),
    )
  except OSError as error:
    raise ExportError(
      f'the contact sheet cannot be written: {error}; the pictures and the '
      'manifest are complete'
    ) from error
