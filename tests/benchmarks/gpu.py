"""Training and Grad-CAM on a GPU, against PyTorch; one run of under 8 minutes.

  python -m tests.benchmarks.gpu --output=/tmp/figures
  JAX_PLATFORMS=cpu python -m tests.benchmarks.gpu --smoke

ResNet50 and VGG16 as torchvision builds them, 2 classes, AdamW, everything
learns, compute in bfloat16, images already on the device. PyTorch runs with
channels_last, bf16 autocast and torch.compile, on the same GPU in turn. Model
FLOPs utilisation counts three forward passes' FLOPs an image (XLA's count) over
the GPU's dense bfloat16 peak.
"""

import contextlib
import os
import sys
import threading
import time

from tests.benchmarks import common

# Dense bfloat16 tensor-core peaks in TFLOP/s from NVIDIA's data sheets.
_PEAK = {
  'B200': 2250,
  'H200': 989,
  'H100': 989,
  'GH200': 989,
  'A100': 312,
  'L40S': 362,
  'L4': 121,
  'A10': 125,
  'RTX 4090': 165,
}


def run(
  *,
  smoke: bool = False,
  budget: float = 420.0,
  repeats: int = 5,
  steps: int = 10,
  only: str = '',
) -> list[common.Row]:
  """Measures until `budget` seconds are over; what is left out is noted.

  `only` is the training of one case, such as 'vgg16 512'.
  """
  # Half of the GPU for each: both networks are on it at the same time.
  os.environ.setdefault('XLA_CLIENT_MEM_FRACTION', '0.45')
  begin = time.monotonic()
  cases = [
    ('resnet50', 224, 128),
    ('vgg16', 224, 128),
    ('resnet50', 512, 32),
    ('vgg16', 512, 32),
  ]
  if smoke:
    cases = [('resnet50', 64, 2), ('vgg16', 64, 2)]
    repeats, steps = 2, 1
  if only:
    cases = [case for case in cases if f'{case[0]} {case[1]}' == only]
    if not cases:
      raise SystemExit(f'--only={only}: no such network and side')
  rows = []
  with contextlib.ExitStack() as stack:
    try:
      peer = stack.enter_context(
        common.Peer('peer_gpu', packages=('torch', 'pytorch_grad_cam'))
      )
      absent = ''
    except common.PeerAbsent as reason:
      peer, absent = None, str(reason)
    for measure in (_training,) if only else (_gradcam, _training):
      for case in cases:
        if measure is _gradcam and case[1] == 512:
          continue
        if time.monotonic() - begin > budget:
          print(f'left out, over {budget} s: {case}', file=sys.stderr)
          continue
        new = measure(*case, peer, absent, repeats, steps)
        for row in new:
          print(row, file=sys.stderr, flush=True)
        rows += new
  return rows


def _prepare(peer, function, prepare_ours, **arguments):
  """Runs our preparation while the peer compiles too; returns ours."""
  threads = []
  if peer:
    threads = [
      threading.Thread(target=peer, args=(function,), kwargs=arguments)
    ]
  for thread in threads:
    thread.start()
  ours = prepare_ours()
  for thread in threads:
    thread.join()
  return ours


def _versus(peer, ours, function, repeats, **arguments):
  functions = {'ours': ours}
  if peer:
    functions['peer'] = lambda: peer(function, **arguments)
  times = common.alternate(functions, repeats=repeats)
  return times['ours'], times.get('peer', [])


def _inputs(size, batch):
  import numpy as np

  rng = np.random.default_rng(0)
  return {
    'image': rng.integers(0, 256, (batch, size, size, 3), np.uint8),
    'mask': np.ones(batch, np.float32),
    'index': np.arange(batch, dtype=np.int32),
    'quality': np.arange(batch, dtype=np.int32) % 2,
    'grade': np.full(batch, -1, np.int32),
    'criteria': np.full((batch, 4), -1, np.int32),
  }


def _training(name, size, batch, peer, absent, repeats, steps):
  """Returns the rows of training: images/s, utilisation, peak memory."""
  import jax

  from iqa_jax import config as config_lib
  from iqa_jax import devices, models, tasks
  from iqa_jax.training import phases
  from iqa_jax.training import step as step_lib

  def ours():
    model = models.create(
      name, 2, head='imagenet', dtype='bfloat16', axis_name=devices.AXIS
    )
    variables = models.init(model, jax.random.key(0), size)
    learning = phases.learning(
      config_lib.phase(learning_rate=1e-4),
      variables['params'],
      model.stages,
      steps_per_epoch=1000,
    )
    state = step_lib.begin_phase(step_lib.create_state(variables), learning)
    state = devices.place(state)
    inputs = step_lib.for_step(_inputs(size, batch), stop=False, accumulate=1)
    mesh = jax.sharding.Mesh(jax.local_devices(), (devices.AXIS,))
    inputs = jax.device_put(
      inputs,
      jax.sharding.NamedSharding(
        mesh, jax.sharding.PartitionSpec(devices.AXIS)
      ),
    )
    step = step_lib.make_train_step(model, tasks.Task(), learning)
    memory = step.lower(state, inputs).compile().memory_analysis()
    forward = jax.jit(lambda v, x: model.apply(v, models.normalize(x)))
    images = jax.ShapeDtypeStruct((1, size, size, 3), 'uint8')
    # Counted for the CPU: XLA does not look into cuDNN's convolutions.
    with jax.default_device(jax.devices('cpu')[0]):
      lowered = forward.lower(models.shapes(model, size), images)
      flops = lowered.compile().cost_analysis()['flops']
    return {
      'step': step,
      'state': step(state, inputs)[0],
      'inputs': inputs,
      'memory': memory,
      'flops': 3 * flops,
    }

  held = _prepare(
    peer, 'prepare_training', ours, model=name, size=size, batch=batch
  )

  def train():
    for _ in range(steps):
      held['state'], metrics = held['step'](held['state'], held['inputs'])
    return metrics

  ours_s, peer_s = _versus(peer, train, 'train', repeats, steps=steps)
  what = f'{name} {size} px, batch {batch}'
  rates = common.rates(steps * batch, ours_s)
  peer_rates = common.rates(steps * batch, peer_s)
  rows = [
    common.Row(
      f'training {what}',
      rates,
      'images/s',
      'torch.compile bf16',
      peer_rates,
      'at least 1.0x',
      absent,
    )
  ]
  device = jax.devices()[0]
  peak = next(
    (t for kind, t in _PEAK.items() if kind in device.device_kind.split()),
    None,
  )
  if peak:
    count = devices.local_count()
    share = 100 * held['flops'] / (peak * 1e12)
    rows.append(
      common.Row(
        f'model FLOPs utilisation {what}',
        [share * rate / count for rate in rates],
        '%',
        'torch.compile bf16',
        [share * rate for rate in peer_rates],
        note=f'{held["flops"] / 1e9:.1f} GFLOP an image; peak {peak} TFLOP/s',
      )
    )
  memory = held['memory']
  needed = (
    memory.argument_size_in_bytes
    + memory.output_size_in_bytes
    - memory.alias_size_in_bytes
    + memory.temp_size_in_bytes
  )
  theirs = peer('peak_gb') if peer else None
  rows.append(
    common.Row(
      f'training memory {what}',
      [needed / 2**30],
      'GB',
      'torch peak',
      [theirs] if theirs else [],
      note="ours from XLA's memory analysis of the compiled step, arguments "
      'and temporaries; torch.cuda.max_memory_allocated',
    )
  )
  return rows


def _gradcam(name, size, batch, peer, absent, repeats, steps):
  """Returns the rows of Grad-CAM in float32 (as the peer) and bfloat16."""
  import jax
  import numpy as np

  from iqa_jax import models, tasks
  from iqa_jax.explain import cam

  def prepare(dtype):
    model = models.create(name, 2, head='imagenet', dtype=dtype)
    variables = models.init(model, jax.random.key(0), size)
    task = tasks.Task()

    @jax.jit
    def explain(variables, images, targets):
      x = models.normalize(images)
      explanation = cam.explain(model, variables, x, targets, task=task)
      return explanation.logits, explanation.maps

    arguments = jax.device_put(
      (variables, _inputs(size, batch)['image'], np.ones(batch, np.int32))
    )

    def several():
      # To the host, as the peer's maps are.
      return [jax.device_get(explain(*arguments)) for _ in range(steps)]

    several()
    return several

  what = f'{name} {size} px, batch {batch}'
  ours = _prepare(
    peer,
    'prepare_gradcam',
    lambda: prepare('float32'),
    model=name,
    size=size,
    batch=batch,
  )
  ours_s, peer_s = _versus(peer, ours, 'gradcam', repeats, times=steps)
  half_s = common.measure(prepare('bfloat16'), repeats=repeats)
  peer_rates = common.rates(steps * batch, peer_s)
  return [
    common.Row(
      f'Grad-CAM {dtype} {what}',
      common.rates(steps * batch, times),
      'images/s',
      'pytorch-grad-cam float32',
      peer_rates,
      'at least 3x',
      absent,
    )
    for dtype, times in (('float32', ours_s), ('bfloat16', half_s))
  ]


if __name__ == '__main__':
  sys.exit(common.main(run))
