"""The ways to run a model on this machine, one row each."""

import functools
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from ..utils import optional
from ..utils.modules import deepcopy_detached
from .comparison import Difference, Flat, differences
from .concat_elimination import lazy_concat
from .exporting import export
from .flat_io import arguments, calibrating
from .fusion import fuse
from .inference import (
    Runner,
    channels_last,
    of_graph,
    of_module,
    of_onnx,
    of_openvino,
    of_traced,
    quiet,
)
from .quantization import quantize


class Forms:
    """The forms of one model that backends start from, each made when it is first asked for.

    Args:
        model: In eval mode; it is left as it is.
        example_input: What it is called with.
        calibration: Inputs for int8.
        dynamic: Whether files are of any size where they can be, else of the example's.
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
        self.example = arguments(example_input)
        self.device = self.example[0].device.type
        self.flat = Flat(model, example_input)
        self.want = of_module(self.flat)(self.example)
        self._folder = tempfile.TemporaryDirectory(prefix='ghost_plugin-')

    @functools.cached_property
    def fused(self) -> Flat:
        """:func:`ghost_plugin.fuse` of it."""
        return Flat(fuse(self.model), self.example_input)

    @functools.cached_property
    def last(self) -> Flat:
        """That one channels-last."""
        model = deepcopy_detached(self.fused.model).to(memory_format=torch.channels_last)
        return Flat(model, self.example_input)

    @functools.cached_property
    def apart(self) -> Flat:
        """That one with the halves of Ghost layers apart where that pays for the example."""
        model = deepcopy_detached(self.last.model)
        joiner = lazy_concat.keep_apart(model)
        flat = Flat(model, self.example_input)  # it calls the model
        flat.register_forward_hook(lambda _, __, outputs: lazy_concat.joined(outputs))
        if not joiner.apart:
            raise ValueError(
                'no halves of Ghost layers stay apart here: both together must hold '
                f'{lazy_concat.LEAST:,} numbers for the example'
            )
        return flat

    @functools.cached_property
    def half(self) -> Flat:
        """That one in bfloat16."""
        return _half(self.last.model, self.example_input)

    @functools.cached_property
    def triton(self) -> Flat:
        """That one with Triton kernels where they are faster."""
        from .kernels.triton_modules import accelerate  # it needs Triton

        half = _half(self.last.model, self.example_input)
        accelerate(half.model, half.inputs.example)
        return half

    @functools.cached_property
    def onnx(self) -> Path:
        """An ONNX file."""
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
    def split(self) -> Path:
        """That file with the halves of Ghost layers apart where that pays for the example."""
        from .concat_elimination.onnx_rewrite import split  # it needs onnx

        path = self.onnx.with_name('split.onnx')
        split(self.onnx, path, [x.shape for x in self.example])
        return path

    def quantized(self, suffix: str) -> Path:
        """An int8 file, of the library that its suffix stands for."""
        if self.calibration is None:
            raise ValueError('int8 needs calibration= inputs')
        path = Path(self._folder.name) / f'int8{suffix}'
        inputs = self.flat.inputs  # the file takes its tensors in the order of the first batch
        batches = calibrating(inputs, self.calibration)
        quantize(self.model, [inputs.filled(batch) for batch in batches], path)
        return path


def _half(model: nn.Module, example_input: Any) -> Flat:
    def half(x: Any) -> Any:
        floating = isinstance(x, torch.Tensor) and x.is_floating_point()
        return channels_last(x.bfloat16()) if floating else x

    return Flat(deepcopy_detached(model).bfloat16(), pytree.tree_map(half, example_input))


@dataclass(frozen=True)
class Attempt:
    """What became of one backend for one model.

    Attributes:
        run: To be called; None where the backend is out.
        difference: Of its outputs for the example from the model's.
        reason: Why it is out, '' if it is not.
    """

    run: Runner | None = None
    difference: Difference | None = None
    reason: str = ''


@dataclass(frozen=True)
class Backend:
    """One way to run a model.

    Attributes:
        name: For people and for ``backend=``.
        dtype: ``'float32'``, ``'bfloat16'`` or ``'int8'``, of what is computed inside.
        needs: Packages.
        build: Makes something to call.
        device: Where it runs only, ``'cpu'`` or ``'cuda'``; '' anywhere.
        layers: Whether it can run a layer that nothing follows.
    """

    name: str
    dtype: str
    build: Callable[[Forms], Runner]
    needs: tuple[str, ...] = ()
    device: str = field(default='', kw_only=True)
    layers: bool = field(default=True, kw_only=True)

    def runs_on(self, device: str) -> bool:
        """Whether it runs on a kind of device."""
        return self.device in ('', device)

    def refusal(self, reason: str) -> Exception:
        """What to raise where no other backend will do."""
        kind = ValueError if optional.usable(*self.needs) else ImportError
        return kind(f'{self.name} does not work here: {reason}')

    def attempt(self, forms: Forms, calls: int = 1) -> Attempt:
        """Build it, call it and compare with the model itself, or say why that does not go."""
        missing = next((name for name in self.needs if not optional.usable(name)), '')
        if missing:
            return Attempt(reason=f'{missing} is not installed')
        if not self.runs_on(forms.device):
            return Attempt(reason=f'runs on {self.device} only, not on {forms.device}')
        try:
            run = self.build(forms)
            for _ in range(calls):
                outputs = run(forms.example)
            difference = differences(outputs, forms.want)
        except Exception as error:  # foreign libraries raise whatever they like
            lines = str(error).strip().splitlines() or ['']
            return Attempt(reason=f'{type(error).__name__}: {lines[0]}')
        return Attempt(run, difference)


def _eager(forms: Forms) -> Runner:
    return of_module(forms.flat)


def _fused(forms: Forms) -> Runner:
    return of_module(forms.fused)


def _last(form: str, dtype: torch.dtype) -> Callable[[Forms], Runner]:
    return lambda forms: of_module(getattr(forms, form), dtype, last=True)


def _traced(form: str) -> Callable[[Forms], Runner]:
    return lambda forms: of_traced(getattr(forms, form))


def _compiled(dtype: torch.dtype) -> Callable[[Forms], Runner]:
    def build(forms: Forms) -> Runner:
        run = of_module(torch.compile(forms.last), dtype, last=True)
        # Kernels that C++ calls in turn: GhostNet at batch 1 took 4.4 ms, and 5.6 called by Python.
        return _by_shape(_frozen(run, cpp_wrapper=forms.device == 'cpu'), run)

    return build


def _graph(form: str, dtype: torch.dtype, compiled: bool = False) -> Callable[[Forms], Runner]:
    def build(forms: Forms) -> Runner:
        flat = getattr(forms, form)
        return of_graph(_frozen(torch.compile(flat)) if compiled else flat, dtype)

    return build


def _by_shape(first: Runner, later: Runner) -> Runner:
    """``first`` for the first inputs of their shapes, which may compile, else ``later``."""
    known = set()

    def run(inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        shapes = tuple(x.shape for x in inputs)
        if shapes in known:
            return later(inputs)
        outputs = first(inputs)
        known.add(shapes)
        return outputs

    return run


def _frozen(compiled: Callable, **options: bool) -> Callable:
    """Compiled with constant weights if that happens within a call; for first calls.

    Args:
        compiled: By torch.compile.
        options: Of inductor.
    """

    def run(*inputs: Any) -> Any:
        # As an option of torch.compile it comes too late for the tracer, which then leaves the
        # weights inputs of the graph: nothing is packed, and it was slower than without.
        with quiet(), torch._inductor.config.patch(freezing=True, **options):
            return compiled(*inputs)

    return run


def _onnxruntime(forms: Forms) -> Runner:
    return of_onnx(forms.onnx)


def _onnxruntime_split(forms: Forms) -> Runner:
    # GhostNet 1.0x at batch 16: 66 ms with free sizes, 56 with those of the call; joined 61 and 69.
    return of_onnx(forms.split, fixed=True)


def _openvino(form: str, dtype: str) -> Callable[[Forms], Runner]:
    return lambda forms: of_openvino(getattr(forms, form), dtype)


def _onnxruntime_int8(forms: Forms) -> Runner:
    return of_onnx(forms.quantized('.onnx'))


def _openvino_int8(forms: Forms) -> Runner:
    return of_openvino(forms.quantized('.xml'))


_ORT, _OV, _TRITON = ('onnx', 'onnxruntime'), ('onnx', 'openvino'), ('triton',)
_APART: dict[str, Any] = {'device': 'cpu', 'layers': False}
_ROWS = (
    Backend('eager', 'float32', _eager),
    Backend('fused', 'float32', _fused),
    Backend('channels-last', 'float32', _last('last', torch.float32)),
    Backend('channels-last-split', 'float32', _last('apart', torch.float32), **_APART),
    Backend('torchscript', 'float32', _traced('last'), device='cpu'),
    Backend('torchscript-split', 'float32', _traced('apart'), **_APART),
    Backend('compiled', 'float32', _compiled(torch.float32)),
    Backend('onnxruntime', 'float32', _onnxruntime, _ORT, device='cpu'),
    Backend('openvino', 'float32', _openvino('onnx', 'f32'), _OV, device='cpu'),
    Backend('onnxruntime-split', 'float32', _onnxruntime_split, _ORT, **_APART),
    Backend('openvino-split', 'float32', _openvino('split', 'f32'), _OV, **_APART),
    Backend('channels-last-bf16', 'bfloat16', _last('last', torch.bfloat16)),
    Backend('compiled-bf16', 'bfloat16', _compiled(torch.bfloat16)),
    Backend('cuda-graph', 'float32', _graph('last', torch.float32), device='cuda'),
    Backend('cuda-graph-bf16', 'bfloat16', _graph('half', torch.bfloat16), device='cuda'),
    Backend('compiled-graph-bf16', 'bfloat16', _graph('half', torch.bfloat16, True), device='cuda'),
    Backend('triton-bf16', 'bfloat16', _graph('triton', torch.bfloat16), _TRITON, device='cuda'),
    Backend(
        'triton-compiled-bf16',
        'bfloat16',
        _graph('triton', torch.bfloat16, True),
        _TRITON,
        device='cuda',
    ),
    Backend('openvino-bf16', 'bfloat16', _openvino('onnx', 'bf16'), _OV, device='cpu'),
    Backend('openvino-split-bf16', 'bfloat16', _openvino('split', 'bf16'), _OV, **_APART),
    Backend('onnxruntime-int8', 'int8', _onnxruntime_int8, _ORT, device='cpu'),
    Backend('openvino-int8', 'int8', _openvino_int8, (*_OV, 'nncf'), device='cpu'),
)
BACKENDS = {row.name: row for row in _ROWS}
TIMED = {name: row for name, row in BACKENDS.items() if row.dtype != 'int8'}  # no calibration
OF_LAYERS = {name: row for name, row in TIMED.items() if row.layers}


def ready(backend: str) -> Callable[[nn.Module, Any], Callable[[], Any]]:
    """What a backend makes of a module, for :func:`ghost_plugin.plan` to time.

    Args:
        backend: A key of :data:`OF_LAYERS`.

    Returns:
        Takes a module in eval mode and its example input, gives a call without arguments; raises
        ValueError where the backend cannot run the module, ImportError where it is not installed.

    Raises:
        ValueError: No such backend.
    """
    if backend not in OF_LAYERS:
        raise ValueError(f'backend must be one of {list(OF_LAYERS)}, got {backend!r}')
    row = OF_LAYERS[backend]

    def made(module: nn.Module, example_input: Any) -> Callable[[], Any]:
        forms = Forms(module, example_input, dynamic=False)
        attempt = row.attempt(forms, calls=2)
        if attempt.run is None:
            raise row.refusal(attempt.reason)
        return functools.partial(attempt.run, forms.example)

    return made
