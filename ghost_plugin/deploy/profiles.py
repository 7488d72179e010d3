"""Profiles of ONNX for older compilers: what each reads, and files rewritten to that.

A file for a profile has one opset, fixed shapes and no operator that the compiler does not know.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..utils import optional

Step = tuple[Any, ...]  # an operator and its constants

# Convolutional networks of fixed shapes need no others, and all compilers below list them.
_COMMON = frozenset(
    'Add AveragePool BatchNormalization Clip Concat Conv ConvTranspose Div Elu Flatten Gemm '
    'GlobalAveragePool GlobalMaxPool LeakyRelu MatMul MaxPool Mul Pad Pow ReduceMean Relu Reshape '
    'Resize Sigmoid Slice Softmax Split Squeeze Sub Tanh Transpose Unsqueeze'.split()
)


@dataclass(frozen=True)
class Profile:
    """An ONNX file as one compiler reads it.

    Attributes:
        name: Value of ``profile=``.
        compiler: The oldest version that reads the file.
        opset: Opset of the file.
        operators: The only operators in it.
        source: Address of the compiler's list of operators.
    """

    name: str
    compiler: str
    opset: int
    operators: frozenset[str]
    source: str


ROWS = (
    Profile(
        'rknn',
        'RKNN-Toolkit2 1.4',
        12,
        _COMMON | {'DepthToSpace', 'Exp', 'HardSigmoid', 'Max', 'Min', 'PRelu', 'Sqrt'},
        'https://github.com/rockchip-linux/rknn-toolkit2/blob/d8074d7/doc/'
        'RKNNToolKit2_OP_Support-1.4.0.md',
    ),
    Profile(
        'tensorrt',
        'TensorRT 8.4',
        13,
        _COMMON
        | {'DepthToSpace', 'Erf', 'Exp', 'HardSigmoid', 'Max', 'Min', 'PRelu', 'ReduceSum', 'Sqrt'},
        'https://github.com/onnx/onnx-tensorrt/blob/009d654/docs/operators.md',
    ),
    # Its plugin for Myriad X has no HardSigmoid: github.com/luxonis/blobconverter, issue 63. The
    # list lacks Split, which the importer has.
    Profile(
        'openvino',
        'OpenVINO 2022.1, Myriad X',
        11,
        _COMMON | {'Erf', 'Exp', 'Min', 'ReduceSum', 'Sqrt'},
        'https://github.com/openvinotoolkit/openvino/blob/1de7aef/docs/MO_DG/prepare_model/'
        'Supported_Frameworks_Layers.md',
    ),
    # Found by reading files with 4.5.5 and 4.6.0: Clip with inputs is refused.
    Profile(
        'opencv',
        'OpenCV 4.5.5',
        11,
        _COMMON - {'Clip'},
        'https://github.com/opencv/opencv/issues/17652',
    ),
)
PROFILES = {row.name: row for row in ROWS}


def check_profile(
    name: str, format_name: str, opset: int, default_opset: int, portable: bool
) -> Profile:
    """Return a profile, if the other options of an export fit it.

    Args:
        name: As the user gave it.
        format_name: Name of the file format.
        opset: As the user gave it.
        default_opset: The opset where the user gave none.
        portable: As the user gave it.

    Raises:
        ValueError: There is no such profile, or an option contradicts it.
    """
    if name not in PROFILES:
        raise ValueError(f'profile must be one of {list(PROFILES)}, got {name!r}')
    profile = PROFILES[name]
    if format_name != 'onnx':
        raise ValueError(f'profile (--profile) works for .onnx files, got {format_name}')
    if opset not in (default_opset, profile.opset):
        raise ValueError(f'profile {name!r} has opset {profile.opset}, got {opset}; leave it out')
    if not portable:
        raise ValueError(f'profile {name!r} needs portable=True (without --indexed)')
    return profile


def fit_file(path: Path, profile: Profile) -> None:
    """Rewrite an ONNX file of fixed shapes to a profile, in place.

    Args:
        path: The file, of the profile's opset.
        profile: The profile.

    Raises:
        ValueError: There are operators that the compiler does not know.
    """
    optional.require('onnx', 'onnxruntime')
    import onnx

    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        folded = Path(folder) / 'folded.onnx'
        _fold_constants(path, folded)
        model = onnx.load(folded)
    graph = model.graph
    nodes = [new for node in graph.node for new in _rewritten(node, profile, graph)]
    del graph.node[:]
    graph.node.extend(nodes)
    unknown = [node for node in nodes if node.domain or node.op_type not in profile.operators]
    if unknown:
        listed = ', '.join(f'{node.op_type} ({node.name})' for node in unknown[:5])
        more = f' and {len(unknown) - 5} others' if len(unknown) > 5 else ''
        raise ValueError(
            f'{profile.compiler} does not know the operators of {listed}{more}; replace these '
            f'layers of the model, or leave profile={profile.name!r} (--profile) out'
        )
    # ONNX Runtime names all domains that it knows.
    kept = [one for one in model.opset_import if not one.domain]
    del model.opset_import[:]
    model.opset_import.extend(kept)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def _fold_constants(source: Path, target: Path) -> None:
    """Compute what depends on shapes alone, by the optimizer of ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # Higher levels write operators of ONNX Runtime's own.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(target)
    options.log_severity_level = 4
    onnxruntime.InferenceSession(str(source), options, providers=['CPUExecutionProvider'])


def _rewritten(node: Any, profile: Profile, graph: Any) -> Iterator[Any]:
    """Yield a node, or what replaces it where the compiler does not know its operator."""
    rewrite = REWRITES.get(node.op_type)
    if node.op_type in profile.operators or not rewrite:
        yield node
        return
    for new in _chain(node, graph, rewrite(node, graph)):
        yield from _rewritten(new, profile, graph)


def _chain(node: Any, graph: Any, steps: Sequence[Step]) -> Iterator[Any]:
    """Make nodes that follow one another, from the input of a node to its output."""
    from onnx import helper, numpy_helper

    value = node.input[0]
    for place, (kind, *constants) in enumerate(steps):
        name = f'{node.output[0]}_{node.op_type}_{place}'
        inputs = [f'{name}_{index}' for index in range(len(constants))]
        graph.initializer.extend(
            numpy_helper.from_array(np.float32(constant), own)
            for constant, own in zip(constants, inputs, strict=True)
        )
        output = node.output[0] if place == len(steps) - 1 else name
        yield helper.make_node(kind, [value, *inputs], [output], f'{node.name}_{place}')
        value = output


def _hard_sigmoid(node: Any, graph: Any) -> list[Step]:
    from onnx import helper

    given = {one.name: helper.get_attribute_value(one) for one in node.attribute}
    # ONNX's defaults, which are not PyTorch's.
    return [('Mul', given.get('alpha', 0.2)), ('Add', given.get('beta', 0.5)), ('Clip', 0, 1)]


def _clip(node: Any, graph: Any) -> list[Step]:
    from onnx import numpy_helper

    constants = {one.name: one for one in graph.initializer}
    low, high = (
        float(numpy_helper.to_array(constants[name])) if name else None
        for name in [*node.input[1:], '', ''][:2]
    )
    steps: list[Step] = []
    if low is not None:
        steps += [('Add', -low), ('Relu',), ('Add', low)]
    if high is not None:  # exact where it saturates
        steps += [('Mul', -1), ('Add', high), ('Relu',), ('Mul', -1), ('Add', high)]
    return [step for step in steps if step != ('Add', 0)]


# By operator: the steps that compute the same.
REWRITES: dict[str, Callable[[Any, Any], list[Step]]] = {
    'Clip': _clip,
    'HardSigmoid': _hard_sigmoid,
}
