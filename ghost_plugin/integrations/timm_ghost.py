"""timm's door: ``import ghost_plugin; timm.create_model('ghostnet_plugin')``.

The class adds timm's head and timm's methods to the backbone; parameter names, and so checkpoints,
are those of ``timm/models/ghostnet.py`` (Apache-2.0). timm lists models under the last part of
this module's name, which is why it is not called ``ghostnet``.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .. import _optional
from ..backbones.ghostnet import GhostNet
from ..layers.common import init_weights
from ..specs import FINAL_LEVEL, check_out_indices
from ..weights import PUBLISHED, from_classifier, unwrap

_optional.require('timm')

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import (
    SelectAdaptivePool2d,
    get_act_layer,
    get_norm_layer,
)
from timm.models import (
    build_model_with_cfg,
    generate_default_cfgs,
    register_model,
)


def _levels(indices: int | Sequence[int] | None) -> list[int]:
    """timm's ways to name levels 0..4: None for all, n for the last n, negative from the end."""
    every = list(range(FINAL_LEVEL))
    if indices is None:
        return every
    if isinstance(indices, int):
        if not 1 <= indices <= FINAL_LEVEL:
            raise ValueError(f'the last n levels: n must be within 1..{FINAL_LEVEL}, got {indices}')
        return every[-indices:]
    levels = sorted({i + FINAL_LEVEL if -FINAL_LEVEL <= i < 0 else i for i in indices})
    if not levels or levels[-1] >= FINAL_LEVEL:
        raise ValueError(f'levels must be within 0..{FINAL_LEVEL - 1}, got {indices!r}')
    return list(check_out_indices(levels))


class TimmDoor:
    """Mixed in front of a backbone, makes it a classifier with timm's methods.

    Args:
        num_classes: Outputs; 0 leaves the 1280 features in front of the classifier.
        in_chans: Channels of the image.
        global_pool: timm's pooling name; ``''`` keeps the map.
        drop_rate: Dropout in front of the classifier, training only.
        device, dtype: Of all parameters.
        kwargs: As the backbone; ``norm_layer`` and ``act_layer`` may be names.

    Shape:
        (N, in_chans, H, W) -> (N, num_classes)
    """

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = 'avg',
        drop_rate: float = 0.2,
        norm_layer: str | Callable[[int], nn.Module] = nn.BatchNorm2d,
        act_layer: str | Callable[..., nn.Module] = nn.ReLU,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            in_channels=in_chans,
            out_indices=(FINAL_LEVEL,),
            norm_layer=get_norm_layer(norm_layer),
            act_layer=get_act_layer(act_layer),
            **kwargs,
        )
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.num_features = self.layout.final
        self.head_hidden_size = self.spec.hidden
        self.feature_info = [
            {
                'num_chs': self.layout.channels(level),
                'reduction': min(2 ** (level + 1), kwargs.get('output_stride', 32)),
                'module': f'blocks.{self.layout.tap(level)}',
            }
            for level in range(FINAL_LEVEL)
        ]
        self.conv_head = nn.Conv2d(self.num_features, self.head_hidden_size, 1)
        self.act2 = nn.ReLU(inplace=True)
        init_weights(self.conv_head)
        self.reset_classifier(num_classes, global_pool)
        self.to(device=device, dtype=dtype)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """(N, in_chans, H, W) -> (N, num_features, ceil(H / 32), ceil(W / 32))"""
        x, _ = self.trunk(x, self.taps, len(self.blocks))
        return x

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """(N, num_features, h, w) -> (N, num_classes), or the 1280 features before them."""
        x = self.flatten(self.act2(self.conv_head(self.global_pool(x))))
        x = F.dropout(x, p=self.drop_rate, training=self.training)
        return x if pre_logits else self.classifier(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: torch.Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = 'NCHW',
        intermediates_only: bool = False,
    ) -> list[torch.Tensor] | tuple[torch.Tensor, list[torch.Tensor]]:
        """Features at chosen levels, timm's signature.

        Args:
            x: Image batch.
            indices: Levels 0..4 (negative from the end), the last n for an int, None for all.
            norm: Has no meaning here, there is no norm behind a level.
            stop_early: Do not run what lies behind the deepest level asked for.
            output_fmt: ``'NCHW'``.
            intermediates_only: Return the list alone, without the final features.
        """
        if output_fmt != 'NCHW':
            raise ValueError(f"output_fmt must be 'NCHW', got {output_fmt!r}")
        levels = _levels(indices)
        taps = [self.layout.tap(level) for level in levels]
        depth = max(taps) + 1 if stop_early else len(self.blocks)
        x, features = self.trunk(x, taps, depth)
        return features if intermediates_only else (x, features)

    def prune_intermediate_layers(
        self,
        indices: int | Sequence[int] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Drop what the features at ``indices`` do not need; returns them counted from 0."""
        levels = _levels(indices)
        deepest = levels[-1]
        self.blocks = self.blocks[: self.layout.tap(deepest) + 1]
        self.num_features = self.head_hidden_size = self.layout.channels(deepest)
        self.conv_head = self.act2 = nn.Identity()
        self.reset_classifier(0, '')
        return levels

    def get_classifier(self) -> nn.Module:
        """The last linear layer."""
        return self.classifier

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Another number of classes (0 for none) and, if given, another pooling."""
        if global_pool is None:
            global_pool = self.global_pool.pool_type
        self.num_classes = num_classes
        self.global_pool = SelectAdaptivePool2d(pool_type=global_pool)
        self.flatten = nn.Flatten(1) if global_pool else nn.Identity()
        self.classifier = nn.Identity()
        if num_classes > 0:
            self.classifier = nn.Linear(self.head_hidden_size, num_classes)
            init_weights(self.classifier)
            self.classifier.to(self.conv_stem.weight)
        for part in (self.global_pool, self.flatten, self.classifier):
            part.train(self.training)

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute inner maps again in backward instead of keeping them."""
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Parameter groups for layer-wise learning rates."""
        block = r'^blocks\.(\d+)' if coarse else r'^blocks\.(\d+)\.(\d+)'
        return {'stem': r'^(conv_stem|bn1)', 'blocks': [(block, None), (r'^conv_head', (99999,))]}


class TimmGhostNet(TimmDoor, GhostNet):
    """GhostNet V1; same parameters as ``timm.create_model('ghostnet_100')``."""


# Registered name: class and the arguments that make the variant.
VARIANTS = {
    'ghostnet_plugin_050': (TimmGhostNet, {'width': 0.5}),
    'ghostnet_plugin': (TimmGhostNet, {'width': 1.0}),
    'ghostnet_plugin_130': (TimmGhostNet, {'width': 1.3}),
}


def _cfg(name: str) -> dict[str, Any]:
    source = {'hf_hub_id': PUBLISHED[name].hub} if name in PUBLISHED else {'url': ''}
    return {
        'num_classes': 1000,
        'input_size': (3, 224, 224),
        'pool_size': (7, 7),
        'crop_pct': 0.875,
        'interpolation': 'bicubic',
        'mean': IMAGENET_DEFAULT_MEAN,
        'std': IMAGENET_DEFAULT_STD,
        'first_conv': 'conv_stem',
        'classifier': 'classifier',
        'license': 'apache-2.0',
        **source,
    }


default_cfgs = generate_default_cfgs(
    {f'{n}.in1k' if n in PUBLISHED else f'{n}.untrained': _cfg(n) for n in VARIANTS}
)


def checkpoint_filter(state_dict: dict[str, Any], model: nn.Module) -> dict[str, torch.Tensor]:
    """Checkpoints of timm, the authors or MMPretrain in timm's names."""
    return from_classifier(unwrap(state_dict))


def create(name: str, pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Build a registered variant; keyword arguments win over the variant's own.

    Raises:
        ValueError: ``pretrained=True`` where nothing is published and no file is given.
        OSError: The published weights cannot be downloaded.
    """
    model_class, defaults = VARIANTS[name]
    arguments = {**defaults, **kwargs}
    local = {**(kwargs.get('pretrained_cfg_overlay') or {})}.get('file')
    if pretrained and not local:
        _check_published(name, arguments['width'])
    try:
        return build_model_with_cfg(
            model_class,
            name,
            pretrained,
            pretrained_filter_fn=checkpoint_filter,
            feature_cfg={'flatten_sequential': True},
            **arguments,
        )
    except OSError as error:
        if local or not pretrained:
            raise
        raise OSError(f'cannot download {PUBLISHED[name].hub}: {error}. {_LOCAL_HINT}') from error


_LOCAL_HINT = (
    'With a local file: pretrained=True, pretrained_cfg_overlay=dict(file="weights.safetensors")'
)


def _check_published(name: str, width: float) -> None:
    if name not in PUBLISHED:
        known = ', '.join(PUBLISHED)
        raise ValueError(f'no weights are published for {name!r}, only for {known}. {_LOCAL_HINT}')
    if width != PUBLISHED[name].width:
        raise ValueError(
            f'the published weights of {name!r} have width {PUBLISHED[name].width}, got {width}'
        )


def _register(name: str) -> None:
    def entry(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return create(name, pretrained, **kwargs)

    entry.__name__ = entry.__qualname__ = name
    entry.__doc__ = f'{VARIANTS[name][0].__name__}, width {VARIANTS[name][1]["width"]}.'
    register_model(entry)


__all__: list[str] = []  # timm appends the names it registers
for _name in VARIANTS:
    _register(_name)
