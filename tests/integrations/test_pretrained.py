"""Models as folders: built again bit by bit, also in a new process, and nothing is executed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import ghost_plugin as gp

pytest.importorskip('safetensors')
timm = pytest.importorskip('timm')

from helpers.timm_nets import every, make


def image(size=64):
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


def own_net(width=4):
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU())


def pruned(net):
    tp = pytest.importorskip('torch_pruning')
    from ghost_plugin.integrations import torch_pruning

    pruner = tp.pruner.MagnitudePruner(
        net,
        image(),
        importance=tp.importance.MagnitudeImportance(),
        pruning_ratio=0.3,
        **torch_pruning.pruner_kwargs(net),
    )
    pruner.step()
    return net


def converted(name='resnet18', **options):
    net = timm.create_model(name, num_classes=5).eval()
    return gp.convert(net, image()[:1], **options)[0]


MODELS = {
    'plain': lambda: timm.create_model('resnet18', num_classes=5),
    'width': lambda: timm.create_model('ghostnet_plugin', width=0.35, num_classes=2, in_chans=3),
    'converted': lambda: converted(group_size=4),
    'converted with gates': lambda: converted('mobilenetv3_small_050'),
    'converted, fused': lambda: gp.fuse(converted(), image()[:1]),
    'branches': lambda: timm.create_model('ghostnet_plugin_v3_050', width=0.35),
    'branches, fused': lambda: gp.fuse(timm.create_model('ghostnet_plugin_rep_050').eval()),
    'pruned': lambda: pruned(timm.create_model('ghostnet_plugin_050').eval()),
    'fused, pruned': lambda: pruned(gp.fuse(timm.create_model('ghostnet_plugin_050').eval())),
    'pruned, converted': lambda: gp.convert(
        pruned(timm.create_model('resnet18').eval()), image()[:1]
    )[0],
}
LOAD = """
import sys, torch, ghost_plugin as gp
x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
for folder in sys.argv[1:]:
    model = gp.from_pretrained(folder)
    with torch.no_grad():
        torch.save(model(x), folder + '/outputs.pt')
"""


def test_a_new_process_builds_the_same_models(tmp_path, randomise_norms):
    wanted = {}
    for name, build in MODELS.items():
        net = randomise_norms(build())
        gp.save_pretrained(net, tmp_path / name)
        with torch.no_grad():
            wanted[name] = net.eval()(image())
    folders = [str(tmp_path / name) for name in MODELS]
    root = Path(gp.__file__).parents[1]
    subprocess.run([sys.executable, '-c', LOAD, *folders], check=True, cwd=root)
    for name, want in wanted.items():
        assert torch.equal(torch.load(tmp_path / name / 'outputs.pt'), want), name


@every
def test_timm_reads_the_folder_of_its_own_models(name, tmp_path):
    net = make(name, num_classes=3).eval()
    gp.save_pretrained(net, tmp_path)
    theirs = timm.create_model(f'local-dir:{tmp_path}', pretrained=True).eval()
    with torch.no_grad():
        assert torch.equal(theirs(image()), net(image()))


@pytest.mark.parametrize('width', [0.35, 0.7])
def test_timm_reads_the_folder_of_an_own_width(width, tmp_path):
    net = timm.create_model('ghostnet_plugin', width=width, drop_path_rate=0.1).eval()
    gp.save_pretrained(net, tmp_path)
    theirs = timm.create_model(f'local-dir:{tmp_path}', pretrained=True).eval()
    with torch.no_grad():
        assert torch.equal(theirs(image()), net(image()))
    assert gp.from_pretrained(tmp_path).blocks[3][0].drop_path.rate > 0


def test_torchvision_and_own_builders(tmp_path):
    models = pytest.importorskip('torchvision').models
    net, plan = gp.convert(models.resnet18(num_classes=3).eval(), image()[:1])
    saved = {'builder': 'torchvision:resnet18', 'arguments': {'num_classes': 3}}
    gp.save_pretrained(net, tmp_path / 'theirs', plan=plan, **saved)
    with torch.no_grad():
        assert torch.equal(gp.from_pretrained(tmp_path / 'theirs')(image()), net(image()))
    assert gp.ConversionPlan.load(tmp_path / 'theirs' / 'plan.json') == plan
    builder = 'integrations.test_pretrained:own_net'
    sys.modules.setdefault('integrations.test_pretrained', sys.modules[__name__])
    net = own_net(8).eval()
    gp.save_pretrained(net, tmp_path / 'own', builder=builder, arguments={'width': 8})
    with pytest.raises(ValueError, match=r'from_pretrained\(folder, trusted=True\)'):
        gp.from_pretrained(tmp_path / 'own')
    with torch.no_grad():
        assert torch.equal(
            gp.from_pretrained(tmp_path / 'own', trusted=True)(image()), net(image())
        )


def test_tensors_that_are_plain_attributes_come_back(tmp_path):
    net = timm.create_model('ghostnet_plugin_050', num_classes=2).eval()
    net.blocks.anchors, net.blocks.size = torch.arange(3.0), torch.Size([3, 4])
    gp.save_pretrained(net, tmp_path)
    again = gp.from_pretrained(tmp_path).blocks
    assert torch.equal(again.anchors, net.blocks.anchors)
    assert again.size == (3, 4)


def test_classifier_of_openmmlab(tmp_path):
    pytest.importorskip('mmpretrain')
    from mmengine.registry import MODELS as REGISTRY
    from mmengine.registry import init_default_scope

    config = dict(
        type='ImageClassifier',
        backbone=dict(type='ghost_plugin.GhostNet', width=0.5, out_indices=(5,)),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=4, in_channels=480),
    )
    init_default_scope('mmpretrain')
    net = REGISTRY.build(config)
    net.eval()
    net = gp.fuse(net)
    arguments = {**config, 'default_scope': 'mmpretrain'}
    gp.save_pretrained(net, tmp_path, builder='openmmlab', arguments=arguments)
    again = gp.from_pretrained(tmp_path, trusted=True)
    with torch.no_grad():
        assert torch.equal(again(image()), net(image()))


def test_the_card_holds_measured_integers(tmp_path):
    net = timm.create_model('ghostnet_plugin_050').eval()
    gp.save_pretrained(net, tmp_path, accuracy={'top-1 (%)': 66.0}, license='apache-2.0')
    card = (tmp_path / 'README.md').read_text()
    assert '| Saved model | 2,587,292 | 42,328,152 | 0 |' in card
    assert '- top-1 (%): 66' in card
    assert 'license: "apache-2.0"' in card


def test_the_hub_gets_the_folder(tmp_path, monkeypatch):
    hub = pytest.importorskip('huggingface_hub')
    calls = []
    monkeypatch.setattr(hub.HfApi, 'create_repo', lambda self, *a, **k: calls.append((a, k)))
    monkeypatch.setattr(hub.HfApi, 'upload_folder', lambda self, **k: calls.append(k))
    net = timm.create_model('ghostnet_plugin_050', num_classes=2).eval()
    gp.save_pretrained(net, tmp_path, push_to_hub='me/mine')
    assert calls[-1] == {'repo_id': 'me/mine', 'folder_path': tmp_path}
    monkeypatch.setattr(hub, 'snapshot_download', lambda name: str(tmp_path))
    with torch.no_grad():
        assert torch.equal(gp.from_pretrained('hf-hub:me/mine')(image()), net(image()))


def test_what_cannot_be_built_again_is_refused_and_nothing_is_written(tmp_path):
    with pytest.raises(ValueError, match='give builder='):
        gp.save_pretrained(own_net(), tmp_path / 'new')
    with pytest.raises(ValueError, match='builds a ResNet, and the model is a Sequential'):
        gp.save_pretrained(own_net(), tmp_path / 'new', builder='timm:resnet18')
    net = timm.create_model('resnet18').eval()
    nn.utils.parametrize.register_parametrization(net.conv1, 'weight', nn.Identity())
    with pytest.raises(ValueError, match=r'made at run time.*remove_parametrizations'):
        gp.save_pretrained(net, tmp_path / 'new')
    net = timm.create_model('resnet18').eval()
    net.mine = object()
    with pytest.raises(ValueError, match="attribute 'mine' is a object"):
        gp.save_pretrained(net, tmp_path / 'new')
    assert not (tmp_path / 'new').exists()


def test_an_older_folder_stays_when_saving_fails(tmp_path, monkeypatch):
    net = timm.create_model('ghostnet_plugin_050', num_classes=2).eval()
    gp.save_pretrained(net, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fail(*args, **kwargs):
        raise OSError('no space left')

    monkeypatch.setattr('safetensors.torch.save_file', fail)
    with pytest.raises(OSError, match='no space'):
        gp.save_pretrained(timm.create_model('ghostnet_plugin_050', num_classes=3), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'class': 'os:system'}, 'may appear in this model'),
        ({'class': 'torch.nn:functional'}, 'is no name of a class'),
        ({'class': 'torch.nn.modules.linear:math.sqrt'}, 'is no name of a class'),
        ({'class': 'torch.serialization:load'}, 'is no class of modules'),
        ({'attributes': {'forward': {'function': 'ghost_plugin.utils.checkpoint_io:save'}}},
         'cannot be an attribute'),
        ({'attributes': {'_modules': 3}}, 'may set'),
        ({'attributes': {'__class__': 3}}, 'may set'),
        ({'attributes': {'x': {'dataclass': 'subprocess:Popen'}}}, 'may appear'),
    ],
)  # fmt: skip
def test_a_hostile_folder_runs_nothing(change, message, tmp_path):
    gp.save_pretrained(timm.create_model('ghostnet_plugin_050', num_classes=2).eval(), tmp_path)
    content = json.loads((tmp_path / 'config.json').read_text())
    content['ghost_plugin']['changes'] = [{'name': 'classifier', **change}]
    (tmp_path / 'config.json').write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        gp.from_pretrained(tmp_path)


@pytest.mark.parametrize('builder', ['os:system', 'openmmlab', 'subprocess:run'])
def test_builders_that_run_code_want_trust(builder, tmp_path):
    gp.save_pretrained(timm.create_model('ghostnet_plugin_050', num_classes=2).eval(), tmp_path)
    content = json.loads((tmp_path / 'config.json').read_text())
    content['ghost_plugin'] |= {'builder': builder, 'arguments': {'command': 'echo'}}
    (tmp_path / 'config.json').write_text(json.dumps(content))
    with pytest.raises(ValueError, match='which can run any code'):
        gp.from_pretrained(tmp_path)


def test_folders_of_others_say_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match='save_pretrained wrote'):
        gp.from_pretrained(tmp_path)
    gp.save_pretrained(timm.create_model('ghostnet_plugin_050', num_classes=2).eval(), tmp_path)
    (tmp_path / 'config.json').write_text('{"architecture": "resnet18"}')
    with pytest.raises(ValueError, match='local-dir:FOLDER'):
        gp.from_pretrained(tmp_path)
