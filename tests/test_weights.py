import argparse
import json
import zlib

import numpy as np
import pytest
import torch

import ghost_plugin as gp
from ghost_plugin.weights import PUBLISHED


def golden_weights(shapes, gain):
    """The made-up weights that shared/golden/README.md describes."""
    state = {}
    for name, shape in shapes.items():
        a = (
            np.random.default_rng(zlib.crc32(name.encode()))
            .standard_normal(shape)
            .astype('float32')
        )
        if name.endswith('num_batches_tracked'):
            a = np.zeros(shape, 'int64')
        elif name.endswith('running_var'):
            a = np.abs(a) * np.float32(0.2) + np.float32(0.6)
        elif len(shape) == 1 and name.endswith('weight') and not name.endswith('running_mean'):
            a = (np.float32(0.5) + np.float32(0.05) * a) * np.float32(gain)
        elif len(shape) == 1:
            a = np.float32(0.1) * a
        else:
            a = a * np.float32(np.sqrt(1 / np.prod(shape[1:])))
        state[name] = torch.from_numpy(np.asarray(a))
    return state


OFFICIAL = {
    'v1_1.0': 'ghostnet_plugin',
    'v2_1.0': 'ghostnet_plugin_v2_100',
    'v3_1.0': 'ghostnet_plugin_v3_100',
    'g_ghost_regnetx_032': 'ghostnet_plugin_gghost_032',
}


@pytest.mark.parametrize('name', OFFICIAL)
def test_official_weights_give_the_official_logits(name, shared):
    timm = pytest.importorskip('timm')
    keys = json.loads((shared / 'golden/keys.json').read_text())[name]
    model = timm.create_model(OFFICIAL[name])
    report = gp.load_weights(model, golden_weights(keys['state_dict'], keys['bn_gain']))
    assert not report.unused
    assert len(model.state_dict()) == len(keys['state_dict'])
    x = np.random.default_rng(0).standard_normal((2, 3, 160, 224)).astype('float32')
    x, model = torch.from_numpy(x).double(), model.double().eval()
    want = torch.from_numpy(np.load(shared / 'golden/logits.npz')[name])
    for form in (model, gp.fuse(model)):
        assert (form(x) - want).abs().max() <= 1e-9 * want.abs().max()


def test_wrapped_and_polluted_checkpoints_load(tmp_path):
    net = gp.GhostNet(0.5)
    state = {f'module.backbone.{k}': v for k, v in net.state_dict().items()}
    state['module.backbone.total_ops'] = torch.zeros(1)
    torch.save({'state_dict': state}, tmp_path / 'w.pth')
    other = gp.GhostNet(0.5)
    report = gp.load_weights(other, tmp_path / 'w.pth')
    assert report == gp.load_weights(other, str(tmp_path / 'w.pth'))
    assert (report.missing, report.unused) == ((), ())
    torch.testing.assert_close(dict(other.state_dict()), dict(net.state_dict()), rtol=0, atol=0)


def test_safetensors_of_the_hub_load(tmp_path):
    save_file = pytest.importorskip('safetensors.torch').save_file
    net, other = gp.GhostNet(0.5), gp.GhostNet(0.5)
    save_file(net.state_dict(), tmp_path / 'w.safetensors')
    assert gp.load_weights(other, tmp_path / 'w.safetensors').missing == ()
    torch.testing.assert_close(dict(other.state_dict()), dict(net.state_dict()), rtol=0, atol=0)
    whole = (tmp_path / 'w.safetensors').read_bytes()
    (tmp_path / 'half.safetensors').write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r'half\.safetensors.*damaged'):
        gp.load_weights(other, tmp_path / 'half.safetensors')


def wrong(state):
    return {name: torch.full_like(tensor, 7) for name, tensor in state.items()}


LAYOUTS = {
    'bare': lambda state: state,
    'data parallel': lambda state: {f'module.{k}': v for k, v in state.items()},
    'compiled': lambda state: {f'_orig_mod.module.{k}': v for k, v in state.items()},
    'a compiled part': lambda state: {f'module.backbone._orig_mod.{k}': v
                                      for k, v in state.items()},
    'counted': lambda state: {**state, 'blocks.0.total_ops': torch.zeros(1)},
    'authors': lambda state: {'state_dict': wrong(state), 'state_dict_ema': state, 'epoch': 3},
    'norms named bn': lambda state: {k.replace('bn1', 'bn') if '_rpr_' in k else k: v
                                     for k, v in state.items()},
    'mmengine': lambda state: {'state_dict': {f'backbone.{k}': v for k, v in state.items()},
                               'ema_state_dict': wrong(state), 'meta': {}},
    'averaged only': lambda state: {'ema_state_dict': {f'module.backbone.{k}': v
                                                       for k, v in state.items()}},
    'script': lambda state: {'model': state, 'args': argparse.Namespace()},
}  # fmt: skip


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('build', [gp.GhostNetV3, gp.GhostNetV2])
def test_every_layout_loads(layout, build, tmp_path):
    net, other = build(0.5), build(0.5)
    torch.save(LAYOUTS[layout](net.state_dict()), tmp_path / 'w.pth')
    report = gp.load_weights(other, tmp_path / 'w.pth')
    assert (report.missing, report.unused) == ((), ())
    torch.testing.assert_close(dict(other.state_dict()), dict(net.state_dict()), rtol=0, atol=0)


def test_a_classifier_goes_into_a_backbone_and_says_what_is_over(caplog):
    timm = pytest.importorskip('timm')
    net = gp.GhostNet(0.5, out_indices=(1, 4))
    report = gp.load_weights(net, timm.create_model('ghostnet_050').state_dict())
    assert report.missing == ()
    assert {'classifier.weight', 'conv_head.weight'} <= set(report.unused)
    assert len(caplog.records) == 1


@pytest.mark.parametrize('name', ['ghostnet_plugin_050', 'ghostnet_plugin_v3_050'])
def test_weights_go_into_timms_features_and_back(name):
    timm = pytest.importorskip('timm')
    whole = timm.create_model(name)
    encoder = timm.create_model(name, features_only=True)
    assert gp.load_weights(encoder, whole.state_dict()).missing == ()
    net = (gp.GhostNetV3 if 'v3' in name else gp.GhostNet)(0.5)
    assert gp.load_weights(net, encoder.state_dict()).missing == ()
    for key, tensor in net.state_dict().items():
        torch.testing.assert_close(tensor, whole.state_dict()[key], rtol=0, atol=0)


def test_a_model_is_no_state_dict():
    with pytest.raises(TypeError, match=r'got a GhostNet; of a model give its state_dict\(\)'):
        gp.load_weights(gp.GhostNet(0.5), gp.GhostNet(0.5))


@pytest.mark.parametrize('strict', [True, False])
def test_wrong_width_is_refused_and_nothing_changes(strict):
    net = gp.GhostNet(0.5)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(ValueError, match=r'conv_stem\.weight is .* there'):
        gp.load_weights(net, gp.GhostNet(1.0).state_dict(), strict=strict)
    torch.testing.assert_close(dict(net.state_dict()), before, rtol=0, atol=0)


class Hostile:
    def __reduce__(self):
        return (print, ('owned',))


def test_files_that_are_no_checkpoints_are_refused(tmp_path, capsys):
    torch.save({'state_dict': Hostile()}, tmp_path / 'hostile.pth')
    (tmp_path / 'text.pth').write_text('hello')
    for name, said in (('hostile', 'loading it would run builtins.print'), ('text', 'damaged')):
        with pytest.raises(ValueError, match=rf'{name}\.pth.*{said}'):
            gp.load_weights(gp.GhostNet(0.5), tmp_path / f'{name}.pth')
    assert 'owned' not in capsys.readouterr().out
    with pytest.raises(FileNotFoundError, match=r'none\.pth'):
        gp.load_weights(gp.GhostNet(0.5), tmp_path / 'none.pth')


def test_objects_of_training_scripts_are_read_as_nothing(tmp_path):
    net = gp.GhostNet(0.5)
    averaged = {k: v + 1 for k, v in net.state_dict().items()}
    torch.save(
        {
            'args': argparse.Namespace(lr=1.0),
            'epoch': np.float64(3),
            'history': np.zeros(3),
            'state_dict': net.state_dict(),
            'state_dict_ema': averaged,
        },
        tmp_path / 'w.pth',
    )
    gp.load_weights(net, tmp_path / 'w.pth')
    torch.testing.assert_close(net.bn1.bias, averaged['bn1.bias'], rtol=0, atol=0)


@pytest.mark.parametrize('channels', [1, 4])
def test_other_input_channels_are_adapted_as_in_timm(channels):
    timm = pytest.importorskip('timm')
    weights = timm.create_model('ghostnet_050').state_dict()
    net = gp.GhostNet(0.5, in_channels=channels)
    assert gp.load_weights(net, weights).adapted == ('conv_stem.weight',)
    want = timm.models.adapt_input_conv(channels, weights['conv_stem.weight'])
    torch.testing.assert_close(net.conv_stem.weight.detach(), want)


def test_another_number_of_classes_keeps_its_init_and_says_so(caplog):
    timm = pytest.importorskip('timm')
    weights = timm.create_model('ghostnet_050').state_dict()
    net = timm.create_model('ghostnet_plugin_050', num_classes=7)
    report = gp.load_weights(net, weights)
    assert report.missing == ('classifier.weight', 'classifier.bias')
    assert 'not loaded: classifier.weight, classifier.bias' in caplog.text
    assert len(caplog.records) == 1


def test_published_weights_are_complete():
    for name, row in PUBLISHED.items():
        assert name.startswith('ghostnet_plugin')
        assert set(row.options) <= {'width', 'arch'}
        assert 66 < row.top1 < 80
        assert {'hf_hub_id', 'url'} & set(row.location)
