import pytest
import torch
from torch import nn

import ghost_plugin as gp

tp = pytest.importorskip('torch_pruning')
timm = pytest.importorskip('timm')

from ghost_plugin.integrations import torch_pruning


def image():
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def _converted(name):
    return gp.convert(timm.create_model(name, num_classes=10).eval(), image())[0]


NETS = {
    'V1': lambda: timm.create_model('ghostnet_plugin_050', num_classes=10),
    'V2': lambda: timm.create_model('ghostnet_plugin_v2_100', width=0.5, num_classes=10),
    'V3': lambda: timm.create_model('ghostnet_plugin_v3_050', num_classes=10),
    'Rep': lambda: timm.create_model('ghostnet_plugin_rep_050', num_classes=10),
    'G-Ghost': lambda: timm.create_model('ghostnet_plugin_gghost_032', arch='002', num_classes=10),
    'ResNet': lambda: _converted('resnet18'),
    'EfficientNet': lambda: _converted('tf_efficientnet_lite0'),
}


def pruned(net, ratio):
    """The net with a share of its channels gone, by the package's own pruner."""
    pruner = tp.pruner.MagnitudePruner(
        net.eval(),
        image(),
        importance=tp.importance.MagnitudeImportance(p=2),
        pruning_ratio=ratio,
        **torch_pruning.pruner_kwargs(net),
    )
    pruner.step()
    return net


SLOW = ('V2', 'V3', 'EfficientNet')


@pytest.mark.parametrize(
    'name', [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in NETS]
)
def test_a_pruned_network_runs_trains_and_fuses(name):
    net = NETS[name]()
    before = gp.count(net, image()).macs
    pruned(net, 0.2)
    assert net.eval()(image()).shape == (2, 10)
    assert gp.count(net, image()).macs < 0.82 * before
    net.train()(image()).square().mean().backward()
    assert all(p.grad is not None for p in net.parameters())
    fused = gp.fuse(net.eval(), image())
    assert fused.folding.left == ()
    torch.testing.assert_close(fused(image()), net(image()), rtol=1e-3, atol=1e-4)


def test_a_pruned_network_is_exported(tmp_path):
    pytest.importorskip('onnxruntime')
    report = gp.export_onnx(pruned(NETS['V1'](), 0.2), image(), tmp_path / 'net.onnx')
    assert report.max_rel_diff <= 1e-4


@pytest.mark.parametrize('ratio', [1, 1.25, 2, 3, 2.5])
@pytest.mark.parametrize('cheap', ['depthwise', 'shift', 'linear'])
@pytest.mark.parametrize('permuted', [False, True])
def test_the_channels_that_are_left_stay_what_they_were(ratio, cheap, permuted):
    ghost = gp.GhostConv2d(6, 15, 3, padding=1, ratio=ratio, cheap=cheap, permuted=permuted)
    if permuted:
        ghost.order = torch.randperm(15)
    x = torch.randn(1, 6, 5, 5)
    want = ghost(x)
    gone = [0, 1, 4, 8, 9, 14]
    kept = [index for index in range(15) if index not in gone]
    before = sum(p.numel() for p in ghost.parameters())
    torch_pruning.GhostConvPruner().prune_out_channels(ghost, gone)
    assert ghost.out_channels == 9
    torch.testing.assert_close(ghost(x), want[:, kept])
    assert sum(p.numel() for p in ghost.parameters()) <= before


def test_in_channels():
    ghost = gp.GhostConv2d(6, 10, 1)
    x = torch.randn(1, 6, 4, 4)
    x[:, [1, 3]] = 0
    want = ghost(x)
    torch_pruning.GhostConvPruner().prune_in_channels(ghost, [1, 3])
    assert ghost.in_channels == 4
    torch.testing.assert_close(ghost(x[:, [0, 2, 4, 5]]), want)


def test_without_parts_of_ours_nothing_but_linear_layers_is_ignored():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(4, 2))
    assert torch_pruning.pruner_kwargs(net)['ignored_layers'] == [net[2]]


class Gated(nn.Module):
    """A gate of Ghost convs on pooled channels, with an in-place activation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16)
        self.reduce = gp.GhostConv2d(16, 8, 1, permuted=True)
        self.act, self.expand = nn.ReLU(inplace=True), gp.GhostConv2d(8, 16, 1, permuted=True)
        self.last = nn.Conv2d(16, 4, 1)

    def forward(self, x):
        x = self.norm(self.stem(x))
        gate = self.expand(self.act(self.reduce(x.mean((2, 3), keepdim=True))))
        return self.last(x * gate.sigmoid())


def test_converted_gates_lose_channels():
    net = pruned(Gated(), 0.5)
    # Ghost convs have no score, so between two of them all stay.
    assert (net.reduce.in_channels, net.expand.in_channels, net.expand.out_channels) == (8, 8, 8)
    assert net(image()).shape == (2, 2, 62, 62)


def _of_ghost(backbone, fused=False, **options):
    net = backbone(out_indices=(3,), **options).eval()
    net = gp.fuse(net) if fused else net
    return gp.plan(net, image()[:1], keep_last=False).apply(net, inherit=False)


REFUSED = {
    'shift': (
        lambda: gp.GhostNet(0.5, out_indices=(1,), cheap='shift'),
        r"'blocks.0.0.ghost1.cheap_operation.0' \(Shift\).*cheap='depthwise'",
    ),
    'converted, shift': (lambda: nn.Sequential(gp.GhostConv2d(3, 8, 1, cheap='shift')), "'0.cheap"),
    'groups': (lambda: gp.GhostNet(0.5, out_indices=(1,), group_size=2), r"ghost1'.*group_size=1"),
    'converted, groups': (
        lambda: nn.Sequential(gp.GhostConv2d(3, 8, 1, group_size='all')),
        r"'0' \(GhostConv2d\): its ghosts mix several primary channels",
    ),
    'ratio 3': (lambda: gp.GhostNet(0.5, out_indices=(1,), ratio=3), r"ghost1'.*ratio=2"),
    'ratio 1.5': (lambda: gp.GhostNet(0.5, out_indices=(1,), ratio=1.5), r"ghost1'.*ratio=2"),
    'folded': (
        lambda: gp.fuse(nn.Sequential(gp.GhostConv2d(3, 8, 1), nn.BatchNorm2d(8)).eval()),
        r"'0' \(FoldedGhostConv2d\).*before gp\.fuse",
    ),
    'first conv': (
        lambda: nn.Sequential(gp.GhostConv2d(3, 8, 1, permuted=True), nn.ReLU()),
        r"'0' \(GhostConv2d\).*keep_first=True",
    ),
    'V1 converted': (lambda: _of_ghost(gp.GhostNet, width=0.5), r"'blocks\..*before gp\.convert"),
    'V3 fused, converted': (
        lambda: _of_ghost(gp.GhostNetV3, True, width=0.5),
        r"'blocks\.1\.0'.*before gp\.convert",
    ),
    'G-Ghost converted': (
        lambda: _of_ghost(gp.GGhostRegNet, arch='002'),
        r"'layer3'.*before gp\.convert",
    ),
}


@pytest.mark.parametrize('name', REFUSED)
def test_what_the_package_cannot_prune_is_refused_with_what_to_do(name):
    net, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        torch_pruning.pruner_kwargs(net())


def test_branches_are_merged_then_pruned_then_converted():
    net = gp.fuse(gp.GhostNetV3(0.5, out_indices=(2,)).eval())
    pruned(net, 0.3)
    before = gp.count(net, image()).macs
    net = gp.plan(net, image(), keep_last=False).apply(net, inherit=False)
    assert gp.count(net, image()).macs < before


def test_the_old_names_still_work():
    from ghost_plugin.integrations import pruning

    with pytest.warns(FutureWarning, match='use pruner_kwargs'):
        assert pruning.options(nn.Conv2d(3, 4, 1))['ignored_layers'] == []
