"""What several benchmarks need: photographs drawn fast, and a run directory."""

from __future__ import annotations

import pathlib


def photographs(
  folder: pathlib.Path, count: int, size: int = 256, per_folder: int = 1000
) -> None:
  """Writes `count` different JPEGs of `size` pixels, a lit disc on black.

  They are named by number, at most `per_folder` in a folder. Those that are
  there already stay.
  """
  import numpy as np
  from PIL import Image

  y, x = np.mgrid[:size, :size] / size - 0.5
  radius = np.hypot(x, y)
  for number in range(count):
    path = folder / f'{number // per_folder:04}' / f'{number:06}.jpg'
    if path.exists():
      continue
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(number)
    color = np.array([200, 90, 40]) * rng.uniform(0.6, 1.2)
    waves = np.sin(rng.uniform(10, 60) * x) * np.cos(rng.uniform(10, 60) * y)
    light = (radius < 0.48) * (1.1 - radius + 0.2 * waves)
    image = np.clip(light[..., None] * color, 0, 255).astype(np.uint8)
    Image.fromarray(image).save(path, quality=90)


def random_run(
  workdir: pathlib.Path,
  *,
  name: str = 'resnet50',
  image_size: int = 224,
  width: float = 1.0,
) -> None:
  """Writes a run directory with an untrained model: no slower, no faster."""
  import json

  import jax

  from iqa_jax import config as config_lib
  from iqa_jax import models, run_directory
  from iqa_jax.tasks import Task

  config = config_lib.default()
  config.model.name = name
  config.model.width = width
  config.data.image_size = image_size
  task = Task()
  model = models.from_config(config, task.num_outputs)
  run_directory.save_model(
    workdir,
    jax.device_get(models.init(model, jax.random.key(0), image_size)),
    {
      'config': json.loads(config_lib.to_json(config)),
      'outputs': list(task.outputs),
      'image_size': image_size,
      'step': 0,
      'epoch': 0,
      'source': 'random',
    },
  )
