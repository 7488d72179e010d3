"""Stage 2: decide for each conv if it is converted, with which settings, or why it is kept."""

import difflib
import fnmatch
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from .cost_model import ConvSpec
from .inspection import ConvRecord
from .plan import SETTINGS, LayerPlan, validate_settings
from .reasons import conversion_blocker

Pattern = str | type[nn.Module] | Callable[[str, nn.Module], bool]


@dataclass(frozen=True)
class Selection:
    """The layers of a plan before a budget.

    Attributes:
        layers: One per conv, in the order of the forward pass.
        fixed: Names of convs whose ratio the user gave, so that a budget may not choose another.
        with_settings: Names of convs for which a pattern gave other settings.
    """

    layers: tuple[LayerPlan, ...]
    fixed: frozenset[str]
    with_settings: frozenset[str]


def select(
    model: nn.Module,
    records: Sequence[ConvRecord],
    *,
    ratio: float = SETTINGS['ratio'],
    dw_size: int = SETTINGS['dw_size'],
    cheap: str = SETTINGS['cheap'],
    group_size: int | str = SETTINGS['group_size'],
    include: Any = None,
    exclude: Any = None,
    keep_first: bool = True,
    keep_last: bool = True,
) -> Selection:
    """Give each conv its settings, or the reason why it is kept.

    Args:
        model: The network.
        records: All its convs, from :func:`ghost_plugin.conversion.inspection.inspect_convs`.
        ratio, dw_size, cheap, group_size: Settings where no pattern says otherwise.
        include, exclude: A pattern, several, or (include only) a mapping from patterns to
            settings; later ones win. A pattern is a module's name (a container stands for all
            inside), a glob, a regular expression behind ``re:`` that fits the whole name, a type
            or a function of name and module.
        keep_first, keep_last: Leave the first and the last conv of the forward pass, and those
            whose feature maps are the output, alone, unless include names them.

    Raises:
        ValueError: A pattern matches no conv; the error names the nearest modules.
        TypeError: A setting that does not exist.
    """
    defaults = validate_settings(
        {'ratio': ratio, 'dw_size': dw_size, 'cheap': cheap, 'group_size': group_size}
    )
    wanted, unwanted = _patterns(include), _patterns(exclude)
    for pattern, _ in (*wanted, *unwanted):
        _check_matches(pattern, model, records)
    ends = _ends(records, keep_first, keep_last)
    owners = Counter(
        id(p) for m in model.modules() for p in m._parameters.values() if p is not None
    )
    layers, fixed, with_settings = [], set(), set()
    for record in records:
        matching = [own for pattern, own in wanted if _matches(pattern, record)]
        settings = validate_settings({**defaults, **matching[-1]}) if matching else defaults
        if matching and 'ratio' in matching[-1]:
            fixed.add(record.name)
        if matching and matching[-1].keys() - {'ratio'}:
            with_settings.add(record.name)
        if record.blocker:
            reason = record.blocker
        elif any(_matches(pattern, record) for pattern, _ in unwanted):
            reason = 'excluded'
        elif wanted and not matching:
            reason = 'not_included'
        elif record.name in ends and not matching:
            reason = ends[record.name]
        elif owners[id(record.conv._parameters.get('weight'))] > 1:
            reason = 'tied'
        else:
            reason = skip_reason(record, settings)
        layers.append(
            LayerPlan(
                name=record.name,
                decision='keep' if reason else 'convert',
                reason=reason,
                shape=ConvSpec.from_conv(record.conv, record.pixels),
                norm=record.norm,
                **settings,
            )
        )
    return Selection(tuple(layers), frozenset(fixed), frozenset(with_settings))


def skip_reason(record: ConvRecord, settings: Mapping[str, Any]) -> str:
    """Return the reason why a conv cannot be converted or would not gain, '' if neither.

    Args:
        record: An ``nn.Conv2d``.
        settings: Settings of its Ghost.
    """
    conv: Any = record.conv
    if blocker := conversion_blocker(conv):
        return blocker
    if record.referenced_outside_modules:
        return 'held'
    if not record.calls:
        return 'unused'
    if record.weight_accessed:
        return 'weight_read'
    padding = settings['dw_size'] // 2
    least = {'reflect': padding + 1, 'circular': padding}.get(conv.padding_mode, 0)
    if record.min_output_size < least:
        return 'padding'
    shape = ConvSpec.from_conv(conv, record.pixels)
    if blocker := shape.settings_blocker(settings):
        return blocker
    return '' if shape.ghost_saves(settings) else 'no_gain'


def _ends(records: Sequence[ConvRecord], first: bool, last: bool) -> dict[str, str]:
    """Reason codes of the first and the last convs, by name."""
    called = [record for record in records if record.calls]
    ends = {}
    if called and last:
        ends = {r.name: 'last' for r in called if r.makes_output or r is called[-1]}
    if called and first:
        ends[called[0].name] = 'first'
    return ends


def _patterns(given: Any) -> list[tuple[Pattern, dict[str, Any]]]:
    """Pairs of a pattern and its settings."""
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


def _matches(pattern: Pattern, record: ConvRecord) -> bool:
    if isinstance(pattern, str):
        return any(_fits(pattern, name) for name in (record.name, *record.aliases))
    if isinstance(pattern, type):
        return isinstance(record.conv, pattern)
    return bool(pattern(record.name, record.conv))


def _fits(pattern: str, name: str) -> bool:
    if pattern.startswith('re:'):
        return re.fullmatch(pattern[3:], name) is not None
    return name == pattern or name.startswith(f'{pattern}.') or fnmatch.fnmatchcase(name, pattern)


def _check_matches(pattern: Pattern, model: nn.Module, records: Sequence[ConvRecord]) -> None:
    if any(_matches(pattern, record) for record in records):
        return
    modules: dict[Any, nn.Module] = dict(model.named_modules())
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
