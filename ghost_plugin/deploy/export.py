"""A model as a file for other runtimes, compared with PyTorch before it takes its place."""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .._files import check_target, whole_files
from ..analysis import own_passes, owned
from ..layers.folding import check_inference
from .fuse import fuse
from .inputs import arguments
from .outputs import Difference, Flat, allowance, differences
from .runners import Runner, of_module, quiet
from .writers import DYNAMIC, FORMATS, Format

OPSET = 17
TOLERANCE = 1e-4
# What a dynamic file is tried with besides the example: batch, and pixels more in height and width.
_TRIALS = ((1, 0, 0), (3, 0, 0), (1, 64, 0), (3, 32, 96), (2, 17, 5))
_TRACED = 224  # least side that is traced where the size is free, pixels


@dataclass(frozen=True)
class ExportReport:
    """What was written and how far it lies from the model.

    Attributes:
        path: The file.
        format: ``'onnx'``, ``'openvino'``, ``'torchscript'`` or ``'program'``.
        exporter: ``'trace'`` or ``'dynamo'``.
        dynamic: As given.
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
    max_abs_diff: float
    max_rel_diff: float
    checked: tuple[tuple[int, ...], ...]
    refused: tuple[tuple[int, ...], ...]
    size: int

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**asdict(self), 'path': str(self.path)}


@own_passes()
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
    tolerance: float = TOLERANCE,
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
        dynamic: True frees batch, height and width of (N, C, H, W) inputs, ``'batch'`` the batch
            only, False nothing.
        opset: Of ONNX, 17 or newer; the ``'dynamo'`` exporter writes 18 at least. One that no
            exporter writes is refused.
        exporter: ``'trace'``, ``'dynamo'``, or ``'auto'``, which takes the first that works.
        fused: Fold norms and merge branches first (:func:`ghost_plugin.fuse`).
        split: Let the halves of Ghost layers go their own ways instead of being joined where maps
            of the example's batch and size are large, in ``.onnx`` and ``.xml``. Whether that is
            faster, :func:`ghost_plugin.optimize` finds out.
        tolerance: Largest difference allowed, as a share of the largest value of its output; more
            where float32 itself loses more (:func:`ghost_plugin.deploy.outputs.allowance`).

    Returns:
        What was written, and the largest difference.

    Raises:
        ValueError: The model is in training mode; an option that cannot be; no exporter takes the
            model; the file computes something else. Nothing is written then.
        TypeError: The example holds no tensor, or the outputs are something else than tensors,
            tuples, mappings or dataclasses of these. Of outputs the file holds the tensors.
        ImportError: What the format needs is not installed.
        OSError: The file cannot be written there.
    """
    check_inference(model)
    path = Path(path)
    kind = _checked(path, dynamic, opset, exporter, split)
    check_target(path, *kind.others)
    example = arguments(example_input)
    if any(value.device.type != 'cpu' for value in example):
        raise ValueError('export works on the CPU; move model and example_input there first')
    want = Flat(model, example_input)
    net = Flat(fuse(model) if fused else model, example_input)
    trials, refused = _trials(want, example, dynamic)
    task = _Task(path, kind, net, want, trials, dynamic, opset, split, tolerance)
    problems = []
    for name in kind.exporters if exporter == 'auto' else [exporter]:
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
        shapes = [tuple(tuple(trial[0].shape) for trial in some) for some in (trials, refused)]
        return ExportReport(path, kind.name, name, dynamic, *figures, *shapes, size)
    hint = "; dynamic='batch' (--free batch) asks for less" if dynamic is True else ''
    raise ValueError(
        f'{type(model).__name__} cannot be written as {kind.name}, nothing was written; '
        f'{"; ".join(problems)}{hint}'
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


@dataclass(frozen=True)
class _Task:
    """One file to write, whichever exporter does it."""

    path: Path
    kind: Format
    net: Flat
    want: Flat
    trials: list[list[torch.Tensor]]
    dynamic: bool | str
    opset: int
    split: bool
    tolerance: float

    def run(self, exporter: str) -> tuple[Difference, int]:
        """Write, compare, put in place; the difference and the bytes."""
        with whole_files(self.path, *self.kind.others) as partial:
            self._write(exporter, partial)
            found = compare(self.kind.read(partial), self.want, self.trials, self.tolerance)
            suffixes = (partial.suffix, *self.kind.others)
            size = sum(partial.with_suffix(suffix).stat().st_size for suffix in suffixes)
        return found, size

    def _write(self, exporter: str, path: Path) -> None:
        traced = owned([_traced(x, self.dynamic) for x in self.trials[0]])
        made = path.with_suffix('.onnx') if self.kind.of_onnx else path
        with quiet(), torch.no_grad():
            self.kind.exporters[exporter](self.net, traced, made, self.dynamic, self.opset)
        if self.split:
            from .halves import split  # it needs onnx

            split(made, made, [x.shape for x in self.trials[0]])
        if self.kind.of_onnx:
            self.kind.of_onnx(made, path)


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
    if not isinstance(opset, int) or opset < OPSET:
        raise ValueError(f'opset must be {OPSET} or newer, got {opset!r}')
    known = ['auto', *kind.exporters]
    if exporter not in known:
        raise ValueError(f'exporter of {kind.name} must be one of {known}, got {exporter!r}')
    if split and not kind.splits:
        own = [suffix for suffix, other in FORMATS.items() if other.splits]
        raise ValueError(f'split (--split) works for {own}, got {str(path)!r}')
    return kind


Trials = list[list[torch.Tensor]]


def _trials(
    want: nn.Module, example: list[torch.Tensor], dynamic: bool | str
) -> tuple[Trials, Trials]:
    """Inputs to compare with, the example first, and those that the model itself refuses."""
    given = _TRIALS if dynamic is True else [(batch, 0, 0) for batch, *_ in _TRIALS[:2]]
    taken, refused = [example], []
    for change in given if dynamic else ():
        trial = [_resized(x, *change) for x in example]
        try:
            of_module(want)(trial)
        except Exception:  # a model of fixed size says so in its own way
            refused.append(trial)
        else:
            taken.append(trial)
    if dynamic is True and len(refused) == len([g for g in given if any(g[1:])]):
        raise ValueError(
            "the model takes no other size than the example's; give dynamic='batch' (--free batch)"
        )
    return taken, refused


def _traced(x: torch.Tensor, dynamic: bool | str) -> torch.Tensor:
    """What is traced: torch.export takes a batch of one, or a map of one pixel, for a constant."""
    if not dynamic:
        return x
    sides = x.shape[2:] if dynamic is True and x.dim() == 4 else (_TRACED, _TRACED)
    return _resized(x, 2, *(max(0, _TRACED - side) for side in sides))


def _resized(x: torch.Tensor, batch: int, height: int, width: int) -> torch.Tensor:
    """An input of another batch: a picture as noise, with more pixels, else rows of the example.

    What is no picture may hold indices, such as the picture of a box, and some code reads whatever
    memory a wrong one points at; so it is at most made smaller, each row by a factor of its own.
    """
    if not x.dim():
        return x
    if x.dim() != 4 or not x.is_floating_point():
        rows = x[torch.arange(batch) % len(x)] if len(x) else x
        if not x.is_floating_point():
            return rows
        return rows * torch.linspace(0.9, 0.6, len(rows)).view(-1, *[1] * (x.dim() - 1)).to(x)
    shape = [batch, x.shape[1], x.shape[2] + height, x.shape[3] + width]
    generator = torch.Generator().manual_seed(sum(shape))
    spread = x.std() if x.numel() > 1 else 0.1 * x.abs().mean()  # one number has no deviation
    return torch.randn(shape, generator=generator).to(x) * spread + x.mean()


def _line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f'{type(error).__name__}: {lines[0] if lines else ""}'
