"""The earlier work's schedule from photographs on disk, beside PyTorch.

VGG16 with its dense head at 224 px: 10 epochs of the head, then 20 with the
last convolutional block. Ours reads prepared records, and computes what is
frozen once; the peer decodes every photograph in every epoch by a DataLoader
with as many workers as cores, and is measured for one epoch of each phase:
all epochs of a phase do the same work, so its schedule is 10 and 20 times that.
Both learn in batches of 32, so that no worker idles, and validate after every
epoch, on a fourth as many photographs besides. Ours runs whole, with
checkpoints, which the peer is spared; building the records and compiling are
not counted.
"""

from __future__ import annotations

import os
import pathlib
import sys
import tempfile
import time

from tests.benchmarks import _material, common

_EPOCHS = (10, 20)
_BATCH = 32


def run(
  *,
  smoke: bool = False,
  images: int = 128,
  width: int = 1024,
  size: int = 224,
  repeats: int = 1,
) -> list[common.Row]:
  """Measures `images` training photographs of `width` pixels.

  Args:
    smoke: few and small ones.
    images: how many photographs learn; a fourth as many validate.
    width: of the JPEGs, in pixels.
    size: of the network's input.
    repeats: of everything; in the peer, of single epochs.
  """
  if smoke:
    images, width, size, repeats = 4, 200, 64, 1
  with tempfile.TemporaryDirectory() as folder:
    download = pathlib.Path(folder) / 'download'
    _material.download(download, images + _validating(images), width)
    train = _training(folder, images, size)
    train((1, 1))  # compiles
    seconds = {
      'head': [train((_EPOCHS[0], 0)) for _ in range(repeats)],
      'all': [train(_EPOCHS) for _ in range(repeats)],
    }
    peer_name, note, peer = '', f'{images} photographs of {width} px', {}
    try:
      peer = _peer(download / 'train', images, size, repeats)
      peer_name = 'PyTorch, DataLoader'
    except common.PeerAbsent as reason:
      note += f'; {reason}'
  each = zip(peer.get('head', ()), peer.get('last', ()), strict=True)
  return [
    common.Row(
      f'head phase, trunk frozen, {_EPOCHS[0]} epochs',
      common.rates(images * _EPOCHS[0], seconds['head']),
      'images/s',
      peer_name,
      common.rates(images, peer.get('head', ())),
      'at least 5x',
      note,
    ),
    common.Row(
      f'schedule of {sum(_EPOCHS)} epochs',
      seconds['all'],
      's',
      peer_name,
      [_EPOCHS[0] * head + _EPOCHS[1] * last for head, last in each],
      'at least 3x',
      note,
    ),
  ]


def _validating(images: int) -> int:
  return max(1, images // 4)


def _training(folder: str, images: int, size: int):
  """Returns a function from the phases' epochs to the seconds of training."""
  import numpy as np

  from iqa_jax import config as config_lib
  from iqa_jax.data import source as source_lib
  from iqa_jax.training import loop

  _material.cache_compilations(f'{folder}/compiled')
  config = config_lib.variant('earlier_work')
  config.model.pretrained = ''
  config.data.name = 'eyeq'
  config.data.image_size = size
  config.data.balance = 'none'
  config.data.manual_dir = f'{folder}/download'
  config.data.data_dir = f'{folder}/records'
  config.train.batch_size = config.eval.batch_size = min(_BATCH, images)
  phases = config.train.phases
  source = source_lib.open_source(config)
  every = np.nonzero(source.table['split'] == 'train')[0]
  splits = {'train': every[:images], 'validation': every[images:]}

  def train(epochs: tuple[int, int]) -> float:
    for phase, count in zip(phases, epochs, strict=True):
      phase.epochs = count
    config.train.phases = tuple(p for p in phases if p.epochs)
    with tempfile.TemporaryDirectory() as workdir:
      start = time.perf_counter()
      loop.train(config, workdir, source, splits)
      return time.perf_counter() - start

  return train


def _peer(photographs, images, size, repeats) -> dict[str, list[float]]:
  """Returns the seconds of the peer's epochs: of the head, and with a block."""
  with common.Peer('peer_earlier_work', packages=('torch', 'PIL')) as peer:
    peer(
      'prepare',
      folder=str(photographs),
      size=size,
      training=images,
      batch=min(_BATCH, images),
      workers=len(os.sched_getaffinity(0)),
    )
    return common.alternate(
      {
        'head': lambda: peer('epoch', last_block=False),
        'last': lambda: peer('epoch', last_block=True),
      },
      repeats=repeats,
    )


if __name__ == '__main__':
  sys.exit(common.main(run))
