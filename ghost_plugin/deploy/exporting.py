"""A model as a file for other runtimes, compared with PyTorch before it takes its place."""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from operator import contains
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..layers.bn_folding import check_inference
from ..utils.atomic_io import atomic_write_all, check_writable
from ..utils.modules import clone_tensors, plain_forward
from .comparison import Difference, Flat, allowance, differences
from .export_formats import DYNAMO_OPSET, FORMATS, Format
from .flat_io import arguments
from .free_axes import FreeAxes, find_free_axes
from .fusion import fuse
from .inference import Runner, of_module, quiet
from .permutations import with_constant_permutations

OPSET = 17
OLDEST_OPSET = 11
DYNAMIC = (True, False, 'batch')
TOLERANCE = 1e-4


@dataclass(frozen=True)
class ExportReport:
    """What was written and how far it lies from the model.

    Attributes:
        path: The file.
        format: ``'onnx'``, ``'openvino'``, ``'torchscript'`` or ``'program'``.
        exporter: ``'trace'`` or ``'dynamo'``.
        dynamic: As given.
        free: Axes of any size by the name of the input, as names by their index; what is not
            there has the example's size.
        max_abs_diff: Largest difference of a value of an output, over all inputs that were tried.
        max_rel_diff: The same as a share of the largest value of that output.
        checked: Shapes of the first argument that were tried.
        refused: Shapes that PyTorch itself does not take.
        size: Bytes of the file and of those that belong to it.
    """

    path: Path
    format: str
    exporter: str
    dynamic: bool | str
    free: dict[str, dict[int, str]]
    max_abs_diff: float
    max_rel_diff: float
    checked: tuple[tuple[int, ...], ...]
    refused: tuple[tuple[int, ...], ...]
    size: int

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**asdict(self), 'path': str(self.path)}


@plain_forward()
def export(
    model: nn.Module,
    example_input: Any,
    path: str | os.PathLike,
    *,
    dynamic: bool | str = True,
    opset: int = OPSET,
    exporter: str = 'auto',
    fused: bool = True,
    split: bool = False,
    portable: bool = True,
    tolerance: float = TOLERANCE,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
) -> ExportReport:
    """Write a model as a file of another runtime, and compare both before it takes its place.

    Args:
        model: In eval mode, on the CPU; it is left as it is. A detector of OpenMMLab gives what
            its own forward gives for raw tensors: the maps of its head.
        example_input: A tensor, a tuple of arguments or a mapping of keyword arguments. What is no
            tensor in it is kept as it is.
        path: File to write; one that is there stays whole until the new one is checked. Its end
            tells the format: ``.onnx``, ``.xml`` (OpenVINO's IR), ``.pt`` (TorchScript) or ``.pt2``
            (``torch.export``).
        dynamic: True frees the batch, and height and width of images, ``'batch'`` the batch only,
            False nothing. Which axes these are is found by trying the model
            (:func:`ghost_plugin.deploy.free_axes.find_free_axes`), those of (N, C, H, W) first;
            what the model takes in one size only is fixed. The report says what is free.
        opset: Of ONNX, 11 or newer. The ``'dynamo'`` exporter writes 18 at least, and is asked for
            17 or newer. An operator that this opset does not have is refused.
        exporter: ``'trace'``, ``'dynamo'``, or ``'auto'``, which takes the first that works.
        fused: Fold norms and merge branches first (:func:`ghost_plugin.fuse`).
        split: Let the halves of Ghost layers go their own ways instead of being joined where maps
            of the example's batch and size are large, in ``.onnx`` and ``.xml``. Whether that is
            faster, :func:`ghost_plugin.optimize` finds out.
        portable: In ``.onnx`` and ``.pt``, write a channel permutation that is left in a converted
            model as convolutions, which all runtimes and converters read. False writes an indexing,
            which is faster in ONNX Runtime but which pnnx, the converter of ncnn, misreads without
            an error. The other formats have one runtime and always hold the indexing.
        tolerance: Largest difference allowed, as a share of the largest value of its output; more
            where float32 itself loses more (:func:`ghost_plugin.deploy.comparison.allowance`).
        input_names, output_names: Names in ``.onnx`` and ``.xml`` files, one for each tensor of
            ``example_input`` and of what the model gives, in their order. Without them these are
            ``input`` and ``output``, numbered from 0 where there are several.

    Returns:
        What was written, and the largest difference.

    Raises:
        ValueError: The model is in training mode; an option that cannot be; an image of the only
            size that the model takes, with ``dynamic=True``; no exporter takes the model; the file
            computes something else. Nothing is written then.
        TypeError: The example holds no tensor, or the outputs are something else than tensors,
            tuples, mappings or dataclasses of these. Of outputs the file holds the tensors.
        ImportError: What the format needs is not installed.
        OSError: The file cannot be written there.
    """
    check_inference(model)
    path = Path(path)
    kind = _checked(path, dynamic, opset, exporter, split)
    check_writable(path, *kind.others)
    example = arguments(example_input)
    if any(value.device.type != 'cpu' for value in example):
        raise ValueError('export works on the CPU; move model and example_input there first')
    want = Flat(model, example_input)
    written = fuse(model) if fused else model
    constant = with_constant_permutations(written, portable and kind.converted)
    net = Flat(constant, example_input)
    names = _chosen_names(kind, want, example, input_names, output_names)
    free = find_free_axes(want, example, dynamic, *names)
    task = _Task(path, kind, net, want, free, opset, split, tolerance)
    problems = []
    for name in _exporters(kind, exporter, opset):
        try:
            found, size = task.run(name)
        except ImportError:
            raise
        except Exception as error:  # exporters raise whatever they like
            if getattr(error, 'errno', None):
                raise  # of the disk; tracers' own OSErrors have no number
            problems.append(f'{name}: {_line(error)}')
            continue
        figures = (found.absolute, found.relative)
        shapes = [tuple(tuple(x[0].shape) for x in some) for some in (free.taken, free.refused)]
        return ExportReport(path, kind.name, name, dynamic, free.inputs, *figures, *shapes, size)
    raise ValueError(
        f'{type(model).__name__} cannot be written as {kind.name}, nothing was written; '
        f'{"; ".join(problems)}{_hint(kind, opset, dynamic, free)}'
    )


def export_onnx(
    model: nn.Module,
    example_input: Any,
    path: str | os.PathLike,
    dynamic: bool | str = True,
    **options: Any,
) -> ExportReport:
    """:func:`export` of what must be an ONNX file."""
    if Path(path).suffix != '.onnx':
        raise ValueError(f'the name of an ONNX file ends in .onnx, got {os.fspath(path)!r}')
    return export(model, example_input, path, dynamic=dynamic, **options)


def _hint(kind: Format, opset: int, dynamic: bool | str, free: FreeAxes) -> str:
    """What else to try."""
    hints = []
    if kind.name == 'onnx' and opset < OPSET:
        hints.append(f'; opset {OPSET} (--opset {OPSET}) has more operators than {opset}')
    if dynamic is True and any(len(axes) > 1 for axes in free.inputs.values()):
        hints.append("; dynamic='batch' (--free batch) asks for less")
    elif any(free.inputs.values()):
        hints.append('; dynamic=False (--free none) asks for less')
    return ''.join(hints)


def _exporters(kind: Format, exporter: str, opset: int) -> list[str]:
    """The exporters to try; none writes another opset than an older one that was asked for."""
    if exporter != 'auto':
        return [exporter]
    old = kind.name == 'onnx' and opset < OPSET
    return [name for name in kind.exporters if not (old and name == 'dynamo')]


@dataclass(frozen=True)
class _Task:
    """One file to write, whichever exporter does it."""

    path: Path
    kind: Format
    net: Flat
    want: Flat
    free: FreeAxes
    opset: int
    split: bool
    tolerance: float

    def run(self, exporter: str) -> tuple[Difference, int]:
        """Write, compare, put in place; the difference and the bytes."""
        with atomic_write_all(self.path, *self.kind.others) as partial:
            self._write(exporter, partial)
            found = compare(self.kind.read(partial), self.want, self.free.taken, self.tolerance)
            suffixes = (partial.suffix, *self.kind.others)
            size = sum(partial.with_suffix(suffix).stat().st_size for suffix in suffixes)
        return found, size

    def _write(self, exporter: str, path: Path) -> None:
        traced = clone_tensors(self.free.traced)
        made = path.with_suffix('.onnx') if self.kind.of_onnx else path
        with quiet(), torch.no_grad():
            self.kind.exporters[exporter](self.net, traced, made, self.free, self.opset)
        if self.split:
            from .concat_elimination.onnx_rewrite import split  # it needs onnx

            split(made, made, [x.shape for x in self.free.taken[0]])
        if self.kind.of_onnx:
            self.kind.of_onnx(made, path)
        wanted = [*self.free.inputs, *self.free.outputs]
        found = self.kind.names(path) if self.kind.names else [{name} for name in wanted]
        if len(found) != len(wanted) or not all(map(contains, found, wanted)):
            raise ValueError(
                f'the file would have the inputs and outputs {[min(names) for names in found]}'
                f' instead of {wanted}; choose other names (input_names, output_names)'
            )


def compare(
    got: Runner, want: Flat, trials: Sequence[Sequence[torch.Tensor]], tolerance: float
) -> Difference:
    """The largest differences over all inputs.

    Raises:
        ValueError: They are larger than the tolerance, for some input.
    """
    worst = Difference()
    reference = of_module(want)
    for trial in trials:
        found = differences(got(trial), reference(trial))
        allowed = tolerance
        if not found.relative <= tolerance:
            allowed = allowance(want, trial, tolerance)
        if not found.relative <= allowed:
            shape = tuple(trial[0].shape)
            lost = '' if allowed == tolerance else ' (float32 itself loses much here; untrained?)'
            raise ValueError(
                f'for input {shape} the outputs differ by {found.relative:.1e} of their largest '
                f'value, allowed is {allowed:.1e}{lost}'
            )
        worst |= found
    return worst


def _checked(path: Path, dynamic: bool | str, opset: int, exporter: str, split: bool) -> Format:
    kind = FORMATS.get(path.suffix)
    if kind is None:
        known = ', '.join(f'{suffix} ({kind.name})' for suffix, kind in FORMATS.items())
        raise ValueError(f'the end of the name tells the format: {known}; got {str(path)!r}')
    if dynamic not in DYNAMIC:
        raise ValueError(f"dynamic must be True, False or 'batch', got {dynamic!r}")
    if not isinstance(opset, int) or opset < OLDEST_OPSET:
        raise ValueError(f'opset must be {OLDEST_OPSET} or newer, got {opset!r}')
    known = ['auto', *kind.exporters]
    if exporter not in known:
        raise ValueError(f'exporter of {kind.name} must be one of {known}, got {exporter!r}')
    if kind.name == 'onnx' and exporter == 'dynamo' and opset < OPSET:
        raise ValueError(
            f"the 'dynamo' exporter writes opset {DYNAMO_OPSET} or newer, got {opset}; leave opset "
            "out, or give exporter='trace'"
        )
    if split and not kind.splits:
        own = [suffix for suffix, other in FORMATS.items() if other.splits]
        raise ValueError(f'split (--split) works for {own}, got {str(path)!r}')
    return kind


def _chosen_names(
    kind: Format,
    want: Flat,
    example: list[torch.Tensor],
    input_names: Sequence[str] | None,
    output_names: Sequence[str] | None,
) -> tuple[list[str], list[str]]:
    """The names that a file's inputs and outputs get.

    Raises:
        ValueError: Names that it cannot have. TypeError: What is no list of names.
    """
    if not kind.names and (input_names is not None or output_names is not None):
        own = [suffix for suffix, other in FORMATS.items() if other.names]
        raise ValueError(
            f'{kind.name} files hold no names of inputs and outputs; leave input_names and '
            f'output_names (--input-names, --output-names) out, or write one of {own}'
        )
    number = len(example)
    inputs = _named(
        'input_names (--input-names)',
        input_names,
        ['input'] if number == 1 else [f'input_{i}' for i in range(number)],
        [f'{name} {tuple(x.shape)}' for name, x in zip(want.inputs.names, example, strict=True)],
    )
    shapes = [tuple(x.shape) for x in of_module(want)(example)]
    outputs = _named(
        'output_names (--output-names)',
        output_names,
        want.names,
        [f'{name} {shape}' for name, shape in zip(want.names, shapes, strict=True)],
    )
    if both := sorted({*inputs} & {*outputs}):
        raise ValueError(f'inputs and outputs need names of their own, both are called {both}')
    return inputs, outputs


def _named(
    option: str, given: Sequence[str] | None, default: list[str], described: list[str]
) -> list[str]:
    """Names that were given for inputs or outputs, else the default ones."""
    if given is None:
        return default
    there = f'the model has {len(described)}: {", ".join(described)}'
    if isinstance(given, str) or not all(isinstance(name, str) for name in given):
        raise TypeError(f'{option} must be a list of names, got {given!r}; {there}')
    given = list(given)
    if len(given) != len(default):
        raise ValueError(f'{option} must hold a name for each, got {given}; {there}')
    if not all(name.strip() for name in given):
        raise ValueError(f'{option} must not hold empty names, got {given}; {there}')
    if len(set(given)) < len(given):
        raise ValueError(f'{option} must hold different names, got {given}; {there}')
    return given


def _line(error: BaseException) -> str:
    if type(error).__module__.startswith('torch.onnx') and error.__cause__:
        error = error.__cause__  # what the exporter says around it are its own steps
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f'{type(error).__name__}: {lines[0] if lines else ""}'
