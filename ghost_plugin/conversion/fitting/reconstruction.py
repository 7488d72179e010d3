"""Gradient steps on pictures without labels: each block learns to give what the original's gave.

Source: Li et al., BRECQ, ICLR 2021 (arXiv 2102.05426), for the block as the unit and for an error
that counts by the gradient of the output; there for quantisation, and channel by channel. Here
channels are weighed together, by the covariance of the gradient: on EfficientNet-Lite0 at 80 % of
its multiply-adds this left a divergence of 0.20 on other pictures, and 0.25 without. Inputs come
from the converted network, targets from the original, and the state that was best on pictures held
back from the steps is kept.
"""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from ...utils.modules import clone_tensors, deepcopy_detached
from ..surgery import replace_modules, shift_running_mean
from .least_squares import num_held
from .microbatch_scheduler import run_microbatches
from .output_gradients import Gradients, covariances
from .paired_forward import (
    PART,
    ActivationBatch,
    Arguments,
    ModuleVisitor,
    concat_nested,
    some,
    tour,
)
from .sequential import (
    MEMORY,
    FitState,
    bytes_per_picture,
    from_weights,
    kept_layers,
    make_visitor,
    visit_kept,
)

STEPS, RATE = 800, 1e-3  # of Adam, for each block; the rate falls by a cosine
BATCH, LEAST, BYTES = 48, 8, 2**27  # pictures of a step at the most and least, maps they may fill
HELD, LOOKS = 8, 6  # one picture in so many is held back; times to look at these
BLOCKS = 8 * MEMORY  # bytes of maps between blocks that may be held
LARGEST = 12  # convs of a block; a conv among more than that stands for itself


def blocks_of(model: nn.Module, names: list[str]) -> dict[str, list[str]]:
    """The blocks that hold the named convs, by the block's name; a lone conv is its own.

    A block is the smallest module around a conv that holds more convs, is no mere sequence and
    has no more than ``LARGEST``; where one lies in another the outer one counts.
    """
    found: dict[str, list[str]] = defaultdict(list)
    for name in names:
        found[_block(model, name)].append(name)
    outer: dict[str, list[str]] = defaultdict(list)
    for block, inside in found.items():
        holder = min((b for b in found if block.startswith(f'{b}.')), key=len, default=block)
        outer[holder] += inside
    return dict(outer)


def _block(model: nn.Module, name: str) -> str:
    parts = name.split('.')
    for depth in range(len(parts) - 1, 0, -1):
        path = '.'.join(parts[:depth])
        module = model.get_submodule(path)
        convs = sum(isinstance(m, nn.Conv2d) for m in module.modules())
        if convs > LARGEST:
            break
        if convs > 1 and not isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict):
            return path
    return name


class Reconstruction:
    """A conversion whose layers or blocks learn one after the other.

    Args:
        fit: The Ghosts.
        batches: All pictures, of one size.
        steps: Of Adam, for each layer or block.
        seed: Of the order of pictures.
    """

    def __init__(self, fit: FitState, batches: list[Any], steps: int, seed: int) -> None:
        self.fit, self.batches, self.steps, self.seed = fit, batches, steps, seed
        self.learnt: dict[str, nn.Module] = {}  # what takes a part's place, by its name
        self.metrics: dict[str, torch.Tensor] = {}  # of what the channels of a part are worth

    def run(self, of: str) -> None:
        """Each Ghost learns its conv's maps (``'layer'``), or each block its own (``'block'``)."""
        {'layer': self._layers, 'block': self._blocks}[of]()

    def _layers(self) -> None:
        self._tour({name: self._layer(name) for name in self.fit.ghosts})

    def _blocks(self) -> None:
        found = blocks_of(self.fit.model, list(self.fit.ghosts))
        lone = {name for name, inside in found.items() if inside == [name]}
        self.metrics = covariances(self.fit.model, found.keys() - lone, self.batches, self.seed)
        self._tour(
            {
                name: make_visitor(self.fit, name) if name in lone else self._block(name, inside)
                for name, inside in found.items()
            }
        )

    def settle(self, model: nn.Module) -> None:
        """Take over what was learnt into the converted model."""
        for name, part in self.learnt.items():
            model.get_submodule(name).load_state_dict(part.state_dict())

    def _tour(self, stations: dict[str, ModuleVisitor]) -> None:
        kept = {
            name: visit_kept(self.fit, name)
            for name in kept_layers(self.fit, self.batches)
            if not any(name.startswith(f'{block}.') for block in stations)
        }
        run_microbatches(self.fit.model, self.batches, {**stations, **kept}, BLOCKS)

    def _layer(self, name: str) -> ModuleVisitor:
        fitted = make_visitor(self.fit, name)

        def visit(forward: Callable, old: ActivationBatch, new: ActivationBatch) -> tuple[Any, Any]:
            fresh = name not in self.learnt
            wanted, given = fitted(forward, old, new)
            if fresh:
                ghost = self.fit.ghosts[name]
                shift = self.fit.shifts[name].to(wanted)[:, None, None]
                self._learn(name, ghost, new, wanted - shift)
                self.learnt[name] = ghost
                given = new.through(ghost) + shift
            return wanted, given

        return visit

    def _block(self, name: str, inside: list[str]) -> ModuleVisitor:
        # A copy, because the block itself is a station on the tour.
        student = deepcopy_detached(self.fit.model.get_submodule(name), share=True).eval()

        def visit(forward: Callable, old: ActivationBatch, new: ActivationBatch) -> tuple[Any, Any]:
            wanted = old.through(forward)
            if name not in self.learnt:
                self._put_ghosts(student, name, inside, old, new)
                self._learn(name, student, new, wanted)
                self.learnt[name] = student
            return wanted, new.through(self.learnt[name])

        return visit

    def _put_ghosts(
        self,
        block: nn.Module,
        name: str,
        inside: list[str],
        old: ActivationBatch,
        new: ActivationBatch,
    ) -> None:
        """Put Ghosts into a block, each fitted to its conv before the block learns as one."""
        fit, start = self.fit, len(name) + 1
        within = {conv: fit.norms.get(conv, '').startswith(f'{name}.') for conv in inside}
        stations = {c[start:]: make_visitor(fit, c, behind=within[c]) for c in inside}
        few = _fitting(block, old)
        tour(block, concat_nested(old.first(few), new.first(few)), few, stations)
        from_weights(fit, inside)  # convs that did not see both streams
        replace_modules(block, {conv[start:]: fit.ghosts[conv] for conv in inside})
        for conv in inside:
            if within[conv] and conv in fit.shifts:
                shift_running_mean(block.get_submodule(fit.norms[conv][start:]), fit.shifts[conv])

    def _learn(self, name: str, student: nn.Module, given: ActivationBatch, wanted: Any) -> None:
        number, channel_metric = given.number, self.metrics.get(name)
        reconstruct(
            student, given.first(number), wanted, number, self.steps, self.seed, channel_metric
        )


def _fitting(block: nn.Module, given: ActivationBatch) -> int:
    """How many pictures both streams can take through a block within memory."""
    size = bytes_per_picture(block, given.first(1))
    return max(1, min(given.number, 2 * MEMORY // max(1, size)))


def reconstruct(
    student: nn.Module,
    given: Arguments,
    wanted: Any,
    number: int,
    steps: int,
    seed: int,
    channel_metric: torch.Tensor | None = None,
) -> float:
    """Adam steps towards ``wanted``, in place; the state that was best on held pictures stays.

    Args:
        student: A part of a network; it stays in eval mode, so that its norms keep their
            statistics.
        given: Its inputs for all pictures.
        wanted: Tensors that it shall give.
        number: Of pictures.
        steps: Of Adam.
        seed: Of their order.
        metric: (C, C) what the channels of the output are worth together; all alike without it.

    Returns:
        Squared error relative to the targets' variance on the held pictures.
    """
    # The last images, which the fits that came before have held back, too.
    seen, held = torch.arange(number).split(
        [number - num_held(number, HELD), num_held(number, HELD)]
    )
    if not len(held):
        return _error(student, given, wanted, seen, number, channel_metric)
    random = torch.Generator().manual_seed(seed)
    flags = {parameter: parameter.requires_grad for parameter in student.parameters()}
    student.eval().requires_grad_(True)
    optimizer = torch.optim.Adam(student.parameters(), RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps))
    size = bytes_per_picture(student, some(given, range(1), number))
    batch = min(len(seen), BATCH, max(LEAST, BYTES // max(1, size)))
    best, state = _error(student, given, wanted, held, number, channel_metric), _state(student)
    for step in range(1, steps + 1):
        chosen = seen[torch.randint(len(seen), (batch,), generator=random)]
        with torch.enable_grad():
            pair = some(given, chosen, number), some(wanted, chosen, number)
            with Gradients():
                loss = reconstruction_loss(student, *pair, channel_metric)
            optimizer.zero_grad()
            loss.backward()
        optimizer.step()
        schedule.step()
        if step % max(1, steps // LOOKS) == 0:
            now = _error(student, given, wanted, held, number, channel_metric)
            if now < best:
                best, state = now, _state(student)
    student.load_state_dict(state)
    for parameter, flag in flags.items():
        parameter.grad = None
        parameter.requires_grad_(flag)
    return best


def reconstruction_loss(
    student: nn.Module, given: Arguments, wanted: Any, channel_metric: torch.Tensor | None = None
) -> torch.Tensor:
    """Mean squared error of all output tensors, each relative to its target's variance.

    Args:
        student, given, wanted: As in :func:`reconstruct`.
        metric: (C, C) of the one output (N, C, H, W), in which both are measured.
    """
    args, kwargs = clone_tensors(given)  # a block may write into its inputs
    outputs = pytree.tree_flatten(student(*args, **kwargs))[0]
    losses = [
        _relative(mine - theirs, theirs, channel_metric)
        for mine, theirs in zip(outputs, pytree.tree_flatten(wanted)[0], strict=True)
        if isinstance(theirs, torch.Tensor) and theirs.is_floating_point()
    ]
    return torch.stack(losses).mean()


def _relative(
    gap: torch.Tensor, theirs: torch.Tensor, channel_metric: torch.Tensor | None
) -> torch.Tensor:
    if channel_metric is None:
        return gap.square().mean() / theirs.var().clamp_min(1e-12)
    centred = theirs - theirs.mean((0, 2, 3), keepdim=True)
    flat = [maps.float().transpose(0, 1).flatten(1) for maps in (gap, centred)]
    lost, energy = ((channel_metric @ maps * maps).sum() for maps in flat)
    return lost / energy.clamp_min(1e-12)


@torch.no_grad()
def _error(
    student: nn.Module,
    given: Arguments,
    wanted: Any,
    chosen: torch.Tensor,
    number: int,
    channel_metric: torch.Tensor | None,
) -> float:
    losses = [
        len(part)
        * float(
            reconstruction_loss(
                student, some(given, part, number), some(wanted, part, number), channel_metric
            )
        )
        for part in chosen.split(PART)
    ]
    return sum(losses) / len(chosen)


def _state(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}
