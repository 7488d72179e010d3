"""Writers and readers of files for the runtimes of phones and small boards, without checks."""

import contextlib
import functools
import io
import os
import re
import subprocess
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..utils import optional
from .flat_io import TensorIO
from .free_axes import FreeAxes
from .inference import InferenceFn

Tensors = Sequence[torch.Tensor]
_FLATC = 'FLATC_EXECUTABLE'  # environment variable: the compiler of FlatBuffers for ExecuTorch


def write_ncnn(model: TensorIO, inputs: Tensors, path: Path, free: FreeAxes, opset: int) -> None:
    """Write a file of ncnn by pnnx, from TorchScript, with weights in float32.

    Args:
        model: In eval mode.
        inputs: Input tensors of batch 1.
        path: Ends in ``.ncnn.param``; the weights lie beside it, in ``.ncnn.bin``.
        free: pnnx gets two inputs of other height and width where these are dynamic.
        opset: Not used.

    Raises:
        ValueError: The batch is not 1, or there are operators that pnnx or ncnn do not know.
    """
    optional.require('pnnx', 'ncnn')
    import ncnn
    import pnnx

    if any(not x.dim() or len(x) != 1 for x in inputs):
        raise ValueError('ncnn has no axis for the batch; give an example with a batch of 1')
    source = path.with_name('traced.pt')
    torch.jit.trace(model, tuple(inputs), check_trace=False).save(str(source))
    command = [pnnx.EXEC_PATH, source.name, f'inputshape={_pnnx_shapes(inputs)}', 'fp16=0']
    if any(free.inputs.values()):
        command.append(f'inputshape2={_pnnx_shapes(free.accepted[0])}')
    done = subprocess.run(
        command, cwd=path.parent, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    made = path.with_name('traced.ncnn.param')
    if done.returncode or not made.is_file():
        said = [line for line in done.stdout.splitlines() if line.strip()] or ['']
        raise ValueError(f'pnnx ended with status {done.returncode}: {said[-1]}')
    types = [line.split()[0] for line in made.read_text().splitlines()[2:] if line.strip()]
    # ncnn itself prints the first unknown operator and goes on with an incomplete network.
    if unknown := sorted({name for name in types if ncnn.layer_to_index(name) < 0}):
        raise ValueError(f'ncnn has no operator {", ".join(unknown)}')
    os.replace(made, path)
    os.replace(made.with_suffix('.bin'), path.with_suffix('.bin'))


def _pnnx_shapes(inputs: Tensors) -> str:
    kinds = {torch.float32: 'f32', torch.int64: 'i64', torch.int32: 'i32'}
    return ','.join(
        f'[{",".join(map(str, x.shape))}]{kinds.get(x.dtype, str(x.dtype))}' for x in inputs
    )


def ncnn_fn(path: Path) -> InferenceFn:
    """Run a file in ncnn on the CPU in float32, with as many threads as PyTorch has.

    Args:
        path: The ``.ncnn.param`` file; the ``.ncnn.bin`` file lies beside it.

    Raises:
        ValueError: ncnn cannot read the file, or a call fails or has another batch than 1.
    """
    optional.require('ncnn')
    import ncnn

    net = ncnn.Net()
    # By default ncnn computes and stores in 16 bits where the processor can.
    for option in ('fp16_packed', 'fp16_storage', 'fp16_arithmetic', 'bf16_storage'):
        setattr(net.opt, f'use_{option}', False)
    net.opt.num_threads = torch.get_num_threads()
    if net.load_param(str(path)) or net.load_model(str(path.with_suffix('.bin'))):
        raise ValueError(f'ncnn cannot read {str(path)!r}')

    def run(inputs: Tensors) -> list[torch.Tensor]:
        if any(len(x) != 1 for x in inputs):
            raise ValueError(
                f'ncnn has no axis for the batch; give a batch of 1, got {len(inputs[0])}'
            )
        arrays = [x.detach()[0].contiguous().numpy() for x in inputs]
        extractor, found = net.create_extractor(), []
        for name in net.input_names():  # without those that the network does not use
            # A copy, because some layers want aligned memory and crash otherwise.
            extractor.input(name, ncnn.Mat(arrays[_number(name)]).clone())
        for name in sorted(net.output_names(), key=_number):  # they come in the order of layers
            status, value = extractor.extract(name)
            if status:
                raise ValueError(f'ncnn cannot compute {name}, status {status}')
            array = np.array(value)
            # Flattened feature maps have a row for the batch, all others have no such axis.
            row = array.ndim == 2 and len(array) == 1
            found.append(torch.from_numpy(array if row else array[None]))
        return found

    return run


def _number(name: str) -> int:
    """Return the number at the end of ``in0``, ``output_10`` and so on."""
    return int(re.sub(r'\D', '', name))


def write_litert(model: TensorIO, inputs: Tensors, path: Path, free: FreeAxes, opset: int) -> None:
    """Write a file of LiteRT by litert-torch, with inputs and outputs in the layout of the model.

    Args:
        model: In eval mode.
        inputs: Input tensors; the file takes their shapes only.
        path: Ends in ``.tflite``.
        free: Not used: dynamic axes stop the converter (litert-torch 0.10).
        opset: Not used.
    """
    optional.require('litert_torch', 'ai_edge_litert')
    import litert_torch

    # litert-torch 0.10 resizes by factors that are no integers with other pixels than PyTorch.
    resize = torch.ops.aten.upsample_nearest2d.vec
    program = torch.export.export(model, tuple(inputs)).run_decompositions({resize: _nearest})
    with contextlib.redirect_stdout(io.StringIO()):  # a line for each step
        litert_torch.convert(program.module(), tuple(inputs)).export(str(path))


def _nearest(x: torch.Tensor, size: Sequence[int] | None, scales: Sequence[float] | None) -> Any:
    """Index the nearest pixels, unless the sizes are multiples, which the converter does well."""
    if size is not None and not any(new % old for new, old in zip(size, x.shape[2:], strict=True)):
        return NotImplemented
    resize = torch.ops.aten.upsample_nearest2d.vec
    return torch._decomp.get_decompositions([resize])[resize](x, size, scales)


def litert_fn(path: Path) -> InferenceFn:
    """Run a file in LiteRT on the CPU (XNNPACK), with as many threads as PyTorch has.

    Raises:
        ValueError: A call has other shapes than the file was written for.
    """
    optional.require('ai_edge_litert')
    from ai_edge_litert.interpreter import Interpreter

    lock = threading.Lock()
    runner = Interpreter(str(path), num_threads=torch.get_num_threads()).get_signature_runner()
    details = runner.get_input_details()

    def run(inputs: Tensors) -> list[torch.Tensor]:
        arrays = _litert_arrays(details, inputs)
        with lock:
            found = runner(**arrays)
        return [torch.from_numpy(found[name]) for name in sorted(found, key=_number)]

    return run


def litert_inputs(path: Path) -> Callable[[Tensors], dict[str, np.ndarray]]:
    """Return a function from input tensors to arrays by their names in a file of LiteRT."""
    from ai_edge_litert.interpreter import Interpreter

    details = Interpreter(str(path)).get_signature_runner().get_input_details()
    return functools.partial(_litert_arrays, details)


def _litert_arrays(details: dict[str, Any], inputs: Tensors) -> dict[str, np.ndarray]:
    names = sorted(details, key=_number)
    _check_shapes(inputs, [details[name]['shape'] for name in names])
    return {  # the file holds 32-bit numbers only
        name: x.detach().contiguous().numpy().astype(details[name]['dtype'], copy=False)
        for x, name in zip(inputs, names, strict=True)
    }


def write_executorch(
    model: TensorIO, inputs: Tensors, path: Path, free: FreeAxes, opset: int
) -> None:
    """Write a program of ExecuTorch for XNNPACK.

    Args:
        model: In eval mode.
        inputs: Input tensors; the file takes their shapes only.
        path: Ends in ``.pte``.
        free: Not used.
        opset: Not used.
    """
    optional.require('executorch.exir', 'executorch.runtime')
    import executorch.data.bin
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    program = torch.export.export(model, tuple(inputs))
    # By default it must be on the PATH, where it is in an activated environment only.
    own = _FLATC not in os.environ
    if own:
        os.environ[_FLATC] = str(Path(executorch.data.bin.__file__).with_name('flatc'))
    try:
        lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
        path.write_bytes(lowered.to_executorch().buffer)
    finally:
        if own:
            del os.environ[_FLATC]


def executorch_fn(path: Path) -> InferenceFn:
    """Run a program in ExecuTorch on the CPU.

    The number of threads is that of PyTorch when the first program of the process is read.

    Raises:
        ValueError: A call has other shapes than the file was written for.
    """
    optional.require('executorch.runtime')
    from executorch.extension.pybindings import portable_lib
    from executorch.runtime import Runtime, Verification

    lock = threading.Lock()
    if not Runtime.get.cache_info().currsize:  # programs that were loaded before it would hang
        portable_lib._unsafe_reset_threadpool(torch.get_num_threads())
    # Its wheel has no other verification, and says so on stderr.
    program = Runtime.get().load_program(path, verification=Verification.Minimal)
    method = program.load_method('forward')
    known = method.metadata
    shapes = [known.input_tensor_meta(index).sizes() for index in range(known.num_inputs())]

    def run(inputs: Tensors) -> list[torch.Tensor]:
        _check_shapes(inputs, shapes)
        with lock, torch.no_grad():
            return list(method.execute([x.detach().contiguous() for x in inputs]))

    return run


def executorch_threads() -> int:
    """Return the number of threads of ExecuTorch, which stays once a program was read."""
    optional.require('executorch.runtime')
    from executorch.extension.pybindings import portable_lib

    return portable_lib._threadpool_get_thread_count()


def _check_shapes(inputs: Tensors, wanted: Sequence[Sequence[int]]) -> None:
    for index, (x, shape) in enumerate(zip(inputs, wanted, strict=True)):
        if tuple(x.shape) != tuple(shape):
            raise ValueError(
                f'input {index} has shape {tuple(x.shape)}, but the file was written for '
                f'{tuple(map(int, shape))}; export again with an example of that shape'
            )
