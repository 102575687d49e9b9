"""Photographs and models small enough to export in a test."""

from __future__ import annotations

import json
import os
import pathlib
import sys

import jax
import numpy as np
from PIL import Image

from iqa_jax import config as config_lib
from iqa_jax import models, run_directory
from iqa_jax.tasks import Task

ROOT = pathlib.Path(__file__).resolve().parents[2]


def make_run(
  workdir: os.PathLike,
  *,
  size: int = 48,
  task: str = 'quality',
  head: str = 'linear',
  network: str = 'resnet50',
  head_scale: float = 1.0,
  target: str = 'predicted',
  **record,
) -> str:
  """Saves a tiny untrained model as a run directory; returns its digest."""
  config = config_lib.default()
  config.model.name = network
  config.model.width = 0.125
  config.model.depth = 0.34
  config.model.head = head
  config.model.cells = 6
  config.model.cell_spread = (0.0, 0.8)
  config.model.detail = head == 'evidence'
  config.data.image_size = size
  config.task.name = task
  config.explain.target = target
  outputs = Task(name=task).outputs
  model = models.from_config(config, len(outputs))
  variables = models.init(model, jax.random.key(3), size)
  variables = jax.tree.map(np.asarray, variables)
  variables['params']['head'] = jax.tree.map(
    lambda x: head_scale * x, variables['params']['head']
  )
  return run_directory.save_model(
    workdir,
    variables,
    {
      'config': json.loads(config_lib.to_json(config)),
      'outputs': list(outputs),
      'image_size': size,
      'step': 1,
      'epoch': 1,
      'source': {'sha256': 'none'},
      **record,
    },
  )


def fundus(
  rng: np.random.Generator, width: int = 180, height: int = 130
) -> np.ndarray:
  """Returns something like a photograph: a textured circle on black."""
  y, x = np.mgrid[:height, :width] + 0.5
  r = 0.47 * min(width, height)
  cx = width / 2 + rng.uniform(-0.1, 0.1) * width
  inside = (x - cx) ** 2 + (y - height / 2) ** 2 < r**2
  colour = rng.uniform((120, 50, 20), (220, 120, 70))
  waves = 1 + 0.2 * np.sin(x / rng.uniform(3, 9)) * np.cos(
    y / rng.uniform(3, 9)
  )
  image = colour * waves[..., None] + rng.normal(0, 4, (height, width, 3))
  return np.where(inside[..., None], np.clip(image, 0, 255), 0).astype(np.uint8)


def save(path: pathlib.Path, rng: np.random.Generator, **size: int) -> None:
  """Writes a photograph of `fundus`."""
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(fundus(rng, **size)).save(path, quality=92)


def command(workdir, images, output, *flags: str) -> list[str]:
  """Returns the command line of an export without contact sheet."""
  return [
    sys.executable,
    '-m',
    'iqa_jax.export_heatmaps',
    f'--workdir={workdir}',
    f'--images={images}',
    f'--output={output}',
    '--noprogress',
    # What is drawn here is a textured circle.
    '--nocheck_fundus',
    *flags,
  ]


def environment() -> dict[str, str]:
  """Returns the environment of such a command: one device, this checkout."""
  return {
    **os.environ,
    'PYTHONPATH': str(ROOT),
    'XLA_FLAGS': '',
    'JAX_PLATFORMS': 'cpu',
  }
