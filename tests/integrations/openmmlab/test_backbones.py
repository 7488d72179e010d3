import copy
import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn

import ghost_plugin as gp

pytest.importorskip('mmengine')
pytest.importorskip('mmcv')
mmpretrain = pytest.importorskip('mmpretrain')
timm = pytest.importorskip('timm')

from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import load_checkpoint


def classifier(width=1.0, name='GhostNet', **options):
    init_default_scope('mmpretrain')
    channels = gp.out_channels(name, (5,), width)[0]
    head = dict(
        type='StackedLinearClsHead', num_classes=1000, in_channels=channels, mid_channels=[1280]
    )
    backbone = dict(type=f'ghost_plugin.{name}', width=width, out_indices=(5,), **options)
    neck = dict(type='GlobalAveragePooling')
    return MODELS.build(
        dict(type='ImageClassifier', backbone=backbone, neck=neck, head=head)
    ).eval()


SIZES = {
    'GhostNet': {'width': 0.5},
    'GhostNetV2': {'width': 0.5},
    'GhostNetV3': {'width': 0.5},
    'GGhostRegNet': {'arch': '002'},
    'RepGhostNet': {'width': 0.5},
}
family = pytest.mark.parametrize('name', SIZES)


def backbone(name='GhostNet', **options):
    return MODELS.build(dict(type=f'ghost_plugin.{name}', **SIZES[name], **options))


@pytest.mark.parametrize(
    'width, params, macs',
    [(0.5, 2587292, 42.33), (1.0, 5182508, 141.15), (1.1, 5855650, 166.99), (1.3, 7358820, 227.00)],
)
def test_cost_is_the_published_one(width, params, macs):
    cost = gp.count(classifier(width), torch.randn(1, 3, 224, 224))
    assert (cost.params, round(cost.macs / 1e6, 2)) == (params, macs)


@pytest.mark.parametrize(
    'theirs, name, width',
    [
        ('ghostnet_050', 'GhostNet', 0.5),
        ('ghostnet_100', 'GhostNet', 1.0),
        ('ghostnet_130', 'GhostNet', 1.3),
        ('ghostnetv2_100', 'GhostNetV2', 1.0),
        ('ghostnetv3_050', 'GhostNetV3', 0.5),
        ('repghostnet_050', 'RepGhostNet', 0.5),
        *(
            pytest.param(f'ghostnetv{v}_{int(100 * w)}', f'GhostNetV{v}', w, marks=pytest.mark.slow)
            for v, w in ((2, 1.3), (2, 1.6), (3, 1.0), (3, 1.3), (3, 1.6))
        ),
    ],
)
def test_timms_weights_give_timms_logits(theirs, name, width, randomise_norms, tmp_path):
    theirs = randomise_norms(timm.create_model(theirs))
    torch.save(theirs.state_dict(), tmp_path / 'w.pth')
    plain, framework, ours = (classifier(width, name) for _ in range(3))
    plain.load_state_dict(theirs.state_dict(), strict=True)
    load_checkpoint(framework, str(tmp_path / 'w.pth'), strict=True)
    gp.load_weights(ours, tmp_path / 'w.pth')
    x = torch.randn(1, 3, 96, 96)
    want = theirs(x)
    for model in (plain, framework, ours):
        torch.testing.assert_close(model(x), want, rtol=1e-5, atol=1e-5)


def test_g_ghost_classifier_takes_the_authors_names(randomise_norms):
    theirs = randomise_norms(timm.create_model('ghostnet_plugin_gghost_032', arch='002'))
    init_default_scope('mmpretrain')
    model = MODELS.build(
        dict(
            type='ImageClassifier',
            backbone=dict(type='ghost_plugin.GGhostRegNet', arch='002', out_indices=(4,)),
            neck=dict(type='GlobalAveragePooling'),
            head=dict(type='LinearClsHead', num_classes=1000, in_channels=368),
        )
    ).eval()
    model.load_state_dict(theirs.state_dict(), strict=True)
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(model(x), theirs(x), rtol=1e-5, atol=1e-5)


def test_training_weights_load_into_a_deployed_classifier(randomise_norms, tmp_path):
    theirs = randomise_norms(timm.create_model('ghostnetv3_050'))
    torch.save(theirs.state_dict(), tmp_path / 'w.pth')
    ours = classifier(0.5, 'GhostNetV3', deploy=True)
    load_checkpoint(ours, str(tmp_path / 'w.pth'), strict=True)
    x = torch.randn(1, 3, 96, 96)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    'packages', [['mmengine'], pytest.param(['mmdet', 'mmpretrain'], marks=pytest.mark.slow)]
)
def test_found_from_any_scope_without_an_import(packages):
    code = f"""
import importlib
from importlib.util import find_spec
names = [name for name in {packages} if find_spec(name)]
found = [importlib.import_module(name + '.registry').MODELS for name in names]
for registry in found:
    net = registry.build(dict(type='ghost_plugin.GhostNet', width=0.5))
    assert type(net).__name__ == 'GhostNet'
import ghost_plugin.integrations.openmmlab
for registry in found:
    assert registry.get('GhostNet') is registry.get('ghost_plugin.GhostNet')
    assert registry.get('GhostConv2d') is registry.get('ghost_plugin.GhostConv2d')
"""
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@family
@pytest.mark.parametrize('frozen', [-1, 0, 3])
def test_frozen_stages_stay_in_eval_without_gradient(name, frozen):
    net = backbone(name, frozen_stages=frozen)
    assert net.eval() is net
    assert net.train() is net
    inside = {id(m) for part in net.frozen_modules() for m in part.modules()}
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d):
            assert module.training != (id(module) in inside)
            assert all(p.requires_grad != (id(module) in inside) for p in module.parameters())
    assert bool(inside) == (frozen >= 0)


@pytest.mark.parametrize('frozen, taps', [(-2, (1, 2)), (5, (1, 2)), (3, (1, 2)), ('1', (1, 2))])
def test_frozen_stages_out_of_range(frozen, taps):
    with pytest.raises(ValueError, match='frozen_stages'):
        backbone(frozen_stages=frozen, out_indices=taps)


@family
def test_norm_eval_keeps_all_norms(name):
    net = backbone(name, norm_eval=True).train()
    assert not any(m.training for m in net.modules() if isinstance(m, nn.BatchNorm2d))
    assert any(m.training for m in net.modules() if isinstance(m, nn.Conv2d))


@pytest.mark.parametrize('name, taps', [('GhostNet', (0,)), *((name, (1, 3)) for name in SIZES)])
def test_layer_depths_grow_from_the_stem_to_what_follows(name, taps):
    net = backbone(name, out_indices=taps)
    depths, totals = zip(*(net.get_layer_depth(n) for n, _ in net.named_parameters()), strict=True)
    assert list(depths) == sorted(depths) and depths[0] == 0
    last, total = net.get_layer_depth('head.fc.weight', 'backbone.')
    assert last == depths[-1] + 1 == total - 1 and set(totals) == {total}
    first = next(iter(net.state_dict()))
    assert net.get_layer_depth('backbone.' + first, 'backbone.') == (0, total)


def test_mmpretrain_lowers_the_learning_rate_of_early_layers():
    wrapper = dict(
        constructor='LearningRateDecayOptimWrapperConstructor',
        optimizer=dict(type='AdamW', lr=1.0, weight_decay=0.05),
        paramwise_cfg=dict(layer_decay_rate=0.5),
    )
    groups = build_optim_wrapper(classifier(0.5), wrapper).optimizer.param_groups
    rates = {group['param_name']: group['lr'] for group in groups}
    assert rates['head.layers.0.fc.weight'] == 1.0
    assert rates['backbone.conv_stem.weight'] == min(rates.values()) < 0.01


@pytest.mark.parametrize(
    'norm_cfg, kind',
    [(dict(type='GN', num_groups=2), nn.GroupNorm), (dict(type='SyncBN'), nn.SyncBatchNorm)],
)
@family
def test_other_norms_and_activations(name, norm_cfg, kind):
    net = backbone(name, norm_cfg=norm_cfg, act_cfg=dict(type='SiLU'), with_cp=True)
    assert any(isinstance(m, kind) for m in net.modules())
    assert any(isinstance(m, nn.SiLU) for m in net.modules())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in net.modules())


@family
def test_with_cp_changes_no_value(name):
    plain, frugal = (backbone(name, drop_path_rate=0.2, with_cp=cp) for cp in (False, True))
    frugal.load_state_dict(plain.state_dict())
    x, outputs = torch.randn(4, 3, 64, 64), []
    for net in (plain, frugal):
        torch.manual_seed(1)
        outputs.append(net(x))
        sum(m.square().mean() for m in outputs[-1]).backward()
    torch.testing.assert_close(outputs[0], outputs[1], rtol=0, atol=0)
    grads = [{n: p.grad for n, p in net.named_parameters()} for net in (plain, frugal)]
    torch.testing.assert_close(*grads, rtol=0, atol=0)


@family
@pytest.mark.parametrize('size, in_channels', [((1, 1), 1), ((97, 131), 4)])
def test_any_image_trains_every_parameter(name, size, in_channels):
    net = backbone(name, in_channels=in_channels)
    maps = net(torch.randn(2, in_channels, *size))
    assert [m.shape[1] for m in maps] == gp.out_channels(name, **SIZES[name])
    sum(m.square().mean() for m in maps).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


@family
def test_one_image_in_bfloat16_and_copies(name):
    net = backbone(name, norm_cfg=dict(type='BN', momentum=0.01))
    with torch.autocast('cpu', torch.bfloat16):
        sum(m.float().mean() for m in net(torch.randn(1, 3, 64, 64))).backward()
    assert all(p.grad.isfinite().all() for p in net.parameters())
    net, x = net.eval(), torch.randn(1, 3, 64, 64)
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        torch.testing.assert_close(twin(x), net(x), rtol=0, atol=0)


@family
@pytest.mark.parametrize('output_stride', [8, 16])
def test_dilated_features(name, output_stride):
    net = backbone(name, output_stride=output_stride, out_indices=(0, 1, 2, 3, 4)).eval()
    strides = [64 // m.shape[2] for m in net(torch.randn(1, 3, 64, 64))]
    assert strides == [min(s, output_stride) for s in (2, 4, 8, 16, 32)]


@pytest.mark.parametrize('out_indices', [(), (-1,), (6,), (2, 1), ('1',)])
@family
def test_out_indices_out_of_range(name, out_indices):
    with pytest.raises((ValueError, TypeError), match='out_indices'):
        backbone(name, out_indices=out_indices)


def test_init_cfg_loads_a_timm_file_and_rules_over_our_init(tmp_path):
    theirs = timm.create_model('ghostnet_050')
    torch.save(theirs.state_dict(), tmp_path / 'w.pth')
    net = backbone(init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'w.pth')))
    net.init_weights()
    own = theirs.state_dict()
    torch.testing.assert_close(net.conv_stem.weight, own['conv_stem.weight'], rtol=0, atol=0)
    net = backbone(init_cfg=dict(type='Constant', layer='Conv2d', val=0.25))
    net.init_weights()
    assert (net.conv_stem.weight == 0.25).all()


def authors_file(path, net, **more):
    """A state dict with the authors' names of the norms in branches, and thop's counters."""
    state = {k.replace('bn1', 'bn') if '_rpr_' in k else k: v for k, v in net.state_dict().items()}
    torch.save({'state_dict': {**state, 'total_ops': torch.zeros(1)}, **more}, path)
    return str(path)


@family
def test_the_frameworks_own_loader_takes_the_authors_files(name, tmp_path, caplog):
    theirs, ours = backbone(name), backbone(name)
    load_checkpoint(ours, authors_file(tmp_path / 'w.pth', theirs), strict=True)
    torch.testing.assert_close(dict(ours.state_dict()), dict(theirs.state_dict()), rtol=0, atol=0)
    grey = backbone(name, in_channels=1)
    load_checkpoint(grey, str(tmp_path / 'w.pth'), strict=True)
    first, weight = next(iter(theirs.named_parameters()))
    torch.testing.assert_close(grey.state_dict()[first], weight.detach().sum(1, keepdim=True))
    assert f'{first}: adapted to 1 input channels' in caplog.text


def test_init_cfg_prefers_averaged_weights_and_runs_no_code(tmp_path, capsys):
    theirs, averaged = backbone('GhostNetV3'), backbone('GhostNetV3')
    path = authors_file(tmp_path / 'w.pth', theirs, state_dict_ema=averaged.state_dict())
    cfg = dict(type='Pretrained', checkpoint=path)
    ours = backbone('GhostNetV3', init_cfg=[dict(type='Kaiming', layer='Conv2d'), cfg])
    ours.init_weights()
    torch.testing.assert_close(dict(ours.state_dict()), dict(averaged.state_dict()), rtol=0, atol=0)
    torch.save({'state_dict': Hostile()}, path)
    with pytest.raises(ValueError, match='not a checkpoint of plain tensors'):
        backbone(init_cfg=cfg).init_weights()
    assert 'owned' not in capsys.readouterr().out


@pytest.mark.parametrize(
    'init_cfg',
    [dict(type='Pretrained'), dict(checkpoint='x.pth'), [dict(type='Pretrained')], 'x.pth'],
)
def test_init_cfg_without_what_it_needs_is_named(init_cfg):
    with pytest.raises(ValueError, match=r'init_cfg wants a type .* got .*(Pretrained|x\.pth)'):
        backbone(init_cfg=init_cfg)


class Hostile:
    def __reduce__(self):
        return (print, ('owned',))


def test_conv_cfg_ghosts_a_whole_resnet():
    pytest.importorskip('mmdet')
    init_default_scope('mmdet')
    conv_cfg = dict(type='ghost_plugin.GhostConv2d', ratio=2)
    net = MODELS.build(dict(type='ResNet', depth=18, conv_cfg=conv_cfg))
    net.init_weights()
    ghosts = [m for m in net.modules() if isinstance(m, gp.GhostConv2d)]
    inner = {id(part) for ghost in ghosts for part in ghost.modules()}
    assert len(ghosts) == 20
    assert all(id(m) in inner for m in net.modules() if isinstance(m, nn.Conv2d))
    sum(m.mean() for m in net(torch.randn(2, 3, 64, 64))).backward()
