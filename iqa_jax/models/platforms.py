"""Which of several ways to compute the same suits a platform."""

from __future__ import annotations

from collections.abc import Callable, Iterator
import contextlib
import contextvars
from typing import Any

from jax import lax

_AS_ON = contextvars.ContextVar[str | None]('as_on', default=None)


@contextlib.contextmanager
def portable(platform: str = '') -> Iterator[None]:
  """What is traced in here has nothing that is tuned for a platform.

  For formats that have no word for a choice by platform.

  Args:
    platform: has what is tuned for 'cpu', 'cuda' or 'tpu' nevertheless,
      wherever it runs.
  """
  token = _AS_ON.set(platform)
  try:
    yield
  finally:
    _AS_ON.reset(token)


def by_platform(
  default: Callable[..., Any],
  *arguments: Any,
  **tuned: Callable[..., Any],
) -> Any:
  """Returns `default` of the arguments, or what is tuned for a platform.

  Chosen when a program is lowered, for the platform that it is lowered for: no
  trace of the others is left in it, nor in its gradient.
  """
  platform = _AS_ON.get()
  if platform is not None:
    return tuned.get(platform, default)(*arguments)
  return lax.platform_dependent(*arguments, default=default, **tuned)
