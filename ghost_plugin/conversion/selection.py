"""Which convs of a network a plan converts, and why it leaves the others alone."""

import difflib
import fnmatch
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from ..layers.bn_folding import is_standard_conv
from ..layers.cheap_ops import build_cheap
from ..layers.ghost import split_channels
from .cost_model import ConvSpec
from .inspection import ConvRecord, inspect_convs, other_conv

Pattern = str | type[nn.Module] | Callable[[str, nn.Module], bool]
# What a pattern may set for the convs that it matches, and the default of each.
SETTINGS = {'ratio': 2, 'dw_size': 3, 'cheap': 'depthwise'}

# Reason codes of kept convs, as a plan shows them.
REASONS = {
    'first': 'the first conv of the network (keep_first)',
    'last': 'the last conv of the network, or one that makes its output (keep_last)',
    'not_included': 'no pattern of include matches',
    'excluded': 'a pattern of exclude matches',
    'subclass': 'not a plain nn.Conv2d',
    '1d': 'an nn.Conv1d, and Ghost convs stand for nn.Conv2d only',
    '3d': 'an nn.Conv3d, and Ghost convs stand for nn.Conv2d only',
    'transposed': 'a transposed conv, and Ghost convs stand for nn.Conv2d only',
    'custom': 'a convolution of a class of its own (deformable, sparse, quantized, with weights '
    'per input)',
    'no_gain': 'its Ghost would cost as much or more',
    'groups': 'its groups do not divide the convolved maps',
    'parametrized': 'its weight is computed (parametrize, weight norm, pruning): remove that first',
    'hooks': 'hooks of others hang on it: remove them first',
    'tied': 'its weight is also that of another layer',
    'weight_read': 'somebody else reads its weight or bias in the forward pass',
    'held': 'a list or dictionary that is no module holds it or its weight (use nn.ModuleList, '
    'nn.ModuleDict; look a weight up when it is used)',
    'padding': 'its maps are too small for a depthwise filter with its padding mode',
    'budget': 'the budget is met without it',
    'no_gradient': 'the output does not depend on it by gradients, so a budget cannot score it',
    'slower': 'its Ghost measured slower here',
    'unused': 'the example input never reached it',
    'converted': 'it is a part of a Ghost conv already',
}
# Of these no edit of a plan can make a Ghost conv.
FINAL = (
    'subclass', '1d', '3d', 'transposed', 'custom', 'groups', 'parametrized', 'hooks', 'tied',
    'weight_read', 'held', 'padding', 'converted',
)  # fmt: skip


def select(
    model: nn.Module,
    example_input: Any,
    *,
    include: Any = None,
    exclude: Any = None,
    keep_first: bool = True,
    keep_last: bool = True,
    **settings: Any,
) -> list[ConvRecord]:
    """Find all convs and give each its settings, or the reason why it stays.

    Args:
        model, example_input: A network, and what to call it with once.
        include, exclude: A pattern, several, or (include only) a mapping from patterns to
            settings; later ones win. A pattern is a module's name (a container stands for all
            inside), a glob, a regular expression behind ``re:`` that fits the whole name, a type
            or a function of name and module.
        keep_first, keep_last: Leave the first and the last conv of the forward pass, and those
            whose maps are the output, alone, unless include names them.
        settings: ``ratio``, ``dw_size``, ``cheap`` where no pattern says otherwise.

    Raises:
        ValueError: A pattern matches no conv; the error names the nearest modules.
        TypeError: A setting that does not exist.
    """
    convs = inspect_convs(model, example_input)
    defaults = validate_settings({**SETTINGS, **settings})
    wanted = _patterns(include)
    for pattern, _ in (*wanted, *_patterns(exclude)):
        _check_matches(pattern, model, convs)
    called = [f for f in convs if f.calls]
    ends = {id(f.conv): code for f, code in _ends(called, keep_first, keep_last)}
    owners = Counter(
        id(p) for m in model.modules() for p in m._parameters.values() if p is not None
    )
    for f in convs:
        matching = [own for pattern, own in wanted if _matches(pattern, f)]
        f.settings = defaults if not matching else validate_settings({**defaults, **matching[-1]})
        f.fixed = bool(matching) and 'ratio' in matching[-1]
        if f.reason:
            continue
        if any(_matches(pattern, f) for pattern, _ in _patterns(exclude)):
            f.reason = 'excluded'
        elif wanted and not matching:
            f.reason = 'not_included'
        elif id(f.conv) in ends and not matching:
            f.reason = ends[id(f.conv)]
        elif owners[id(f.conv._parameters.get('weight'))] > 1:
            f.reason = 'tied'
        else:
            f.reason = skip_reason(f)
    return convs


def conversion_blocker(conv: nn.Module) -> str:
    """Why a conv cannot be replaced, as it stands; '' if it can."""
    if not isinstance(conv, nn.Conv2d):
        return other_conv(conv) or 'subclass'
    if is_parametrized(conv) or 'weight' not in conv._parameters:
        return 'parametrized'
    if not is_standard_conv(conv):
        return 'subclass'
    if any(hooks for key, hooks in vars(conv).items() if key.endswith('_hooks') and key in _HOOKS):
        return 'hooks'
    return ''


def skip_reason(f: ConvRecord) -> str:
    """Why a conv cannot be converted or would not gain, '' if neither."""
    conv = f.conv
    if conversion_blocker(conv):
        return conversion_blocker(conv)
    if f.held:
        return 'held'
    if not f.calls:
        return 'unused'
    if f.read:
        return 'weight_read'
    reach = f.settings['dw_size'] // 2
    if f.smallest < {'reflect': reach + 1, 'circular': reach}.get(conv.padding_mode, 0):
        return 'padding'
    shape = ConvSpec.of(f)
    if not shape.splits(f.settings):
        return 'groups'
    return '' if shape.gains(f.settings) else 'no_gain'


_HOOKS = ('_forward_hooks', '_forward_pre_hooks', '_backward_hooks', '_backward_pre_hooks')


def _ends(called: list[ConvRecord], first: bool, last: bool) -> Iterator[tuple[ConvRecord, str]]:
    if called and last:
        yield from ((f, 'last') for f in called if f.last or f is called[-1])
    if called and first:
        yield called[0], 'first'


def _patterns(given: Any) -> list[tuple[Pattern, dict[str, Any]]]:
    if given is None:
        return []
    if isinstance(given, Mapping):
        for pattern, own in given.items():
            if not isinstance(own, Mapping):
                raise TypeError(
                    f'include={{{pattern!r}: ...}} takes settings such as '
                    f"{{'ratio': 4}}, or {{}} for those of all, got {own!r}"
                )
        return [(pattern, dict(own)) for pattern, own in given.items()]
    if isinstance(given, Sequence) and not isinstance(given, str):
        return [(pattern, {}) for pattern in given]
    return [(given, {})]


def validate_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings that a Ghost conv takes.

    Raises:
        ValueError: A value that cannot be. TypeError: A name or a type that cannot.
    """
    unknown = settings.keys() - SETTINGS.keys()
    if unknown:
        raise TypeError(
            f'unknown settings {sorted(unknown)}, known are {sorted(SETTINGS)}; other arguments '
            'of plan, convert and apply are in their docstrings'
        )
    # The layers know what they allow; nothing is built, so no random number is drawn.
    split_channels(1, settings['ratio'])
    build_cheap(settings['cheap'], 1, 0, settings['dw_size'])
    return settings


def _matches(pattern: Pattern, f: ConvRecord) -> bool:
    if isinstance(pattern, str):
        return any(_fits(pattern, name) for name in (f.name, *f.aliases))
    if isinstance(pattern, type):
        return isinstance(f.conv, pattern)
    return bool(pattern(f.name, f.conv))


def _fits(pattern: str, name: str) -> bool:
    if pattern.startswith('re:'):
        return re.fullmatch(pattern[3:], name) is not None
    return name == pattern or name.startswith(f'{pattern}.') or fnmatch.fnmatchcase(name, pattern)


def _check_matches(pattern: Pattern, model: nn.Module, convs: list[ConvRecord]) -> None:
    if any(_matches(pattern, f) for f in convs):
        return
    modules = dict(model.named_modules())
    if pattern in modules:
        raise ValueError(
            f'{pattern!r} is a {type(modules[pattern]).__name__} without any convolution; '
            'nn.Conv2d alone can become Ghost convs'
        )
    names = [name for name in modules if name]
    near = difflib.get_close_matches(str(pattern).removeprefix('re:'), names, n=3, cutoff=0.3)
    raise ValueError(
        f'{pattern!r} matches no conv of {type(model).__name__}; '
        f'near it are {near or names[:3]}, and globs, re: and types match too'
    )
