"""Weights of PaddleClas: the numbers of its network, computed here from its own definition."""

import pickle
import zlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import ghost_plugin as gp
from ghost_plugin.specs import make_divisible
from ghost_plugin.weights import ALL_PUBLISHED, FURTHER

# Kernel, inner and output channels, squeeze-excite, stride; as in PaddleClas.
ROWS = [
    (3, 16, 16, 0, 1), (3, 48, 24, 0, 2), (3, 72, 24, 0, 1), (5, 72, 40, 1, 2),
    (5, 120, 40, 1, 1), (3, 240, 80, 0, 2), (3, 200, 80, 0, 1), (3, 184, 80, 0, 1),
    (3, 184, 80, 0, 1), (3, 480, 112, 1, 1), (3, 672, 112, 1, 1), (5, 672, 160, 1, 2),
    (5, 960, 160, 0, 1), (5, 960, 160, 1, 1), (5, 960, 160, 0, 1), (5, 960, 160, 1, 1),
]  # fmt: skip


class Paddle:
    """PaddleClas's GhostNet: tensors by formula when a name is first used, float64."""

    def __init__(self):
        self.weights = {}

    def tensor(self, name, *shape):
        if name not in self.weights:
            draw = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
            if name.endswith('_variance'):
                draw = abs(draw) * 0.2 + 0.6
            elif '_batch_norm.weight' in name:
                draw = 1 + 0.1 * draw
            elif len(shape) == 1:
                draw = 0.1 * draw
            else:
                fan_in = shape[0] if len(shape) == 2 else np.prod(shape[1:])
                draw = draw * np.sqrt(2 / fan_in)
            self.weights[name] = torch.from_numpy(draw)
        return self.weights[name]

    def conv(self, x, name, out, kernel=1, stride=1, groups=1, relu=True):
        kernels = self.tensor(f'{name}._conv.weight', out, x.shape[1] // groups, kernel, kernel)
        x = F.conv2d(x, kernels, None, stride, (kernel - 1) // 2, groups=groups)
        norm = [self.tensor(f'{name}._batch_norm.{key}', out)
                for key in ('_mean', '_variance', 'weight', 'bias')]  # fmt: skip
        x = F.batch_norm(x, *norm, eps=1e-5)
        return x.relu() if relu else x

    def linear(self, x, name, out):
        weight = self.tensor(f'{name}.weight', x.shape[1], out)  # (in, out)
        return x @ weight + self.tensor(f'{name}.bias', out)

    def ghost(self, x, name, out, relu):
        half = -(-out // 2)
        first = self.conv(x, f'{name}.primary_conv', half, relu=relu)
        cheap = self.conv(first, f'{name}.cheap_operation', half, 3, groups=half, relu=relu)
        return torch.cat([first, cheap], 1)

    def __call__(self, x, width):
        out = make_divisible(16 * width)
        x = self.conv(x, 'conv1', out, 3, 2)
        for index, (kernel, inner, out, gate, stride) in enumerate(ROWS):
            name = f'_ghostbottleneck_{index}'
            inner, out = make_divisible(inner * width), make_divisible(out * width)
            y = self.ghost(x, f'{name}.ghost_module_1', inner, True)
            if stride == 2:
                y = self.conv(y, f'{name}.depthwise_conv', inner, kernel, 2, inner, False)
            if gate:
                z = self.linear(y.mean((2, 3)), f'{name}.se_block.squeeze', inner // 4).relu()
                z = self.linear(z, f'{name}.se_block.excitation', inner).clamp(0, 1)
                y = y * z[:, :, None, None]
            y = self.ghost(y, f'{name}.ghost_module_2', out, False)
            if stride == 2 or x.shape[1] != out:
                before = x.shape[1]
                x = self.conv(
                    x, f'{name}.shortcut_depthwise', before, kernel, stride, before, False
                )
                x = self.conv(x, f'{name}.shortcut_conv', out, relu=False)
            x = x + y
        x = self.conv(x, 'conv_last', inner).mean((2, 3), keepdim=True)
        return self.linear(self.conv(x, 'fc_0', 1280).flatten(1), 'fc_1', 1000)


def reference(width):
    """An image, PaddleClas's logits, and its weights as numpy arrays."""
    net = Paddle()
    x = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0)).double()
    logits = net(x, width)
    arrays = {name: tensor.numpy() for name, tensor in net.weights.items()}
    return x, logits, arrays


@pytest.mark.parametrize('width', [0.5, 1.0, 1.3])
def test_files_of_paddle_give_its_logits(width, tmp_path):
    timm = pytest.importorskip('timm')
    x, want, arrays = reference(width)
    path = tmp_path / 'GhostNet_pretrained.pdparams'
    names = {name: name for name in arrays}
    path.write_bytes(pickle.dumps({**arrays, 'StructuredToParameterName@@': names}, protocol=2))
    net = timm.create_model('ghostnet_plugin', width=width).double().eval()
    report = gp.load_weights(net, path)
    assert (report.missing, report.unused) == ((), ())
    with torch.no_grad():
        torch.testing.assert_close(net(x), want, rtol=0, atol=1e-9 * want.abs().max().item())
    backbone = gp.GhostNet(width, out_indices=(5,)).double().eval()
    gp.load_weights(backbone, path)
    with torch.no_grad():
        torch.testing.assert_close(backbone(x)[0], net.forward_features(x))


def test_openmmlab_classifiers_take_them_too():
    pytest.importorskip('mmpretrain')
    from mmengine.registry import MODELS, init_default_scope

    init_default_scope('mmpretrain')
    x, want, arrays = reference(0.5)
    head = dict(type='StackedLinearClsHead', num_classes=1000, in_channels=480, mid_channels=[1280])
    backbone = dict(type='ghost_plugin.GhostNet', width=0.5, out_indices=(5,))
    neck = dict(type='GlobalAveragePooling')
    net = MODELS.build(dict(type='ImageClassifier', backbone=backbone, neck=neck, head=head))
    net.double().eval()
    gp.load_weights(net, arrays)
    with torch.no_grad():
        torch.testing.assert_close(net(x), want, rtol=0, atol=1e-9 * want.abs().max().item())


def test_timm_downloads_and_loads_them(tmp_path, monkeypatch):
    timm = pytest.importorskip('timm')
    x, want, arrays = reference(1.3)
    path = tmp_path / 'file.pdparams'
    path.write_bytes(pickle.dumps(arrays, protocol=2))
    asked = []
    monkeypatch.setattr(
        'timm.models._builder.download_cached_file',
        lambda url, **kwargs: asked.append(url) or str(path),
    )
    for name in ('ghostnet_plugin_130', 'ghostnet_plugin_130.paddle_ssld_in1k'):
        net = timm.create_model(name, pretrained=True).double().eval()
        with torch.no_grad():
            torch.testing.assert_close(net(x), want, rtol=0, atol=1e-5 * want.abs().max().item())
    ends = ['_pretrained.pdparams', '_ssld_pretrained.pdparams']
    assert [url.rpartition('_x1_3')[2] for url in asked] == ends
    with pytest.raises(ValueError, match=r'have width 1\.3'):
        timm.create_model('ghostnet_plugin_130.paddle_ssld_in1k', pretrained=True, width=1.0)


def test_a_hostile_file_is_refused(tmp_path):
    class Attack:
        def __reduce__(self):
            return print, ('executed',)

    _, _, arrays = reference(0.5)
    path = tmp_path / 'file.pdparams'
    path.write_bytes(pickle.dumps({**arrays, 'evil': Attack()}, protocol=2))
    with pytest.raises(ValueError, match='would run'):
        gp.load_weights(gp.GhostNet(0.5, out_indices=(5,)), path)


def test_every_set_of_weights_has_a_tag_of_its_own():
    names = [(name, row.tag) for name, row in ALL_PUBLISHED]
    assert len(set(names)) == len(names)
    assert all(row.license for _, row in FURTHER)


def test_an_incomplete_file_says_what_is_missing():
    names = ['conv1._conv.weight', 'conv1._batch_norm._mean', '_ghostbottleneck_0.x.weight',
             '_ghostbottleneck_99.se_block.weight', 'fc_0._conv.weight', 'scale',
             '_ghostbottleneck_0', '_ghostbottleneck_0.ghost_module_1']  # fmt: skip
    with pytest.raises(ValueError, match='tensors of the model do not come from this checkpoint'):
        gp.load_weights(gp.GhostNet(0.5), {name: np.zeros(3, 'f4') for name in names})
