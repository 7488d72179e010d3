import copy
import io
import pickle

import pytest
import torch
from torch import nn

import ghost_plugin as gp

timm = pytest.importorskip('timm')

from helpers.timm_nets import channels, every, make, small

# Parameters and multiply-adds (M) at 224 as published; G-Ghost was published rounded.
SIZES = {
    'ghostnet_plugin_050': (2587292, 42.33),
    'ghostnet_plugin': (5182508, 141.15),
    'ghostnet_plugin_130': (7358820, 227.00),
    'ghostnet_plugin_v2_100': (6156908, 167.05),
    'ghostnet_plugin_v2_130': (8960404, 269.32),
    'ghostnet_plugin_v2_160': (12392698, 398.61),
    'ghostnet_plugin_v3_050': (3395384, 117.53),
    'ghostnet_plugin_v3_100': (8129028, 404.13),
    'ghostnet_plugin_v3_130': (12217720, 654.84),
    'ghostnet_plugin_v3_160': (17275700, 971.57),
}
DEPLOYED = {
    'ghostnet_plugin_v3_050': (2853176, 49.64),
    'ghostnet_plugin_v3_100': (6147588, 167.05),
    'ghostnet_plugin_v3_130': (8948296, 269.32),
    'ghostnet_plugin_v3_160': (12377778, 398.61),
}
G_GHOST = {
    'ghostnet_plugin_gghost_032': (10.511, 1.802),
    'ghostnet_plugin_gghost_040': (15.726, 2.228),
    'ghostnet_plugin_gghost_080': (24.587, 4.150),
    'ghostnet_plugin_gghost_160': (32.382, 8.997),
}
THEIRS = {
    'ghostnet_plugin_050': 'ghostnet_050',
    'ghostnet_plugin': 'ghostnet_100',
    'ghostnet_plugin_130': 'ghostnet_130',
    'ghostnet_plugin_v2_100': 'ghostnetv2_100',
    'ghostnet_plugin_v2_130': 'ghostnetv2_130',
    'ghostnet_plugin_v2_160': 'ghostnetv2_160',
    'ghostnet_plugin_v3_050': 'ghostnetv3_050',
    'ghostnet_plugin_v3_100': 'ghostnetv3_100',
    'ghostnet_plugin_v3_130': 'ghostnetv3_130',
    'ghostnet_plugin_v3_160': 'ghostnetv3_160',
    **{
        f'ghostnet_plugin_rep_{size}': f'repghostnet_{size}'
        for size in ('050', '058', '080', '100', '111', '130', '150', '200')
    },
}


@pytest.mark.parametrize('name', SIZES)
def test_cost_is_the_published_one(name):
    cost = gp.count(timm.create_model(name), torch.ones(1, 3, 224, 224))
    assert (cost.params, round(cost.macs / 1e6, 2)) == SIZES[name]


@pytest.mark.parametrize('name', DEPLOYED)
def test_cost_of_the_deployed_form(name):
    cost = gp.count(timm.create_model(name, deploy=True), torch.ones(1, 3, 224, 224))
    assert (cost.params, round(cost.macs / 1e6, 2)) == DEPLOYED[name]


@pytest.mark.parametrize('name', G_GHOST)
def test_cost_of_g_ghost(name):
    cost = gp.count(timm.create_model(name), torch.ones(1, 3, 224, 224))
    assert (round(cost.params / 1e6, 3), round(cost.macs / 1e9, 3)) == G_GHOST[name]


@pytest.mark.parametrize(
    'name', [pytest.param(n, marks=pytest.mark.slow if n[-1] == '0' else ()) for n in THEIRS
             if '_rep_' in n],
)  # fmt: skip
def test_rep_ghost_is_timms_in_both_forms(name, randomise_norms):
    theirs = randomise_norms(timm.create_model(THEIRS[name]).double())
    ours = timm.create_model(name).double().eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    deployed = timm.create_model(name, deploy=True).double().eval()
    x = torch.randn(1, 3, 96, 96, dtype=torch.float64)
    want = theirs(x)
    assert gp.count(ours, x) == gp.count(theirs, x)
    theirs.convert_to_deploy()
    deployed.load_state_dict(theirs.state_dict(), strict=True)
    assert gp.count(deployed, x) == gp.count(theirs, x)
    for model in (ours, gp.fuse(ours), deployed):
        torch.testing.assert_close(model(x), want, rtol=0, atol=1e-9 * want.abs().max().item())


def test_any_width():
    cost = gp.count(timm.create_model('ghostnet_plugin', width=1.1), torch.randn(1, 3, 224, 224))
    assert (cost.params, round(cost.macs / 1e6, 2)) == (5855650, 166.99)


@pytest.mark.parametrize(
    'name',
    [
        pytest.param(n, marks=() if n[-3:] in ('050', '100', 'gin') else pytest.mark.slow)
        for n in THEIRS
    ],
)
def test_timms_weights_give_timms_logits(name, randomise_norms, tmp_path):
    theirs = randomise_norms(timm.create_model(THEIRS[name]))
    torch.save(theirs.state_dict(), tmp_path / 'w.pth')
    ours = timm.create_model(name).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    overlay = {'file': str(tmp_path / 'w.pth')}
    local = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay).eval()
    x = torch.randn(2, 3, 96, 96)
    for model in (ours, local):
        torch.testing.assert_close(model(x), theirs(x), rtol=0, atol=1e-5)


def test_the_authors_file_goes_through_timms_own_loader(tmp_path):
    net = timm.create_model('ghostnet_plugin_v3_050')
    state = {k.replace('bn1', 'bn') if '_rpr_' in k else k: v for k, v in net.state_dict().items()}
    torch.save({'state_dict_ema': {**state, 'total_ops': torch.zeros(1)}}, tmp_path / 'w.pth')
    path = str(tmp_path / 'w.pth')
    other = timm.create_model('ghostnet_plugin_v3_050', checkpoint_path=path)
    torch.testing.assert_close(dict(other.state_dict()), dict(net.state_dict()), rtol=0, atol=0)


def test_offline_and_unpublished_say_what_to_do(monkeypatch):
    def offline(*args, **kwargs):
        raise OSError('no network')

    monkeypatch.setattr('timm.models._builder.load_state_dict_from_hf', offline)
    with pytest.raises(OSError, match=r'pretrained_cfg_overlay=dict\(file='):
        timm.create_model('ghostnet_plugin', pretrained=True)
    with pytest.raises(ValueError, match='no weights are published'):
        timm.create_model('ghostnet_plugin_v3_050', pretrained=True)
    with pytest.raises(ValueError, match=r'have width 1\.0'):
        timm.create_model('ghostnet_plugin', pretrained=True, width=0.7)


@every
@pytest.mark.parametrize('indices', [None, (0, 1, 2, 3, 4), (-2, -1), (1, 3)])
def test_features_only(name, indices):
    chosen = {} if indices is None else {'out_indices': indices}
    net = make(name, features_only=True, **chosen)
    maps = net(torch.randn(2, 3, 64, 64))
    want = channels(name)
    assert [m.shape[1] for m in maps] == net.feature_info.channels()
    assert [m.shape[1] for m in maps] == [want[i] for i in indices or range(5)]
    assert [64 // m.shape[2] for m in maps] == net.feature_info.reduction()
    sum(m.square().mean() for m in maps).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


@every
@pytest.mark.parametrize('kind', ['getter', 'fx', 'hook'])
def test_timms_other_ways_to_features_give_the_same(name, kind):
    plain = make(name, features_only=True).eval()
    torch.manual_seed(0)
    net = make(name, features_only=True, feature_cls=kind).eval()
    x = torch.randn(1, 3, 64, 64)
    assert [m.shape[1] for m in net(x)] == net.feature_info.channels() == channels(name)
    for maps, want in zip(net(x), plain(x), strict=True):
        torch.testing.assert_close(maps, want)


def test_features_keep_the_whole_trunk():
    ours = timm.create_model('ghostnet_plugin', features_only=True)
    theirs = timm.create_model('ghostnet_100', features_only=True)
    assert sum(p.numel() for p in ours.parameters()) == 2515908
    assert sum(p.numel() for p in theirs.parameters()) == 948388


@every
@pytest.mark.parametrize('chosen', [{'act_layer': 'hard_swish'}, {'norm_layer': 'groupnorm1'},
                                    {'output_stride': 16}, {'output_stride': 8},
                                    {'drop_path_rate': 0.2}, {'stem_stride': 1}])  # fmt: skip
def test_every_option_trains_every_parameter(name, chosen):
    net = make(name, num_classes=3, **chosen)
    net(torch.randn(2, 3, 64, 64)).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


@small
@pytest.mark.parametrize('chosen', [{'ratio': 3, 'dw_size': 5, 'se': False}, {'cheap': 'shift'},
                                    {'cheap': 'linear'}, {'cheap_ratio': 0.4},
                                    {'group_size': 4}, {'group_size': 'all'},
                                    {'zero_init_residual': True}])  # fmt: skip
def test_options_reach_the_variants_that_have_them(name, chosen):
    ours = {'ratio', 'dw_size', 'se', 'cheap', 'group_size', 'zero_init_residual'}
    takes = {'cheap_ratio'} if 'gghost' in name else ours
    takes -= {'ratio', 'cheap', 'group_size'} if '_rep_' in name else set()
    if not set(chosen) <= takes:
        with pytest.raises(TypeError, match=next(iter(chosen))):
            make(name, **chosen)
    elif 'v3' in name and {'cheap', 'group_size'} & set(chosen):
        with pytest.raises(ValueError, match='depthwise'):
            make(name, **chosen)
    else:
        net = make(name, num_classes=3, **chosen)
        net(torch.randn(2, 3, 64, 64)).sum().backward()
        assert net.get_classifier().weight.grad.isfinite().all()


@every
def test_one_image_and_bf16_train_every_parameter(name):
    net = make(name, num_classes=3)
    net(torch.randn(1, 3, 64, 64)).square().sum().backward()
    with torch.autocast('cpu', torch.bfloat16):
        out = net(torch.randn(2, 3, 64, 64))
    out.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


@every
@pytest.mark.parametrize('size', [(1, 1), (32, 32), (33, 33), (97, 131)])
def test_any_size(name, size):
    assert make(name).eval()(torch.randn(1, 3, *size)).shape == (1, 1000)


@every
@pytest.mark.parametrize('deployed', [pytest.param(False, marks=pytest.mark.slow), True])
def test_script_trace_and_export(name, deployed, randomise_norms, assert_equal_maps):
    net = randomise_norms(make(name))
    net = gp.fuse(net) if deployed else net
    x = torch.randn(2, 3, 64, 64)
    want = net(x)
    assert_equal_maps(torch.jit.script(net)(x), want, 1e-4)
    assert_equal_maps(torch.fx.symbolic_trace(net)(x), want, 1e-4)
    assert_equal_maps(torch.export.export(net, (x,)).module()(x), want, 1e-4)


@every
def test_timms_reparameterize_leaves_the_norm_of_the_stem(name, randomise_norms, assert_equal_maps):
    net = randomise_norms(make(name))
    x = torch.randn(2, 3, 64, 64)
    done = timm.utils.reparameterize_model(net)  # asks the children of the network only
    left = [name for name, part in done.named_modules() if isinstance(part, nn.BatchNorm2d)]
    assert left == ['bn1']
    fused = gp.fuse(done)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fused.modules())
    assert_equal_maps(fused(x), net(x), 1e-4)
    assert any(isinstance(m, nn.BatchNorm2d) for m in net.modules())
    assert_equal_maps(done(x), net(x), 1e-4)


@every
@pytest.mark.parametrize(
    'deploy', [gp.fuse, lambda net: net.switch_to_deploy() and net, timm.utils.reparameterize_model]
)
def test_a_deployed_model_holds_itself_once(name, deploy):
    done = deploy(make(name).eval())
    file = io.BytesIO()
    torch.save(done, file)
    weights = sum(v.numel() * v.element_size() for v in done.state_dict().values())
    assert file.tell() < 1.5 * weights
    again = timm.utils.reparameterize_model(done)
    torch.testing.assert_close(again.state_dict(), done.state_dict(), rtol=0, atol=0)


def test_timms_reparameterize_leaves_what_cannot_be_folded():
    net = timm.create_model('ghostnet_plugin_050', norm_layer='groupnorm1').eval()
    assert type(timm.utils.reparameterize_model(net).bn1) is type(net.bn1)


@every
def test_copies_and_pickles(name, randomise_norms):
    net = randomise_norms(make(name))
    x = torch.randn(1, 3, 64, 64)
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        torch.testing.assert_close(twin(x), net(x), rtol=0, atol=0)
        twin.reparameterize()
        assert isinstance(net.bn1, nn.BatchNorm2d)
