"""OpenMMLab's ``init_weights`` on a converted model: values set on a dense conv reach the Ghost."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from ...layers.ghost import GhostConv2d
from ...utils.modules import removing_hooks

_NAMES = ('weight', 'bias', 'reset_parameters')


def init_weights(model: nn.Module) -> None:
    """Call ``init_weights`` of the model's class, with Ghost convs that act as dense convs.

    Heads set convs by name (``normal_init(self.conv_cls, bias=...)``, ``conv.bias.data.fill_``).
    They skip a conv without ``weight`` and ``bias``, or raise.

    Args:
        model: Converted model whose class has ``init_weights``.
    """
    with ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, GhostConv2d) and not module.primary_conv.weight.is_meta:
                stack.enter_context(_as_dense(module))
        type(model).init_weights(model)


@contextmanager
def _as_dense(ghost: GhostConv2d) -> Iterator[None]:
    """Give a Ghost conv the parameters of a dense one temporarily, and apply their changes to it.

    The convolved channels get the weights that were written for them, and every channel its bias;
    the cheap kernels stay as they are. A checkpoint that is loaded meanwhile takes precedence.
    """
    dense = _dense(ghost)
    before = {name: p.detach().clone() for name, p in dense.named_parameters()}
    vars(ghost).update({name: getattr(dense, name) for name in _NAMES})

    def forget(*args: Any) -> None:
        for name in _NAMES:
            vars(ghost).pop(name, None)

    try:
        with removing_hooks(ghost._register_load_state_dict_pre_hook(forget)):
            yield
        written = [name for name in before if name in vars(ghost)]
    finally:
        forget()
    changed = [name for name in written if not torch.equal(getattr(dense, name), before[name])]
    with torch.no_grad():
        if 'weight' in changed:
            order = _order(ghost)
            first = order < ghost.primary
            ghost.primary_conv.weight[order[first]] = dense.weight[first]
        if 'bias' in changed:
            _set_bias(ghost, dense.bias)


def _dense(ghost: GhostConv2d) -> nn.Conv2d:
    """A dense conv of the shape of a Ghost conv; the kernels of its ghost channels are zero."""
    like, order = ghost.primary_conv, _order(ghost)
    with torch.random.fork_rng(devices=[]):
        conv = nn.Conv2d(
            ghost.in_channels,
            ghost.out_channels,
            ghost.kernel_size,
            groups=ghost.groups,
            bias=like.bias is not None,
        ).to(like.weight)
    first = order < ghost.primary
    with torch.no_grad():
        conv.weight.zero_()[first] = like.weight[order[first]]
        if like.bias is not None:
            conv.bias.copy_(torch.cat((like.bias, _ghost_bias(ghost)))[order])
    return conv


def _order(ghost: GhostConv2d) -> torch.Tensor:
    """Index of the computed channel of each output channel."""
    if ghost.order is None:
        return torch.arange(ghost.out_channels)
    return torch.as_tensor(ghost.order).cpu()


def _propagated_bias(ghost: GhostConv2d) -> torch.Tensor:
    """Contribution of the primary channels' biases to the ghost channels, off the border."""
    bias, cheap = ghost.primary_conv.bias[: ghost.num_ghosted], ghost.cheap_operation
    bias = bias.view(-1, ghost.group_size).repeat_interleave(ghost.ghosts_per_group, 0)
    if isinstance(cheap, nn.Conv2d):
        bias = bias * cheap.weight.sum((2, 3))
    return bias.sum(1)


def _ghost_bias(ghost: GhostConv2d) -> torch.Tensor:
    """Constant part of the ghost channels, away from the border."""
    own = getattr(ghost.cheap_operation, 'bias', None)
    return _propagated_bias(ghost) if own is None else _propagated_bias(ghost) + own


def _set_bias(ghost: GhostConv2d, bias: torch.Tensor) -> None:
    """Give every output channel a constant part, (out_channels,), in place."""
    conv, cheap, order = ghost.primary_conv, ghost.cheap_operation, _order(ghost)
    wanted = torch.cat((conv.bias, _ghost_bias(ghost)))
    wanted[order] = bias
    conv.bias.copy_(wanted[: ghost.primary])
    if getattr(cheap, 'bias', None) is not None:
        cheap.bias.copy_(wanted[ghost.primary :] - _propagated_bias(ghost))
