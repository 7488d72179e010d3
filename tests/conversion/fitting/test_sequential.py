"""Fits layer by layer: which layers take part, what reaches them, and where shifts go."""

import copy

import pytest
import torch
from torch import nn

from ghost_plugin.conversion.fitting import sequential
from ghost_plugin.conversion.fitting.sequential import (
    FitResults,
    FitTask,
    LayerFit,
    absorb_results,
    add_shift,
    collect_moments,
    fit_from_weights,
    fit_sequentially,
    initialize_others,
    layers_with_means,
)
from ghost_plugin.conversion.surgery import build_ghosts, replace_modules

SETTINGS = {'ratio': 2, 'dw_size': 3, 'cheap': 'depthwise'}


@pytest.fixture
def model():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2),
    ).eval()  # fmt: skip


def task(model, *names):
    ghosts = build_ghosts(model, dict.fromkeys(names, SETTINGS), 0)
    return FitTask(model, ghosts, {'0': '1', '3': '4', '6': ''})


def test_dense_layers_with_means_are_found(model):
    batches = [torch.randn(2, 3, 8, 8)]
    assert layers_with_means(task(model, '0'), batches) == ['3', '6', '9']
    model[9].bias = None
    model[3].register_forward_hook(lambda *_: None)
    assert layers_with_means(task(model, '0'), batches) == ['6']


class ChannelsLast(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x):
        return self.linear(x.movedim(1, -1)).movedim(-1, 1)


def test_linear_layers_on_feature_maps_keep_their_bias():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), ChannelsLast(), nn.Conv2d(8, 4, 1)).eval()
    fitted = task(model, '0')
    results = fit_sequentially(fitted, [torch.randn(64, 3, 12, 12)])
    bias = model[1].linear.bias.clone()
    replace_modules(model, fitted.ghosts)
    absorb_results(model, fitted.norms, results)
    assert torch.equal(model[1].linear.bias, bias)
    assert '1.linear' in results.layers


def test_shared_and_repeated_layers_have_no_mean_of_their_own(model):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.other = nn.Linear(3, 3), nn.Linear(3, 3)
            self.third = nn.Linear(3, 3)
            self.third.bias = self.other.bias

        def forward(self, x):
            return self.third(self.other(self.first(self.first(x))))

    assert layers_with_means(FitTask(Twice(), {}, {}), [torch.zeros(1, 3)]) == []


def test_a_sequential_fit_beats_first_weights(model):
    x, new = torch.randn(40, 3, 8, 8), torch.randn(8, 3, 8, 8)
    lost = []
    for fit in (fit_from_weights, lambda task: fit_sequentially(task, [x])):
        both = task(model, '0', '3')
        results = fit(both)
        assert results.errors.keys() == {'0', '3'}
        converted = replace_modules(copy.deepcopy(model), both.ghosts)
        absorb_results(converted, both.norms, results)
        with torch.no_grad():
            lost.append((converted[:6](new) - model[:6](new)).square().mean())
    assert lost[1] < 0.9 * lost[0]


def test_only_ghosts_change(model):
    state = {name: value.clone() for name, value in model.state_dict().items()}
    both = task(model, '0', '3')
    fit_sequentially(both, [torch.randn(8, 3, 8, 8)])
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert all(p.requires_grad for ghost in both.ghosts.values() for p in ghost.parameters())


def test_a_ghost_keeps_its_dtype(model):
    half = task(model.bfloat16(), '0')
    fit_sequentially(half, [torch.randn(8, 3, 8, 8).bfloat16()])
    assert {p.dtype for p in half.ghosts['0'].parameters()} == {torch.bfloat16}


def test_what_a_fit_did_not_reach_gets_first_weights(model):
    x = [torch.randn(4, 3, 8, 8)]
    both = task(model, '0', '3')
    results = initialize_others(both, FitResults({'0': LayerFit(0.5)}), x)
    assert results.errors['0'] == 0.5 and 0 < results.errors['3'] < 1


def test_batches_that_never_reach_a_conv_are_refused(model):
    model.spare = nn.Conv2d(3, 8, 3)
    model.forward = lambda x: model[0](x)
    with pytest.raises(ValueError, match="never reached 'spare'"):
        list(collect_moments(model, {'spare': 3}, [torch.zeros(1, 3, 8, 8)]))


def test_nan_is_no_error(model):
    with pytest.raises(ValueError, match="the output of '0' is not finite"):
        fit_sequentially(task(model, '0'), [torch.full((2, 3, 8, 8), float('nan'))])


def test_shifts_go_to_norms_and_biases(model):
    shift, x = torch.arange(8.0), torch.randn(2, 3, 8, 8)
    want = add_shift(model[0](x), shift)
    mean, bias = model[1].running_mean.clone(), model[6].bias.clone()
    layers = {'0': LayerFit(0.1, shift), '3': LayerFit(0.1), '6': LayerFit(shift=shift[:4])}
    absorb_results(model, {'0': '1', '3': '4', '6': ''}, FitResults(layers))
    torch.testing.assert_close(model[1].running_mean, mean - shift)
    torch.testing.assert_close(model[6].bias, bias + shift[:4])
    assert not model[4].running_mean.any()
    assert want.shape == (2, 8, 8, 8)


def test_shift_of_any_number_of_axes():
    shift = torch.tensor([1.0, 2.0])
    assert add_shift(torch.zeros(3, 2), shift)[0].tolist() == [1, 2]
    assert add_shift(torch.zeros(3, 2, 1, 1), shift)[0].flatten().tolist() == [1, 2]
    maps = torch.zeros(1)
    assert add_shift(maps, None) is maps


def converted_error(model, repair, x, new):
    """Error of the model with its first conv converted, on new images."""
    copied = copy.deepcopy(model)
    fitted = task(copied, '0')
    fitted = FitTask(copied, fitted.ghosts, fitted.norms, repair)
    results = fit_sequentially(fitted, x)
    converted = replace_modules(copy.deepcopy(copied), fitted.ghosts)
    absorb_results(converted, fitted.norms, results)
    with torch.no_grad():
        return (converted(new) - model(new)).norm().item(), results, converted


def test_dense_layers_follow_their_inputs(model):
    torch.manual_seed(0)
    x, new = [torch.randn(64, 3, 12, 12)], torch.randn(64, 3, 12, 12)
    means_only, results, same = converted_error(model, False, x, new)
    assert all(fit.refitted is None for fit in results.layers.values())
    assert torch.equal(same[3].weight, model[3].weight)
    refitted, results, other = converted_error(model, True, x, new)
    assert results.layers['3'].refitted is not None
    assert not torch.equal(other[3].weight, model[3].weight)
    assert refitted < 0.9 * means_only


def test_layers_in_front_of_all_ghosts_stay(model):
    found = task(model, '3')
    results = fit_sequentially(found, [torch.randn(16, 3, 12, 12)])
    assert '0' not in results.layers or results.layers['0'].refitted is None


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.conv, self.norm = nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)

    def forward(self, x):
        x = self.stem(x)
        return x + self.norm(self.conv(x.relu()))


def test_the_conv_of_a_branch_makes_up_for_the_error_of_its_shortcut(monkeypatch):
    torch.manual_seed(0)
    model = Residual().eval()
    model.norm.weight.data = torch.linspace(-1, 2, 16)
    images = torch.randn(96, 3, 12, 12).cumsum(2).cumsum(3)
    images /= images.std()

    def error():
        fitted = FitTask(
            model, build_ghosts(model, {'stem': SETTINGS}, 0), {'stem': '', 'conv': 'norm'}
        )
        results = fit_sequentially(fitted, [images[:64]])
        converted = replace_modules(copy.deepcopy(model), fitted.ghosts)
        absorb_results(converted, fitted.norms, results)
        wanted = model(images[64:])
        return float((converted(images[64:]) - wanted).square().mean() / wanted.var())

    with torch.no_grad():
        found = error()
        monkeypatch.setattr(sequential, 'find_shortcuts', lambda *_: {})
        assert found < 0.9 * error()


@pytest.mark.parametrize('scale', [0.0, 1e-30])
def test_a_norm_that_is_zero_makes_up_for_nothing(scale):
    model = Residual().eval()
    nn.init.constant_(model.norm.weight, scale)
    fitted = FitTask(
        model, build_ghosts(model, {'stem': SETTINGS}, 0), {'stem': '', 'conv': 'norm'}
    )
    results = fit_sequentially(fitted, [torch.randn(16, 3, 12, 12)])
    assert results.layers['conv'].refitted.weight.abs().max() < 10


def test_a_model_that_cannot_be_copied_is_fitted_without_shortcuts():
    class Single(Residual):
        def __deepcopy__(self, memo):
            raise RuntimeError('no copies')

    model = Single().eval()
    fitted = FitTask(
        model, build_ghosts(model, {'stem': SETTINGS}, 0), {'stem': '', 'conv': 'norm'}
    )
    assert fit_sequentially(fitted, [torch.randn(16, 3, 12, 12)]).layers.keys() == {'stem', 'conv'}
