"""Whatever this package computes about a model is in full precision, with autocast on or off."""

from contextlib import ExitStack

import pytest
import torch
from torch import nn

import ghost_plugin as gp
from ghost_plugin.utils.torch_compat import autocasts, full_precision


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 16, 3, padding=1, stride=2), nn.BatchNorm2d(16), nn.ReLU(True)),
        nn.Conv2d(16, 8, 1),
    ).eval()


@pytest.fixture
def x():
    return torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(1))


AROUND = {
    'bfloat16': lambda: (torch.autocast('cpu', torch.bfloat16),),
    'float16': lambda: (torch.autocast('cpu', torch.float16),),
    'nested': lambda: (torch.autocast('cpu', torch.bfloat16), torch.autocast('cpu', torch.half)),
    'no_grad': lambda: (torch.autocast('cpu', torch.bfloat16), torch.no_grad()),
    'inference_mode': lambda: (torch.inference_mode(), torch.autocast('cpu', torch.bfloat16)),
}
WORK = {
    'plan': lambda model, x: gp.plan(model, x, macs=0.7).as_dict(),
    'without images': lambda model, x: gp.convert(model, x)[0],
    'images': lambda model, x: gp.convert(model, x, calibration=[x])[0],
    'budget': lambda model, x: gp.convert(model, x, macs=0.7, calibration=[x])[0],
    'layer': lambda model, x: gp.convert(model, x, calibration=[x], reconstruct='layer', steps=5)[
        0
    ],
    'block': lambda model, x: gp.convert(model, x, calibration=[x], reconstruct='block', steps=5)[
        0
    ],
    'fuse': lambda model, x: gp.fuse(model, x),
    'count': lambda model, x: gp.count(model, x).as_dict(),
}


def state(made):
    return made.state_dict() if isinstance(made, nn.Module) else made


@pytest.mark.parametrize('work', WORK)
@pytest.mark.parametrize('around', AROUND)
def test_the_same_comes_out(around, work, x):
    wanted = WORK[work](net(), x)
    model = net()
    with ExitStack() as stack:
        for context in AROUND[around]():
            stack.enter_context(context)
        got = WORK[work](model, x)
    if isinstance(wanted, dict):
        assert got == wanted
    else:
        torch.testing.assert_close(state(got), state(wanted), rtol=0, atol=0)
        assert all(p.dtype == torch.float32 for p in got.parameters())
    if work == 'fuse':
        assert got.folding == wanted.folding


def test_as_a_decorator_and_by_a_plan_of_before(x):
    plan = gp.plan(net(), x)
    wanted = plan.apply(net(), calibration=[x])

    @torch.autocast('cpu', dtype=torch.bfloat16)
    def apply():
        return plan.apply(net(), calibration=[x])

    torch.testing.assert_close(apply().state_dict(), wanted.state_dict(), rtol=0, atol=0)


def test_autocast_goes_on_afterwards_and_after_errors(x):
    model = net()
    with torch.autocast('cpu', torch.bfloat16):
        gp.convert(model, x)
        with pytest.raises(ValueError, match='macs'):
            gp.plan(model, x, macs=1e-9)
        assert autocasts() == ['cpu'] and model(x).dtype == torch.bfloat16
        with full_precision():
            assert not autocasts() and model(x).dtype == torch.float32
    assert not autocasts()


def test_dense_weights_load_into_a_converted_network(x):
    dense, (converted, _) = net().state_dict(), gp.convert(net(), x)
    converted.load_state_dict(dict(dense))
    wanted = {name: tensor.clone() for name, tensor in converted.state_dict().items()}
    with torch.autocast('cpu', torch.bfloat16):
        converted.load_state_dict(dict(dense))
    torch.testing.assert_close(dict(converted.state_dict()), wanted, rtol=0, atol=0)


class Inner(nn.Module):
    """A network that runs its layers in autocast itself."""

    def __init__(self):
        super().__init__()
        self.net = net()

    def forward(self, x):
        with torch.autocast('cpu', torch.bfloat16):
            return self.net(x).float()


@pytest.mark.parametrize('mode', [{}, {'macs': 0.7}, {'reconstruct': 'layer', 'steps': 5}])
def test_networks_with_an_autocast_of_their_own(mode, x):
    model = Inner().eval()
    converted, _ = gp.convert(model, x, calibration=[x], **mode)
    assert all(p.dtype == torch.float32 for p in converted.parameters())
    wanted, got = model(x), converted(x)
    plain = gp.convert(model.net, x, calibration=[x], **mode)[0]
    gap, usual = ((y - wanted).square().mean().item() for y in (got, plain(x)))
    assert gap < 1.2 * usual + 1e-3


@pytest.mark.parametrize('suffix', ['.onnx', '.pt'])
def test_files(tmp_path, suffix, x):
    if suffix == '.onnx':
        pytest.importorskip('onnx')
        pytest.importorskip('onnxruntime')
    with torch.autocast('cpu', torch.bfloat16):
        report = gp.export(net(), x, tmp_path / f'net{suffix}', dynamic='batch')
    assert report.max_rel_diff < 1e-5


def test_int8(tmp_path, x):
    pytest.importorskip('onnx')
    pytest.importorskip('onnxruntime')
    sizes = []
    for number, enabled in enumerate((False, True)):
        path = tmp_path / f'{number}.onnx'
        with torch.autocast('cpu', torch.bfloat16, enabled=enabled):
            sizes.append(gp.quantize(net(), [x], path, depthwise='float').typical)
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize('backend', ['fused', 'channels-last'])
def test_the_fastest_form(backend, x):
    wanted = net()(x)
    with torch.autocast('cpu', torch.bfloat16):
        fast = gp.optimize(net(), x, backend, rounds=1, warmup=1)
        got, other = fast(x), fast(x[:2])  # of a size that is new
    assert got.dtype == other.dtype == torch.float32
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(other, wanted[:2], rtol=1e-4, atol=1e-4)


def test_merged_branches_of_the_blocks():
    torch.manual_seed(0)
    model = gp.GhostNetV3(0.5).eval()
    other = gp.GhostNetV3(0.5).eval()
    other.load_state_dict(model.state_dict())
    wanted = model.switch_to_deploy()
    with torch.autocast('cpu', torch.bfloat16):
        assert other.switch_to_deploy() == wanted
    torch.testing.assert_close(dict(model.state_dict()), dict(other.state_dict()), rtol=0, atol=0)


def test_deterministic_algorithms_change_nothing(x):
    wanted, _ = gp.convert(net(), x, macs=0.7, calibration=[x])
    torch.use_deterministic_algorithms(True)
    try:
        got, _ = gp.convert(net(), x, macs=0.7, calibration=[x])
    finally:
        torch.use_deterministic_algorithms(False)
    torch.testing.assert_close(got.state_dict(), wanted.state_dict(), rtol=0, atol=0)


def test_another_default_dtype_changes_no_dtype(x):
    model = net()
    torch.set_default_dtype(torch.float64)
    try:
        got, _ = gp.convert(model, x, macs=0.7, calibration=[x])
        fused = gp.fuse(got, x)
    finally:
        torch.set_default_dtype(torch.float32)
    assert {p.dtype for p in got.parameters()} == {p.dtype for p in fused.parameters()}
    assert got(x).dtype == fused(x).dtype == torch.float32
