"""JAX's primitives as ONNX nodes: one function each, named as JAX names it.

Those that our networks, heads and maps are made of.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import math
from typing import Any

import numpy as np

from iqa_jax.runtimes import onnx_windows
from iqa_jax.runtimes.onnx_builder import (
  Builder,
  Equation,
  Unsupported,
  Value,
  type_of,
)

_SIMPLE = {
  'abs': 'Abs',
  'add': 'Add',
  'add_any': 'Add',
  'and': 'And',
  'copy': 'Identity',
  'div': 'Div',
  'eq': 'Equal',
  'exp': 'Exp',
  'ge': 'GreaterOrEqual',
  'gt': 'Greater',
  'le': 'LessOrEqual',
  'log': 'Log',
  'logistic': 'Sigmoid',
  'lt': 'Less',
  'min': 'Min',
  'mul': 'Mul',
  'neg': 'Neg',
  'not': 'Not',
  'or': 'Or',
  'pow': 'Pow',
  'sign': 'Sign',
  'sqrt': 'Sqrt',
  'stop_gradient': 'Identity',
  'sub': 'Sub',
  'tanh': 'Tanh',
}
_REDUCTIONS = {
  'reduce_sum': 'ReduceSum',
  'reduce_max': 'ReduceMax',
  'reduce_min': 'ReduceMin',
  'reduce_prod': 'ReduceProd',
}
_END = np.iinfo(np.int64).max


def translate(
  graph: Builder, eqn: Equation, values: Sequence[Value]
) -> list[Value]:
  """Adds the nodes of an equation of a jaxpr; returns its results.

  Args:
    graph: to which they are added.
    eqn: the equation.
    values: of its arguments.

  Raises:
    Unsupported: there is no translation.
  """
  name = eqn.primitive.name
  if name in _SIMPLE:
    return [graph.elementwise(_SIMPLE[name], *values)]
  if name not in _TRANSLATED:
    raise Unsupported(f'{name} has no translation to ONNX')
  found = _TRANSLATED[name](graph, eqn, *values)
  return found if isinstance(found, list) else [found]


def _reduce(graph: Builder, eqn: Equation, x: Value) -> Value:
  if (pooled := onnx_windows.pooled_blocks(graph, eqn, x)) is not None:
    return pooled
  op = _REDUCTIONS[eqn.primitive.name]
  shape, axes = [*eqn.invars[0].aval.shape], sorted(eqn.params['axes'])
  if len(shape) <= 5 or 0 in axes:
    return graph.add(op, x, np.asarray(axes, np.int64), keepdims=0)
  # OpenVINO has no fast program for more than five axes. One axis after
  # another, each of them the middle one of three.
  for axis in reversed(axes):
    three = [-1, shape[axis], math.prod(shape[axis + 1 :])]
    x = graph.add('Reshape', x, np.asarray(three, np.int64))
    x = graph.add(op, x, np.asarray([1], np.int64), keepdims=0)
    del shape[axis]
  return _reshape(graph, eqn, x)


def _like(value: Any, number: float) -> np.ndarray:
  return np.asarray(number, value.aval.dtype)


def _ne(graph: Builder, eqn: Equation, x: Value, y: Value) -> Value:
  return graph.add('Not', graph.add('Equal', x, y))


def _max(graph: Builder, eqn: Equation, x: Value, y: Value) -> Value:
  shape = eqn.outvars[0].aval.shape
  left, right = eqn.invars
  for zero, other, var in ((x, y, right), (y, x, left)):
    if isinstance(zero, np.ndarray) and not zero.any():
      if var.aval.shape == shape:
        # Runtimes compute it with the convolution before it.
        return graph.elementwise('Relu', other)
  return graph.elementwise('Max', x, y)


def _rsqrt(graph: Builder, eqn: Equation, x: Value) -> Value:
  return graph.add('Reciprocal', graph.add('Sqrt', x))


def _square(graph: Builder, eqn: Equation, x: Value) -> Value:
  return graph.add('Mul', x, x)


def _integer_pow(graph: Builder, eqn: Equation, x: Value) -> Value:
  power = _like(eqn.outvars[0], eqn.params['y'])
  return graph.add('Pow', x, power)


def _log1p(graph: Builder, eqn: Equation, x: Value) -> Value:
  # ONNX has none: Kahan's, exact where 1 + x rounds to 1.
  one = _like(eqn.outvars[0], 1)
  sum_ = graph.add('Add', x, one)
  less = graph.add('Sub', sum_, one)
  tiny = graph.add('Equal', less, _like(eqn.outvars[0], 0))
  safe = graph.add('Where', tiny, one, less)
  ratio = graph.add('Div', x, safe)
  return graph.add(
    'Where', tiny, x, graph.add('Mul', graph.add('Log', sum_), ratio)
  )


def _expm1(graph: Builder, eqn: Equation, x: Value) -> Value:
  # ONNX has none; exact for small x: 2 tanh(x / 2) / (1 - tanh(x / 2)).
  like = eqn.outvars[0]
  half = graph.add('Tanh', graph.add('Mul', x, _like(like, 0.5)))
  rest = graph.add('Sub', _like(like, 1), half)
  found = graph.add('Div', graph.add('Mul', half, _like(like, 2)), rest)
  direct = graph.add('Sub', graph.add('Exp', x), _like(like, 1))
  small = graph.add('Less', graph.add('Abs', x), _like(like, 1))
  return graph.add('Where', small, found, direct)


def _is_finite(graph: Builder, eqn: Equation, x: Value) -> Value:
  odd = graph.add('Or', graph.add('IsNaN', x), graph.add('IsInf', x))
  return graph.add('Not', odd)


def _select_n(
  graph: Builder, eqn: Equation, which: Value, *cases: Value
) -> Value:
  if len(cases) != 2 or eqn.invars[0].aval.dtype != bool:
    raise Unsupported('a choice among more than two')
  return graph.elementwise('Where', which, cases[1], cases[0])


def _convert_element_type(graph: Builder, eqn: Equation, x: Value) -> Value:
  return graph.add('Cast', x, to=type_of(eqn.params['new_dtype']))


def _reshape(graph: Builder, eqn: Equation, x: Value) -> Value:
  shape = [d if isinstance(d, int) else -1 for d in eqn.outvars[0].aval.shape]
  name = graph.add('Reshape', x, np.asarray(shape, np.int64))
  graph.reshaped[name] = x, tuple(eqn.invars[0].aval.shape)
  return name


def _broadcast_in_dim(
  graph: Builder, eqn: Equation, x: Value, *unused: Value
) -> Value:
  shape = eqn.outvars[0].aval.shape
  lifted: list[Any] = [1] * len(shape)
  for axis, size in zip(
    eqn.params['broadcast_dimensions'], eqn.invars[0].aval.shape, strict=True
  ):
    lifted[axis] = size
  x = graph.add('Reshape', x, graph.shape(lifted))
  if tuple(lifted) == tuple(shape):
    return x
  return graph.add('Expand', x, graph.shape(shape))


def _transpose(graph: Builder, eqn: Equation, x: Value) -> Value:
  return graph.transpose(x, list(eqn.params['permutation']))


def _concatenate(graph: Builder, eqn: Equation, *parts: Value) -> Value:
  return graph.add('Concat', *parts, axis=eqn.params['dimension'])


def _stack(graph: Builder, eqn: Equation, *parts: Value) -> Value:
  axis = eqn.params['axis']
  lifted = [
    graph.add('Unsqueeze', part, np.asarray([axis], np.int64)) for part in parts
  ]
  return graph.add('Concat', *lifted, axis=axis)


def _split(graph: Builder, eqn: Equation, x: Value) -> list[Value]:
  sizes, axis = eqn.params['sizes'], np.asarray([eqn.params['axis']])
  ends = np.cumsum(sizes)
  return [
    graph.add('Slice', x, np.asarray([end - size]), np.asarray([end]), axis)
    for size, end in zip(sizes, ends, strict=True)
  ]


def _rev(graph: Builder, eqn: Equation, x: Value) -> Value:
  axes = np.asarray(eqn.params['dimensions'], np.int64)
  first, last = np.full_like(axes, -1), np.full_like(axes, -_END)
  return graph.add('Slice', x, first, last, axes, first)


def _slice(graph: Builder, eqn: Equation, x: Value) -> Value:
  starts, limits = eqn.params['start_indices'], eqn.params['limit_indices']
  strides = eqn.params['strides'] or (1,) * len(starts)
  cut = [
    (axis, start, limit, stride)
    for axis, (start, limit, stride, size) in enumerate(
      zip(starts, limits, strides, eqn.invars[0].aval.shape, strict=True)
    )
    if isinstance(size, int) and (start, limit, stride) != (0, size, 1)
  ]
  if not cut:
    return x
  axes, first, last, step = (
    np.asarray(column, np.int64) for column in zip(*cut, strict=True)
  )
  return graph.add('Slice', x, first, last, axes, step)


def _pad(graph: Builder, eqn: Equation, x: Value, value: Value) -> Value:
  widths = eqn.params['padding_config']
  if any(inner for _, _, inner in widths):
    raise Unsupported('padding between elements')
  pads = [low for low, _, _ in widths] + [high for _, high, _ in widths]
  return graph.add('Pad', x, np.asarray(pads, np.int64), value)


def _gather(graph: Builder, eqn: Equation, x: Value, indices: Value) -> Value:
  """Picks along one axis by indices that are known."""
  numbers, shape = eqn.params['dimension_numbers'], eqn.invars[0].aval.shape
  if isinstance(indices, str) or len(numbers.start_index_map) != 1:
    raise Unsupported('a choice by indices that are not known')
  (axis,) = numbers.start_index_map
  size = eqn.params['slice_sizes'][axis]
  # Out of bounds NumPy's negative ones are meant no more: jnp resolved them.
  picked = np.clip(indices[..., 0], 0, shape[axis] - size).astype(np.int64)
  if tuple(numbers.collapsed_slice_dims) != (axis,):
    if picked.ndim:
      raise Unsupported('several slices at once')
    picked = picked + np.arange(size)
    return graph.add('Gather', x, picked, axis=axis)
  x = graph.add('Gather', x, picked, axis=axis)
  # ONNX puts the indices' axes where the axis was.
  rank = len(shape) - 1 + picked.ndim
  offsets = list(numbers.offset_dims)
  order = [d for d in range(rank) if d not in offsets]
  now = [*offsets[:axis], *order, *offsets[axis:]]
  return graph.transpose(x, list(np.argsort(now)))


def _scatter_add(
  graph: Builder, eqn: Equation, operand: Value, indices: Value, updates: Value
) -> Value:
  """The gradient of `_gather`: a product with where each value belongs."""
  numbers = eqn.params['dimension_numbers']
  axes = numbers.scatter_dims_to_operand_dims
  if isinstance(indices, str) or len(axes) != 1 or indices.ndim > 2:
    raise Unsupported('a sum by indices that are not known')
  (axis,) = axes
  shape = eqn.invars[0].aval.shape
  places = np.atleast_1d(indices[..., 0])
  window = list(numbers.update_window_dims)
  if tuple(numbers.inserted_window_dims) != (axis,):
    if indices.ndim > 1:
      raise Unsupported('several slices at once')
    places = places + np.arange(eqn.invars[2].aval.shape[window[axis]])
  elif indices.ndim == 1:
    updates = graph.add('Unsqueeze', updates, np.asarray([axis]))
  else:
    (own,) = set(range(len(shape))) - set(window)
    perm = [*window[:axis], own, *window[axis:]]
    updates = graph.transpose(updates, perm)
  belongs = np.eye(shape[axis], dtype=eqn.invars[0].aval.dtype)[places]
  letters = 'abcdefgh'[: len(shape)]
  out = letters.replace(letters[axis], 'z')
  equation = f'{letters},{letters[axis]}z->{out}'
  moved = graph.add('Einsum', updates, belongs, equation=equation)
  return graph.add('Add', operand, moved)


def _argmax(graph: Builder, eqn: Equation, x: Value) -> Value:
  (axis,) = eqn.params['axes']
  found = graph.add('ArgMax', x, axis=axis, keepdims=0)
  return graph.add('Cast', found, to=type_of(eqn.params['index_dtype']))


def _dot_general(graph: Builder, eqn: Equation, x: Value, y: Value) -> Value:
  (left, right), (left_batch, right_batch) = eqn.params['dimension_numbers']
  letters = iter('abcdefghijklmnopqrstuvwxyz')
  one = [next(letters) for _ in eqn.invars[0].aval.shape]
  two = [next(letters) for _ in eqn.invars[1].aval.shape]
  for i, j in [*zip(left, right), *zip(left_batch, right_batch)]:  # noqa: B905
    two[j] = one[i]
  out = [one[i] for i in left_batch]
  out += [c for i, c in enumerate(one) if i not in (*left, *left_batch)]
  out += [c for j, c in enumerate(two) if j not in (*right, *right_batch)]
  equation = f'{"".join(one)},{"".join(two)}->{"".join(out)}'
  return graph.add('Einsum', x, y, equation=equation)


_TRANSLATED: dict[str, Callable[..., Any]] = {
  'argmax': _argmax,
  'broadcast_in_dim': _broadcast_in_dim,
  'concatenate': _concatenate,
  'conv_general_dilated': onnx_windows.conv_general_dilated,
  'convert_element_type': _convert_element_type,
  'dot_general': _dot_general,
  'expand_dims': _reshape,
  'expm1': _expm1,
  'gather': _gather,
  'integer_pow': _integer_pow,
  'is_finite': _is_finite,
  'log1p': _log1p,
  'max': _max,
  'ne': _ne,
  'pad': _pad,
  'reduce_window_max': onnx_windows.reduce_window_max,
  'reshape': _reshape,
  'rev': _rev,
  'rsqrt': _rsqrt,
  'scatter-add': _scatter_add,
  'select_and_scatter_add': onnx_windows.select_and_scatter_add,
  'select_n': _select_n,
  'slice': _slice,
  'split': _split,
  'square': _square,
  'squeeze': _reshape,
  'stack': _stack,
  'transpose': _transpose,
  **dict.fromkeys(_REDUCTIONS, _reduce),
}
