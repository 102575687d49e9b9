"""Export: a folder of JPEGs to overlays, end to end, beside PyTorch.

The peer is the script that one would write with PyTorch, pytorch-grad-cam and
OpenCV: photograph by photograph, both cores to the network. Both write JPEGs of
quality 90 at the photograph's own size, coloured by jet; ours also finds the
field of view, and keeps a journal and a manifest. The same script, helped by
bfloat16 and channels_last, has rows of its own. Loading and compiling are
outside the timed part (see `startup`), starting the processes that decode is
inside. Ours is computed by each runtime in turn (--computed).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import contextlib
import dataclasses
import functools
import os
import pathlib
import sys
import tempfile

from iqa_jax import runtimes
from tests.benchmarks import _material, common

_STAGES = ('decode', 'prepare', 'network', 'render', 'encode')
_SCRIPT = 'PyTorch + pytorch-grad-cam + OpenCV'
_SCRIPTS = {_SCRIPT: False, f'{_SCRIPT}, bfloat16, channels_last': True}
_NEEDS = ('torch', 'pytorch_grad_cam', 'cv2')
_TARGETS = {
  ('jax', False): 'at least 3x',
  ('openvino_bfloat16', False): 'with AMX at least 6x (ResNet50), 15x (VGG16)',
  ('openvino_bfloat16', True): 'with AMX at least 2x',
}


def run(
  *,
  smoke: bool = False,
  models: str = 'resnet50,vgg16',
  sides: str = '1024,3000',
  images: int = 40,
  repeats: int = 3,
  computed: str = ','.join(runtimes.NAMES),
) -> list[common.Row]:
  """Measures both networks at 224 px on photographs of every longest side.

  Args:
    smoke: smallest sizes.
    models: networks.
    sides: longest sides of the photographs, in pixels.
    images: photographs.
    repeats: of each, in turn.
    computed: runtimes, the first is what others are compared with; those that
      are not installed are left out.
  """
  if smoke:
    sides, images, repeats = '256', 4, 1
  names = [name for name in computed.split(',') if _material.installed(name)]
  rows = []
  with tempfile.TemporaryDirectory() as folder:
    for name in models.split(','):
      workdir = pathlib.Path(folder) / name
      _material.random_run(workdir, name=name)
      for side in map(int, sides.split(',')):
        photographs = pathlib.Path(folder) / f'{side}'
        _photographs(photographs, images, side)
        rows += _measure(
          name, side, workdir, photographs, images, repeats, names
        )
  return rows


def _photographs(folder: pathlib.Path, count: int, side: int) -> None:
  """Writes simulated JPEGs whose noise makes them as large as a camera's."""
  import numpy as np
  from PIL import Image

  from iqa_jax.simulation import photograph

  if folder.exists():
    return
  folder.mkdir(parents=True)
  height = side * 2 // 3
  eyes = [
    Image.fromarray(photograph.draw(i, 512, distractors=False).image)
    for i in range(min(count, 8))
  ]
  for number in range(count):
    frame = Image.new('RGB', (side, height))
    eye = eyes[number % len(eyes)].resize((height, height))
    frame.paste(eye, ((side - height) // 2, 0))
    noise = np.random.default_rng(number).normal(0, 3, (height, side, 1))
    image = np.clip(np.asarray(frame) + noise, 0, 255).astype(np.uint8)
    Image.fromarray(image).save(folder / f'{number}.jpg', quality=90)


def _measure(
  name: str,
  side: int,
  workdir: pathlib.Path,
  photographs: pathlib.Path,
  images: int,
  repeats: int,
  names: Sequence[str],
) -> list[common.Row]:
  from iqa_jax.export import run
  from iqa_jax.export.model import Model
  from iqa_jax.export.options import Options

  stages: dict[str, dict[str, list[float]]] = {}
  functions: dict[str, Callable[[], None]] = {}
  with tempfile.TemporaryDirectory() as written:
    numbers = iter(range(10**6))

    def ours(options: Options, model: Model) -> None:
      output = os.path.join(written, f'ours{next(numbers)}')
      summary = run.run(dataclasses.replace(options, output=output), model)
      assert summary.statuses == {'ok': images}, summary.statuses
      for stage in _STAGES:
        stages[options.runtime][stage].append(summary.seconds[stage])

    for runtime in names:
      options = Options(
        str(workdir),
        str(photographs),
        '',
        outputs=('overlay',),
        colors='jet',
        opacity=0.5,
        contact_sheet=False,
        progress=False,
        runtime=runtime,
      )
      stages[runtime] = {stage: [] for stage in _STAGES}
      functions[runtime] = functools.partial(ours, options, Model(options))
    absent = ''
    with contextlib.ExitStack() as stack:
      try:
        for script, helped in _SCRIPTS.items():
          peer = stack.enter_context(
            common.Peer('peer_export', packages=_NEEDS)
          )
          threads = len(os.sched_getaffinity(0))
          peer('prepare', model=name, threads=threads, helped=helped)
          functions[script] = functools.partial(
            peer,
            'export',
            photographs=str(photographs),
            output=f'{written}/{script}',
          )
      except common.PeerAbsent as reason:
        absent = str(reason)
      times = common.alternate(functions, repeats=repeats)
  label = f'{name}, {side} px'
  rows = [
    common.Row(
      f'export, {label}, {runtime}, {_processor()}',
      common.rates(images, times[runtime]),
      'images/s',
      script,
      common.rates(images, times.get(script, ())),
      _TARGETS.get((runtime, helped), ''),
      absent or f'{images} photographs',
    )
    for script, helped in _SCRIPTS.items()
    for runtime in names
  ]
  for runtime in names[1:]:
    rows.append(
      common.Row(
        f'export, {label}: {runtime} over {names[0]}',
        [a / b for a, b in zip(times[names[0]], times[runtime], strict=True)],
        'x',
        note='pair by pair',
      )
    )
  return rows + _work(label, stages[names[0]], repeats)


def _work(
  label: str, stages: dict[str, list[float]], repeats: int
) -> list[common.Row]:
  """Returns how the processor's time is shared by the stages."""
  rows = []
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


def _processor() -> str:
  """Returns its name, and whether it multiplies matrices of bfloat16."""
  flags = pathlib.Path('/proc/cpuinfo').read_text().split()
  found = 'with' if 'amx_bf16' in flags else 'without'
  return f'{common.machine()["processor"]} {found} AMX'


if __name__ == '__main__':
  sys.exit(common.main(run))
