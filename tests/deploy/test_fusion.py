import copy
import pickle

import pytest
import torch
from torch import nn

import ghost_plugin as gp
from ghost_plugin.graph.folded_ghost import FoldedGhostConv2d

SETTINGS = [
    {},
    {'ratio': 3},
    {'ratio': 2.5, 'dw_size': 5},
    {'dw_size': 1},
    {'ratio': 1},
    {'cheap': 'linear'},
    {'bias': False},
    {'padding_mode': 'circular'},
    {'groups': 4},
    {'ratio': 1.25},  # four primary maps in five without a ghost
    {'group_size': 2},
    {'group_size': 4, 'ratio': 1.5},  # the last primary maps are in no group
    {'group_size': 4, 'dw_size': 1},
    {'group_size': 4, 'bias': False, 'padding_mode': 'circular'},
    {'group_size': 'all', 'ratio': 3},
]


def orders(net):
    return [m for m in net.modules() if getattr(m, 'order', None) is not None]


@pytest.mark.parametrize('permuted', [False, True])
@pytest.mark.parametrize('settings', SETTINGS, ids=str)
def test_a_norm_behind_a_ghost_conv_folds_exactly_at_the_border_too(
    settings, permuted, randomise_norms
):
    ghost = gp.GhostConv2d(8, 20, 3, padding=1, permuted=permuted, **settings)
    if permuted:
        ghost.order = torch.randperm(20)
    net = randomise_norms(nn.Sequential(ghost, nn.BatchNorm2d(20), nn.ReLU()).double())
    with torch.no_grad():
        net[1].weight[3] = 0.0  # a channel that training has switched off
    fused = gp.fuse(net)
    assert isinstance(fused[0], FoldedGhostConv2d)
    assert isinstance(fused[1], nn.Identity)
    x = torch.randn(2, 8, 5, 6, dtype=torch.float64)
    torch.testing.assert_close(fused(x), net(x), rtol=1e-11, atol=1e-11)


def test_without_a_border_no_step_is_left(randomise_norms):
    net = randomise_norms(nn.Sequential(gp.GhostConv2d(8, 20, 3, dw_size=1), nn.BatchNorm2d(20)))
    fused = gp.fuse(net)
    assert (fused.folding.folded, fused.folding.steps) == (1, 0)
    assert fused[0].shift is None
    assert fused[0].scale is None


@pytest.mark.parametrize('group_size', [2, 'all'])
def test_steps_vanish_and_permutations_move_with_several_primary_channels(
    group_size, randomise_norms
):
    options = {'dw_size': 1, 'group_size': group_size, 'permuted': True}
    net = nn.Sequential(
        gp.GhostConv2d(8, 20, 3, **options), nn.BatchNorm2d(20), nn.ReLU(),
        gp.GhostConv2d(20, 12, 1, **options), nn.BatchNorm2d(12), nn.Conv2d(12, 3, 1),
    )  # fmt: skip
    net = randomise_norms(net.double())
    for ghost in (net[0], net[3]):
        ghost.order = torch.randperm(ghost.out_channels)
    fused = gp.fuse(net)
    report = fused.folding
    assert (report.folded, report.steps, report.orders, report.left) == (2, 0, 2, ())
    x = torch.randn(2, 8, 5, 6, dtype=torch.float64)
    torch.testing.assert_close(fused(x), net(x), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize('group_size', [2, 4, 'all'])
def test_modules_with_several_primary_channels_fuse(group_size, randomise_norms):
    module = randomise_norms(gp.GhostModule(6, 15, ratio=1.5, group_size=group_size).double())
    fused = gp.fuse(module)
    assert fused.folding.folded == 2
    x = torch.randn(2, 6, 5, 6, dtype=torch.float64)
    torch.testing.assert_close(fused(x), module(x), rtol=1e-11, atol=1e-11)


def test_shifted_ghosts_keep_their_norm(randomise_norms):
    net = randomise_norms(
        nn.Sequential(gp.GhostConv2d(8, 20, 3, cheap='shift'), nn.BatchNorm2d(20))
    )
    fused = gp.fuse(net, torch.randn(1, 8, 6, 6))
    assert fused.folding.left == ('1',)
    assert fused.folding.max_abs_diff == 0


def test_a_converted_network_loses_norms_dropout_and_orders(converted, residual):
    x = torch.randn(2, 3, 20, 13)
    fused = gp.fuse(converted, x)
    report = fused.folding
    assert (report.folded, report.steps, report.orders, report.left) == (3, 2, 2, ())
    assert report.max_abs_diff < 1e-5
    # A shortcut adds the maps of the second one to the stem's, which follow suit.
    assert (len(orders(converted)), len(orders(fused))) == (2, 0)
    assert not any(isinstance(m, nn.Dropout | nn.BatchNorm2d) for m in fused.modules())
    assert isinstance(converted.drop, nn.Dropout)


def test_a_second_time_changes_nothing(converted):
    once = gp.fuse(converted)
    twice = gp.fuse(once)
    report = twice.folding
    assert (report.merged, report.folded, report.orders) == (0, 0, 0)
    torch.testing.assert_close(twice.state_dict(), once.state_dict(), rtol=0, atol=0)


def test_memory_format_dtype_flags_and_pickle(converted):
    for parameter in converted.expand.parameters():
        parameter.requires_grad_(False)
    fused = gp.fuse(converted.to(memory_format=torch.channels_last).double())
    weight = fused.expand.primary_conv.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert weight.dtype == torch.float64
    assert not any(p.requires_grad for p in fused.expand.parameters())
    assert all(p.requires_grad for p in fused.project.parameters())
    x = torch.randn(1, 3, 16, 16, dtype=torch.float64)
    torch.testing.assert_close(pickle.loads(pickle.dumps(fused))(x), fused(x))


def test_training_mode_is_refused(converted):
    with pytest.raises(ValueError, match=r'training mode.*model\.eval\(\)'):
        gp.fuse(converted.train())


@pytest.mark.parametrize('given', ['resnet18', gp.GhostNet, lambda x: x])
def test_what_is_no_network_is_refused(given, tmp_path):
    x = torch.randn(1, 3, 16, 16)
    for call in (
        lambda: gp.fuse(given),
        lambda: gp.optimize(given, x),
        lambda: gp.export_onnx(given, x, tmp_path / 'net.onnx'),
        lambda: gp.Distiller(nn.Identity(), given),
    ):
        with pytest.raises(TypeError, match=r'must be a torch\.nn\.Module, got .*build it first'):
            call()


class Behind(nn.Module):
    """A norm with something between it and the conv."""

    def __init__(self, between: nn.Module) -> None:
        super().__init__()
        self.conv, self.between, self.norm = nn.Conv2d(3, 4, 3), between, nn.BatchNorm2d(4)

    def forward(self, x):
        return self.norm(self.between(self.conv(x)))


@pytest.mark.parametrize(
    ('between', 'left'),
    [
        (nn.ReLU(), ('norm',)),
        (nn.MaxPool2d(2), ('norm',)),
        (nn.Conv2d(4, 4, 3, padding=1, groups=4), ()),
        (nn.Dropout(), ()),
    ],
    ids=str,
)
def test_a_norm_goes_into_the_conv_directly_before_it_or_stays(between, left, randomise_norms):
    net, x = randomise_norms(Behind(between).double()), torch.randn(2, 3, 9, 9).double()
    fused = gp.fuse(net, x)
    assert fused.folding.left == left
    assert fused.folding.max_abs_diff < 1e-12


def ghost(inputs, outputs, kernel=1):
    conv = gp.GhostConv2d(inputs, outputs, kernel, padding=kernel // 2, permuted=True)
    conv.order = torch.randperm(outputs)
    return conv


class Streams(nn.Module):
    """Two Ghost convs on one shortcut, a gate, a norm alone, a depthwise conv, two classifiers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.second = ghost(3, 8, 3), ghost(8, 8), ghost(8, 8)
        self.squeeze, self.gate = nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1)
        self.norm, self.dw = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.heads = nn.ModuleList(nn.Linear(8, 3) for _ in range(2))

    def forward(self, x):
        x = self.stem(x).relu()
        y = self.first(x)
        y = y * self.gate(self.squeeze(y.mean((2, 3), keepdim=True)).relu()).sigmoid()
        x = self.norm(self.second(self.dw(x + y).relu()) + x).relu()
        x = torch.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1)
        return [head(x) for head in self.heads]


def test_of_the_orders_on_a_shortcut_one_goes_and_equal_ones_go_with_it(randomise_norms):
    net, x = randomise_norms(Streams().double()), torch.randn(2, 3, 9, 8).double()
    fused = gp.fuse(net, x)
    # The first one's maps are the largest in most networks.
    assert (fused.folding.orders, orders(fused)) == (1, [fused.first, fused.second])
    assert fused.folding.max_abs_diff < 1e-12
    net.second.order = net.first.order
    fused = gp.fuse(net, x)
    assert (fused.folding.orders, orders(fused)) == (2, [fused.stem])
    assert fused.folding.max_abs_diff < 1e-12


class Ends(Streams):
    """What cannot be followed to its end."""

    def __init__(self, end) -> None:
        super().__init__()
        self.end = end

    def forward(self, x):
        x = self.stem(x)
        return self.end(self.first(x)), self.end(self.second(x))


@pytest.mark.parametrize(
    'end',
    [
        lambda x: x,
        lambda x: x.flip(1),
        lambda x: torch.cat((x, x), 1),
        lambda x: x + torch.arange(8.0).view(8, 1, 1),
        lambda x: x.mean(1, keepdim=True),
        lambda x: x.softmax(1),
        lambda x: x.flatten(1)[:, :3],
        lambda x: x.mT,
        lambda x: x - x.mean(1, keepdim=True),
    ],
)
def test_an_order_that_somebody_sees_stays(end):
    net = Ends(end).eval().double()
    fused = gp.fuse(net, torch.randn(2, 3, 5, 5).double())
    assert (fused.folding.orders, len(orders(fused))) == (1, 2)
    assert fused.folding.max_abs_diff < 1e-12


class Mixer(nn.Module):
    """A linear layer over pixels, as many of which there are as channels."""

    def __init__(self, flat) -> None:
        super().__init__()
        self.conv, self.flat, self.fc = ghost(3, 16), flat, nn.Linear(16, 4)

    def forward(self, x):
        return self.fc(self.flat(self.conv(x)))


@pytest.mark.parametrize(
    ('flat', 'gone'),
    [
        (lambda x: x.flatten(2), 0),
        (nn.Flatten(2), 0),
        (lambda x: x.flatten(1, 2), 0),
        (nn.Flatten(1, 2), 0),
        (lambda x: x.mean(1).flatten(1), 0),
        (lambda x: x.mean((2, 3)), 1),
        (nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), 1),
    ],
)
def test_only_a_linear_layer_over_channels_reads_them(flat, gone):
    net = Mixer(flat).eval().double()
    fused = gp.fuse(net, torch.randn(2, 3, 1, 16).double())
    assert fused.folding.orders == gone
    assert fused.folding.max_abs_diff < 1e-12


class Reads(Streams):
    """Looks at the weights of a conv besides calling it."""

    def forward(self, x):
        y = self.stem(x)
        return nn.functional.conv2d(self.second(self.gate(self.squeeze(y))), self.gate.weight)


def test_layers_whose_weights_are_read_keep_them():
    net = Reads()
    net.gate, net.squeeze = nn.Conv2d(8, 8, 1), ghost(8, 8)
    net = net.eval().double()
    fused = gp.fuse(net, torch.randn(2, 3, 5, 5).double())
    assert fused.folding.max_abs_diff < 1e-12


def test_layers_that_share_their_weights_keep_them():
    net = Streams().eval().double()
    net.second.primary_conv.weight = net.first.primary_conv.weight
    fused = gp.fuse(net, torch.randn(2, 3, 9, 8).double())
    assert fused.folding.max_abs_diff < 1e-12


class Shared(nn.Module):
    """A conv that runs twice, with one norm and with two."""

    def __init__(self, norms: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(norms))

    def forward(self, x):
        for norm in (self.norms[0], self.norms[-1]):
            x = norm(self.conv(x)).relu()
        return x


@pytest.mark.parametrize(('norms', 'folded'), [(1, 1), (2, 0)])
def test_a_conv_that_runs_twice_folds_only_with_one_norm(norms, folded, randomise_norms):
    net = randomise_norms(Shared(norms).double())
    x = torch.randn(1, 4, 5, 5, dtype=torch.float64)
    fused = gp.fuse(net, x)
    assert fused.folding.folded == folded
    assert fused.folding.max_abs_diff < 1e-12


class Branching(nn.Module):
    """Looks at values, so that only its part can be followed."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, x):
        return self.part(x) if x.sum() > 0 else self.part(-x)


def test_parts_are_followed_where_the_whole_cannot_be(converted):
    x = torch.randn(1, 3, 16, 16)
    fused = gp.fuse(Branching(converted).eval(), x)
    assert (fused.folding.folded, fused.folding.orders) == (3, 2)
    assert fused.folding.max_abs_diff < 1e-5


def test_norms_of_timm_leave_their_activation(randomise_norms):
    timm = pytest.importorskip('timm')
    net = randomise_norms(timm.create_model('tf_efficientnet_lite0', num_classes=7))
    x = torch.randn(1, 3, 64, 64)
    net = gp.convert(net, x)[0]
    fused = gp.fuse(net, x)
    assert fused.folding.left == ()
    assert fused.folding.orders > 10
    torch.testing.assert_close(fused(x), net(x), rtol=1e-4, atol=1e-5)


def test_detectors_of_openmmlab(randomise_norms):
    pytest.importorskip('mmdet')
    from ghost_plugin.cli import model_loading

    source = model_loading.load('mmdet::retinanet/retinanet_r18_fpn_1x_coco.py')
    net, example = randomise_norms(source.model), source.wrap(torch.randn(1, 3, 64, 64))
    net = gp.convert(net, example, ratio=2)[0]
    before = copy.deepcopy(net.state_dict())
    fused = gp.fuse(net, example)
    assert fused.folding.folded == 20
    assert fused.folding.max_abs_diff < 1e-4
    torch.testing.assert_close(net.state_dict(), before, rtol=0, atol=0)


_NETWORKS = {  # orders that go, of those of all convs at ratio 2
    'resnet18': 12,
    'seresnet18': 16,
    'mobilenetv3_small_100': 25,
    'resnetv2_50': 36,
    'densenet121': 58,
    'hrnet_w18_small': 44,
    'xception41': 32,
    'fastvit_t8': 11,
    'efficientnet_b0': 39,
    'convmixer_768_32': 32,
    'lambda_resnet26t': 19,
}


@pytest.mark.parametrize(
    ('name', 'gone'),
    [pytest.param(*row, marks=pytest.mark.slow if n > 2 else ()) for n, row in
     enumerate(_NETWORKS.items())],
)  # fmt: skip
def test_orders_in_networks_of_timm(name, gone, randomise_norms):
    timm = pytest.importorskip('timm')
    x = torch.randn(1, 3, 96, 96, dtype=torch.float64)
    net = randomise_norms(timm.create_model(name, num_classes=7).double())
    net = gp.plan(net, x, ratio=2, keep_last=False).apply(net, inherit=False)
    for maker in orders(net):
        maker.order = torch.randperm(len(maker.order))
    fused = gp.fuse(net, x)
    assert fused.folding.orders == gone
    assert fused.folding.max_abs_diff < 1e-11 * net(x).abs().max()


def compared_input():
    return torch.randn(2, 3, 16, 16)


class Tapped(nn.Module):
    """Branches on values, so no symbolic trace sees that it reads a conv before its norm."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.scale = scale

    def forward(self, x):
        y = self.layers(x)
        return (y + self.scale * self.layers[0](x) if x.sum() > -1e9 else y,)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float64])
def test_another_function_is_refused_with_the_figure(dtype, randomise_norms):
    net, x = randomise_norms(Tapped()).to(dtype), compared_input().to(dtype)
    keys = list(net.state_dict())
    with pytest.raises(ValueError, match=r'differ by \d\d\.\d%.*fuse only parts'):
        gp.fuse(net, x)
    assert list(net.state_dict()) == keys
    assert 0 < gp.fuse(randomise_norms(Tapped(1e-4)).to(dtype), x).folding.max_abs_diff < 0.1


class Wild(nn.Module):
    """Amplifies rounding."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))

    def forward(self, x):
        return (1e5 * self.layers(x)).sin()


class Drawn(Wild):
    """Returns random outputs."""

    def forward(self, x):
        return torch.randn_like(self.layers(x))


@pytest.mark.parametrize('net', [Wild, Drawn])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_what_rounding_does_is_reported(net, dtype, randomise_norms):
    fused = gp.fuse(randomise_norms(net()).to(dtype), compared_input().to(dtype))
    assert fused.folding.folded == 1
    assert fused.folding.max_abs_diff > 0.01


def test_an_untrained_network_with_branches_is_not_refused():
    fused = gp.fuse(gp.GhostNetV3(0.5).eval(), torch.randn(1, 3, 32, 32))
    assert fused.folding.left == ()


class Asks(nn.Module):
    """Drops by a function, with the rate of a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.drop = nn.Conv2d(3, 4, 3), nn.Dropout(0.3)

    def forward(self, x):
        return nn.functional.dropout(self.conv(x), self.drop.p, self.training)


def test_the_rate_of_a_dropout_that_is_gone_can_be_read():
    assert gp.fuse(Asks().eval(), compared_input()).folding.max_abs_diff == 0
