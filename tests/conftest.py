"""Shared by all tests: the seed, pictures, trained-looking norms, data that only CI has."""

import signal
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn

import ghost_plugin as gp

SHARED = Path(__file__).parents[2] / 'shared'


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def shared():
    """Folder of reference data beside the checkout."""
    if not SHARED.is_dir():
        pytest.skip('needs ../shared, which only the developers and CI have')
    return SHARED


def _paint(path: Path, colour: tuple[int, int, int], size: tuple[int, int], seed: int) -> None:
    image_module = pytest.importorskip('PIL.Image')
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randint(0, 60, (size[1], size[0], 3), generator=generator)
    pixels = (noise + torch.tensor(colour)).to(torch.uint8)
    image_module.frombytes('RGB', size, bytes(pixels.flatten().tolist())).save(path)


@pytest.fixture
def pictures(tmp_path):
    """train/ and val/ with 12 and 4 noisy pictures of 32 px in each of red, green and blue."""
    colours = {'red': (150, 60, 60), 'green': (60, 150, 60), 'blue': (60, 60, 150)}
    for split, number in (('train', 12), ('val', 4)):
        for kind, colour in colours.items():
            for index in range(number):
                path = tmp_path / 'pictures' / split / kind / f'{index}.png'
                _paint(path, colour, (32, 32), 100 * number + 10 * len(kind) + index)
    return tmp_path / 'pictures'


@pytest.fixture
def randomise_norms():
    """Give norms the statistics of a trained net, so that a lost one shows."""

    def randomise(model: nn.Module) -> nn.Module:
        for norm in model.modules():
            if isinstance(norm, nn.BatchNorm2d):
                nn.init.uniform_(norm.running_mean, -0.3, 0.3)
                nn.init.uniform_(norm.running_var, 0.5, 2)
                nn.init.uniform_(norm.weight, 0.3, 0.8)
                nn.init.uniform_(norm.bias, -0.3, 0.3)
        return model.eval()

    return randomise


@pytest.fixture
def assert_equal_maps():
    """Compare tensors against the largest value in each, as deep random nets grow theirs."""

    def compare(got, want, tolerance: float) -> None:
        got, want = ([maps] if isinstance(maps, torch.Tensor) else maps for maps in (got, want))
        for a, b in zip(got, want, strict=True):
            assert a.shape == b.shape
            assert (a - b).abs().max() <= tolerance * b.abs().max()

    return compare


@contextmanager
def _limited(seconds):
    def stop(*args):
        raise TimeoutError(f'over {seconds} s')

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture
def limited():
    """A context that ends with an error after some seconds."""
    return _limited


@pytest.fixture
def redundant():
    """Make the second half of a conv's filters multiples of the first, in random order."""

    def make(conv: nn.Conv2d) -> nn.Conv2d:
        half, groups = conv.out_channels // 2, conv.groups
        scale = torch.linspace(0.5, 1.5, half // groups)
        with torch.no_grad():
            for part in conv.weight.chunk(groups):
                order = torch.randperm(half // groups)
                part[half // groups :] = (part[: half // groups] * scale[:, None, None, None])[
                    order
                ]
        return conv

    return make


@pytest.fixture
def assert_lossless():
    """Convert all of a redundant network; its outputs stay, and so do its kinds of layer."""

    def check(model: nn.Module, x, **options) -> nn.Module:
        model = model.eval()
        options = {'keep_first': False, 'keep_last': False, **options}
        converted, plan = gp.convert(model, x, **options)
        assert {row.decision for row in plan.layers} == {'convert'}, plan.report()
        torch.testing.assert_close(converted(x), model(x), rtol=1e-4, atol=1e-4)
        return converted

    return check


@pytest.fixture
def fresh_model_hub(monkeypatch):
    """MMPretrain's list of models without those that other tests added."""
    hub = pytest.importorskip('mmpretrain.apis').ModelHub
    monkeypatch.setattr(hub, '_models_dict', {})
    monkeypatch.setattr(hub, '_ModelHub__mmpretrain_registered', False)
