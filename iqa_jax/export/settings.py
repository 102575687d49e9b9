"""What an export's workers and outputs depend on."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib

from iqa_jax import machine
from iqa_jax.aliases import Record
from iqa_jax.export import messages
from iqa_jax.export.model import Model
from iqa_jax.export.options import Options


def workers(options: Options) -> int:
  """Returns how many processes decode and draw."""
  return options.workers or machine.cpu_count()


def of_workers(
  options: Options, model: Model, temporary: pathlib.Path
) -> messages.Settings:
  """Returns what a worker process must know.

  Args:
    options: of the export.
    model: that is explained.
    temporary: folder of what is not complete.
  """
  return messages.Settings(
    output=os.path.abspath(options.output),
    temporary=os.path.abspath(temporary),
    outputs=options.outputs,
    size=model.size,
    field=model.takes_field,
    check_fundus=options.check_fundus,
    familiar=model.familiar,
    colors=options.colors,
    opacity=options.opacity,
    quality=options.quality,
    max_side=options.max_side,
    budget=int(options.memory_gb * 2**30 / workers(options)),
  )


def of_outputs(
  options: Options, model: Model, root: str, color_max: float
) -> Record:
  """Returns all that the outputs depend on, as JSON values."""
  text = json.dumps(model.judged, sort_keys=True)
  knows = {}
  if model.criteria:
    knows = {'criteria': list(model.criteria), 'language': options.language}
  return knows | {
    'checkpoint': model.digest,
    'runtime': model.runtime,
    'root': root,
    'logits': list(model.outputs),
    'image_size': model.size,
    'calibration': hashlib.sha256(text.encode()).hexdigest()[:16],
    'operating_point': model.judges.threshold,
    'method': model.method,
    'layer': model.layer or 'default',
    'target': model.target,
    'placement': options.placement,
    'scaling': model.scaling,
    'color_max': color_max,
    'outputs': sorted(options.outputs),
    'colors': options.colors,
    'opacity': options.opacity,
    'quality': options.quality,
    'max_side': options.max_side,
    'contact_sheet': options.contact_sheet,
    'num_shards': options.num_shards,
    'check_fundus': options.check_fundus,
  }
