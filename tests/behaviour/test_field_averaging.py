"""Channel permutations under code that averages, casts, copies and broadcasts buffers."""

import copy
import io
import pickle
import subprocess
import sys

import pytest
import torch
from torch import fx, nn
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, get_ema_multi_avg_fn

import ghost_plugin as gp

SETTINGS = {
    'ratio 2': {'channels': 48},
    'some left out': {'channels': 50, 'ratio': 3},
    'few ghosts': {'channels': 40, 'ratio': 1.25},
    'three digits': {'channels': 300},
    'grouped': {'channels': 48, 'groups': 4},
}


def permuted(channels, seed=0, **options):
    """A Ghost conv with a permutation of its own."""
    conv = gp.GhostConv2d(4, channels, 3, padding=1, permuted=True, **options)
    made = torch.randperm(conv.num_computed(), generator=torch.Generator().manual_seed(seed))
    conv.order = made[:channels]
    return conv


def network(channels, seed=0, **options):
    conv = permuted(channels, seed, **options)
    return nn.Sequential(conv, nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, 3, 1))


@pytest.fixture(params=SETTINGS)
def net(request, randomise_norms):
    return randomise_norms(network(**SETTINGS[request.param]))


@pytest.fixture
def x():
    return torch.rand(2, 4, 6, 5)


def update(average, net, times=20):
    for _ in range(times):
        average(net)


def of_torch(**options):
    def build(net):
        model = AveragedModel(net, use_buffers=True, **options)
        return model.module, model.update_parameters

    return build


def of_timm(name):
    def build(net):
        model = getattr(pytest.importorskip('timm.utils'), name)(net, decay=0.97)
        return model.module, model.update

    return build


def of_mmengine(net):
    average = pytest.importorskip('mmengine.model').ExponentialMovingAverage
    model = average(net, momentum=0.03, update_buffers=True)
    return model.module, model.update_parameters


def by_hand(net):
    average = copy.deepcopy(net)

    def follow(model):
        with torch.no_grad():
            for mean, value in zip(average.buffers(), model.buffers(), strict=True):
                mean.copy_(0.9 * mean + 0.1 * value)

    return average, follow


def by_state_dict(net):
    average = copy.deepcopy(net)

    def follow(model):
        own, other = average.state_dict(), model.state_dict()
        for name, value in own.items():
            value.copy_(0.97 * value + 0.03 * other[name])

    return average, follow


AVERAGES = {
    'avg_fn': of_torch(avg_fn=get_ema_avg_fn(0.9)),
    'slow avg_fn': of_torch(avg_fn=get_ema_avg_fn(0.9999)),
    'multi_avg_fn': of_torch(multi_avg_fn=get_ema_multi_avg_fn(0.9)),
    'equal weights': of_torch(),
    'timm V2': of_timm('ModelEmaV2'),
    'timm V3': of_timm('ModelEmaV3'),
    'mmengine': of_mmengine,
    'buffers by hand': by_hand,
    'state dict by hand': by_state_dict,
}


@pytest.mark.parametrize('kind', AVERAGES)
def test_the_average_of_a_network_that_does_not_change_is_that_network(kind, net, x):
    want, order = net(x), net[0].order.clone()
    average, follow = AVERAGES[kind](net)
    update(follow, net)
    torch.testing.assert_close(average.eval()(x), want, rtol=1e-4, atol=1e-5)
    assert torch.equal(average[0].order, order)
    assert torch.equal(average.state_dict()['0.order'], order)
    fused = gp.fuse(average, x)
    torch.testing.assert_close(fused(x), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize('decay', [0.9, 0.9999])
def test_averages_of_other_types(dtype, decay, net):
    net.to(dtype)
    order = net[0].order.clone()
    for kind in (get_ema_avg_fn, get_ema_multi_avg_fn):
        name = 'avg_fn' if kind is get_ema_avg_fn else 'multi_avg_fn'
        average, follow = of_torch(**{name: kind(decay)})(net)
        update(follow, net, 100)
        assert torch.equal(average[0].order, order)


def test_a_fused_network_is_averaged_too(net, x):
    fused = gp.fuse(net)
    want = fused(x)
    average, follow = of_torch(avg_fn=get_ema_avg_fn(0.9))(fused)
    update(follow, fused)
    torch.testing.assert_close(average(x), want, rtol=1e-4, atol=1e-5)


def test_state_dicts_are_as_ever(net):
    state = net.state_dict()
    assert next(iter(state)) == '0.order'
    assert not any('digits' in name for name in state)
    assert state['0.order'].dtype == torch.int64
    assert [*state._metadata] == ['', '0', *(f'0.{n}' for n, _ in net[0].named_modules() if n),
                                  '1', '2', '3']  # fmt: skip


@pytest.mark.parametrize('assign', [False, True])
@pytest.mark.parametrize('dtype', [torch.int64, torch.int32, torch.float32, torch.float64], ids=str)
def test_loading_takes_any_type_that_holds_channel_numbers(net, x, dtype, assign):
    state = {**net.state_dict()}
    state['0.order'] = state['0.order'].to(dtype)
    other = copy.deepcopy(net)
    other[0].order = torch.arange(net[0].out_channels)
    other.load_state_dict(state, strict=True, assign=assign)
    torch.testing.assert_close(other(x), net(x))
    mean = {name: (value + value + value) / 3 for name, value in state.items()}
    other.load_state_dict(mean)
    assert torch.equal(other[0].order, net[0].order)


def test_loading_an_averaged_file_that_was_cut_is_refused():
    net = network(48)
    state = net.state_dict()
    order = state['0.order'].clone()
    broken = {
        'cut': (0.9 * order + 0.1 * order).long(),
        'mixed': 0.5 * order + 0.5 * order.flip(0),
        'beyond': order + 1,
        'negative': order - 1,
        'nan': order * float('nan'),
    }
    assert not torch.equal(broken['cut'], order)
    for value in broken.values():
        with pytest.raises(RuntimeError, match=r"'0\.order' is no channel permutation"):
            net.load_state_dict({**state, '0.order': value})
        with pytest.raises(ValueError, match='no channel permutation'):
            net[0].order = value
    for size in (47, 49):
        with pytest.raises(RuntimeError, match=rf"'0\.order' is of shape \({size},\)"):
            net.load_state_dict({**state, '0.order': torch.arange(size)})
    del state['0.order']
    with pytest.raises(RuntimeError, match=r'Missing key.*0\.order'):
        net.load_state_dict(state)
    assert net.load_state_dict(state, strict=False).missing_keys == ['0.order']
    assert torch.equal(net[0].order, order)
    plain = nn.Sequential(gp.GhostConv2d(4, 48, 3))
    with pytest.raises(RuntimeError, match=r'Unexpected key.*0\.order'):
        plain.load_state_dict({**plain.state_dict(), '0.order': order})


WRITERS = {
    'copy_ into the attribute': lambda net, order: net[0].order.copy_(order),
    'copy_ into the state dict': lambda net, order: net.state_dict()['0.order'].copy_(order),
    'data': lambda net, order: net.state_dict()['0.order'].data.copy_(order),
    'an element': lambda net, order: net[0].order.__setitem__(slice(None), order),
    'assigned': lambda net, order: setattr(net[0], 'order', order),
    'load_state_dict': lambda net, order: net.load_state_dict({'0.order': order}, strict=False),
}


@pytest.mark.parametrize('kind', WRITERS)
def test_whoever_writes_into_a_permutation_is_heard(kind, net, x):
    other = copy.deepcopy(net)
    order = net[0].order.flip(0)
    other[0].order = order
    assert not torch.equal(other(x), net(x))
    for _ in range(2):  # once with what was handed out before, once anew
        held = net.state_dict()
        WRITERS[kind](net, order)
        assert torch.equal(net(x), other(x))
        assert torch.equal(net.state_dict()['0.order'], order)
        assert torch.equal(copy.deepcopy(net)(x), other(x))
        del held
        net(x)
    net[0].order.copy_(order)
    assert torch.equal(copy.deepcopy(net)(x), other(x))


def test_what_is_written_must_be_a_permutation():
    net = network(48)
    net[0].order.copy_(torch.zeros(48))
    with pytest.raises(ValueError, match='no channel permutation: of 48 entries'):
        net(torch.rand(1, 4, 5, 5))


def test_a_state_dict_that_is_held_sees_and_gives_changes(net, x):
    held, order = net.state_dict(), net[0].order.clone()
    for _ in range(3):
        order = order.flip(0)
        net(x)
        held['0.order'].data.copy_(order)
        assert torch.equal(net[0].order, order)
    net.load_state_dict({**copy.deepcopy(held), '0.order': order.flip(0)})
    assert torch.equal(held['0.order'], order.flip(0))


def test_an_average_that_was_made_before_the_weights_came_gets_them(x):
    pytest.importorskip('mmengine.model')
    for seed in (1, 2, 3):
        net, late = network(48).eval(), network(48, seed).eval()
        average, follow = of_mmengine(net)
        average(x)
        net.load_state_dict(late.state_dict())
        update(follow, net)
        torch.testing.assert_close(average.eval()(x), late(x), rtol=1e-4, atol=1e-5)


def test_casts_moves_copies_and_pickles(net, x):
    want, order = net(x), net[0].order.clone()
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        there = copy.deepcopy(net).to(dtype)
        assert torch.equal(there[0].order, order)
        assert torch.equal(there.float()[0].order, order)
    assert torch.equal(copy.deepcopy(net).half()[0].order, order)
    assert torch.equal(copy.deepcopy(net).bfloat16()[0].order, order)
    assert torch.equal(pickle.loads(pickle.dumps(net))(x), want)
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(x), want)
    last = copy.deepcopy(net).to(memory_format=torch.channels_last)
    got = last(x.contiguous(memory_format=torch.channels_last))
    assert got.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(got, want)


def test_a_module_that_was_pickled_with_an_integer_buffer(net, x):
    old = copy.deepcopy(net)
    del old[0]._buffers['order_digits']
    old[0]._non_persistent_buffers_set.clear()
    old[0]._buffers['order'] = net[0].order.clone()
    assert torch.equal(pickle.loads(pickle.dumps(old))(x), net(x))


def test_meta_device_and_assigned_weights(net, x):
    state = net.state_dict()
    empty = copy.deepcopy(net).to('meta')
    assert empty.state_dict()['0.order'].is_meta
    empty.load_state_dict(state, assign=True)
    assert torch.equal(empty(x), net(x))
    blank = copy.deepcopy(net).to('meta').to_empty(device='cpu')
    blank.load_state_dict(state)
    assert torch.equal(blank(x), net(x))
    with torch.device('meta'):
        fresh = gp.GhostConv2d(4, 48, 3, permuted=True)
    assert fresh.order.is_meta


def test_tracers(net, x):
    want, order = net(x), net[0].order.clone()
    assert torch.equal(torch.jit.trace(net, x)(x), want)
    graph = fx.symbolic_trace(net)
    assert torch.equal(graph(x), want)
    torch.testing.assert_close(torch.export.export(net, (x,)).module()(x), want)
    torch.testing.assert_close(torch.jit.script(net)(x), want)
    average, follow = of_torch(avg_fn=get_ema_avg_fn(0.9))(graph)
    update(follow, graph)
    torch.testing.assert_close(average(x), want, rtol=1e-4, atol=1e-5)
    tensors = {**net.state_dict(), '0.order': order.flip(0)}
    other = copy.deepcopy(net)
    other[0].order = order.flip(0)
    assert torch.equal(torch.func.functional_call(net, tensors, (x,)), other(x))
    assert torch.equal(net(x), want)


def test_compiled(x):
    net = network(48).eval()
    compiled = torch.compile(net, backend='eager', fullgraph=True)
    held = net.state_dict()
    torch.testing.assert_close(compiled(x), net(x))
    order = held['0.order'].flip(0)
    net.load_state_dict({**held, '0.order': order})
    torch.testing.assert_close(compiled(x), net(x))


RANKS = """
import sys
from pathlib import Path

import torch
from torch import distributed, nn

import ghost_plugin as gp

rank, folder = int(sys.argv[1]), Path(sys.argv[2])
distributed.init_process_group('gloo', f'file://{folder}/store', rank=rank, world_size=2)
torch.set_num_threads(1)


def network():
    conv = gp.GhostConv2d(4, 48, 3, permuted=True)
    conv.order = torch.arange(48).roll(rank + 1)
    return nn.Sequential(conv, nn.BatchNorm2d(48)).eval()


found = {}
nets = {kind: network() for kind in ('ddp', 'held', 'state dict')}
held = nets['held'].state_dict()
for kind in ('ddp', 'held'):
    nn.parallel.DistributedDataParallel(nets[kind])(torch.ones(1, 4, 5, 5))
for value in nets['state dict'].state_dict().values():
    distributed.broadcast(value, 0)
for kind, net in nets.items():
    maps = net(torch.ones(1, 4, 5, 5).cumsum(3)).detach()
    found[kind] = (maps, net.state_dict()['0.order'], net[0].order)
found['held'] = (*found['held'], held['0.order'])
torch.save(found, folder / f'{rank}.pt')
distributed.barrier()
"""


def test_ranks_with_other_permutations_end_with_those_of_the_first(tmp_path):
    ranks = [
        subprocess.Popen([sys.executable, '-W', 'ignore', '-c', RANKS, str(rank), str(tmp_path)])
        for rank in range(2)
    ]
    try:
        assert [rank.wait(timeout=240) for rank in ranks] == [0, 0]
    finally:
        for rank in ranks:
            rank.kill()
    first, second = (torch.load(tmp_path / f'{rank}.pt') for rank in range(2))
    for kind, values in first.items():
        assert all(torch.equal(order, torch.arange(48).roll(1)) for order in values[1:])
        for a, b in zip(values, second[kind], strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)
