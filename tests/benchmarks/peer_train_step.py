"""The same training step in PyTorch: float32, AdamW, its own thread pool."""

import torch

from tests.benchmarks import common, peer_models

_current: dict = {}


def prepare(model: str, size: int, batch: int, channels_last: bool) -> None:
  """Builds a network and its data."""
  torch.manual_seed(0)
  layout = torch.channels_last if channels_last else torch.contiguous_format
  network = peer_models.MODELS[model](num_classes=2)
  network = network.to(memory_format=layout).train()
  images = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8)
  _current.update(
    network=network,
    optimizer=torch.optim.AdamW(network.parameters(), lr=1e-4),
    images=images.contiguous(memory_format=layout),
    labels=torch.arange(batch) % 2,
  )


def step() -> float:
  """Does one update; returns its loss."""
  mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
  deviation = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
  images = (_current['images'].float() / 255 - mean) / deviation
  _current['optimizer'].zero_grad(set_to_none=True)
  logits = _current['network'](images)
  loss = torch.nn.functional.cross_entropy(logits, _current['labels'])
  loss.backward()
  _current['optimizer'].step()
  return loss.item()


if __name__ == '__main__':
  common.serve({'prepare': prepare, 'step': step}, versions=('torch',))
