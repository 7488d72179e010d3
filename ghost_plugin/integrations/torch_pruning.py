"""Channels pruned through Ghost layers, by the package ``torch-pruning``.

Its dependency graph sees the convs inside of Ghost modules by itself. A Ghost conv, whose maps come
in a stored order, is one layer to it: this module says how that one loses channels. What the
package cannot follow or score is refused before anything is changed.
"""

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from ..backbones.bottlenecks import GhostBottleneck
from ..backbones.g_ghost_regnet import GhostStage, RegNetBottleneck
from ..graph.folded_ghost import FoldedGhostConv2d
from ..graph.symbolic_trace import GHOST_CONVS, trace_parts
from ..layers.cheap_ops import Shift
from ..layers.ghost import Ghost, GhostConv2d
from ..utils import optional

optional.require('torch_pruning')

import torch_pruning as tp


class GhostConvPruner(tp.pruner.function.BasePruningFunc):
    """How a Ghost conv loses maps: a primary map goes when neither it nor a ghost of it is used."""

    def prune_out_channels(self, layer: GhostConv2d, idxs: Sequence[int]) -> nn.Module:
        """Drop output maps."""
        number, order = layer.primary, layer.order
        if order is None:
            order = torch.arange(layer.out_channels, device=layer.primary_conv.weight.device)
        gone = set(idxs)
        order = order[[index for index in range(len(order)) if index not in gone]]
        makers = torch.where(
            order < number, order, (order - number) // max(layer.ghosts_per_primary, 1)
        )
        kept = makers.unique()
        # Shifts go by the number of a ghost map, so none may get another.
        if layer.groups == 1 and not isinstance(layer.cheap_operation, Shift):
            order = _keep(layer, kept, order)
        layer.order, layer.out_channels, layer.needs_crop = order, len(order), False
        return layer

    def prune_in_channels(self, layer: GhostConv2d, idxs: Sequence[int]) -> nn.Module:
        """Drop input maps."""
        tp.prune_conv_in_channels(layer.primary_conv, list(idxs))
        layer.in_channels = layer.primary_conv.in_channels
        return layer

    def get_out_channels(self, layer: GhostConv2d) -> int:
        return layer.out_channels

    def get_in_channels(self, layer: GhostConv2d) -> int:
        return layer.in_channels

    def get_in_channel_groups(self, layer: GhostConv2d) -> int:
        return layer.groups

    def get_out_channel_groups(self, layer: GhostConv2d) -> int:
        return layer.groups


def _keep(layer: GhostConv2d, kept: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """Keep these primary maps and their ghosts; the order in their new numbers."""
    number, copies = layer.primary, layer.ghosts_per_primary
    place = torch.full((number,), -1, dtype=order.dtype, device=order.device)
    place[kept] = torch.arange(len(kept), device=order.device)
    each = torch.arange(copies, device=order.device)
    with_ghosts = kept[kept < layer.num_ghosted]
    _rows(layer.primary_conv, kept)
    layer.primary, layer.num_ghosted = len(kept), len(with_ghosts)
    if not layer.num_ghosted:
        layer.ghosts_per_primary, layer.cheap_operation = 0, nn.Identity()
    elif isinstance(layer.cheap_operation, nn.Conv2d):
        _rows(layer.cheap_operation, (with_ghosts[:, None] * copies + each).flatten())
        layer.cheap_operation.groups = layer.cheap_operation.in_channels = len(with_ghosts)
    behind = order - number
    return torch.where(
        order < number,
        place[order.clamp_max(number - 1)],
        len(kept)
        + place[(behind // max(copies, 1)).clamp_min(0)] * copies
        + behind % max(copies, 1),
    )


def _rows(conv: nn.Conv2d, kept: torch.Tensor) -> None:
    for name in ('weight', 'bias'):
        old = getattr(conv, name)
        if old is not None:
            new = nn.Parameter(old.detach()[kept].clone(), requires_grad=old.requires_grad)
            setattr(conv, name, new)
    conv.out_channels = len(kept)


def _converted(part: nn.Module) -> bool:
    return any(isinstance(module, GhostConv2d) for module in part.modules())


def _unscored(block: nn.Module) -> bool:
    """Whether the package would score the maps of a Ghost module by a half of them.

    Dense convs and norms have scores, Ghost convs have none, and the first score in a group tells
    how many there are: of all maps, where a norm or a dense conv behind the Ghost module has them.
    """
    if not (isinstance(block, GhostBottleneck) and _converted(block)):
        return False
    if not any(isinstance(part, nn.BatchNorm2d) for part in block.modules()):
        return True
    if isinstance(block.bn_dw, nn.BatchNorm2d) or getattr(block.ghost1, 'short_conv', None):
        return False
    expand = getattr(block.se, 'conv_expand', None)
    begins = isinstance(block.conv_dw, nn.Conv2d) or isinstance(expand, GhostConv2d)
    return begins and _converted(block.ghost2)


def _fed(model: nn.Module) -> Iterator[str]:
    """Ghost convs in front of which nothing tells the package a number of channels.

    Of what is concatenated inside of them it wants one, where something stands behind that.
    """
    for part in trace_parts(model):
        told = set()
        for node in part.graph.nodes if not part.prefix else ():
            layer = part.modules.get(node.target) if node.op == 'call_module' else None
            ghost = isinstance(layer, GhostConv2d)
            fed = told.isdisjoint(node.all_input_nodes)
            if (
                fed
                and ghost
                and layer.ghosts_per_primary
                and (layer.needs_crop or layer.order is not None)
            ):
                yield part.name(node)
            if not fed or ghost or isinstance(layer, nn.Conv2d | nn.BatchNorm2d | nn.Linear):
                told.add(node)


# What the package cannot follow, and what to do then.
_HINDRANCES = (
    (
        lambda module: isinstance(module, Shift),
        "shifts go by the numbers of the maps; prune with cheap='depthwise' or 'linear'",
    ),
    (
        lambda module: isinstance(module, FoldedGhostConv2d),
        'the norm behind it is gone, by which it would be scored; prune before gp.fuse',
    ),
    (
        lambda module: (
            isinstance(module, Ghost)
            and not isinstance(module, GHOST_CONVS)
            and (module.needs_crop or module.ghosts_per_primary > 1)
        ),
        'it takes one ghost map for each primary map only, and none cut off; prune with ratio=2',
    ),
    (
        lambda module: isinstance(module, GhostStage) and _converted(module),
        'it divides maps whose order is stored; prune before gp.convert',
    ),
    (
        _unscored,
        'behind its Ghost modules there is nothing but converted convs; prune before gp.convert',
    ),
)


def options(model: nn.Module) -> dict[str, Any]:
    """Deprecated name of :func:`pruner_kwargs`."""
    warnings.warn('options is deprecated; use pruner_kwargs', FutureWarning, stacklevel=2)
    return pruner_kwargs(model)


def pruner_kwargs(model: nn.Module) -> dict[str, Any]:
    """Keyword arguments with which a pruner of ``torch_pruning`` handles Ghost layers.

    Args:
        model: Model to prune. ``ignored_layers`` are its linear layers, and in G-Ghost all convs
            outside of its blocks: the package cannot follow channels where a stage splits them.

    Raises:
        ValueError: A layer that the package cannot prune; the message says what to do instead.
    """
    for name, module in model.named_modules():
        for hindrance, advice in _HINDRANCES:
            if hindrance(module):
                kind = type(module).__name__
                raise ValueError(f'torch_pruning cannot prune {name!r} ({kind}): {advice}')
    for name in _fed(model):
        raise ValueError(
            f'torch_pruning cannot prune {name!r} (GhostConv2d): it loses count of the channels in '
            'a first conv; leave that dense (keep_first=True of gp.convert)'
        )
    roots = [GhostConv2d, nn.modules.conv._ConvNd, nn.Linear]
    ignored = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if any(isinstance(module, GhostStage) for module in model.modules()):
        inner = {id(conv) for block in model.modules() for conv in _inner(block)}
        convs = (module for module in model.modules() if isinstance(module, roots[0] | nn.Conv2d))
        ignored += [conv for conv in convs if id(conv) not in inner]
    pruners = {GhostConv2d: GhostConvPruner()}
    return {'customized_pruners': pruners, 'root_module_types': roots, 'ignored_layers': ignored}


def _inner(block: nn.Module) -> list[nn.Module]:
    return [block.conv1, block.conv2] if isinstance(block, RegNetBottleneck) else []
