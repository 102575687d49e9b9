"""pytorch-grad-cam as a user runs it on a CPU: the peer of explain.py."""

import importlib.util
import sys
import types

import torch

from tests.benchmarks import common, peer_models

_LAYERS = {
  'resnet50': lambda m: m.layer4[-1],
  'vgg16': lambda m: m.features[29],
}
_current: dict = {}


def stand_in_for_torchvision() -> None:
  """Lets pytorch-grad-cam be imported where there is no torchvision.

  CPU-only torch comes without it. The names are imported there for functions
  (SESS, object detection, image files) that Grad-CAM never calls.
  """
  if importlib.util.find_spec('torchvision'):
    return
  for name in ('', '.ops', '.transforms', '.transforms.functional'):
    sys.modules[f'torchvision{name}'] = types.ModuleType(f'torchvision{name}')
  sys.modules['torchvision.transforms.functional'].resize = None
  for name in ('Compose', 'Normalize', 'ToTensor'):
    setattr(sys.modules['torchvision.transforms'], name, None)


def prepare(model, size, batch, threads):
  """Builds the network and GradCAM on it, and draws a batch."""
  stand_in_for_torchvision()
  from pytorch_grad_cam import GradCAM

  torch.set_num_threads(threads)
  torch.manual_seed(0)
  network = peer_models.MODELS[model]().eval()
  _current['cam'] = GradCAM(network, [_LAYERS[model](network)])
  _current['network'] = network
  _current['images'] = torch.randn(batch, 3, size, size)
  explain()


def explain():
  """Explains the batch: maps scaled to the images' size, in NumPy."""
  from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

  images = _current['images']
  targets = [ClassifierOutputTarget(1)] * len(images)
  _current['cam'](input_tensor=images, targets=targets)


def forward():
  """Only predicts, without gradients."""
  with torch.no_grad():
    _current['network'](_current['images'])


if __name__ == '__main__':
  common.serve(
    {f.__name__: f for f in (prepare, explain, forward)},
    versions=('torch', 'grad-cam'),
  )
