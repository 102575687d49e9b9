"""The peer of export.py: the script that one would write for it."""

import contextlib
import os

import torch

from tests.benchmarks import common, peer_explain, peer_models

_current: dict = {}


def prepare(model, threads, helped=False):
  """Builds the network and GradCAM on it.

  Args:
    model: 'resnet50' or 'vgg16'.
    threads: of PyTorch and of OpenCV.
    helped: whether the passes are in bfloat16 and channels_last, which is as
      far as PyTorch goes without a compiler.
  """
  peer_explain.stand_in_for_torchvision()
  import cv2
  from pytorch_grad_cam import GradCAM

  torch.set_num_threads(threads)
  cv2.setNumThreads(threads)
  torch.manual_seed(0)
  heads = {'resnet50': 2, 'vgg16': None}
  network = peer_models.MODELS[model](heads[model]).eval()
  layer = network.layer4[-1] if model == 'resnet50' else network.features[29]
  _current['layout'] = torch.contiguous_format
  _current['precision'] = contextlib.nullcontext
  if helped:
    _current['layout'] = torch.channels_last
    _current['precision'] = lambda: torch.autocast('cpu', torch.bfloat16)
    network = network.to(memory_format=torch.channels_last)
    # GradCAM makes NumPy arrays of both, and NumPy has no bfloat16.
    for module in (layer, network):
      module.register_forward_hook(lambda module, taken, given: given.float())
  _current['cam'] = GradCAM(network, [layer])


def export(photographs, output):
  """Writes an overlay of every photograph of a folder."""
  import cv2
  import numpy as np
  from pytorch_grad_cam.utils.image import show_cam_on_image

  os.makedirs(output, exist_ok=True)
  mean = np.array([0.485, 0.456, 0.406], np.float32)
  deviation = np.array([0.229, 0.224, 0.225], np.float32)
  for name in sorted(os.listdir(photographs)):
    bgr = cv2.imread(os.path.join(photographs, name))
    rgb = np.float32(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)) / 255
    small = cv2.resize(rgb, (224, 224), interpolation=cv2.INTER_AREA)
    tensor = torch.from_numpy((small - mean) / deviation).permute(2, 0, 1)
    tensor = tensor[None].contiguous(memory_format=_current['layout'])
    with _current['precision']():
      # No targets: the highest-scoring class, as in the package's examples.
      map_ = _current['cam'](input_tensor=tensor, targets=None)[0]
    map_ = cv2.resize(map_, bgr.shape[1::-1])
    overlay = show_cam_on_image(rgb, map_, use_rgb=True)
    cv2.imwrite(
      os.path.join(output, name),
      cv2.cvtColor(overlay, cv2.COLOR_RGB2BGR),
      [cv2.IMWRITE_JPEG_QUALITY, 90],
    )


if __name__ == '__main__':
  common.serve(
    {f.__name__: f for f in (prepare, export)},
    versions=('torch', 'grad-cam', 'opencv-python-headless'),
  )
