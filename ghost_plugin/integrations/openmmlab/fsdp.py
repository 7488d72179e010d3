"""Which modules FSDP shards one by one: no Ghost block is torn into its small kernels."""

from torch import nn
from torch.distributed.fsdp.wrap import size_based_auto_wrap_policy

from ...backbones.bottlenecks import GhostBottleneck
from ...backbones.common import Stages
from ...backbones.g_ghost_regnet import RegNetBottleneck
from ...layers.ghost import Ghost
from ...registry import FUNCTIONS

# A shard of a cheap kernel would hold a few hundred numbers and cost a gathering of its own.
_WHOLE = {Ghost, GhostBottleneck, RegNetBottleneck, nn.MultiheadAttention}
# Never called as a whole, so FSDP would not gather what it holds.
_LISTS = {Stages, nn.ModuleList, nn.ModuleDict}


@FUNCTIONS.register_module(force=True)
def ghost_wrap_policy(
    module: nn.Module, recurse: bool, nonwrapped_numel: int, min_params: int = 100_000
) -> bool:
    """An ``auto_wrap_policy`` by size for MMEngine's ``FSDPStrategy``, and for torch's FSDP.

    Args:
        module, recurse, nonwrapped_numel: As FSDP calls it.
        min_params: Parameters from which on a module becomes a unit of its own. Ghost modules,
            Ghost convs and bottlenecks stay whole, in the unit of the block or stage around them.
    """
    return size_based_auto_wrap_policy(
        module, recurse, nonwrapped_numel, min_params, _WHOLE, _LISTS
    )
