"""The values of a conversion: a plan and its layers, to read, edit, save and apply.

This module only holds data. The methods that do more are shortcuts to the stages, which import this
module, so they import the stages when they are called.
"""

import hashlib
import json
import logging
import os
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import FrozenInstanceError, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar

import torch
from torch import nn

from .._version import __version__
from ..layers.cheap_ops import build_cheap, check_group_size
from ..layers.ghost import split_channels
from ..utils.atomic_io import atomic_write
from .cost_model import ConvSpec
from .progress import ProgressFn
from .reasons import FINAL, REASONS

_logger = logging.getLogger(__name__)
FORMAT_VERSION = 1  # of the JSON
NUM_STEPS = 800  # steps of Adam of a reconstruction, for each layer or block
# The settings of a Ghost conv, and the default of each.
SETTINGS: dict[str, Any] = {'ratio': 2, 'dw_size': 3, 'cheap': 'depthwise', 'group_size': 1}

_Value = TypeVar('_Value')


def _explain_frozen(cls: type[_Value]) -> type[_Value]:
    """Let the error of a write into a frozen value say what to do instead."""

    def _refuse(self: Any, name: str, value: Any) -> NoReturn:
        raise FrozenInstanceError(
            f'cannot assign to {name!r}: plans are not changed in place. '
            "plan.replace_layer('layer1.0.conv1', ratio=4) gives an edited plan, and "
            "decision='keep' one that leaves a conv as it is"
        )

    cls.__setattr__ = _refuse  # type: ignore[method-assign]
    return cls


@_explain_frozen
@dataclass(frozen=True)
class LayerPlan:
    """The plan of one conv; costs are per image of the example input.

    Attributes:
        name: Name of the module.
        decision: ``'convert'`` or ``'keep'``.
        reason: Code of ``REASONS`` for kept convs.
        ratio, dw_size, cheap: Settings of the Ghost conv.
        shape: Sizes of the conv.
        group_size: Number of primary channels that each ghost mixes, or ``'all'``.
        norm: Name of the norm that follows and can take a shift of the channels.
        scores: Estimated change of the network's output when this conv is converted, by ratio,
            less what layers behind are expected to take back.
        latencies: Milliseconds of one call, by ratio; 1 is the conv as it is.
        error: Squared error of the output relative to its variance, once applied.
    """

    name: str
    decision: str
    reason: str
    ratio: float
    dw_size: int
    cheap: str
    shape: ConvSpec
    group_size: int | str = SETTINGS['group_size']
    norm: str = ''
    scores: Mapping[str, float] = field(default_factory=dict)
    latencies: Mapping[str, float] = field(default_factory=dict)
    error: float | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """Arguments of the Ghost conv."""
        return {name: getattr(self, name) for name in SETTINGS}

    @property
    def converts(self) -> bool:
        """True if a Ghost takes the conv's place."""
        return self.decision == 'convert'

    @property
    def chosen(self) -> bool:
        """True if the conv stays because the user or a budget wanted that."""
        if self.converts or self.reason in FINAL:
            return self.reason == 'converted'
        return self.ratio == 1 or self.reason in ('', 'excluded', 'budget', 'slower')

    @property
    def costs(self) -> dict[str, int]:
        """Parameters and multiply-adds, before and after."""
        before = self.shape.dense()
        after = self.shape.ghost(self.settings) if self.converts else before
        return {
            'params_before': before[0],
            'params_after': after[0],
            'macs_before': before[1],
            'macs_after': after[1],
        }

    def keep(self, reason: str) -> 'LayerPlan':
        """The same layer, kept for a reason code."""
        return replace(self, decision='keep', reason=reason)

    def as_dict(self) -> dict[str, Any]:
        """Values for JSON, with the derived ones, which are there to be read."""
        values = asdict(self)
        values['shape']['kernel_size'] = list(self.shape.kernel_size)
        if self.group_size == SETTINGS['group_size']:
            del values['group_size']  # so that earlier versions read the plan
        return {**values, 'kind': self.shape.kind, **self.costs}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> 'LayerPlan':
        """Read what :meth:`as_dict` gave, edited or not.

        Raises:
            ValueError: A value that is not allowed.
            TypeError: An unknown or missing name.
        """
        derived = {'kind', 'params_before', 'params_after', 'macs_before', 'macs_after'}
        known = {f.name for f in fields(cls)}
        unknown = values.keys() - known - derived
        if unknown:
            raise TypeError(f'a row has no {sorted(unknown)}; it has {sorted(known)}')
        shape = dict(values['shape'])
        shape['kernel_size'] = tuple(shape['kernel_size'])
        own = {name: value for name, value in values.items() if name not in derived}
        return _validated(cls(**{**own, 'shape': ConvSpec(**shape)}))


@_explain_frozen
@dataclass(frozen=True)
class ConversionPlan:
    """Which convs of a model become Ghost convs, and how.

    Attributes:
        model: Class of the model that it was made for.
        fingerprint: Hash of that model's parameter names and shapes.
        layers: One per conv, in the order of the forward pass (``rows`` in the JSON).
        params, macs: Costs of the whole model before, multiply-adds per image.
        latency: Milliseconds of a call of the model and of the plan's, where they were measured.
        divergence: The limit of ``max_divergence`` and what was measured, if it was asked for.
        seed: Seed of fresh weights and of the order of calibration images.
        versions: Versions of this package and of torch that made it.
    """

    model: str
    fingerprint: str
    layers: tuple[LayerPlan, ...] = ()
    params: int = 0
    macs: int = 0
    latency: Mapping[str, float] = field(default_factory=dict)
    divergence: Mapping[str, float] = field(default_factory=dict)
    seed: int = 0
    versions: Mapping[str, str] = field(
        default_factory=lambda: {'ghost_plugin': __version__, 'torch': torch.__version__}
    )

    @property
    def rows(self) -> tuple[LayerPlan, ...]:
        """The deprecated name of :attr:`layers`."""
        warnings.warn('plan.rows is deprecated, use plan.layers', DeprecationWarning, stacklevel=2)
        return self.layers

    @property
    def totals(self) -> dict[str, int]:
        """Parameters and multiply-adds of the whole model, before and after."""
        sums = {'params_before': self.params, 'macs_before': self.macs}
        for cost in ('params', 'macs'):
            saved = sum(r.costs[f'{cost}_before'] - r.costs[f'{cost}_after'] for r in self.layers)
            sums[f'{cost}_after'] = sums[f'{cost}_before'] - saved
        return sums

    def replace_layer(
        self,
        name: str,
        *,
        decision: str | None = None,
        ratio: float | None = None,
        dw_size: int | None = None,
        cheap: str | None = None,
        group_size: int | str | None = None,
    ) -> 'ConversionPlan':
        """Edit one layer.

        Args:
            name: Name of the conv.
            decision: ``'convert'`` or ``'keep'``.
            ratio, dw_size, cheap, group_size: Settings of its Ghost conv.

        Returns:
            A new plan; this one stays.

        Raises:
            ValueError: No such conv, or a value that is not allowed.
        """
        if name not in (names := [layer.name for layer in self.layers]):
            raise ValueError(f'the plan has no conv {name!r}; it has {names}')
        given = {
            'decision': decision,
            'ratio': ratio,
            'dw_size': dw_size,
            'cheap': cheap,
            'group_size': group_size,
        }
        changes: dict[str, Any] = {key: new for key, new in given.items() if new is not None}
        layers = (
            _validated(replace(layer, **changes)) if layer.name == name else layer
            for layer in self.layers
        )
        return replace(self, layers=tuple(layers))

    def as_dict(self) -> dict[str, Any]:
        """Values for JSON."""
        values = {'format_version': FORMAT_VERSION, **asdict(self), 'totals': self.totals}
        if not self.divergence:
            del values['divergence']  # so that earlier versions read the plan
        layers = [layer.as_dict() for layer in self.layers]
        names = {'layers': 'rows'}  # as they stand in the file
        return {names.get(k, k): layers if k == 'layers' else v for k, v in values.items()}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write JSON; an older file stays whole until the new one is."""
        text = json.dumps(self.as_dict(), indent=1, sort_keys=False) + '\n'
        with atomic_write(path) as partial:
            partial.write_text(text)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> 'ConversionPlan':
        """Read what :meth:`save` wrote, edited or not.

        Raises:
            FileNotFoundError: No such file.
            ValueError: Not a plan, one of a newer format, or an edited value that is not allowed.
        """
        if not os.path.isfile(path):
            raise FileNotFoundError(f'no plan at {os.fspath(path)!r}; plan.save(...) writes one')
        try:
            plan = cls.from_dict(json.loads(Path(path).read_text()))
            plan.report()  # adds up all costs, so a value that is no number shows here
        except (
            json.JSONDecodeError, UnicodeDecodeError, LookupError, TypeError, AttributeError,
            ArithmeticError
        ) as error:  # fmt: skip
            name = os.fspath(path)
            said = f'{error} is missing' if isinstance(error, KeyError) else error
            raise ValueError(f'{name!r} is not a conversion plan: {said}') from error
        return plan

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> 'ConversionPlan':
        """Read what :meth:`as_dict` gave.

        Raises:
            ValueError: A newer format, or two rows of one conv.
        """
        values = dict(content)
        values.pop('totals', None)
        version = values.pop('format_version', FORMAT_VERSION)
        if version != FORMAT_VERSION:
            raise ValueError(
                f'a plan of format_version {version!r}, and ghost_plugin {__version__} reads '
                f'{FORMAT_VERSION}; upgrade ghost_plugin, or make the plan again with gp.plan'
            )
        layers = tuple(map(LayerPlan.from_dict, values.pop('rows')))
        names = Counter(layer.name for layer in layers)
        if twice := [name for name, count in names.items() if count > 1]:
            raise ValueError(f'a plan has one row for each conv, this one several of {twice[0]!r}')
        return cls(**{**values, 'layers': layers, 'seed': int(values.get('seed', 0))})

    def report(self) -> str:
        """The plan as a table in Markdown, with totals and the meaning of the reasons."""
        from .plan_report import table

        return table(self)

    def draw(self, path: str | os.PathLike[str]) -> None:
        """Draw multiply-adds before and after, and the error, of each conv as a PNG."""
        from .plan_report import draw

        draw(self, path)

    def rebudget(
        self, *, macs: float | str | None = None, params: float | str | None = None
    ) -> 'ConversionPlan':
        """Make a plan for another target from the same scores; nothing is measured again.

        Args:
            macs, params: As in :func:`ghost_plugin.plan`.

        Raises:
            ValueError: This plan was made without a budget and has no scores, or no ratios reach
                the target, or there is none.
        """
        if macs is None and params is None:
            raise ValueError("rebudget needs a target, such as macs=0.6 or params='8M'")
        from .budget import meet_budget

        layers = tuple(replace(layer, error=None) for layer in self.layers)
        made = replace(self, layers=layers, latency={}, divergence={})
        return meet_budget(made, macs=macs, params=params)

    def apply(
        self,
        model: nn.Module,
        *,
        calibration: Iterable[Any] | None = None,
        reconstruct: str | None = None,
        steps: int = NUM_STEPS,
        repair: bool = True,
        share_permutations: bool | None = None,
        inherit: bool = True,
        inplace: bool = False,
        optimizers: torch.optim.Optimizer | Iterable[torch.optim.Optimizer] | None = None,
        progress: ProgressFn | Literal[False] | None = None,
    ) -> nn.Module:
        """Put Ghost convs into a model, with the weights of the convs that they replace.

        :func:`ghost_plugin.conversion.apply_plan` also returns the error of each layer.

        Args:
            model: The model that the plan was made for, or one of the same shape.
            calibration: Batches to call the model with; without them the Ghosts are fitted to the
                kernels alone, as on white noise.
            reconstruct: ``'layer'`` or ``'block'`` adds gradient steps on the calibration batches,
                towards the outputs of the original; labels are not needed. ``'network'`` also
                fits to views of the images (flips and CutMix), and lets all weights learn
                together at the end, as far as that helps on images that were held back.
            steps: Number of gradient steps of each layer or block, and of the whole network.
            repair: Refit convs and linear layers that stay to the inputs that reach them from
                converted ones, by ridge regression, and scale channels, which vary too little
                after least squares; that costs no multiply-adds.
            share_permutations: Give convs whose outputs a shortcut adds the same channel
                permutation, so that none is left there in a fused or exported model. Faster, and
                the errors of these convs are larger by a tenth to a third. None does so for a
                plan that was made for a time (``latency``).
            inherit: False initialises the Ghost convs anew from the plan's seed.
            inplace: Change ``model`` itself.
            optimizers: One or several, built before with parameters of ``model``; they get the
                new ones in the place of the old. Only with ``inplace``.
            progress: Shows how far it is: None a line on a terminal, with the time left, and
                nothing elsewhere; False nothing; or a function that gets each
                :class:`ghost_plugin.conversion.progress.Progress`. An error that it raises ends
                the conversion, and the model is untouched.

        Returns:
            The converted model.

        Raises:
            ValueError: The model is another one, a layer's settings do not fit it, or no conv can
                be converted at all; the model is untouched then.
            TypeError: The model is wrapped (DataParallel, compiled, scripted).
        """
        from .apply import apply_plan

        return apply_plan(
            self,
            model,
            calibration=calibration,
            reconstruct=reconstruct,
            steps=steps,
            repair=repair,
            share_permutations=share_permutations,
            inherit=inherit,
            inplace=inplace,
            optimizers=optimizers,
            progress=progress,
        ).model

    def check_conversions(self) -> None:
        """Raise where nothing can be converted; warn where all convs stay by choice.

        Raises:
            ValueError: No layer converts, and neither patterns, a ratio of 1, a budget nor an edit
                of the plan wanted that; the error counts the reasons.
        """
        if any(layer.converts for layer in self.layers):
            return
        if not self.layers:
            raise ValueError(
                f'{self.model} has no convolution, so there is nothing to convert; leave it as it '
                'is, or give the part that has nn.Conv2d'
            )
        said = (
            f'of the {len(self.layers)} convolutions of {self.model} none is converted: '
            + count_reasons(self.layers)
        )
        if any(layer.chosen for layer in self.layers):
            _logger.warning('%s', said)
            return
        raise ValueError(
            f'{said}. Only an nn.Conv2d can become a Ghost conv: change what '
            'keeps these (keep_first=False, keep_last=False, another include, hooks and computed '
            'weights removed), or leave this network as it is; report() of gp.plan lists every conv'
        )


def count_reasons(layers: Sequence[LayerPlan]) -> str:
    """Say in words how many convs stay for which reason."""
    counts = Counter(layer.reason or 'edited' for layer in layers if not layer.converts)
    return '; '.join(
        f'{number} x {code}' + (f' ({REASONS[code]})' if code in REASONS else '')
        for code, number in counts.most_common()
    )


def _validated(layer: LayerPlan) -> LayerPlan:
    """Return a layer that was edited; ValueError names it if a value is not allowed."""
    if layer.decision not in ('convert', 'keep'):
        raise ValueError(
            f"decision of {layer.name!r} must be 'convert' or 'keep', got {layer.decision!r}"
        )
    try:
        validate_settings(layer.settings)
        if layer.converts:
            layer.shape.layout(layer.settings)
    except (TypeError, ValueError) as error:
        raise ValueError(f'{layer.name!r}: {error}') from error
    return layer


def validate_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings if a Ghost conv takes them.

    Raises:
        ValueError: A value that is not allowed.
        TypeError: A name or a type that is not.
    """
    unknown = settings.keys() - SETTINGS.keys()
    if unknown:
        raise TypeError(f'unknown settings {sorted(unknown)}, known are {sorted(SETTINGS)}')
    # The layers know what they allow; nothing is built, so no random number is drawn.
    split_channels(1, settings['ratio'])
    build_cheap(settings['cheap'], 1, 0, settings['dw_size'])
    check_group_size(settings['group_size'], settings['cheap'])
    return settings


def fingerprint(model: nn.Module) -> str:
    """Hash the names and shapes of a model's parameters to twelve digits."""
    shapes = [(name, tuple(p.shape)) for name, p in model.named_parameters()]
    return hashlib.sha256(repr(shapes).encode()).hexdigest()[:12]
