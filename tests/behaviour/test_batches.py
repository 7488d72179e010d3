"""Batches of every form, for planning, calibration, reconstruction and budgets."""

import copy

import pytest
import torch
from torch import nn

import ghost_plugin as gp
from ghost_plugin.conversion import apply_plan
from ghost_plugin.conversion.fitting import sequential
from ghost_plugin.conversion.fitting.sequential import collect_moments
from ghost_plugin.utils.modules import call_model

ALL = {'keep_first': False, 'keep_last': False}


def body():
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3)
    ).eval()  # fmt: skip


class One(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = body()

    def forward(self, x):
        return self.body(x)


class Two(One):
    def forward(self, x, *, gain, flag=True):
        return {'maps': self.body(x) * gain if flag else None}


class Scenes(One):
    """As detectors: a list of images of any size."""

    def forward(self, images, targets=None):
        size = max(max(image.shape[-2:]) for image in images)
        padded = [
            nn.functional.pad(i, (0, size - i.shape[-1], 0, size - i.shape[-2])) for i in images
        ]
        maps = self.body(torch.stack(padded))
        return [{'boxes': m.flatten(1)[:4].T, 'scores': m.mean((1, 2))} for m in maps]


class Boxes(One):
    """A head that runs on as many crops as there are boxes, not on the images."""

    def __init__(self):
        super().__init__()
        self.head = nn.Conv2d(16, 16, 3)

    def forward(self, x):
        maps = self.body(x)
        crops = torch.cat([maps[:, :, i : i + 5, i : i + 5] for i in range(3)])
        return self.head(crops).mean((1, 2, 3)).view(3, -1)


class Windows(One):
    """A block with a conv that sees windows of its input."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.whole = nn.Conv2d(16, 16, 3, padding=1, bias=False)
            self.norm = nn.BatchNorm2d(16)
            self.parts = nn.Conv2d(16, 16, 3, padding=1)

        def forward(self, x):
            maps = self.norm(self.whole(x))
            windows = self.parts(torch.cat(maps.chunk(2, 3)))
            return maps + torch.cat(windows.chunk(2), 3)

    def __init__(self):
        super().__init__()
        self.block = self.Block()

    def forward(self, x):
        return self.block(self.body(x))


def batch():
    return torch.randn(4, 3, 12, 12)


FORMS = {
    'tensor': (One, batch),
    'tuple': (One, lambda: (batch(),)),
    'mapping': (Two, lambda: {'x': batch(), 'gain': torch.tensor(2.0), 'flag': True}),
    'scenes': (Scenes, lambda: ([torch.randn(3, 12, 12) for _ in range(4)],)),
    'boxes': (Boxes, batch),
    'windows': (Windows, batch),
}


@pytest.fixture(params=FORMS)
def form(request):
    build, example = FORMS[request.param]
    return build().eval(), example


def shapes(output):
    leaves = torch.utils._pytree.tree_flatten(output)[0]
    return [leaf.shape for leaf in leaves if isinstance(leaf, torch.Tensor)]


@pytest.mark.parametrize('reconstruct', [None, 'layer', 'block'])
def test_batches_of_every_form_calibrate(form, reconstruct):
    model, example = form
    plan = gp.plan(model, example(), **ALL)
    calibration = [example() for _ in range(3)]
    result = apply_plan(plan, model, calibration=calibration, reconstruct=reconstruct, steps=3)
    assert shapes(call_model(result.model, example())) == shapes(call_model(model, example()))
    assert all(0 <= layer.error < 1 for layer in result.plan.layers)
    assert all(layer.error is None for layer in plan.layers)


def test_costs_are_per_image_whatever_the_form(form):
    model, example = form
    converted, plan = gp.convert(model, example(), **ALL)
    assert gp.count(model, example()).macs == 4 * plan.totals['macs_before']
    assert gp.count(converted, example()).macs == 4 * plan.totals['macs_after']


@pytest.mark.parametrize('calibrated', [True, False])
def test_budgets_take_every_form(form, calibrated):
    model, example = form
    calibration = [example()] if calibrated else None
    plan = gp.plan(model, example(), macs=0.8, calibration=calibration, **ALL)
    assert plan.totals['macs_after'] <= 0.8 * plan.totals['macs_before']


def test_batches_of_several_sizes_calibrate(caplog):
    model = One().eval()
    sizes = [torch.randn(2, 3, size, size) for size in (12, 16, 20)]
    converted, plan = gp.convert(model, sizes[0], calibration=sizes, **ALL)
    assert converted(sizes[2]).shape == model(sizes[2]).shape
    assert all(row.error is not None for row in plan.layers)


@pytest.mark.parametrize('options', [{}, {'macs': 0.8}])
def test_scenes_with_images_of_several_sizes_calibrate(options, caplog):
    model = Scenes().eval()
    scenes = [([torch.randn(3, size, 12) for size in row],) for row in ((12, 16), (20, 14))]
    plan = gp.convert(model, scenes[0], calibration=scenes, **options, **ALL)[1]
    assert all(row.error is not None for row in plan.layers if row.converts)
    assert any('do not fit together' in message for message in caplog.messages)
    with pytest.raises(ValueError, match='images of one size'):
        plan.apply(model, calibration=scenes, reconstruct='block')


def test_a_generator_of_batches_is_enough():
    model = One().eval()
    _, plan = gp.convert(model, batch(), calibration=(batch() for _ in range(2)), **ALL)
    assert all(row.error is not None for row in plan.layers)


def test_nothing_leaks_from_one_plan_to_the_next():
    include = {'*': {'ratio': 3}, 'body.3': {'dw_size': 1}}
    given = copy.deepcopy(include)
    first = gp.plan(One(), batch(), include=include, ratio=4)
    assert include == given
    second = gp.plan(One(), batch(), **ALL)
    assert [row.ratio for row in second.layers] == [2, 2]
    assert [row.ratio for row in first.layers] == [3, 4]
    edited = first.replace_layer(first.layers[0].name, ratio=5)
    assert [row.ratio for row in edited.layers] == [5, 4]
    assert [row.ratio for row in first.layers] == [3, 4]


def test_one_plan_converts_several_models_alike():
    model = One().eval()
    plan = gp.plan(model, batch(), **ALL)
    first, second = plan.apply(model), plan.apply(copy.deepcopy(model))
    x = batch()
    assert torch.equal(first(x), second(x))
    fresh = [plan.apply(model, inherit=False) for _ in range(2)]
    assert torch.equal(fresh[0](x), fresh[1](x))


@pytest.mark.parametrize('reconstruct', [None, 'block'])
def test_a_conv_that_sees_windows_inherits(reconstruct):
    torch.manual_seed(0)
    model, x = Windows().eval(), batch()
    plan = gp.plan(model, x, **ALL)
    with torch.no_grad():
        fresh, inherited = (
            plan.apply(model, **options)(x) - model(x)
            for options in (
                {'inherit': False},
                {'calibration': [x, batch()], 'reconstruct': reconstruct, 'steps': 0},
            )
        )
    assert inherited.square().mean() < 0.7 * fresh.square().mean()


@pytest.mark.parametrize(('memory', 'passes'), [(1, True), (2**28, False)])
def test_convs_that_few_images_reach_are_initialized_from_all(monkeypatch, memory, passes):
    model, seen = One().eval(), {}

    def watched(model, sizes, batches, report):
        if batches:
            seen.update(dict.fromkeys(sizes, sum(map(len, batches))))
        return collect_moments(model, sizes, batches, report)

    monkeypatch.setattr(sequential, 'ACTIVATION_BYTES', memory)
    monkeypatch.setattr(sequential, 'collect_moments', watched)
    plan = gp.plan(model, batch(), **ALL)
    plan.apply(model, calibration=[batch(), batch()])
    assert seen == ({row.name: 8 for row in plan.layers} if passes else {})


class Grid(One):
    """Takes a grid beside the images, with a first axis of its own."""

    def forward(self, x, grid):
        return self.body(x) * grid.mean()


def test_what_is_no_image_is_not_counted_or_cut():
    model, grid = Grid().eval(), torch.rand(7, 5)
    plan = gp.plan(model, (batch(), grid), macs=0.8, **ALL)
    assert 4 * plan.totals['macs_before'] == gp.count(model, (batch(), grid)).macs
    converted = plan.apply(model, calibration=[(batch(), grid), (batch(), grid)])
    alone = plan.apply(model, calibration=[(batch(), grid)])
    assert converted(batch(), grid).shape == alone(batch(), grid).shape


def test_a_list_is_a_tuple_of_arguments():
    model, x = One().eval(), batch()
    assert gp.plan(model, [x], **ALL).totals == gp.plan(model, (x,), **ALL).totals
    (listed, _), (paired, _) = (
        gp.convert(model, x, calibration=[kind([x])], **ALL) for kind in (list, tuple)
    )
    assert torch.equal(listed(x), paired(x))


@pytest.mark.parametrize(
    'calibration, said',
    [
        (batch(), 'takes several batches, got one Tensor'),
        ([(batch(), torch.arange(4))], 'without labels; a tuple was given'),
        ([], 'holds no batch'),
    ],
)
def test_what_is_no_calibration_is_refused(calibration, said):
    with pytest.raises(ValueError, match=said):
        gp.convert(One().eval(), batch(), calibration=calibration, **ALL)


@pytest.mark.parametrize('budget', [{}, {'macs': 0.8}])
@pytest.mark.parametrize('where', ['images', 'weights'])
def test_no_nan_passes_for_a_harmless_ratio(budget, where):
    model, x = One().eval(), batch()
    spoilt = x if where == 'images' else model.body[3].weight.data
    spoilt[0, 0, 0, 0] = float('nan')
    with pytest.raises(ValueError, match=r"the output of 'body.\d' is not finite"):
        gp.convert(model, batch(), calibration=[x], **budget, **ALL)


class Finds(Scenes):
    """Boxes of bright images only."""

    def forward(self, images):
        return [{'boxes': maps['boxes'][: int(image.mean() > 1)]}
                for image, maps in zip(images, super().forward(images), strict=True)]  # fmt: skip


@pytest.mark.parametrize('options', [{'macs': 0.8}, {'reconstruct': 'block', 'steps': 1}])
def test_images_in_which_nothing_is_found_calibrate(options, caplog):
    dark, bright = torch.randn(2, 4, 3, 12, 12).unbind()
    batches = [([*images],) for images in (dark, bright + 9, torch.cat((dark, bright + 9)))]
    plan = gp.convert(Finds().eval(), batches[0], calibration=batches, **options, **ALL)[1]
    assert {row.reason for row in plan.layers} <= {'', 'budget'} and not caplog.messages
    with pytest.raises(ValueError, match='the output is empty'):
        gp.plan(Finds().eval(), batches[0], macs=0.8, calibration=batches[:1], **ALL)


@pytest.mark.parametrize('number', [1, 4, 6, 8])
def test_few_images_do_not_make_outputs_of_one_pixel_seem_costly(number):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, 2), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 16, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 1)
    ).eval()  # fmt: skip
    x = torch.randn(number, 3, 7, 7)
    options = {'macs': 0.95, 'calibration': [x], 'dw_size': 1, **ALL}
    plan = gp.convert(model, x, **options)[1]
    assert all(row.scores['2'] < 10 for row in plan.layers)
    assert all(row.error is None or row.error < 10 for row in plan.layers)
