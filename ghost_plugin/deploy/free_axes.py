"""Which axes of a model's inputs can be of any size, found by trying the model."""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch

from .comparison import Flat, differences
from .inference import of_module

Tensors = list[torch.Tensor]
Axes = dict[int, str]  # names of free axes, by their index
Option = TypeVar('Option')
Change = tuple[int, int | None, int | None]

# Other inputs than the example: batch, and pixels more in height and width (None: up to _TRACED).
_BATCHES = ((1, 0, 0), (3, 0, 0))
_SIZES = ((1, 64, 128), (3, 32, 96), (2, 17, 5))
# Axes of height and width that an input of four axes may have, the likely ones first.
_SIDES = ((2, 3), (1, 2), (0, 1), (2, None), (None, 3), (1, None), (None, None))
_IMAGE_CHANNELS = (1, 3, 4)
_TRACED = 224  # least height and width that are traced where they are free, pixels
_MOST = 64  # combinations of the axes of several inputs that are tried
_SAME = 1e-3  # share of the largest value up to which two results are taken for the same


@dataclass(frozen=True)
class FreeAxes:
    """What of a model's inputs and outputs can be of any size.

    Attributes:
        inputs: Free axes by the name of the input, empty where all are fixed.
        outputs: The same of the outputs.
        taken: Inputs that the model takes, the example first.
        refused: Inputs that it does not take.
        traced: Input for an exporter, which may take a batch or a side of 1 for a constant.
    """

    inputs: dict[str, Axes]
    outputs: dict[str, Axes]
    taken: list[Tensors]
    refused: list[Tensors]
    traced: Tensors


def find_free_axes(
    model: Flat,
    example: Tensors,
    dynamic: bool | str,
    input_names: Sequence[str],
    output_names: Sequence[str],
) -> FreeAxes:
    """Find the axes along which a model takes other sizes than those of an example.

    The batch is the first axis of every input, or else axes along which the model treats each
    sample alone, such as the second one of sequences. Inputs of four axes may have a height and a
    width. Axes along which the model takes no other size are fixed.

    Args:
        model: In eval mode.
        example: Tensors that it takes.
        dynamic: True for batch, height and width, ``'batch'`` for the batch, False for nothing.
        input_names, output_names: One name per tensor.

    Raises:
        ValueError: ``dynamic`` is True, and an image has the only height and width that the model
            takes.
    """
    search = _Search(model, example)
    if dynamic:
        search.find_batch()
    if dynamic is True:
        search.find_sides()
    inputs = search.input_axes(input_names)
    outputs = search.output_axes(inputs, output_names)
    return FreeAxes(
        dict(zip(input_names, inputs, strict=True)),
        dict(zip(output_names, outputs, strict=True)),
        [given for given, _ in search.taken],
        search.refused,
        search.traced(),
    )


@dataclass(frozen=True)
class _Own:
    """The free axes of one input.

    Attributes:
        batch: The axis of samples, None if it is fixed.
        sides: The axes of height and width, None for one that is fixed.
        apart: Whether the number of samples may differ from that of the other inputs.
    """

    batch: int | None = None
    sides: tuple[int | None, int | None] = (None, None)
    apart: bool = False


_Taken = list[tuple[Tensors, Tensors]]  # inputs and outputs


class _Search:
    """The free axes that were found so far, and what the model gave for other sizes.

    Args:
        model: Takes tensors, gives a tuple of tensors.
        example: Tensors that it takes.
    """

    def __init__(self, model: Flat, example: Tensors) -> None:
        self.run, self.example = of_module(model), example
        self.axes = [_Own() for _ in example]
        self.unit = 1  # the batch grows in steps of so many samples
        self.taken: _Taken = [(example, self.run(example))]
        self.refused: list[Tensors] = []

    def find_batch(self) -> None:
        """Take the first axis of all inputs, else axes along which samples do not mix."""
        first = [_Own(0 if x.dim() else None) for x in self.example]
        found = self._batch_of(first)
        if not self._independent(first):
            options = [[*range(x.dim()), None] for x in self.example]
            # Those of the first input come first: what is fixed is rather the other ones.
            others = ([_Own(axis) for axis in some] for some in _combined(options, ranked=False))
            tried = (self._batch_of(axes) for axes in others if self._independent(axes))
            found = next(filter(None, tried), found)
        if found is None:
            self.refused += self._tried(first, 1, _BATCHES)[1]
            return
        self.axes, self.unit, taken, refused = found
        before = self.axes
        self._find_apart()
        if self.axes != before:
            taken, refused = self._tried(self.axes, self.unit, _BATCHES)
        self.taken += taken
        self.refused += refused

    def find_sides(self) -> None:
        """Take height and width of the inputs of four axes, of as many of them as possible.

        Raises:
            ValueError: None can be free, and an input looks like an image.
        """
        pairs = zip(self.example, self.axes, strict=True)
        options = [_sides(x, own.batch) for x, own in pairs]
        for sides in _combined(options, ranked=True):
            axes = [replace(own, sides=pair) for own, pair in zip(self.axes, sides, strict=True)]
            if axes == self.axes:
                continue  # nothing is free
            taken, refused = self._tried(axes, self.unit, _SIZES)
            if taken:
                self.axes = axes
                self.taken += taken
                self.refused += refused
                return
        if any(x.dim() == 4 and x.shape[1] in _IMAGE_CHANNELS for x in self.example):
            raise ValueError(
                "the model takes no other size than the example's; give dynamic='batch' (--free "
                'batch)'
            )

    def traced(self) -> Tensors:
        """What to trace: a batch of two and large sides, else the last input that was taken."""
        if all(own == _Own() for own in self.axes):
            return self.example
        taken, _ = self._tried(self.axes, self.unit, [(2, None, None)])
        return (taken or self.taken)[-1][0]

    def input_axes(self, names: Sequence[str]) -> list[Axes]:
        """Names of the free axes of each input; axes of one name are of one size."""
        found, batches = [], {}
        for name, x, own in zip(names, self.example, self.axes, strict=True):
            free: Axes = {}
            if own.batch is not None:
                kind = name if own.apart else x.shape[own.batch]
                free[own.batch] = batches.setdefault(kind, f'{name}_batch' if batches else 'batch')
            for axis, side in zip(own.sides, ('height', 'width'), strict=True):
                if axis is not None:
                    free[axis] = side if len(names) == 1 else f'{name}_{side}'
            found.append(dict(sorted(free.items())))
        return found

    def output_axes(self, inputs: Sequence[Axes], names: Sequence[str]) -> list[Axes]:
        """Names of the axes of each output whose size is not always the same.

        Height and width of images count as such: a few pixels more may not show in a small map.
        """
        batches = {
            tuple(given[index].shape[own.batch] for given, _ in self.taken): free[own.batch]
            for index, (own, free) in enumerate(zip(self.axes, inputs, strict=True))
            if own.batch is not None
        }
        images = any(own.sides == (2, 3) for own in self.axes)
        found = []
        for index, name in enumerate(names):
            shapes = [outputs[index].shape for _, outputs in self.taken]
            sides = {2: 'height', 3: 'width'} if images and len(shapes[0]) == 4 else {}
            free: Axes = {}
            for axis, sizes in enumerate(zip(*shapes, strict=True)):
                if axis in sides or len(set(sizes)) > 1:
                    own_name = f'{name}_{sides.get(axis, f"axis_{axis}")}'
                    free[axis] = batches.get(sizes, own_name)
            found.append(free)
        return found

    def _independent(self, axes: list[_Own]) -> bool:
        """Whether the example's samples, given twice, give each result twice."""
        pairs = zip(self.example, axes, strict=True)
        outputs = self._outputs(
            [x if own.batch is None else torch.cat([x, x], own.batch) for x, own in pairs]
        )
        if outputs is None:
            return False
        kinds = {_growth(*pair) for pair in zip(outputs, self.taken[0][1], strict=True)}
        return 'twice' in kinds and 'other' not in kinds

    def _batch_of(self, axes: list[_Own]) -> tuple[list[_Own], int, _Taken, list[Tensors]] | None:
        """The axes, the unit of the batch, what the model takes and refuses; None if all others."""
        for unit in sorted({1, self._base(axes)}):
            taken, refused = self._tried(axes, unit, _BATCHES)
            for given, _ in taken:
                if any(x.shape != y.shape for x, y in zip(given, self.example, strict=True)):
                    return axes, unit, taken, refused
        return None

    def _find_apart(self) -> None:
        """Let an input have a batch of its own where the model takes that beside the others'."""
        first = next(index for index, own in enumerate(self.axes) if own.batch is not None)
        for index, own in enumerate(self.axes):
            if index == first or not self.example[index].dim():
                continue
            axes = list(self.axes)
            axes[index] = _Own(0 if own.batch is None else own.batch, apart=True)
            if self._tried(axes, self.unit, _BATCHES[1:])[0]:
                self.axes = axes

    def _base(self, axes: list[_Own]) -> int:
        """The largest number that divides the batches of all inputs of the example."""
        pairs = zip(self.example, axes, strict=True)
        return math.gcd(*(x.shape[o.batch] for x, o in pairs if o.batch is not None)) or 1

    def _tried(
        self, axes: list[_Own], unit: int, changes: Iterable[Change]
    ) -> tuple[_Taken, list[Tensors]]:
        """What the model gives for other sizes, and the inputs that it refuses."""
        taken, refused = [], []
        base = self._base(axes)
        for batch, *pixels in changes:
            given = []
            for x, own in zip(self.example, axes, strict=True):
                shape = list(x.shape)
                if own.batch is not None:
                    shape[own.batch] = shape[own.batch] // base * (batch + own.apart) * unit
                for axis, more in zip(own.sides, pixels, strict=True):
                    if axis is not None:
                        shape[axis] += max(0, _TRACED - shape[axis]) if more is None else more
                given.append(_resized(x, shape, own.batch))
            outputs = self._outputs(given)
            if outputs is None:
                refused.append(given)
            else:
                taken.append((given, outputs))
        return taken, refused

    def _outputs(self, given: Tensors) -> Tensors | None:
        try:
            return self.run(given)
        except Exception:  # a model says in its own way what it does not take
            return None


def _combined(options: Sequence[Sequence[Option]], ranked: bool) -> Iterator[tuple[Option, ...]]:
    """One option for each input; where these are too many, those that all inputs take together.

    Args:
        options: Of each input, the likely ones first.
        ranked: Whether likely options of all inputs come first, else those of the first input do.
    """
    if math.prod(map(len, options)) > _MOST:
        every = dict.fromkeys(itertools.chain(*options))
        yield from (tuple(o if o in own else own[-1] for own in options) for o in every)
        return
    ranks = list(itertools.product(*(range(len(own)) for own in options)))
    if ranked:
        ranks.sort(key=lambda rank: (sum(rank), len(set(rank))))
    for rank in ranks:
        yield tuple(own[index] for own, index in zip(options, rank, strict=True))


def _sides(x: torch.Tensor, batch: int | None) -> list[tuple[int | None, int | None]]:
    """The axes that height and width of an input may have."""
    if x.dim() != 4:
        return [(None, None)]
    return [pair for pair in _SIDES if batch is None or batch not in pair]


def _growth(got: torch.Tensor, once: torch.Tensor) -> str:
    """How a result for twice the samples compares: ``'same'``, ``'twice'`` or ``'other'``."""
    if got.dim() != once.dim():
        return 'other'
    axes = [axis for axis in range(once.dim()) if got.shape[axis] != once.shape[axis]]
    if len(axes) > 1:
        return 'other'
    want = torch.cat([once, once], axes[0]) if axes else once
    if differences([got], [want]).relative > _SAME:
        return 'other'
    return 'twice' if axes else 'same'


def _resized(x: torch.Tensor, shape: Sequence[int], batch: int | None) -> torch.Tensor:
    """An input of another shape: an image as noise, else samples of the example.

    What is no image may hold indices, such as the image of a box, and some code reads whatever
    memory a wrong one points at; so it is at most made smaller, each sample by a factor of its own.
    """
    generator = torch.Generator().manual_seed(sum(shape))
    if x.dim() == 4 and x.is_floating_point() and x.isfinite().all():
        # One element has no deviation.
        spread = x.std() if x.numel() > 1 else 0.1 * x.abs().mean()
        return torch.randn(*shape, generator=generator).to(x) * spread + x.mean()
    number = 0 if batch is None else x.shape[batch]
    rows = x
    if number:
        rows = x.index_select(batch, torch.arange(shape[batch]) % number)
    if list(rows.shape) != list(shape) and x.numel():  # masks and images of integers
        drawn = torch.randint(x.numel(), tuple(shape), generator=generator)
        return x.flatten()[drawn]
    if not number or not x.is_floating_point():
        return rows
    factors = torch.linspace(0.9, 0.6, rows.shape[batch]).to(x)
    return rows * factors.view(-1, *[1] * (x.dim() - 1 - batch))
