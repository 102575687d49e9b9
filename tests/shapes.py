"""Checks the shapes that functions state, for conftest's import hook."""

from collections.abc import Callable
import types
import typing

from beartype import beartype


def check(function: Callable) -> Callable:
  """Returns `function` checked where it states a shape, and only there.

  NumPy's arrays pass for JAX's, which takes both. mypy sees to the rest, and
  some tests hand in what is damaged on purpose.
  """
  stated = {
    name: eval(hint, function.__globals__) if isinstance(hint, str) else hint
    for name, hint in function.__annotations__.items()
    if 'np.ndarray,' in str(hint) or 'Array,' in str(hint) or _states(hint)
  }
  function.__annotations__ = {
    name: _of_any_array(hint) for name, hint in stated.items() if _states(hint)
  }
  return beartype(function)


def _states(hint: object) -> bool:
  """Whether a shape is stated somewhere in a type."""
  return hasattr(hint, 'dim_str') or any(map(_states, typing.get_args(hint)))


def _of_any_array(hint: typing.Any) -> typing.Any:
  """Returns a type with the same shapes, of arrays of any library."""
  if hasattr(hint, 'dim_str'):
    return hint.dtype[typing.Any, hint.dim_str]
  origin, inner = typing.get_origin(hint), typing.get_args(hint)
  if not inner or not _states(hint):
    return hint
  if origin in (typing.Union, types.UnionType):
    return typing.Union[tuple(map(_of_any_array, inner))]  # noqa: UP007
  return origin[tuple(map(_of_any_array, inner))]
