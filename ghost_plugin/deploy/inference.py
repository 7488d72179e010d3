"""Models and exported files as functions from tensors to tensors, one per runtime."""

import functools
import json
import logging
import threading
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..utils import optional
from ..utils.modules import plain_forward, preserving_inputs, to_channels_last
from ..utils.torch_compat import full_precision
from .flat_io import tensors

# Takes the input tensors in the order of the arguments, returns the output tensors in their order.
InferenceFn = Callable[[Sequence[torch.Tensor]], list[torch.Tensor]]
MAX_SHAPES = 8  # compiled forms that are kept at a time, one per input shape
AOT_AXES = 'ghost_plugin_axes'  # metadata of AOTInductor packages: dtype and axes of each input


@contextmanager
def quiet() -> Iterator[None]:
    """Switch off logs and warnings of exporters and compilers; their errors are raised."""
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        logging.disable(level)


def pytorch_fn(
    module: Callable, dtype: torch.dtype = torch.float32, channels_last: bool = False
) -> InferenceFn:
    """Run a module in PyTorch; input tensors stay unchanged even if the module writes into them.

    Args:
        module: Takes tensors, returns tensors.
        dtype: Dtypes other than float32 run by autocast; outputs are float32.
        channels_last: Convert 4-D inputs to channels-last first.
    """
    call = preserving_inputs(module)

    def run(inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        with torch.inference_mode(), full_precision():
            if channels_last:
                inputs = [to_channels_last(x) for x in inputs]
            if dtype == torch.float32:
                outputs = tensors(call(*inputs))
            else:
                with torch.autocast(inputs[0].device.type, dtype):
                    outputs = _to_float32(tensors(call(*inputs)))
        return [value.clone() for value in outputs]  # autograd refuses inference-mode tensors

    return run


def _to_float32(outputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return [value.float() if value.is_floating_point() else value for value in outputs]


def cuda_graph_fn(module: Callable, dtype: torch.dtype = torch.float32) -> InferenceFn:
    """Run a module on a GPU as CUDA graphs, one per input shape: one launch starts all kernels.

    A lock serialises threads, because a graph has one set of input buffers.

    Args:
        module: Takes channels-last tensors of ``dtype``, returns tensors.
        dtype: Dtype of floating-point inputs; outputs are float32.
    """
    lock = threading.Lock()

    @functools.lru_cache(maxsize=MAX_SHAPES)
    @plain_forward()
    def captured(*kinds: tuple[torch.Size, torch.dtype, torch.device]) -> tuple[Any, ...]:
        buffers = [to_channels_last(torch.zeros(s, dtype=t, device=d)) for s, t, d in kinds]
        for _ in range(3):  # libraries select algorithms, kernels compile
            module(*buffers)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = tensors(module(*buffers))
        return buffers, graph, outputs

    def inner_dtype(x: torch.Tensor) -> torch.dtype:
        return dtype if x.is_floating_point() else x.dtype

    def run(inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        with lock, torch.no_grad():
            kinds = ((x.shape, inner_dtype(x), x.device) for x in inputs)
            buffers, graph, outputs = captured(*kinds)
            for buffer, x in zip(buffers, inputs, strict=True):
                buffer.copy_(x)
            graph.replay()
            # Copies, because the next replay overwrites the graph's outputs.
            return _to_float32([value.clone() for value in outputs])

    return run


def onnxruntime_fn(path: Path, session_per_shape: bool = False) -> InferenceFn:
    """Run an ONNX file in ONNX Runtime on the CPU, with as many threads as PyTorch has.

    Args:
        path: The file.
        session_per_shape: Make a session for each input shape, with fixed sizes; otherwise one
            session takes all shapes.
    """
    optional.require('onnxruntime')
    general = _session(path, {})
    known = [(value.name, value.shape) for value in general.get_inputs()]

    @functools.lru_cache(maxsize=MAX_SHAPES)
    def specialised(*shapes: tuple[int, ...]) -> Any:
        sizes = [pair for (_, dims), shape in zip(known, shapes, strict=True)
                 for pair in zip(dims, shape, strict=True)]  # fmt: skip
        return _session(path, {dim: size for dim, size in sizes if isinstance(dim, str)})

    # Otherwise the closure would keep the general session beside the specialised ones.
    session_for = specialised if session_per_shape else lambda *shapes: general

    def run(inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        session = session_for(*(x.shape for x in inputs))
        arrays = (x.detach().contiguous().numpy() for x in inputs)
        named = {name: array for (name, _), array in zip(known, arrays, strict=True)}
        return [torch.from_numpy(value) for value in session.run(None, named)]

    return run


def _session(path: Path, sizes: dict[str, int]) -> Any:
    """Make a session of ONNX Runtime with fixed sizes for the named dynamic axes."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # failures raise, too
    for name, size in sizes.items():
        options.add_free_dimension_override_by_name(name, size)
    return onnxruntime.InferenceSession(str(path), options, providers=['CPUExecutionProvider'])


@functools.cache
def openvino_core() -> Any:
    """Return the only ``openvino.Core`` of this process.

    Each Core installs a signal stack on the thread that makes it. When several are deleted in
    another order than they were made, a deleted stack stays installed, and the next signal (such
    as SIGCHLD) kills the process.
    """
    import openvino

    return openvino.Core()


class _RequestsOfThread(threading.local):
    """OpenVINO requests by input shape; a request holds its inputs, so each thread has its own.

    Args:
        make: Makes a request for input shapes.
    """

    def __init__(self, make: Callable[..., Any]) -> None:
        self.by_shapes = functools.lru_cache(maxsize=MAX_SHAPES)(make)


def openvino_fn(source: Any, dtype: str = 'f32') -> InferenceFn:
    """Run a model in OpenVINO on the CPU, compiled for each input shape.

    Args:
        source: Path of an IR or ONNX file, or an ``openvino.Model``.
        dtype: Inference precision, ``'f32'`` or ``'bf16'``.
    """
    optional.require('openvino')
    core, lock = openvino_core(), threading.Lock()
    model = core.read_model(str(source)) if isinstance(source, str | Path) else source
    config = {
        'INFERENCE_PRECISION_HINT': dtype,
        'INFERENCE_NUM_THREADS': torch.get_num_threads(),
        'PERFORMANCE_HINT': 'LATENCY',
    }

    @functools.lru_cache(maxsize=MAX_SHAPES)
    def compiled(*shapes: tuple[int, ...]) -> Any:
        fixed = model.clone()
        fixed.reshape(dict(enumerate(shapes)))
        return core.compile_model(fixed, 'CPU', config)

    def request(*shapes: tuple[int, ...]) -> Any:
        with lock:  # two threads would compile the same shapes
            return compiled(*shapes).create_infer_request()

    requests = _RequestsOfThread(request)

    def run(inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        arrays = [x.detach().contiguous().numpy() for x in inputs]
        result = requests.by_shapes(*(x.shape for x in arrays)).infer(arrays, share_inputs=True)
        return [torch.from_numpy(value) for value in result.to_tuple()]

    return run


def torchscript_fn(path: Path) -> InferenceFn:
    """Run a TorchScript file."""
    return pytorch_fn(torch.jit.load(path))


def program_fn(path: Path) -> InferenceFn:
    """Run a ``.pt2`` file: a program of ``torch.export.save``, or an AOTInductor package."""
    with zipfile.ZipFile(path) as archive:
        compiled = any(name.endswith('.so') for name in archive.namelist())
    return aot_fn(path) if compiled else pytorch_fn(torch.export.load(path).module())


def aot_fn(path: Path) -> InferenceFn:
    """Run an AOTInductor package; no compiler is needed.

    Raises:
        ValueError: A call has other shapes or dtypes than the package was compiled for. The
            package itself does not check them and would return wrong values.
    """
    package = torch._inductor.aoti_load_package(str(path))
    axes = json.loads(package.get_metadata().get(AOT_AXES, '[]'))
    call = pytorch_fn(package)

    def run(inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        for index, (x, (dtype, sizes)) in enumerate(zip(inputs, axes, strict=bool(axes))):
            if str(x.dtype) != dtype or not _fits(x.shape, sizes):
                raise ValueError(
                    f'input {index} has shape {tuple(x.shape)} and dtype {x.dtype}, but the file '
                    f'was compiled for {tuple(sizes)} and {dtype}; export again with an example '
                    'of that shape, or with dynamic=True'
                )
        return call([x.contiguous() for x in inputs])

    return run


def _fits(shape: Iterable[int], sizes: Sequence[int | str]) -> bool:
    """Compare a shape with sizes, in which a name stands for any size."""
    shape = tuple(shape)
    return len(shape) == len(sizes) and all(
        isinstance(want, str) or got == want for got, want in zip(shape, sizes, strict=True)
    )
