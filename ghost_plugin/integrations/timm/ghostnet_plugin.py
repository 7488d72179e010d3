"""Registration with timm: ``import ghost_plugin; timm.create_model('ghostnet_plugin')``.

Parameter names, and so checkpoints, are those of ``timm/models/ghostnet.py`` (Apache-2.0) and of
the authors' G-Ghost. timm lists models under the last part of this module's name, which is why it
is not called ``ghostnet``.
"""

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import torch
from torch import nn

from ...backbones.g_ghost_regnet import GGhostRegNet
from ...backbones.ghostnet import GhostNet, GhostNetV2, GhostNetV3, RepGhostNet
from ...layers.common import draw_weights
from ...specs import FINAL_LEVEL
from ...utils import optional
from ...weights import ALL_PUBLISHED, FURTHER, PUBLISHED, Published, find_weights
from .classifier import TimmClassifierMixin, chosen_levels

optional.require('timm')

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import (
    build_model_with_cfg,
    generate_default_cfgs,
    register_model,
    resolve_pretrained_cfg,
)


class TimmGhostNet(TimmClassifierMixin, GhostNet):
    """GhostNet V1; same parameters as ``timm.create_model('ghostnet_100')``."""

    family = 'GhostNet'
    deepest = FINAL_LEVEL
    stem = ('conv_stem', 'bn1')
    block_patterns = (r'^blocks\.(\d+)', r'^blocks\.(\d+)\.(\d+)')

    def level_name(self, level: int) -> str:
        """Name of the module whose output is a level."""
        return f'blocks.{self.level_taps[level]}'

    def _add_head(self) -> None:
        self.head_hidden_size = self.spec.hidden
        self.conv_head = nn.Conv2d(self.num_features, self.head_hidden_size, 1)
        self.act2 = nn.ReLU(inplace=True)
        draw_weights(self.conv_head, moment=0.5)  # that of a ReLU's outputs


class TimmGhostNetV2(TimmGhostNet, GhostNetV2):
    """GhostNet V2; same parameters as ``timm.create_model('ghostnetv2_100')``."""

    family = 'GhostNetV2'


class TimmGhostNetV3(TimmGhostNet, GhostNetV3):
    """GhostNet V3; same parameters as ``timm.create_model('ghostnetv3_100')``."""

    family = 'GhostNetV3'


class TimmRepGhostNet(TimmGhostNet, RepGhostNet):
    """RepGhostNet; same parameters as ``timm.create_model('repghostnet_100')``."""

    family = 'RepGhostNet'


class TimmGGhostRegNet(TimmClassifierMixin, GGhostRegNet):
    """G-Ghost RegNet; same parameters as the authors' ``g_ghost_regnetx_*``."""

    family = 'GGhostRegNet'
    deepest = FINAL_LEVEL - 1
    stem = ('conv1', 'bn1')
    block_patterns = (r'^layer(\d+)', r'^layer(\d+)')
    classifier_name = 'fc'

    def level_name(self, level: int) -> str:
        """Name of the module whose output is a level."""
        return f'layer{level}' if level else 'relu'

    def classify(self, x: torch.Tensor) -> torch.Tensor:
        """(N, features) -> (N, num_classes)"""
        return self.fc(x)


# Registered name: class and the arguments that make the variant.
VARIANTS: dict[str, tuple[type[TimmClassifierMixin], dict[str, Any]]] = {
    'ghostnet_plugin_050': (TimmGhostNet, {'width': 0.5}),
    'ghostnet_plugin': (TimmGhostNet, {'width': 1.0}),
    'ghostnet_plugin_130': (TimmGhostNet, {'width': 1.3}),
    'ghostnet_plugin_v2_100': (TimmGhostNetV2, {'width': 1.0}),
    'ghostnet_plugin_v2_130': (TimmGhostNetV2, {'width': 1.3}),
    'ghostnet_plugin_v2_160': (TimmGhostNetV2, {'width': 1.6}),
    # The authors train V3 without dropout.
    'ghostnet_plugin_v3_050': (TimmGhostNetV3, {'width': 0.5, 'drop_rate': 0.0}),
    'ghostnet_plugin_v3_100': (TimmGhostNetV3, {'width': 1.0, 'drop_rate': 0.0}),
    'ghostnet_plugin_v3_130': (TimmGhostNetV3, {'width': 1.3, 'drop_rate': 0.0}),
    'ghostnet_plugin_v3_160': (TimmGhostNetV3, {'width': 1.6, 'drop_rate': 0.0}),
    'ghostnet_plugin_gghost_032': (TimmGGhostRegNet, {'arch': '032'}),
    'ghostnet_plugin_gghost_040': (TimmGGhostRegNet, {'arch': '040'}),
    'ghostnet_plugin_gghost_080': (TimmGGhostRegNet, {'arch': '080'}),
    'ghostnet_plugin_gghost_160': (TimmGGhostRegNet, {'arch': '160'}),
    **{
        f'ghostnet_plugin_rep_{width}': (TimmRepGhostNet, {'width': int(width) / 100})
        for width in ('050', '058', '080', '100', '111', '130', '150', '200')
    },
}


def _cfg(name: str, published: Published | None) -> dict[str, Any]:
    model_class = VARIANTS[name][0]
    return {
        'num_classes': 1000,
        'input_size': (3, 224, 224),
        'pool_size': (7, 7),
        'crop_pct': 0.875,
        'interpolation': 'bicubic',
        'mean': IMAGENET_DEFAULT_MEAN,
        'std': IMAGENET_DEFAULT_STD,
        'first_conv': model_class.stem[0],
        'classifier': model_class.classifier_name,
        'license': published.license if published else '',
        **(published.location if published else {'url': ''}),
    }


default_cfgs = generate_default_cfgs(
    {
        f'{name}.{row.tag if row else "untrained"}': _cfg(name, row)
        for name, row in (*((name, PUBLISHED.get(name)) for name in VARIANTS), *FURTHER)
    }
)


def checkpoint_filter(state_dict: dict[str, Any], model: nn.Module) -> dict[str, torch.Tensor]:
    """Bring a checkpoint to timm's names.

    Args:
        state_dict: A checkpoint of timm, the authors, MMPretrain or a train script.
        model: The model that it is loaded into.
    """
    return find_weights(state_dict, model.state_dict()).weights


def create(name: str, pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Build a registered variant; keyword arguments win over the variant's own.

    Args:
        name: A registered name.
        pretrained: Load the weights of timm's pretrained cfg: the published ones, or those of
            ``pretrained_cfg`` (also by ``hf-hub:`` and ``local-dir:``) or
            ``pretrained_cfg_overlay``.
        kwargs: As timm's ``build_model_with_cfg`` and the class.

    Raises:
        ValueError: ``pretrained=True`` without weights or with those of another size; levels that
            do not exist.
        OSError: The weights cannot be downloaded.
    """
    model_class, defaults = VARIANTS[name]
    overlay = _without_defaults(kwargs.get('pretrained_cfg_overlay') or {})
    arguments = {**defaults, **kwargs, 'pretrained_cfg_overlay': overlay}
    source = _source(name, arguments) if pretrained else None
    if source is not None and source.startswith('file:'):
        # torch.hub would use any file of that name that it has loaded before.
        path = url2pathname(urlsplit(source).path)
        arguments['pretrained_cfg_overlay'] = {**overlay, 'url': None, 'file': path}
        source = None
    if arguments.get('features_only') and arguments.get('out_indices') is not None:
        chosen_levels(arguments['out_indices'])  # timm does not check them
    try:
        model = build_model_with_cfg(
            model_class,
            name,
            pretrained,
            pretrained_filter_fn=checkpoint_filter,
            feature_cfg={'flatten_sequential': issubclass(model_class, GhostNet)},
            **arguments,
        )
    except OSError as error:
        if source is None:
            raise
        raise OSError(f'cannot download {source}: {error}. {_LOCAL_HINT}') from error
    return model


_LOCAL_HINT = (
    'With a local file: pretrained=True, pretrained_cfg_overlay=dict(file="weights.safetensors")'
)


# Keys of a pretrained cfg for weights on this machine, which timm tries first, and elsewhere.
_LOCAL = ('state_dict', 'file')
_REMOTE = ('hf_hub_id', 'url')


def _without_defaults(overlay: Mapping[str, Any]) -> dict[str, Any]:
    """An overlay that switches off other weights of the cfg, if it has weights itself.

    timm would prefer the hub of the cfg to the address of the overlay.
    """
    if any(overlay.get(key) for key in (*_LOCAL, *_REMOTE)):
        return {**dict.fromkeys((*_LOCAL, *_REMOTE, 'source')), **overlay}
    return dict(overlay)


def _source(name: str, arguments: Mapping[str, Any]) -> str | None:
    """Address from which timm will download weights; None if they are on this machine.

    Raises:
        ValueError: The resolved cfg names no weights, or published ones of another size.
    """
    given = arguments.get('pretrained_cfg')
    cfg = resolve_pretrained_cfg(name, given, arguments['pretrained_cfg_overlay']).to_dict()
    if any(cfg.get(key) for key in _LOCAL):
        return None
    source = next((cfg[key] for key in _REMOTE if cfg.get(key)), None)
    if source is None:
        if name in PUBLISHED:
            raise ValueError(f'the pretrained_cfg of {name!r} names no weights. {_LOCAL_HINT}')
        known = ', '.join(PUBLISHED)
        raise ValueError(f'no weights are published for {name!r}, only for {known}. {_LOCAL_HINT}')
    size = VARIANTS[name][1]
    published = {row.source for other, row in ALL_PUBLISHED if other == name}
    for key in ('width', 'arch'):
        if source in published and key in size and arguments[key] != size[key]:
            raise ValueError(
                f'the published weights of {name!r} have {key} {size[key]!r}, '
                f'got {arguments[key]!r}. {_LOCAL_HINT}'
            )
    return source


def _register(name: str) -> None:
    def entry(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return create(name, pretrained, **kwargs)

    entry.__name__ = entry.__qualname__ = name
    entry.__doc__ = f'{VARIANTS[name][0].family}, {VARIANTS[name][1]}.'
    globals()[name] = register_model(entry)


__all__ = [
    'TimmGGhostRegNet',
    'TimmGhostNet',
    'TimmGhostNetV2',
    'TimmGhostNetV3',
    'TimmRepGhostNet',
    'create',
]
# timm appends the names that it registers.
for _name in VARIANTS:
    _register(_name)
