"""Export a model to a file of another runtime, compared with PyTorch before it is kept."""

import os
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from operator import contains
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..layers.bn_folding import check_inference
from ..utils.atomic_io import atomic_write_all, check_writable
from ..utils.modules import clone_tensors, plain_forward
from .comparison import Difference, differences, float32_tolerance
from .export_formats import AOT, DYNAMO_OPSET, FORMATS, Format, cpp_compiler
from .flat_io import TensorIO, input_tensors
from .free_axes import FreeAxes, find_free_axes
from .fusion import fuse
from .image_input import ImageInput, PixelModel, check_images
from .inference import InferenceFn, pytorch_fn, quiet
from .permutations import with_constant_permutations
from .profiles import Profile, check_profile, fit_file

OPSET = 17
OLDEST_OPSET = 11
DYNAMIC = (True, False, 'batch')
TOLERANCE = 1e-4


@dataclass(frozen=True)
class ExportReport:
    """Report of the written files and their largest difference from the model.

    Attributes:
        path: The file.
        format: Name of a row of ``deploy.export_formats.FORMATS``, or ``'aot'``.
        exporter: ``'trace'`` or ``'dynamo'``; formats with one exporter have another name.
        dynamic: As given.
        free: Dynamic axes by the name of the input, as names by their index; other axes have the
            example's size.
        max_abs_diff: Largest difference of an output element, over all inputs that were compared.
        max_rel_diff: The same, divided by the largest value of that output.
        checked: Shapes of the first argument that were compared.
        refused: Shapes of the first argument that PyTorch itself does not accept.
        size: Bytes of the file and its companions.
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
        """Return plain values, for JSON."""
        return {**asdict(self), 'path': str(self.path)}


@plain_forward()
def export(
    model: nn.Module,
    example_input: Any,
    path: str | os.PathLike,
    *,
    aot: bool = False,
    dynamic: bool | str = True,
    opset: int = OPSET,
    profile: str | None = None,
    exporter: str = 'auto',
    fused: bool = True,
    split_concat: bool | str = False,
    portable: bool = True,
    tolerance: float = TOLERANCE,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    image_input: ImageInput | None = None,
    split: bool | None = None,
) -> ExportReport:
    """Write a model as a file of another runtime; compare both before the file is kept.

    Args:
        model: In eval mode, on the CPU; it stays unchanged. For a detector of OpenMMLab the file
            returns what its own forward returns for raw tensors: the feature maps of its head.
        example_input: A tensor, a tuple of arguments or a mapping of keyword arguments. Arguments
            that are not tensors are fixed.
        path: File to write; an existing one is replaced after the new one was compared. Its suffix
            selects the format: ``.onnx``, ``.xml`` (OpenVINO's IR), ``.pt`` (TorchScript),
            ``.pt2`` (``torch.export``), ``.ncnn.param`` (ncnn), ``.tflite`` (LiteRT) or ``.pte``
            (ExecuTorch).
        aot: Compile a ``.pt2`` file with AOTInductor for this kind of processor. That needs a C++
            compiler; loading it does not (``torch._inductor.aoti_load_package``).
        dynamic: True for dynamic batch, height and width, ``'batch'`` for the batch only, False
            for none. The axes are found by calling the model
            (:func:`ghost_plugin.deploy.free_axes.find_free_axes`); axes along which the model
            accepts one size only are fixed. The report lists the dynamic axes. Some formats hold
            less: with True a ``.ncnn.param`` file has dynamic height and width where pnnx
            converts them, and a batch of 1; ``.tflite`` and ``.pte`` files have the shape of the
            example.
        opset: Opset of ONNX, 11 or newer. The ``'dynamo'`` exporter writes 18 or newer and is used
            for 17 or newer only.
        profile: Write ONNX for an older compiler, a key of
            :data:`ghost_plugin.deploy.profiles.PROFILES`: with its opset, the shape of the example
            and no operator that it does not know.
        exporter: ``'trace'``, ``'dynamo'``, or ``'auto'`` for the first that works.
        fused: Fold norms and merge branches first (:func:`ghost_plugin.fuse`).
        split_concat: Eliminate the concatenations of Ghost layers that are large for the example,
            in ``.onnx`` and ``.xml``: True, False, or ``'auto'`` for True where there are any.
            :func:`ghost_plugin.optimize` measures which is faster.
        portable: Write the channel permutations and shifts of a model in ``.onnx``, ``.pt``,
            ``.tflite`` and ``.pte`` as convolutions, which all runtimes and converters read. False
            writes indexing, which is faster in ONNX Runtime but misread by pnnx, the converter of
            ncnn, without an error. ``.ncnn.param`` files always hold convolutions, ``.xml`` and
            ``.pt2`` indexing.
        tolerance: Largest difference, relative to the largest value of an output; more is allowed
            where float32 itself loses more
            (:func:`ghost_plugin.deploy.comparison.float32_tolerance`).
        input_names: Names in ``.onnx`` and ``.xml`` files, one per tensor of ``example_input``.
        output_names: Names in ``.onnx`` and ``.xml`` files, one per output tensor. By default
            names are ``input`` and ``output``, numbered from 0 where there are several.
        image_input: Pixels that the file takes and normalizes itself, in uint8, such as
            ``gp.ImageInput(mean, std, channels_last=True)``. ``.ncnn.param`` files take them in
            float32, channels first, as ``Mat.from_pixels`` of ncnn makes them. The example remains
            the input of the model, with normalized images.
        split: Deprecated name of ``split_concat``.

    Returns:
        The report with the largest difference.

    Raises:
        ValueError: The model is in training mode; a wrong option; the model accepts one image size
            only and ``dynamic`` is True; ``dynamic='batch'`` for a format of a fixed batch; no
            exporter accepts the model; outputs differ. Nothing is written then.
        TypeError: The example holds no tensor, or outputs are not tensors, tuples, mappings or
            dataclasses of these.
        ImportError: A package that the format needs is not installed.
        RuntimeError: ``aot`` without a C++ compiler, or with torch before 2.6.
        OSError: The file cannot be written there.
    """
    if split is not None:
        warnings.warn('split is deprecated, use split_concat', FutureWarning, stacklevel=3)
        split_concat = split
    check_inference(model)
    path = Path(path)
    kind = _format(path, aot)
    fitted = check_profile(profile, kind.name, opset, OPSET, portable) if profile else None
    if fitted:
        kind, opset = replace(kind, dynamic=False), fitted.opset
    _check_options(path, kind, dynamic, opset, exporter, split_concat, image_input)
    check_writable(path, *kind.companions)
    example = input_tensors(example_input)
    if any(value.device.type != 'cpu' for value in example):
        raise ValueError('export works on the CPU; move model and example_input there first')
    reference = TensorIO(model, example_input)
    constant = with_constant_permutations(
        fuse(model) if fused else model,
        (portable and kind.portable) or not kind.indexing,
    )
    net = TensorIO(constant, example_input)
    if image_input is not None:
        check_images(example, image_input)
        example = [image_input.pixels(example[0], kind.pixels)]
        reference, net = (
            TensorIO(PixelModel(io, image_input), example[0]) for io in (reference, net)
        )
    names = _chosen_names(kind, reference, example, input_names, output_names)
    limited = dynamic is True and kind.dynamic is not True
    problems: dict[str, None] = {}  # in their order, each once
    for axes in dict.fromkeys([kind.dynamic, False]) if limited else [dynamic]:
        free = find_free_axes(reference, example, axes, *names)
        task = _Task(path, kind, net, reference, free, opset, split_concat, tolerance, fitted)
        for name in _exporters(kind, exporter, opset):
            try:
                found, size = task.run(name)
            except ImportError:
                raise
            except Exception as error:  # exporters raise any kind
                if getattr(error, 'errno', None):
                    raise  # disk errors; tracers' own OSErrors have no number
                problems[f'{name}: {_first_line(error)}'] = None
                continue
            return _report(task, name, dynamic, found, size)
    raise ValueError(
        f'{type(model).__name__} cannot be written as {kind.name}, nothing was written; '
        f'{"; ".join(problems)}{_hint(kind, OPSET if fitted else opset, dynamic, free)}'
    )


def _report(
    task: '_Task', exporter: str, dynamic: bool | str, found: Difference, size: int
) -> ExportReport:
    free = task.free
    checked, refused = (
        tuple(tuple(x[0].shape) for x in some) for some in (free.accepted, free.refused)
    )
    figures = (found.absolute, found.relative, checked, refused, size)
    return ExportReport(task.path, task.kind.name, exporter, dynamic, free.inputs, *figures)


def export_onnx(
    model: nn.Module,
    example_input: Any,
    path: str | os.PathLike,
    dynamic: bool | str = True,
    *,
    opset: int = OPSET,
    profile: str | None = None,
    exporter: str = 'auto',
    fused: bool = True,
    split_concat: bool | str = False,
    portable: bool = True,
    tolerance: float = TOLERANCE,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    image_input: ImageInput | None = None,
    split: bool | None = None,
) -> ExportReport:
    """Call :func:`export` for a path that must end in ``.onnx``.

    Args:
        model, example_input, path, dynamic, opset, profile, exporter, fused: As in :func:`export`.
        split_concat, portable, tolerance, input_names, output_names, image_input, split: The same.
    """
    options = dict(locals())
    if Path(path).suffix != '.onnx':
        raise ValueError(f'the name of an ONNX file ends in .onnx, got {os.fspath(path)!r}')
    return export(**options)


def _hint(kind: Format, opset: int, dynamic: bool | str, free: FreeAxes) -> str:
    """Suggest options that ask for less."""
    hints = []
    if kind.name == 'onnx' and opset < OPSET:
        hints.append(f'; opset {OPSET} (--opset {OPSET}) has more operators than {opset}')
    if dynamic is kind.dynamic is True and any(len(axes) > 1 for axes in free.inputs.values()):
        hints.append("; dynamic='batch' (--dynamic batch) asks for less")
    elif any(free.inputs.values()):
        hints.append('; dynamic=False (--dynamic none) asks for less')
    return ''.join(hints)


def _exporters(kind: Format, exporter: str, opset: int) -> list[str]:
    """List the exporters to try."""
    if exporter != 'auto':
        return [exporter]
    old = kind.name == 'onnx' and opset < OPSET
    return [name for name in kind.exporters if not (old and name == 'dynamo')]


@dataclass(frozen=True)
class _Task:
    """Everything that writing one file needs but the exporter."""

    path: Path
    kind: Format
    net: TensorIO
    reference: TensorIO
    free: FreeAxes
    opset: int
    split_concat: bool | str
    tolerance: float
    profile: Profile | None

    def run(self, exporter: str) -> tuple[Difference, int]:
        """Write, compare and keep the file; return the difference and the size in bytes."""
        with atomic_write_all(self.path, *self.kind.companions) as partial:
            self._write(exporter, partial)
            run = self.kind.read(partial)
            found = compare(run, self.reference, self.free.accepted, self.tolerance)
            suffixes = (partial.suffix, *self.kind.companions)
            size = sum(partial.with_suffix(suffix).stat().st_size for suffix in suffixes)
        return found, size

    def _write(self, exporter: str, path: Path) -> None:
        traced = clone_tensors(self.free.traced)
        made = path.with_suffix('.onnx') if self.kind.from_onnx else path
        with quiet(), torch.no_grad():
            self.kind.exporters[exporter](self.net, traced, made, self.free, self.opset)
        if self.split_concat:
            from .concat_elimination.onnx_rewrite import split_file  # imports onnx

            shapes = [x.shape for x in self.free.accepted[0]]
            split_file(made, made, shapes, required=self.split_concat is True)
        if self.profile:
            fit_file(made, self.profile)
        if self.kind.from_onnx:
            self.kind.from_onnx(made, path)
        wanted = [*self.free.inputs, *self.free.outputs]
        found = self.kind.names(path) if self.kind.names else [{name} for name in wanted]
        if len(found) != len(wanted) or not all(map(contains, found, wanted)):
            raise ValueError(
                f'the file would have the inputs and outputs {[min(names) for names in found]}'
                f' instead of {wanted}; choose other names (input_names, output_names)'
            )


def compare(
    run: InferenceFn,
    reference: TensorIO,
    inputs: Sequence[Sequence[torch.Tensor]],
    tolerance: float,
) -> Difference:
    """Return the largest difference between an inference function and a model.

    Args:
        run: The inference function.
        reference: The model.
        inputs: Input tensors of each call.
        tolerance: Allowed relative difference, see
            :func:`ghost_plugin.deploy.comparison.float32_tolerance`.

    Raises:
        ValueError: The difference is larger for some input.
    """
    worst = Difference()
    expected = pytorch_fn(reference)
    for given in inputs:
        found = differences(run(given), expected(given))
        allowed = tolerance
        if not found.relative <= tolerance:
            allowed = float32_tolerance(reference, given, tolerance)
        if not found.relative <= allowed:
            shape = tuple(given[0].shape)
            note = '' if allowed == tolerance else ' (float32 itself loses much here; untrained?)'
            raise ValueError(
                f'for input {shape} the outputs differ by {found.relative:.1e} of their largest '
                f'value, allowed is {allowed:.1e}{note}'
            )
        worst |= found
    return worst


def _format(path: Path, aot: bool) -> Format:
    """Select the format by suffix."""
    suffix = next((s for s in FORMATS if path.name.endswith(s) and path.name != s), None)
    if suffix is None:
        known = ', '.join(f'{suffix} ({kind.name})' for suffix, kind in FORMATS.items())
        raise ValueError(f'the suffix selects the format: {known}; got {str(path)!r}')
    if not aot:
        return FORMATS[suffix]
    if suffix != '.pt2':
        raise ValueError(f'a file of aot=True (--aot) ends in .pt2, got {str(path)!r}')
    cpp_compiler()
    return AOT


def _check_options(
    path: Path,
    kind: Format,
    dynamic: bool | str,
    opset: int,
    exporter: str,
    split_concat: bool | str,
    image_input: ImageInput | None,
) -> None:
    if dynamic not in DYNAMIC:
        raise ValueError(f"dynamic must be True, False or 'batch', got {dynamic!r}")
    if dynamic == 'batch' and kind.dynamic not in (True, 'batch'):
        raise ValueError(
            f"{kind.name} files have a fixed batch; leave dynamic='batch' (--dynamic batch) out "
            'and give an example with the batch that the file shall take'
        )
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
    if split_concat not in (True, False, 'auto'):
        raise ValueError(f"split_concat must be True, False or 'auto', got {split_concat!r}")
    if split_concat and not kind.splits_concat:
        suffixes = [suffix for suffix, other in FORMATS.items() if other.splits_concat]
        raise ValueError(f'split_concat (--split-concat) works for {suffixes}, got {str(path)!r}')
    if image_input and image_input.channels_last and kind.pixels != torch.uint8:
        raise ValueError(
            f'a {kind.name} file takes channels first, which Mat.from_pixels makes of images with '
            'channels last; leave channels_last (--uint8 NHWC) out'
        )


def _chosen_names(
    kind: Format,
    reference: TensorIO,
    example: list[torch.Tensor],
    input_names: Sequence[str] | None,
    output_names: Sequence[str] | None,
) -> tuple[list[str], list[str]]:
    """Return the names of the inputs and outputs of a file.

    Raises:
        ValueError: The format has no names, or names are empty, repeated or too few.
        TypeError: The names are not a list of strings.
    """
    if not kind.names and (input_names is not None or output_names is not None):
        suffixes = [suffix for suffix, other in FORMATS.items() if other.names]
        raise ValueError(
            f'{kind.name} files hold no names of inputs and outputs; leave input_names and '
            f'output_names (--input-names, --output-names) out, or write one of {suffixes}'
        )
    number = len(example)
    inputs = _named(
        'input_names (--input-names)',
        input_names,
        ['input'] if number == 1 else [f'input_{i}' for i in range(number)],
        [
            f'{name} {tuple(x.shape)}'
            for name, x in zip(reference.inputs.names, example, strict=True)
        ],
    )
    shapes = [tuple(x.shape) for x in pytorch_fn(reference)(example)]
    outputs = _named(
        'output_names (--output-names)',
        output_names,
        reference.names,
        [f'{name} {shape}' for name, shape in zip(reference.names, shapes, strict=True)],
    )
    if both := sorted({*inputs} & {*outputs}):
        raise ValueError(f'inputs and outputs need names of their own, both are called {both}')
    return inputs, outputs


def _named(
    option: str, given: Sequence[str] | None, default: list[str], described: list[str]
) -> list[str]:
    """Check the given names of inputs or outputs; return the default ones if there are none."""
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


def _first_line(error: BaseException) -> str:
    if type(error).__module__.startswith('torch.onnx') and error.__cause__:
        error = error.__cause__  # the exporter wraps it in a list of its own steps
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f'{type(error).__name__}: {lines[0] if lines else ""}'
