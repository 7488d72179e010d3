"""A backbone whose feature maps are adapted to the strides and channels that a detector needs.

For detectors that want a level which the backbone lacks (stride 64), the same one twice, or a
number of channels that is fixed in their code.
"""

from collections.abc import Sequence

import torch
from torch import nn

from ...registry import MODELS, register_old_name
from ...utils import optional

optional.require('mmengine', 'mmcv')

from mmcv.cnn import ConvModule
from mmengine.model import BaseModule
from mmengine.registry import MODELS as ROOT

_NORM = {'type': 'BN'}


@MODELS.register_module(force=True)
class FeatureAdapter(BaseModule):
    """A backbone followed by 1x1 convs for channels and strided 3x3 convs for further levels.

    Args:
        backbone: Config of the inner backbone.
        given: Channels and stride (pixels) of each feature map of the inner backbone.
        strides: Strides of the feature maps to return. A stride may be named twice; one beyond
            the deepest is made from the level before it by convs of stride 2.
        channels: Channels of the feature maps to return; unchanged without it.
        nested: Return the feature maps as those of the only one of several stages, which the head
            of MSPN and RSN reads.
        init_cfg: As everywhere in OpenMMLab.

    Shape:
        (N, C, H, W) -> tuple of (N, channels[i], H / strides[i], W / strides[i]), rounded up.

    Raises:
        ValueError: ``channels`` and ``strides`` differ in length, or a stride is neither given nor
            a power of two times the deepest.
    """

    def __init__(
        self,
        backbone: dict,
        given: Sequence[tuple[int, int]],
        strides: Sequence[int],
        channels: Sequence[int] | None = None,
        nested: bool = False,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if channels is not None and len(channels) != len(strides):
            raise ValueError(
                f'channels must have one entry for each of the {len(strides)} strides, as each '
                f'returned feature map has both; got {len(channels)} channels: give '
                f'{len(strides)}, or leave channels out to keep those of the backbone'
            )
        self.nested = nested
        self.backbone = ROOT.build(backbone)
        levels = {stride: (index, width) for index, (width, stride) in enumerate(given)}
        self.further = nn.ModuleList()
        while max(levels) < max(strides):
            width = levels[max(levels)][1]
            levels[2 * max(levels)] = (len(given) + len(self.further), width)
            self.further.append(ConvModule(width, width, 3, stride=2, padding=1, norm_cfg=_NORM))
        if missing := sorted(set(strides) - set(levels)):
            raise ValueError(
                f'strides must be among {sorted(levels)}, as the backbone gives '
                f'{[stride for _, stride in given]} and only its deepest level is reduced '
                f'further; got {missing}: change strides, or the out_indices of the backbone'
            )
        chosen = [levels[stride] for stride in strides]
        self.sources = [source for source, _ in chosen]
        self.projections = nn.ModuleList(
            nn.Identity() if wanted == width else ConvModule(width, wanted, 1, norm_cfg=_NORM)
            for (_, width), wanted in zip(chosen, channels or [w for _, w in chosen], strict=True)
        )

    def forward(self, x: torch.Tensor) -> tuple:
        maps = list(self.backbone(x))
        for conv in self.further:
            maps.append(conv(maps[-1]))
        pairs = zip(self.sources, self.projections, strict=True)
        found = tuple(projection(maps[source]) for source, projection in pairs)
        return (found,) if self.nested else found


register_old_name(MODELS, 'MatchedLevels', FeatureAdapter)
MatchedLevels = FeatureAdapter  # in pickles of version 0.1
