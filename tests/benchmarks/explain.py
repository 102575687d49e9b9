"""Grad-CAM: what it costs over a forward pass, and beside pytorch-grad-cam.

Both peers start from the same random images and end with maps of the images'
size in NumPy, stretched as pytorch-grad-cam does it.
"""

from __future__ import annotations

import os
import statistics
import sys

from tests.benchmarks import common

_TARGETS = {'resnet50': 'at least 2x', 'vgg16': 'at least 3x'}


def run(
  *, smoke: bool = False, size: int = 224, batch: int = 8, repeats: int = 9
) -> list[common.Row]:
  """Measures both networks with their ImageNet heads."""
  if smoke:
    size, batch, repeats = 64, 2, 2
  rows = []
  for name in _TARGETS:
    rows += _network(name, size, batch, repeats)
  return rows


def _network(name, size, batch, repeats):
  import functools

  import jax
  import numpy as np

  from iqa_jax import models
  from iqa_jax.explain import cam, scaling

  class Logits:
    """A task whose scores are the logits."""

    def scores(self, logits):
      return logits

  model = models.create(name, 1000, head='imagenet')
  rng = np.random.default_rng(0)
  images = rng.standard_normal((batch, size, size, 3)).astype(np.float32)
  variables = models.init(model, jax.random.key(0), size)
  explain = functools.partial(cam.explain, model, task=Logits())
  all_methods = functools.partial(explain, methods=cam.METHODS)
  targets = np.ones(batch, np.int32)
  forward = jax.jit(model.apply).lower(variables, images).compile()
  explained, everything = (
    jax.jit(f).lower(variables, images, targets).compile()
    for f in (explain, all_methods)
  )

  functions = {
    'forward': lambda: jax.device_get(forward(variables, images)),
    'explain': lambda: _maps(explained(variables, images, targets)),
    'all methods': lambda: _maps(everything(variables, images, targets)),
    'finished': lambda: scaling.scale(
      _maps(explained(variables, images, targets)), 'image', (size, size)
    ),
  }
  absent, peer = '', None
  try:
    peer = common.Peer('peer_explain', packages=('torch', 'pytorch_grad_cam'))
    peer(
      'prepare',
      model=name,
      size=size,
      batch=batch,
      threads=len(os.sched_getaffinity(0)),
    )
    functions['peer'] = lambda: peer('explain')
    functions['peer forward'] = lambda: peer('forward')
  except common.PeerAbsent as reason:
    absent = str(reason)
  times = common.alternate(functions, repeats=repeats)
  if peer is not None:
    peer.__exit__()

  what = f'{name} {size} px, batch {batch}'
  flops = [c.cost_analysis()['flops'] for c in (explained, forward)]

  def ratios(over):
    # Of times measured next to each other, so that slow minutes cancel.
    pairs = zip(times[over], times['forward'], strict=True)
    return [a / b for a, b in pairs]

  theirs = common.rates(batch, times.get('peer', []))
  rows = [
    common.Row(
      f'explain / forward FLOPs, {what}',
      [flops[0] / flops[1]],
      'times',
      target='at most 1.05',
      note=f'{flops[1] / batch / 1e9:.2f} GFLOP an image forward',
    ),
    common.Row(
      f'explain / forward time, {what}',
      ratios('explain'),
      'times',
      target='at most 1.15',
    ),
    common.Row(
      f'six methods / forward time, {what}', ratios('all methods'), 'times'
    ),
    common.Row(
      f'Grad-CAM, {what}',
      common.rates(batch, times['finished']),
      'images/s',
      'pytorch-grad-cam',
      theirs,
      _TARGETS[name],
      absent,
    ),
    common.Row(
      f'forward alone, {what}',
      common.rates(batch, times['forward']),
      'images/s',
      'PyTorch',
      common.rates(batch, times.get('peer forward', [])),
      note=absent,
    ),
  ]
  if theirs:
    cost = statistics.median(times['peer']) / statistics.median(
      times['peer forward']
    )
    rows.append(
      common.Row(
        f'pytorch-grad-cam / PyTorch forward time, {what}', [cost], 'times'
      )
    )
  return rows


def _maps(explanation):
  import numpy as np

  return np.asarray(explanation.maps['gradcam'])


if __name__ == '__main__':
  sys.exit(common.main(run))
