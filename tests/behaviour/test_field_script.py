"""torch.jit.script of the plain backbones, alone and inside other modules."""

import copy
import functools
import io

import pytest
import torch
from torch import nn

import ghost_plugin as gp
from ghost_plugin.utils import optional

FAMILY = {
    'GhostNet': functools.partial(gp.GhostNet, 0.25),
    'GhostNetV2': functools.partial(gp.GhostNetV2, 0.25, out_indices=(1, 2)),
    'GhostNetV3': functools.partial(gp.GhostNetV3, 0.25, out_indices=(1, 2)),
    'GGhostRegNet': functools.partial(gp.GGhostRegNet, '002', out_indices=(1, 2)),
    'RepGhostNet': functools.partial(gp.RepGhostNet, 0.25, out_indices=(1, 2)),
}
OPTIONS = [
    ('GhostNet', {'cheap': 'shift', 'out_indices': (0, 1, 2, 3, 4)}),
    ('GhostNet', {'cheap': 'linear', 'ratio': 3, 'act_layer': nn.Hardswish}),
    ('GhostNet', {'out_indices': (1, 5), 'se': False, 'stem_stride': 1}),
    ('GhostNetV2', {'cheap': 'shift', 'ratio': 1.5, 'output_stride': 8}),
    ('GhostNetV2', {'grad_checkpointing': True, 'drop_path_rate': 0.2}),
    ('GhostNetV3', {'deploy': True, 'out_indices': (0, 2)}),
    ('RepGhostNet', {'deploy': True, 'out_indices': (0, 2)}),
    ('GhostNetV3', {'grad_checkpointing': True, 'act_layer': nn.SiLU}),
    ('GGhostRegNet', {'out_indices': (0, 4), 'output_stride': 16, 'drop_path_rate': 0.2}),
]


@pytest.fixture
def image():
    return torch.randn(2, 3, 64, 48, generator=torch.Generator().manual_seed(0))


def assert_same(got, want):
    assert isinstance(got, list)  # TorchScript has no tuple of any length
    assert isinstance(want, tuple)  # what necks of OpenMMLab ask for
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3 * b.abs().max().item())


@pytest.mark.parametrize('form', ['eval', 'train', 'fused'])
@pytest.mark.parametrize('name', FAMILY)
def test_every_family_scripts_in_every_mode(name, form, image):
    net = FAMILY[name]().train(form == 'train')
    net = gp.fuse(net) if form == 'fused' else net
    got = torch.jit.script(copy.deepcopy(net))(image)
    assert_same(got, net(image))
    if form == 'train':
        sum(maps.square().mean() for maps in got).backward()


@pytest.mark.parametrize(('name', 'options'), OPTIONS)
def test_options_script_and_files_give_the_same(name, options, image):
    net = FAMILY[name](**options).eval()
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(net), file)
    file.seek(0)
    assert_same(torch.jit.load(file)(image), net(image))


class Pyramid(nn.Module):
    """A neck over the features of a backbone, as detectors have one."""

    def __init__(self, body):
        super().__init__()
        self.body = body
        self.lateral = nn.ModuleList(nn.Conv2d(c, 8, 1) for c in body.out_channels)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        features = self.body(x)
        out: dict[str, torch.Tensor] = {}
        for index, conv in enumerate(self.lateral):
            out[str(index)] = conv(features[index])
        return out


@pytest.mark.parametrize('name', FAMILY)
def test_a_neck_that_reads_the_features_scripts(name, image):
    net = Pyramid(FAMILY[name]()).eval()
    got, want = torch.jit.script(net)(image), net(image)
    assert_same(list(got.values()), tuple(want.values()))


@pytest.mark.parametrize('name', ['GhostNet', 'GGhostRegNet'])
def test_a_torchvision_detector_scripts(name):
    if not optional.usable('torchvision'):
        pytest.skip('needs torchvision')
    from torchvision.models.detection import RetinaNet
    from torchvision.models.detection.anchor_utils import AnchorGenerator

    body = Pyramid(FAMILY[name](out_indices=(3, 4)))
    body.out_channels = 8
    anchors = AnchorGenerator(((32,), (64,)), ((1.0,),) * 2)
    net = RetinaNet(body, 3, anchor_generator=anchors, min_size=64, max_size=64).eval()
    images = [torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))]
    _, found = torch.jit.script(net)(images)
    (want,) = net(images)
    torch.testing.assert_close(found[0]['boxes'], want['boxes'], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize('cheap', ['depthwise', 'linear', 'shift'])
def test_converted_networks_script(cheap, image):
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, padding=1)
    ).eval()
    converted, _ = gp.convert(net, image, keep_first=False, keep_last=False, cheap=cheap)
    torch.testing.assert_close(torch.jit.script(converted)(image), converted(image))
