"""Progress: events of a conversion, the line of a terminal, and callbacks that raise."""

import sys

import pytest
import torch
from torch import nn

import ghost_plugin as gp
from ghost_plugin.conversion import progress
from ghost_plugin.conversion.progress import Progress, reporting, tracked

IMAGES = [torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0)) for _ in range(5)]
BUDGET = {'macs': 0.8, 'calibration': IMAGES}


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(16, 16, 3, padding=1)
        self.second = nn.Conv2d(16, 16, 3, padding=1)

    def forward(self, x):
        return x + self.second(self.first(x).relu())


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 16, 3), Block(), Block(), nn.Conv2d(16, 4, 1)).eval()


def stages(events):
    """The last event of each stage, after checks that hold for every one."""
    assert events and all(isinstance(event, Progress) for event in events)
    for event in events:
        assert 0 <= event.done <= event.total and event.elapsed >= 0
        assert (event.left is None) == (event.done == 0)
    last = {event.stage: event for event in events}
    assert all(event.done == event.total and event.left == 0 for event in last.values())
    return {stage: event.total for stage, event in last.items()}


def test_a_plan_reports_its_stages(model):
    events = []
    plan = gp.plan(model, IMAGES[0][:1], progress=events.append, **BUDGET)
    scored = sum(bool(layer.scores) for layer in plan.layers)
    assert stages(events) == {
        'statistics': 5, 'scores': scored, 'trial fits': scored, 'output changes': 10
    }  # fmt: skip


def test_a_latency_budget_reports_the_layers_that_it_times(model):
    events = []
    with pytest.raises(ValueError, match='latency'):
        gp.plan(model, IMAGES[0][:1], latency=0.001, progress=events.append)
    assert stages(events)['latencies'] == 4


def test_a_conversion_reports_layers_or_blocks(model):
    plan = gp.plan(model, IMAGES[0][:1], progress=False)
    converted = sum(layer.converts for layer in plan.layers)
    for options, expected in (
        ({}, {'first weights': converted}),
        ({'calibration': IMAGES}, {'layers': 6}),
        ({'calibration': IMAGES, 'reconstruct': 'block', 'steps': 2},
         {'gradients': 10, 'blocks': 4}),
    ):  # fmt: skip
        events = []
        plan.apply(model, progress=events.append, **options)
        assert stages(events) == expected


def test_convert_reports_both(model):
    events = []
    gp.convert(model, IMAGES[0][:1], progress=events.append, **BUDGET)
    assert {'statistics', 'scores', 'layers'} <= stages(events).keys()


@pytest.mark.parametrize('inplace', [False, True])
@pytest.mark.parametrize(
    'stage', ['statistics', 'scores', 'trial fits', 'output changes', 'layers']
)
def test_a_callback_that_raises_leaves_the_model_untouched(model, stage, inplace):
    model[2].train()

    def stop(event):
        if event.stage == stage and event.done == 1:
            raise KeyboardInterrupt

    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modules = {name: (module, module.training) for name, module in model.named_modules()}
    with pytest.raises(KeyboardInterrupt):
        gp.convert(model, IMAGES[0][:1], progress=stop, inplace=inplace, **BUDGET)
    assert {name: (m, m.training) for name, m in model.named_modules()} == modules
    assert all(torch.equal(weights[name], now) for name, now in model.state_dict().items())
    for module in model.modules():
        assert 'forward' not in vars(module)
        assert not module._forward_hooks and not module._forward_pre_hooks
        assert all(p.requires_grad and p.grad is None for p in module.parameters())


def test_seconds_belong_to_stages_that_take_turns(monkeypatch):
    now, events = [0.0], []
    monkeypatch.setattr(progress.time, 'monotonic', lambda: now[0])
    with reporting(events.append) as report:
        now[0] = 5.0
        report('a', 0, 4)
        for second, stage in enumerate('abba', 6):
            now[0] = second
            report(stage, 1 + (second > 7), 4)
    assert events[0] == Progress('a', 0, 4, 0.0, None)
    assert events[-1] == Progress('a', 2, 4, 2.0, 2.0)
    assert events[-2] == Progress('b', 2, 4, 2.0, 2.0)


def test_tracked_items_are_done_when_the_next_is_asked_for():
    events = []
    assert list(tracked('xy', 2, lambda *event: events.append(event), 's')) == ['x', 'y']
    assert events == [('s', 0, 2), ('s', 1, 2), ('s', 2, 2)]


def pretend_terminal(monkeypatch):
    monkeypatch.setattr(sys.stderr, 'isatty', lambda: True)
    monkeypatch.setattr(progress, 'DELAY', -1.0)
    for name, value in {'TERM': 'xterm', 'TTY_INTERACTIVE': '1', 'COLUMNS': '120'}.items():
        monkeypatch.setenv(name, value)


def test_a_terminal_gets_a_line_with_the_time_left(model, capfd, monkeypatch):
    pytest.importorskip('rich')
    pretend_terminal(monkeypatch)
    gp.plan(model, IMAGES[0][:1], **BUDGET)
    out, err = capfd.readouterr()
    assert not out and 'output changes' in err and '10/10' in err and '0:00:00 left' in err


@pytest.mark.parametrize('case', ['no terminal', 'False', 'quick', 'without rich'])
def test_elsewhere_nothing_is_printed(model, case, capfd, monkeypatch):
    if case != 'no terminal':
        pretend_terminal(monkeypatch)
    if case == 'quick':
        monkeypatch.setattr(progress, 'DELAY', 1e9)
    if case == 'without rich':
        monkeypatch.setitem(sys.modules, 'rich.console', None)
    plan = gp.plan(model, IMAGES[0][:1], progress=False if case == 'False' else None, **BUDGET)
    assert plan.totals['macs_after'] < plan.macs
    assert capfd.readouterr() == ('', '')


def test_another_value_is_an_error(model):
    plan = gp.plan(model, IMAGES[0][:1])
    with pytest.raises(TypeError, match='progress must be None, False or a callable'):
        plan.apply(model, progress='bar')
