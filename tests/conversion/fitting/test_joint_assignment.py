"""Convs whose outputs a shortcut adds return their channels alike."""

import pytest
import torch
from torch import nn

import ghost_plugin as gp
from ghost_plugin.conversion.fitting.channel_statistics import moments_from_weights
from ghost_plugin.conversion.fitting.joint_assignment import assign_jointly
from ghost_plugin.conversion.fitting.sequential import FitTask, fit_sequentially
from ghost_plugin.conversion.surgery import build_ghosts

NAMES = ('0', '1.second', '2.second')


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(16, 16, 3, padding=1)
        self.second = nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)

    def forward(self, x):
        return (x + self.norm(self.second(self.first(x).relu()))).relu()


@pytest.fixture
def model(randomise_norms):
    return randomise_norms(
        nn.Sequential(nn.Conv2d(3, 16, 3), Block(), Block(), nn.Conv2d(16, 4, 1))
    )


def images(number=40):
    return torch.randn(number, 3, 12, 12, generator=torch.Generator().manual_seed(1))


def task_of(model, ratios=(2, 2, 2), **settings):
    common = {'dw_size': 1, 'cheap': 'depthwise', 'group_size': 1, **settings}
    own = {name: {**common, 'ratio': ratio} for name, ratio in zip(NAMES, ratios, strict=True)}
    norms = {'0': '', '1.second': '1.norm', '2.second': '2.norm'}
    return FitTask(model, build_ghosts(model, own, 0), norms)


@pytest.mark.parametrize('batches', [None, [images()], [images(), images(3)[:, :, 2:]]])
@pytest.mark.parametrize(
    'ratios, group_size',
    [((2, 2, 2), 1), ((1.5,) * 3, 1), ((1.25,) * 3, 4), ((2, 1.25, 1.5), 'all')],
)
def test_permutations_are_equal(model, ratios, group_size, batches):
    task = assign_jointly(task_of(model, ratios, group_size=group_size), [NAMES], batches)
    errors = fit_sequentially(task, [images()]).errors
    first, *others = [ghost.order for ghost in task.ghosts.values()]
    assert sorted(first.tolist()) == [*range(16)]
    assert all(torch.equal(order, first) for order in others)
    assert all(0 < error < 1 for error in errors.values())


@pytest.mark.parametrize('group_size', [1, 4, 'all'])
def test_what_all_convs_have_in_common_is_found(model, group_size):
    """Convs with the same redundant channels lose nothing."""
    task = task_of(model, group_size=group_size)
    mixed = torch.zeros(8, 8)
    size = {1: 1, 4: 4, 'all': 8}[group_size]
    for start in range(0, 8, size):
        mixed[start : start + size, start : start + size] = torch.randn(size, size)
    order = torch.randperm(16)
    with torch.no_grad():
        for name in NAMES:
            weight = task.conv(name).weight
            mixture = mixed * (1 + torch.rand(8, 8))
            weight[8:] = (mixture @ weight[:8].flatten(1)).view_as(weight[8:])
            weight.copy_(weight[order])
    task = assign_jointly(task, [NAMES])
    for name in NAMES:
        assert task.initialize(name, moments_from_weights(task.conv(name), 1)) < 1e-5


@pytest.mark.parametrize('options', [{}, {'group_size': 4, 'dw_size': 1}])
@pytest.mark.parametrize('calibration', [None, [images()]])
def test_no_permutation_is_left_in_a_fused_model(model, options, calibration):
    plan = gp.plan(model, images(1), keep_first=False, keep_last=False, **options)
    left = {}
    for share in (False, True):
        converted = plan.apply(model, calibration=calibration, share_permutations=share).eval()
        fused = gp.fuse(converted, images(2))
        left[share] = sum(getattr(m, 'order', None) is not None for m in fused.modules())
    # The last conv returns its channels, so it keeps its permutation, if it was converted.
    last = any(layer.converts for layer in plan.layers if layer.name == '3')
    assert left[True] == last < left[False]


def test_a_model_that_cannot_be_copied_is_converted(model):
    class Uncopyable:
        def __deepcopy__(self, memo):
            raise TypeError('no copies')

    model[1].other = Uncopyable()
    plan = gp.plan(model, images(1))
    converted = plan.apply(model, inplace=True, optimizers=[])
    assert any(isinstance(m, gp.GhostConv2d) for m in converted.modules())
