"""The earlier work's fine-tuning in PyTorch, with its usual DataLoader."""

from __future__ import annotations

import torch

from tests.benchmarks import common, peer_input, peer_models

_current: dict = {}


class _Flipped(peer_input.Photographs):
  """The photographs, some mirrored half of the time, with a label."""

  def __init__(self, folder: str, size: int, share: float):
    super().__init__(folder, size)
    self._share = share

  def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
    image = super().__getitem__(index)
    mirrored = torch.rand(()) < self._share
    return (image.flip(-1) if mirrored else image), index % 2


def prepare(
  folder: str, size: int, training: int, batch: int, workers: int
) -> None:
  """Builds the network with its dense head, and workers that stay.

  The first `training` photographs learn, the others validate.
  """
  torch.manual_seed(0)
  network = peer_models.MODELS['vgg16'](num_classes=2)
  network.classifier = torch.nn.Sequential(
    torch.nn.Linear(network.classifier[0].in_features, 512),
    torch.nn.ReLU(),
    torch.nn.Dropout(0.5),
    torch.nn.Linear(512, 2),
  )
  _current['network'] = network
  for name, share in (('training', 0.5), ('validation', 0.0)):
    photographs = _Flipped(folder, size, share)
    learn = name == 'training'
    chosen = range(training) if learn else range(training, len(photographs))
    _current[name] = torch.utils.data.DataLoader(
      torch.utils.data.Subset(photographs, list(chosen)),
      batch_size=batch,
      shuffle=learn,
      num_workers=workers,
      persistent_workers=True,
    )


def epoch(last_block: bool) -> int:
  """Trains the head, or the last block with it, for an epoch, and validates."""
  network = _current['network'].train()
  for name, parameter in network.named_parameters():
    number = name.split('.')[1]
    parameter.requires_grad = name.startswith('classifier') or (
      # torchvision numbers the last block's convolutions 24, 26 and 28.
      last_block and name.startswith('features') and int(number) >= 24
    )
  learning = [p for p in network.parameters() if p.requires_grad]
  optimizer = torch.optim.Adam(learning, 1e-6 if last_block else 1e-5)
  count = 0
  for images, labels in _current['training']:
    optimizer.zero_grad(set_to_none=True)
    loss = torch.nn.functional.cross_entropy(network(images), labels)
    loss.backward()
    optimizer.step()
    count += len(images)
  network.eval()
  with torch.inference_mode():
    for images, labels in _current['validation']:
      torch.nn.functional.cross_entropy(network(images), labels).item()
  return count


if __name__ == '__main__':
  common.serve(
    {'prepare': prepare, 'epoch': epoch}, versions=('torch', 'pillow')
  )
