"""Post-training int8 quantisation by ONNX Runtime, NNCF for OpenVINO, or AI Edge Quantizer."""

import contextlib
import io
import logging
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..profiling import MIN_ROUND_MS, time_together
from ..utils import optional
from ..utils.atomic_io import atomic_write_all, check_writable
from ..utils.modules import plain_forward
from .comparison import Difference, differences
from .export_formats import FORMATS
from .exporting import export
from .flat_io import calibration_tensors
from .image_input import ImageInput, check_images
from .inference import InferenceFn, onnxruntime_fn, openvino_core, openvino_fn, quiet
from .mobile_formats import litert_fn, litert_inputs

_logger = logging.getLogger(__name__)
DEPTHWISE = ('auto', 'int8', 'float')
# Smallest speed gain for which depthwise layers become int8, because they lose most accuracy.
_MIN_GAIN = 0.03
_ROUNDS = 10
# Relative error of the outputs (Difference.typical) that means a failure; outputs of zeros have 1.
_MAX_ERROR = 0.8
# Smallest number of int8 levels within the outputs of an activation; below it stays in float.
_MIN_LEVELS = 16
# Formats that have int8, but no tool that writes it as a package.
_WITHOUT_TOOL = {
    '.ncnn.param': 'the tools of ncnn for int8 (ncnn2table, ncnn2int8) are C++ programs that no '
    'package brings; write the float file with gp.export, and build them from the sources of ncnn'
}


@dataclass(frozen=True)
class QuantReport:
    """Error, time and size of an int8 model.

    Attributes:
        path: The file.
        library: ``'onnxruntime'``, ``'openvino'`` or ``'litert'``.
        depthwise: ``'int8'`` or ``'float'``.
        typical: Root mean square error of the outputs on the last calibration batch, divided by
            the root mean square of the outputs.
        times: Median milliseconds for that batch, for ``'float32'`` and each value of
            ``depthwise`` that was tried and is accurate enough.
        layers: Error of each layer's output, measured like ``typical``, with all earlier layers in
            int8; ONNX Runtime only.
        size: Bytes of the file.
        float_size: Bytes of the float32 file, ONNX or LiteRT.
    """

    path: Path
    library: str
    depthwise: str
    typical: float
    times: dict[str, float]
    layers: dict[str, float]
    size: int
    float_size: int

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return {**asdict(self), 'path': str(self.path)}

    def table(self, number: int = 10) -> str:
        """Format the ``number`` layers with the largest errors as Markdown."""
        worst = sorted(self.layers.items(), key=lambda item: -item[1])[:number]
        rows = [f'| {name} | {error:.3f} |' for name, error in worst]
        return '\n'.join(['| Layer | Error of its output |', '| --- | --- |', *rows])


@plain_forward()
def quantize(
    model: nn.Module,
    calibration: Iterable[Any],
    path: str | os.PathLike,
    *,
    depthwise: str = 'auto',
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    image_input: ImageInput | None = None,
) -> QuantReport:
    """Write a model in int8, with one scale per output channel of each weight.

    Args:
        model: In eval mode, on the CPU; it stays unchanged.
        calibration: Real inputs of the model; about 100 images are enough. The first batch defines
            the inputs of the file and their order; its arguments that are not tensors are fixed.
            Errors and times are measured on the last batch.
        path: ``.onnx`` quantises with ONNX Runtime, ``.xml`` with NNCF for OpenVINO, ``.tflite``
            with AI Edge Quantizer for LiteRT. A ``.tflite`` file has the shape of the first batch,
            so give batches of one image.
        depthwise: ``'int8'``, ``'float'`` (depthwise convs stay in float32), or ``'auto'``, which
            tries both and takes int8 only where it is faster here.
        input_names: As in :func:`ghost_plugin.export`.
        output_names: As in :func:`ghost_plugin.export`.
        image_input: As in :func:`ghost_plugin.export`; ``calibration`` remains normalized images.

    Returns:
        Error, time and size of what was written.

    Raises:
        ValueError: There is no calibration input, the model does not accept one, or one has other
            inputs than the first; a wrong option; the model cannot be exported; the int8 outputs
            of this machine's runtime are wrong. Nothing is written then.
        ImportError: The library is not installed.
        OSError: The file cannot be written there.
    """
    path = Path(path)
    if path.suffix not in _LIBRARIES:
        reasons = [text for suffix, text in _WITHOUT_TOOL.items() if path.name.endswith(suffix)]
        known = f'the name must end in one of {list(_LIBRARIES)}, got {str(path)!r}'
        raise ValueError('; '.join([known, *reasons]))
    if depthwise not in DEPTHWISE:
        raise ValueError(f'depthwise must be one of {DEPTHWISE}, got {depthwise!r}')
    library = _LIBRARIES[path.suffix]
    optional.require(*library.needs)
    check_writable(path, *FORMATS[path.suffix].companions)
    given = list(calibration)
    if not given:
        raise ValueError('calibration holds no input; give about 100 images')
    batches = calibration_tensors(model, given)
    if FORMATS[path.suffix].dynamic is False:
        _check_same_shapes(batches)
    if image_input is not None:
        check_images(batches[0], image_input)
        batches = [[image_input.pixels(batch[0])] for batch in batches]
    with tempfile.TemporaryDirectory(prefix='ghost_plugin-') as name:
        folder = Path(name)
        plain = folder / f'plain{library.plain}'
        _export(
            model,
            given[0],
            plain,
            input_names=input_names,
            output_names=output_names,
            image_input=image_input,
        )
        kinds = ('float', 'int8') if depthwise == 'auto' else (depthwise,)
        files = {kind: folder / f'{kind}{path.suffix}' for kind in kinds}
        for kind, file in files.items():
            with quiet():
                library.write(plain, batches, file, kind == 'float')
        runners = {kind: library.read(file) for kind, file in files.items()}
        errors = _errors(runners, FORMATS[library.plain].read(plain), batches[-1])
        accurate = {kind: run for kind, run in runners.items() if errors[kind] < _MAX_ERROR}
        if not accurate:
            raise ValueError(_wrong_outputs(library.name, errors))
        times = _times({'float32': library.read(plain), **accurate}, batches[-1])
        fast, safe = (times.get(kind, float('inf')) for kind in ('int8', 'float'))
        kind = 'int8' if fast < (1 - _MIN_GAIN) * safe else 'float'
        layers = library.layers(plain, files[kind], batches[-1:], folder)
        library.warn(files[kind], runners[kind], batches[-1])
        size = _place(files[kind], path)
        return QuantReport(
            path, library.name, kind, errors[kind], times, layers, size, plain.stat().st_size
        )


def _check_same_shapes(batches: list[list[torch.Tensor]]) -> None:
    for index, batch in enumerate(batches):
        found, wanted = ([tuple(x.shape) for x in inputs] for inputs in (batch, batches[0]))
        if found != wanted:
            raise ValueError(
                f'batch {index} of calibration has the shapes {found}, the first one {wanted}, '
                'which are those of the file; give batches of one image, such as images.split(1)'
            )


def _export(model: nn.Module, example_input: Any, path: Path, **options: Any) -> None:
    """Write a float file, with dynamic image sizes if the model and the format accept them."""
    if FORMATS[path.suffix].dynamic is not True:
        export(model, example_input, path, **options)
        return
    options |= dict(exporter='trace', portable=False)
    try:
        export(model, example_input, path, **options)
    except ValueError:
        export(model, example_input, path, dynamic='batch', **options)


def _times(runners: dict[str, InferenceFn], batch: list[torch.Tensor]) -> dict[str, float]:
    tasks = {name: lambda run=run: run(batch) for name, run in runners.items()}
    return {
        t.name: t.median for t in time_together(tasks, _ROUNDS, 2, rest=True, min_ms=MIN_ROUND_MS)
    }


def _errors(
    runners: dict[str, InferenceFn], plain: InferenceFn, batch: list[torch.Tensor]
) -> dict[str, float]:
    want = plain(batch)
    return {kind: differences(run(batch), want).typical for kind, run in runners.items()}


def _wrong_outputs(library: str, errors: dict[str, float]) -> str:
    found = ', '.join(f'{error:.2f} with depthwise {kind}' for kind, error in errors.items())
    other = next(suffix for suffix, row in _LIBRARIES.items() if row.name != library)
    return (
        f'{library} computes wrong int8 outputs on this processor: their error is {found} (root '
        f'mean square, relative), allowed is {_MAX_ERROR}; nothing was written; try a file that '
        f'ends in {other!r}, or other calibration inputs'
    )


def _depthwise(path: Path) -> list[str]:
    """List the names of the depthwise convs of an ONNX file."""
    import onnx

    from .concat_elimination.onnx_analysis import attribute

    graph = onnx.load(path).graph
    shapes = {weight.name: weight.dims for weight in graph.initializer}
    return [
        node.name
        for node in graph.node
        if node.op_type == 'Conv'
        and shapes.get(node.input[1], (0, 0))[1] == 1 < attribute(node, 'group', 1)
    ]


def _place(file: Path, path: Path) -> int:
    """Move a file and its companions to their target; return the size in bytes."""
    companions = FORMATS[path.suffix].companions
    with atomic_write_all(path, *companions) as partial:
        size = 0
        for suffix in (path.suffix, *companions):
            content = file.with_suffix(suffix).read_bytes()
            partial.with_suffix(suffix).write_bytes(content)
            size += len(content)
    return size


def _feeds(path: Path, batches: list[list[torch.Tensor]]) -> Iterator[dict[str, Any]]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    names = [node.name for node in session.get_inputs()]
    for batch in batches:
        yield {name: x.numpy() for name, x in zip(names, batch, strict=True)}


def _reader(path: Path, batches: list[list[torch.Tensor]]) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.feeds = _feeds(path, batches)

        def get_next(self) -> dict[str, Any] | None:
            return next(self.feeds, None)

    return Reader()


def _by_onnxruntime(
    plain: Path, batches: list[list[torch.Tensor]], path: Path, float_depthwise: bool
) -> None:
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    ready = path.with_suffix('.ready.onnx')
    quant_pre_process(str(plain), str(ready), skip_symbolic_shape=True)
    quantize_static(
        str(ready),
        str(path),
        _reader(ready, batches),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        # 7 bits for weights: processors without VNNI add pairs of products in 16 bits, which
        # overflow. A converted EfficientNet-Lite0 had top-1 64 % there, 60 % with 8 bits.
        reduce_range=True,
        nodes_to_exclude=_depthwise(plain) if float_depthwise else [],
    )
    _unique(path)


def _unique(path: Path) -> None:
    """Drop repeated nodes, which ONNX Runtime writes and then refuses to read."""
    import onnx

    model = onnx.load(path)
    nodes = {tuple(node.output): node for node in reversed(model.graph.node)}
    kept = [node for node in model.graph.node if nodes[tuple(node.output)] is node]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    onnx.save(model, path)


def _by_nncf(
    plain: Path, batches: list[list[torch.Tensor]], path: Path, float_depthwise: bool
) -> None:
    import nncf
    import openvino

    model = openvino_core().read_model(str(plain))
    # A channel permutation between int8 values and a shortcut kills the process in which OpenVINO
    # 2026.4 compiles it.
    kept = ['GroupConvolution', 'Gather'] if float_depthwise else ['Gather']
    present = {op.get_type_name() for op in model.get_ops()}
    kinds = [kind for kind in kept if kind in present]  # NNCF refuses absent types
    data = nncf.Dataset(batches, lambda batch: [x.numpy() for x in batch])
    scope = nncf.IgnoredScope(types=kinds)
    # MIXED has zero points for values without a ReLU: a converted EfficientNet-Lite0 with top-1
    # 86.0 % in float32 has 85.3 % with them, 84.0 % without, at about the same speed.
    preset = nncf.QuantizationPreset.MIXED
    number = len(batches)
    made = nncf.quantize(model, data, preset=preset, subset_size=number, ignored_scope=scope)
    openvino.save_model(made, str(path), compress_to_fp16=False)


def _by_litert(
    plain: Path, batches: list[list[torch.Tensor]], path: Path, float_depthwise: bool
) -> None:
    from ai_edge_quantizer import quantizer
    from ai_edge_quantizer.qtyping import TFLOperationName as Op

    made = quantizer.Quantizer(str(plain))
    made.add_static_config('.*', Op.ALL_SUPPORTED, activation_num_bits=8, weight_num_bits=8)
    never = quantizer.AlgorithmName.NO_QUANTIZE
    # Without these the file would take and return int8.
    for kind in (Op.INPUT, Op.OUTPUT):
        made.update_quantization_recipe('.*', kind, algorithm_key=never)
    # It prints progress and a summary.
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        feeds = list(map(litert_inputs(plain), batches))  # read twice
        ranges = made.calibrate({'serving_default': feeds}, num_threads=torch.get_num_threads())
        left = [
            (f'^{re.escape(name)};', Op.ALL_SUPPORTED) for name in _float_outputs(plain, ranges)
        ]
        if float_depthwise:  # after the calibration, which leaves out what lies between them
            left.append(('.*', Op.DEPTHWISE_CONV_2D))
        for scope, kind in left:
            made.update_quantization_recipe(scope, kind, algorithm_key=never)
        path.write_bytes(made.quantize(ranges).quantized_model)


def _float_outputs(plain: Path, ranges: dict[str, Any]) -> list[str]:
    """List the outputs of operators around activations that int8 would leave few levels.

    A Ghost conv has its activation behind the concatenation, so its int8 scale must cover values
    that the activation cuts off. The first conv of EfficientNet-Lite0 has values of -96 to 86 in
    front of a ReLU6, which leaves 8 levels: converted and with this layer in int8 its top-1 fell
    from 85.3 % to 77.3 %.
    """
    from ai_edge_litert.interpreter import Interpreter

    net = Interpreter(str(plain))
    names = {tensor['index']: tensor['name'] for tensor in net.get_tensor_details()}
    ops = net._get_ops_details()
    writers = {output: op for op in ops for output in op['outputs']}

    def width(tensor: int) -> float:
        found = ranges[names[tensor]]
        return float(found['max'].max() - found['min'].min())

    wide: set[int] = set()
    for op in ops:
        if op['op_name'].startswith('RELU'):
            before, after = op['inputs'][0], op['outputs'][0]
            if 255 * width(after) < _MIN_LEVELS * width(before):
                writer = writers[before]
                parts = writer['inputs'] if writer['op_name'] == 'CONCATENATION' else ()
                wide |= {before, *parts}
    touching = [op for op in ops if wide & {*op['inputs'], *op['outputs']}]
    return [names[output] for op in touching for output in op['outputs']]


def _warn_of_dynamic_axes(path: Path, reference: InferenceFn, batch: list[torch.Tensor]) -> None:
    """Warn of wrong outputs with dynamic axes, as in OpenVINO 2026.4 with AVX-VNNI."""
    compiled = openvino_core().compile_model(str(path), 'CPU')
    found = compiled([x.numpy() for x in batch]).to_tuple()
    error = differences([torch.from_numpy(value) for value in found], reference(batch)).typical
    if not error < _MAX_ERROR:
        _logger.warning(
            'OpenVINO computes wrong outputs on this processor when this int8 model is compiled '
            'with dynamic axes; fix them before: model = core.read_model(path); '
            'model.reshape([1, 3, 224, 224]); core.compile_model(model)'
        )


def _layers(
    plain: Path, path: Path, batches: list[list[torch.Tensor]], folder: Path
) -> dict[str, float]:
    """Return the error of each quantised output, as matched by ONNX Runtime's debugger."""
    from onnxruntime.quantization import qdq_loss_debug as debug

    found = []
    for name, file in (('plain', path.with_suffix('.ready.onnx')), ('int8', path)):
        shown = folder / f'{name}.shown.onnx'
        debug.modify_model_output_intermediate_tensors(file, shown)
        found.append(debug.collect_activations(str(shown), _reader(plain, batches)))
    matches = debug.create_activation_matching(found[1], found[0])
    return {
        name: _error(match['float'], match['post_qdq'])
        for name, match in matches.items()
        if match.get('float')
    }


def _error(want: Iterable[Any], got: Iterable[Any]) -> float:
    worst = Difference()
    for a, b in zip(want, got, strict=True):
        worst |= differences(torch.from_numpy(b), torch.from_numpy(a))
    return worst.typical


@dataclass(frozen=True)
class _Library:
    name: str
    needs: tuple[str, ...]
    write: Callable[[Path, list[list[torch.Tensor]], Path, bool], None]
    read: Callable[[Path], InferenceFn]
    layers: Callable[..., dict[str, float]]
    warn: Callable[[Path, InferenceFn, list[torch.Tensor]], None]
    plain: str = '.onnx'  # suffix of the float file that it reads


_LIBRARIES = {
    '.onnx': _Library(
        'onnxruntime',
        ('onnx', 'onnxruntime'),
        _by_onnxruntime,
        onnxruntime_fn,
        _layers,
        lambda *args: None,
    ),
    '.xml': _Library(
        'openvino',
        ('onnx', 'onnxruntime', 'openvino', 'nncf'),
        _by_nncf,
        openvino_fn,
        lambda *args: {},
        _warn_of_dynamic_axes,
    ),
    '.tflite': _Library(
        'litert',
        ('litert_torch', 'ai_edge_litert', 'ai_edge_quantizer'),
        _by_litert,
        litert_fn,
        lambda *args: {},
        lambda *args: None,
        '.tflite',
    ),
}
