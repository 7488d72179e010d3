"""Published weights: where they are, and every foreign checkpoint layout turned into ours.

Parameter names are timm's. Files are read with ``weights_only=True``, so a checkpoint can hold
tensors and plain values but no code.
"""

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

_logger = logging.getLogger(__name__)
StateDict = dict[str, torch.Tensor]

# Wrappers around the weights, the first that is there wins.
_WRAPPERS = ('state_dict', 'model')
# Left behind by the thop counter in the authors' files.
_COUNTERS = ('total_ops', 'total_params')
# The layers behind the last feature, in timm's names and in those of an MMPretrain classifier
# with StackedLinearClsHead(mid_channels=[1280]).
_HEAD = {'conv_head.': 'head.layers.0.fc.', 'classifier.': 'head.layers.1.fc.'}


@dataclass(frozen=True)
class Published:
    """One set of published weights; accuracies as timm measured them on ImageNet-1k at 224."""

    backbone: str
    width: float
    hub: str  # on the Hugging Face hub
    top1: float  # per cent
    top5: float  # per cent


PUBLISHED = {
    'ghostnet_plugin': Published('GhostNet', 1.0, 'timm/ghostnet_100.in1k', 73.958, 91.542),
}


@dataclass(frozen=True)
class LoadReport:
    """What a load left over.

    Attributes:
        missing: Tensors of the model that the source did not hold.
        unused: Tensors of the source that the model has no place for.
    """

    missing: tuple[str, ...]
    unused: tuple[str, ...]


def load_weights(
    model: nn.Module,
    source: str | os.PathLike | Mapping[str, torch.Tensor],
    strict: bool = True,
) -> LoadReport:
    """Load a checkpoint of timm, of the authors or of OpenMMLab into a model of any door.

    Args:
        model: A backbone, a timm model or an OpenMMLab classifier or detector.
        source: A file or a state dict, also one wrapped in ``state_dict``.
        strict: Raise when a tensor of the model is not in the source. A classifier's head may
            stay over when the model has none; the log says so.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Not a checkpoint, or (strict) tensors are missing or have another shape; the
            model is untouched then.
    """
    weights = unwrap(read(source) if isinstance(source, str | os.PathLike) else source)
    own = model.state_dict()
    names = (rename(weights) for rename in _LAYOUTS)
    best = max(names, key=lambda candidate: len(own.keys() & candidate.keys()))
    fitting = {k: v for k, v in best.items() if k in own and v.shape == own[k].shape}
    missing = tuple(k for k in own if k not in fitting and not k.endswith('num_batches_tracked'))
    unused = tuple(k for k in best if k not in fitting)
    if missing and (strict or not fitting):
        raise ValueError(_mismatch(missing, best, own))
    model.load_state_dict(fitting, strict=False)
    if missing or unused:
        _logger.warning('not loaded: %s; not used: %s', _some(missing), _some(unused))
    return LoadReport(missing, unused)


def read(path: str | os.PathLike) -> Mapping:
    """A checkpoint file as a mapping; nothing in it is executed."""
    if not os.path.isfile(path):
        raise FileNotFoundError(f'no checkpoint at {os.fspath(path)!r}')
    try:
        content = torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:  # what the unpickler meets in a foreign file can raise anything
        reason = f'{type(error).__name__}: {error}'.splitlines()[0]
        raise ValueError(
            f'{os.fspath(path)!r} is not a checkpoint of plain tensors: {reason}'
        ) from error
    if not isinstance(content, Mapping):
        raise ValueError(f'{os.fspath(path)!r} holds a {type(content).__name__}, not a state dict')
    return content


def unwrap(checkpoint: Mapping) -> StateDict:
    """The tensors of a checkpoint, without wrappers, ``module.`` prefixes and counters."""
    for wrapper in _WRAPPERS:
        if isinstance(checkpoint.get(wrapper), Mapping):
            checkpoint = checkpoint[wrapper]
            break
    return {
        name.removeprefix('module.'): tensor
        for name, tensor in checkpoint.items()
        if isinstance(tensor, torch.Tensor) and not name.endswith(_COUNTERS)
    }


def to_classifier(weights: Mapping[str, torch.Tensor]) -> StateDict:
    """timm's names to those of an MMPretrain classifier, the 1x1 conv of the head to a linear."""
    renamed = {}
    for name, tensor in weights.items():
        part = next((part for part in _HEAD if name.startswith(part)), None)
        if part is None:
            renamed[f'backbone.{name}'] = tensor
        else:
            renamed[_HEAD[part] + name.removeprefix(part)] = _as_linear(tensor)
    return renamed


def from_classifier(weights: Mapping[str, torch.Tensor]) -> StateDict:
    """The names of an OpenMMLab model to timm's; a hidden linear of the head to a 1x1 conv."""
    renamed = {}
    for name, tensor in weights.items():
        part = next((part for part, theirs in _HEAD.items() if name.startswith(theirs)), None)
        if part is None:
            renamed[name.removeprefix('backbone.')] = tensor
        else:
            as_conv = part == 'conv_head.' and tensor.ndim == 2
            tensor = tensor[:, :, None, None] if as_conv else tensor
            renamed[part + name.removeprefix(_HEAD[part])] = tensor
    return renamed


def _as_linear(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.flatten(1) if tensor.ndim == 4 else tensor


# Every way to read the names of a checkpoint; the one that fits the model best is taken.
_LAYOUTS: tuple[Callable[[StateDict], StateDict], ...] = (dict, to_classifier, from_classifier)


def _some(names: tuple[str, ...]) -> str:
    shown = ', '.join(names[:3]) or 'nothing'
    return shown + (f' and {len(names) - 3} more' if len(names) > 3 else '')


def _mismatch(missing: tuple[str, ...], found: StateDict, own: StateDict) -> str:
    name = missing[0]
    if name in found:
        example = f'{name} is {tuple(found[name].shape)} there and {tuple(own[name].shape)} here'
    else:
        example = f'{name} is not there'
    return (
        f'{len(missing)} of {len(own)} tensors of the model do not come from this checkpoint '
        f'({example}); check family and width, or load with strict=False what fits'
    )
