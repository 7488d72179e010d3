import pytest
import torch

import ghost_plugin as gp

timm = pytest.importorskip('timm')

SIZES = {'ghostnet_plugin_050': (2587292, 42.33), 'ghostnet_plugin': (5182508, 141.15),
         'ghostnet_plugin_130': (7358820, 227.00)}  # fmt: skip
THEIRS = {'ghostnet_plugin_050': 'ghostnet_050', 'ghostnet_plugin': 'ghostnet_100',
          'ghostnet_plugin_130': 'ghostnet_130'}  # fmt: skip


@pytest.mark.parametrize('name', SIZES)
def test_cost_is_the_published_one(name):
    cost = gp.count(timm.create_model(name), torch.randn(1, 3, 224, 224))
    assert (cost.params, round(cost.macs / 1e6, 2)) == SIZES[name]


def test_any_width():
    cost = gp.count(timm.create_model('ghostnet_plugin', width=1.1), torch.randn(1, 3, 224, 224))
    assert (cost.params, round(cost.macs / 1e6, 2)) == (5855650, 166.99)


@pytest.mark.parametrize('name', THEIRS)
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


def test_offline_and_unpublished_say_what_to_do(monkeypatch):
    def offline(*args, **kwargs):
        raise OSError('no network')

    monkeypatch.setattr('timm.models._builder.load_state_dict_from_hf', offline)
    with pytest.raises(OSError, match=r'pretrained_cfg_overlay=dict\(file='):
        timm.create_model('ghostnet_plugin', pretrained=True)
    with pytest.raises(ValueError, match='no weights are published'):
        timm.create_model('ghostnet_plugin_050', pretrained=True)
    with pytest.raises(ValueError, match=r'have width 1\.0'):
        timm.create_model('ghostnet_plugin', pretrained=True, width=0.7)


@pytest.mark.parametrize('indices', [None, (0, 1, 2, 3, 4), (-2, -1), (1, 3)])
def test_features_only(indices):
    options = {} if indices is None else {'out_indices': indices}
    net = timm.create_model('ghostnet_plugin_050', features_only=True, **options)
    maps = net(torch.randn(1, 3, 64, 64))
    assert [m.shape[1] for m in maps] == net.feature_info.channels()
    assert [64 // m.shape[2] for m in maps] == net.feature_info.reduction()


def test_features_keep_the_whole_trunk():
    ours = timm.create_model('ghostnet_plugin', features_only=True)
    theirs = timm.create_model('ghostnet_100', features_only=True)
    assert sum(p.numel() for p in ours.parameters()) == 2515908
    assert sum(p.numel() for p in theirs.parameters()) == 948388


@pytest.mark.parametrize(
    'options', [{}, {'stop_early': True}, {'indices': (1, -2)}, {'indices': 2}]
)
def test_intermediates_are_the_features(options):
    net = timm.create_model('ghostnet_plugin_050').eval()
    x = torch.randn(1, 3, 64, 64)
    final, maps = net.forward_intermediates(x, **options)
    only = net.forward_intermediates(x, intermediates_only=True, **options)
    torch.testing.assert_close(maps, only, rtol=0, atol=0)
    if not options:
        torch.testing.assert_close(final, net.forward_features(x), rtol=0, atol=0)
        assert [m.shape[1] for m in maps] == gp.out_channels('GhostNet', range(5), 0.5)


def test_pruned_net_still_gives_its_features():
    net = timm.create_model('ghostnet_plugin_050').eval()
    x = torch.randn(1, 3, 64, 64)
    want = net.forward_intermediates(x, indices=(1, 2), intermediates_only=True)
    assert net.prune_intermediate_layers((1, 2)) == [1, 2]
    assert net(x).shape[1] == net.num_features == 20
    torch.testing.assert_close(
        net.forward_intermediates(x, indices=(1, 2), intermediates_only=True), want, rtol=0, atol=0
    )


def test_head_can_be_changed():
    net = timm.create_model('ghostnet_plugin_050', num_classes=7, in_chans=1)
    x = torch.randn(2, 1, 64, 64)
    assert net(x).shape == (2, 7)
    net.reset_classifier(3)
    assert net(x).shape == (2, 3)
    net.reset_classifier(0)
    assert net(x).shape == (2, 1280)
    net.reset_classifier(0, '')
    assert net(x).shape == (2, 1280, 2, 2)


@pytest.mark.parametrize('options', [{'act_layer': 'hard_swish'}, {'norm_layer': 'groupnorm1'},
                                     {'output_stride': 16}, {'drop_path_rate': 0.2}])  # fmt: skip
def test_every_option_trains_every_parameter(options):
    net = timm.create_model('ghostnet_plugin_050', num_classes=3, **options)
    net(torch.randn(2, 3, 64, 64)).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_script_and_export(randomise_norms):
    net = randomise_norms(timm.create_model('ghostnet_plugin_050'))
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(torch.jit.script(net)(x), net(x))
    torch.testing.assert_close(torch.export.export(net, (x,)).module()(x), net(x))


def test_checkpointing_is_a_switch():
    net = timm.create_model('ghostnet_plugin_050')
    net.set_grad_checkpointing()
    net(torch.randn(2, 3, 32, 32)).sum().backward()
    assert net.grad_checkpointing
