import copy

import pytest
import torch

timm = pytest.importorskip('timm')

from helpers.timm_nets import channels, every, make, small

from ghost_plugin.integrations.timm.classifier import chosen_levels


@pytest.mark.parametrize(
    ('indices', 'levels'),
    [(None, [0, 1, 2, 3, 4]), (2, [3, 4]), ((-1, 0), [0, 4]), ([3], [3])],
)
def test_levels_from_timms_notations(indices, levels):
    assert chosen_levels(indices) == levels


@pytest.mark.parametrize('indices', [(5,), (-6,), (0, 9)])
def test_levels_out_of_range(indices):
    with pytest.raises(ValueError, match=r'0\.\.4'):
        make('ghostnet_plugin_050', features_only=True, out_indices=indices)
    with pytest.raises(ValueError, match=r'0\.\.4'):
        make('ghostnet_plugin_050').forward_intermediates(torch.randn(1, 3, 32, 32), indices)


@every
@pytest.mark.parametrize('chosen', [{}, {'stop_early': True}, {'indices': (1, -2)}, {'indices': 2}])
def test_intermediates_are_the_features(name, chosen):
    net = make(name).eval()
    x = torch.randn(1, 3, 64, 64)
    final, maps = net.forward_intermediates(x, **chosen)
    only = net.forward_intermediates(x, intermediates_only=True, **chosen)
    torch.testing.assert_close(maps, only, rtol=0, atol=0)
    if not chosen:
        torch.testing.assert_close(final, net.forward_features(x), rtol=0, atol=0)
        assert [m.shape[1] for m in maps] == channels(name)


@every
def test_pruned_net_still_gives_its_features(name):
    net = make(name).eval()
    x = torch.randn(1, 3, 64, 64)
    want = net.forward_intermediates(x, indices=(1, 2), intermediates_only=True)
    before = sum(p.numel() for p in net.parameters())
    assert net.prune_intermediate_layers((1, 2)) == [1, 2]
    assert net(x).shape[1] == net.num_features == channels(name)[2]
    assert sum(p.numel() for p in net.parameters()) < before / 2
    assert not any(part.training for part in net.modules())
    torch.testing.assert_close(
        net.forward_intermediates(x, indices=(1, 2), intermediates_only=True), want, rtol=0, atol=0
    )


@every
def test_head_can_be_changed(name):
    net = make(name, num_classes=7, in_chans=1)
    x, hidden = torch.randn(2, 1, 64, 64), net.head_hidden_size
    assert net(x).shape == (2, 7)
    net.reset_classifier(3)
    assert net(x).shape == (2, 3)
    assert net.get_classifier().out_features == 3
    net.reset_classifier(0)
    assert net(x).shape == (2, hidden)
    net.reset_classifier(0, '')
    assert net(x).shape == (2, hidden, 2, 2)


@small
def test_pooling_that_gives_more_channels_is_refused_when_built(name):
    with pytest.raises(ValueError, match=r"keep the number of channels.* got 'catavgmax'"):
        make(name, global_pool='catavgmax')
    net = make(name)
    with pytest.raises(ValueError, match="got 'catavgmax'"):
        net.reset_classifier(5, 'catavgmax')
    assert net.eval()(torch.randn(1, 3, 64, 64)).shape == (1, net.num_classes) == (1, 1000)


@every
def test_net_without_classifier_or_pooling(name):
    x = torch.randn(2, 4, 64, 64)
    net = make(name, num_classes=0, in_chans=4)
    assert net(x).shape == (2, net.head_hidden_size)
    assert net.forward_features(x).shape == (2, net.num_features, 2, 2)
    net = make(name, num_classes=0, in_chans=4, global_pool='')
    assert net(x).shape == (2, net.head_hidden_size, 2, 2)


@every
def test_checkpointing_is_a_switch(name):
    net = make(name)
    x = torch.randn(2, 3, 32, 32)
    want = copy.deepcopy(net)
    torch.manual_seed(1)
    out = want(x)
    net.set_grad_checkpointing()
    torch.manual_seed(1)
    torch.testing.assert_close(net(x), out, rtol=0, atol=0)


@every
def test_layers_have_their_groups(name):
    net = make(name)
    groups = timm.models.group_parameters(net, net.group_matcher())
    assert len(groups) >= 5
    assert sum(len(names) for names in groups.values()) == len(list(net.parameters()))
