"""What several benchmarks need: photographs drawn fast, and a run directory."""

from __future__ import annotations

import pathlib
import sys


def installed(runtime: str) -> bool:
  """Returns whether a runtime can be used here; says why not."""
  from iqa_jax import errors, runtimes

  try:
    runtimes.check(runtime)
  except errors.UserError as reason:
    if runtime not in runtimes.NAMES:
      raise
    print(f'{reason}; left out', file=sys.stderr)
    return False
  return True


def cache_compilations(folder: str | pathlib.Path) -> None:
  """Has JAX keep every program that it compiles in `folder`."""
  import jax

  jax.config.update('jax_compilation_cache_dir', str(folder))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
  jax.config.update('jax_persistent_cache_min_entry_size_bytes', -1)


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


def download(folder: pathlib.Path, count: int, width: int) -> float:
  """Draws a download of EyeQ's layout; returns megabytes a photograph."""
  import numpy as np
  from PIL import Image

  from iqa_jax.simulation import photograph

  (folder / 'train').mkdir(parents=True)
  height = width * 2 // 3
  side = int(0.95 * height)
  left, top = (width - side) // 2, (height - side) // 2
  box = (left, top, left + side, top + side)
  total, rows = 0, [',image,quality,DR_grade']
  for i in range(count):
    rng = np.random.default_rng(i)
    drawn = photograph.draw(i, 512, distractors=False).image
    frame = Image.new('RGB', (width, height))
    frame.paste(Image.fromarray(drawn).resize((side, side)), box)
    # A sensor's noise: without it a JPEG would decode too easily.
    grain = rng.integers(-6, 7, (height, width, 1), np.int16)
    pixels = np.clip(np.asarray(frame) + grain, 0, 255).astype(np.uint8)
    path = folder / 'train' / f'{i}_left.jpeg'
    Image.fromarray(pixels).save(path, quality=88)
    total += path.stat().st_size
    rows.append(f'{i},{path.name},{i % 3},0')
  (folder / 'Label_EyeQ_train.csv').write_text('\n'.join(rows) + '\n')
  # EyeQ has two splits; the test one takes the last photograph.
  (folder / 'Label_EyeQ_test.csv').write_text(
    f'{rows[0]}\n0,{count}_left.jpeg,0,0\n'
  )
  (folder / 'test').mkdir()
  (folder / 'test' / f'{count}_left.jpeg').write_bytes(path.read_bytes())
  return total / count / 1e6


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
