"""What computes: JAX, or a runtime that is faster on a processor.

JAX is the reference. Another runtime is handed the very function that JAX
would compile, translated to ONNX with its weights, on the processor: float32
results agree to 1e-5 of their largest (tests/test_runtimes.py).

  jax                what is compiled is what is trained
  onnxruntime        pip install 'iqa_jax[onnx]'
  openvino           pip install 'iqa_jax[openvino]'
  openvino_bfloat16  the same, but the first layer, in bfloat16: other numbers,
                     see README
"""

from __future__ import annotations

import importlib.util

from iqa_jax import errors

NAMES = ('jax', 'onnxruntime', 'openvino', 'openvino_bfloat16')
_EXTRAS = {'onnxruntime': 'onnx', 'openvino': 'openvino'}


def check(name: str) -> None:
  """Raises unless there is such a runtime and it is installed.

  Raises:
    InvalidValue: there is none of that name.
    UserError: it is not installed.
  """
  errors.one_of('runtime', name, NAMES)
  if name == 'jax':
    return
  module = name.partition('_')[0]
  if not all(map(importlib.util.find_spec, (module, 'onnx'))):
    raise errors.UserError(
      f'the runtime {name} is not installed: pip install '
      f"'iqa_jax[{_EXTRAS[module]}]', or go on with jax"
    )
