"""Writers and readers of the exported file formats, without checks."""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..utils import optional, torch_compat
from ..utils.modules import call_model
from .flat_io import TensorIO
from .free_axes import FreeAxes
from .inference import (
    AOT_AXES,
    InferenceFn,
    aot_fn,
    onnxruntime_fn,
    openvino_core,
    openvino_fn,
    program_fn,
    torchscript_fn,
)
from .mobile_formats import (
    executorch_fn,
    litert_fn,
    ncnn_fn,
    write_executorch,
    write_litert,
    write_ncnn,
)

Tensors = Sequence[torch.Tensor]
DYNAMO_OPSET = 18  # the oldest opset that the exporter through torch.export writes


def _write_onnx_by_tracing(
    model: TensorIO, inputs: Tensors, path: Path, free: FreeAxes, opset: int
) -> None:
    """Write ONNX with the exporter that traces one call."""
    optional.require('onnx')
    dynamic_axes = {name: axes for name, axes in (free.inputs | free.outputs).items() if axes}
    # Buffers that a network makes for a new size and keeps must not become part of the graph.
    call_model(model, tuple(inputs))
    torch.onnx.export(
        model,
        tuple(inputs),
        str(path),
        input_names=list(free.inputs),
        output_names=list(free.outputs),
        dynamic_axes=dynamic_axes or None,
        opset_version=opset,
        **torch_compat.TRACED,
    )


def _write_onnx_by_export(
    model: TensorIO, inputs: Tensors, path: Path, free: FreeAxes, opset: int
) -> None:
    """Write ONNX with the exporter through ``torch.export``.

    Raises:
        ValueError: The exporter cannot write this opset.
    """
    optional.require('onnx', 'onnxscript')
    import onnx

    torch.onnx.export(
        model,
        tuple(inputs),
        str(path),
        input_names=list(free.inputs),
        output_names=list(free.outputs),
        dynamic_shapes=_dynamic_shapes(free, named=torch_compat.NAMES_AXES),
        opset_version=max(opset, DYNAMO_OPSET),
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    found = next(own.version for own in onnx.load(path).opset_import if not own.domain)
    if found != max(opset, DYNAMO_OPSET):  # the exporter only warns where it cannot convert
        raise ValueError(f'it writes opset {found}, not {opset}')


def _onnx_to_openvino(source: Path, path: Path) -> None:
    """Convert an ONNX file to OpenVINO's IR."""
    optional.require('openvino')
    import openvino

    openvino.save_model(openvino.convert_model(str(source)), str(path), compress_to_fp16=False)


def _onnx_names(path: Path) -> list[set[str]]:
    """Return the name of each input and output of an ONNX file."""
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    return [{value.name} for value in (*graph.input, *graph.output)]


def _openvino_names(path: Path) -> list[set[str]]:
    """Return the names of each input and output of OpenVINO's IR; equal outputs have several."""
    model = openvino_core().read_model(str(path))
    return [value.get_names() for value in (*model.inputs, *model.outputs)]


def _write_torchscript(
    model: TensorIO, inputs: Tensors, path: Path, free: FreeAxes, opset: int
) -> None:
    """Write TorchScript by tracing one call."""
    torch.jit.trace(model, tuple(inputs), check_trace=False).save(str(path))


def _write_program(
    model: TensorIO, inputs: Tensors, path: Path, free: FreeAxes, opset: int
) -> None:
    """Write a program of ``torch.export``."""
    torch.export.save(_exported(model, inputs, free), path)


def _write_aot(model: TensorIO, inputs: Tensors, path: Path, free: FreeAxes, opset: int) -> None:
    """Compile with AOTInductor and write the package."""
    axes = [
        (str(x.dtype), [names.get(axis, size) for axis, size in enumerate(x.shape)])
        for x, names in zip(inputs, free.inputs.values(), strict=True)
    ]
    torch._inductor.aoti_compile_and_package(
        _exported(model, inputs, free),
        package_path=str(path),
        inductor_configs={
            'cpp.cxx': (None, cpp_compiler()),
            'freezing': True,
            'aot_inductor.metadata': {AOT_AXES: json.dumps(axes)},
        },
    )


def cpp_compiler() -> str:
    """Return the C++ compiler that AOTInductor uses.

    Raises:
        RuntimeError: This version of torch has no AOTInductor packages, or there is no compiler.
    """
    if not torch_compat.HAS_AOTINDUCTOR:
        raise RuntimeError(
            f'AOTInductor packages need torch 2.6 or newer, this is {torch.__version__}; without '
            'aot=True a .pt2 file holds a program of torch.export'
        )
    chosen = os.environ.get('CXX')
    found = next(filter(shutil.which, [chosen] if chosen else ['g++', 'clang++']), None)
    if found is None:
        raise RuntimeError(
            f'AOTInductor needs a C++ compiler, and {chosen or "neither g++ nor clang++"} was '
            'found; install g++ or set CXX to a compiler. Only writing needs it; files that were '
            'written elsewhere load without one'
        )
    return found


def _exported(model: TensorIO, inputs: Tensors, free: FreeAxes) -> torch.export.ExportedProgram:
    shapes = _dynamic_shapes(free, named=False)
    return torch.export.export(model, tuple(inputs), dynamic_shapes=shapes)


def _dynamic_shapes(free: FreeAxes, named: bool) -> Any:
    if not any(free.inputs.values()):
        return None
    if not torch_compat.EXPORTS_FREE:
        raise RuntimeError(
            f'dynamic axes need torch 2.6 or newer here, this is {torch.__version__}'
        )
    dim = torch.export.Dim.DYNAMIC
    return (tuple({i: n if named else dim for i, n in a.items()} for a in free.inputs.values()),)


@dataclass(frozen=True)
class Format:
    """One file format.

    Attributes:
        name: For people.
        exporters: Writers by name, in the order in which they are tried.
        read: Makes an inference function of a file.
        companions: Suffixes of files that belong to it.
        from_onnx: Converts an ONNX file, for formats whose exporters write ONNX.
        splits_concat: Concatenations of Ghost layers can be eliminated in it.
        names: Reads the names of each input and output; None for formats without names.
        portable: Converters of other runtimes read it.
        indexing: It can hold channel permutations as indexing.
        dynamic: Its dynamic axes at most, as :func:`find_free_axes` takes them.
        pixels: dtype in which it takes the pixels of images.
    """

    name: str
    exporters: dict[str, Callable[..., None]]
    read: Callable[[Path], InferenceFn]
    companions: tuple[str, ...] = ()
    from_onnx: Callable[[Path, Path], None] | None = None
    splits_concat: bool = False
    names: Callable[[Path], list[set[str]]] | None = None
    portable: bool = False
    indexing: bool = True
    dynamic: bool | str = True
    pixels: torch.dtype = torch.uint8


# By suffix.
FORMATS = {
    '.onnx': Format(
        'onnx',
        {'trace': _write_onnx_by_tracing, 'dynamo': _write_onnx_by_export},
        onnxruntime_fn,
        splits_concat=True,
        names=_onnx_names,
        portable=True,
    ),
    '.xml': Format(
        'openvino',
        {'trace': _write_onnx_by_tracing},
        openvino_fn,
        ('.bin',),
        _onnx_to_openvino,
        splits_concat=True,
        names=_openvino_names,
    ),
    '.pt': Format('torchscript', {'trace': _write_torchscript}, torchscript_fn, portable=True),
    '.pt2': Format('program', {'dynamo': _write_program}, program_fn),
    '.ncnn.param': Format(
        'ncnn',
        {'pnnx': write_ncnn},
        ncnn_fn,
        ('.bin',),
        indexing=False,
        dynamic='size',
        pixels=torch.float32,
    ),
    '.tflite': Format('litert', {'litert': write_litert}, litert_fn, portable=True, dynamic=False),
    '.pte': Format(
        'executorch', {'executorch': write_executorch}, executorch_fn, portable=True, dynamic=False
    ),
}
AOT = Format('aot', {'aot': _write_aot}, aot_fn)
