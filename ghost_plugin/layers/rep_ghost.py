"""The RepGhost module: parallel branches that add features and become one conv for inference.

Source: Chen et al., RepGhost (arXiv 2211.06088), section 3. Parameter names of both forms are
timm's (Apache-2.0). Changed against it: dilation, every norm folds, either form loads the weights
of the training form, initial weights that keep variances.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .cheap_ops import check_dw_size
from .common import activation, check_positive, draw_weights, same_padding, second_moment
from .reparam import Reparameterized, merge, pop_prefix, refuse_deployed

Norm = Callable[[int], nn.Module]


class ConvNorm(nn.Sequential):
    """A conv and its norm, named by their positions, as a branch that can be merged."""

    __jit_unused_properties__ = ('conv', 'bn1')
    folds = (('0', '1'),)

    @property
    def conv(self) -> Any:
        """The conv."""
        return self[0]

    @property
    def bn1(self) -> Any:
        """The norm."""
        return self[1]


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
        self.cheap_operation: Any = ConvNorm(
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
        self.cheap_operation = merge([self.cheap_operation], self.fusion_bn[0])
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
            refuse_deployed(deployed)
        if not self.branched and trained in weights:
            own: Any = self.cheap_operation
            channels = own.out_channels
            conv = nn.Conv2d(channels, channels, own.kernel_size, groups=channels, bias=False)
            branch, skip = ConvNorm(conv, nn.BatchNorm2d(channels)), nn.BatchNorm2d(channels)
            dtype = weights[trained].dtype
            branch.to(dtype).load_state_dict(pop_prefix(weights, cheap))
            skip.to(dtype).load_state_dict(pop_prefix(weights, f'{prefix}fusion_bn.0.'))
            for name, parameter in merge([branch], skip).named_parameters():
                weights[f'{cheap}{name}'] = parameter.detach()
