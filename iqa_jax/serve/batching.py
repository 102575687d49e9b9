"""Many requests, one device: photographs that wait together run together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
import concurrent.futures
import contextlib
from typing import Generic, TypeVar

T = TypeVar('T')
R = TypeVar('R')


class Full(Exception):
  """Too many photographs wait; try again later."""


class Batcher(Generic[T, R]):
  """Hands what waits to a function, a batch at a time, in one thread.

  Nobody waits for a batch to fill: what came while the last one ran is the
  next one. So a single request is answered at once, and under load batches
  grow by themselves.

  Args:
    function: from a list of items to a list of their results.
    batch_size: items at a time.
    limit: items that may wait; more are refused.
  """

  def __init__(
    self,
    function: Callable[[Sequence[T]], Sequence[R]],
    *,
    batch_size: int,
    limit: int,
  ):
    self._function = function
    self._batch_size = batch_size
    self._waiting: asyncio.Queue[tuple[T, asyncio.Future[R]]] = asyncio.Queue(
      limit
    )
    self._thread = concurrent.futures.ThreadPoolExecutor(1)
    self._task: asyncio.Task[None] | None = None

  async def __aenter__(self) -> Batcher[T, R]:
    self._task = asyncio.create_task(self._run())
    return self

  async def __aexit__(self, *unused: object) -> None:
    assert self._task is not None
    self._task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
      await self._task
    self._thread.shutdown(wait=False, cancel_futures=True)

  async def submit(self, item: T) -> R:
    """Returns the item's result.

    Raises:
      Full: too many wait.
    """
    result: asyncio.Future[R] = asyncio.get_running_loop().create_future()
    try:
      self._waiting.put_nowait((item, result))
    except asyncio.QueueFull:
      raise Full from None
    return await result

  async def _run(self) -> None:
    while True:
      batch = [await self._waiting.get()]
      while len(batch) < self._batch_size and not self._waiting.empty():
        batch.append(self._waiting.get_nowait())
      # Those whose client has gone are not computed.
      batch = [pair for pair in batch if not pair[1].done()]
      if batch:
        await self._answer(batch)

  async def _answer(self, batch: list[tuple[T, asyncio.Future[R]]]) -> None:
    loop = asyncio.get_running_loop()
    items = [item for item, _ in batch]
    try:
      results = await loop.run_in_executor(self._thread, self._function, items)
    except Exception as error:
      for _, future in batch:
        if not future.done():
          future.set_exception(error)
      return
    for (_, future), result in zip(batch, results, strict=True):
      if not future.done():
        future.set_result(result)
