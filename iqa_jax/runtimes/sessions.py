"""Functions of photographs, computed by a runtime."""

from __future__ import annotations

from collections.abc import Callable
import sys
from typing import Any

import jax
from jax import export as jax_export
import numpy as np

from iqa_jax import devices, errors, machine, runtimes
from iqa_jax.models import platforms

_INPUT = 'images'

# From the values of the input to those of the outputs.
Session = Callable[[np.ndarray], list[np.ndarray]]


def parallel(
  function: Callable[[Any, jax.Array], Any],
  runtime: str,
  variables: Any,
  image: tuple[int, ...],
) -> Callable[[Any, np.ndarray], Any]:
  """Returns devices.parallel of a function of variables and images.

  Args:
    function: of variables and images [b, ...]; gives a tree of arrays [b, ...].
    runtime: of runtimes.NAMES; jax's results are computed while one goes on.
    variables: which other runtimes than JAX hold for good.
    image: shape of one, uint8.

  Returns:
    A function of variables and uint8 images [devices, b, ...].

  Raises:
    UserError: the runtime can't compute the function.
  """
  if runtime == 'jax':
    return devices.parallel(function, in_axes=(None, 0))
  fixed = jax.tree.map(np.asarray, variables)
  if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(fixed)):
    # A ReLU of theirs may take NaN for 0.
    raise errors.UserError(
      f'the weights are not finite, which {runtime} would not tell: the '
      'runtime jax does'
    )

  def of_images(images: jax.Array) -> Any:
    return function(fixed, images)

  run, tree = _session(of_images, runtime, image)

  def whole(given: Any, images: np.ndarray) -> Any:
    if given is not variables:
      raise ValueError(f'{runtime} computes with the weights it was given')
    first, second = images.shape[:2]
    found = run(images.reshape(first * second, *images.shape[2:]))
    parts = [x.reshape(first, second, *x.shape[1:]) for x in found]
    return jax.tree.unflatten(tree, parts)

  return whole


def _session(
  function: Callable[[jax.Array], Any], runtime: str, image: tuple[int, ...]
) -> tuple[Session, Any]:
  """Returns a function made by a runtime, and its results' structure."""
  from iqa_jax.runtimes import onnx_builder, onnx_graph

  runtimes.check(runtime)
  (batch,) = jax_export.symbolic_shape('batch')
  spec = jax.ShapeDtypeStruct((batch, *image), np.uint8)
  leaves, tree = jax.tree.flatten(jax.eval_shape(function, spec))
  try:
    with platforms.portable():
      made = onnx_graph.convert(
        lambda x: jax.tree.leaves(function(x)),
        spec,
        input_name=_INPUT,
        output_names=[f'result_{i}' for i in range(len(leaves))],
      )
  except onnx_builder.Unsupported as error:
    raise errors.UserError(
      f'{runtime} cannot compute this map ({error}): give a layer nearer to '
      'the output, another method, or the runtime jax'
    ) from error
  content = made.SerializeToString()
  if runtime == 'onnxruntime':
    return _onnxruntime(content), tree
  return _openvino(content, runtime.endswith('bfloat16')), tree


def _onnxruntime(content: bytes) -> Session:
  import onnxruntime

  options = onnxruntime.SessionOptions()
  options.intra_op_num_threads = machine.cpu_count()
  options.log_severity_level = 3  # errors
  # Waiting threads leave the cores to those who decode and draw.
  options.add_session_config_entry('session.intra_op.allow_spinning', '0')
  session = onnxruntime.InferenceSession(
    content, options, providers=['CPUExecutionProvider']
  )
  return lambda images: session.run(None, {_INPUT: images})


def _openvino(content: bytes, bfloat16: bool) -> Session:
  # Its package reports that it is used to a server of another company; without
  # this module it uses a stand-in of its own that reports nothing.
  sys.modules.setdefault('openvino_telemetry', None)  # type: ignore[arg-type]
  import openvino

  core = openvino.Core()

  def compiled(model: Any, precision: str) -> Any:
    settings = {
      'INFERENCE_PRECISION_HINT': precision,
      'INFERENCE_NUM_THREADS': machine.cpu_count(),
    }
    return core.compile_model(model, 'CPU', settings)

  model = core.read_model(content)
  parts = []
  if bfloat16 and (first := _first_layer(model)):
    parts.append(compiled(first, 'f32'))
  parts.append(compiled(model, 'bf16' if bfloat16 else 'f32'))

  def run(images: np.ndarray) -> list[np.ndarray]:
    found: list[np.ndarray] = []
    for part in parts:
      # A request of its own: a server judges and explains in two threads.
      request = part.create_infer_request()
      found = list(request.infer([images, *found], share_inputs=True).values())
    return found

  return run


def _first_layer(model: Any) -> Any:
  """Takes the first convolutions out of a network, as a model of their own.

  Eight bits are too few for what is faint in a photograph: rounding the pixels
  and the first weights to bfloat16 changes maps more than all else together.

  Args:
    model: OpenVINO's, of one input. In place, what its first convolutions give,
      and what follows from them before a second one, becomes further inputs.

  Returns:
    The model that gives those further inputs, in order; None if no second
    convolution follows.
  """
  import openvino
  from openvino import opset13

  # How many convolutions lie before the results of each operation, up to 2.
  passed: dict[str, int] = {}
  cut: dict[tuple[str, int], list[Any]] = {}
  for operation in model.get_ordered_ops():
    inputs = [(x, x.get_source_output()) for x in operation.inputs()]
    names = [source.get_node().get_name() for _, source in inputs]
    count = max((passed[name] for name in names), default=0)
    count += operation.get_type_name() == 'Convolution'
    passed[operation.get_name()] = min(2, count)
    if count < 2:
      continue
    for name, (value, source) in zip(names, inputs, strict=True):
      if passed[name] == 1:
        cut.setdefault((name, source.get_index()), []).append(value)
  if not cut:
    return None
  given = [values[0].get_source_output() for values in cut.values()]
  first = openvino.Model(given, model.get_parameters())
  for source, values in zip(given, cut.values(), strict=True):
    place = opset13.parameter(
      source.get_partial_shape(), source.get_element_type()
    )
    for value in values:
      value.replace_source_output(place.output(0))
    model.add_parameters([place])
  model.validate_nodes_and_infer_types()
  return first
