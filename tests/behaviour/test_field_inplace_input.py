"""Models that write into what they are called with give what their twins give that do not."""

import copy
import itertools
from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import ghost_plugin as gp
from ghost_plugin.utils.modules import call_model, clone_tensors, preserving_inputs


def layers(*widths):
    made = []
    for number, width in itertools.pairwise(widths):
        made += [nn.Conv2d(number, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(True)]
    return nn.Sequential(*made)


class Normalises(nn.Module):
    """Its first step is torchvision's normalisation in place."""

    def __init__(self, inplace):
        super().__init__()
        self.inplace, self.net = inplace, nn.Sequential(layers(3, 16, 16), nn.Conv2d(16, 4, 1))

    def forward(self, x):
        x = x.sub_(0.3).div_(0.25) if self.inplace else x.sub(0.3).div(0.25)
        return self.net(x)


class PreActivation(nn.Module):
    """A block whose first step is an activation in place, or a block without it."""

    def __init__(self, inplace):
        super().__init__()
        self.inplace = inplace
        self.conv1, self.conv2 = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)

    def forward(self, x):
        if self.inplace:
            x = F.leaky_relu_(x, 0.2)
        return self.conv2(torch.relu(self.conv1(x)))


class Activates(nn.Module):
    """What a block does to its input in place is seen by the shortcut beside it."""

    def __init__(self, inplace):
        super().__init__()
        self.inplace, self.stem = inplace, nn.Conv2d(3, 16, 3, padding=1)
        self.blocks = nn.ModuleList(PreActivation(inplace) for _ in range(2))
        self.head = nn.Conv2d(16, 4, 1)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = x if self.inplace else F.leaky_relu(x, 0.2)
            y = block(x)
            x = x + y
        return self.head(x)


class Adds(nn.Module):
    """What a block gives is added to its input, of which an activation is needed for gradients."""

    def __init__(self, inplace):
        super().__init__()
        self.inplace, self.stem = inplace, nn.Conv2d(3, 16, 3, padding=1)
        self.blocks = nn.ModuleList(PreActivation(False) for _ in range(2))
        self.head = nn.Conv2d(16, 4, 1)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            y = block(F.silu(x))
            if self.inplace:
                x += y
            else:
                x = x + y
        return self.head(x)


class Returns(nn.Module):
    """A block gives its input, or a view of it, beside its maps; later steps write into that."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.conv2 = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 1)

        def forward(self, x):
            return self.conv2(torch.relu(self.conv1(x))), x[:, :8]

    def __init__(self, inplace):
        super().__init__()
        self.inplace, self.stem = inplace, nn.Conv2d(3, 16, 3, padding=1)
        self.block, self.head = self.Block(), nn.Conv2d(24, 4, 1)

    def forward(self, x):
        y, part = self.block(self.stem(x))
        part = part.mul_(0.5) if self.inplace else part * 0.5
        return self.head(torch.cat((y.relu_() if self.inplace else y.relu(), part), 1))


KINDS = [Normalises, Activates, Adds, Returns]


def twins(kind):
    torch.manual_seed(0)
    model = kind(False).eval()
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
    writes = kind(True).eval()
    writes.load_state_dict(model.state_dict())
    return model, writes


@pytest.fixture
def images():
    draw = torch.Generator().manual_seed(1)
    return [torch.rand(6, 3, 12, 12, generator=draw) for _ in range(2)]


MODES = {
    'images': {},
    'budget': {'macs': 0.7},
    'layer': {'reconstruct': 'layer', 'steps': 8},
    'block': {'reconstruct': 'block', 'steps': 8},
}


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('kind', KINDS)
def test_conversion_is_that_of_the_twin(kind, mode, images):
    given = [image.clone() for image in images]
    results = [
        gp.convert(model, given[0][:1], calibration=given, **MODES[mode]) for model in twins(kind)
    ]
    (model, plan), (writes, other) = results
    assert [row.as_dict() for row in plan.layers] == [row.as_dict() for row in other.layers]
    torch.testing.assert_close(model.state_dict(), writes.state_dict(), rtol=0, atol=0)
    assert all(torch.equal(*pair) for pair in zip(given, images, strict=True))


@pytest.mark.parametrize('kind', KINDS)
def test_scores_without_images_are_those_of_the_twin(kind, images):
    plans = [gp.plan(model, images[0][:2], params=0.7) for model in twins(kind)]
    assert plans[0].layers == plans[1].layers


@dataclass
class Sample:
    image: torch.Tensor
    name: str


class Nested(nn.Module):
    """Takes images as somebody nests them, and writes into all of them."""

    def __init__(self):
        super().__init__()
        self.net = Normalises(True)

    def forward(self, images, scale=None):
        images = images['images'] if isinstance(images, dict) else images
        images = [getattr(image, 'image', image) for image in images]
        images = torch.stack([image.mul_(2) for image in images])
        return self.net(images if scale is None else images * scale.add_(1).float())


FORMS = {
    'list': lambda x, s: ([image.clone() for image in x], s),
    'named': lambda x, s: {'images': [image.clone() for image in x], 'scale': s},
    'mapping': lambda x, s: ({'images': [image.clone() for image in x]}, s),
    'objects': lambda x, s: ([Sample(image.clone(), 'a') for image in x], s),
}


@pytest.mark.parametrize('form', FORMS)
def test_nested_inputs_stay_as_they_are(form, images):
    model, scale = Nested().eval(), torch.tensor(1)  # an integer
    given, before = (FORMS[form](images[0], scale.clone()) for _ in range(2))
    count = gp.count(model, given)
    assert count == gp.count(model, given) and gp.plan(model, given, macs=0.8).macs > 0
    first, again = (call_model(model, given) for _ in range(2))
    assert torch.equal(first, again)
    assert repr(given) == repr(before)
    converted, _ = gp.convert(model, given, calibration=[given])
    assert repr(given) == repr(before)
    # Of one batch for each form the same comes out.
    plain, _ = gp.convert(model, FORMS['list'](images[0], scale), calibration=[given])
    torch.testing.assert_close(call_model(converted, given), call_model(plain, given))


def test_copies_keep_what_tensors_are():
    x = torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last)
    whole, last, wide, whole_again = clone_tensors((x, x.flip(0), torch.ones(1, 3).expand(5, 3), x))
    assert whole is whole_again and whole is not x and whole.stride() == x.stride()
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert wide.add_(1).tolist() == [[2.0] * 3] * 5
    model, lock = nn.Identity(), __import__('threading').Lock()
    assert clone_tensors((model, lock, 'text', None)) == (model, lock, 'text', None)
    with torch.inference_mode():
        seen = torch.ones(2)
    call_model(lambda y: y.requires_grad_(), seen)  # not a tensor of inference mode


def test_inputs_that_ask_for_gradients_get_none(images):
    x = images[0].requires_grad_()
    gp.convert(Normalises(True).eval(), x, macs=0.7, calibration=[x])
    assert x.grad is None and x.requires_grad
    gp.fuse(Normalises(True).eval(), x)


@pytest.mark.parametrize('kind', [Normalises, Activates, Returns])
def test_fuse_and_count_are_those_of_the_twin(kind, images):
    model, writes = twins(kind)
    x = images[0]
    assert gp.count(model, x).macs == gp.count(writes, x).macs
    fused, same = gp.fuse(model, x), gp.fuse(writes, x)
    assert torch.equal(x, images[0].clone())
    assert fused.folding == replace(same.folding)
    torch.testing.assert_close(fused(x.clone()), same(x.clone()))


@pytest.mark.parametrize('suffix', ['.onnx', '.xml', '.pt', '.pt2'])
@pytest.mark.parametrize('dynamic', [False, 'batch'])
def test_files_compute_what_the_model_does(tmp_path, suffix, dynamic, images):
    if suffix in ('.onnx', '.xml'):
        pytest.importorskip('onnx')
        pytest.importorskip('onnxruntime')
    if suffix == '.xml':
        pytest.importorskip('openvino')
    if suffix == '.pt2' and dynamic and torch.__version__ < (2, 6):
        pytest.skip('free sizes need torch 2.6')
    x = images[0].clone()
    gp.export(Normalises(True).eval(), x, tmp_path / f'net{suffix}', dynamic=dynamic)
    assert torch.equal(x, images[0])


@pytest.mark.parametrize('backend', ['fused', 'channels-last', 'onnxruntime'])
def test_the_fastest_form_leaves_its_inputs_alone(backend, images):
    if backend == 'onnxruntime':
        pytest.importorskip('onnx')
        pytest.importorskip('onnxruntime')
    model, writes = twins(Normalises)
    x = images[0].clone()
    fast = gp.optimize(writes, x, backend, rounds=1, warmup=1)
    wanted = model(images[0])
    for size in (6, 6, 3):  # of a batch; twice with one of a known size
        given = x[:size].clone()
        for _ in range(2):
            torch.testing.assert_close(fast(given), wanted[:size], rtol=1e-4, atol=1e-4)
        assert torch.equal(given, images[0][:size])
    assert torch.equal(x, images[0])


def test_only_calls_that_write_are_called_with_copies():
    given = []

    def net(x):
        given.append(x)
        return x.mul_(2) if len(x) == 1 else x * 2

    run, one, two = preserving_inputs(net), torch.ones(1), torch.ones(2)
    for x in (two, two, one, one):
        assert torch.equal(run(x), 2 * torch.ones(len(x)))
    assert [any(g is x for x in (one, two)) for g in given] == [False, True, False, False]


def test_a_distiller_hands_both_models_the_same(images):
    student, teacher = Normalises(True), Normalises(True).eval()
    teacher.load_state_dict(copy.deepcopy(student.state_dict()))
    x = images[0].clone()
    distiller = gp.Distiller(student.eval(), teacher, logit_weight=0, features=['net'])
    _, distance = distiller(x)
    assert distance == 0 and torch.equal(x, images[0])
    leaf = images[0].clone().requires_grad_()
    output, _ = distiller(leaf)
    output.sum().backward()
    assert leaf.grad is not None


def test_latency_is_measured_on_the_same_values(images):
    x = images[0].clone()
    plan = gp.plan(twins(Normalises)[1], x, macs=0.7, latency='100000ms')
    assert plan.latency and torch.equal(x, images[0])
