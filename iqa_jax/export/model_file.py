"""A trained model as one file that runs without this package.

In goes a prepared photograph as the network takes it (photograph/prepare.py:
cut to the field of view, uint8, the field as a fourth channel where the model
looks at it); out come logits, probabilities, the calibrated probability of
inadequate, and the signed map of the target that the run explains.

  onnx        ONNX Runtime, OpenVINO, ...; metadata in `metadata_props`
  stablehlo   jax.export for CPU, CUDA and TPU at once; metadata beside it, in
              FILE.json
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import importlib.util
import json
import os
import pathlib

import jax
from jax import export as jax_export
import jax.numpy as jnp
import numpy as np

from iqa_jax import errors, models, trained
from iqa_jax.aliases import Record
from iqa_jax.explain import cam
from iqa_jax.models import platforms

FORMATS = ('onnx', 'stablehlo')
PLATFORMS = ('cpu', 'cuda', 'tpu')
INPUT = 'photograph'
OUTPUTS = ('logits', 'probabilities', 'p_inadequate', 'map')
_EDGE = 1e-7  # as calibration.log_odds has it
_PREPARATION = (
  'uint8 RGB, the field of view found, cut out as a centred square and shrunk '
  'to image_size with antialiasing, black outside the field '
  '(iqa_jax.photograph.prepare); no normalisation, the file does it'
)


def program(
  model: trained.Trained,
  *,
  method: str | None = None,
  layer: str | None = None,
  target: str | None = None,
) -> Callable[[jax.Array], tuple[jax.Array, ...]]:
  """Returns a function from photographs to OUTPUTS; the weights are in it.

  It takes uint8 [b, s, s, 3 or 4] and gives float32 logits [b, k],
  probabilities [b, k], p_inadequate [b], calibrated, and the raw map [b, h, w].

  Args:
    model: a trained model.
    method: of cam.METHODS; None as the run's configuration says.
    layer: feature point; None likewise.
    target: 'predicted' or one of the task's targets; None likewise.

  Raises:
    InvalidValue: no such method, layer or target.
  """
  explain, task = model.config.explain, model.task
  method = method or explain.method
  errors.one_of('method', method, cam.METHODS)
  target = target or explain.target
  errors.one_of('target', target, ('predicted', *task.targets))
  variables = jax.tree.map(np.asarray, model.variables)

  def run(photographs: jax.Array) -> tuple[jax.Array, ...]:
    x = models.normalize(photographs)

    def judged(logits: jax.Array) -> jax.Array:
      return model.judged(variables, x, logits)

    def targets(logits: jax.Array) -> jax.Array | np.ndarray:
      return cam.choose_targets(
        task, target, judged(logits), threshold=model.raw_threshold
      )

    seen = cam.explain(
      model.model,
      variables,
      x,
      targets,
      task=task,
      layer=layer or explain.layer or None,
      methods=(method,),
    )
    logits = judged(seen.logits)
    p = calibrated(model.record.get('calibration'), task.p_inadequate(logits))
    return logits, task.probabilities(logits), p, seen.maps[method]

  return run


def calibrated(record: Record | None, p: jax.Array) -> jax.Array:
  """Returns calibrated probabilities, as calibration.apply does, traceably.

  Args:
    record: of calibration.fit; None changes nothing.
    p: float32 [n], p_inadequate.

  Raises:
    InvalidValue: an unknown method.
  """
  method = record['method'] if record else 'none'
  if record is None or method == 'none':
    return p
  if method == 'isotonic':
    x, y = (np.asarray(record[k], np.float32) for k in 'xy')
    result = jnp.full_like(p, y[0])
    # Written out: every rise adds its part of what lies below p.
    for x0, x1, y0, y1 in zip(x, x[1:], y, y[1:], strict=False):
      if y1 != y0:
        share = jnp.clip((p - x0) / (x1 - x0), 0, 1) if x1 > x0 else p >= x1
        result += (y1 - y0) * share
    return result
  clipped = jnp.clip(p, _EDGE, 1 - _EDGE)
  odds = jnp.log(clipped) - jnp.log1p(-clipped)
  if method == 'temperature':
    return jax.nn.sigmoid(odds / float(record['temperature']))
  if method == 'platt':
    scale, offset = float(record['scale']), float(record['offset'])
    return jax.nn.sigmoid(scale * odds + offset)
  raise errors.InvalidValue(f'unknown calibration method {method!r}')


def metadata(model: trained.Trained, **explained: str | None) -> Record:
  """Returns what a user of the file must know, as JSON values."""
  explain = model.config.explain
  defaults = {'layer': model.model.default_layer}
  return {
    'producer': 'iqa_jax',
    'outputs': list(model.task.outputs),
    'positive_class': 'inadequate',
    'operating_point': model.judges.threshold,
    'operating_point_is_of': 'p_inadequate',
    'calibration': model.record.get('calibration'),
    'image_size': model.image_size,
    'channels': 4 if model.model.takes_field else 3,
    'preparation': _PREPARATION,
    'explained': {
      key: explained.get(key) or explain[key] or defaults.get(key, '')
      for key in ('method', 'layer', 'target')
    },
    'checkpoint_sha256': model.digest,
    'research_use_only': True,
  }


def save(
  workdir: str | os.PathLike,
  output: str | os.PathLike,
  how: str,
  *,
  platforms: Sequence[str] = PLATFORMS,
  method: str | None = None,
  layer: str | None = None,
  target: str | None = None,
) -> Record:
  """Writes the model of a run directory as a file; returns its metadata.

  Args:
    workdir: the run directory.
    output: the file.
    how: one of FORMATS.
    platforms: of a StableHLO file, some of PLATFORMS.
    method: see `program`.
    layer: likewise.
    target: likewise.

  Raises:
    UserError: the run holds no model, ONNX is not installed, or the map's
      gradient has no translation to it.
  """
  errors.one_of('format', how, FORMATS)
  if how == 'onnx' and not importlib.util.find_spec('onnx'):
    raise errors.UserError(
      "ONNX is not installed: pip install 'iqa_jax[onnx]', or give "
      '--format=stablehlo'
    )
  model = trained.load(workdir)
  explained = {'method': method, 'layer': layer, 'target': target}
  function = program(model, **explained)
  about = metadata(model, **explained)
  (batch,) = jax_export.symbolic_shape('batch')
  side = model.image_size
  spec = jax.ShapeDtypeStruct((batch, side, side, about['channels']), jnp.uint8)
  file = pathlib.Path(output)
  if how == 'onnx':
    content = _onnx(function, spec, about)
  else:
    exported = jax_export.export(jax.jit(function), platforms=platforms)(spec)
    content = bytes(exported.serialize())
    about = {**about, 'results': list(OUTPUTS), 'platforms': list(platforms)}
  file.parent.mkdir(parents=True, exist_ok=True)
  file.write_bytes(content)
  if how == 'stablehlo':
    beside = file.with_name(file.name + '.json')
    beside.write_text(json.dumps(about, indent=2) + '\n')
  return about


def _onnx(
  function: Callable[..., object],
  spec: jax.ShapeDtypeStruct,
  about: Record,
) -> bytes:
  import onnx

  from iqa_jax.runtimes import onnx_builder, onnx_graph

  try:
    with platforms.portable():
      made = onnx_graph.convert(
        function, spec, input_name=INPUT, output_names=OUTPUTS
      )
  except onnx_builder.Unsupported as error:
    raise errors.UserError(
      f'{error}: give a --layer nearer to the output, another --method, or '
      '--format=stablehlo'
    ) from error
  onnx.helper.set_model_props(
    made,
    {
      key: value if isinstance(value, str) else json.dumps(value)
      for key, value in about.items()
    },
  )
  onnx.checker.check_model(made, full_check=True)
  return made.SerializeToString()
