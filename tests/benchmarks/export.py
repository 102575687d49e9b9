"""Export: a folder of JPEGs to overlays, end to end, beside PyTorch.

The peer is the script that one would write with PyTorch, pytorch-grad-cam and
OpenCV: photograph by photograph, both cores to the network. Both write JPEGs of
quality 90 at the photograph's own size, coloured by jet; ours also finds the
field of view, and keeps a journal and a manifest. Loading and compiling are
outside the timed part (see `startup`), starting the processes that decode is
inside.
"""

from __future__ import annotations

import os
import pathlib
import sys
import tempfile

from tests.benchmarks import _material, common

_STAGES = ('decode', 'prepare', 'network', 'render', 'encode')


def run(
  *,
  smoke: bool = False,
  models: str = 'resnet50,vgg16',
  sides: str = '1024,3000',
  images: int = 40,
  repeats: int = 3,
) -> list[common.Row]:
  """Measures both networks at 224 px on photographs of every longest side."""
  if smoke:
    sides, images, repeats = '256', 4, 1
  rows = []
  with tempfile.TemporaryDirectory() as folder:
    for name in models.split(','):
      workdir = pathlib.Path(folder) / name
      _material.random_run(workdir, name=name)
      for side in map(int, sides.split(',')):
        photographs = pathlib.Path(folder) / f'{side}'
        _photographs(photographs, images, side)
        rows += _measure(name, side, workdir, photographs, images, repeats)
  return rows


def _photographs(folder: pathlib.Path, count: int, side: int) -> None:
  """Writes JPEGs whose noise makes them as large as a camera's."""
  import numpy as np
  from PIL import Image

  if folder.exists():
    return
  folder.mkdir(parents=True)
  height = side * 2 // 3
  y, x = np.mgrid[:height, :side]
  radius = np.hypot(x - side / 2, y - height / 2) / height
  for number in range(count):
    rng = np.random.default_rng(number)
    colour = np.array([190, 95, 45]) * rng.uniform(0.7, 1.2)
    waves = np.sin(x / side * rng.uniform(40, 90)) * np.cos(
      y / side * rng.uniform(40, 90)
    )
    light = (radius < 0.48) * (1.1 - radius + 0.15 * waves)
    noise = rng.normal(0, 3, (height, side, 1))
    image = light[..., None] * colour + noise
    Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)).save(
      folder / f'{number}.jpg', quality=90
    )


def _measure(name, side, workdir, photographs, images, repeats):
  from iqa_jax.export import run
  from iqa_jax.export.model import Model
  from iqa_jax.export.options import Options

  with tempfile.TemporaryDirectory() as written:
    numbers = iter(range(10**6))
    stages: dict[str, list[float]] = {stage: [] for stage in _STAGES}
    options = Options(
      str(workdir),
      str(photographs),
      '',
      outputs=('overlay',),
      colors='jet',
      opacity=0.5,
      contact_sheet=False,
      progress=False,
    )
    model = Model(options)

    def ours():
      from dataclasses import replace

      output = os.path.join(written, f'ours{next(numbers)}')
      summary = run.run(replace(options, output=output), model)
      assert summary.statuses == {'ok': images}, summary.statuses
      for stage in _STAGES:
        stages[stage].append(summary.seconds[stage])

    functions = {'ours': ours}
    absent = ''
    peer = None
    try:
      peer = common.Peer(
        'peer_export', packages=('torch', 'pytorch_grad_cam', 'cv2')
      )
      peer('prepare', model=name, threads=len(os.sched_getaffinity(0)))
      functions['peer'] = lambda: peer(
        'export', photographs=str(photographs), output=f'{written}/peer'
      )
    except common.PeerAbsent as reason:
      absent = str(reason)
    times = common.alternate(functions, repeats=repeats)
    if peer is not None:
      peer.__exit__()
  label = f'{name}, {side} px'
  rows = [
    common.Row(
      f'export, {label}',
      common.rates(images, times['ours']),
      'images/s',
      'PyTorch + pytorch-grad-cam + OpenCV',
      common.rates(images, times['peer']) if 'peer' in times else (),
      'at least 3x',
      absent or f'{images} photographs',
    )
  ]
  measured = list(zip(*(stages[s][-repeats:] for s in _STAGES), strict=True))
  for i, stage in enumerate(_STAGES):
    shares = [100 * m[i] / sum(m) for m in measured]
    rows.append(common.Row(f'work, {label}: {stage}', shares, '% of time'))
  rest = [100 * (m[1] + m[3]) / sum(m) for m in measured]
  rows.append(
    common.Row(
      f'work, {label}: neither decoding, network nor encoding',
      rest,
      '% of time',
      target='below 15 %',
      note='of the processor time of the stages, in all processes and threads',
    )
  )
  return rows


if __name__ == '__main__':
  sys.exit(common.main(run))
