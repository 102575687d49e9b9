"""A traced function as an ONNX graph.

Only what our networks, heads and maps are made of. What does not depend on the
input is computed here, by JAX. The first axis of the input is the batch, of any
size; no other size may be unknown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import onnx
from onnx import helper, numpy_helper

Value = str | np.ndarray  # the name of what a node gives, or a constant

OPSET = 18
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
  'max': 'Max',
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
# Functions within the function.
_CALLS = ('jaxpr', 'call_jaxpr', 'fun_jaxpr')
_END = np.iinfo(np.int64).max


class Unsupported(NotImplementedError):
  """The function holds an operation that is not translated."""


def convert(
  function: Any,
  input_spec: jax.ShapeDtypeStruct,
  *,
  input_name: str,
  output_names: Sequence[str],
) -> onnx.ModelProto:
  """Returns an ONNX model of a function of one array.

  Args:
    function: traceable; returns a flat tuple of arrays.
    input_spec: its shape, the first axis a symbolic dimension
      (jax.export.symbolic_shape), and dtype.
    input_name: of the model's input.
    output_names: of the results, in order.

  Raises:
    Unsupported: an operation is not translated.
  """
  closed = jax.make_jaxpr(function)(input_spec)
  graph = _Graph(input_name)
  results = graph.run(closed.jaxpr, closed.consts, [input_name])
  outputs = []
  for name, result, var in zip(
    output_names, results, closed.jaxpr.outvars, strict=True
  ):
    graph.nodes.append(
      helper.make_node('Identity', [graph.name(result)], [name])
    )
    outputs.append(_value(name, var.aval))
  made = helper.make_graph(
    graph.nodes,
    'iqa_jax',
    [_value(input_name, input_spec)],
    outputs,
    graph.constants,
  )
  return helper.make_model(
    made,
    opset_imports=[helper.make_opsetid('', OPSET)],
    ir_version=9,
    producer_name='iqa_jax',
  )


def _value(name: str, aval: Any) -> onnx.ValueInfoProto:
  shape = [d if isinstance(d, int) else 'batch' for d in aval.shape]
  return helper.make_tensor_value_info(name, _type(aval.dtype), shape)


def _type(dtype: Any) -> int:
  return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))


class _Graph:
  """Nodes and constants; a value is a node's name, or a NumPy array."""

  def __init__(self, input_name: str):
    self.nodes: list[onnx.NodeProto] = []
    self.constants: list[onnx.TensorProto] = []
    self._named: dict[int, tuple[np.ndarray, str]] = {}
    self._count = 0
    self._input = input_name
    self._batch = ''

  def add(self, op: str, *inputs: Any, **attributes: Any) -> str:
    """Adds a node; returns its output's name."""
    self._count += 1
    name = f'{op.lower()}_{self._count}'
    names = [self.name(value) for value in inputs]
    self.nodes.append(helper.make_node(op, names, [name], name, **attributes))
    return name

  def name(self, value: Any) -> str:
    """Returns the name of a value; a constant gets one."""
    if isinstance(value, str):
      return value
    array = np.asarray(value)
    if id(value) not in self._named:
      name = f'constant_{len(self.constants)}'
      self.constants.append(numpy_helper.from_array(array, name))
      self._named[id(value)] = (value, name)  # kept, so that ids stay unique
    return self._named[id(value)][1]

  def run(
    self, jaxpr: Any, consts: Sequence[Any], inputs: Sequence[Any]
  ) -> list[Any]:
    """Returns the values of a jaxpr's results."""
    known = dict(zip(jaxpr.constvars, map(np.asarray, consts), strict=True))
    known |= dict(zip(jaxpr.invars, inputs, strict=True))

    def read(atom: Any) -> Any:
      if hasattr(atom, 'val'):
        return np.asarray(atom.val, atom.aval.dtype)
      return known[atom]

    for eqn in jaxpr.eqns:
      values = [read(atom) for atom in eqn.invars]
      inner = next((eqn.params[k] for k in _CALLS if k in eqn.params), None)
      if inner is not None:
        consts = getattr(inner, 'consts', ())
        results = self.run(getattr(inner, 'jaxpr', inner), consts, values)
      elif self._constant(eqn, values):
        found = eqn.primitive.bind(*values, **eqn.params)
        found = found if eqn.primitive.multiple_results else [found]
        results = [np.asarray(array) for array in found]
      else:
        found = self._translate(eqn, values)
        results = [found] if isinstance(found, str) else found
      known |= dict(zip(eqn.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]

  def _constant(self, eqn: Any, values: Sequence[Any]) -> bool:
    sizes = [d for var in eqn.outvars for d in var.aval.shape]
    return all(isinstance(d, int) for d in sizes) and not any(
      isinstance(value, str) for value in values
    )

  def _translate(self, eqn: Any, values: Sequence[Any]) -> str | list[str]:
    name, params = eqn.primitive.name, eqn.params
    if name in _SIMPLE:
      return self.add(_SIMPLE[name], *values)
    if name in _REDUCTIONS:
      axes = np.asarray(params['axes'], np.int64)
      return self.add(_REDUCTIONS[name], *values, axes, keepdims=0)
    translate = getattr(self, '_' + name.replace('-', '_'), None)
    if translate is None:
      raise Unsupported(f'{name} has no translation to ONNX')
    return translate(eqn, *values)

  def _shape(self, shape: Sequence[Any]) -> Any:
    """Returns a shape as a value, the batch looked up where it is in it."""
    if all(isinstance(d, int) for d in shape):
      return np.asarray(shape, np.int64)
    if not self._batch:
      self._batch = self.add('Shape', self._input, start=0, end=1)
    parts = [
      np.asarray([d], np.int64) if isinstance(d, int) else self._batch
      for d in shape
    ]
    return self.add('Concat', *parts, axis=0)

  def _like(self, value: Any, number: float) -> np.ndarray:
    return np.asarray(number, value.aval.dtype)

  # One method a primitive, named as JAX names it.

  def _ne(self, eqn: Any, x: Value, y: Value) -> str:
    return self.add('Not', self.add('Equal', x, y))

  def _rsqrt(self, eqn: Any, x: Value) -> str:
    return self.add('Reciprocal', self.add('Sqrt', x))

  def _square(self, eqn: Any, x: Value) -> str:
    return self.add('Mul', x, x)

  def _integer_pow(self, eqn: Any, x: Value) -> str:
    power = self._like(eqn.outvars[0], eqn.params['y'])
    return self.add('Pow', x, power)

  def _log1p(self, eqn: Any, x: Value) -> str:
    # ONNX has none: Kahan's, exact where 1 + x rounds to 1.
    one = self._like(eqn.outvars[0], 1)
    sum_ = self.add('Add', x, one)
    less = self.add('Sub', sum_, one)
    tiny = self.add('Equal', less, self._like(eqn.outvars[0], 0))
    safe = self.add('Where', tiny, one, less)
    ratio = self.add('Div', x, safe)
    return self.add(
      'Where', tiny, x, self.add('Mul', self.add('Log', sum_), ratio)
    )

  def _expm1(self, eqn: Any, x: Value) -> str:
    # ONNX has none; exact for small x: 2 tanh(x / 2) / (1 - tanh(x / 2)).
    like = eqn.outvars[0]
    half = self.add('Tanh', self.add('Mul', x, self._like(like, 0.5)))
    rest = self.add('Sub', self._like(like, 1), half)
    found = self.add('Div', self.add('Mul', half, self._like(like, 2)), rest)
    direct = self.add('Sub', self.add('Exp', x), self._like(like, 1))
    small = self.add('Less', self.add('Abs', x), self._like(like, 1))
    return self.add('Where', small, found, direct)

  def _is_finite(self, eqn: Any, x: Value) -> str:
    odd = self.add('Or', self.add('IsNaN', x), self.add('IsInf', x))
    return self.add('Not', odd)

  def _select_n(self, eqn: Any, which: Value, *cases: Value) -> str:
    if len(cases) != 2 or eqn.invars[0].aval.dtype != bool:
      raise Unsupported('a choice among more than two')
    return self.add('Where', which, cases[1], cases[0])

  def _convert_element_type(self, eqn: Any, x: Value) -> str:
    return self.add('Cast', x, to=_type(eqn.params['new_dtype']))

  def _reshape(self, eqn: Any, x: Value) -> str:
    shape = [d if isinstance(d, int) else -1 for d in eqn.outvars[0].aval.shape]
    return self.add('Reshape', x, np.asarray(shape, np.int64))

  _squeeze = _expand_dims = _reshape

  def _broadcast_in_dim(self, eqn: Any, x: Value, *unused: Value) -> str:
    shape = eqn.outvars[0].aval.shape
    lifted: list[Any] = [1] * len(shape)
    for axis, size in zip(
      eqn.params['broadcast_dimensions'], eqn.invars[0].aval.shape, strict=True
    ):
      lifted[axis] = size
    x = self.add('Reshape', x, self._shape(lifted))
    if tuple(lifted) == tuple(shape):
      return x
    return self.add('Expand', x, self._shape(shape))

  def _transpose(self, eqn: Any, x: Value) -> str:
    return self.add('Transpose', x, perm=list(eqn.params['permutation']))

  def _concatenate(self, eqn: Any, *parts: Value) -> str:
    return self.add('Concat', *parts, axis=eqn.params['dimension'])

  def _stack(self, eqn: Any, *parts: Value) -> str:
    axis = eqn.params['axis']
    lifted = [
      self.add('Unsqueeze', part, np.asarray([axis], np.int64))
      for part in parts
    ]
    return self.add('Concat', *lifted, axis=axis)

  def _split(self, eqn: Any, x: Value) -> list[str]:
    sizes, axis = eqn.params['sizes'], np.asarray([eqn.params['axis']])
    ends = np.cumsum(sizes)
    return [
      self.add('Slice', x, np.asarray([end - size]), np.asarray([end]), axis)
      for size, end in zip(sizes, ends, strict=True)
    ]

  def _rev(self, eqn: Any, x: Value) -> str:
    axes = np.asarray(eqn.params['dimensions'], np.int64)
    first, last = np.full_like(axes, -1), np.full_like(axes, -_END)
    return self.add('Slice', x, first, last, axes, first)

  def _slice(self, eqn: Any, x: Value) -> Value:
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
    return self.add('Slice', x, first, last, axes, step)

  def _pad(self, eqn: Any, x: Value, value: Value) -> str:
    widths = eqn.params['padding_config']
    if any(inner for _, _, inner in widths):
      raise Unsupported('padding between elements')
    pads = [low for low, _, _ in widths] + [high for _, high, _ in widths]
    return self.add('Pad', x, np.asarray(pads, np.int64), value)

  def _gather(self, eqn: Any, x: Value, indices: Value) -> str:
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
      return self.add('Gather', x, picked, axis=axis)
    x = self.add('Gather', x, picked, axis=axis)
    # ONNX puts the indices' axes where the axis was.
    rank = len(shape) - 1 + picked.ndim
    offsets = list(numbers.offset_dims)
    order = [d for d in range(rank) if d not in offsets]
    now = [*offsets[:axis], *order, *offsets[axis:]]
    return self.add('Transpose', x, perm=list(np.argsort(now)))

  def _scatter_add(
    self, eqn: Any, operand: Value, indices: Value, updates: Value
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
      updates = self.add('Unsqueeze', updates, np.asarray([axis]))
    else:
      (own,) = set(range(len(shape))) - set(window)
      perm = [*window[:axis], own, *window[axis:]]
      updates = self.add('Transpose', updates, perm=perm)
    belongs = np.eye(shape[axis], dtype=eqn.invars[0].aval.dtype)[places]
    letters = 'abcdefgh'[: len(shape)]
    out = letters.replace(letters[axis], 'z')
    equation = f'{letters},{letters[axis]}z->{out}'
    moved = self.add('Einsum', updates, belongs, equation=equation)
    return self.add('Add', operand, moved)

  def _argmax(self, eqn: Any, x: Value) -> str:
    (axis,) = eqn.params['axes']
    found = self.add('ArgMax', x, axis=axis, keepdims=0)
    return self.add('Cast', found, to=_type(eqn.params['index_dtype']))

  def _dot_general(self, eqn: Any, x: Value, y: Value) -> str:
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
    return self.add('Einsum', x, y, equation=equation)

  def _conv_general_dilated(
    self, eqn: Any, x: Value, kernel: np.ndarray
  ) -> str:
    p = eqn.params
    if any(d != 1 for d in p['lhs_dilation']) or p['batch_group_count'] != 1:
      raise Unsupported("a convolution's gradient")
    into, weights, out = p['dimension_numbers']
    before, after = zip(*p['padding'], strict=True)
    y = self.add(
      'Conv',
      self.add('Transpose', x, perm=list(into)),
      np.ascontiguousarray(np.transpose(kernel, weights)),
      strides=list(p['window_strides']),
      pads=[*before, *after],
      dilations=list(p['rhs_dilation']),
      group=p['feature_group_count'],
    )
    return self.add('Transpose', y, perm=list(np.argsort(out)))

  def _pooled(self, params: Mapping[str, Any], x: Value) -> tuple[str, str]:
    """Adds a maximum of windows of x [b, h, w, c]; returns it and indices."""
    window, strides = params['window_dimensions'], params['window_strides']
    if window[0] != 1 or window[3] != 1 or len(window) != 4:
      raise Unsupported('windows over the batch or channels')
    before, after = zip(*params['padding'], strict=True)
    x = self.add('Transpose', x, perm=[0, 3, 1, 2])
    y = self.add(
      'MaxPool',
      x,
      kernel_shape=list(window[1:3]),
      strides=list(strides[1:3]),
      pads=[*before[1:3], *after[1:3]],
    )
    return x, y

  def _reduce_window_max(self, eqn: Any, x: Value) -> str:
    return self.add(
      'Transpose', self._pooled(eqn.params, x)[1], perm=[0, 2, 3, 1]
    )

  def _select_and_scatter_add(
    self, eqn: Any, source: Value, operand: Value
  ) -> str:
    """The gradient of a maximum of windows that do not overlap."""
    window = eqn.params['window_dimensions']
    if window != eqn.params['window_strides'] or any(
      sum(pair) for pair in eqn.params['padding']
    ):
      raise Unsupported('the gradient of a maximum of windows that overlap')
    x, y = self._pooled(eqn.params, operand)
    indices = f'{y}_indices'
    self.nodes[-1].output.append(indices)
    source = self.add('Transpose', source, perm=[0, 3, 1, 2])
    spread = self.add(
      'MaxUnpool',
      source,
      indices,
      self.add('Shape', x),
      kernel_shape=list(window[1:3]),
      strides=list(window[1:3]),
    )
    return self.add('Transpose', spread, perm=[0, 2, 3, 1])
