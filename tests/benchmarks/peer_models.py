"""torchvision's ResNet-50 and VGG-16, written out for machines without it.

torchvision publishes no build beside CPU-only torch. Tensor names, order of
operations and initial values are torchvision's; tests/models/make_golden.py
checks the outputs against torchvision's own.
"""

from __future__ import annotations

from torch import nn

CONVOLUTIONS = (2, 2, 3, 3, 3)
BLOCKS = (3, 4, 6, 3)


class _Bottleneck(nn.Module):
  def __init__(self, inputs: int, channels: int, stride: int):
    super().__init__()
    outputs = 4 * channels
    self.conv1 = nn.Conv2d(inputs, channels, 1, bias=False)
    self.bn1 = nn.BatchNorm2d(channels)
    self.conv2 = nn.Conv2d(channels, channels, 3, stride, 1, bias=False)
    self.bn2 = nn.BatchNorm2d(channels)
    self.conv3 = nn.Conv2d(channels, outputs, 1, bias=False)
    self.bn3 = nn.BatchNorm2d(outputs)
    self.relu = nn.ReLU(inplace=True)
    self.downsample = None
    if stride != 1 or inputs != outputs:
      self.downsample = nn.Sequential(
        nn.Conv2d(inputs, outputs, 1, stride, bias=False),
        nn.BatchNorm2d(outputs),
      )

  def forward(self, x):
    y = self.relu(self.bn1(self.conv1(x)))
    y = self.relu(self.bn2(self.conv2(y)))
    y = self.bn3(self.conv3(y))
    y += x if self.downsample is None else self.downsample(x)
    return self.relu(y)


class ResNet50(nn.Module):
  """Takes images [b, 3, h, w]; `layer4` is the last feature map."""

  def __init__(self, num_classes: int = 1000, width: float = 1.0):
    super().__init__()
    inputs = round(64 * width)
    self.conv1 = nn.Conv2d(3, inputs, 7, 2, 3, bias=False)
    self.bn1 = nn.BatchNorm2d(inputs)
    self.relu = nn.ReLU(inplace=True)
    self.maxpool = nn.MaxPool2d(3, 2, 1)
    for i, blocks in enumerate(BLOCKS):
      channels = round(64 * 2**i * width)
      stage = []
      for j in range(blocks):
        stride = 2 if i > 0 and j == 0 else 1
        stage.append(_Bottleneck(inputs, channels, stride))
        inputs = 4 * channels
      setattr(self, f'layer{i + 1}', nn.Sequential(*stage))
    self.fc = nn.Linear(inputs, num_classes)
    for module in self.modules():
      if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode='fan_out')

  def forward(self, x):
    x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
    x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
    return self.fc(x.mean((2, 3)))


class VGG16(nn.Module):
  """Takes images [b, 3, h, w]; `features[29]` is the last map before pooling.

  With `num_classes` None it ends in the earlier work's head instead: one
  hidden layer of 512 and two outputs.
  """

  def __init__(self, num_classes: int | None = 1000, width: float = 1.0):
    super().__init__()
    layers: list[nn.Module] = []
    inputs = 3
    for count, full in zip(CONVOLUTIONS, (64, 128, 256, 512, 512), strict=True):
      channels = round(full * width)
      for _ in range(count):
        layers += [nn.Conv2d(inputs, channels, 3, padding=1)]
        layers += [nn.ReLU(inplace=True)]
        inputs = channels
      layers += [nn.MaxPool2d(2, 2)]
    self.features = nn.Sequential(*layers)
    self.avgpool = nn.AdaptiveAvgPool2d((7, 7))
    flat = inputs * 7 * 7
    hidden = round(4096 * width)
    if num_classes is None:
      hidden = round(512 * width)
      self.classifier = nn.Sequential(
        nn.Linear(flat, hidden),
        nn.ReLU(True),
        nn.Dropout(),
        nn.Linear(hidden, 2),
      )
    else:
      self.classifier = nn.Sequential(
        *(nn.Linear(flat, hidden), nn.ReLU(True), nn.Dropout()),
        *(nn.Linear(hidden, hidden), nn.ReLU(True), nn.Dropout()),
        nn.Linear(hidden, num_classes),
      )
    for module in self.modules():
      if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode='fan_out')
        nn.init.zeros_(module.bias)

  def forward(self, x):
    return self.classifier(self.avgpool(self.features(x)).flatten(1))


MODELS = {'resnet50': ResNet50, 'vgg16': VGG16}
