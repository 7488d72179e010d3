"""Published weights, and the conversion of other checkpoint layouts to that of this package.

Parameter names are timm's.
"""

import logging
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .specs import GHOSTNET, make_divisible
from .utils.checkpoint_io import as_tensors, read, some

_logger = logging.getLogger(__name__)
StateDict = dict[str, torch.Tensor]

# Keys of averaged weights in checkpoints, and of plain ones; other keys rank last.
_AVERAGED = re.compile(r'(^|_)(ema|swa|averaged?|avg)(_|$)')
_PLAIN = (
    '', 'state_dict', 'model', 'model_state_dict', 'net', 'network', 'params', 'weights', 'module'
)  # fmt: skip
# Parts that wrappers add to names: compiled, sharded, checkpointed.
_CONTAINERS = ('_orig_mod.', '_fsdp_wrapped_module.', '_checkpoint_wrapped_module.')
# Counters beside the weights of averaged models.
_AVERAGE_COUNTERS = ('steps', 'n_averaged')
# Share of the best score from which another candidate fits equally well, and share of the smaller
# network that must agree before a prefix is removed.
_RIVAL_SHARE = 0.9
_MIN_SHARE = 0.5
# Buffers of the thop counter in the authors' files.
_COUNTERS = ('total_ops', 'total_params')
# Layers of the head: timm's and the authors' names, and those of MMPretrain's
# StackedLinearClsHead(mid_channels=[1280]) and LinearClsHead.
_HEAD = {
    'conv_head.': 'head.layers.0.fc.',
    'classifier.': 'head.layers.1.fc.',
    'fc.': 'head.fc.',
}
_BATCHES = 'num_batches_tracked'
_CLASSIFIERS = ('classifier.', 'fc.', 'head.layers.1.fc.', 'head.fc.')

_RELEASES = 'https://github.com/huawei-noah/Efficient-AI-Backbones/releases/download/'
_PADDLE = 'https://paddle-imagenet-models-name.bj.bcebos.com/dygraph/'


@dataclass(frozen=True)
class Published:
    """One set of published weights.

    Attributes:
        backbone: Public name of the class.
        options: Arguments that set its size.
        source: Repository on the Hugging Face hub, or a URL.
        top1, top5: Per cent on ImageNet-1k at 224.
        measured: Who measured them; ``timm`` re-measured the weights that it hosts.
        tag: timm's name for this set of weights.
        license: Of the weights.
    """

    backbone: str
    options: Mapping[str, Any]
    source: str
    top1: float
    top5: float | None
    measured: str = 'timm'
    tag: str = 'in1k'
    license: str = 'apache-2.0'

    @property
    def location(self) -> dict[str, Any]:
        """The source as timm's configs name it."""
        if not self.source.startswith('https:'):
            return {'hf_hub_id': self.source}
        # timm's own loader reads no pickles of arrays, and no objects beside tensors.
        return {'url': self.source, 'custom_load': not self.source.endswith('.pth')}


def _of_paddle(width: float, name: str, top1: float, top5: float) -> Published:
    tag = 'paddle_ssld_in1k' if 'ssld' in name else 'paddle_in1k'
    source = f'{_PADDLE}GhostNet_{name}_pretrained.pdparams'
    return Published('GhostNet', {'width': width}, source, top1, top5, 'PaddleClas', tag)


# Weights by registered timm name. V3 0.5x, 1.3x and 1.6x were never published.
PUBLISHED = {
    'ghostnet_plugin_050': _of_paddle(0.5, 'x0_5', 66.8, 86.9),
    'ghostnet_plugin_130': _of_paddle(1.3, 'x1_3', 75.7, 92.5),
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
    **{
        f'ghostnet_plugin_rep_{size}': Published(
            'RepGhostNet',
            {'width': int(size) / 100},
            f'timm/repghostnet_{size}.in1k',
            top1,
            top5,
            license='mit',
        )
        for size, top1, top5 in (
            ('050', 66.978, None),
            ('058', 68.938, None),
            ('080', 72.240, None),
            ('100', 74.208, 91.550),
            ('111', 75.060, None),
            ('130', 76.378, None),
            ('150', 77.474, None),
            ('200', 78.802, None),
        )
    },
}
# Further sets of weights of the same networks, chosen by their tags: 'ghostnet_plugin.paddle_in1k'.
FURTHER = (
    ('ghostnet_plugin', _of_paddle(1.0, 'x1_0', 74.0, 91.6)),
    ('ghostnet_plugin_130', _of_paddle(1.3, 'x1_3_ssld', 79.38, 94.49)),  # distilled
    (
        'ghostnet_plugin_v3_100',  # the averaged weights of the file; timm hosts the plain ones
        Published(
            'GhostNetV3',
            {'width': 1.0},
            f'{_RELEASES}GhostNetV3/ghostnetv3-1.0.pth.tar',
            77.134,
            93.236,
            'PaddleClas',
            'ema_in1k',
        ),
    ),
)
ALL_PUBLISHED = (*PUBLISHED.items(), *FURTHER)


@dataclass(frozen=True)
class LoadReport:
    """Report of a load.

    Attributes:
        missing: Tensors of the model, or of ``submodule``, that the source lacks, and a classifier
            with another number of classes.
        unused: Tensors of the source that the model lacks.
        adapted: Tensors that were adapted to another number of input channels.
        wrapper: Keys of the source that contain the weights, joined by dots.
        prefix: Prefix of all names in the source, absent in the model.
        submodule: Name of the part of the model that was loaded, '' for all of it.
    """

    missing: tuple[str, ...]
    unused: tuple[str, ...]
    adapted: tuple[str, ...] = ()
    wrapper: str = ''
    prefix: str = ''
    submodule: str = ''


@dataclass(frozen=True)
class Match:
    """The weights of a checkpoint that fit a model.

    Attributes:
        weights: The tensors by the model's names, with those that the model lacks.
        names, shapes: Number of tensors that the model has by name, and by name and shape.
        size: Number of tensors of the model, or of its ``submodule``.
        literal: True if the names were not changed.
        wrapper, prefix, submodule: As :class:`LoadReport`.
    """

    weights: StateDict
    names: int
    shapes: int
    size: int
    literal: bool
    wrapper: str
    prefix: str
    submodule: str

    @property
    def score(self) -> int:
        """Quality of the match."""
        return self.names + self.shapes

    @property
    def place(self) -> str:
        """Description of source and target, for messages."""
        wrapper = f'under {self.wrapper!r}' if self.wrapper else ''
        prefix = f'with names that begin with {self.prefix!r}' if self.prefix else ''
        into = f'into {self.submodule!r} of the model' if self.submodule else ''
        return ' '.join(part for part in ('those', wrapper, prefix, into) if part)


def load_weights(
    model: nn.Module,
    source: str | os.PathLike | Mapping[str, Any],
    strict: bool = True,
) -> LoadReport:
    """Load a checkpoint of timm, of the authors, of OpenMMLab or of a train script into a model.

    Names may have a prefix in the source, as Lightning and wrappers add it, and the network may be
    a part of the model. Both are found by the names and reported.

    Args:
        model: A backbone, a timm model or an OpenMMLab classifier or detector, or any model that
            has one of these as a part.
        source: A file (of torch, ``.safetensors``, ``.npz``, or a pickle of numpy arrays), or a
            state dict of tensors or numpy arrays, also under keys such as ``state_dict``. Averaged
            weights are preferred.
        strict: Raise if the source lacks a tensor of the model (or of the part that it fits). These
            are only logged: a head that the model lacks, and a classifier with another number of
            classes, which keeps its initial weights. Input channels are adapted as in timm.

    Returns:
        A report of source, target and tensors that were not loaded.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Not a checkpoint, nothing of it fits, several networks in it or in the model fit
            equally well, or (strict) tensors are missing or differ in shape. The model is not
            changed then.
        TypeError: ``source`` is neither a file nor a state dict.
    """
    content = read(source) if isinstance(source, str | os.PathLike) else source
    if not isinstance(content, Mapping):
        raise TypeError(
            f'source must be a file or a state dict, got a {type(content).__name__}; of a model '
            'give its state_dict()'
        )
    state = model.state_dict()
    names = {_plain_name(name): name for name in state}
    match = find_weights(content, state)
    best, start = dict(match.weights), _dotted(match.submodule)
    own = {plain: state[name] for plain, name in names.items() if plain.startswith(start)}
    for name, part in model.named_modules():
        if hasattr(part, 'remap_state_dict'):  # it converts other forms of its weights
            part.remap_state_dict(best, _plain_name(_dotted(name)))
    adapted = adapt_input(best, own)
    fitting = {k: v for k, v in best.items() if k in own and v.shape == own[k].shape}
    missing = tuple(k for k in own if k not in fitting and not k.endswith(_BATCHES))
    unused = tuple(k for k in best if k not in fitting)
    lost = tuple(
        k for k in missing if not (k in best and k.removeprefix(start).startswith(_CLASSIFIERS))
    )
    nothing = all(k.endswith(_BATCHES) for k in fitting)
    if lost and (strict or nothing):
        raise ValueError(_mismatch(lost, best, own, match))
    model.load_state_dict({**state, **{names[plain]: v for plain, v in fitting.items()}})
    report = LoadReport(missing, unused, adapted, match.wrapper, match.prefix, match.submodule)
    if match.wrapper or match.prefix or match.submodule:
        _logger.info('loaded %s', match.place)
    if missing or unused or adapted:
        _logger.warning(
            'not loaded: %s; not used: %s; adapted: %s', some(missing), some(unused), some(adapted)
        )
    return report


def find_weights(content: Mapping[str, Any], own: Mapping[str, torch.Tensor]) -> Match:
    """Find the weights of a model in a checkpoint by names and shapes.

    Args:
        content: A checkpoint: tensors or arrays by name, also in nested mappings.
        own: The model's state dict.

    Returns:
        The best match; if nothing fits, the tensors of the checkpoint as they are.

    Raises:
        ValueError: Several networks fit equally well.
    """
    own = {_plain_name(name): tensor for name, tensor in own.items()}
    places = list(_places(as_tensors(content))) or [('', 2, {})]
    fits = [fit for place, _, weights in places for fit in _matches(place, weights, own)]
    best = max(fit.score for fit in fits)
    rivals = [fit for fit in fits if fit.score >= _RIVAL_SHARE * best]
    ranks = {place: rank for place, rank, _ in places}
    rank = min(ranks[fit.wrapper] for fit in rivals)
    rivals = [fit for fit in rivals if ranks[fit.wrapper] == rank]
    chosen = max(rivals, key=lambda fit: (fit.score, fit.literal, -fit.size))
    rivals = [
        fit for fit in rivals
        if not (chosen.literal and fit.wrapper == chosen.wrapper) and not _is_same(chosen, fit)
    ]  # fmt: skip
    if rivals and best:
        raise ValueError(_ambiguous(chosen, rivals))
    return chosen


def _places(
    content: Mapping, place: str = '', beside: Mapping | None = None
) -> Iterator[tuple[str, int, StateDict]]:
    """Yield every mapping of a checkpoint with tensors: its key path, its rank and its tensors.

    Ranks are 0 for averaged weights, 1 for plain ones, 2 for others. ``beside`` is the mapping that
    contains this one.
    """
    weights = unwrapped(content)
    if any('._batch_norm.' in name for name in weights):
        weights = from_paddle(weights)
    if weights:
        yield place, _rank(place, beside), weights
    for key, value in content.items():
        if isinstance(value, Mapping) and isinstance(key, str):
            yield from _places(value, f'{_dotted(place)}{key}', content)


def _rank(place: str, beside: Mapping | None) -> int:
    key, beside = place.rpartition('.')[2], beside or {}
    # mmengine swaps them before it saves: its averaged weights are under state_dict.
    swapped = 'meta' in beside and 'ema_state_dict' in beside
    if swapped and key in ('state_dict', 'ema_state_dict'):
        return 0 if key == 'state_dict' else 2
    if _AVERAGED.search(place.replace('.', '_')):
        return 0
    return 1 if key in _PLAIN else 2


def unwrapped(weights: Mapping) -> StateDict:
    """The tensors of a mapping, without counters and without the name parts of wrappers."""
    return {
        _plain_name(name): tensor
        for name, tensor in weights.items()
        if isinstance(name, str)
        and isinstance(tensor, torch.Tensor)
        and not name.endswith(_COUNTERS)
        and name not in _AVERAGE_COUNTERS
    }


def _plain_name(name: str) -> str:
    for container in _CONTAINERS:
        name = name.replace(container, '')
    return name


def _dotted(name: str) -> str:
    return f'{name}.' if name else ''


def _matches(place: str, weights: StateDict, own: Mapping[str, torch.Tensor]) -> list[Match]:
    """All ways to map the names of a state dict to those of a model."""
    whole = [_match(place, weights, own, layout, '', '') for layout in _LAYOUTS]
    if any(fit.shapes == fit.size for fit in whole):  # nothing can be better
        return whole
    fits = [
        _match(place, weights, own, layout, *pair)
        for pair in _prefixes(weights, own)
        for layout in _LAYOUTS
    ]
    sizes = (sum(not name.endswith(_BATCHES) for name in names) for names in (weights, own))
    enough = _MIN_SHARE * min(sizes)
    return [*whole, *(fit for fit in fits if fit.names >= enough)]


def _match(
    place: str,
    weights: StateDict,
    own: Mapping[str, torch.Tensor],
    layout: Callable[[StateDict], StateDict],
    prefix: str,
    start: str,
) -> Match:
    """The match for one prefix of the source, one of the model (``start``) and one layout."""
    inner = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
    found = {start + name: tensor for name, tensor in layout(inner).items()}
    counted = [name for name in found if name in own and not name.endswith(_BATCHES)]
    shapes = sum(found[name].shape == own[name].shape for name in counted)
    size = sum(name.startswith(start) and not name.endswith(_BATCHES) for name in own)
    literal = layout is dict and not prefix and not start
    return Match(found, len(counted), shapes, size, literal, place, prefix, start.rstrip('.'))


def _prefixes(weights: StateDict, own: Mapping[str, torch.Tensor]) -> list[tuple[str, str]]:
    """Pairs of prefixes to remove from the names of source and model, best first.

    Each name of the source votes for the pairs with the longest common rest. A rest such as
    ``weight`` alone does not identify a layer.
    """
    ends = defaultdict(list)
    for name in map(_unflattened, own):
        for start, rest in _splits(name):
            if '.' in rest or not start:
                ends[rest].append(start)
    votes: Counter = Counter()
    for name in map(_unflattened, weights):
        start, rest = next((pair for pair in _splits(name) if pair[1] in ends), ('', ''))
        votes.update((start, other) for other in ends.get(rest, ()))
    pairs = [pair for pair, _ in votes.most_common(16)]
    # Layouts remove and add the backbone's name themselves, because the head has another name.
    outer = [
        (start.removesuffix('backbone.'), other.removesuffix('backbone.')) for start, other in pairs
    ]
    mixed = [(a, other) for (a, _), (_, other) in zip(outer, pairs, strict=True)]
    mixed += [(start, b) for (_, b), (start, _) in zip(outer, pairs, strict=True)]
    return list(dict.fromkeys([*pairs, *mixed]))


def _unflattened(name: str) -> str:
    """A name of timm's ``features_only=True`` model as in the complete model."""
    return name.replace('blocks_', 'blocks.', 1)


def _splits(name: str) -> Iterator[tuple[str, str]]:
    """All splits of a name at its dots, the longest rest first."""
    end = 0
    while True:
        yield name[:end], name[end:]
        end = name.find('.', end) + 1
        if not end:
            return


def _is_same(one: Match, other: Match) -> bool:
    """True if two matches assign the same tensors to the same names."""
    shared = [
        (one.weights[name], other.weights[name])
        for name in one.weights.keys() & other.weights.keys()
    ]
    same = all(
        a is b or (a.dtype == b.dtype and a.device == b.device and torch.equal(a, b))
        for a, b in shared
    )
    return same and len(shared) >= _MIN_SHARE * one.names


def _ambiguous(chosen: Match, rivals: list[Match]) -> str:
    candidates = dict.fromkeys(fit.place for fit in (chosen, *rivals))
    return (
        f'several networks fit equally well: {"; ".join(candidates)}. Give one of them: '
        "of the source the part's own state dict ({k.removeprefix(prefix): v for k, v in "
        'state.items() if k.startswith(prefix)}), of the model the submodule '
        '(load_weights(model.part, ...))'
    )


def adapt_input(found: StateDict, own: StateDict) -> tuple[str, ...]:
    """Adapt the first conv to another number of input channels: one gets the sum, more repeat.

    Args:
        found: Weights by the model's names, changed in place.
        own: The model's state dict.

    Returns:
        Names of the adapted tensors.
    """
    name = next((k for k, v in own.items() if v.ndim == 4), '')
    if name not in found or found[name].ndim != 4 or found[name].shape[1] != 3:
        return ()
    weight, channels = found[name], own[name].shape[1]
    if channels == 3 or weight.shape[0] != own[name].shape[0]:
        return ()
    repeated = weight.repeat(1, -(-channels // 3), 1, 1)[:, :channels] * (3 / channels)
    found[name] = weight.sum(1, keepdim=True) if channels == 1 else repeated
    return (name,)


def drop_counters(weights: StateDict) -> None:
    """Remove the buffers of the thop counter from a state dict, in place."""
    for name in [name for name in weights if name.endswith(_COUNTERS)]:
        del weights[name]


def to_classifier(weights: Mapping[str, torch.Tensor]) -> StateDict:
    """Map timm's names to those of an MMPretrain classifier; the head's 1x1 conv gets linear."""
    renamed = {}
    for name, tensor in weights.items():
        part = next((part for part in _HEAD if name.startswith(part)), None)
        if part is None:
            renamed[f'backbone.{name}'] = tensor
        else:
            linear = tensor.flatten(1) if tensor.ndim == 4 else tensor
            renamed[_HEAD[part] + name.removeprefix(part)] = linear
    return renamed


def from_classifier(weights: Mapping[str, torch.Tensor]) -> StateDict:
    """Map names of an OpenMMLab model to timm's; a hidden linear of the head gets a 1x1 conv."""
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


def to_features(weights: Mapping[str, torch.Tensor]) -> StateDict:
    """Map names of any model to those of timm's ``features_only=True``, which flattens stages."""
    named = from_classifier(weights)
    return {name.replace('blocks.', 'blocks_', 1): tensor for name, tensor in named.items()}


def from_features(weights: Mapping[str, torch.Tensor]) -> StateDict:
    """Map names of timm's ``features_only=True`` to those of the complete model."""
    return {_unflattened(name): tensor for name, tensor in weights.items()}


# Parts of PaddleClas's names: block, Ghost module, layer, what is inside it, tensor.
_PADDLE_NAME = re.compile(
    r'(?:(_ghostbottleneck_\d+)\.)?(?:ghost_module_([12])\.)?(\w+)\.(?:(\w+)\.)?(\w+)'
)
# Names of PaddleClas and of timm: layers, and tensors of norms.
_PADDLE_LAYERS = {
    'conv1': ('conv_stem', 'bn1'),
    'conv_last': ('blocks.9.0.conv', 'blocks.9.0.bn1'),
    'primary_conv': ('primary_conv.0', 'primary_conv.1'),
    'cheap_operation': ('cheap_operation.0', 'cheap_operation.1'),
    'depthwise_conv': ('conv_dw', 'bn_dw'),
    'shortcut_depthwise': ('shortcut.0', 'shortcut.1'),
    'shortcut_conv': ('shortcut.2', 'shortcut.3'),
}
_PADDLE_NORM = {'_mean': 'running_mean', '_variance': 'running_var'}
_PADDLE_BN = ('weight', 'bias', '_mean', '_variance')
_PADDLE_EPS = 1e-5


def from_paddle(weights: Mapping[str, torch.Tensor]) -> StateDict:
    """Convert a state dict of PaddleClas's GhostNet to timm's layout; the outputs are the same.

    Its gates are ``clip(x, 0, 1)``, which is ``hardsigmoid(6 x - 3)``, so the last layer of each
    squeeze-excite is scaled. Fewer squeezed channels are filled up with zeros. Linear layers are
    transposed, and the norm of the last hidden layer is folded into its conv.

    Source: ``ppcls/arch/backbone/model_zoo/ghostnet.py`` of PaddleClas (Apache-2.0).

    Args:
        weights: Tensors by PaddleClas's names.
    """
    rows = ((stage, i) for stage, rows in enumerate(GHOSTNET.stages) for i in range(len(rows)))
    blocks = {f'_ghostbottleneck_{n}': f'blocks.{stage}.{i}.' for n, (stage, i) in enumerate(rows)}
    found = {}
    for name, tensor in weights.items():
        parts = _PADDLE_NAME.fullmatch(name)
        block, ghost, layer, inner, key = parts.groups('') if parts else [''] * 5
        start = blocks.get(block, '') + (f'ghost{ghost}.' if ghost else '')
        if layer in _PADDLE_LAYERS and inner in ('_conv', '_batch_norm'):
            place = _PADDLE_LAYERS[layer][inner == '_batch_norm']
            found[f'{start}{place}.{_PADDLE_NORM.get(key, key)}'] = tensor
        elif layer == 'se_block' and inner in ('squeeze', 'excitation'):
            found |= _paddle_gate(f'{start}se.', inner, key, tensor)
        elif layer == 'fc_1':
            found[f'classifier.{key}'] = tensor.t() if tensor.ndim == 2 else tensor
        else:
            found[name] = tensor
    head = [f'fc_0.{part}' for part in ('_conv.weight', *(f'_batch_norm.{k}' for k in _PADDLE_BN))]
    if found.keys() >= {*head}:
        conv, scale, shift, mean, var = (found.pop(name).double() for name in head)
        scale = scale * (var + _PADDLE_EPS).rsqrt()
        dtype = weights[head[0]].dtype
        found['conv_head.weight'] = (conv * scale[:, None, None, None]).to(dtype)
        found['conv_head.bias'] = (shift - mean * scale).to(dtype)
    return found


def _paddle_gate(start: str, layer: str, key: str, tensor: torch.Tensor) -> StateDict:
    """A tensor of a squeeze-excite block in timm's layout."""
    squeezes = layer == 'squeeze'
    if key == 'weight':
        tensor = tensor.t()  # of a linear layer, (in, out)
    axis = 0 if squeezes else 1  # of the squeezed channels, a quarter without timm's rounding
    if axis < tensor.ndim:
        missing = make_divisible(tensor.shape[axis]) - tensor.shape[axis]
        tensor = F.pad(tensor, (0, missing) if axis == tensor.ndim - 1 else (0, 0, 0, missing))
    if not squeezes:
        tensor = 6 * tensor if key == 'weight' else 6 * tensor - 3
    name = 'conv_reduce' if squeezes else 'conv_expand'
    return {f'{start}{name}.{key}': tensor[..., None, None] if key == 'weight' else tensor}


# All layouts of names in checkpoints; the one that fits the model best is used.
_LAYOUTS: tuple[Callable[[StateDict], StateDict], ...] = (
    dict, to_classifier, from_classifier, to_features, from_features
)  # fmt: skip


def _mismatch(lost: tuple[str, ...], found: StateDict, own: StateDict, match: Match) -> str:
    if not match.names:
        return (
            'no tensor of the source has the name of one of the model: there '
            f'{some(tuple(found))}, here {some(tuple(own))}; give the weights of this network, '
            'as a file or a state dict'
        )
    name = lost[0]
    if name in found:
        example = f'{name} is {tuple(found[name].shape)} there and {tuple(own[name].shape)} here'
    else:
        example = f'{name} is not there'
    if name.endswith('.bias') and f'{name[:-5]}.weight' in found:
        example += '; where norms were folded in, load before that'
    changed = match.wrapper or match.prefix or match.submodule
    of = f'; the nearest weights are {match.place}' if changed else ''
    return (
        f'{len(lost)} of {len(own)} tensors of the model do not come from this checkpoint '
        f'({example}){of}; check variant and width, or give strict=False to load the rest'
    )
