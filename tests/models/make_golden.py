"""Makes golden.npz and *.pth with torch; run once, the result is committed.

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
TINY = 1 / 64  # of the checkpoint files


class Earlier(torch.nn.Module):
  """The earlier work's network; its checkpoint names every layer twice."""

  def __init__(self, width: float):
    super().__init__()
    self.model = peer_models.VGG16(None, width)
    self.features = self.model.features
    self.fc1, *self.middle, self.fc2 = self.model.classifier
    self.model.classifier = torch.nn.Identity()

  def forward(self, x):
    x = self.model.avgpool(self.features(x)).flatten(1)
    for layer in (self.fc1, *self.middle, self.fc2):
      x = layer(x)
    return x

  def train(self, mode=True):
    for layer in self.middle:
      layer.train(mode)
    return super().train(mode)


def build(name: str, **kwargs) -> torch.nn.Module:
  """Returns a network in evaluation mode under the reference weights."""
  model = peer_models.MODELS[name](**kwargs)
  weights = reference.weights(state(model))
  model.load_state_dict({k: torch.tensor(v) for k, v in weights.items()})
  return model.eval()


def state(model: torch.nn.Module) -> dict[str, list[int]]:
  """Returns the names and shapes of a network's tensors."""
  return {k: list(v.shape) for k, v in model.state_dict().items()}


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

  for width in (WIDTH, TINY):
    model = Earlier(width)
    model.load_state_dict(
      {
        k: torch.tensor(v)
        for k, v in reference.weights(
          # Both names of a layer get the same values.
          {k.removeprefix('model.'): v for k, v in state(model).items()}
        ).items()
      },
      strict=False,
    )
    model.eval()
    for size in (224, 160) if width == WIDTH else (64,):
      with torch.no_grad():
        golden[f'earlier/{size}x{size}/logits'] = model(images(size, size))
  for name, zipped in (('zip', True), ('legacy', False)):
    torch.save(
      model.state_dict(),
      OUTPUT.parent / f'earlier_{name}.pth',
      _use_new_zipfile_serialization=zipped,
    )
  numbers = torch.arange(60.0).reshape(6, 10)
  torch.save(
    {
      'epoch': 3,
      'optimizer': {'state': {0: {'step': torch.tensor(1.0)}}, 'lr': 1e-3},
      'state_dict': {
        'transposed': numbers.t(),
        'part': numbers[2:4, 1:9:2],
        'half': numbers[0].half(),
        'bfloat16': numbers[1].bfloat16(),
        'integers': torch.tensor([1, 2**40]),
        'scalar': torch.tensor(7),
        'parameter': torch.nn.Parameter(numbers[5]),
      },
    },
    OUTPUT.parent / 'training.pth',
  )
  np.savez_compressed(
    OUTPUT, **{k: np.asarray(v, np.float32) for k, v in golden.items()}
  )
  print(f'{OUTPUT}: {OUTPUT.stat().st_size} bytes')


if __name__ == '__main__':
  main(*sys.argv[1:])
