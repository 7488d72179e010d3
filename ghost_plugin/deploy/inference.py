"""Files and models as something to call with tensors: PyTorch, ONNX Runtime, OpenVINO."""

import functools
import logging
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..utils import optional
from ..utils.modules import call_model, plain_forward, preserving_inputs
from ..utils.torch_compat import full_precision
from .comparison import differences, tensors
from .onednn_prepack import Packed, packable

# (N, ...) tensors in the order of the arguments -> tensors in the order of the outputs.
Runner = Callable[[Sequence[torch.Tensor]], list[torch.Tensor]]
TRACED = 1e-4  # of the largest value; the same kernels run
SHAPES = 8  # that OpenVINO keeps compiled; one of fixed shape is the faster one


@contextmanager
def quiet() -> Iterator[None]:
    """No logs of exporters and compilers, which speak of their own insides; they raise, too."""
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        logging.disable(level)


def of_module(module: Callable, dtype: torch.dtype = torch.float32, last: bool = False) -> Runner:
    """PyTorch itself; what it is given stays as it is, also where the module writes into it.

    Args:
        module: Takes tensors, gives tensors.
        dtype: Others than float32 by autocast, with outputs in float32.
        last: Hand pictures over channels-last.
    """

    kept = preserving_inputs(module)

    def run(inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        with torch.inference_mode(), full_precision():
            if last:
                inputs = [channels_last(x) for x in inputs]
            if dtype == torch.float32:
                outputs = tensors(kept(*inputs))
            else:
                with torch.autocast(inputs[0].device.type, dtype):
                    outputs = _floats(tensors(kept(*inputs)))
        return [value.clone() for value in outputs]  # learners take no tensors of inference mode

    return run


def _floats(outputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return [value.float() if value.is_floating_point() else value for value in outputs]


def of_graph(module: Callable, dtype: torch.dtype = torch.float32) -> Runner:
    """PyTorch on a GPU as CUDA graphs, one for each shape: all kernels of a call start as one.

    Threads take turns, because a graph has one place for its inputs.

    Args:
        module: Takes tensors of ``dtype``, channels-last, gives tensors.
        dtype: Outputs are in float32.
    """
    turn = threading.Lock()

    @functools.lru_cache(maxsize=SHAPES)
    @plain_forward()
    def captured(*kinds: tuple[torch.Size, torch.dtype, torch.device]) -> tuple[Any, ...]:
        given = _blank(kinds)
        for _ in range(3):  # libraries choose, kernels compile
            module(*given)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = tensors(module(*given))
        return given, graph, outputs

    def inside(x: torch.Tensor) -> torch.dtype:
        return dtype if x.is_floating_point() else x.dtype

    def run(inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        with turn, torch.no_grad():
            given, graph, outputs = captured(*((x.shape, inside(x), x.device) for x in inputs))
            for place, x in zip(given, inputs, strict=True):
                place.copy_(x)
            graph.replay()
            # Copies, because the next replay writes over them.
            return _floats([value.clone() for value in outputs])

    return run


def of_traced(module: torch.nn.Module) -> Runner:
    """PyTorch's own kernels, called by TorchScript instead of Python; traced for each shape.

    Args:
        module: In eval mode, channels-last; takes tensors, gives a tuple of tensors.

    Raises:
        ValueError: Of a call: what is computed depends on values, which a trace does not follow.
    """

    @functools.lru_cache(maxsize=SHAPES)
    def frozen(*kinds: tuple[torch.Size, torch.dtype, torch.device]) -> Runner:
        given = _blank(kinds)
        draw = torch.Generator().manual_seed(0)
        noise = [x + torch.rand(x.shape, generator=draw).to(x) for x in given]
        with quiet(), torch.no_grad(), plain_forward():
            inside = Packed(module, given).eval() if packable(given) else module
            made = torch.jit.freeze(torch.jit.trace(inside, given, check_trace=False))
            pair = (call_model(net, tuple(noise)) for net in (made, module))
            if not differences(*pair).relative <= TRACED:
                raise ValueError('traced, it computes something else for other values')
        return of_module(made, last=True)

    def run(inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        return frozen(*((x.shape, x.dtype, x.device) for x in inputs))(inputs)

    return run


def _blank(kinds: Iterable[tuple[torch.Size, torch.dtype, torch.device]]) -> list[torch.Tensor]:
    """Zeros of some shapes, dtypes and devices, pictures channels-last."""
    return [channels_last(torch.zeros(s, dtype=t, device=d)) for s, t, d in kinds]


def channels_last(x: torch.Tensor) -> torch.Tensor:
    """A picture channels-last; what has no four axes as it is."""
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


def of_onnx(path: Path, threads: int | None = None, fixed: bool = False) -> Runner:
    """An ONNX file in ONNX Runtime on the CPU.

    Args:
        path: The file.
        threads: Of one operator; PyTorch's number without it.
        fixed: Whether the runtime fits the file to each shape; else it is for all of them.
    """
    optional.require('onnxruntime')
    whole = _session(path, threads, {})
    given = [(value.name, value.shape) for value in whole.get_inputs()]

    @functools.lru_cache(maxsize=SHAPES)
    def fitted(*shapes: tuple[int, ...]) -> Any:
        sizes = [pair for (_, dims), shape in zip(given, shapes, strict=True)
                 for pair in zip(dims, shape, strict=True)]  # fmt: skip
        return _session(path, threads, {dim: size for dim, size in sizes if isinstance(dim, str)})

    # The session for all shapes is not kept beside those for each.
    chosen = fitted if fixed else lambda *shapes: whole

    def run(inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        session = chosen(*(x.shape for x in inputs))
        arrays = (x.detach().contiguous().numpy() for x in inputs)
        named = {name: array for (name, _), array in zip(given, arrays, strict=True)}
        return [torch.from_numpy(value) for value in session.run(None, named)]

    return run


def _session(path: Path, threads: int | None, sizes: dict[str, int]) -> Any:
    """A session of ONNX Runtime, with sizes in the place of free axes."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.log_severity_level = 4  # what fails raises, too
    for name, size in sizes.items():
        options.add_free_dimension_override_by_name(name, size)
    return onnxruntime.InferenceSession(str(path), options, providers=['CPUExecutionProvider'])


@functools.cache
def openvino_core() -> Any:
    """The one ``openvino.Core`` of this process.

    Each of several would hang a stack for signals of its own on the thread that makes it, and when
    they go in another order than they came, one that is gone stays there: the next signal, such as
    that of a child that ends, kills the process.
    """
    import openvino

    return openvino.Core()


class _Requests(threading.local):
    """OpenVINO's requests: one holds the inputs of its call, so each thread has its own.

    Args:
        made: Gives a request for shapes.
    """

    def __init__(self, made: Callable[..., Any]) -> None:
        self.by_shapes = functools.lru_cache(maxsize=SHAPES)(made)


def of_openvino(source: Any, dtype: str = 'f32', threads: int | None = None) -> Runner:
    """An OpenVINO model, or a file that OpenVINO reads, on the CPU; compiled for each shape.

    Args:
        source: Path of an IR or ONNX file, or an ``openvino.Model``.
        dtype: ``'f32'`` or ``'bf16'``, of what is computed inside.
        threads: PyTorch's number without it.
    """
    optional.require('openvino')
    core, turn = openvino_core(), threading.Lock()
    model = core.read_model(str(source)) if isinstance(source, str | Path) else source
    config = {
        'INFERENCE_PRECISION_HINT': dtype,
        'INFERENCE_NUM_THREADS': threads or torch.get_num_threads(),
        'PERFORMANCE_HINT': 'LATENCY',
    }

    @functools.lru_cache(maxsize=SHAPES)
    def compiled(*shapes: tuple[int, ...]) -> Any:
        fixed = model.clone()
        fixed.reshape(dict(enumerate(shapes)))
        return core.compile_model(fixed, 'CPU', config)

    def request(*shapes: tuple[int, ...]) -> Any:
        with turn:  # two threads would compile the same
            return compiled(*shapes).create_infer_request()

    requests = _Requests(request)

    def run(inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        given = [x.detach().contiguous().numpy() for x in inputs]
        found = requests.by_shapes(*(x.shape for x in given)).infer(given, share_inputs=True)
        return [torch.from_numpy(value) for value in found.to_tuple()]

    return run


def of_torchscript(path: Path) -> Runner:
    """A TorchScript file."""
    return of_module(torch.jit.load(path))


def of_program(path: Path) -> Runner:
    """A file of ``torch.export.save``."""
    return of_module(torch.export.load(path).module())
