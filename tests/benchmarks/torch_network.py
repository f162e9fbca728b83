"""A plain ResNet in PyTorch, with the names that torchvision and timm give its parts.

PyTorch is needed to import this.
"""

from collections.abc import Callable, Sequence

import torch
from torch import nn


def convolution(inside: int, outside: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """Returns a convolution without bias, padded by kernel // 2."""
    return nn.Conv2d(inside, outside, kernel, stride, kernel // 2, bias=False)


class Block(nn.Module):
    """A basic or a bottleneck block, which strides in its 3 x 3.

    Args:
      inside: channels that come in.
      width: channels of the inner convolutions.
      stride: stride in pixels.
      bottleneck: 1 x 1, 3 x 3, 1 x 1 to 4 * width, or two 3 x 3.
    """

    def __init__(self, inside: int, width: int, stride: int, bottleneck: bool):
        super().__init__()
        self.bottleneck = bottleneck
        self.outside = 4 * width if bottleneck else width
        if bottleneck:
            self.conv1 = convolution(inside, width, 1)
            self.conv2 = convolution(width, width, 3, stride)
            self.conv3 = convolution(width, self.outside, 1)
            self.bn3 = nn.BatchNorm2d(self.outside)
        else:
            self.conv1 = convolution(inside, width, 3, stride)
            self.conv2 = convolution(width, width, 3)
        self.bn1, self.bn2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.downsample = nn.Sequential()
        if stride != 1 or inside != self.outside:
            self.downsample.append(convolution(inside, self.outside, 1, stride))
            self.downsample.append(nn.BatchNorm2d(self.outside))

    def residual(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the residual branch."""
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return self.bn3(self.conv3(torch.relu(y))) if self.bottleneck else y

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps (batch, C, H, W) to (batch, C', H / stride, W / stride)."""
        return torch.relu(self.residual(x) + self.downsample(x))


class TorchResNet(nn.Module):
    """ResNet v1.5.

    Args:
      stage_sizes: blocks of each stage.
      bottleneck: kind of block.
      num_classes: outputs.
      width: channels of the first stage's inner convolutions.
      stem: `imagenet`, or `small` for one 3 x 3 without pooling.
      block: makes a block.
    """

    def __init__(
        self,
        stage_sizes: Sequence[int],
        bottleneck: bool,
        num_classes: int,
        width: int = 64,
        stem: str = "imagenet",
        block: Callable[..., Block] = Block,
    ):
        super().__init__()
        self.pooled = stem == "imagenet"
        kernel, stride = (7, 2) if self.pooled else (3, 1)
        self.conv1 = convolution(3, width, kernel, stride)
        self.bn1 = nn.BatchNorm2d(width)
        inside = width
        for i, size in enumerate(stage_sizes):
            layer = nn.Sequential()
            for j in range(size):
                stride = 2 if i and not j else 1
                layer.append(block(inside, width * 2**i, stride, bottleneck))
                inside = layer[-1].outside
            self.add_module(f"layer{i + 1}", layer)
        self.fc = nn.Linear(inside, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps images (batch, 3, H, W) to logits (batch, num_classes)."""
        x = torch.relu(self.bn1(self.conv1(x)))
        if self.pooled:
            x = nn.functional.max_pool2d(x, 3, 2, padding=1)
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
        return self.fc(x.mean((2, 3)))
