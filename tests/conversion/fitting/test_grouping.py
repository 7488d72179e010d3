"""Groups of primary channels for ghosts that mix several."""

from itertools import chain

import pytest
import torch

from ghost_plugin.conversion.fitting.grouping import group_channels, pivots, residuals
from ghost_plugin.layers.ghost import ghost_layout


def planted(channels, ratio, group_size):
    """Covariance of channels of which some mix a group of others, in a random order."""
    layout = ghost_layout(channels, ratio, group_size=group_size)
    number = layout.num_ghosted // layout.group_size
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    primary = draw(layout.primary, 4 * layout.primary)
    groups = primary[: layout.num_ghosted].view(number, layout.group_size, -1)
    ghosts = draw(number, layout.ghosts_per_group, layout.group_size) @ groups
    maps = torch.cat((primary, ghosts.flatten(0, 1)))[:channels]
    maps = maps[torch.randperm(channels, generator=generator)]
    return maps @ maps.T / maps.shape[1], layout


@pytest.mark.parametrize(
    ('channels', 'ratio', 'group_size'),
    [(40, 1.25, 4), (40, 2, 4), (64, 2, 8), (48, 2, 'all'), (40, 3, 4), (30, 1.5, 2)],
)
def test_planted_groups_are_found(channels, ratio, group_size):
    covariance, layout = planted(channels, ratio, group_size)
    found = group_channels(covariance[None], layout)
    assert {len(own) for own in found.primaries} == {layout.group_size}
    assert max(map(len, found.ghosts)) <= layout.ghosts_per_group
    assert min(map(len, found.ghosts)) >= 1
    every = [*chain(*found.primaries, *found.ghosts), *found.others]
    assert sorted(every) == list(range(channels))
    errors = residuals(covariance[None], found.primaries)
    lost = sum(float(errors[index, own].sum()) for index, own in enumerate(found.ghosts))
    assert abs(lost) < 1e-9 * float(covariance.diagonal().sum())


def test_more_primary_channels_per_ghost_lose_less():
    maps = torch.randn(48, 400, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    maps = maps.cumsum(0)
    covariance = maps @ maps.T
    lost = []
    for size in (2, 4, 8, 'all'):
        found = group_channels(covariance[None], ghost_layout(48, 1.5, group_size=size))
        errors = residuals(covariance[None], found.primaries)
        lost.append(sum(float(errors[i, own].sum()) for i, own in enumerate(found.ghosts)))
    assert lost == sorted(lost, reverse=True) and lost[-1] < 0.75 * lost[0]


def test_pivots_leave_out_what_others_explain():
    maps = torch.eye(4, 8, dtype=torch.float64)
    maps[3] = 0.9 * maps[0]
    assert pivots((maps @ maps.T)[None], 3) == [0, 1, 2]


def test_channels_that_depend_on_each_other_are_no_error():
    few = torch.randn(8, 100, generator=torch.Generator().manual_seed(2))
    maps = (torch.randn(24, 8, generator=torch.Generator().manual_seed(3)) @ few).double()
    found = group_channels((maps @ maps.T)[None], ghost_layout(24, 1.5, group_size=4))
    assert len(found.ghosts) == 2 or sum(map(len, found.ghosts)) == 8
