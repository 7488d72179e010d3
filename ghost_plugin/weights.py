"""Published weights: where they are, and every foreign checkpoint layout turned into ours.

Parameter names are timm's.
"""

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ._reading import read, some

_logger = logging.getLogger(__name__)
StateDict = dict[str, torch.Tensor]

# Wrappers around the weights, the first that is there wins: timm's and the authors' averaged
# weights, then the plain ones. mmengine swaps them before it saves, so that its averaged weights
# lie under ``state_dict`` and those that were trained under ``ema_state_dict``.
_WRAPPERS = ('state_dict_ema', 'state_dict', 'ema_state_dict', 'model')
# Left behind by the thop counter in the authors' files.
_COUNTERS = ('total_ops', 'total_params')
# The layers behind the last feature, in timm's and the authors' names and in those of MMPretrain's
# StackedLinearClsHead(mid_channels=[1280]) and LinearClsHead.
_HEAD = {
    'conv_head.': 'head.layers.0.fc.',
    'classifier.': 'head.layers.1.fc.',
    'fc.': 'head.fc.',
}
_CLASSIFIERS = ('classifier.', 'fc.', 'head.layers.1.fc.', 'head.fc.')

_RELEASES = 'https://github.com/huawei-noah/Efficient-AI-Backbones/releases/download/'


@dataclass(frozen=True)
class Published:
    """One set of published weights.

    Attributes:
        backbone: Public name of the class.
        options: What makes its size.
        source: Repository on the Hugging Face hub, or an address.
        top1, top5: Per cent on ImageNet-1k at 224.
        measured: By whom; ``timm`` re-measured the weights that it hosts.
    """

    backbone: str
    options: Mapping[str, Any]
    source: str
    top1: float
    top5: float | None
    measured: str = 'timm'

    @property
    def location(self) -> dict[str, str]:
        """The source as timm's configs name it."""
        return {'url' if self.source.startswith('https:') else 'hf_hub_id': self.source}


# Registered name of timm's door: its weights. The 0.5x and 1.3x of V1 and V3, and V3 1.6x, were
# never published for PyTorch. The authors' V3 file also holds averaged weights of 77.13 % (download
# it and use load_weights, which prefers them); timm hosts the plain ones.
PUBLISHED = {
    'ghostnet_plugin': Published(
        'GhostNet', {'width': 1.0}, 'timm/ghostnet_100.in1k', 73.958, 91.542
    ),
    'ghostnet_plugin_v2_100': Published(
        'GhostNetV2', {'width': 1.0}, 'timm/ghostnetv2_100.in1k', 75.186, 92.334
    ),
    'ghostnet_plugin_v2_130': Published(
        'GhostNetV2', {'width': 1.3}, 'timm/ghostnetv2_130.in1k', 76.746, 93.364
    ),
    'ghostnet_plugin_v2_160': Published(
        'GhostNetV2', {'width': 1.6}, 'timm/ghostnetv2_160.in1k', 77.836, 93.948
    ),
    'ghostnet_plugin_v3_100': Published(
        'GhostNetV3', {'width': 1.0}, 'timm/ghostnetv3_100.in1k', 76.930, 93.132
    ),
    **{
        f'ghostnet_plugin_gghost_{arch}': Published(
            'GGhostRegNet',
            {'arch': arch},
            f'{_RELEASES}g_ghost_regnet/g_ghost_regnet_{size}g_{top1}.pth',
            top1,
            None,
            'the authors',
        )
        for arch, size, top1 in (
            ('032', '3.2', 77.8),
            ('040', '4.0', 78.6),
            ('080', '8.0', 79.0),
            ('160', '16.0', 79.9),
        )
    },
}


@dataclass(frozen=True)
class LoadReport:
    """What a load left over.

    Attributes:
        missing: Tensors of the model that the source did not hold, or a classifier of another
            number of classes.
        unused: Tensors of the source that the model has no place for.
        adapted: Tensors that were fitted to another number of input channels.
    """

    missing: tuple[str, ...]
    unused: tuple[str, ...]
    adapted: tuple[str, ...] = ()


def load_weights(
    model: nn.Module,
    source: str | os.PathLike | Mapping[str, torch.Tensor],
    strict: bool = True,
) -> LoadReport:
    """Load a checkpoint of timm, of the authors or of OpenMMLab into a model of any door.

    Args:
        model: A backbone, a timm model or an OpenMMLab classifier or detector.
        source: A file (of torch, or ``.safetensors``) or a state dict, also one wrapped in
            ``state_dict``. Averaged weights win where there are any.
        strict: Raise when a tensor of the model is not in the source. What may always be left
            over, and is logged: the head when the model has none, and a classifier of another
            number of classes, which keeps its init. Another number of input channels is adapted as
            timm does.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Not a checkpoint, or nothing of it fits, or (strict) tensors are missing or have
            another shape; the model is untouched then.
        TypeError: ``source`` is neither a file nor a state dict.
    """
    content = read(source) if isinstance(source, str | os.PathLike) else source
    if not isinstance(content, Mapping):
        raise TypeError(
            f'source must be a file or a state dict, got a {type(content).__name__}; of a model '
            'give its state_dict()'
        )
    weights = unwrap(content)
    own = model.state_dict()
    names = (rename(weights) for rename in _LAYOUTS)
    best = max(names, key=lambda candidate: len(own.keys() & candidate.keys()))
    for name, part in model.named_modules():
        if hasattr(part, 'accept'):  # knows other forms of its own weights
            part.accept(best, f'{name}.' if name else '')
    adapted = adapt_input(best, own)
    fitting = {k: v for k, v in best.items() if k in own and v.shape == own[k].shape}
    missing = tuple(k for k in own if k not in fitting and not k.endswith('num_batches_tracked'))
    unused = tuple(k for k in best if k not in fitting)
    lost = tuple(k for k in missing if not (k in best and _is_classifier(k)))
    nothing = all(k.endswith('num_batches_tracked') for k in fitting)
    if lost and (strict or nothing):
        raise ValueError(_mismatch(lost, best, own))
    model.load_state_dict({**own, **fitting})
    if missing or unused or adapted:
        _logger.warning(
            'not loaded: %s; not used: %s; adapted: %s',
            *(some(names) for names in (missing, unused, adapted)),
        )
    return LoadReport(missing, unused, adapted)


def _is_classifier(name: str) -> bool:
    return name.startswith(_CLASSIFIERS)


def adapt_input(found: StateDict, own: StateDict) -> tuple[str, ...]:
    """Fit the first conv to another number of input channels: one gets the sum, more repeat."""
    name = next((k for k, v in own.items() if v.ndim == 4), '')
    if name not in found or found[name].ndim != 4 or found[name].shape[1] != 3:
        return ()
    weight, channels = found[name], own[name].shape[1]
    if channels == 3 or weight.shape[0] != own[name].shape[0]:
        return ()
    repeated = weight.repeat(1, -(-channels // 3), 1, 1)[:, :channels] * (3 / channels)
    found[name] = weight.sum(1, keepdim=True) if channels == 1 else repeated
    return (name,)


def unwrap(checkpoint: Mapping) -> StateDict:
    """The tensors of a checkpoint, without wrappers, counters and what containers add to names."""
    for wrapper in _WRAPPERS:
        if isinstance(checkpoint.get(wrapper), Mapping):
            checkpoint = checkpoint[wrapper]
            break
    return {
        name.replace('_orig_mod.', '').removeprefix('module.'): tensor  # compiled, data parallel
        for name, tensor in checkpoint.items()
        if isinstance(tensor, torch.Tensor) and not name.endswith(_COUNTERS) and name != 'steps'
    }


def drop_counters(weights: StateDict) -> None:
    """Remove in place what the thop counter left in a state dict."""
    for name in [name for name in weights if name.endswith(_COUNTERS)]:
        del weights[name]


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


def to_features(weights: Mapping[str, torch.Tensor]) -> StateDict:
    """The names of any model to those of timm's ``features_only=True``, which flattens stages."""
    named = from_classifier(weights)
    return {name.replace('blocks.', 'blocks_', 1): tensor for name, tensor in named.items()}


def from_features(weights: Mapping[str, torch.Tensor]) -> StateDict:
    """The names of timm's ``features_only=True`` to those of the network they were taken from."""
    return {name.replace('blocks_', 'blocks.', 1): tensor for name, tensor in weights.items()}


# Every way to read the names of a checkpoint; the one that fits the model best is taken.
_LAYOUTS: tuple[Callable[[StateDict], StateDict], ...] = (
    dict, to_classifier, from_classifier, to_features, from_features
)  # fmt: skip


def _mismatch(missing: tuple[str, ...], found: StateDict, own: StateDict) -> str:
    name = missing[0]
    if name in found:
        example = f'{name} is {tuple(found[name].shape)} there and {tuple(own[name].shape)} here'
    else:
        example = f'{name} is not there'
    if name.endswith('.bias') and f'{name[:-5]}.weight' in found:
        example += '; where norms were folded in, load before that'
    return (
        f'{len(missing)} of {len(own)} tensors of the model do not come from this checkpoint '
        f'({example}); check family and width, or load with strict=False what fits'
    )
