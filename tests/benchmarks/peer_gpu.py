"""torchvision's networks, trained and explained as a PyTorch user would.

Channels last, bfloat16 autocast and torch.compile for training, as PyTorch's
own tuning guide has it; pytorch-grad-cam as in its README. On a CPU (smoke) the
same without torch.compile.
"""

import torch

from tests.benchmarks import common, peer_explain, peer_models

DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'
_LAYERS = {
  'resnet50': lambda m: m.layer4[-1],
  'vgg16': lambda m: m.features[29],
}
_current: dict = {}


def _images(batch, size):
  torch.manual_seed(0)
  shape = (batch, 3, size, size)
  images = torch.randint(0, 256, shape, dtype=torch.uint8, device=DEVICE)
  return images.contiguous(memory_format=torch.channels_last)


def _normalize(images):
  mean = torch.tensor([0.485, 0.456, 0.406], device=DEVICE)[:, None, None]
  deviation = torch.tensor([0.229, 0.224, 0.225], device=DEVICE)[:, None, None]
  return (images.float() / 255 - mean) / deviation


def _synchronize():
  if DEVICE == 'cuda':
    torch.cuda.synchronize()


def prepare_training(model, size, batch):
  """Builds the network and its step; the first step compiles."""
  _current.clear()
  if DEVICE == 'cuda':
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
  torch.backends.cudnn.benchmark = True
  network = peer_models.MODELS[model](num_classes=2)
  network = network.to(DEVICE, memory_format=torch.channels_last).train()
  optimizer = torch.optim.AdamW(
    network.parameters(), lr=1e-4, fused=DEVICE == 'cuda'
  )
  images = _images(batch, size)
  labels = torch.arange(batch, device=DEVICE) % 2

  def loss_of(images):
    with torch.autocast(DEVICE, torch.bfloat16):
      logits = network(_normalize(images))
    return torch.nn.functional.cross_entropy(logits.float(), labels)

  compiled = torch.compile(loss_of) if DEVICE == 'cuda' else loss_of

  def step():
    optimizer.zero_grad(set_to_none=True)
    loss = compiled(images)
    loss.backward()
    optimizer.step()
    return loss

  _current['step'] = step
  train(3 if DEVICE == 'cuda' else 1)


def train(steps):
  """Does `steps` updates and waits for the last."""
  for _ in range(steps):
    loss = _current['step']()
  _synchronize()
  return float(loss)


def peak_gb():
  """Returns the most memory in use since the network was built, or None."""
  if DEVICE != 'cuda':
    return None
  return torch.cuda.max_memory_allocated() / 2**30


def prepare_gradcam(model, size, batch):
  """Builds the network and pytorch-grad-cam's GradCAM on it."""
  peer_explain.stand_in_for_torchvision()
  from pytorch_grad_cam import GradCAM

  _current.clear()
  network = peer_models.MODELS[model](num_classes=2)
  network = network.to(DEVICE, memory_format=torch.channels_last).eval()
  _current['cam'] = GradCAM(network, [_LAYERS[model](network)])
  _current['images'] = _normalize(_images(batch, size))
  gradcam(1)


def gradcam(times):
  """Explains the batch `times` times."""
  from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

  images = _current['images']
  targets = [ClassifierOutputTarget(1)] * len(images)
  for _ in range(times):
    _current['cam'](input_tensor=images, targets=targets)
  _synchronize()


if __name__ == '__main__':
  common.serve(
    {
      f.__name__: f
      for f in (prepare_training, train, peak_gb, prepare_gradcam, gradcam)
    },
    versions=('torch', 'grad-cam'),
  )
