"""A backbone whose maps are brought to the strides and channels that a detector asks for.

For detectors that want a level which the backbone lacks (stride 64), the same one twice, or a
number of channels that is fixed in their code.
"""

from collections.abc import Sequence

import torch
from torch import nn

from ...registry import MODELS
from ...utils import optional

optional.require('mmengine', 'mmcv')

from mmcv.cnn import ConvModule
from mmengine.model import BaseModule
from mmengine.registry import MODELS as ROOT

_NORM = {'type': 'BN'}


@MODELS.register_module(force=True)
class MatchedLevels(BaseModule):
    """A backbone and behind it 1x1 convs for channels, strided 3x3 convs for further levels.

    Args:
        backbone: Config of the inner backbone.
        given: Channels and stride in pixels of each map that the inner backbone returns.
        strides: Strides of the maps to return. One that is given twice takes the same map twice;
            one beyond the deepest is made from the map before it by convs of stride 2.
        channels: Channels of the maps to return; as they come without it.
        init_cfg: As everywhere in OpenMMLab.

    Shape:
        (N, C, H, W) -> tuple of (N, channels[i], H / strides[i], W / strides[i]), rounded up.

    Raises:
        ValueError: A stride that is neither given nor a power of two beyond the deepest, or
            another number of channels than of strides.
    """

    def __init__(
        self,
        backbone: dict,
        given: Sequence[tuple[int, int]],
        strides: Sequence[int],
        channels: Sequence[int] | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if channels is not None and len(channels) != len(strides):
            raise ValueError(f'{len(strides)} strides and {len(channels)} channels; give as many')
        self.backbone = ROOT.build(backbone)
        held = {stride: (index, width) for index, (width, stride) in enumerate(given)}
        self.further = nn.ModuleList()
        while max(held) < max(strides):
            width = held[max(held)][1]
            held[2 * max(held)] = (len(given) + len(self.further), width)
            self.further.append(ConvModule(width, width, 3, stride=2, padding=1, norm_cfg=_NORM))
        if missing := sorted(set(strides) - set(held)):
            raise ValueError(f'strides {missing} cannot be made of maps of strides {sorted(held)}')
        chosen = [held[stride] for stride in strides]
        self.sources = [source for source, _ in chosen]
        self.projections = nn.ModuleList(
            nn.Identity() if wanted == width else ConvModule(width, wanted, 1, norm_cfg=_NORM)
            for (_, width), wanted in zip(chosen, channels or [w for _, w in chosen], strict=True)
        )

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        maps = list(self.backbone(x))
        for conv in self.further:
            maps.append(conv(maps[-1]))
        pairs = zip(self.sources, self.projections, strict=True)
        return tuple(projection(maps[source]) for source, projection in pairs)
