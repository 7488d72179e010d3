"""timm's protocol: weights from any pretrained cfg, folding in any mode."""

import copy
import io
import pickle

import pytest
import torch

import ghost_plugin as gp

timm = pytest.importorskip('timm')

SIZES = {
    'timm': ('ghostnet_050', {}),
    'published': ('ghostnet_plugin', {}),
    'unpublished': ('ghostnet_plugin_050', {}),
    'branches': ('ghostnet_plugin_v3_050', {}),
    'another width': ('ghostnet_plugin', {'width': 0.35}),
}
FAMILIES = [
    'ghostnet_plugin_050',
    'ghostnet_plugin_v2_100',
    'ghostnet_plugin_v3_050',
    'ghostnet_plugin_gghost_032',
]


@pytest.fixture
def saved(tmp_path):
    """A model of 7 classes, its folder as timm saves it, and its file."""

    def save(size):
        name, own = SIZES[size]
        model = timm.create_model(name, num_classes=7, **own).eval()
        timm.models.save_for_hf(model, tmp_path / 'hub', model_args=own)
        # torch keeps downloads by their names alone
        file = tmp_path / f'{tmp_path.name}_{size.replace(" ", "_")}.pth'
        torch.save(model.state_dict(), file)
        return name, own, model, str(tmp_path / 'hub'), str(file)

    return save


@pytest.mark.parametrize('size', SIZES)
def test_weights_come_from_where_the_cfg_says(size, saved, monkeypatch, tmp_path):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    name, own, model, folder, file = saved(size)
    cfg = {'file': file, 'num_classes': 7, 'classifier': 'classifier', 'first_conv': 'conv_stem'}
    ways = {
        'folder': {'model_name': f'local-dir:{folder}'},
        'cfg': {'pretrained_cfg': cfg},
        'cfg object': {'pretrained_cfg': timm.models.PretrainedCfg(**cfg)},
        'url': {'pretrained_cfg_overlay': {'url': f'file://{file}', 'num_classes': 7}},
        'state': {'pretrained_cfg_overlay': {'state_dict': model.state_dict(), 'num_classes': 7}},
        'file': {'pretrained_cfg_overlay': {'file': file, 'num_classes': 7}},
    }
    x = torch.randn(1, 3, 64, 64)
    want = model(x)
    for way, options in ways.items():
        arguments = {} if way == 'folder' else {'model_name': name, 'num_classes': 7, **own}
        got = timm.create_model(pretrained=True, **{**arguments, **options}).eval()
        assert torch.equal(got(x), want), way


@pytest.mark.parametrize('size', ['unpublished', 'branches', 'another width'])
def test_a_repository_of_the_hub_is_asked(size, saved, monkeypatch):
    name, own, model, folder, _ = saved(size)
    asked = []

    def weights(source, *args, **kwargs):
        asked.append(source)
        return model.state_dict()

    def config(source, **kwargs):
        cfg, *rest = timm.models._hub.load_model_config_from_path(folder)
        return ({**cfg, 'hf_hub_id': source, 'source': 'hf-hub', 'file': None}, *rest)

    monkeypatch.setattr('timm.models._builder.load_state_dict_from_hf', weights)
    monkeypatch.setattr('timm.models._factory.load_model_config_from_hf', config)
    overlay = {'hf_hub_id': 'me/mine', 'num_classes': 7}
    x = torch.randn(1, 3, 64, 64)
    for got in (
        timm.create_model('hf-hub:me/mine', pretrained=True),
        timm.create_model(
            name, pretrained=True, num_classes=7, pretrained_cfg_overlay=overlay, **own
        ),
    ):
        assert torch.equal(got.eval()(x), model(x))
    assert asked == ['me/mine'] * 2


@pytest.mark.parametrize('size', ['unpublished', 'branches', 'another width'])
def test_the_weights_of_a_folder_are_adapted(size, saved):
    *_, model, folder, _ = saved(size)
    source = f'local-dir:{folder}'
    maps = timm.create_model(source, pretrained=True, features_only=True).eval()
    x = torch.randn(1, 3, 64, 64)
    want = model.forward_intermediates(x, intermediates_only=True)
    assert all(map(torch.equal, maps(x), want))
    other = timm.create_model(source, pretrained=True, num_classes=3, in_chans=1)
    assert other.classifier.weight.shape[0] == 3
    stem = model.conv_stem.weight.sum(1, keepdim=True)
    torch.testing.assert_close(other.conv_stem.weight, stem)


@pytest.mark.parametrize('prefix', ['', 'model.', 'net.backbone.'])
def test_files_of_train_scripts_go_through_timms_loader(prefix, tmp_path):
    model = timm.create_model('ghostnet_plugin_050')
    state = {f'{prefix}{name}': tensor for name, tensor in model.state_dict().items()}
    torch.save({'model_state_dict': state}, tmp_path / 'w.pth')
    for custom in (False, True):
        overlay = {'file': str(tmp_path / 'w.pth'), 'custom_load': custom}
        if not custom and prefix == '':
            overlay['file'] = str(tmp_path / 'plain.pth')
            torch.save(state, overlay['file'])
        elif not custom:
            overlay = {'state_dict': state}
        got = timm.create_model(
            'ghostnet_plugin_050', pretrained=True, pretrained_cfg_overlay=overlay
        )
        torch.testing.assert_close(dict(got.state_dict()), dict(model.state_dict()))


def test_what_names_no_weights_is_refused():
    for cfg in ({'num_classes': 7}, timm.models.PretrainedCfg()):
        with pytest.raises(ValueError, match='names no weights'):
            timm.create_model('ghostnet_plugin', pretrained=True, pretrained_cfg=cfg)
        with pytest.raises(ValueError, match='no weights are published'):
            timm.create_model('ghostnet_plugin_v3_050', pretrained=True, pretrained_cfg=cfg)
    with pytest.raises(ValueError, match=r'have width 1\.0'):
        overlay = {'num_classes': 7}
        timm.create_model(
            'ghostnet_plugin', pretrained=True, width=0.5, pretrained_cfg_overlay=overlay
        )


@pytest.mark.parametrize('inplace', [False, True])
@pytest.mark.parametrize('name', FAMILIES)
def test_reparameterize_in_training_mode(name, inplace, randomise_norms, assert_equal_maps):
    net = randomise_norms(timm.create_model(name, drop_rate=0.0, num_classes=5))
    x = torch.randn(2, 3, 64, 64)
    want = net(x)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    net.train()
    given = copy.deepcopy(net) if inplace else net
    folded = timm.utils.reparameterize_model(given, inplace=inplace)
    assert (folded is given) == inplace
    torch.testing.assert_close(dict(net.state_dict()), before, rtol=0, atol=0)
    assert all(part.training for part in folded.modules())
    norms = [part for part in folded.modules() if isinstance(part, torch.nn.BatchNorm2d)]
    assert len(norms) == 1  # behind the stem
    assert_equal_maps(folded.eval()(x), want, 1e-4)
    folded.train()
    norms[0].eval()
    assert_equal_maps(folded(x), want, 1e-4)
    file = io.BytesIO()
    torch.save(folded, file)
    assert file.tell() < 1.5 * sum(v.nbytes for v in folded.state_dict().values())
    twin = pickle.loads(pickle.dumps(folded))
    assert_equal_maps(twin.eval()(x), want, 1e-4)
    with pytest.raises(ValueError, match=r'model\.eval'):
        gp.fuse(net)


def test_a_part_that_is_frozen_stays_in_its_mode():
    net = timm.create_model('ghostnet_plugin_v3_050').train()
    net.blocks[0].eval()
    folded = timm.utils.reparameterize_model(net)
    assert not any(part.training for part in folded.blocks[0].modules())
    assert all(part.training for part in folded.blocks[1].modules())


def test_files_of_one_name_are_told_apart(tmp_path):
    for width in (0.3, 0.4):
        model = timm.create_model('ghostnet_plugin', width=width, num_classes=3)
        path = tmp_path / str(width) / 'weights.pth'
        path.parent.mkdir()
        torch.save(model.state_dict(), path)
        overlay = {'url': path.as_uri(), 'num_classes': 3}
        again = timm.create_model(
            'ghostnet_plugin',
            pretrained=True,
            width=width,
            num_classes=3,
            pretrained_cfg_overlay=overlay,
        )
        torch.testing.assert_close(again.state_dict(), model.state_dict())
