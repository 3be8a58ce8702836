"""The image front end: the first three stages of a ResNet v1.5 (facts 4.4).

B images, h x w pixels, W width of the first stage. One patch is 16 x 16 pixels; there is no fourth stage, no final pooling, and
no classifier. BatchNorm is the ordinary one: in train mode it uses the batch's statistics and updates the running ones, even
when every parameter is frozen, as published.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from mmprompt.models.precision import Conv2d

EXPANSION = 4  # output channels of a bottleneck per inner channel
STRIDE = 16  # pixels per patch side


class Bottleneck(nn.Module):
    """Convolutions 1x1, 3x3, 1x1 and a shortcut. v1.5: the 3x3 convolution has the stride."""

    def __init__(self, channels: int, inner: int, stride: int) -> None:
        super().__init__()
        outer = inner * EXPANSION
        self.conv1 = Conv2d(channels, inner, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(inner)
        self.conv2 = Conv2d(inner, inner, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(inner)
        self.conv3 = Conv2d(inner, outer, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(outer)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != outer:
            self.shortcut = nn.Sequential(Conv2d(channels, outer, 1, stride, bias=False), nn.BatchNorm2d(outer))

    def forward(self, x: Tensor) -> Tensor:  # B channels h w
        y = F.relu(self.norm1(self.conv1(x)))
        y = F.relu(self.norm2(self.conv2(y)))
        return F.relu(self.norm3(self.conv3(y)) + self.shortcut(x))  # B outer h/stride w/stride


class ResNet(nn.Module):
    """Maps images to `channels` = 16 W features per patch."""

    def __init__(self, width: int, blocks: Sequence[int]) -> None:
        super().__init__()
        self.conv = Conv2d(3, width, 7, 2, padding=3, bias=False)
        self.norm = nn.BatchNorm2d(width)
        stages, channels = [], width
        for stage, count in enumerate(blocks):
            inner = width * 2**stage
            bottlenecks = []
            for block in range(count):
                bottlenecks.append(Bottleneck(channels, inner, stride=2 if stage > 0 and block == 0 else 1))
                channels = inner * EXPANSION
            stages.append(nn.Sequential(*bottlenecks))
        self.stages = nn.Sequential(*stages)
        self.channels = channels

    def forward(self, images: Tensor) -> Tensor:  # B 3 h w
        x = F.relu(self.norm(self.conv(images)))
        x = F.max_pool2d(x, 3, 2, padding=1)
        features: Tensor = self.stages(x)
        return features  # B 16W h/16 w/16
