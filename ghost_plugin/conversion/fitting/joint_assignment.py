"""Assignment of ghosts of several convs together, so that all return their channels alike.

A converted conv returns its channels in an order of its own, and a permutation restores that of
the conv. A neighbour can take the permutation over, but where a shortcut adds the outputs of
several convs it must be the same for all. Then they choose their primary channels, and the groups
of these and their ghosts, by the sum of their relative errors.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

from .batches import can_concat, rebatch
from .initialization import Assignment, assign_channels, errors_or_covariance, filter_size
from .sequential import STATISTICS_BATCH, FitTask, collect_moments

MAX_IMAGES = 64  # images that decide; the weights are fitted to all


def assign_jointly(
    task: FitTask, shortcuts: Sequence[Sequence[str]], batches: Sequence[Any] | None = None
) -> FitTask:
    """Choose the assignments of Ghosts that shall have one permutation.

    Args:
        task: Of a conversion; its Ghosts stay as they are.
        shortcuts: Names of such Ghosts, of one layout each.
        batches: Batches of images; without any the kernels alone decide.

    Returns:
        The task with these assignments.
    """
    sizes = {name: filter_size(task.ghosts[name]) for name in chain(*shortcuts)}
    some = None if batches is None else _some(batches)

    def report(stage: str, done: int, total: int) -> None:
        task.report('shared permutations', done, total)

    statistics = {
        name: errors_or_covariance(task.ghosts[name], moments)
        for name, moments in collect_moments(task.model, sizes, some, report)
    }
    found: dict[str, Assignment] = {}
    for names in shortcuts:
        ghosts = [task.ghosts[name] for name in names]
        chosen = assign_channels(ghosts, [statistics.pop(name) for name in names])
        found.update(zip(names, chosen, strict=True))
    return replace(task, assignments=found)


def _some(batches: Sequence[Any]) -> list[Any]:
    """Some of the images, from all batches alike, a few at a time."""
    if not can_concat(batches):
        return list(batches)
    parts = list(rebatch(batches, STATISTICS_BATCH))
    return parts[:: -(-len(parts) * STATISTICS_BATCH // MAX_IMAGES)]
