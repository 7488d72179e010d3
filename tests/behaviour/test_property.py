"""Random networks, random plans: what the plan says is what happened, and nothing else."""

import copy

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

import ghost_plugin as gp

pytest.importorskip('hypothesis')
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

NUM_IMAGES = 2
COMMON = dict(deadline=None, database=None, derandomize=True, suppress_health_check=HealthCheck)


def conv_options(draw, channels, out, keep=False):
    """All arguments of a conv; with ``keep`` its output has the size of its input."""
    kernel = draw(st.sampled_from([1, 3, 5, (1, 3), (3, 1)] + ([] if keep else [2, (3, 2)])))
    dilation = draw(st.sampled_from([1, 1, 2, (1, 2)]))
    sides = zip(pair(kernel), pair(dilation), strict=True)
    same = tuple(k // 2 * d for k, d in sides)
    divisors = [g for g in (1, 1, 1, 2, 4, channels) if not channels % g and not out % g]
    return dict(
        in_channels=channels,
        out_channels=out,
        kernel_size=kernel,
        stride=1 if keep else draw(st.sampled_from([1, 1, 2, (2, 1)])),
        padding=same if keep else draw(st.sampled_from([same, 1, 0, (2, 1)])),
        dilation=dilation,
        groups=draw(st.sampled_from(divisors)),
        bias=draw(st.booleans()),
        padding_mode=draw(st.sampled_from(['zeros', 'zeros', 'reflect', 'replicate', 'circular'])),
    )


def pair(value):
    return value if isinstance(value, tuple) else (value, value)


WAYS = ('chain', 'chain', 'residual', 'twice', 'alias', 'cat', 'inside')


@st.composite
def specs(draw):
    """A list of (way, arguments of convs, norm, activation), and the kind of output."""
    channels = draw(st.sampled_from([3, 8, 16]))
    parts, first = [], channels
    for _ in range(draw(st.integers(1, 4))):
        way = draw(st.sampled_from(WAYS))
        keep = way not in ('chain', 'inside')
        out = channels if keep else draw(st.sampled_from([1, 2, 5, 12, 16, 24]))
        number = 2 if way in ('cat', 'inside') else 1
        sizes = [(channels, out), (out, out)][:number] if way == 'inside' else [(channels, out)] * 2
        convs = [conv_options(draw, *size, keep) for size in sizes[:number]]
        after = draw(st.sampled_from(['', 'norm', 'norm relu', 'relu', 'relu_ norm', 'norm relu_']))
        parts.append((way, convs, after))
        channels = 2 * out if way == 'cat' else out
    return first, parts, draw(st.sampled_from(['maps', 'logits', 'dict', 'all']))


class Part(nn.Module):
    """Some convs, wired in one of the ways, and what follows them."""

    def __init__(self, way, convs, after):
        super().__init__()
        self.way, self.convs = way, nn.ModuleList(nn.Conv2d(**options) for options in convs)
        if way == 'alias':
            self.again = self.convs[0]
        channels = convs[0]['out_channels'] * (2 if way == 'cat' else 1)
        known = {'norm': nn.BatchNorm2d(channels), 'relu': nn.ReLU(), 'relu_': nn.ReLU(True)}
        self.after = nn.Sequential(*(known[word] for word in after.split()))

    def forward(self, x):
        y = self.convs[0](x)
        if self.way == 'residual':
            y = y + x
        elif self.way in ('twice', 'alias'):
            y = (self.again if self.way == 'alias' else self.convs[0])(y)
        elif self.way == 'cat':
            y = torch.cat((y, self.convs[1](x)), 1)
        elif self.way == 'inside':
            y = self.convs[1](y)
        return self.after(y)


class Net(nn.Module):
    def __init__(self, parts, output):
        super().__init__()
        self.parts, self.output = nn.ModuleList(Part(*part) for part in parts), output

    def forward(self, x):
        maps = []
        for part in self.parts:
            x = part(x)
            maps.append(x)
        logits = x.mean((2, 3))
        return {'maps': x, 'logits': logits, 'dict': {'a': x, 'b': logits}, 'all': maps}[
            self.output
        ]


@st.composite
def options(draw):
    """Options of a plan, and of how it is applied."""
    pick = lambda *values: draw(st.sampled_from(values))  # noqa: E731
    plan = dict(
        ratio=pick(2, 2, 3, 4, 1.5, 1),
        dw_size=pick(3, 3, 1, 5),
        cheap=pick('depthwise', 'depthwise', 'depthwise', 'linear', 'shift'),
        keep_first=draw(st.booleans()),
        keep_last=draw(st.booleans()),
        include=pick(None, None, '*', {'*': {'ratio': 2}}, lambda name, conv: conv.groups == 1),
    )
    budget = pick({}, {}, {}, {'macs': 0.8}, {'params': 0.9}, {'macs': 0.9, 'params': 0.9})
    apply = dict(
        inherit=pick(True, True, True, False),
        inplace=draw(st.booleans()),
        reconstruct=pick(None, None, None, 'layer', 'block'),
        steps=2,
    )
    if not apply['inherit']:
        apply['reconstruct'] = None  # refused
    calibrated = apply['reconstruct'] is not None or draw(st.booleans())
    kinds = dict(
        dtype=pick(torch.float32, torch.float32, torch.float64, torch.bfloat16),
        memory_format=pick(torch.contiguous_format, torch.channels_last),
    )
    return {**plan, **budget}, apply, calibrated, kinds


def layouts(output, strides=True):
    """Shape, dtype, device and strides of every tensor."""
    tensors = [t for t in pytree.tree_flatten(output)[0] if isinstance(t, torch.Tensor)]
    return [(tuple(t.shape), t.dtype, t.device, t.stride())[: 3 + strides] for t in tensors]


def traces(model):
    """All that an error could have left changed."""
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    kinds = [(id(m), type(m), m.training, 'forward' in vars(m)) for m in model.modules()]
    hooks = [len(v) for m in model.modules() for k, v in vars(m).items() if k.endswith('_hooks')]
    return state, (kinds, hooks, [p.requires_grad for p in model.parameters()])


def untouched(model, before):
    state, rest = traces(model)
    assert rest == before[1]
    assert state.keys() == before[0].keys()
    assert all(torch.equal(state[name], before[0][name]) for name in state)


def check(spec, chosen):
    (channels, parts, output), (planned, applied, calibrated, kinds) = spec, chosen
    torch.manual_seed(0)
    model = Net(parts, output).to(**kinds).eval()
    x = torch.randn(NUM_IMAGES, channels, 16, 14).to(**kinds)
    with torch.no_grad():
        try:
            want = layouts(model(x))
        except RuntimeError:  # padding larger than the map, nothing left of it
            assume(False)
    before = traces(model)
    try:
        plan = gp.plan(model, x, **planned)
    except ValueError as error:
        assert 'at the least' in str(error) or 'matches no conv' in str(error)
        return
    finally:
        untouched(model, before)
    if not any(row.converts or row.chosen for row in plan.layers):
        with pytest.raises(ValueError, match=r'none is converted|no convolution'):
            plan.apply(model)
        return
    converted = plan.apply(model, calibration=[x, x] if calibrated else None, **applied)
    if not applied['inplace']:
        untouched(model, before)
    agree(plan, converted, x, want)
    for what in planned.keys() & {'macs', 'params'}:
        assert plan.totals[f'{what}_after'] <= planned[what] * plan.totals[f'{what}_before']
    twice(plan, converted)


def agree(plan, converted, x, want):
    """The plan and the converted model agree."""
    with torch.no_grad():
        got = converted(x)
    # A single primary channel has no layout of its own to hand on, and shifts make a new one.
    single = any(
        r.converts and (r.shape.out_channels <= r.ratio or r.cheap == 'shift') for r in plan.layers
    )
    assert layouts(got, strides=not single) == [t if not single else t[:3] for t in want]
    cost, modules = gp.count(converted, x), dict(converted.named_modules(remove_duplicate=False))
    assert cost.params == plan.totals['params_after']
    assert cost.macs == NUM_IMAGES * plan.totals['macs_after']
    for row in plan.layers:
        assert isinstance(modules[row.name], gp.GhostConv2d) == row.converts
        assert row.converts == (not row.reason)
        assert modules[row.name].out_channels == row.shape.out_channels
    assert gp.ConversionPlan.from_dict(plan.as_dict()) == plan


def twice(plan, converted):
    """A second time changes nothing."""
    state = copy.deepcopy(converted.state_dict())
    again = plan.apply(converted)
    if any(row.converts for row in plan.layers):
        assert again is converted
    assert all(torch.equal(a, b) for a, b in zip(state.values(), again.state_dict().values(),
                                                 strict=True))  # fmt: skip


@settings(max_examples=30, **COMMON)
@given(specs(), options())
def test_what_the_plan_says_is_what_happens(spec, chosen):
    check(spec, chosen)


@pytest.mark.slow
@settings(max_examples=10_000, **COMMON)
@given(specs(), options())
def test_what_the_plan_says_is_what_happens_ten_thousand_times(spec, chosen):
    check(spec, chosen)
