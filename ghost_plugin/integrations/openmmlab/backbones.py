"""Backbones for OpenMMLab: ``dict(type='ghost_plugin.GhostNet', ...)`` in any config.

Each class adds OpenMMLab's arguments to the backbone; parameter names stay, so one checkpoint
fits every integration. The names work without their scope too with
``custom_imports = dict(imports=['ghost_plugin.integrations.openmmlab'])``.
"""

import copy
import logging
from types import NoneType
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from ...backbones import g_ghost_regnet, ghostnet
from ...layers.ghost import GhostConv2d
from ...registry import MODELS, ROOT
from ...utils import optional
from ...weights import adapt_input, drop_counters, to_classifier
from .checkpoint_hook import load_matching

optional.require('mmengine', 'mmcv')

from mmcv.cnn import build_activation_layer, build_norm_layer
from mmengine.model import BaseModule, PretrainedInit, update_init_info

_logger = logging.getLogger(__name__)
_PRETRAINED = ('Pretrained', PretrainedInit)


class OpenMMLabBackboneMixin:
    """Mixed in front of a backbone, gives it OpenMMLab's arguments and behaviour.

    Args:
        norm_cfg: Norm layers, as in mmcv.
        act_cfg: Activations, as in mmcv.
        frozen_stages: -1 freezes nothing, 0 the stem, k the stem and all stages up to level k
            (level as in ``out_indices``); frozen norms stay in eval mode.
        norm_eval: Keep all norms in eval mode while training.
        with_cp: Recompute inner feature maps in backward instead of keeping them.
        init_cfg: As everywhere in OpenMMLab; without it the backbone's own init stays. A
            ``Pretrained`` checkpoint goes through :func:`ghost_plugin.load_weights`, unless it
            names a ``prefix``.
        kwargs: Arguments of the backbone.

    Raises:
        ValueError: ``frozen_stages`` below -1 or deeper than the backbone; ``init_cfg`` without
            what it needs.
    """

    def __init__(
        self,
        *args: Any,
        norm_cfg: dict | None = None,
        act_cfg: dict | None = None,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
        init_cfg: dict | list[dict] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            *args,
            norm_layer=lambda channels: build_norm_layer(norm_cfg or {'type': 'BN'}, channels)[1],
            act_layer=lambda: build_activation_layer(dict(act_cfg or {'type': 'ReLU'})),
            grad_checkpointing=with_cp,
            **kwargs,
        )
        deepest = self.out_indices[-1]
        if not isinstance(frozen_stages, int) or not -1 <= frozen_stages <= deepest:
            raise ValueError(
                f'frozen_stages must be -1 (nothing), 0 (the stem) or a level up to {deepest}, '
                f'the deepest that out_indices={self.out_indices} builds, got {frozen_stages!r}'
            )
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        _rows(init_cfg)
        self.init_cfg = copy.deepcopy(init_cfg)
        self.train()

    def frozen_modules(self) -> list[nn.Module]:
        """The modules that ``frozen_stages`` freezes."""
        return [] if self.frozen_stages < 0 else self.modules_up_to(self.frozen_stages)

    def train(self, mode: bool = True) -> 'OpenMMLabBackboneMixin':
        """As ``nn.Module.train``, but frozen parts (and, if asked, all norms) stay in eval mode."""
        super().train(mode)
        for module in self.frozen_modules():
            module.eval().requires_grad_(False)
        if self.norm_eval:
            for module in self.modules():
                if isinstance(module, _NormBase):
                    module.eval()
        return self

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Layer of a parameter and number of layers, for MMPretrain's layer-wise learning rates.

        The stem is layer 0, each stage of blocks one more; all outside the backbone is last.

        Args:
            param_name: Name of a parameter in the whole model.
            prefix: Prefix of the names of the backbone's parameters.
        """
        stem = len(self.modules_up_to(0))
        stages = self.modules_up_to(self.out_indices[-1])[stem:]
        if not param_name.startswith(prefix):
            return len(stages) + 1, len(stages) + 2
        parameter = self.get_parameter(param_name.removeprefix(prefix))
        owners = {p: depth for depth, stage in enumerate(stages, 1) for p in stage.parameters()}
        return owners.get(parameter, 0), len(stages) + 2

    def init_weights(self) -> None:
        """As everywhere in OpenMMLab, with checkpoints read by ``load_weights``."""
        given = self.init_cfg
        rows = _rows(given)
        foreign = [r for r in rows if r['type'] in _PRETRAINED and not r.get('prefix')]
        foreign = [] if self.is_init else foreign
        self.init_cfg = [row for row in rows if row not in foreign]
        super().init_weights()
        self.init_cfg = given
        for row in foreign:
            load_matching(self, row['checkpoint'])
            if hasattr(self, '_params_init_info'):  # a model around this one reports its init
                update_init_info(self, init_info=f'load_weights: {row["checkpoint"]}')

    def _load_from_state_dict(
        self, state_dict: dict[str, torch.Tensor], prefix: str, *args: Any
    ) -> None:
        """Adapt checkpoints of other input channels, and drop thop's counters."""
        drop_counters(state_dict)
        first, weight = next(iter(self.named_parameters()))
        if adapt_input(state_dict, {prefix + first: weight}):
            _logger.warning('%s%s: adapted to %d input channels', prefix, first, weight.shape[1])
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _checkpoint_filter(
        self, state_dict: dict[str, torch.Tensor], prefix: str, *args: Any
    ) -> None:
        """Convert timm's and the authors' files for an MMPretrain classifier, which calls this."""
        first = prefix + next(name for name, _ in self.named_parameters())
        if first in state_dict:
            renamed = to_classifier({k.removeprefix(prefix): v for k, v in state_dict.items()})
            state_dict.clear()
            state_dict.update({prefix + name: tensor for name, tensor in renamed.items()})


def _rows(init_cfg: dict | list[dict] | None) -> list[dict]:
    """Check and list the rows of an ``init_cfg``; mmengine checks them when training begins."""
    rows = list(init_cfg or ()) if isinstance(init_cfg, list | tuple | NoneType) else [init_cfg]
    for row in rows:
        kind = row.get('type') if isinstance(row, dict) else None
        if not kind or (kind in _PRETRAINED and not row.get('checkpoint')):
            raise ValueError(
                "init_cfg wants a type and what it needs, such as dict(type='Pretrained', "
                f"checkpoint='file.pth'), got {row!r}"
            )
    return rows


# force: a module that a notebook reloads registers again.
@MODELS.register_module(force=True)
class GhostNet(OpenMMLabBackboneMixin, ghostnet.GhostNet, BaseModule):
    """GhostNet V1; arguments of :class:`ghost_plugin.GhostNet` and of OpenMMLab."""


@MODELS.register_module(force=True)
class GhostNetV2(OpenMMLabBackboneMixin, ghostnet.GhostNetV2, BaseModule):
    """GhostNet V2; arguments of :class:`ghost_plugin.GhostNetV2` and of OpenMMLab."""


@MODELS.register_module(force=True)
class GhostNetV3(OpenMMLabBackboneMixin, ghostnet.GhostNetV3, BaseModule):
    """GhostNet V3; arguments of :class:`ghost_plugin.GhostNetV3` and of OpenMMLab."""


@MODELS.register_module(force=True)
class RepGhostNet(OpenMMLabBackboneMixin, ghostnet.RepGhostNet, BaseModule):
    """RepGhostNet; arguments of :class:`ghost_plugin.RepGhostNet` and of OpenMMLab."""


@MODELS.register_module(force=True)
class GGhostRegNet(OpenMMLabBackboneMixin, g_ghost_regnet.GGhostRegNet, BaseModule):
    """G-Ghost RegNet; arguments of :class:`ghost_plugin.GGhostRegNet` and of OpenMMLab."""


@MODELS.register_module(name='GhostConv2d', force=True)
def ghost_conv(
    in_channels: int,
    out_channels: int,
    kernel_size: int | tuple[int, int],
    *args: Any,
    min_in_channels: int = 1,
    drop_bias: bool = False,
    ratio: float = 2,
    dw_size: int = 3,
    cheap: str = 'depthwise',
    group_size: int | str = 1,
    **kwargs: Any,
) -> nn.Module:
    """Build :class:`ghost_plugin.GhostConv2d` from a ``conv_cfg``.

    Args:
        in_channels, out_channels, kernel_size, args, kwargs: As ``nn.Conv2d``.
        min_in_channels: Convs with fewer input channels stay ordinary ones; 4 keeps the first
            conv of a colour network, as the GhostNet paper does.
        drop_bias: No bias in Ghost convs, as in the paper; a norm that follows removes it anyway
            (MMPretrain's VGG has both).
        ratio, dw_size, cheap, group_size: As :class:`ghost_plugin.GhostConv2d`.
    """
    size = (in_channels, out_channels, kernel_size, *args)
    if in_channels < min_in_channels:
        return nn.Conv2d(*size, **kwargs)
    if drop_bias:
        kwargs['bias'] = False
    ghost = {'ratio': ratio, 'dw_size': dw_size, 'cheap': cheap, 'group_size': group_size}
    return GhostConv2d(*size, **ghost, **kwargs)


for _name, _class in MODELS.module_dict.items():
    if _name not in ROOT.module_dict:
        ROOT.register_module(name=_name, module=_class)
    else:
        _logger.info('%s is taken in the root registry; ghost_plugin.%s works', _name, _name)
