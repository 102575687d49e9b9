"""Convolutions and pools as ONNX nodes, see onnx_operations."""

from __future__ import annotations

from collections.abc import Mapping
import math
from typing import Any

import numpy as np

from iqa_jax.runtimes.onnx_builder import (
  Builder,
  Equation,
  Unsupported,
  Value,
  type_of,
)


def conv_general_dilated(
  graph: Builder, eqn: Equation, x: Value, kernel: np.ndarray
) -> Value:
  """Adds a convolution of known weights."""
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


def reduce_window_max(graph: Builder, eqn: Equation, x: Value) -> Value:
  """Adds a maximum of windows."""
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


def pooled_blocks(graph: Builder, eqn: Equation, x: Value) -> Value | None:
  """Adds the sum or the largest of each block of a map, as a pool.

  Runtimes pool what a convolution gives as it lies in memory; as a reduction of
  reshaped values it is moved twice before.

  Args:
    graph: to which nodes are added.
    eqn: a reduction.
    x: what it is of.

  Returns:
    None if that isn't a map [b, h, w, c], reshaped to [b, rows, n, columns, m,
    c], over n and m.
  """
  source, shape = graph.reshaped.get(graph.name(x), (x, ()))
  pool = {'reduce_sum': 'AveragePool', 'reduce_max': 'MaxPool'}.get(
    eqn.primitive.name
  )
  if pool is None or len(shape) != 4 or sorted(eqn.params['axes']) != [2, 4]:
    return None
  blocks = eqn.invars[0].aval.shape
  if len(blocks) != 6 or blocks[::5] != shape[::3]:
    return None
  window = [blocks[2], blocks[4]]
  if [blocks[1] * window[0], blocks[3] * window[1]] != [*shape[1:3]]:
    return None
  y: Value = graph.add(
    pool,
    graph.transpose(source, [0, 3, 1, 2]),
    kernel_shape=window,
    strides=window,
  )
  if pool == 'AveragePool':
    count = np.asarray(math.prod(window), eqn.outvars[0].aval.dtype)
    y = graph.add('Mul', y, count)
  return graph.transpose(y, [0, 2, 3, 1])


def _windows(params: Mapping[str, Any]) -> tuple[list[int], list[int]]:
  """Returns height and width of windows, and their strides."""
  window, strides = params['window_dimensions'], params['window_strides']
  if len(window) != 4 or window[0] != 1 or window[3] != 1:
    raise Unsupported('windows over the batch or channels')
  return list(window[1:3]), list(strides[1:3])


def select_and_scatter_add(
  graph: Builder, eqn: Equation, source: Value, operand: Value
) -> Value:
  """Adds the gradient of a maximum of windows that do not overlap.

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

  def shaped(x: Value, *shape: int) -> Value:
    return graph.add('Reshape', x, np.asarray([-1, *shape]))

  x: Value = graph.add(
    'Slice', operand, np.zeros_like(whole), whole, np.asarray([1, 2])
  )
  x = shaped(x, high, rows, wide, columns, channels)
  x = graph.transpose(x, [0, 1, 3, 5, 2, 4])
  x = shaped(x, high, wide, channels, rows * columns)
  first = graph.add('ArgMax', x, axis=4, keepdims=1)
  chosen = graph.add('Equal', first, np.arange(rows * columns))
  chosen = graph.add('Cast', chosen, to=type_of(eqn.outvars[0].aval.dtype))
  x = graph.add('Mul', graph.add('Unsqueeze', source, np.asarray([4])), chosen)
  x = shaped(x, high, wide, channels, rows, columns)
  x = graph.transpose(x, [0, 1, 4, 2, 5, 3])
  x = shaped(x, *whole.tolist(), channels)
  rest = [0, 0, 0, 0, 0, height - whole[0], width - whole[1], 0]
  zero = np.zeros((), eqn.outvars[0].aval.dtype)
  return graph.add('Pad', x, np.asarray(rest, np.int64), zero)
