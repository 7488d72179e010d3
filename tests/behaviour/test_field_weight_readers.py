"""Functions that go by class names or read ``.weight`` are told what to do with a Ghost conv."""

import copy
import logging
import pickle

import pytest
import torch
from torch import nn

import ghost_plugin as gp


@pytest.fixture
def converted():
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.Conv2d(16, 4, 1))
    return gp.convert(net, torch.randn(1, 3, 16, 16))[0]


def dcgan(module):
    if 'Conv' in type(module).__name__:
        nn.init.normal_(module.weight.data, 0.0, 0.02)


def biases(module):
    if type(module).__name__.find('Conv') != -1:
        module.bias.data.zero_()


def afresh(module):
    if type(module).__name__.endswith('Conv2d'):
        module.reset_parameters()


def decay(module):
    return [module.weight] if 'Conv2d' in str(type(module)) else []


@pytest.mark.parametrize('function', [dcgan, biases, afresh, decay])
def test_who_goes_by_class_names_is_told_the_conv_the_cause_and_the_cure(converted, function):
    with pytest.raises(AttributeError) as caught:
        converted.apply(function)
    said = str(caught.value)
    for part in ("'2'", 'class names', 'isinstance(m, nn.Conv2d)', 'init_weights', 'weight decay'):
        assert part in said


def test_weight_norm_and_norms_folded_on_the_fly_are_told_too(converted):
    with pytest.raises(AttributeError, match=r'spectral and weight norm.*efficient_conv_bn_eval'):
        nn.utils.weight_norm(converted[2])
    with pytest.raises(AttributeError, match='a Ghost conv has no weight of its own'):
        gp.GhostConv2d(4, 8, 3).weight  # noqa: B018


@pytest.mark.parametrize('name', ['weight', 'bias', 'reset_parameters'])
def test_a_ghost_conv_has_none_for_those_who_ask_first(converted, name):
    for module in (converted[2], copy.deepcopy(converted)[2], gp.GhostConv2d(4, 8, 3)):
        assert not hasattr(module, name)
        assert getattr(module, name, None) is None


def test_the_cure_finds_the_convs_inside(converted):
    converted.apply(lambda m: nn.init.zeros_(m.weight) if isinstance(m, nn.Conv2d) else None)
    assert not any(p.any() for n, p in converted.named_parameters() if n.endswith('weight'))


def test_copies_pickles_traces_and_scripts_work(converted):
    x = torch.randn(2, 3, 12, 12)
    twins = copy.deepcopy(converted), pickle.loads(pickle.dumps(converted))
    for twin in (*twins, torch.fx.symbolic_trace(converted), torch.jit.script(converted)):
        torch.testing.assert_close(twin(x), converted(x))
    assert twins[0][2].dense_name == twins[1][2].dense_name == '2'


def head(init):
    """A converted model of MMEngine that sets its last conv in ``init_weights``."""
    model = pytest.importorskip('mmengine.model')
    pytest.importorskip('mmcv')
    from mmengine.registry import MODELS

    class Net(model.BaseModel):
        def __init__(self, init_cfg=None):
            super().__init__(init_cfg=init_cfg)
            self.stem, self.cls = nn.Conv2d(3, 32, 3), nn.Conv2d(32, 20, 3)

        def forward(self, inputs, data_samples=None, mode='tensor'):
            return self.cls(self.stem(inputs))

        def init_weights(self):
            super().init_weights()
            init(self.cls)

    net = MODELS.build(dict(type='ghost_plugin.Converted', model=dict(type=Net), size=16,
                            plan=dict(include='cls', ratio=2.5)))  # fmt: skip
    net._dump_init_info = lambda *names: None
    assert type(net) is Net and isinstance(net.cls, gp.GhostConv2d)
    return net


def by_function(conv):
    from mmengine.model import normal_init

    normal_init(conv, std=0.01, bias=-4.6)


def by_hand(conv):
    conv.weight.data.normal_(0, 0.01)
    conv.bias.data.fill_(-4.6)


def by_view(conv):
    conv.reset_parameters()
    with torch.no_grad():
        conv.weight.mul_(0.01)
        conv.bias.view(4, 5)[:] = -4.6


INITS = pytest.mark.parametrize('init', [by_function, by_hand, by_view])


@INITS
def test_what_init_weights_sets_of_a_dense_conv_the_ghost_conv_gets(init):
    net = copy.deepcopy(head(init))
    net.init_weights()
    assert isinstance(net.cls, gp.GhostConv2d) and not hasattr(net.cls, 'weight')
    maps = net.cls(torch.zeros(1, 32, 9, 9))[0, :, 3, 3]
    torch.testing.assert_close(maps, torch.full((20,), -4.6))
    assert 0 < net.cls.primary_conv.weight.std() < 0.02
    assert net.cls.cheap_operation.weight.std() > 0.05


@INITS
def test_a_checkpoint_that_is_loaded_meanwhile_has_the_last_word(init, tmp_path):
    dense = {'stem': nn.Conv2d(3, 32, 3), 'cls': nn.Conv2d(32, 20, 3)}
    state = {f'{name}.{n}': t for name, conv in dense.items() for n, t in conv.state_dict().items()}
    torch.save(state, tmp_path / 'dense.pth')
    net = head(lambda conv: None)

    class Loads(type(net)):
        def init_weights(self):
            init(self.cls)
            super().init_weights()

    net.__class__ = Loads
    net.init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'dense.pth'))
    net.init_weights()
    firsts = net.cls.order < net.cls.primary_conv.out_channels
    x = torch.randn(1, 32, 9, 9)
    torch.testing.assert_close(net.cls(x)[:, firsts], dense['cls'](x)[:, firsts])


def test_inherited_weights_that_a_runner_would_replace_are_said(caplog):
    model = pytest.importorskip('mmengine.model')

    class Net(model.BaseModule):
        def __init__(self):
            super().__init__()
            self.stem, self.body = nn.Conv2d(3, 32, 3), nn.Conv2d(32, 32, 3)

        def forward(self, x):
            return self.body(self.stem(x))

    x = torch.randn(1, 3, 9, 9)
    said = 'init_weights of this Net was not called yet'
    for ready in (False, True):
        caplog.clear()
        net = Net()
        net.is_init = ready
        with caplog.at_level(logging.WARNING):
            gp.convert(net, x, keep_last=False)
            assert (said in caplog.text) is not ready
            caplog.clear()
            gp.convert(net, x, keep_last=False, inherit=False)
            assert said not in caplog.text
