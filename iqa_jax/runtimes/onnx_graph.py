"""A traced function as an ONNX graph.

Only what our networks, heads and maps are made of. What does not depend on the
input is computed here, by JAX. The first axis of the input is the batch, of any
size; no other size may be unknown.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import onnx
from onnx import helper

from iqa_jax.runtimes import onnx_operations
from iqa_jax.runtimes.onnx_builder import (
  Builder,
  Equation,
  Value,
  type_of,
  used,
)

OPSET = 18
# Functions within the function.
_CALLS = ('jaxpr', 'call_jaxpr', 'fun_jaxpr')


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
  graph = Builder(input_name)
  results = _run(graph, closed.jaxpr, closed.consts, [input_name])
  outputs = []
  for name, result, var in zip(
    output_names, results, closed.jaxpr.outvars, strict=True
  ):
    graph.nodes.append(
      helper.make_node('Identity', [graph.name(result)], [name])
    )
    outputs.append(_value(name, var.aval))
  nodes = used(graph.nodes, output_names)
  taken = {name for node in nodes for name in node.input}
  made = helper.make_graph(
    nodes,
    'iqa_jax',
    [_value(input_name, input_spec)],
    outputs,
    [c for c in graph.constants if c.name in taken],
  )
  return helper.make_model(
    made,
    opset_imports=[helper.make_opsetid('', OPSET)],
    ir_version=9,
    producer_name='iqa_jax',
  )


def _value(name: str, aval: Any) -> onnx.ValueInfoProto:
  shape = [d if isinstance(d, int) else 'batch' for d in aval.shape]
  return helper.make_tensor_value_info(name, type_of(aval.dtype), shape)


def _run(
  graph: Builder, jaxpr: Any, consts: Sequence[Any], inputs: Sequence[Value]
) -> list[Value]:
  """Adds a jaxpr's nodes; returns the values of its results."""
  known = dict(zip(jaxpr.constvars, map(np.asarray, consts), strict=True))
  known |= dict(zip(jaxpr.invars, inputs, strict=True))

  def read(atom: Any) -> Value:
    if hasattr(atom, 'val'):
      return np.asarray(atom.val, atom.aval.dtype)
    return known[atom]

  for eqn in jaxpr.eqns:
    values = [read(atom) for atom in eqn.invars]
    inner = next((eqn.params[k] for k in _CALLS if k in eqn.params), None)
    if inner is not None:
      consts = getattr(inner, 'consts', ())
      results = _run(graph, getattr(inner, 'jaxpr', inner), consts, values)
    elif _constant(eqn, values):
      found = eqn.primitive.bind(*values, **eqn.params)
      found = found if eqn.primitive.multiple_results else [found]
      results = [np.asarray(array) for array in found]
    else:
      results = onnx_operations.translate(graph, eqn, values)
    known |= dict(zip(eqn.outvars, results, strict=True))
  return [read(atom) for atom in jaxpr.outvars]


def _constant(eqn: Equation, values: Sequence[Value]) -> bool:
  sizes = [d for var in eqn.outvars for d in var.aval.shape]
  return all(isinstance(d, int) for d in sizes) and not any(
    isinstance(value, str) for value in values
  )
