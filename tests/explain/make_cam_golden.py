"""Makes cam_golden.npz from pytorch-grad-cam; run once, then committed.

  python -m tests.explain.make_cam_golden    # with torch and grad-cam, no JAX

Narrow networks under the weights of tests/models/reference.py. Unlike the
reference outputs in the shared folder, these are signed maps of every method
before any scaling, of lower layers and several at once, and of a non-square
image.
"""

import pathlib

import numpy as np
import torch

from tests.benchmarks import peer_explain, peer_models
from tests.models import make_golden

OUTPUT = pathlib.Path(__file__).parent / 'cam_golden.npz'
SIZE = (96, 64)
CLASSES = (3, 7)
LAYERS = {
  'resnet50': {'stage2': 'layer2', 'stage4': 'layer4'},
  'vgg16': {'block4': 'features.22', 'block5': 'features.29'},
}


def main() -> None:
  peer_explain.stand_in_for_torchvision()
  import pytorch_grad_cam as peer
  from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

  methods = {
    'gradcam': peer.GradCAM,
    'gradcampp': peer.GradCAMPlusPlus,
    'hirescam': peer.HiResCAM,
    'layercam': peer.LayerCAM,
    'xgradcam': peer.XGradCAM,
    'eigencam': peer.EigenCAM,
  }
  x = make_golden.images(*SIZE)
  targets = [ClassifierOutputTarget(c) for c in CLASSES]
  golden = {}
  for name in peer_models.MODELS:
    network = make_golden.build(name, num_classes=10, width=make_golden.WIDTH)
    places = {k: network.get_submodule(v) for k, v in LAYERS[name].items()}
    for method, kind in methods.items():
      for layer, place in places.items():
        with kind(network, [place]) as cam:
          # Keeps the map that the library goes on to scale.
          whole = cam.get_cam_image

          def keep(*args, key=f'{name}/{method}/{layer}', whole=whole):
            golden[key] = whole(*args)
            return golden[key]

          cam.get_cam_image = keep
          cam(input_tensor=x, targets=targets)
    with peer.GradCAM(network, list(places.values())) as cam:
      golden[f'{name}/several'] = cam(input_tensor=x, targets=targets)[
        :, ::5, ::5
      ]
  np.savez_compressed(
    OUTPUT, **{k: np.asarray(v, np.float32) for k, v in golden.items()}
  )
  print(f'{OUTPUT}: {OUTPUT.stat().st_size} bytes')


if __name__ == '__main__':
  torch.manual_seed(0)
  main()
