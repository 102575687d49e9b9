"""Makes golden.npz from torch; run once, the result is committed.

  python -m tests.models.make_golden SHARED/reference   # with torch, no JAX

The argument is a folder of torchvision's own outputs under the weights of
reference.py. The logits at 224 px are copied from there; the networks of
tests/benchmarks/peer_models.py must give the same, and then add what the folder
has not: feature maps, other image sizes, training mode, gradients.
"""

import pathlib
import sys

import numpy as np
import torch
from torch.nn import functional

from tests.benchmarks import peer_models
from tests.models import reference

OUTPUT = pathlib.Path(__file__).parent / 'golden.npz'
# Feature points in order, and where torch computes them.
POINTS = {
  'resnet50': {
    'stem': 'maxpool',
    **{f'stage{i}': f'layer{i}' for i in range(1, 5)},
  },
  'vgg16': {
    f'block{block}{suffix}': f'features.{position + offset}'
    for block, position in enumerate((3, 8, 15, 22, 29), 1)
    for suffix, offset in (('', 0), ('_pool', 1))
  },
}
WIDTH = 0.125  # of everything but the logits and maps at 224 px


def build(name: str, **kwargs) -> torch.nn.Module:
  """Returns a network in evaluation mode under the reference weights."""
  model = peer_models.MODELS[name](**kwargs)
  state = model.state_dict()
  weights = reference.weights({k: list(v.shape) for k, v in state.items()})
  model.load_state_dict({k: torch.tensor(v) for k, v in weights.items()})
  return model.eval()


def images(*size: int, count: int = 2) -> torch.Tensor:
  return torch.tensor(
    reference.images(*size, count=count).transpose(0, 3, 1, 2).copy()
  )


def maps(name: str, model: torch.nn.Module, x: torch.Tensor) -> dict:
  """Returns mean, deviation and a few values of every point's map."""
  found, hooks = {}, []
  for point, place in POINTS[name].items():

    def keep(_, __, output, point=point):
      found[point] = output.detach().numpy().transpose(0, 2, 3, 1).copy()

    hooks.append(model.get_submodule(place).register_forward_hook(keep))
  with torch.no_grad():
    model(x)
  for hook in hooks:
    hook.remove()
  golden = {}
  for point, value in found.items():
    golden[f'{point}/moments'] = np.asarray([value.mean(), value.std()])
    golden[f'{point}/values'] = value[
      :1, :: value.shape[1] // 6, :: value.shape[2] - 1, :4
    ]
  return golden


def main(folder: str) -> None:
  golden = {}
  for name in peer_models.MODELS:
    published = np.load(pathlib.Path(folder) / f'{name}_reference.npz')
    model = build(name)
    x = images(224, 224)
    with torch.no_grad():
      logits = model(x).numpy()
    expected = published['224x224/logits']
    error = np.abs(logits - expected).max() / np.abs(expected).max()
    print(f'{name}: {error:.1e} from torchvision')
    assert error < 1e-5
    golden[f'{name}/224x224/logits'] = expected
    for key, value in maps(name, model, x).items():
      golden[f'{name}/224x224/{key}'] = value

    model = build(name, num_classes=10, width=WIDTH)
    for size in ((64, 64), (97, 65), (160, 256), (33, 40)):
      with torch.no_grad():
        golden[f'{name}/{size[0]}x{size[1]}/logits'] = model(images(*size))

    # One training step's statistics and gradients; VGG's dropout stays off.
    model.train(name == 'resnet50')
    loss = functional.cross_entropy(
      model(images(64, 64, count=4)), torch.tensor([0, 3, 9, 3])
    )
    loss.backward()
    golden[f'{name}/train/loss'] = loss.detach()
    for key, value in model.named_parameters():
      golden[f'{name}/train/gradient/{key}'] = value.grad.norm()
    for key, value in model.named_buffers():
      if not key.endswith('tracked'):
        golden[f'{name}/train/statistics/{key}'] = value.norm()

  # The earlier work's network: its checkpoint's names, its head.
  model = peer_models.VGG16(None, width=WIDTH)
  mine = {
    name: name.replace('classifier.0', 'fc1').replace('classifier.3', 'fc2')
    for name in model.state_dict()
  }
  shapes = {mine[k]: list(v.shape) for k, v in model.state_dict().items()}
  weights = reference.weights(shapes)
  model.load_state_dict({k: torch.tensor(weights[mine[k]]) for k in mine})
  model.eval()
  with torch.no_grad():
    for size in (224, 160):
      golden[f'earlier/{size}x{size}/logits'] = model(images(size, size))
  np.savez_compressed(
    OUTPUT, **{k: np.asarray(v, np.float32) for k, v in golden.items()}
  )
  print(f'{OUTPUT}: {OUTPUT.stat().st_size} bytes')


if __name__ == '__main__':
  main(*sys.argv[1:])
