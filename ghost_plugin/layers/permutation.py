"""A channel permutation in a layer, safe from arithmetic on buffers.

Generic code averages, casts and broadcasts the buffers of a model, which would destroy channel
numbers: 0.9 * i + 0.1 * i is a little less than i, and becomes i - 1 in an integer buffer. So the
permutation is a floating-point buffer of digits from 0 to 15, which all floating types hold exactly
and which are rounded when they are read. State dicts hold plain int64 channel numbers.
"""

import weakref
from typing import Any

import torch
from torch import nn

from ..utils.torch_compat import is_compiling

_BITS = 4  # per digit
# Averages of state dicts give 2.9999998 for 3; a larger difference is not due to rounding.
_MAX_ROUNDING = 0.01


def encode(order: torch.Tensor, channels: int) -> torch.Tensor:
    """The digits of channel numbers.

    Args:
        order: (n,) int64, each below ``channels``.
        channels: Number of channels to choose from; it sets the number of digits.

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


@torch.fx.wrap  # it depends on strides, which a symbolic trace does not know
def permute_channels(x: torch.Tensor, digits: torch.Tensor) -> torch.Tensor:
    """Permute channels; channels-last tensors stay so, unlike with indexing alone.

    Args:
        x: (..., C, H, W).
        digits: (digits, n), for each output channel the digits of its channel in ``x``.

    Returns:
        (..., n, H, W).
    """
    order = decode(digits)
    # Tensors of one pixel are in both formats. They are indexed, because an in-place activation on
    # a view would hide this layer from code that follows gradients, such as torch_pruning.
    last = x.dim() == 4 and not x.is_contiguous()
    if last and x.is_contiguous(memory_format=torch.channels_last):
        return x.permute(0, 2, 3, 1)[:, :, :, order].permute(0, 3, 1, 2)
    return x.index_select(-3, order)


def channel_numbers(order: torch.Tensor, channels: int) -> torch.Tensor:
    """Channel numbers of any numeric type as int64.

    Args:
        order: (n,) on any device; a tensor without values (meta, fake) is not checked.
        channels: Number of channels to choose from.

    Raises:
        ValueError: An entry is not a whole number from 0 to ``channels - 1``, or occurs twice.
    """
    found = order.detach()
    whole = found.round().long() if found.is_floating_point() else found.long()
    if whole.dim() != 1:
        raise ValueError(f'a channel permutation has one axis, got shape {tuple(order.shape)}')
    if not _has_values(whole):
        return whole
    valid = ((found - whole).abs() <= _MAX_ROUNDING) & (whole >= 0) & (whole < channels)
    repeated = len(whole) - len(whole.unique())
    if repeated or not valid.all():
        raise ValueError(
            f'no channel permutation: of {len(whole)} entries {int((~valid).sum())} are no whole '
            f'number from 0 to {channels - 1}, and {repeated} repeat another; such entries come '
            'from averaging or casting state dicts: average the floating-point entries only, and '
            'take the others from one of the networks'
        )
    return whole


def _has_values(tensor: torch.Tensor) -> bool:
    return type(tensor) is torch.Tensor and not tensor.is_meta


class Permuted(nn.Module):
    """A layer that may end with a channel permutation, the attribute ``order``.

    ``order`` is (out_channels,) int64, the computed channel that each output is, or None. Reading
    it, and ``state_dict``, return a tensor that may be written to like a buffer; a write takes
    effect at the next call of the layer, but not inside compiled code.

    Attributes:
        order_digits: The digits of ``order`` (:func:`encode`), not in state dicts, or None.
    """

    __jit_unused_properties__ = ['order']
    order_digits: Any  # a tensor or None
    # The tensor that was returned for ``order`` last, one on the same storage (it also sees what is
    # written shortly before the first is deleted), and a copy of the values.
    _exposed: tuple[weakref.ref[torch.Tensor], torch.Tensor, torch.Tensor] | None = None

    def num_computed(self) -> int:
        """Number of computed channels, of which the permutation selects some or all."""
        raise NotImplementedError

    @property
    def order(self) -> torch.Tensor | None:
        digits = self.order_digits
        if digits is None or not _has_values(digits):
            return None if digits is None else decode(digits)
        self._accept_writes()
        with torch.inference_mode(False), torch.no_grad():
            order = decode(digits)
            if self._exposed is None or (exposed := self._exposed[0]()) is None:
                self._exposed = weakref.ref(order), order.detach(), order.clone()
                return order
            for value in (exposed, self._exposed[2]):  # averaging may have changed the digits
                value.copy_(order)
            return exposed

    @order.setter
    def order(self, order: torch.Tensor | None) -> None:
        self._exposed = None
        digits = None
        if order is not None:
            digits = encode(channel_numbers(order, self.num_computed()), self.num_computed())
            old = self._buffers.get('order_digits')
            digits = digits if old is None else digits.to(old)
        self.register_buffer('order_digits', digits, persistent=False)

    def permute(self, x: torch.Tensor) -> torch.Tensor:
        """Computed channels (..., num_computed, H, W) to outputs (..., out_channels, H, W)."""
        if self.order_digits is None:
            return x
        if not torch.jit.is_scripting():
            self._accept_writes()
        return permute_channels(x, self.order_digits)

    @torch.jit.unused
    def _accept_writes(self) -> None:
        """Take over what was written to the tensor that was returned for ``order``.

        Raises:
            ValueError: It is no channel permutation.
        """
        if is_compiling() or self._exposed is None:
            return
        reference, written, before = self._exposed
        if written.is_cuda and torch.cuda.is_current_stream_capturing():
            return  # values cannot be read while a CUDA graph is recorded
        if not torch.equal(written, before):
            with torch.no_grad():
                lost = before - written
                if ((lost == 0) | (lost == 1)).all():  # averaged with itself in place, and cut
                    written.copy_(before)
                else:
                    self._write(channel_numbers(written, self.num_computed()))
        if reference() is None:
            self._exposed = None

    @torch.no_grad()
    def _write(self, order: torch.Tensor) -> None:
        """Put other values into the buffer, and into the tensor that was returned."""
        self.order_digits.copy_(encode(order, self.num_computed()))
        if self._exposed is not None:
            for value in self._exposed[1:]:
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
            shape, outputs = tuple(state_dict[key].shape), digits.shape[1]
            if shape != (outputs,):
                raise ValueError(f'of shape {shape}, this layer has {outputs} outputs')
            order = channel_numbers(state_dict[key], self.num_computed())
        except ValueError as error:
            error_msgs.append(f'{key!r} is {error}')
            return
        if local_metadata.get('assign_to_params_buffers', False):
            self._exposed = None
            self.order_digits = encode(order, self.num_computed()).to(digits.dtype)
        else:
            self._write(order)

    def _apply(self, *args: Any, **kwargs: Any) -> nn.Module:
        self._accept_writes()
        super()._apply(*args, **kwargs)
        if self._exposed and self._exposed[1].device != self.order_digits.device:
            self._exposed = None
        return self

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if 'order' in self._buffers:  # pickled as a whole module by version 0.1
            self.order = self._buffers.pop('order')

    def __getstate__(self) -> dict[str, Any]:  # for copies and pickles
        self._accept_writes()
        return {name: value for name, value in vars(self).items() if name != '_exposed'}
