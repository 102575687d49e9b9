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
  compiled = core.compile_model(
    core.read_model(content),
    'CPU',
    {
      'INFERENCE_PRECISION_HINT': 'bf16' if bfloat16 else 'f32',
      'INFERENCE_NUM_THREADS': machine.cpu_count(),
    },
  )

  def run(images: np.ndarray) -> list[np.ndarray]:
    # A request of its own: a server judges and explains in two threads.
    return list(compiled.create_infer_request().infer([images]).values())

  return run
