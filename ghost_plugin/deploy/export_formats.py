"""How each file format is written; nothing is checked here."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..utils import optional, torch_compat
from ..utils.modules import call_model
from .comparison import Flat
from .free_axes import FreeAxes
from .inference import Runner, of_onnx, of_openvino, of_program, of_torchscript, openvino_core

Inputs = Sequence[torch.Tensor]
DYNAMO_OPSET = 18  # the oldest that the exporter through torch.export writes


def onnx_by_tracing(flat: Flat, inputs: Inputs, path: Path, free: FreeAxes, opset: int) -> None:
    """By the exporter that traces one call."""
    optional.require('onnx')
    dynamic_axes = {name: axes for name, axes in (free.inputs | free.outputs).items() if axes}
    call_model(
        flat, tuple(inputs)
    )  # what a network makes for a new size, and keeps, is no step of it
    with _without_graphs():
        torch.onnx.export(
            flat,
            tuple(inputs),
            str(path),
            input_names=list(free.inputs),
            output_names=list(free.outputs),
            dynamic_axes=dynamic_axes or None,
            opset_version=opset,
            **torch_compat.TRACED,
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


def onnx_by_export(flat: Flat, inputs: Inputs, path: Path, free: FreeAxes, opset: int) -> None:
    """By the exporter that goes through ``torch.export``."""
    optional.require('onnx', 'onnxscript')
    import onnx

    torch.onnx.export(
        flat,
        tuple(inputs),
        str(path),
        input_names=list(free.inputs),
        output_names=list(free.outputs),
        dynamic_shapes=_shapes(free, named=torch_compat.NAMES_AXES),
        opset_version=max(opset, DYNAMO_OPSET),
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    found = next(own.version for own in onnx.load(path).opset_import if not own.domain)
    if found != max(opset, DYNAMO_OPSET):  # it only warns where it cannot convert
        raise ValueError(f'it writes opset {found}, not {opset}')


def openvino_ir(source: Path, path: Path) -> None:
    """OpenVINO's IR of an ONNX file."""
    optional.require('openvino')
    import openvino

    openvino.save_model(openvino.convert_model(str(source)), str(path), compress_to_fp16=False)


def onnx_names(path: Path) -> list[set[str]]:
    """The name of each input and output of an ONNX file."""
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    return [{value.name} for value in (*graph.input, *graph.output)]


def openvino_names(path: Path) -> list[set[str]]:
    """The names of each input and output of OpenVINO's IR; equal outputs have several."""
    model = openvino_core().read_model(str(path))
    return [value.get_names() for value in (*model.inputs, *model.outputs)]


def torchscript(flat: Flat, inputs: Inputs, path: Path, free: FreeAxes, opset: int) -> None:
    """TorchScript of one traced call, which takes any batch and size."""
    torch.jit.trace(flat, tuple(inputs), check_trace=False).save(str(path))


def program(flat: Flat, inputs: Inputs, path: Path, free: FreeAxes, opset: int) -> None:
    """``torch.export``."""
    exported = torch.export.export(flat, tuple(inputs), dynamic_shapes=_shapes(free, named=False))
    torch.export.save(exported, path)


def _shapes(free: FreeAxes, named: bool) -> Any:
    if not any(free.inputs.values()):
        return None
    if not torch_compat.EXPORTS_FREE:
        raise RuntimeError(f'free sizes need torch 2.6 or newer here, this is {torch.__version__}')
    own = torch.export.Dim.DYNAMIC
    return (tuple({i: n if named else own for i, n in a.items()} for a in free.inputs.values()),)


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
        names: Gives the names of each input and output of a file; None where files hold no names.
        converted: Whether people make files of other runtimes from it.
    """

    name: str
    exporters: dict[str, Callable[..., None]]
    read: Callable[[Path], Runner]
    others: tuple[str, ...] = ()
    of_onnx: Callable[[Path, Path], None] | None = None
    splits: bool = False
    names: Callable[[Path], list[set[str]]] | None = None
    converted: bool = False


# By the end of the file's name.
FORMATS = {
    '.onnx': Format(
        'onnx',
        {'trace': onnx_by_tracing, 'dynamo': onnx_by_export},
        of_onnx,
        splits=True,
        names=onnx_names,
        converted=True,
    ),
    '.xml': Format(
        'openvino',
        {'trace': onnx_by_tracing},
        of_openvino,
        ('.bin',),
        openvino_ir,
        splits=True,
        names=openvino_names,
    ),
    '.pt': Format('torchscript', {'trace': torchscript}, of_torchscript, converted=True),
    '.pt2': Format('program', {'dynamo': program}, of_program),
}
