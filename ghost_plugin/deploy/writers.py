"""How each file format is written; nothing is checked here."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .. import _optional, _torch
from ..analysis import call
from .outputs import Flat
from .runners import Runner, of_onnx, of_openvino, of_program, of_torchscript

Inputs = Sequence[torch.Tensor]
AXES = {0: 'batch', 2: 'height', 3: 'width'}  # of pictures, (N, C, H, W)
DYNAMIC = (True, False, 'batch')


def axes(value: torch.Tensor, dynamic: bool | str) -> dict[int, str]:
    """Names of the axes that are free; sizes only of what has four."""
    if not dynamic or not value.dim():
        return {}
    return AXES if dynamic is True and value.dim() == 4 else {0: 'batch'}


def input_names(inputs: Inputs) -> list[str]:
    """``input``, or numbered where there are several."""
    return ['input'] if len(inputs) == 1 else [f'input_{i}' for i in range(len(inputs))]


def _named_axes(names: Sequence[str], values: Sequence, dynamic: Any) -> dict[str, dict[int, str]]:
    """Free axes. The batch is one for all; sizes of one name would be equal to the runtimes."""

    def named(name: str, own: dict[int, str]) -> dict[int, str]:
        alone = name == 'input'
        return {i: w if alone or w == 'batch' else f'{name}_{w}' for i, w in own.items()}

    own = (axes(value, dynamic) for value in values)
    return {name: named(name, free) for name, free in zip(names, own, strict=True) if free}


def onnx_by_tracing(flat: Flat, inputs: Inputs, path: Path, dynamic: Any, opset: int) -> None:
    """By the exporter that traces one call."""
    _optional.require('onnx')
    names = input_names(inputs)
    outputs = call(flat, tuple(inputs))
    free = _named_axes([*names, *flat.names], [*inputs, *outputs], dynamic)
    with _without_graphs():
        torch.onnx.export(
            flat,
            tuple(inputs),
            str(path),
            input_names=names,
            output_names=flat.names,
            dynamic_axes=free or None,
            opset_version=opset,
            **_torch.TRACED,
        )


@contextmanager
def _without_graphs() -> Iterator[None]:
    """The tracing exporter prints the graph at which it fails, which no option of it prevents."""
    log = torch._C._jit_onnx_log
    torch._C._jit_onnx_log = lambda *parts: None
    try:
        yield
    finally:
        torch._C._jit_onnx_log = log


def onnx_by_export(flat: Flat, inputs: Inputs, path: Path, dynamic: Any, opset: int) -> None:
    """By the exporter that goes through ``torch.export``."""
    _optional.require('onnx', 'onnxscript')
    import onnx

    torch.onnx.export(
        flat,
        tuple(inputs),
        str(path),
        input_names=input_names(inputs),
        output_names=flat.names,
        dynamic_shapes=_shapes(inputs, dynamic),
        opset_version=max(opset, 18),
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    found = next(own.version for own in onnx.load(path).opset_import if not own.domain)
    if found != max(opset, 18):  # it only warns where it cannot convert
        raise ValueError(f'it writes opset {found}, not {opset}')


def openvino_ir(source: Path, path: Path) -> None:
    """OpenVINO's IR of an ONNX file."""
    _optional.require('openvino')
    import openvino

    openvino.save_model(openvino.convert_model(str(source)), str(path), compress_to_fp16=False)


def torchscript(flat: Flat, inputs: Inputs, path: Path, dynamic: Any, opset: int) -> None:
    """TorchScript of one traced call, which takes any batch and size."""
    torch.jit.trace(flat, tuple(inputs), check_trace=False).save(str(path))


def program(flat: Flat, inputs: Inputs, path: Path, dynamic: Any, opset: int) -> None:
    """``torch.export``."""
    shapes = _shapes(inputs, dynamic)
    exported = torch.export.export(flat, tuple(inputs), dynamic_shapes=shapes)
    torch.export.save(exported, path)


def _shapes(inputs: Inputs, dynamic: bool | str) -> Any:
    if not dynamic:
        return None
    if not _torch.EXPORTS_FREE:
        raise RuntimeError(f'free sizes need torch 2.6 or newer here, this is {torch.__version__}')
    free = torch.export.Dim.DYNAMIC
    return (tuple(dict.fromkeys(axes(value, dynamic), free) for value in inputs),)


@dataclass(frozen=True)
class Format:
    """One kind of file.

    Attributes:
        name: For people.
        exporters: How it can be written, by name, in the order in which they are tried.
        read: The file as something to call.
        others: Suffixes of files that belong to it.
        of_onnx: Makes it of an ONNX file, where the exporters write that.
        splits: Whether halves of Ghost layers can go their own ways in it.
    """

    name: str
    exporters: dict[str, Callable[..., None]]
    read: Callable[[Path], Runner]
    others: tuple[str, ...] = ()
    of_onnx: Callable[[Path, Path], None] | None = None
    splits: bool = False


# By the end of the file's name.
FORMATS = {
    '.onnx': Format(
        'onnx', {'trace': onnx_by_tracing, 'dynamo': onnx_by_export}, of_onnx, splits=True
    ),
    '.xml': Format(
        'openvino', {'trace': onnx_by_tracing}, of_openvino, ('.bin',), openvino_ir, splits=True
    ),
    '.pt': Format('torchscript', {'trace': torchscript}, of_torchscript),
    '.pt2': Format('program', {'dynamo': program}, of_program),
}
