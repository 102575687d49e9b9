"""Checks the shapes that functions state, for conftest's import hook."""

from collections.abc import Callable
import re

from beartype import beartype

_STATED = re.compile(r'\b(Bool|Float|Integer|Real|Shaped|UInt8)\[')


def check(function: Callable) -> Callable:
  """Returns `function` checked where it states a shape, and only there.

  mypy sees to the rest, and some tests hand in what is damaged on purpose.
  """
  function.__annotations__ = {
    name: stated
    for name, stated in function.__annotations__.items()
    if _STATED.search(stated if isinstance(stated, str) else repr(stated))
  }
  return beartype(function)
