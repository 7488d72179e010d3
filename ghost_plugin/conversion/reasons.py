"""Reasons why a conv is kept: their codes, and those that the module itself shows."""

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from ..layers.bn_folding import is_standard_conv

# Reason codes of kept convs, as a plan shows them.
REASONS = {
    'first': 'the first conv of the network (keep_first)',
    'last': 'the last conv of the network, or one that makes its output (keep_last)',
    'not_included': 'no pattern of include matches',
    'excluded': 'a pattern of exclude matches',
    'subclass': 'not a plain nn.Conv2d',
    '1d': 'an nn.Conv1d, and Ghost convs stand for nn.Conv2d only',
    '3d': 'an nn.Conv3d, and Ghost convs stand for nn.Conv2d only',
    'transposed': 'a transposed conv, and Ghost convs stand for nn.Conv2d only',
    'custom': 'a convolution of a class of its own (deformable, sparse, quantized, with weights '
    'per input)',
    'no_gain': 'its Ghost would cost as much or more',
    'groups': 'its groups do not divide the primary channels',
    'group_size': 'it has groups, or fewer primary channels than group_size asks for',
    'parametrized': 'its weight is computed (parametrize, weight norm, pruning): remove that first',
    'hooks': 'it has hooks of others: remove them first',
    'tied': 'its weight is also that of another layer',
    'weight_read': 'other code reads its weight or bias in the forward pass',
    'held': 'a list or dictionary that is no module holds it or its weight (use nn.ModuleList, '
    'nn.ModuleDict; fetch a weight when it is used)',
    'padding': 'its feature maps are too small for a depthwise filter with its padding mode',
    'budget': 'the budget is met without it',
    'no_gradient': 'the output does not depend on it by gradients, so a budget cannot score it',
    'slower': 'its Ghost measured slower here',
    'unused': 'the example input never reached it',
    'converted': 'it is a part of a Ghost conv already',
}
# With these reasons no edit of a plan can make a Ghost conv.
FINAL = (
    'subclass', '1d', '3d', 'transposed', 'custom', 'groups', 'parametrized', 'hooks', 'tied',
    'weight_read', 'held', 'padding', 'converted',
)  # fmt: skip

# Convolutions of torch that are no nn.Conv2d, and their codes.
_OTHER_CONVS = {
    nn.Conv1d: '1d',
    nn.Conv3d: '3d',
    nn.ConvTranspose1d: 'transposed',
    nn.ConvTranspose2d: 'transposed',
    nn.ConvTranspose3d: 'transposed',
}
_HOOKS = ('_forward_hooks', '_forward_pre_hooks', '_backward_hooks', '_backward_pre_hooks')


def other_conv(module: nn.Module) -> str | None:
    """Return the reason code of a convolution that is no ``nn.Conv2d``.

    Args:
        module: Any module.

    Returns:
        A code of ``REASONS``; ``''`` for an ``nn.Conv2d``; None where it is no convolution.
    """
    if isinstance(module, nn.Conv2d):
        return ''
    for kind, code in _OTHER_CONVS.items():
        if isinstance(module, kind):
            return code
    # Deformable, sparse and quantized convs, those with weights per input, and so on. Blocks such
    # as mmcv's ConvModule describe themselves like a conv, too, but the weight is that of a part.
    channels = [getattr(module, name, None) for name in ('in_channels', 'out_channels')]
    described = all(isinstance(number, int) and number > 0 for number in channels)
    described = described and isinstance(getattr(module, 'kernel_size', None), int | list | tuple)
    # By name, so that a computed weight is not computed for that.
    weighted = any('weight' in held for held in (module._parameters, vars(module)))
    weighted = weighted or hasattr(type(module), 'weight')
    scripted = isinstance(module, torch.jit.ScriptModule)  # takes no hooks
    return 'custom' if described and weighted and not scripted else None


def conversion_blocker(conv: nn.Module) -> str:
    """Return the reason code why a conv cannot be replaced, as it stands; '' if it can."""
    if not isinstance(conv, nn.Conv2d):
        return other_conv(conv) or 'subclass'
    if is_parametrized(conv) or 'weight' not in conv._parameters:
        return 'parametrized'
    if not is_standard_conv(conv):
        return 'subclass'
    return 'hooks' if any(vars(conv).get(key) for key in _HOOKS) else ''
