import dataclasses
import json
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

import ghost_plugin as gp
from ghost_plugin.deploy import optimizing
from ghost_plugin.deploy.backends import BACKENDS, Backend
from ghost_plugin.utils import optional

SLOW = ('compiled', 'int8', 'aot')
FAST = [
    name
    for name, row in BACKENDS.items()
    if row.device != 'cuda' and not any(word in name for word in SLOW)
]


class Nested(nn.Module):
    """Takes a keyword that is no tensor, gives a mapping with more than tensors."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, image, scale=1.0):
        return {'logits': self.model(image) * scale, 'kind': 'plain', 'parts': (image.mean(),)}


@pytest.mark.parametrize('backend', FAST)
def test_every_backend_gives_what_the_model_gives_at_other_sizes_too(backend, converted):
    if not optional.usable(*BACKENDS[backend].needs):
        pytest.skip(f'needs {BACKENDS[backend].needs}')
    fast = gp.optimize(converted, torch.randn(1, 3, 32, 32), backend, rounds=1)
    assert fast.backend == backend
    assert {trial.backend for trial in fast.report.trials} == {'eager', backend}
    tolerance = 1e-4 if BACKENDS[backend].dtype == 'float32' else 0.1
    for size in ((1, 3, 32, 32), (3, 3, 41, 27)):
        x = torch.randn(size)
        want = converted(x)
        got = fast(x)
        assert (got - want).abs().max() <= tolerance * want.abs().max()
        nn.Linear(got.shape[1], 1)(got).sum().backward()  # a head that learns from its outputs


def test_nested_inputs_and_outputs(converted):
    model = Nested(converted).eval()
    fast = gp.optimize(model, {'image': torch.randn(1, 3, 16, 16), 'scale': 2.0}, 'fused', rounds=1)
    x = torch.randn(2, 3, 16, 16)
    got, want = fast(image=x, scale=2.0), model(x, 2.0)
    assert got['kind'] == 'plain'
    torch.testing.assert_close(got['logits'], want['logits'], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(got['parts'], want['parts'])


@dataclasses.dataclass(frozen=True)
class Out:
    maps: torch.Tensor
    others: dict
    kind: str = 'plain'

    def __post_init__(self):
        assert self.maps is not None


class Named(OrderedDict):
    """As the outputs of some libraries."""


class Odd:
    def __init__(self, maps):
        self.maps = maps


class Giving(nn.Module):
    """Gives what a function makes of it."""

    def __init__(self, make):
        super().__init__()
        self.make = make

    def forward(self, x):
        return self.make(2 * x)


@pytest.mark.parametrize('backend', ['fused', 'onnxruntime'])
def test_outputs_may_be_dataclasses_and_kinds_of_dict(backend):
    if not optional.usable(*BACKENDS[backend].needs):
        pytest.skip(f'needs {BACKENDS[backend].needs}')
    model = Giving(lambda y: Out(y, Named(sum=(y.sum(), y.shape[2]), out=Out(y + 1, {}))))
    fast = gp.optimize(model.eval(), torch.randn(1, 3, 4, 4), backend, rounds=1)
    x = torch.randn(2, 3, 4, 4)
    got, want = fast(x), model(x)
    assert (type(got), type(got.others), got.kind) == (Out, Named, 'plain')
    torch.testing.assert_close(got.maps, want.maps)
    torch.testing.assert_close(got.others['sum'], want.others['sum'])
    torch.testing.assert_close(got.others['out'].maps, want.others['out'].maps)


@pytest.mark.parametrize('make', [Odd, lambda y: {'maps': y, 'odd': Odd(y)}, lambda y: [5]])
def test_outputs_that_nothing_can_be_compared_of_are_refused(make, tmp_path):
    model, x = Giving(make).eval(), torch.randn(1, 3, 4, 4)
    calls = [
        lambda: gp.optimize(model, x, 'fused', rounds=1),
        lambda: gp.export(model, x, tmp_path / 'net.pt'),
    ]
    for call in calls:
        with pytest.raises(TypeError, match=r'outputs must be tensors.*; got (Odd|list)'):
            call()
    assert not list(tmp_path.iterdir())


def test_another_number_of_outputs_is_named():
    model = Giving(lambda y: list(y)).eval()
    fast = gp.optimize(model, torch.randn(2, 3), 'fused', rounds=1)
    with pytest.raises(
        ValueError,
        match=r'Giving returns 3 outputs for inputs of shape \[\(3, 3\)\], but 2 for the',
    ):
        fast(torch.randn(3, 3))


@pytest.mark.parametrize('make', [torch.rand_like, lambda y: y * float('nan')])
@pytest.mark.parametrize('backend', ['auto', 'fused'])
def test_a_model_that_nothing_compares_with_is_refused(backend, make):
    with pytest.raises(ValueError, match=r'compared with Giving: called twice .* it differs by'):
        gp.optimize(Giving(make).eval(), torch.randn(2, 3), backend, rounds=1)


@pytest.mark.parametrize('backend', ['fused', 'onnxruntime', 'openvino'])
def test_threads_get_their_own_answers(backend, converted):
    if not optional.usable(*BACKENDS[backend].needs):
        pytest.skip(f'needs {BACKENDS[backend].needs}')
    fast = gp.optimize(converted, torch.randn(1, 3, 32, 32), backend, rounds=1)
    pictures = [torch.randn(1, 3, 32 + 8 * (i % 2), 32) for i in range(8)]
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(fast, pictures * 10))
    for answer, picture in zip(answers, pictures * 10, strict=True):
        torch.testing.assert_close(answer, converted(picture), rtol=1e-3, atol=1e-4)


def _rows(monkeypatch, *rows):
    rows = (BACKENDS['eager'], *rows)
    monkeypatch.setattr(optimizing, 'ROWS', rows)
    monkeypatch.setattr(optimizing, 'BACKENDS', {row.name: row for row in rows})


def test_what_fails_differs_or_is_missing_is_left_out_and_named(monkeypatch, residual):
    def broken(variants):
        raise RuntimeError('no such machine')

    _rows(
        monkeypatch,
        Backend('wrong', 'float32', lambda variants: lambda x: [2 * variants.plain(*x)[0]]),
        Backend('broken', 'float32', broken),
        Backend('absent', 'float32', broken, ('no_such_package',)),
        Backend('narrow', 'bfloat16', broken),
    )
    fast = gp.optimize(residual, torch.randn(1, 3, 16, 16), rounds=2)
    report = fast.report
    assert (fast.backend, report.chosen) == ('eager', 'eager')
    assert 'differs by 1.0e+00 (relative), allowed is 0.0001' in report['wrong'].reason
    assert report['broken'].reason == 'RuntimeError: no such machine'
    assert report['absent'].reason == 'no_such_package is not installed'
    assert [trial.backend for trial in report.trials] == ['eager', 'wrong', 'broken', 'absent']
    assert report.table().count('\n') == 5
    json.dumps(report.as_dict())
    with pytest.raises(ImportError, match='no_such_package is not installed'):
        gp.optimize(residual, torch.randn(1, 3, 16, 16), 'absent')
    with pytest.raises(ValueError, match='no such machine'):
        gp.optimize(residual, torch.randn(1, 3, 16, 16), 'broken')


@pytest.mark.parametrize(
    ('options', 'said'),
    [
        ({'backend': 'tpu'}, r"backend must be one of \['auto', .*got 'tpu'"),
        ({'backend': 'torchscript'}, "'torchscript' was removed; use 'aot' or 'compiled'"),
        ({'backend': 'openvino-split'}, "removed; use 'openvino' with split_concat=True"),
        ({'split_concat': 'maybe'}, "split_concat must be 'auto', True or False, got 'maybe'"),
        ({'backend': 'fused', 'split_concat': True}, "works for .*, got backend 'fused'"),
        ({'dtypes': ('float16',)}, r"dtypes must be some of .*got \('float16',\)"),
        ({'dtypes': ('int8',)}, 'need calibration='),
        ({'rounds': 0}, 'rounds must be .*got 0'),
    ],
)
def test_wrong_options_are_named(options, said, residual):
    with pytest.raises(ValueError, match=said):
        gp.optimize(residual, torch.randn(1, 3, 16, 16), **options)
    with pytest.raises(ValueError, match='training mode'):
        gp.optimize(residual.train(), torch.randn(1, 3, 16, 16))


@pytest.mark.slow
@pytest.mark.parametrize('backend', ['compiled', 'compiled-bf16'])
def test_compiled_forms_pack_their_weights_at_every_shape(backend, converted):
    counters.clear()
    fast = gp.optimize(converted, torch.randn(1, 3, 32, 32), backend, rounds=1)
    for shape in ((1, 3, 32, 32), (2, 3, 32, 32), (1, 3, 32, 32)):
        x = torch.randn(shape)
        want = converted(x)
        assert (fast(x) - want).abs().max() <= 0.1 * want.abs().max()
    if torch.backends.mkldnn.is_available():
        convs = sum(isinstance(m, nn.Conv2d) for m in gp.fuse(converted).modules())
        packed = counters['inductor']['mkldnn_conv_weight_pack_matcher_count']
        assert packed >= 2 * convs, 'not frozen'
