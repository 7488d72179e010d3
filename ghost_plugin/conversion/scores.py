"""What each conv's Ghost alone would do to the network's output: scores for a budget.

To second order, an error d of a conv's maps costs E[(g d)^2] / 2, where g is the gradient of the
output's log-likelihood at these maps with labels drawn from the network's own prediction (the
Fisher information, as in Theis et al., 2018, arXiv 1801.05787). One backward pass gives g for all
convs at once, so all convs and ratios are scored together. For outputs that are no logits the
likelihood is that of a normal distribution around each.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils import _pytree as pytree

from ..analysis import call
from ..layers.ghost import GhostConv2d
from .correlations import Correlations, from_kernels
from .fitting import Fit, measured
from .rows import Row
from .stations import first_pictures, pictures
from .surgery import build_ghosts

DRAWS = 2  # of labels, for each batch
PICTURES, PART = 64, 4  # scored at the most, and at a time

Ghosts = dict[str, dict[float, GhostConv2d]]


def score(
    model: nn.Module,
    rows: Sequence[Row],
    ratios: Mapping[str, Sequence[float]],
    example_input: Any,
    calibration: Sequence[Any] | None,
    seed: int,
) -> None:
    """Fill in the scores of ``rows``.

    Args:
        model: The original; it is left as it was.
        rows: Of a plan.
        ratios: To score, by the row's name.
        example_input: What the model is called with; noise of its kind stands for data.
        calibration: Batches of pictures, if there are any.
        seed: Of labels and noise.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        batches = list(calibration) if calibration is not None else _noise(example_input)
        ghosts = candidates(model, rows, ratios, calibration and batches, seed)
        found = _run(model, rows, ghosts, batches)
    for row in rows:
        if row.name in found:
            row.scores = {f'{ratio:g}': value for ratio, value in found[row.name].items()}


def candidates(
    model: nn.Module,
    rows: Sequence[Row],
    ratios: Mapping[str, Sequence[float]],
    batches: Sequence[Any] | None,
    seed: int,
) -> Ghosts:
    """A fitted Ghost for every row and ratio."""
    norms = {row.name: row.norm for row in rows}
    fits = []
    for ratio in sorted({ratio for own in ratios.values() for ratio in own}):
        settings = {
            row.name: {**row.settings, 'ratio': ratio}
            for row in rows
            if ratio in ratios.get(row.name, ())
        }
        fits.append((ratio, Fit(model, build_ghosts(model, settings, seed), norms)))
    sides = {name: fit.side(name) for _, fit in fits for name in fit.fitted}
    for name, stats in _statistics(model, sides, batches):
        for _, fit in fits:
            if name in fit.ghosts:
                fit.inherit(name, stats)
    return {
        name: {r: f.ghosts[name].eval().requires_grad_(False) for r, f in fits if name in f.ghosts}
        for name in ratios
    }


def _statistics(
    model: nn.Module, sides: Mapping[str, int], batches: Sequence[Any] | None
) -> Iterator[tuple[str, Correlations]]:
    if batches:
        return measured(model, sides, list(batches))
    return ((name, from_kernels(model.get_submodule(name), side)) for name, side in sides.items())


def _noise(example_input: Any) -> list[Any]:
    """Normal noise in the place of every floating tensor of the example, some pictures of it."""

    def noise(leaf: Any) -> Any:
        real = isinstance(leaf, torch.Tensor) and leaf.is_floating_point()
        return torch.randn_like(leaf) if real else leaf

    return [pytree.tree_map(noise, example_input) for _ in range(8)]


def _run(
    model: nn.Module, rows: Sequence[Row], ghosts: Ghosts, batches: Sequence[Any]
) -> dict[str, dict[float, float]]:
    totals = {name: dict.fromkeys(own, 0.0) for name, own in ghosts.items()}
    centred = {row.name: bool(row.norm) for row in rows}
    seen = 0
    with _differentiable(model), ExitStack() as hooks:
        for name, own in ghosts.items():
            hook = _listener(own, totals[name], centred[name])
            handle = model.get_submodule(name).register_forward_hook(hook)
            hooks.callback(handle.remove)
        for batch in _parts(batches):
            with torch.enable_grad():
                output = call(model, batch)
                for draw in range(DRAWS):
                    _likelihood(output).backward(retain_graph=draw < DRAWS - 1)
            seen += pictures(batch)
    return {
        name: {ratio: value / (2 * seen * DRAWS) for ratio, value in own.items()}
        for name, own in totals.items()
    }


def _parts(batches: Sequence[Any]) -> Iterator[Any]:
    """A few pictures at a time, not too many in all, of every batch its share."""
    share = max(1, -(-PICTURES // len(batches)))
    for batch in batches:
        number = min(share, pictures(batch))
        if isinstance(batch, torch.Tensor):
            yield from batch[:number].split(PART)
        else:
            yield first_pictures(batch, min(number, PART))


@contextmanager
def _differentiable(model: nn.Module) -> Iterator[None]:
    """Eval mode, and gradients to the maps but not to the parameters."""
    training = [module for module in model.modules() if module.training]
    flags = [p for p in model.parameters() if p.requires_grad]
    model.eval().requires_grad_(False)
    try:
        yield
    finally:
        for module in training:
            module.training = True
        for parameter in flags:
            parameter.requires_grad_(True)


def _listener(
    ghosts: Mapping[float, GhostConv2d], totals: dict[float, float], centred: bool
) -> Callable:
    """A hook that adds (g d)^2 of each picture, for each Ghost, when the gradient comes."""

    def listen(module: nn.Module, inputs: tuple, maps: torch.Tensor) -> torch.Tensor:
        x = inputs[0].detach().clone()
        dense = maps.detach().clone()  # what follows may work in place

        def add(gradient: torch.Tensor) -> None:
            with torch.no_grad():
                for ratio, ghost in ghosts.items():
                    gap = ghost(x) - dense
                    if centred:
                        gap = gap - gap.mean((0, 2, 3), keepdim=True)
                    totals[ratio] += float((gradient * gap).flatten(1).sum(1).square().sum())

        maps = maps if maps.requires_grad else maps.requires_grad_().clone()
        maps.register_hook(add)
        return maps

    return listen


def _likelihood(output: Any) -> torch.Tensor:
    """Log-likelihood of what is drawn from the output, summed over pictures."""
    leaves = [t for t in pytree.tree_leaves(output) if isinstance(t, torch.Tensor)]
    leaves = [t for t in leaves if t.requires_grad]
    if not leaves:
        raise ValueError(
            'the output does not depend on the convs by gradients; a budget cannot score them: '
            'call a part of the model, or give ratios by pattern'
        )
    if len(leaves) == 1 and leaves[0].ndim == 2 and leaves[0].shape[1] > 1:
        log_p = F.log_softmax(leaves[0].float(), dim=1)
        drawn = torch.multinomial(log_p.detach().exp(), 1)
        return log_p.gather(1, drawn).sum()
    total = torch.zeros(())
    for leaf in leaves:
        scale = leaf.detach().float().square().mean().sqrt().clamp_min(1e-12)
        share = max(1, leaf[0].numel()) ** 0.5 if leaf.ndim > 1 else 1.0
        total = total + (torch.randn_like(leaf) * leaf).sum() / (scale * share)
    return total
