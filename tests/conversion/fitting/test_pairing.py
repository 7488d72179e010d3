"""Assignment of ghosts to primaries, against the best of all assignments."""

import itertools

import pytest
import torch

from ghost_plugin.conversion.fitting.pairing import assign_ghosts


def total(errors, clusters):
    return sum(errors[p, j].item() for p, *ghosts in clusters for j in ghosts)


def least_total(errors, primaries, copies):
    """Least total error of all ways to fill the primaries' slots."""
    ghosts = [j for j in range(len(errors)) if j not in primaries]
    slots = [p for p in primaries for _ in range(copies)]
    return min(
        sum(errors[p, j].item() for p, j in zip(places, ghosts, strict=True))
        for places in itertools.permutations(slots, len(ghosts))
    )


@pytest.mark.parametrize(('number', 'primary', 'copies'), [(4, 2, 1), (6, 3, 1), (6, 2, 2)])
def test_assignment_against_all_others(number, primary, copies):
    found = best = mean = 0.0
    for seed in range(5):
        errors = torch.rand(number, number, generator=torch.Generator().manual_seed(seed))
        clusters = assign_ghosts(errors, primary, copies)
        choices = [*itertools.combinations(range(number), primary)]
        totals = {chosen: least_total(errors, chosen, copies) for chosen in choices}
        found, best = found + total(errors, clusters), best + min(totals.values())
        mean += sum(totals.values()) / len(totals)
        if copies == 1:  # a swap inside a cluster may undo this for more
            chosen = tuple(sorted(members[0] for members in clusters))
            assert total(errors, clusters) <= totals[chosen] + 0.2
    assert best - 1e-6 <= found < mean


@pytest.mark.parametrize(
    ('number', 'primary', 'copies'), [(5, 2, 2), (7, 4, 1), (8, 2, 3), (3, 3, 1)]
)
def test_every_channel_is_assigned_once(number, primary, copies):
    clusters = assign_ghosts(torch.rand(number, number), primary, copies)
    assert sorted(itertools.chain(*clusters)) == [*range(number)]
    assert len(clusters) == primary
    lengths = [len(members) for members in clusters]
    assert max(lengths) <= copies + 1 and lengths == sorted(lengths, reverse=True)


def test_planted_clusters_are_found():
    clusters = [[0, 5, 6], [3, 1, 7], [4, 2, 8]]
    errors = torch.ones(9, 9)
    for p, *ghosts in clusters:
        errors[p, ghosts] = 0.01
    assert sorted(assign_ghosts(errors, 3, 2)) == clusters


def test_a_cluster_makes_its_best_predictor_the_primary():
    errors = torch.full((3, 3), 0.9)
    errors[0, 1] = 0.0  # the best pair, but 2 predicts both others well
    errors[2, 0] = errors[2, 1] = 0.1
    assert assign_ghosts(errors, 1, 2) == [[2, 0, 1]]


def test_nan_counts_as_lost():
    errors = torch.full((4, 4), float('nan'))
    errors[0, 2] = errors[1, 3] = 0.1
    assert sorted(assign_ghosts(errors, 2, 1)) == [[0, 2], [1, 3]]
