import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import ghost_plugin as gp
from ghost_plugin.layers.ghost import (
    GhostLayout,
    GhostModule,
    GhostModuleV2,
    ghost_layout,
    split_channels,
)


@pytest.mark.parametrize(
    ('channels', 'ratio', 'groups', 'split', 'ghosted'),
    [
        (16, 2, 1, (8, 1), 8),
        (15, 2, 1, (8, 1), 7),
        (10, 1.25, 1, (8, 1), 2),
        (16, 3, 4, (8, 1), 8),
        (16, 4, 1, (4, 3), 4),
        (7, 1, 1, (7, 0), 7),
    ],
)
def test_channels_are_split_as_in_the_paper(channels, ratio, groups, split, ghosted):
    assert split_channels(channels, ratio, groups) == split
    assert ghost_layout(channels, ratio, groups).num_ghosted == ghosted


@pytest.mark.parametrize(
    ('channels', 'ratio', 'group_size', 'layout', 'ghosts'),
    [
        (16, 2, 4, GhostLayout(8, 8, 4, 4), 8),
        (16, 1.25, 4, GhostLayout(13, 12, 4, 1), 3),  # the last primary channel has none
        (20, 1.25, 2, GhostLayout(16, 8, 2, 1), 4),  # fewer ghosts than groups
        (30, 2, 4, GhostLayout(15, 12, 4, 5), 15),
        (31, 3, 4, GhostLayout(11, 8, 4, 10), 20),
        (29, 2, 4, GhostLayout(15, 12, 4, 5), 15),  # one ghost is surplus
        (16, 4, 'all', GhostLayout(4, 4, 4, 12), 12),
        (16, 1.25, 'all', GhostLayout(13, 13, 13, 3), 3),
        (4, 4, 'all', GhostLayout(1, 1, 1, 3), 3),
        (7, 1, 8, GhostLayout(7, 7, 1, 0), 0),  # no ghosts, so nothing to mix
    ],
)
def test_groups_of_primary_channels_share_the_ghosts(channels, ratio, group_size, layout, ghosts):
    assert ghost_layout(channels, ratio, group_size=group_size) == layout
    assert layout.ghosts == ghosts


GROUP_SIZES = [2, 4, 'all']


@pytest.mark.parametrize('group_size', GROUP_SIZES)
@pytest.mark.parametrize('ratio', [1.25, 2, 3])
@pytest.mark.parametrize('out_channels', [15, 16])
def test_each_ghost_mixes_the_primary_channels_of_its_group(out_channels, ratio, group_size):
    options = {'ratio': ratio, 'dw_size': 1, 'group_size': group_size}
    conv = gp.GhostConv2d(6, out_channels, 3, **options).double()
    nn.init.normal_(conv.cheap_operation.bias)
    x = torch.randn(2, 6, 5, 7, dtype=torch.double)
    primary, cheap = conv.primary_conv(x), conv.cheap_operation
    size = conv.primary if group_size == 'all' else group_size
    each = conv.ghosts_per_group
    wanted = [*primary.unbind(1)]
    for ghost in range(out_channels - conv.primary):
        first = ghost // each * size
        mixed = cheap.bias[ghost] + sum(
            cheap.weight[ghost, i, 0, 0] * primary[:, first + i] for i in range(size)
        )
        wanted.append(mixed)
    torch.testing.assert_close(conv(x), torch.stack(wanted, 1))


@pytest.mark.parametrize('group_size', GROUP_SIZES)
@pytest.mark.parametrize('ratio', [1.5, 2, 3])
@pytest.mark.parametrize('kind', [GhostModule, GhostModuleV2])
def test_modules_with_groups_give_the_channels_asked_for(kind, ratio, group_size):
    module = kind(6, 15, ratio=ratio, group_size=group_size).eval()
    out = module(torch.randn(2, 6, 9, 7))
    assert out.shape == (2, 15, 9, 7)
    layout = ghost_layout(15, ratio, group_size=group_size)
    cheap, norm = module.cheap_operation[:2]
    assert cheap.groups == layout.num_ghosted // layout.group_size
    assert cheap.out_channels == norm.num_features == layout.ghosts
    torch.testing.assert_close(torch.jit.script(module)(x := torch.randn(2, 6, 9, 7)), module(x))


@pytest.mark.parametrize('group_size', GROUP_SIZES)
def test_state_dicts_and_permutations_of_grouped_ghosts(group_size):
    first, second = (
        gp.GhostConv2d(6, 15, 3, ratio=2, group_size=group_size, permuted=True) for _ in range(2)
    )
    first.order = torch.randperm(first.num_computed())[:15]
    second.load_state_dict(first.state_dict(), strict=True)
    x = torch.randn(2, 6, 9, 7)
    assert torch.equal(first(x), second(x))
    twin = pickle.loads(pickle.dumps(first))
    assert torch.equal(first(x), twin(x))


@pytest.mark.parametrize(
    ('options', 'error', 'said'),
    [
        ({'group_size': 0}, ValueError, "positive integer or 'all', got 0"),
        ({'group_size': 'some'}, ValueError, "or 'all', got 'some'"),
        ({'group_size': 2.0}, TypeError, 'got 2.0'),
        ({'group_size': True}, TypeError, 'got True'),
        ({'group_size': 16}, ValueError, 'more than the 8 primary channels .* at most 8'),
        ({'group_size': 2, 'groups': 2}, ValueError, 'groups=1, got groups=2'),
        ({'group_size': 2, 'cheap': 'linear'}, ValueError, "needs cheap='depthwise', got"),
        ({'group_size': 'all', 'cheap': 'shift'}, ValueError, "needs cheap='depthwise', got"),
    ],
)
def test_group_sizes_that_make_no_sense_are_refused(options, error, said):
    with pytest.raises(error, match=said):
        gp.GhostConv2d(8, 16, 3, **options)


@pytest.mark.parametrize('cheap', ['depthwise', 'shift', 'linear'])
@pytest.mark.parametrize('ratio', [1, 1.5, 2, 3, 4])
@pytest.mark.parametrize('out_channels', [1, 7, 15, 16])
def test_module_gives_the_channels_asked_for_from_the_papers_share(cheap, ratio, out_channels):
    module = gp.GhostModule(6, out_channels, ratio=ratio, cheap=cheap)
    out = module(torch.randn(2, 6, 9, 7))
    assert out.shape == (2, out_channels, 9, 7)
    assert module.primary_conv[0].out_channels == math.ceil(out_channels / ratio)


@pytest.mark.parametrize(
    'kernel, stride, dilation, dw_size', [(3, 2, 1, 3), (5, 1, 2, 5), (1, 2, 1, 1)]
)
def test_module_size_is_that_of_the_stride(kernel, stride, dilation, dw_size):
    module = gp.GhostModule(4, 8, kernel, 2, dw_size, stride, dilation=dilation)
    assert module(torch.randn(2, 4, 33, 20)).shape[2:] == (
        math.ceil(33 / stride),
        math.ceil(20 / stride),
    )


def test_positional_arguments_are_the_papers():
    module = gp.GhostModule(4, 8, 3, 4, 5, 2, False)
    primary, cheap = module.primary_conv[0], module.cheap_operation[0]
    assert (primary.kernel_size, primary.stride, primary.out_channels) == ((3, 3), (2, 2), 2)
    assert cheap.kernel_size == (5, 5)
    assert isinstance(module.primary_conv[2], nn.Identity)


@pytest.mark.parametrize('ratio', [2, 3, 4])
@pytest.mark.parametrize(
    'cheap, dw_size', [('depthwise', 1), ('depthwise', 3), ('linear', 3), ('shift', 3)]
)
def test_cost_is_the_papers_formula(ratio, cheap, dw_size):
    c, m, k, side = 8, 5, ratio - 1, 6
    per_map = {'depthwise': dw_size**2, 'linear': 1, 'shift': 0}[cheap]
    s = k * per_map  # of the cheap operations, per intrinsic map and pixel
    x = torch.randn(1, c, side, side)
    ghost = gp.count(gp.GhostModule(c, m * ratio, ratio=ratio, cheap=cheap, dw_size=dw_size), x)
    dense = gp.count(nn.Conv2d(c, m * ratio, 1), x)
    assert ghost.macs == (c * m + s * m) * side**2
    assert dense.macs == c * (k + 1) * m * side**2


conv_options = st.fixed_dictionaries(
    {
        'kernel_size': st.sampled_from([1, 3, 5, (1, 3), (3, 1)]),
        'stride': st.sampled_from([1, 2, (2, 1)]),
        'padding': st.sampled_from([0, 1, 2, (1, 0)]),
        'dilation': st.sampled_from([1, 2]),
        'groups': st.sampled_from([1, 2, 6]),
        'bias': st.booleans(),
        'padding_mode': st.sampled_from(['zeros', 'reflect', 'replicate', 'circular']),
    }
)
ghost_options = st.fixed_dictionaries(
    {
        'ratio': st.sampled_from([1, 1.25, 2, 3, 4]),
        'dw_size': st.sampled_from([1, 3]),
        'cheap': st.sampled_from(['depthwise', 'shift', 'linear']),
    }
)


@settings(max_examples=50, deadline=None)
@given(conv_options, ghost_options, st.sampled_from([6, 12, 18]))
def test_conv_is_a_drop_in(options, ghost, out_channels):
    x = torch.randn(2, 6, 12, 11)
    conv = nn.Conv2d(6, out_channels, **options)
    drop_in = gp.GhostConv2d(6, out_channels, **options, **ghost)
    assert drop_in(x).shape == conv(x).shape
    torch.testing.assert_close(drop_in(x[0]), drop_in(x)[0], rtol=1e-4, atol=1e-5)
    for name in ('in_channels', 'out_channels', 'kernel_size', 'stride', 'padding', 'dilation',
                 'transposed', 'output_padding', 'groups', 'padding_mode'):  # fmt: skip
        assert getattr(drop_in, name) == getattr(conv, name), name


def test_conv_takes_what_torchs_own_does():
    like = torch.ones(3, dtype=torch.int64).numpy()
    conv = gp.GhostConv2d(4 * like[0], 8 * like[0], 3, device='meta', dtype=torch.float64)
    assert {(p.device.type, p.dtype) for p in conv.parameters()} == {('meta', torch.float64)}


def test_conv_without_bias_is_linear():
    conv = gp.GhostConv2d(4, 9, 3, padding=1, bias=False, ratio=3).double()
    a, b = torch.randn(2, 2, 4, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(conv(a + 2 * b), conv(a) + 2 * conv(b))


def test_below_a_ratio_of_two_only_the_ghosts_that_are_used_are_made():
    conv = gp.GhostConv2d(4, 10, 1, bias=False, ratio=1.25)
    assert sum(p.numel() for p in conv.parameters()) == 8 * 4 + 2 * 9
    x = torch.randn(1, 4, 5, 5)
    primary = conv.primary_conv(x)
    torch.testing.assert_close(conv(x)[:, :8], primary)
    torch.testing.assert_close(conv(x)[:, 8:], conv.cheap_operation(primary[:, :2]))


def test_depthwise_conv_stays_what_it_is():
    conv = gp.GhostConv2d(8, 8, 3, padding=1, groups=8)
    assert sum(p.numel() for p in conv.parameters()) == 8 * 9 + 8


@pytest.mark.parametrize(
    'options, error, said',
    [
        ({'ratio': 0}, ValueError, 'got 0'),
        ({'ratio': 0.5}, ValueError, 'got 0.5'),
        ({'ratio': float('nan')}, ValueError, 'nan'),
        ({'ratio': 'two'}, TypeError, 'two'),
        ({'dw_size': 2}, ValueError, 'odd'),
        ({'dw_size': 3.0}, TypeError, '3.0'),
        ({'cheap': 'fft'}, ValueError, 'depthwise'),
        ({'out_channels': 0}, ValueError, 'out_channels'),
        ({'in_channels': 'x'}, TypeError, 'in_channels'),
    ],
)
@pytest.mark.parametrize('layer', [gp.GhostModule, gp.GhostConv2d])
def test_bad_values_are_named(layer, options, error, said):
    with pytest.raises(error, match=said):
        layer(**{'in_channels': 4, 'out_channels': 8, 'kernel_size': 1, **options})
