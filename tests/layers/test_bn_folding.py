import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import ghost_plugin as gp

X = torch.randn(2, 3, 9, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def conv(inputs=4):
    return nn.Conv2d(inputs, 4, 3, padding=1)


def check(net, folded, randomise_norms, x=X):
    """The net fuses to the same function, with so many norms folded; the fused one."""
    net = randomise_norms(net.double())
    with torch.no_grad():
        fused = gp.fuse(net)
        torch.testing.assert_close(fused(x), net(x), rtol=1e-11, atol=1e-11)
    assert fused.folding.folded == folded
    return fused


class Every(nn.Sequential):
    """All that its layers give, one after the other."""

    def forward(self, x):
        return torch.cat([x := layer(x) for layer in self], 1)


class Twice(nn.Module):
    """Layers in order, one of them run once more."""

    def __init__(self, again: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(conv(4), nn.BatchNorm2d(4), nn.ReLU())
        self.first, self.again = conv(3), again

    def forward(self, x):
        x = self.first(x)
        return self.layers(x) + self.layers[self.again](x)


def activation_between():
    act = nn.ReLU()
    return nn.Sequential(conv(3), act, conv(), act, nn.BatchNorm2d(4))


def one_norm_for_two():
    norm = nn.BatchNorm2d(4)
    return nn.Sequential(conv(3), norm, nn.ReLU(), conv(), norm)


def one_conv_for_two():
    conv = nn.Conv2d(3, 3, 1)
    return nn.Sequential(conv, nn.BatchNorm2d(3), nn.ReLU(), conv, nn.BatchNorm2d(3))


@pytest.mark.parametrize(
    'net',
    [
        activation_between,
        one_norm_for_two,
        one_conv_for_two,
        lambda: Every(conv(3), nn.BatchNorm2d(4)),
        lambda: Twice(0),
        lambda: Twice(1),
    ],
)
def test_what_something_else_runs_too_stays(net, randomise_norms):
    assert check(net(), 0, randomise_norms).folding.left


class Listed(nn.Module):
    """A block that stands in a list, too."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(conv(3), nn.BatchNorm2d(4))
        self.blocks = nn.ModuleList([self.block])

    def forward(self, x):
        return self.block(x)


def test_a_block_of_two_places_is_folded_at_both(randomise_norms):
    fused = check(Listed(), 1, randomise_norms)
    assert fused.block is fused.blocks[0]


def masked(net, kind=nn.Conv2d):
    for part in [m for m in net.modules() if type(m) is kind]:
        prune.l1_unstructured(part, 'weight', 0.5)
    return net


def scaled_weight(conv):
    weight = conv.weight.detach() * 2
    del conv.weight
    conv.weight = weight


ALTERED = {
    'mask': masked,
    'spectral_norm': nn.utils.spectral_norm,
    'weight_norm': nn.utils.weight_norm,
    'parametrized': nn.utils.parametrizations.weight_norm,
    'hook': lambda conv: conv.register_forward_hook(lambda *args: args[-1].relu()),
    'pre-hook': lambda conv: conv.register_forward_pre_hook(lambda _, args: args[0] * 2),
    'tensor': scaled_weight,
    'forward': lambda conv: vars(conv).update(forward=lambda x: x[:, [0, 1, 2, 0]]),
}


@pytest.mark.parametrize('name', ALTERED)
def test_a_conv_whose_weight_is_computed_or_that_has_hooks_keeps_its_norm(name, randomise_norms):
    net = nn.Sequential(conv(3), nn.BatchNorm2d(4)).double().eval()
    ALTERED[name](net[0])
    with torch.no_grad():
        net(X)
    assert check(net, 0, randomise_norms).folding.left == ('1',)


def test_a_norm_with_hooks_stays(randomise_norms):
    net = nn.Sequential(conv(3), nn.BatchNorm2d(4))
    net[1].register_forward_hook(lambda *args: args[-1] * 2)
    assert check(net, 0, randomise_norms).folding.left == ('1',)


@pytest.mark.parametrize('part', ['primary_conv', 'cheap_operation'])
def test_a_masked_ghost_conv_keeps_norm_and_inputs(part, randomise_norms):
    ghosts = [gp.GhostConv2d(3, 4, 3, padding=1, permuted=True), gp.GhostConv2d(4, 6, 1)]
    ghosts[0].order = torch.randperm(4)
    masked(getattr(ghosts[1], part))
    net = nn.Sequential(ghosts[0], nn.ReLU(), ghosts[1], nn.BatchNorm2d(6)).eval()
    with torch.no_grad():
        net.double()(X)
    fused = check(net, 0, randomise_norms)
    assert (fused.folding.left, fused.folding.orders) == (('3',), 0)


def test_a_masked_backbone_keeps_its_masks(randomise_norms, assert_equal_maps):
    net = masked(randomise_norms(gp.GhostNet(0.5, out_indices=(1,))).double())
    x = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        want = net(x)
        assert_equal_maps(gp.fuse(net)(x), want, 1e-11)


def test_masks_on_branches_are_refused_with_what_to_do(randomise_norms):
    net = masked(randomise_norms(gp.GhostNetV3(0.5, out_indices=(1,))))
    with torch.no_grad():
        net(torch.randn(1, 3, 32, 32))
    keys = list(net.state_dict())
    with pytest.raises(
        ValueError, match=r"'blocks\.0\.0\.ghost1'.*'primary_rpr_conv\.0\.conv'.*pru"
    ):
        net.switch_to_deploy()
    assert list(net.state_dict()) == keys


@pytest.mark.parametrize('how', [masked, nn.utils.weight_norm])
def test_a_weight_with_gradients_is_copied_and_stays_computed(how):
    net = nn.Sequential(nn.Sequential(how(conv(3)), nn.BatchNorm2d(4))).eval()
    fused, x = gp.fuse(net), torch.randn(1, 3, 8, 8)
    assert fused.folding.left == ('0.1',)
    torch.testing.assert_close(fused(x), net(x))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(2)
    assert not torch.allclose(fused(x), net(x))


class Styled(nn.Module):
    """Takes arguments that may be left out."""

    def __init__(self, way) -> None:
        super().__init__()
        self.conv, self.norm, self.way = conv(3), nn.BatchNorm2d(4), way

    def forward(self, x, style=None, *, scale=1):
        return self.way(self, x, style, scale)


def styled_norm(net, x, style, scale):
    y = net.conv(x)
    return y if style is None else net.norm(y) * style


def plain_norm(net, x, style, scale):
    y = net.conv(x)
    return net.norm(y) if style is None else y * style


def norm_at_scale(net, x, style, scale):
    y = net.conv(x)
    return net.norm(y) if scale == 1 else y


@pytest.mark.parametrize('way', [styled_norm, plain_norm, norm_at_scale])
def test_a_norm_that_only_some_calls_run_stays(way, randomise_norms):
    net = Styled(way)
    fused = check(net, 0, randomise_norms)
    for options in ({'style': 2.0}, {'scale': 2}):
        torch.testing.assert_close(fused(X, **options), net(X, **options), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize('way', [
    lambda net, x, style, scale: net.norm(net.conv(x)),
    lambda net, x, style, scale: net.norm(net.conv(x)) * torch.ones(1).to(x),
])  # fmt: skip
def test_a_norm_that_all_calls_run_folds(way, randomise_norms):
    check(Styled(way), 1, randomise_norms)


@pytest.mark.parametrize(
    'options',
    [
        {'kernel_size': 16, 'stride': 16},
        {'kernel_size': (3, 5), 'dilation': (9, 2)},
        {'kernel_size': (1, 13), 'padding': (0, 6)},
        {'kernel_size': 21, 'padding': 10, 'padding_mode': 'reflect'},
        {'kernel_size': 3, 'dilation': 12, 'padding': 'same', 'padding_mode': 'circular'},
    ],
    ids=str,
)
@pytest.mark.parametrize('layer', [nn.Conv2d, gp.GhostConv2d])
def test_kernels_larger_than_the_noise_of_most(layer, options, randomise_norms):
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    net = nn.Sequential(layer(3, 6, **options), nn.BatchNorm2d(6))
    assert 0 < check(net, 1, randomise_norms, x).folding.max_abs_diff < 1e-12
