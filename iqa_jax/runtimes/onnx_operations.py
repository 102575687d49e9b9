"""JAX's primitives as ONNX nodes: one function each, named as JAX names it.

Those that our networks, heads and maps are made of.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from iqa_jax.runtimes.onnx_builder import Builder, Unsupported, Value, type_of

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


def translate(graph: Builder, eqn: Any, values: Sequence[Value]) -> list[Value]:
  """Adds the nodes of an equation of a jaxpr; returns its results.

  Args:
    graph: to which they are added.
    eqn: the equation.
    values: of its arguments.

  Raises:
    Unsupported: there is no translation.
  """
  name, params = eqn.primitive.name, eqn.params
  if name in _SIMPLE:
    return [graph.elementwise(_SIMPLE[name], *values)]
  if name in _REDUCTIONS:
    axes = np.asarray(params['axes'], np.int64)
    return [graph.add(_REDUCTIONS[name], *values, axes, keepdims=0)]
  if name not in _TRANSLATED:
    raise Unsupported(f'{name} has no translation to ONNX')
  found = _TRANSLATED[name](graph, eqn, *values)
  return found if isinstance(found, list) else [found]


def _like(value: Any, number: float) -> np.ndarray:
  return np.asarray(number, value.aval.dtype)


def _ne(graph: Builder, eqn: Any, x: Value, y: Value) -> str:
  return graph.add('Not', graph.add('Equal', x, y))


def _max(graph: Builder, eqn: Any, x: Value, y: Value) -> str:
  for one, other in ((x, y), (y, x)):
    if isinstance(one, np.ndarray) and not one.any():
      # Runtimes compute it with the convolution before it.
      if (
        eqn.invars[0 if other is x else 1].aval.shape
        == eqn.outvars[0].aval.shape
      ):
        return graph.elementwise('Relu', other)
  return graph.elementwise('Max', x, y)


def _rsqrt(graph: Builder, eqn: Any, x: Value) -> str:
  return graph.add('Reciprocal', graph.add('Sqrt', x))


def _square(graph: Builder, eqn: Any, x: Value) -> str:
  return graph.add('Mul', x, x)


def _integer_pow(graph: Builder, eqn: Any, x: Value) -> str:
  power = _like(eqn.outvars[0], eqn.params['y'])
  return graph.add('Pow', x, power)


def _log1p(graph: Builder, eqn: Any, x: Value) -> str:
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


def _expm1(graph: Builder, eqn: Any, x: Value) -> str:
  # ONNX has none; exact for small x: 2 tanh(x / 2) / (1 - tanh(x / 2)).
  like = eqn.outvars[0]
  half = graph.add('Tanh', graph.add('Mul', x, _like(like, 0.5)))
  rest = graph.add('Sub', _like(like, 1), half)
  found = graph.add('Div', graph.add('Mul', half, _like(like, 2)), rest)
  direct = graph.add('Sub', graph.add('Exp', x), _like(like, 1))
  small = graph.add('Less', graph.add('Abs', x), _like(like, 1))
  return graph.add('Where', small, found, direct)


def _is_finite(graph: Builder, eqn: Any, x: Value) -> str:
  odd = graph.add('Or', graph.add('IsNaN', x), graph.add('IsInf', x))
  return graph.add('Not', odd)


def _select_n(graph: Builder, eqn: Any, which: Value, *cases: Value) -> str:
  if len(cases) != 2 or eqn.invars[0].aval.dtype != bool:
    raise Unsupported('a choice among more than two')
  return graph.elementwise('Where', which, cases[1], cases[0])


def _convert_element_type(graph: Builder, eqn: Any, x: Value) -> str:
  return graph.add('Cast', x, to=type_of(eqn.params['new_dtype']))


def _reshape(graph: Builder, eqn: Any, x: Value) -> str:
  shape = [d if isinstance(d, int) else -1 for d in eqn.outvars[0].aval.shape]
  return graph.add('Reshape', x, np.asarray(shape, np.int64))


def _broadcast_in_dim(
  graph: Builder, eqn: Any, x: Value, *unused: Value
) -> str:
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


def _transpose(graph: Builder, eqn: Any, x: Value) -> str:
  return graph.transpose(x, list(eqn.params['permutation']))


def _concatenate(graph: Builder, eqn: Any, *parts: Value) -> str:
  return graph.add('Concat', *parts, axis=eqn.params['dimension'])


def _stack(graph: Builder, eqn: Any, *parts: Value) -> str:
  axis = eqn.params['axis']
  lifted = [
    graph.add('Unsqueeze', part, np.asarray([axis], np.int64)) for part in parts
  ]
  return graph.add('Concat', *lifted, axis=axis)


def _split(graph: Builder, eqn: Any, x: Value) -> list[str]:
  sizes, axis = eqn.params['sizes'], np.asarray([eqn.params['axis']])
  ends = np.cumsum(sizes)
  return [
    graph.add('Slice', x, np.asarray([end - size]), np.asarray([end]), axis)
    for size, end in zip(sizes, ends, strict=True)
  ]


def _rev(graph: Builder, eqn: Any, x: Value) -> str:
  axes = np.asarray(eqn.params['dimensions'], np.int64)
  first, last = np.full_like(axes, -1), np.full_like(axes, -_END)
  return graph.add('Slice', x, first, last, axes, first)


def _slice(graph: Builder, eqn: Any, x: Value) -> Value:
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


def _pad(graph: Builder, eqn: Any, x: Value, value: Value) -> str:
  widths = eqn.params['padding_config']
  if any(inner for _, _, inner in widths):
    raise Unsupported('padding between elements')
  pads = [low for low, _, _ in widths] + [high for _, high, _ in widths]
  return graph.add('Pad', x, np.asarray(pads, np.int64), value)


def _gather(graph: Builder, eqn: Any, x: Value, indices: Value) -> str:
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
  graph: Builder, eqn: Any, operand: Value, indices: Value, updates: Value
) -> str:
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


def _argmax(graph: Builder, eqn: Any, x: Value) -> str:
  (axis,) = eqn.params['axes']
  found = graph.add('ArgMax', x, axis=axis, keepdims=0)
  return graph.add('Cast', found, to=type_of(eqn.params['index_dtype']))


def _dot_general(graph: Builder, eqn: Any, x: Value, y: Value) -> str:
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


def _conv_general_dilated(
  graph: Builder, eqn: Any, x: Value, kernel: np.ndarray
) -> str:
  p = eqn.params
  if any(d != 1 for d in p['lhs_dilation']) or p['batch_group_count'] != 1:
    raise Unsupported("a convolution's gradient")
  into, weights, out = p['dimension_numbers']
  before, after = zip(*p['padding'], strict=True)
  y = graph.add(
    'Conv',
    graph.transpose(x, list(into)),
    np.ascontiguousarray(np.transpose(kernel, weights)),
    strides=list(p['window_strides']),
    pads=[*before, *after],
    dilations=list(p['rhs_dilation']),
    group=p['feature_group_count'],
  )
  return graph.transpose(y, list(np.argsort(out)))


def _reduce_window_max(graph: Builder, eqn: Any, x: Value) -> str:
  window, strides = _windows(eqn.params)
  before, after = zip(*eqn.params['padding'], strict=True)
  y = graph.add(
    'MaxPool',
    graph.transpose(x, [0, 3, 1, 2]),
    kernel_shape=window,
    strides=strides,
    pads=[*before[1:3], *after[1:3]],
  )
  return graph.transpose(y, [0, 2, 3, 1])


def _windows(params: Mapping[str, Any]) -> tuple[list[int], list[int]]:
  """Returns height and width of windows, and their strides."""
  window, strides = params['window_dimensions'], params['window_strides']
  if len(window) != 4 or window[0] != 1 or window[3] != 1:
    raise Unsupported('windows over the batch or channels')
  return list(window[1:3]), list(strides[1:3])


def _select_and_scatter_add(
  graph: Builder, eqn: Any, source: Value, operand: Value
) -> str:
  """The gradient of a maximum of windows that do not overlap.

  In words that every runtime knows; of equal values the first gets it, as in
  XLA.
  """
  (rows, columns), strides = _windows(eqn.params)
  if strides != [rows, columns] or any(
    sum(pair) for pair in eqn.params['padding']
  ):
    raise Unsupported('the gradient of a maximum of windows that overlap')
  _, height, width, channels = eqn.invars[1].aval.shape
  high, wide = eqn.invars[0].aval.shape[1:3]
  whole = np.asarray([high * rows, wide * columns])
  x = graph.add('Slice', operand, np.zeros_like(whole), whole, np.array([1, 2]))
  split = np.asarray([-1, high, rows, wide, columns, channels])
  x = graph.add('Reshape', x, split)
  x = graph.transpose(x, [0, 1, 3, 5, 2, 4])
  flat = np.asarray([-1, high, wide, channels, rows * columns])
  x = graph.add('Reshape', x, flat)
  first = graph.add('ArgMax', x, axis=4, keepdims=1)
  chosen = graph.add('Equal', first, np.arange(rows * columns))
  chosen = graph.add('Cast', chosen, to=type_of(eqn.outvars[0].aval.dtype))
  spread = graph.add('Unsqueeze', source, np.asarray([4]))
  spread = graph.add('Mul', spread, chosen)
  windows = np.asarray([-1, high, wide, channels, rows, columns])
  spread = graph.add('Reshape', spread, windows)
  spread = graph.transpose(spread, [0, 1, 4, 2, 5, 3])
  joined = np.asarray([-1, *whole, channels])
  spread = graph.add('Reshape', spread, joined)
  rest = [0, 0, 0, 0, 0, height - whole[0], width - whole[1], 0]
  zero = _like(eqn.outvars[0], 0)
  return graph.add('Pad', spread, np.asarray(rest, np.int64), zero)


_TRANSLATED: dict[str, Callable[..., Any]] = {
  'argmax': _argmax,
  'broadcast_in_dim': _broadcast_in_dim,
  'concatenate': _concatenate,
  'conv_general_dilated': _conv_general_dilated,
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
  'reduce_window_max': _reduce_window_max,
  'reshape': _reshape,
  'rev': _rev,
  'rsqrt': _rsqrt,
  'scatter-add': _scatter_add,
  'select_and_scatter_add': _select_and_scatter_add,
  'select_n': _select_n,
  'slice': _slice,
  'split': _split,
  'square': _square,
  'squeeze': _reshape,
  'stack': _stack,
  'transpose': _transpose,
}
