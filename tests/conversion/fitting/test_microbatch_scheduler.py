"""Micro-batches under a memory limit: order, catching up, results, errors."""

import threading

import pytest
import torch
from torch import nn

from ghost_plugin.conversion.fitting.microbatch_scheduler import (
    HELD_ACTIVATIONS,
    peak_activation_bytes,
    run_microbatches,
)
from ghost_plugin.graph.shortcuts import find_shortcuts

WIDE, NARROW = 4 * 16 * 16, 4 * 4 * 4  # bytes of a channel


@pytest.fixture
def model():
    """Activations shrink between the first and the second conv."""
    return nn.Sequential(
        nn.Conv2d(1, 1, 1, bias=False), nn.AvgPool2d(4), nn.Conv2d(1, 1, 1, bias=False), nn.ReLU(),
        nn.Conv2d(1, 1, 1, bias=False),
    ).eval()  # fmt: skip


def recorder(calls, name):
    """A visitor that notes the images of each call; the converted model's output is doubled."""

    def visit(forward, old, new, result):
        calls.append((name, old.num_images, result))
        return old.map(forward), 2 * new.map(forward), (result or 0) + old.num_images

    return visit


def run(model, images, memory, names=('0', '2', '4')):
    calls = []
    visitors = {name: recorder(calls, name) for name in names}
    return calls, run_microbatches(model, [images], visitors, memory)


def test_peaks_are_those_from_each_module_on(model):
    peaks = peak_activation_bytes(model, ['0', '2', '4'], torch.zeros(2, 1, 16, 16))
    assert peaks == {'0': WIDE, '2': NARROW, '4': NARROW}


def test_all_images_run_at_once_where_memory_allows(model):
    calls, results = run(model, torch.rand(16, 1, 16, 16), 10**9)
    assert calls == [('0', 16, None), ('2', 16, None), ('4', 16, None)]
    assert results == {'0': 16, '2': 16, '4': 16}


def test_later_modules_are_fitted_to_more_images(model):
    memory = HELD_ACTIVATIONS * WIDE * 2  # two images of the large activations
    calls, results = run(model, torch.rand(8, 1, 16, 16), memory)
    first = {name: number for name, number, result in calls if result is None}
    assert first == {'0': 2, '2': 8, '4': 8}
    assert results == {'0': 8, '2': 8, '4': 8}  # in the end all of them have seen all images
    assert [name for name, _, result in calls if result is None] == ['0', '2', '4']


def test_a_single_image_runs_even_without_memory(model):
    calls, results = run(model, torch.rand(3, 1, 16, 16), 1)
    assert results == {'0': 3, '2': 3, '4': 3}
    assert all(number == 1 for _, number, _ in calls)


@pytest.mark.parametrize('memory', [1, HELD_ACTIVATIONS * WIDE * 2, 10**9])
def test_inputs_are_those_of_each_model(model, memory):
    images, seen = torch.rand(8, 1, 16, 16), []

    def last(forward, old, new, result):
        seen.append((old.first(8)[0][0], new.first(8)[0][0]))
        return old.map(forward), new.map(forward), True

    visitors = {'0': recorder([], '0'), '2': recorder([], '2'), '4': last}
    run_microbatches(model, list(images.split(3)), visitors, memory)
    with torch.no_grad():
        want = model[:4](images)
    old, new = (torch.cat(parts) for parts in zip(*seen, strict=True))
    torch.testing.assert_close(old, want)
    torch.testing.assert_close(new, 4 * old)  # doubled twice


class Crops(nn.Module):
    """Runs a conv on crops, as the head of a detector does, and counts its calls."""

    def __init__(self):
        super().__init__()
        self.conv, self.calls = nn.Conv2d(1, 1, 1), 0

    def forward(self, x):
        self.calls += 1
        return self.conv(x.repeat(1, 3, 1, 1).flatten(0, 1)[:-1, None])


@pytest.mark.parametrize('memory', [1, HELD_ACTIVATIONS * WIDE * 2, 10**9])
def test_a_pass_ends_behind_the_last_module_that_can_be_fitted(model, memory):
    model.append(Crops())
    _, results = run(model, torch.rand(8, 1, 16, 16), memory, ('0', '2', '5.conv'))
    assert results == {'0': 8, '2': 8}
    assert model[5].calls == 1  # in a trial
    assert all('forward' not in vars(module) for module in model.modules())


def test_a_module_that_is_called_twice_is_run_twice(model):
    twice = nn.Sequential(model[0], model[1], model[0], Crops())
    calls, results = run(twice, torch.rand(8, 1, 16, 16), 10**9, ('0',))
    assert len(calls) == 1 + 8 and results == {'0': 16}  # eight micro-batches
    assert twice[3].calls == 1


def test_nothing_runs_without_visitors():
    assert run_microbatches(nn.Identity(), [], {}, 1) == {}


@pytest.mark.parametrize('fails', ['visitor', 'model'])
def test_an_error_ends_all_threads(model, fails):
    before = threading.active_count()

    def visit(forward, old, new, result):
        raise RuntimeError('visitor')

    if fails == 'model':
        model[3].register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(RuntimeError('model')))
        visit = recorder([], '0')
    with pytest.raises(RuntimeError, match=fails):
        run_microbatches(model, [torch.rand(8, 1, 16, 16)], {'0': visit, '4': visit}, 10**9)
    for _ in range(100):
        if threading.active_count() <= before:
            break
        threading.Event().wait(0.01)
    assert threading.active_count() <= before
    assert all('forward' not in vars(module) for module in model)


class Residual(nn.Module):
    def __init__(self, writes=False):
        super().__init__()
        self.first, self.conv = nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1)
        self.writes = writes

    def forward(self, x):
        shortcut = self.first(x)
        branch = shortcut + 1
        if self.writes:
            shortcut.mul_(2)
        return shortcut + self.conv(branch)


@pytest.mark.parametrize('memory', [10**9, HELD_ACTIVATIONS * WIDE * 2])
def test_visitors_get_the_shortcuts_of_both_models(memory):
    model, images = Residual().eval(), torch.rand(8, 1, 16, 16)
    seen = []

    def visit(forward, old, new, result):
        seen.append((old.shortcuts, new.shortcuts))
        return old.map(forward), 2 * new.map(forward), True

    shortcuts = find_shortcuts(model, {'conv': ''})
    visitors = {'first': visit, 'conv': visit}
    run_microbatches(model, [images], visitors, memory, shortcuts=shortcuts)
    ((old, new),) = (pair for pair in seen if pair[0])  # later micro-batches need none
    wanted = model.first(images[: sum(map(len, old))])
    assert torch.allclose(torch.cat([*old]), wanted)
    assert torch.allclose(torch.cat([*new]), 2 * wanted)


def test_a_shortcut_is_what_was_written_into_it():
    model = Residual(writes=True).eval()
    images, seen = torch.rand(8, 1, 16, 16), []

    def visit(forward, old, new, result):
        seen.append(torch.cat([*old.shortcuts]))
        return old.map(forward), new.map(forward), True

    shortcuts = find_shortcuts(model, {'conv': ''})
    run_microbatches(model, [images], {'conv': visit}, 10**9, shortcuts=shortcuts)
    assert torch.allclose(seen[0], 2 * model.first(images))


def test_steps_from_a_tensor_that_was_written_into_are_not_known():
    class Padded(Residual):
        def forward(self, x):
            x = self.first(x)
            shortcut = x[:, :, :]
            x.mul_(2)
            return shortcut + self.conv(x + 1)

    model = Padded().eval()
    shortcuts = find_shortcuts(model, {'conv': ''})
    assert shortcuts['conv'].steps

    def visit(forward, old, new, result):
        assert old.shortcuts is None
        return old.map(forward), new.map(forward), True

    run_microbatches(model, [torch.rand(8, 1, 16, 16)], {'conv': visit}, 10**9, shortcuts=shortcuts)
