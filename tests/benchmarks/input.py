"""Images a second into batches: from large JPEGs and from prepared records.

The peer is PyTorch's DataLoader with as many workers as cores, each of which
decodes a whole JPEG with Pillow, resizes and normalises it. Ours reads records
of the same photographs: `original` keeps all their pixels (a large JPEG each,
decoded by tf.data at a fraction of its size by the DCT, cropped to the field
and resized), `512` holds them prepared. Normalisation happens on the device.
"""

from __future__ import annotations

import pathlib
import sys
import tempfile

from tests.benchmarks import _material, common


def run(
  *,
  smoke: bool = False,
  images: int = 48,
  width: int = 3504,
  size: int = 224,
  batch: int = 16,
  repeats: int = 5,
) -> list[common.Row]:
  """Measures `images` photographs of `width` pixels (3:2).

  Args:
    smoke: few and small ones.
    images: how many photographs.
    width: of the JPEGs, in pixels.
    size: of the network's input.
    batch: images a batch.
    repeats: measurements of each.
  """
  if smoke:
    images, width, size, batch, repeats = 6, 600, 64, 2, 2
  with tempfile.TemporaryDirectory() as folder:
    download = pathlib.Path(folder) / 'download'
    megabytes = _material.download(download, images, width)
    sources = {name: _open(folder, name) for name in ('original', '512')}
    # One pass would measure the start of a pipeline as much as its speed.
    passes = {'original': 1 if smoke else 4, '512': 1 if smoke else 40}

    def read(name):
      return lambda: _read(sources[name], passes[name], size, batch)

    functions = {name: read(name) for name in sources}
    note = f'{width}x{width * 2 // 3} px, {megabytes:.2f} MB each'
    peer_name = ''
    try:
      with common.Peer('peer_input', packages=('torch', 'PIL')) as peer:
        workers = peer(
          'prepare',
          folder=str(download / 'train'),
          size=size,
          batch=batch,
          passes=passes['original'],
        )
        peer_name = f'DataLoader, {workers} workers, from the JPEGs'
        times = common.alternate(
          {**functions, 'peer': lambda: peer('read')}, repeats=repeats
        )
    except common.PeerAbsent as reason:
      note += f'; {reason}'
      times = common.alternate(functions, repeats=repeats)
  peer_rates = common.rates(images * passes['original'], times.get('peer', ()))
  return [
    common.Row(
      title,
      common.rates(images * passes[name], times[name]),
      'images/s',
      peer_name,
      peer_rates,
      target,
      note,
    )
    for name, title, target in (
      ('original', f'large JPEGs to {size} px', 'at least 4x'),
      ('512', f'prepared records to {size} px', 'at least 20x'),
    )
  ]


def _open(folder: str, name: str):
  from iqa_jax import config as config_lib
  from iqa_jax.data import source as source_lib

  config = config_lib.default()
  config.data.name = 'eyeq'
  config.data.builder_config = name
  config.data.manual_dir = f'{folder}/download'
  config.data.data_dir = f'{folder}/records'
  return source_lib.open_source(config)


def _read(source, passes: int, size: int, batch: int) -> None:
  import numpy as np

  from iqa_jax.data import pipeline
  from iqa_jax.data import plan as plan_lib

  training = np.nonzero(source.table['split'] == 'train')[0]
  plan = plan_lib.plan_eval(np.tile(training, passes))
  read = 0
  for got in pipeline.batches(source, plan, image_size=size, batch_size=batch):
    read += int(got['mask'].sum())
  assert read == len(training) * passes


if __name__ == '__main__':
  sys.exit(common.main(run))
