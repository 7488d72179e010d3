"""The CIFAR ResNets of He et al., which no framework brings: for ``convert.py`` and for studies.

Source: He et al., Deep Residual Learning, CVPR 2016 (arXiv 1512.03385), section 4.2, shortcuts of
option A; parameter names of https://github.com/akamaster/pytorch_resnet_cifar10, so that its
weights load.
"""

import torch
import torch.nn.functional as F
from torch import nn


class BasicBlock(nn.Module):
    """Two 3x3 convs around a shortcut without parameters.

    Shape:
        (N, in_channels, H, W) -> (N, channels, ceil(H / stride), ceil(W / stride))
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride, self.more = stride, channels - in_channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        branch = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        same = x[:, :, :: self.stride, :: self.stride]
        half = self.more // 2
        return F.relu(branch + F.pad(same, (0, 0, 0, 0, half, self.more - half)))


class CifarResNet(nn.Module):
    """ResNet-20, 32, 44, 56 or deeper for images of 32 pixels.

    Args:
        depth: 6 n + 2.
        num_classes: Outputs.

    Shape:
        (N, 3, 32, 32) -> (N, num_classes)
    """

    def __init__(self, depth: int = 20, num_classes: int = 10) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 2, 6)
        if rest or blocks < 1:
            raise ValueError(f'depth must be 6 n + 2, such as 20, 32, 44 or 56, got {depth}')
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, blocks, 1)
        self.layer2 = self._stage(16, 32, blocks, 2)
        self.layer3 = self._stage(32, 64, blocks, 2)
        self.linear = nn.Linear(64, num_classes)

    @staticmethod
    def _stage(in_channels: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
        first = BasicBlock(in_channels, channels, stride)
        return nn.Sequential(first, *(BasicBlock(channels, channels, 1) for _ in range(blocks - 1)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


def resnet20() -> nn.Module:
    """ResNet-20."""
    return CifarResNet(20)


def resnet56() -> nn.Module:
    """ResNet-56."""
    return CifarResNet(56)
