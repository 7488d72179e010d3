"""The backends that can run a model on this machine, one row each."""

import functools
import tempfile
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from ..utils import optional
from ..utils.modules import deepcopy_detached, to_channels_last
from .comparison import Difference, differences
from .export_formats import AOT, FORMATS
from .exporting import export
from .flat_io import TensorIO, bind_batches, input_tensors
from .fusion import fuse
from .inference import (
    InferenceFn,
    cuda_graph_fn,
    onnxruntime_fn,
    openvino_fn,
    pytorch_fn,
    quiet,
)
from .mobile_formats import executorch_threads
from .quantization import quantize


class ModelVariants:
    """The variants of one model that backends start from, each built when it is first used.

    Args:
        model: In eval mode; it stays unchanged.
        example_input: A tensor, a tuple of arguments or a mapping of keyword arguments.
        calibration: Inputs for int8, like ``example_input``.
        dynamic: Write files with dynamic axes where possible; otherwise with the example's shape.
    """

    def __init__(
        self,
        model: nn.Module,
        example_input: Any,
        calibration: Iterable[Any] | None = None,
        dynamic: bool = True,
    ) -> None:
        self.model, self.example_input, self.calibration = model, example_input, calibration
        self._dynamic = dynamic
        self.example = input_tensors(example_input)
        self.device = self.example[0].device.type
        self.plain = TensorIO(model, example_input)
        self.reference = pytorch_fn(self.plain)(self.example)
        self._folder = tempfile.TemporaryDirectory(prefix='ghost_plugin-')

    @functools.cached_property
    def fused(self) -> TensorIO:
        """The model fused by :func:`ghost_plugin.fuse`."""
        return TensorIO(fuse(self.model), self.example_input)

    @functools.cached_property
    def channels_last(self) -> TensorIO:
        """``fused``, in channels-last memory format."""
        model = deepcopy_detached(self.fused.model).to(memory_format=torch.channels_last)
        return TensorIO(model, self.example_input)

    @functools.cached_property
    def bfloat16(self) -> TensorIO:
        """``channels_last``, in bfloat16."""
        return _to_bfloat16(self.channels_last.model, self.example_input)

    @functools.cached_property
    def triton(self) -> TensorIO:
        """``bfloat16``, with Triton kernels where they are faster."""
        from .kernels.triton_modules import accelerate  # imports triton

        variant = _to_bfloat16(self.channels_last.model, self.example_input)
        accelerate(variant.model, variant.inputs.example)
        return variant

    def fixed(self, suffix: str, aot: bool = False) -> Path:
        """Write a file for the example's shape.

        Args:
            suffix: A key of ``FORMATS``.
            aot: As in :func:`ghost_plugin.export`.
        """
        path = Path(self._folder.name) / f'model{suffix}'
        export(self.model, self.example_input, path, aot=aot, dynamic=False)
        return path

    @functools.cached_property
    def onnx(self) -> Path:
        """ONNX file."""
        path = Path(self._folder.name) / 'model.onnx'
        write = functools.partial(
            export, self.model, self.example_input, path, exporter='trace', portable=False
        )
        try:
            write(dynamic=self._dynamic)
        except ValueError:
            if not self._dynamic:
                raise
            write(dynamic=False)
        return path

    @functools.cached_property
    def split_concat(self) -> Path:
        """``onnx``, without the concatenations of Ghost layers that are large for the example."""
        from .concat_elimination.onnx_rewrite import split_file  # imports onnx

        path = self.onnx.with_name('split.onnx')
        split_file(self.onnx, path, [x.shape for x in self.example])
        return path

    def quantized(self, suffix: str) -> Path:
        """Write an int8 file.

        Raises:
            ValueError: There are no calibration inputs.
        """
        if self.calibration is None:
            raise ValueError('int8 needs calibration= inputs')
        path = Path(self._folder.name) / f'int8{suffix}'
        signature = self.plain.inputs  # the file takes its tensors in the order of the first batch
        batches = bind_batches(signature, self.calibration)
        quantize(self.model, [signature.with_tensors(batch) for batch in batches], path)
        return path


def _to_bfloat16(model: nn.Module, example_input: Any) -> TensorIO:
    def convert(x: Any) -> Any:
        floating = isinstance(x, torch.Tensor) and x.is_floating_point()
        return to_channels_last(x.bfloat16()) if floating else x

    return TensorIO(deepcopy_detached(model).bfloat16(), pytree.tree_map(convert, example_input))


@dataclass(frozen=True)
class BuildResult:
    """Result of building one backend for one model.

    Attributes:
        run: The inference function; None where the backend does not work.
        difference: Difference of its outputs for the example from the model's.
        reason: Why the backend does not work; '' if it does.
    """

    run: InferenceFn | None = None
    difference: Difference | None = None
    reason: str = ''


@dataclass(frozen=True)
class Backend:
    """One way to run a model.

    Attributes:
        name: Value of ``backend=``.
        dtype: Compute dtype, ``'float32'``, ``'bfloat16'`` or ``'int8'``.
        build: Makes an inference function.
        needs: Packages.
        device: The only device type it runs on, ``'cpu'`` or ``'cuda'``; '' for any.
        split_concat: Concatenations of Ghost layers are eliminated.
    """

    name: str
    dtype: str
    build: Callable[[ModelVariants], InferenceFn]
    needs: tuple[str, ...] = ()
    device: str = field(default='', kw_only=True)
    split_concat: bool = field(default=False, kw_only=True)

    @property
    def label(self) -> str:
        """Name for people, which differs for both values of ``split_concat``."""
        return f'{self.name}, split_concat' if self.split_concat else self.name

    def runs_on(self, device: str) -> bool:
        """Return whether it runs on a device type."""
        return self.device in ('', device)

    def refusal(self, reason: str) -> Exception:
        """Make the error for a backend that was requested by name and does not work."""
        kind = ValueError if optional.usable(*self.needs) else ImportError
        return kind(f'{self.name} does not work here: {reason}')

    def try_build(self, variants: ModelVariants, calls: int = 1) -> BuildResult:
        """Build the inference function, call it and compare its outputs with the model's.

        Args:
            variants: Of the model.
            calls: Number of calls; the last one is compared.
        """
        missing = next((name for name in self.needs if not optional.usable(name)), '')
        if missing:
            return BuildResult(reason=f'{missing} is not installed')
        if not self.runs_on(variants.device):
            return BuildResult(reason=f'runs on {self.device} only, not on {variants.device}')
        try:
            run = self.build(variants)
            for _ in range(calls):
                outputs = run(variants.example)
            difference = differences(outputs, variants.reference)
        except Exception as error:  # third-party libraries raise any kind
            lines = str(error).strip().splitlines() or ['']
            return BuildResult(reason=f'{type(error).__name__}: {lines[0]}')
        return BuildResult(run, difference)


def _channels_last(dtype: torch.dtype) -> Callable[[ModelVariants], InferenceFn]:
    return lambda variants: pytorch_fn(variants.channels_last, dtype, channels_last=True)


def _compiled(dtype: torch.dtype) -> Callable[[ModelVariants], InferenceFn]:
    def build(variants: ModelVariants) -> InferenceFn:
        run = pytorch_fn(torch.compile(variants.channels_last), dtype, channels_last=True)
        # The C++ wrapper calls the kernels: GhostNet at batch 1 took 4.4 ms, 5.6 ms by Python.
        first = _freezing(run, cpp_wrapper=variants.device == 'cpu')
        return _first_call_per_shape(first, run)

    return build


def _cuda_graph(
    variant: str, dtype: torch.dtype, compiled: bool = False
) -> Callable[[ModelVariants], InferenceFn]:
    def build(variants: ModelVariants) -> InferenceFn:
        module = getattr(variants, variant)
        return cuda_graph_fn(_freezing(torch.compile(module)) if compiled else module, dtype)

    return build


def _fixed(suffix: str, aot: bool = False) -> Callable[[ModelVariants], InferenceFn]:
    """Run a file for the example's shape, and other shapes in PyTorch."""
    read = (AOT if aot else FORMATS[suffix]).read

    def build(variants: ModelVariants) -> InferenceFn:
        special, general = read(variants.fixed(suffix, aot)), _channels_last(_F32)(variants)
        kind = [(x.shape, x.dtype) for x in variants.example]

        def run(inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
            return (special if [(x.shape, x.dtype) for x in inputs] == kind else general)(inputs)

        return run

    return build


def _executorch(variants: ModelVariants) -> InferenceFn:
    run = _fixed('.pte')(variants)
    if (found := executorch_threads()) != torch.get_num_threads():
        raise ValueError(
            f'ExecuTorch keeps its {found} threads in this process, PyTorch has '
            f'{torch.get_num_threads()} now; start a process for each number of threads'
        )
    return run


def _first_call_per_shape(first: InferenceFn, later: InferenceFn) -> InferenceFn:
    """Use ``first``, which may compile, for the first inputs of each shape, then ``later``."""
    known = set()

    def run(inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        shapes = tuple(x.shape for x in inputs)
        if shapes in known:
            return later(inputs)
        outputs = first(inputs)
        known.add(shapes)
        return outputs

    return run


def _freezing(compiled: Callable, **config: bool) -> Callable:
    """Let a compiled function compile with constant weights if it compiles within a call.

    Args:
        compiled: Result of torch.compile.
        config: Further settings of inductor.
    """

    def run(*inputs: Any) -> Any:
        # As an option of torch.compile it comes too late for the tracer, which then leaves the
        # weights inputs of the graph: nothing is packed, and it was slower than without.
        with quiet(), torch._inductor.config.patch(freezing=True, **config):
            return compiled(*inputs)

    return run


def _openvino(variant: str, dtype: str) -> Callable[[ModelVariants], InferenceFn]:
    return lambda variants: openvino_fn(getattr(variants, variant), dtype)


_F32, _BF16 = torch.float32, torch.bfloat16
_ORT, _OV, _TRITON = ('onnx', 'onnxruntime'), ('onnx', 'openvino'), ('triton',)
_LITERT = ('litert_torch', 'ai_edge_litert')
_EXECUTORCH = ('executorch.exir', 'executorch.runtime')
_CPU: dict[str, Any] = {'device': 'cpu'}
_GPU: dict[str, Any] = {'device': 'cuda'}
_SPLIT: dict[str, Any] = {'device': 'cpu', 'split_concat': True}
ROWS = (
    Backend('eager', 'float32', lambda variants: pytorch_fn(variants.plain)),
    Backend('fused', 'float32', lambda variants: pytorch_fn(variants.fused)),
    Backend('channels-last', 'float32', _channels_last(_F32)),
    Backend('compiled', 'float32', _compiled(_F32)),
    Backend('aot', 'float32', _fixed('.pt2', aot=True), **_CPU),
    Backend('onnxruntime', 'float32', lambda v: onnxruntime_fn(v.onnx), _ORT, **_CPU),
    # GhostNet 1.0x at batch 16: 66 ms with dynamic axes, 56 with fixed ones; not split 61 and 69.
    Backend(
        'onnxruntime', 'float32', lambda v: onnxruntime_fn(v.split_concat, True), _ORT, **_SPLIT
    ),
    Backend('openvino', 'float32', _openvino('onnx', 'f32'), _OV, **_CPU),
    Backend('openvino', 'float32', _openvino('split_concat', 'f32'), _OV, **_SPLIT),
    Backend('ncnn', 'float32', _fixed('.ncnn.param'), ('pnnx', 'ncnn'), **_CPU),
    Backend('litert', 'float32', _fixed('.tflite'), _LITERT, **_CPU),
    Backend('executorch', 'float32', _executorch, _EXECUTORCH, **_CPU),
    Backend('channels-last-bf16', 'bfloat16', _channels_last(_BF16)),
    Backend('compiled-bf16', 'bfloat16', _compiled(_BF16)),
    Backend('cuda-graph', 'float32', _cuda_graph('channels_last', _F32), **_GPU),
    Backend('cuda-graph-bf16', 'bfloat16', _cuda_graph('bfloat16', _BF16), **_GPU),
    Backend('compiled-graph-bf16', 'bfloat16', _cuda_graph('bfloat16', _BF16, True), **_GPU),
    Backend('triton-bf16', 'bfloat16', _cuda_graph('triton', _BF16), _TRITON, **_GPU),
    Backend(
        'triton-compiled-bf16', 'bfloat16', _cuda_graph('triton', _BF16, True), _TRITON, **_GPU
    ),
    Backend('openvino-bf16', 'bfloat16', _openvino('onnx', 'bf16'), _OV, **_CPU),
    Backend('openvino-bf16', 'bfloat16', _openvino('split_concat', 'bf16'), _OV, **_SPLIT),
    Backend(
        'onnxruntime-int8', 'int8', lambda v: onnxruntime_fn(v.quantized('.onnx')), _ORT, **_CPU
    ),
    Backend(
        'openvino-int8', 'int8', lambda v: openvino_fn(v.quantized('.xml')), (*_OV, 'nncf'), **_CPU
    ),
)
BACKENDS = {row.name: row for row in ROWS if not row.split_concat}
# Backends that need no calibration data, and so can be timed on any model or layer.
TIMED = {name: row for name, row in BACKENDS.items() if row.dtype != 'int8'}
_REMOVED = {
    'torchscript': "'aot' or 'compiled'",
    'torchscript-split': "'aot' or 'compiled'",
    'channels-last-split': "'channels-last' or 'aot'",
    'onnxruntime-split': "'onnxruntime' with split_concat=True",
    'openvino-split': "'openvino' with split_concat=True",
    'openvino-split-bf16': "'openvino-bf16' with split_concat=True",
}


def check_backend(name: str, known: Iterable[str]) -> None:
    """Refuse an unknown backend.

    Args:
        name: Name that the user gave.
        known: Names that are allowed.

    Raises:
        ValueError: The name is not known; for a removed backend the message names its successor.
    """
    known = list(known)
    if name in known:
        return
    if name in _REMOVED:
        raise ValueError(f'backend {name!r} was removed; use {_REMOVED[name]}')
    raise ValueError(f'backend must be one of {known}, got {name!r}')


def layer_timer(backend: str) -> Callable[[nn.Module, Any], Callable[[], Any]]:
    """Prepare modules for timing in a backend, as :func:`ghost_plugin.plan` does with layers.

    Args:
        backend: A key of :data:`TIMED`.

    Returns:
        A function that takes a module in eval mode and its example input and returns a call
        without arguments. It raises ValueError where the backend cannot run the module,
        ImportError where the backend is not installed.

    Raises:
        ValueError: There is no such backend.
    """
    check_backend(backend, TIMED)
    return functools.partial(_prepare, TIMED[backend])


def _prepare(row: Backend, module: nn.Module, example_input: Any) -> Callable[[], Any]:
    variants = ModelVariants(module, example_input, dynamic=False)
    built = row.try_build(variants, calls=2)
    if built.run is None:
        raise row.refusal(built.reason)
    return functools.partial(built.run, variants.example)


def ready(backend: str) -> Callable[[nn.Module, Any], Callable[[], Any]]:
    """Deprecated name of :func:`layer_timer`."""
    warnings.warn(
        'gp.deploy.ready is deprecated, use gp.deploy.layer_timer',
        DeprecationWarning,
        stacklevel=2,
    )
    return layer_timer(backend)
