"""The RepGhost module: parallel branches that add features and become one conv for inference.

Source: Chen et al., RepGhost (arXiv 2211.06088), section 3. Parameter names of both forms are
timm's (Apache-2.0). Changed against it: dilation, every norm folds, either form loads the weights
of the training form, initial weights that keep variances.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .bn_folding import kernel_and_bias, scale_and_shift, with_weights
from .cheap_ops import check_dw_size
from .common import activation, check_positive, draw_weights, same_padding, second_moment
from .reparam import Reparameterized

Norm = Callable[[int], nn.Module]


class _ConvNorm(nn.Sequential):
    """A conv and its norm, named by their positions."""

    folds = (('0', '1'),)


class RepGhostModule(Reparameterized):
    """A conv, and a depthwise conv on its outputs that is added to a norm of the same outputs.

    A Ghost module concatenates its two kinds of features. This one adds them, so it copies no
    features, and for inference both are one depthwise conv (:meth:`switch_to_deploy`).

    Source: Chen et al., RepGhost (arXiv 2211.06088), section 3.2, figure 3.

    Args:
        in_channels, out_channels: Input and output channels; the conv has all output channels.
        kernel_size: Kernel of the conv, pixels.
        dw_size: Odd kernel of the depthwise conv, pixels.
        stride, dilation: Of the conv.
        relu: Put activations behind the conv and behind the sum.
        dw_dilation: Dilation of the depthwise conv.
        norm_layer: Called with the number of channels.
        act_layer: Called without arguments, or with ``inplace=True`` where it takes that.

    Shape:
        (N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride))

    Raises:
        ValueError: A number that is not positive, or an even ``dw_size``.
    """

    merged_names = (('cheap_operation', 'cheap_operation', '', 'fusion_bn'),)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        dw_size: int = 3,
        stride: int = 1,
        relu: bool = True,
        *,
        dilation: int = 1,
        dw_dilation: int = 1,
        norm_layer: Norm = nn.BatchNorm2d,
        act_layer: Callable[..., nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__()
        check_positive(
            in_channels=in_channels, out_channels=out_channels, stride=stride, dilation=dilation
        )
        check_dw_size(dw_size)
        act = act_layer if relu else nn.Identity
        padding = same_padding(kernel_size, dilation)
        self.primary_conv = nn.Sequential(
            nn.Conv2d(
                in_channels, out_channels, kernel_size, stride, padding, dilation, bias=False
            ),
            norm_layer(out_channels),
            activation(act),
        )
        padding = same_padding(dw_size, dw_dilation)
        self.cheap_operation: Any = _ConvNorm(
            nn.Conv2d(
                out_channels,
                out_channels,
                dw_size,
                padding=padding,
                dilation=dw_dilation,
                groups=out_channels,
                bias=False,
            ),
            norm_layer(out_channels),
        )
        self.fusion_bn: Any = nn.Sequential(norm_layer(out_channels))
        self.relu = activation(act)
        self.initialize()

    def initialize(self, moment: float = 1.0, variance: float = 1.0) -> float:
        """Draw initial weights that keep the variance, which both branches share.

        Args:
            moment: Mean square of the inputs.
            variance: Mean square of the sum, in front of its activation.

        Returns:
            Mean square of the outputs.
        """
        half = variance / 2
        draw_weights(self.primary_conv[0], moment, half / second_moment(self.primary_conv[2], 1.0))
        if isinstance(self.cheap_operation, nn.Sequential):
            draw_weights(self.cheap_operation[0], half, half)
        return second_moment(self.relu, half, half)

    def zero_init_norms(self) -> None:
        """Let the module return zeros at the start of training; both branches learn."""
        for branch in (self.cheap_operation, self.fusion_bn):
            nn.init.zeros_(branch[-1].weight)

    @property
    def branched(self) -> bool:
        """True in the form for training."""
        return self.fusion_bn is not None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.primary_conv(x)
        out = self.cheap_operation(features)
        if self.fusion_bn is not None:
            out = out + self.fusion_bn(features)
        return self.relu(out)

    @torch.jit.ignore
    def merge_branches(self) -> None:
        """Replace both branches by one depthwise conv, with the names of timm's deployed form."""
        conv, norm = self.cheap_operation
        self.cheap_operation = _merged(conv, norm, self.fusion_bn[0])
        self.fusion_bn = None

    def remap_state_dict(self, weights: dict[str, torch.Tensor], prefix: str) -> None:
        """Bring the tensors under ``prefix`` into this form, in place.

        Args:
            weights: A state dict of either form, of the authors, timm or this package.
            prefix: Name of this module in it, with a dot behind.

        Raises:
            ValueError: This is the training form and ``weights`` hold the deployed one.
        """
        cheap = f'{prefix}cheap_operation.'
        deployed, trained = f'{cheap}weight', f'{cheap}0.weight'
        if self.branched and deployed in weights and trained not in weights:
            raise ValueError(
                f'{deployed} is of the form for inference; its merged branches cannot be '
                'separated again, build the model with deploy=True to load it'
            )
        if not self.branched and trained in weights:
            own: Any = self.cheap_operation
            channels = own.out_channels
            branches: list[Any] = [
                nn.Conv2d(channels, channels, own.kernel_size, groups=channels, bias=False),
                nn.BatchNorm2d(channels),
                nn.BatchNorm2d(channels),
            ]
            places = (f'{cheap}0.', f'{cheap}1.', f'{prefix}fusion_bn.0.')
            dtype = weights[trained].dtype
            for branch, place in zip(branches, places, strict=True):
                names = [name for name in weights if name.startswith(place)]
                part = {n.removeprefix(place): weights.pop(n) for n in names}
                branch.to(dtype).load_state_dict(part)
            merged: Any = _merged(*branches)
            weights[deployed], weights[f'{cheap}bias'] = (
                merged.weight.detach(),
                merged.bias.detach(),
            )


@torch.no_grad()
def _merged(conv: nn.Conv2d, norm: nn.Module, skip: nn.Module) -> nn.Conv2d:
    """One depthwise conv that computes ``norm(conv(x)) + skip(x)`` of norms in eval mode."""
    kernel, bias = kernel_and_bias(conv, norm)
    scale, shift = scale_and_shift(skip)
    kernel[:, 0, kernel.shape[2] // 2, kernel.shape[3] // 2] += scale
    return with_weights(conv, kernel, bias + shift)
