"""Parallel branches for training that become one conv for inference.

Source: Liu et al., GhostNetV3 (arXiv 2404.11202), section 3.1; the branches follow Ding et al.,
RepVGG, CVPR 2021 (arXiv 2101.03697) and Vasu et al., MobileOne, CVPR 2023 (arXiv 2206.04040).
Parameter names are timm's (Apache-2.0). Changed against it: any ratio, exact output channels,
every norm folds, gradients stay on.
"""

from collections.abc import Callable, Iterable
from typing import Any, NoReturn

import torch
from torch import nn

from .attention import DFCAttention
from .bn_folding import Foldable, kernel_and_bias, scale_and_shift, with_weights
from .cheap_ops import check_dw_size
from .common import activation, check_positive, draw_weights, second_moment
from .ghost import Ghost, GhostLayout, split_channels
from .parallel_branches import NUM_BRANCHES, Branch, Branches, Norm, joinable, joint_sum


def draw_branches(branches: Iterable[Any], moment: float, variance: float) -> None:
    """Draw initial weights of convs whose outputs are summed.

    Args:
        branches: Their weights are drawn in place.
        moment: Mean square of their inputs.
        variance: Variance of the sum of their outputs.
    """
    branches = list(branches)
    for branch in branches:
        draw_weights(branch.conv, moment, variance / len(branches))


def merge(branches: Iterable[Any], skip: nn.Module | None = None) -> nn.Conv2d:
    """One conv that computes the sum of branches, each centred in the largest kernel.

    Args:
        branches: The branches.
        skip: A norm of the input itself, one of the branches for depthwise convs.
    """
    branches = list(branches)
    largest = max((branch.conv for branch in branches), key=lambda conv: conv.kernel_size)
    kernel = torch.zeros_like(largest.weight, dtype=torch.double, requires_grad=False)
    bias = kernel.new_zeros(len(kernel))
    height, width = largest.kernel_size
    for branch in branches:
        weight, shift = kernel_and_bias(branch.conv, branch.bn1)
        top, left = (height - weight.shape[2]) // 2, (width - weight.shape[3]) // 2
        kernel[:, :, top : top + weight.shape[2], left : left + weight.shape[3]] += weight
        bias += shift
    if skip is not None:
        scale, shift = scale_and_shift(skip)
        kernel[:, 0, height // 2, width // 2] += scale
        bias += shift
    return with_weights(largest, kernel, bias)


def refuse_deployed(name: str) -> NoReturn:
    """Raise ValueError for a tensor of the deployed form where that for training is loaded."""
    raise ValueError(
        f'{name} is of the form for inference; its merged branches cannot be separated again, '
        'build the model with deploy=True to load it'
    )


class Reparameterized(Foldable):
    """Mixed into a block with branches, loads weights of either form into either form.

    ``merged_names`` holds, per group of branches, the conv of the deployed form and the names of
    the branches, of the 1x1 branch and of the norm of the input itself.
    """

    merged_names: tuple[tuple[str, str, str, str], ...]

    @property
    def branched(self) -> bool:
        """True in the form for training."""
        raise NotImplementedError

    def remap_state_dict(self, weights: dict[str, torch.Tensor], prefix: str) -> None:
        """Bring the tensors under ``prefix`` into this form, in place.

        Norms of branches are ``bn`` in the authors' files and ``bn1`` in timm's and here.

        Args:
            weights: A state dict of either form, of the authors, timm or this package.
            prefix: Name of this block in it, with a dot behind.

        Raises:
            ValueError: This is the training form and ``weights`` hold the deployed one.
        """
        for name in [name for name in weights if name.startswith(prefix) and '_rpr_' in name]:
            weights[name.replace('.bn.', '.bn1.')] = weights.pop(name)
        for conv, *groups in self.merged_names:
            deployed, trained = f'{prefix}{conv}.weight', f'{prefix}{groups[0]}.0.conv.weight'
            whole = f'{prefix}{conv}.bias' in weights  # without it the file is of V1 or V2
            if self.branched and whole and deployed in weights and trained not in weights:
                refuse_deployed(deployed)
            if not self.branched and trained in weights:
                merged = merge(*_take(weights, *(f'{prefix}{name}' for name in groups)))
                names = {'weight': deployed, 'bias': f'{prefix}{conv}.bias'}
                weights.update({names[name]: p for name, p in merged.named_parameters()})

    def _load_from_state_dict(
        self, state_dict: dict[str, torch.Tensor], prefix: str, *args: Any
    ) -> None:
        self.remap_state_dict(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)


@torch.no_grad()
def _take(
    weights: dict[str, torch.Tensor], convs: str, scale: str, skip: str
) -> tuple[list[Branch], nn.Module | None]:
    """Remove branches and skip norm from a state dict and build them."""
    branches = []
    for name in (*(f'{convs}.{index}' for index in range(NUM_BRANCHES)), scale):
        part = pop_prefix(weights, f'{name}.')
        if part:
            out_channels, in_channels, kernel_size, _ = part['conv.weight'].shape
            branch = Branch(in_channels, out_channels, kernel_size, nn.BatchNorm2d)
            branch.to(part['conv.weight'].dtype).load_state_dict(part)
            branches.append(branch)
    part = pop_prefix(weights, f'{skip}.')
    norm = nn.BatchNorm2d(len(part['weight'])).to(part['weight'].dtype) if part else None
    if norm is not None:
        norm.load_state_dict(part)
    return branches, norm


def pop_prefix(weights: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """Remove the tensors under a prefix from a state dict; return them without it.

    Args:
        weights: Changed in place.
        prefix: With a dot behind.
    """
    names = [name for name in weights if name.startswith(prefix)]
    return {name.removeprefix(prefix): weights.pop(name) for name in names}


class GhostModuleV3(Reparameterized, Ghost):
    """Ghost module whose convs have parallel branches while it trains.

    The primary conv is the sum of three convs. The cheap operation is the sum of three depthwise
    convs, a 1x1 depthwise conv and a norm of the primary channels. :meth:`switch_to_deploy` merges
    each sum into one conv.

    Source: Liu et al., GhostNetV3 (arXiv 2404.11202), section 3.1.

    Args:
        in_channels, out_channels, kernel_size, ratio, dw_size, stride: As in
            :class:`ghost_plugin.GhostModule`.
        relu, dilation, dw_dilation, norm_layer, act_layer: The same.
        attention: Scale the outputs by the attention of GhostNetV2.

    Shape:
        (N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride))

    Raises:
        ValueError, TypeError: As :class:`GhostModule`.
    """

    merged_names = (
        ('primary_conv.0', 'primary_rpr_conv', 'primary_rpr_scale', 'primary_rpr_skip'),
        ('cheap_operation.0', 'cheap_rpr_conv', 'cheap_rpr_scale', 'cheap_rpr_skip'),
    )

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        ratio: float = 2,
        dw_size: int = 3,
        stride: int = 1,
        relu: bool = True,
        *,
        dilation: int = 1,
        dw_dilation: int = 1,
        attention: bool = False,
        norm_layer: Norm = nn.BatchNorm2d,
        act_layer: Callable[..., nn.Module] = nn.ReLU,
    ) -> None:
        check_positive(
            in_channels=in_channels, out_channels=out_channels, stride=stride, dilation=dilation
        )
        check_dw_size(dw_size)
        primary, ghosts_per_group = split_channels(out_channels, ratio)
        super().__init__(out_channels, GhostLayout(primary, primary, 1, ghosts_per_group))
        self.in_channels = in_channels
        act = act_layer if relu else nn.Identity
        self.primary_conv = self.cheap_operation = None
        self.primary_rpr_conv: Any = Branches(
            in_channels, primary, kernel_size, norm_layer, stride, dilation
        )
        self.primary_activation: Any = activation(act)
        self.cheap_rpr_skip: Any = None
        self.cheap_rpr_conv: Any = None
        self.cheap_rpr_scale: Any = None
        self.cheap_activation: Any = None
        if ghosts_per_group:
            ghosts = primary * ghosts_per_group
            self.cheap_rpr_skip = norm_layer(ghosts)
            self.cheap_rpr_conv = Branches(
                primary, ghosts, dw_size, norm_layer, dilation=dw_dilation, groups=primary
            )
            self.cheap_rpr_scale = Branch(primary, ghosts, 1, norm_layer, groups=primary)
            self.cheap_activation = activation(act)
        self.short_conv = DFCAttention(in_channels, out_channels, norm_layer) if attention else None
        self.initialize()

    def initialize(self, moment: float = 1.0, variance: float = 1.0) -> float:
        """Draw initial weights that keep the variance, which branches share.

        Args: As :meth:`ghost_plugin.GhostModule.initialize`.
        """
        draw_branches(self.primary_rpr_conv, moment, variance)
        made = second_moment(self.primary_activation, variance)
        mean = made
        if self.ghosts_per_group:
            cheap = [*self.cheap_rpr_conv, self.cheap_rpr_scale]
            share = variance / (len(cheap) + 1)  # the norm of the primary channels is one more
            draw_branches(cheap, made, share * len(cheap))
            ghosts = second_moment(self.cheap_activation, share * len(cheap), made)
            mean = (self.primary * made + (self.out_channels - self.primary) * ghosts) / (
                self.out_channels
            )
        return mean if self.short_conv is None else mean * self.short_conv.initialize(moment)

    @property
    def branched(self) -> bool:
        """True in the form for training."""
        return self.primary_rpr_conv is not None

    def branch_features(self, x: torch.Tensor) -> torch.Tensor:
        """All output channels, in the form for training."""
        primary = self.primary_activation(self.primary_rpr_conv(x))
        if self.cheap_rpr_conv is None:
            return primary
        return self.concat(primary, self.cheap_activation(self.branch_ghosts(primary)))

    def branch_ghosts(self, primary: torch.Tensor) -> torch.Tensor:
        """The ghost channels before their activation, in the form for training."""
        if not torch.jit.is_scripting():
            parts = (primary, self.cheap_rpr_conv, self.cheap_rpr_scale, self.cheap_rpr_skip)
            if joinable(*parts):
                return joint_sum(*parts, self.ghosts_per_group)
        same = (
            primary.repeat_interleave(self.ghosts_per_group, dim=1)
            if self.ghosts_per_group > 1
            else primary
        )
        ghosts = self.cheap_rpr_conv(primary) + self.cheap_rpr_scale(primary)
        return ghosts + self.cheap_rpr_skip(same)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.primary_conv is None:
            out = self.branch_features(x)
        else:
            out = self.features(x)
        return out if self.short_conv is None else self.short_conv(x, out)

    @torch.jit.ignore
    def merge_branches(self) -> None:
        """Replace the branches by one conv each, with the parameter names of the deployed form."""
        self.primary_conv = nn.Sequential(merge(self.primary_rpr_conv), self.primary_activation)
        self.cheap_operation = nn.Identity()
        if self.ghosts_per_group:
            cheap = merge([*self.cheap_rpr_conv, self.cheap_rpr_scale], self.cheap_rpr_skip)
            self.cheap_operation = nn.Sequential(cheap, self.cheap_activation)
        self.primary_rpr_conv = self.primary_activation = None
        self.cheap_rpr_conv = self.cheap_rpr_scale = self.cheap_rpr_skip = None
        self.cheap_activation = None
