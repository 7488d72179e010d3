"""Find the axes along which a model accepts other sizes, by calling it."""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch

from .comparison import differences
from .flat_io import TensorIO
from .inference import pytorch_fn

Tensors = list[torch.Tensor]
Axes = dict[int, str]  # names of free axes, by their index
Option = TypeVar('Option')
Change = tuple[int, int | None, int | None]

# Sizes to try: batch, and pixels added to height and width (None: up to _MIN_TRACED_SIZE).
_BATCHES = ((1, 0, 0), (3, 0, 0))
_SIZES = ((1, 64, 128), (3, 32, 96), (2, 17, 5))
# Candidates for the axes of height and width of a 4-D input, the likely ones first.
_IMAGE_AXES = ((2, 3), (1, 2), (0, 1), (2, None), (None, 3), (1, None), (None, None))
_IMAGE_CHANNELS = (1, 3, 4)
_MIN_TRACED_SIZE = 224  # smallest dynamic height and width for tracing, pixels
_MAX_COMBINATIONS = 64  # of the axes of several inputs
_SAME = 1e-3  # relative difference up to which two results count as equal


@dataclass(frozen=True)
class FreeAxes:
    """The dynamic axes of a model.

    Attributes:
        inputs: Dynamic axes by the name of the input, empty where all are fixed.
        outputs: Dynamic axes by the name of the output.
        accepted: Inputs that the model accepts, the example first, at least two for images.
        refused: Inputs that it does not accept.
        traced: Input for an exporter, which may treat a batch or size of 1 as a constant.
    """

    inputs: dict[str, Axes]
    outputs: dict[str, Axes]
    accepted: list[Tensors]
    refused: list[Tensors]
    traced: Tensors


def find_free_axes(
    model: TensorIO,
    example: Tensors,
    dynamic: bool | str,
    input_names: Sequence[str],
    output_names: Sequence[str],
) -> FreeAxes:
    """Find the axes along which a model accepts other sizes than those of an example.

    The batch is the first axis of every input, otherwise axes along which the model processes each
    sample alone, such as the second one of sequences. 4-D inputs may have a height and a width.
    Axes along which the model accepts no other size are fixed.

    Args:
        model: In eval mode.
        example: Tensors that it accepts.
        dynamic: True for batch, height and width, ``'batch'`` for the batch, ``'size'`` for height
            and width where the model accepts other sizes, False for none.
        input_names: One name per input tensor.
        output_names: One name per output tensor.

    Raises:
        ValueError: ``dynamic`` is True, and the model accepts one image size only.
    """
    search = _Search(model, example)
    if dynamic in (True, 'batch'):
        search.find_batch()
    if dynamic in (True, 'size'):
        search.find_image_axes(required=dynamic is True)
    inputs = search.input_axes(input_names)
    if not any(inputs):
        search.try_noise()
    outputs = search.output_axes(inputs, output_names)
    return FreeAxes(
        dict(zip(input_names, inputs, strict=True)),
        dict(zip(output_names, outputs, strict=True)),
        [given for given, _ in search.accepted],
        search.refused,
        search.traced(),
    )


@dataclass(frozen=True)
class _InputAxes:
    """The dynamic axes of one input.

    Attributes:
        batch: Axis of samples, None if it is fixed.
        image: Axes of height and width, None for a fixed one.
        own_batch: The number of samples may differ from that of the other inputs.
    """

    batch: int | None = None
    image: tuple[int | None, int | None] = (None, None)
    own_batch: bool = False


_Accepted = list[tuple[Tensors, Tensors]]  # inputs and outputs


class _Search:
    """The dynamic axes found so far, and the outputs for other sizes.

    Args:
        model: Takes tensors, returns a tuple of tensors.
        example: Tensors that it accepts.
    """

    def __init__(self, model: TensorIO, example: Tensors) -> None:
        self.run, self.example = pytorch_fn(model), example
        self.axes = [_InputAxes() for _ in example]
        self.unit = 1  # the batch must be a multiple of this many samples
        self.accepted: _Accepted = [(example, self.run(example))]
        self.refused: list[Tensors] = []

    def find_batch(self) -> None:
        """Try the first axis of all inputs, then axes along which samples do not mix."""
        first = [_InputAxes(0 if x.dim() else None) for x in self.example]
        found = self._batch_of(first)
        if not self._independent(first):
            options = [[*range(x.dim()), None] for x in self.example]
            # All options of the first input come first: other inputs are more often fixed.
            others = (
                [_InputAxes(axis) for axis in some] for some in _combined(options, ranked=False)
            )
            tried = (self._batch_of(axes) for axes in others if self._independent(axes))
            found = next(filter(None, tried), found)
        if found is None:
            self.refused += self._tried(first, 1, _BATCHES)[1]
            return
        self.axes, self.unit, accepted, refused = found
        before = self.axes
        self._find_own_batches()
        if self.axes != before:
            accepted, refused = self._tried(self.axes, self.unit, _BATCHES)
        self.accepted += accepted
        self.refused += refused

    def find_image_axes(self, required: bool) -> None:
        """Make height and width dynamic in as many 4-D inputs as possible.

        Args:
            required: Refuse images of one size.

        Raises:
            ValueError: None can be dynamic, and an input has the shape of an image.
        """
        pairs = zip(self.example, self.axes, strict=True)
        options = [_image_axes(x, own.batch) for x, own in pairs]
        for images in _combined(options, ranked=True):
            axes = [replace(own, image=pair) for own, pair in zip(self.axes, images, strict=True)]
            if axes == self.axes:
                continue  # all axes are fixed
            accepted, refused = self._tried(axes, self.unit, _SIZES)
            if accepted:
                self.axes = axes
                self.accepted += accepted
                self.refused += refused
                return
        images = (x.dim() == 4 and x.shape[1] in _IMAGE_CHANNELS for x in self.example)
        if required and any(images):
            raise ValueError(
                "the model accepts no other size than the example's; give dynamic='batch' "
                '(--dynamic batch)'
            )

    def try_noise(self) -> None:
        """Try images of the example's shapes with other values, which a tracer has not seen."""
        given = [_resized(x, x.shape, None) for x in self.example]
        outputs = self._outputs(given)
        if outputs is not None and any(
            x is not y for x, y in zip(given, self.example, strict=True)
        ):
            self.accepted.append((given, outputs))

    def traced(self) -> Tensors:
        """Return inputs for tracing: batch 2 and large sizes, otherwise the last accepted one."""
        if all(own == _InputAxes() for own in self.axes):
            return self.example
        accepted, _ = self._tried(self.axes, self.unit, [(2, None, None)])
        return (accepted or self.accepted)[-1][0]

    def input_axes(self, names: Sequence[str]) -> list[Axes]:
        """Name the dynamic axes of each input; axes of one name have one size."""
        found, batches = [], {}
        for name, x, own in zip(names, self.example, self.axes, strict=True):
            free: Axes = {}
            if own.batch is not None:
                kind = name if own.own_batch else x.shape[own.batch]
                free[own.batch] = batches.setdefault(kind, f'{name}_batch' if batches else 'batch')
            for axis, size in zip(own.image, ('height', 'width'), strict=True):
                if axis is not None:
                    free[axis] = size if len(names) == 1 else f'{name}_{size}'
            found.append(dict(sorted(free.items())))
        return found

    def output_axes(self, inputs: Sequence[Axes], names: Sequence[str]) -> list[Axes]:
        """Name the dynamic axes of each output.

        For images these include height and width: a few more input pixels may not change the size
        of a small feature map.

        Args:
            inputs: Result of :meth:`input_axes`.
            names: One name per output.
        """
        batches = {
            tuple(given[index].shape[own.batch] for given, _ in self.accepted): free[own.batch]
            for index, (own, free) in enumerate(zip(self.axes, inputs, strict=True))
            if own.batch is not None
        }
        images = any(own.image == (2, 3) for own in self.axes)
        found = []
        for index, name in enumerate(names):
            shapes = [outputs[index].shape for _, outputs in self.accepted]
            sizes_of = {2: 'height', 3: 'width'} if images and len(shapes[0]) == 4 else {}
            free: Axes = {}
            for axis, sizes in enumerate(zip(*shapes, strict=True)):
                if axis in sizes_of or len(set(sizes)) > 1:
                    own_name = f'{name}_{sizes_of.get(axis, f"axis_{axis}")}'
                    free[axis] = batches.get(sizes, own_name)
            found.append(free)
        return found

    def _independent(self, axes: list[_InputAxes]) -> bool:
        """Return whether the samples of the example, given twice, return each result twice."""
        pairs = zip(self.example, axes, strict=True)
        outputs = self._outputs(
            [x if own.batch is None else torch.cat([x, x], own.batch) for x, own in pairs]
        )
        if outputs is None:
            return False
        kinds = {_growth(*pair) for pair in zip(outputs, self.accepted[0][1], strict=True)}
        return 'twice' in kinds and 'other' not in kinds

    def _batch_of(
        self, axes: list[_InputAxes]
    ) -> tuple[list[_InputAxes], int, _Accepted, list[Tensors]] | None:
        """Return axes, unit of the batch, accepted and refused inputs; None if all are refused."""
        for unit in sorted({1, self._base(axes)}):
            accepted, refused = self._tried(axes, unit, _BATCHES)
            for given, _ in accepted:
                if any(x.shape != y.shape for x, y in zip(given, self.example, strict=True)):
                    return axes, unit, accepted, refused
        return None

    def _find_own_batches(self) -> None:
        """Let an input have its own batch size where the model accepts that."""
        first = next(index for index, own in enumerate(self.axes) if own.batch is not None)
        for index, own in enumerate(self.axes):
            if index == first or not self.example[index].dim():
                continue
            axes = list(self.axes)
            axes[index] = _InputAxes(0 if own.batch is None else own.batch, own_batch=True)
            if self._tried(axes, self.unit, _BATCHES[1:])[0]:
                self.axes = axes

    def _base(self, axes: list[_InputAxes]) -> int:
        """Return the greatest common divisor of all batch sizes of the example."""
        pairs = zip(self.example, axes, strict=True)
        return math.gcd(*(x.shape[o.batch] for x, o in pairs if o.batch is not None)) or 1

    def _tried(
        self, axes: list[_InputAxes], unit: int, changes: Iterable[Change]
    ) -> tuple[_Accepted, list[Tensors]]:
        """Try other sizes; return accepted inputs with outputs, and refused inputs."""
        accepted, refused = [], []
        base = self._base(axes)
        for batch, *pixels in changes:
            given = []
            for x, own in zip(self.example, axes, strict=True):
                shape = list(x.shape)
                if own.batch is not None:
                    shape[own.batch] = shape[own.batch] // base * (batch + own.own_batch) * unit
                for axis, more in zip(own.image, pixels, strict=True):
                    if axis is not None:
                        shape[axis] += (
                            max(0, _MIN_TRACED_SIZE - shape[axis]) if more is None else more
                        )
                given.append(_resized(x, shape, own.batch))
            outputs = self._outputs(given)
            if outputs is None:
                refused.append(given)
            else:
                accepted.append((given, outputs))
        return accepted, refused

    def _outputs(self, given: Tensors) -> Tensors | None:
        try:
            return self.run(given)
        except Exception:  # models raise any kind
            return None


def _combined(options: Sequence[Sequence[Option]], ranked: bool) -> Iterator[tuple[Option, ...]]:
    """Combine one option per input; if that is too many, give all inputs the same option.

    Args:
        options: Of each input, the likely ones first.
        ranked: Yield likely options of all inputs first; otherwise vary the last input first.
    """
    if math.prod(map(len, options)) > _MAX_COMBINATIONS:
        every = dict.fromkeys(itertools.chain(*options))
        yield from (tuple(o if o in own else own[-1] for own in options) for o in every)
        return
    ranks = list(itertools.product(*(range(len(own)) for own in options)))
    if ranked:
        ranks.sort(key=lambda rank: (sum(rank), len(set(rank))))
    for rank in ranks:
        yield tuple(own[index] for own, index in zip(options, rank, strict=True))


def _image_axes(x: torch.Tensor, batch: int | None) -> list[tuple[int | None, int | None]]:
    """List candidates for the axes of height and width of an input."""
    if x.dim() != 4:
        return [(None, None)]
    return [pair for pair in _IMAGE_AXES if batch is None or batch not in pair]


def _growth(got: torch.Tensor, once: torch.Tensor) -> str:
    """Compare a result for twice the samples: ``'same'``, ``'twice'`` or ``'other'``."""
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
    """Make an input of another shape: noise for images, otherwise samples of the example.

    Inputs other than images may hold indices, and code without bounds checks reads any memory they
    point at. So values are at most made smaller, each sample by its own factor.
    """
    generator = torch.Generator().manual_seed(sum(shape))
    if x.dim() == 4 and x.is_floating_point() and x.isfinite().all():
        # One element has no standard deviation.
        spread = x.std() if x.numel() > 1 else 0.1 * x.abs().mean()
        return torch.randn(*shape, generator=generator).to(x) * spread + x.mean()
    number = 0 if batch is None else x.shape[batch]
    rows = x
    if number:
        rows = x.index_select(batch, torch.arange(shape[batch]) % number)
    pixels = x.dim() == 4 and x.dtype == torch.uint8
    if (pixels or list(rows.shape) != list(shape)) and x.numel():  # masks and images of integers
        drawn = torch.randint(x.numel(), tuple(shape), generator=generator)
        return x.flatten()[drawn]
    if not number or not x.is_floating_point():
        return rows
    factors = torch.linspace(0.9, 0.6, rows.shape[batch]).to(x)
    return rows * factors.view(-1, *[1] * (x.dim() - 1 - batch))
