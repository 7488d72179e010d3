"""A channel permutation that a layer stores, safe from arithmetic on buffers.

Generic code averages, casts and broadcasts what stands among the buffers of a model. Channel
numbers do not survive that: 0.9 * i + 0.1 * i is a little less than i, and an integer buffer makes
i - 1 of it. So the permutation is a floating-point buffer of digits from 0 to 15, which all
floating types hold exactly and which are rounded when they are read. State dicts hold plain int64
channel numbers, as layers without this protection would.
"""

import sys
from typing import Any

import torch
from torch import nn

from ..utils.torch_compat import is_compiling

_BITS = 4  # of a digit
# Averages of state dicts give 2.9999998 for 3; what lies further off is no channel number.
_ROUNDING = 0.01


def encode(order: torch.Tensor, channels: int) -> torch.Tensor:
    """The digits of channel numbers.

    Args:
        order: (n,) int64, each below ``channels``.
        channels: How many there are to choose from; it tells the number of digits.

    Returns:
        (digits, n), the highest digit first, in the default floating type.
    """
    digits = max(1, -(-(channels - 1).bit_length() // _BITS))
    shifts = torch.arange(digits - 1, -1, -1, device=order.device) * _BITS
    return ((order >> shifts[:, None]) % 2**_BITS).to(torch.get_default_dtype())


def decode(digits: torch.Tensor) -> torch.Tensor:
    """The channel numbers, (n,) int64, of :func:`encode`'s digits."""
    rows = digits.round().long().unbind()
    order = rows[0]
    for row in rows[1:]:
        order = order * 16 + row  # plain arithmetic, which LiteRT converts, too
    return order


@torch.fx.wrap  # it looks at strides, which a symbolic trace cannot
def permute_channels(maps: torch.Tensor, digits: torch.Tensor) -> torch.Tensor:
    """Permute channels; channels-last maps stay so, which indexing alone would not do.

    Args:
        maps: (..., C, H, W).
        digits: (digits, n) of the channel that each of the new ones is.

    Returns:
        (..., n, H, W).
    """
    order = decode(digits)
    # Maps of one pixel are both: those are indexed, because an activation that works in place on a
    # view would hide this layer from what follows gradients, such as torch_pruning.
    last = maps.dim() == 4 and not maps.is_contiguous()
    if last and maps.is_contiguous(memory_format=torch.channels_last):
        return maps.permute(0, 2, 3, 1)[:, :, :, order].permute(0, 3, 1, 2)
    return maps.index_select(-3, order)


def channel_numbers(order: torch.Tensor, channels: int) -> torch.Tensor:
    """Channel numbers as int64, of any type of number.

    Args:
        order: (n,) on any device; without values (meta, fake) it is not checked.
        channels: How many there are to choose from.

    Raises:
        ValueError: An entry is no whole number from 0 to ``channels - 1``, or is there twice.
    """
    found = order.detach()
    whole = found.round().long() if found.is_floating_point() else found.long()
    if whole.dim() != 1:
        raise ValueError(f'a channel permutation has one axis, got shape {tuple(order.shape)}')
    if not _has_values(whole):
        return whole
    kept = ((found - whole).abs() <= _ROUNDING) & (whole >= 0) & (whole < channels)
    if not kept.all() or len(whole.unique()) < len(whole):
        times = whole.unique(return_counts=True)[1]
        raise ValueError(
            f'no channel permutation: of {len(whole)} entries {int((~kept).sum())} are no whole '
            f'number from 0 to {channels - 1}, and {int((times - 1).sum())} are there before; such '
            'entries come from averaging or casting state dicts: average the floating-point '
            'entries only, and take the others from one of the networks'
        )
    return whole


def _has_values(tensor: torch.Tensor) -> bool:
    return type(tensor) is torch.Tensor and not tensor.is_meta


class Permuted(nn.Module):
    """A layer that may put its channels into a stored order, the attribute ``order``.

    ``order`` is (out_channels,) int64, which of the computed channels each output is, or None.
    Reading it, and ``state_dict``, give a tensor that may be written into, as a buffer may; what
    was written counts from the next call of the layer on, but not inside of compiled code.

    Attributes:
        order_digits: The order as :func:`encode` makes it, not in state dicts, or None.
    """

    __jit_unused_properties__ = ['order']
    order_digits: torch.Tensor | None
    # The int64 tensor that was given away, and a copy of what was in it then.
    _given: tuple[torch.Tensor, torch.Tensor] | None = None

    def num_computed(self) -> int:
        """Channels that are computed, of which the order takes some or all."""
        raise NotImplementedError

    @property
    def order(self) -> torch.Tensor | None:
        digits = self.order_digits
        if digits is None or not _has_values(digits):
            return None if digits is None else decode(digits)
        self._accept_writes()
        with torch.inference_mode(False), torch.no_grad():
            order = decode(digits)
            if self._given is None:
                self._given = (order, order.clone())
            else:  # whoever has it sees what averaging or broadcasting made of the buffer
                for value in self._given:
                    value.copy_(order)
        return self._given[0]

    @order.setter
    def order(self, order: torch.Tensor | None) -> None:
        self._given = None
        digits = None
        if order is not None:
            digits = encode(channel_numbers(order, self.num_computed()), self.num_computed())
            old = self._buffers.get('order_digits')
            digits = digits if old is None else digits.to(old)
        self.register_buffer('order_digits', digits, persistent=False)

    def permute(self, maps: torch.Tensor) -> torch.Tensor:
        """Computed channels in the order of the outputs."""
        if self.order_digits is None:
            return maps
        if not torch.jit.is_scripting():
            self._accept_writes()
        return permute_channels(maps, self.order_digits)

    @torch.jit.unused
    def _accept_writes(self) -> None:
        """Take over what somebody has written into the tensor that was given away.

        Raises:
            ValueError: It is no channel permutation.
        """
        if is_compiling() or self._given is None or _is_capturing(self._given[0]):
            return
        if not torch.equal(*self._given):
            self._accept(*self._given)
        if _references(self._given) == _ALONE:
            self._given = None  # nobody else has it

    @torch.no_grad()
    def _accept(self, given: torch.Tensor, before: torch.Tensor) -> None:
        lost = before - given
        if ((lost == 0) | (lost == 1)).all():  # averaged with itself in place, and cut
            given.copy_(before)
        else:
            self._write(channel_numbers(given, self.num_computed()))

    def _write(self, order: torch.Tensor) -> None:
        """Put other values into the buffer, and into the tensor that was given away."""
        with torch.no_grad():
            self.order_digits.copy_(encode(order, self.num_computed()))
            for value in self._given or ():
                value.copy_(order)

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.order_digits is not None:
            destination[f'{prefix}order'] = self.order

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        rest = (local_metadata, strict, missing_keys, unexpected_keys, error_msgs)
        super()._load_from_state_dict(state_dict, prefix, *rest)
        key, digits = f'{prefix}order', self.order_digits
        if digits is None:
            return
        if key in unexpected_keys:
            unexpected_keys.remove(key)
        if key not in state_dict:
            missing_keys.extend([key] if strict else [])
            return
        try:
            order = _of_length(state_dict[key], digits.shape[1])
            order = channel_numbers(order, self.num_computed())
        except ValueError as error:
            error_msgs.append(f'{key!r} is {error}')
            return
        if local_metadata.get('assign_to_params_buffers', False):
            self._given = None
            self.order_digits = encode(order, self.num_computed()).to(digits.dtype)
        else:
            self._write(order)

    def _apply(self, *args: Any, **kwargs: Any) -> nn.Module:
        self._accept_writes()
        super()._apply(*args, **kwargs)
        if self._given is not None and self._given[0].device != self.order_digits.device:
            self._given = None
        return self

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if 'order' in self._buffers:  # a module that was pickled whole by version 0.1
            self.order = self._buffers.pop('order')

    def __getstate__(self) -> dict[str, Any]:  # of copies and pickles
        self._accept_writes()
        return {name: value for name, value in vars(self).items() if name != '_given'}


def _of_length(order: torch.Tensor, channels: int) -> torch.Tensor:
    if tuple(order.shape) != (channels,):
        raise ValueError(f'of shape {tuple(order.shape)}, this layer has {channels} outputs')
    return order


def _references(given: tuple[torch.Tensor, torch.Tensor]) -> int:
    return sys.getrefcount(given[0])


_ALONE = _references((torch.empty(0), torch.empty(0)))  # of a tensor that only its tuple has


def _is_capturing(tensor: torch.Tensor) -> bool:
    """Whether a CUDA graph is being recorded, in which values cannot be looked at."""
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()
