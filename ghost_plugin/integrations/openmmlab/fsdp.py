"""FSDP wrap policy that keeps each Ghost block in one unit."""

from torch import nn
from torch.distributed.fsdp.wrap import size_based_auto_wrap_policy

from ...backbones.bottlenecks import GhostBottleneck
from ...backbones.common import Stages
from ...backbones.g_ghost_regnet import RegNetBottleneck
from ...layers.ghost import Ghost
from ...registry import FUNCTIONS

# A shard of a cheap kernel would hold a few hundred elements and cost an all-gather of its own.
_WHOLE = {Ghost, GhostBottleneck, RegNetBottleneck, nn.MultiheadAttention}
# Containers that are never called themselves, so FSDP would not gather their parameters.
_LISTS = {Stages, nn.ModuleList, nn.ModuleDict}


@FUNCTIONS.register_module(force=True)
def ghost_wrap_policy(
    module: nn.Module, recurse: bool, nonwrapped_numel: int, min_params: int = 100_000
) -> bool:
    """Decide by size which modules become units of MMEngine's ``FSDPStrategy`` or torch's FSDP.

    Args:
        module, recurse, nonwrapped_numel: Passed by FSDP to its ``auto_wrap_policy``.
        min_params: Smallest number of parameters of a unit. Ghost modules, Ghost convs and
            bottlenecks stay in the unit of the block or stage around them.
    """
    return size_based_auto_wrap_policy(
        module, recurse, nonwrapped_numel, min_params, _WHOLE, _LISTS
    )
