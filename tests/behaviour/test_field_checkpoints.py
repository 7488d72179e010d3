"""Checkpoints of other people's scripts: prefixes, wrappers, parts of models, numpy arrays."""

import pickle

import numpy as np
import pytest
import torch
from torch import nn

import ghost_plugin as gp
from ghost_plugin.conversion.restore import load_exactly
from ghost_plugin.utils import checkpoint_io, torch_compat


def build():
    """A network whose every tensor is its own."""
    net = gp.GhostNet(0.5)
    state = {
        name: torch.randn_like(value) if value.is_floating_point() else value
        for name, value in net.state_dict().items()
    }
    net.load_state_dict(state)
    return net


class Own(nn.Module):
    """A network of somebody's own around a backbone."""

    def __init__(self, name='encoder'):
        super().__init__()
        self.add_module(name, build())
        self.decoder = nn.Conv2d(80, 3, 1)


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = build(), build()


def prefixed(prefix, state):
    return {prefix + name: tensor for name, tensor in state.items()}


def assert_same(got, want):
    torch.testing.assert_close(dict(got), dict(want), rtol=0, atol=0)


PREFIXES = [
    'model.', 'net.', 'encoder.', 'student.', 'model.backbone.', 'backbone.timm_model.', 'body.',
    'graph_module.', 'module.', '_orig_mod.module.', 'somebodys.own.name.', '0.',
]  # fmt: skip


@pytest.mark.parametrize('prefix', PREFIXES)
def test_a_prefix_of_the_file_is_taken_away_and_told(prefix, tmp_path):
    state = build().state_dict()
    torch.save({'state_dict': prefixed(prefix, state)}, tmp_path / 'w.pth')
    net = build()
    report = gp.load_weights(net, tmp_path / 'w.pth')
    assert_same(net.state_dict(), state)
    assert (report.missing, report.unused, report.wrapper) == ((), (), 'state_dict')
    assert report.prefix in (prefix, prefix.replace('_orig_mod.', ''), '')
    other = build()
    load_exactly(other, tmp_path / 'w.pth')
    assert_same(other.state_dict(), state)


@pytest.mark.parametrize('build_v3', [{}, {'deploy': True}], ids=['branches', 'deployed'])
@pytest.mark.parametrize('prefix', ['', 'model.', 'a.b.'])
def test_other_forms_are_found_behind_a_prefix(prefix, build_v3):
    trained = gp.GhostNetV3(0.5).state_dict()
    report = gp.load_weights(gp.GhostNetV3(0.5, **build_v3), prefixed(prefix, trained))
    assert (report.missing, report.unused, report.prefix) == ((), (), prefix)


WRAPPERS = [
    'model_state_dict', 'net', 'network', 'params', 'params_ema', 'ema', 'teacher', 'student',
    'model_ema', 'state_dict_ema', 'best.model.weights',
]  # fmt: skip


@pytest.mark.parametrize('wrapper', WRAPPERS)
def test_a_wrapper_is_found_and_told(wrapper):
    state = build().state_dict()
    content = state
    for key in reversed(wrapper.split('.')):
        content = {key: content, 'epoch': 3, 'optimizer': {'state': {0: {'step': torch.ones(1)}}}}
    net = build()
    assert gp.load_weights(net, content).wrapper == wrapper
    assert_same(net.state_dict(), state)


@pytest.mark.parametrize(
    ('plain', 'averaged'),
    [
        ('model', 'ema'),
        ('params', 'params_ema'),
        ('state_dict', 'ema_state_dict'),
        ('net', 'model_ema'),
    ],
)
def test_averaged_weights_win(plain, averaged):
    state = build().state_dict()
    net = build()
    report = gp.load_weights(
        net, {plain: build().state_dict(), averaged: prefixed('module.', state)}
    )
    assert (report.wrapper, report.prefix) == (averaged, 'module.')
    assert_same(net.state_dict(), state)


def test_averages_of_parameters_only_are_no_network():
    net = build()
    content = {'model': net.state_dict(), 'ema': dict(build().named_parameters())}
    assert gp.load_weights(build(), content).wrapper == 'model'


@pytest.mark.parametrize('name', ['encoder', 'backbone', 'visual'])
@pytest.mark.parametrize('prefix', ['', 'net.'])
def test_a_backbone_inside_another_model(name, prefix, caplog):
    state, model = build().state_dict(), Own(name)
    decoder = model.decoder.weight.clone()
    with caplog.at_level('INFO', logger='ghost_plugin.weights'):
        report = gp.load_weights(model, prefixed(prefix, state))
    assert (report.missing, report.unused) == ((), ())
    assert (report.prefix, report.submodule) == (prefix, name)
    assert_same(getattr(model, name).state_dict(), state)
    assert torch.equal(model.decoder.weight, decoder)
    assert repr(name) in caplog.text
    missing = {name: tensor for name, tensor in state.items() if 'blocks.3' not in name}
    with pytest.raises(ValueError, match=f"{name}.blocks.3.*into '{name}' of the model"):
        gp.load_weights(Own(name), missing)


AMBIGUOUS = {
    'in one state dict': (
        build,
        lambda: {**prefixed('student.', build().state_dict()),
                 **prefixed('teacher.', build().state_dict())},
        ("'student.'", "'teacher.'"),
    ),
    'in two mappings': (
        build,
        lambda: {'student': build().state_dict(), 'teacher': build().state_dict()},
        ("'student'", "'teacher'"),
    ),
    'in the model': (Two, lambda: build().state_dict(), ("'left'", "'right'")),
}  # fmt: skip


@pytest.mark.parametrize('case', AMBIGUOUS)
@pytest.mark.parametrize('strict', [True, False])
def test_ambiguity_is_an_error_that_names_the_candidates(case, strict):
    make, source, names = AMBIGUOUS[case]
    model = make()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match='several networks fit equally well') as error:
        gp.load_weights(model, source(), strict=strict)
    assert all(name in str(error.value) for name in names)
    assert_same(model.state_dict(), before)


def test_what_is_exact_or_fits_better_is_not_ambiguous():
    state, net = build().state_dict(), build()
    wide = gp.GhostNet(1.0).state_dict()
    gp.load_weights(net, {**prefixed('teacher.', wide), **prefixed('student.', state)})
    assert_same(net.state_dict(), state)
    net = build()
    gp.load_weights(net, {**state, **prefixed('ema_model.', build().state_dict())})
    assert_same(net.state_dict(), state)
    two = Two()
    gp.load_weights(two, Two().state_dict())
    with pytest.raises(ValueError, match=r'right\.conv_stem\.weight is not there'):
        gp.load_weights(two, prefixed('left.', state))


def test_errors_name_the_real_reason():
    with pytest.raises(ValueError, match=r"is \(16, .*begin with 'net\.'.*check variant and width"):
        gp.load_weights(build(), prefixed('net.', gp.GhostNet(1.0).state_dict()))
    with pytest.raises(ValueError, match=r'there head\.weight, here conv_stem\.weight') as error:
        gp.load_weights(build(), {'head.weight': torch.zeros(3)})
    assert 'check variant' not in str(error.value)
    part = {k: v for k, v in build().state_dict().items() if k.startswith('blocks.0')}
    with pytest.raises(ValueError, match='tensors of the model do not come'):
        gp.load_weights(build(), prefixed('net.', part))


ARRAYS = {
    'float32': np.arange(6, dtype='<f4').reshape(2, 3),
    'big-endian': np.arange(6, dtype='>f8').reshape(2, 3),
    'float16': np.ones(3, 'f2'),
    'fortran': np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    'strided': np.arange(12.0)[::2],
    'int64': np.arange(3),
    'bool': np.array([True, False]),
    'scalar': np.float32(3),
    'no axis': np.array(4),
    'empty': np.zeros((0, 3), 'f4'),
}


@pytest.fixture(params=['pickle 2', 'pickle 4', 'pickle 5', 'npz', 'torch', 'old torch'])
def write(request, tmp_path):
    """A function that writes a mapping in one of the formats and gives its path."""

    def write_file(content):
        path = tmp_path / 'w'
        if request.param == 'npz':
            path = path.with_suffix('.npz')
            np.savez(path, **content)
        elif 'torch' in request.param:
            torch.save(content, path, _use_new_zipfile_serialization='old' not in request.param)
        else:
            path = path.with_suffix('.pdparams')
            path.write_bytes(pickle.dumps(content, protocol=int(request.param[-1])))
        return path

    return write_file


@pytest.mark.parametrize('lists', [True, False])
def test_arrays_of_every_kind_are_read(write, lists, monkeypatch):
    monkeypatch.setattr(torch_compat, 'LISTS_NAMES', lists and torch_compat.LISTS_NAMES)
    for content in (checkpoint_io.read(write(ARRAYS)), checkpoint_io.as_tensors(ARRAYS)):
        for name, array in ARRAYS.items():
            got = content[name]
            assert isinstance(got, torch.Tensor), name
            assert got.shape == np.shape(array)
            assert (got.double().numpy() == np.asarray(array, 'f8')).all(), name


def test_bfloat16_arrays_are_read(write):
    ml_dtypes = pytest.importorskip('ml_dtypes')
    array = np.arange(4).astype(ml_dtypes.bfloat16)
    for content in (
        checkpoint_io.read(write({'a': array})),
        checkpoint_io.as_tensors({'a': array}),
    ):
        assert content['a'].dtype == torch.bfloat16
        assert content['a'].tolist() == [0, 1, 2, 3]


def test_state_dicts_of_arrays_load(write):
    state = build().state_dict()
    arrays = {f'net.{name}': tensor.numpy() for name, tensor in state.items()}
    for source in (arrays, write(arrays)):
        net = build()
        assert gp.load_weights(net, source).prefix == 'net.'
        assert_same(net.state_dict(), state)


def test_arrays_of_unknown_numbers_are_refused():
    with pytest.raises(ValueError, match=r"'m\.a' is an array of dtype .*float32.*astype"):
        gp.load_weights(build(), {'m': {'a': np.zeros(2, np.complex64)}})
    words = {'words': np.array(['a', 'b']), 'things': np.array([{}, None], dtype=object)}
    state = build().state_dict()
    assert gp.load_weights(build(), {**state, **words}).missing == ()


class Hostile:
    def __reduce__(self):
        return (print, ('owned',))


@pytest.mark.parametrize('protocol', [2, 4, 5])
def test_pickles_run_nothing(protocol, tmp_path, capsys):
    hostile = [{'a': Hostile()}, {'a': np.array([Hostile()], dtype=object)}, Hostile()]
    for content in hostile:
        path = tmp_path / 'w.pdparams'
        path.write_bytes(pickle.dumps(content, protocol=protocol))
        with pytest.raises(ValueError, match=r'loading it would run builtins\.print'):
            gp.load_weights(build(), path)
    path.write_bytes(pickle.dumps(ARRAYS, protocol=protocol)[:-9])
    with pytest.raises(ValueError, match='damaged'):
        gp.load_weights(build(), path)
    assert 'owned' not in capsys.readouterr().out
