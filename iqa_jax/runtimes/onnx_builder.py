"""Nodes and constants of an ONNX graph that is being made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import DTypeLike
import onnx
from onnx import helper, numpy_helper

Value = str | np.ndarray  # the name of what a node gives, or a constant
Equation: TypeAlias = Any  # of a jaxpr; JAX does not say their types


class Unsupported(NotImplementedError):
  """The function holds an operation that is not translated."""


class Builder:
  """A graph of one input, to which nodes are added.

  Attributes:
    nodes: in order.
    constants: that the nodes take.
    reshaped: by the name of what a Reshape gives, what it was of and its shape.
  """

  def __init__(self, input_name: str):
    self.nodes: list[onnx.NodeProto] = []
    self.constants: list[onnx.TensorProto] = []
    self.reshaped: dict[str, tuple[Value, tuple[Any, ...]]] = {}
    self._named: dict[int, tuple[np.ndarray, str]] = {}
    self._input = input_name
    self._batch = ''
    self._transposed: dict[Any, tuple[Any, tuple[int, ...]]] = {}

  def add(self, op: str, *inputs: Any, **attributes: Any) -> str:
    """Adds a node; returns its output's name."""
    name = f'{op.lower()}_{len(self.nodes) + 1}'
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

  def transpose(self, x: Value, perm: Sequence[int]) -> Value:
    """Returns x with its axes in another order; back and forth is nothing."""
    source, before = self._transposed.get(self.name(x), (x, range(len(perm))))
    perm = tuple(before[p] for p in perm)
    if perm == tuple(range(len(perm))):
      return source
    name = self.add('Transpose', source, perm=perm)
    self._transposed[name] = source, perm
    return name

  def elementwise(self, op: str, *values: Value) -> Value:
    """Adds a node of values of one shape, or of scalars and the like.

    On what was transposed before, so that between convolutions, which have
    the channels first, nothing has to be.
    """
    known = [
      self._transposed[v]
      for v in values
      if isinstance(v, str) and v in self._transposed
    ]
    perms = {perm for _, perm in known}
    if len(perms) != 1:
      return self.add(op, *values)
    (perm,) = perms
    back = np.argsort(perm)
    sources: list[Value] = []
    for value in values:
      if isinstance(value, str):
        if value not in self._transposed:
          return self.add(op, *values)
        sources.append(self._transposed[value][0])
      elif value.ndim not in (0, len(perm)):
        return self.add(op, *values)
      else:
        sources.append(value.transpose(back) if value.ndim else value)
    return self.transpose(self.add(op, *sources), perm)

  def shape(self, shape: Sequence[Any]) -> Value:
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


def used(
  nodes: Sequence[onnx.NodeProto], outputs: Sequence[str]
) -> list[onnx.NodeProto]:
  """Returns the nodes that outputs depend on, in their order."""
  wanted, kept = set(outputs), []
  for node in reversed(nodes):
    if wanted.intersection(node.output):
      wanted.update(node.input)
      kept.append(node)
  return kept[::-1]


def type_of(dtype: DTypeLike) -> int:
  """Returns ONNX's number of a dtype."""
  return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
