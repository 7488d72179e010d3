"""Writers and readers of files for the runtimes of phones and small boards, without checks."""

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ..utils import optional
from .flat_io import TensorIO
from .free_axes import FreeAxes
from .inference import InferenceFn

Tensors = Sequence[torch.Tensor]


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
        for name, array in zip(net.input_names(), arrays, strict=True):
            extractor.input(name, ncnn.Mat(array))
        for name in net.output_names():
            status, value = extractor.extract(name)
            if status:
                raise ValueError(f'ncnn cannot compute {name}, status {status}')
            found.append(torch.from_numpy(np.array(value)[None]))
        return found

    return run
