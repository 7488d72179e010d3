"""Prune channels of networks with Ghost layers by the package ``torch-pruning``.

Its dependency graph follows the convs inside Ghost modules. A Ghost conv, whose output channels
are permuted, is one layer to it, and :class:`GhostConvPruner` removes the channels. Layers that
the package cannot follow or score are refused before anything is changed.
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
    """Removes channels of a Ghost conv; a primary channel goes once none of its uses is left."""

    def prune_out_channels(self, layer: GhostConv2d, idxs: Sequence[int]) -> nn.Module:
        """Remove output channels.

        Args:
            layer: The Ghost conv; modified.
            idxs: Channels to remove.
        """
        primary, order = layer.primary, layer.order
        if order is None:
            order = torch.arange(layer.out_channels, device=layer.primary_conv.weight.device)
        gone = set(idxs)
        order = order[[index for index in range(len(order)) if index not in gone]]
        sources = torch.where(
            order < primary, order, (order - primary) // max(layer.ghosts_per_group, 1)
        )
        # The shift of a ghost channel depends on its index, so none may get another index.
        if layer.groups == 1 and not isinstance(layer.cheap_operation, Shift):
            order = _keep_primaries(layer, sources.unique(), order)
        layer.order, layer.out_channels, layer.needs_crop = order, len(order), False
        return layer

    def prune_in_channels(self, layer: GhostConv2d, idxs: Sequence[int]) -> nn.Module:
        """Remove input channels.

        Args:
            layer: The Ghost conv; modified.
            idxs: Channels to remove.
        """
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


def _keep_primaries(layer: GhostConv2d, kept: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """Keep these primary channels and their ghosts; return the permutation in new indices."""
    primary, per_primary = layer.primary, layer.ghosts_per_group
    new_index = torch.full((primary,), -1, dtype=order.dtype, device=order.device)
    new_index[kept] = torch.arange(len(kept), device=order.device)
    with_ghosts = kept[kept < layer.num_ghosted]
    _keep_filters(layer.primary_conv, kept)
    layer.primary, layer.num_ghosted = len(kept), len(with_ghosts)
    if not layer.num_ghosted:
        layer.ghosts_per_group, layer.cheap_operation = 0, nn.Identity()
    elif isinstance(layer.cheap_operation, nn.Conv2d):
        each = torch.arange(per_primary, device=order.device)
        _keep_filters(layer.cheap_operation, (with_ghosts[:, None] * per_primary + each).flatten())
        layer.cheap_operation.groups = layer.cheap_operation.in_channels = len(with_ghosts)
    ghost, per_primary = order - primary, max(per_primary, 1)
    source = new_index[(ghost // per_primary).clamp_min(0)]
    return torch.where(
        order < primary,
        new_index[order.clamp_max(primary - 1)],
        len(kept) + source * per_primary + ghost % per_primary,
    )


def _keep_filters(conv: nn.Conv2d, kept: torch.Tensor) -> None:
    """Remove all filters but these, in place."""
    gone = set(range(conv.out_channels)) - set(kept.tolist())
    tp.prune_conv_out_channels(conv, sorted(gone))


def _is_converted(part: nn.Module) -> bool:
    return any(isinstance(module, GhostConv2d) for module in part.modules())


def _has_no_scores(block: nn.Module) -> bool:
    """True when the package would score only half of the channels of a Ghost module.

    Dense convs and norms have scores, Ghost convs have none. The first score in a group sets the
    number of channels; it is right where a norm or a dense conv follows the Ghost module.
    """
    if not (isinstance(block, GhostBottleneck) and _is_converted(block)):
        return False
    if not any(isinstance(part, nn.BatchNorm2d) for part in block.modules()):
        return True
    if isinstance(block.bn_dw, nn.BatchNorm2d) or getattr(block.ghost1, 'short_conv', None):
        return False
    expand = getattr(block.se, 'conv_expand', None)
    begins = isinstance(block.conv_dw, nn.Conv2d) or isinstance(expand, GhostConv2d)
    return begins and _is_converted(block.ghost2)


def _first_ghost_convs(model: nn.Module) -> Iterator[str]:
    """Names of Ghost convs that no layer with known channels precedes.

    The package cannot derive the channels of their concatenation where a layer follows.
    """
    for part in trace_parts(model):
        known = set()
        for node in part.graph.nodes if not part.prefix else ():
            layer = part.modules.get(node.target) if node.op == 'call_module' else None
            ghost = isinstance(layer, GhostConv2d)
            first = known.isdisjoint(node.all_input_nodes)
            permuted = ghost and (layer.needs_crop or layer.order is not None)
            if first and permuted and layer.ghosts_per_group:
                yield part.name(node)
            if not first or ghost or isinstance(layer, nn.Conv2d | nn.BatchNorm2d | nn.Linear):
                known.add(node)


# Modules that the package cannot prune, and why and what to do instead.
_UNSUPPORTED = (
    (
        lambda module: isinstance(module, Shift),
        "shifts depend on the channel index; prune with cheap='depthwise' or 'linear'",
    ),
    (
        lambda module: isinstance(module, Ghost) and module.group_size > 1,
        'its ghosts mix several primary channels, and none of these can go alone; prune with '
        'group_size=1',
    ),
    (
        lambda module: isinstance(module, FoldedGhostConv2d),
        'the norm that would score it is folded; prune before gp.fuse',
    ),
    (
        lambda module: (
            isinstance(module, Ghost)
            and not isinstance(module, GHOST_CONVS)
            and (module.needs_crop or module.ghosts_per_group > 1)
        ),
        'each primary channel must have one ghost and none may be cropped; prune with ratio=2',
    ),
    (
        lambda module: isinstance(module, GhostStage) and _is_converted(module),
        'it splits channels that are permuted; prune before gp.convert',
    ),
    (_has_no_scores, 'only converted convs follow its Ghost modules; prune before gp.convert'),
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
        for is_unsupported, advice in _UNSUPPORTED:
            if is_unsupported(module):
                kind = type(module).__name__
                raise ValueError(f'torch_pruning cannot prune {name!r} ({kind}): {advice}')
    for name in _first_ghost_convs(model):
        raise ValueError(
            f'torch_pruning cannot prune {name!r} (GhostConv2d): it loses count of the channels in '
            'a first conv; leave that dense (keep_first=True of gp.convert)'
        )
    roots = [GhostConv2d, nn.modules.conv._ConvNd, nn.Linear]
    ignored = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if any(isinstance(module, GhostStage) for module in model.modules()):
        blocks = [block for block in model.modules() if isinstance(block, RegNetBottleneck)]
        inner = {id(conv) for block in blocks for conv in (block.conv1, block.conv2)}
        convs = (module for module in model.modules() if isinstance(module, roots[0] | nn.Conv2d))
        ignored += [conv for conv in convs if id(conv) not in inner]
    pruners = {GhostConv2d: GhostConvPruner()}
    return {'customized_pruners': pruners, 'root_module_types': roots, 'ignored_layers': ignored}
