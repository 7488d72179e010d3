"""A conversion plan: one row per conv, to be read, edited, saved and applied."""

import copy
import functools
import hashlib
import json
import logging
import os
import weakref
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .._version import __version__
from ..layers.ghost import GhostConv2d
from ..utils.atomic_io import atomic_write
from ..utils.modules import deepcopy_detached, plain_forward
from .budget import meet_budget
from .fitting.batches import as_batches, can_concat
from .fitting.few_images import few_images, misled
from .fitting.reconstruction import NUM_STEPS, reconstruct_blocks, reconstruct_layers
from .fitting.sequential import (
    FitResults,
    FitTask,
    absorb_results,
    fit_from_weights,
    fit_sequentially,
    initialize_others,
)
from .inspection import check_root
from .layer_plan import LayerPlan, kept
from .plan_report import draw, table
from .selection import FINAL, REASONS
from .surgery import build_ghosts, fits, replace_modules, update_optimizers

_logger = logging.getLogger(__name__)
RECONSTRUCT = ('layer', 'block')


@dataclass
class ConversionPlan:
    """Which convs of a model become Ghost convs, and how.

    Attributes:
        model: Class of the model that it was made for.
        fingerprint: Of that model's parameter names and shapes.
        rows: One per conv, in the order of the forward pass. ``decision``, ``ratio``, ``dw_size``
            and ``cheap`` may be edited.
        params, macs: Of the whole model before, multiply-adds per picture of the example input.
        latency: Milliseconds of the model's call and of the plan's, where one was asked for.
        seed: Of fresh weights and of the order of calibration pictures.
        versions: Of this package and of torch, when it was made.
    """

    model: str
    fingerprint: str
    rows: list[LayerPlan] = field(default_factory=list)
    params: int = 0
    macs: int = 0
    latency: dict[str, float] = field(default_factory=dict)
    seed: int = 0
    versions: dict[str, str] = field(
        default_factory=lambda: {'ghost_plugin': __version__, 'torch': torch.__version__}
    )

    @property
    def totals(self) -> dict[str, int]:
        """Parameters and multiply-adds of the whole model, before and after."""
        sums = {'params_before': self.params, 'macs_before': self.macs}
        for what in ('params', 'macs'):
            saved = sum(r.costs[f'{what}_before'] - r.costs[f'{what}_after'] for r in self.rows)
            sums[f'{what}_after'] = sums[f'{what}_before'] - saved
        return sums

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            **asdict(self),
            'rows': [row.as_dict() for row in self.rows],
            'totals': self.totals,
        }

    def save(self, path: str | os.PathLike) -> None:
        """Write JSON; a file that is there stays whole until the new one is."""
        text = json.dumps(self.as_dict(), indent=1, sort_keys=False) + '\n'
        with atomic_write(path) as partial:
            partial.write_text(text)

    @classmethod
    def load(cls, path: str | os.PathLike) -> 'ConversionPlan':
        """Read what :meth:`save` wrote, edited or not.

        Raises:
            FileNotFoundError: No such file.
            ValueError: Not a plan, or an edited row that cannot be.
        """
        if not os.path.isfile(path):
            raise FileNotFoundError(f'no plan at {os.fspath(path)!r}; plan.save(...) writes one')
        try:
            plan = cls.from_dict(json.loads(Path(path).read_text()))
            plan.report()  # adds up all numbers, so what is none shows here
        except (
            json.JSONDecodeError, UnicodeDecodeError, LookupError, TypeError, AttributeError,
            ArithmeticError
        ) as error:  # fmt: skip
            name = os.fspath(path)
            raise ValueError(f'{name!r} is not a conversion plan: {error}') from error
        return plan

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> 'ConversionPlan':
        """Back from :meth:`as_dict`."""
        values = {name: value for name, value in content.items() if name != 'totals'}
        rows = [LayerPlan.from_dict(row) for row in values['rows']]
        twice = [name for name, number in Counter(row.name for row in rows).items() if number > 1]
        if twice:
            raise ValueError(f'a plan has one row for each conv, this one several of {twice[0]!r}')
        return cls(**{**values, 'rows': rows, 'seed': int(values.get('seed', 0))})

    def report(self) -> str:
        """The plan as a table in Markdown, with totals and what the reasons mean."""
        return table(self.rows, self.totals)

    def draw(self, path: str | os.PathLike) -> None:
        """The plan as a picture: multiply-adds before and after, and the error, of each conv."""
        draw(self.rows, f'{self.model}: {_share(self.totals)}', path)

    def rebudget(
        self, *, macs: float | str | None = None, params: float | str | None = None
    ) -> 'ConversionPlan':
        """Another plan from the same scores, for another target; nothing is measured again.

        Args:
            macs, params: As in :func:`plan`.

        Raises:
            ValueError: This plan was made without a budget and has no scores, or no ratios reach
                the target, or there is none.
        """
        if macs is None and params is None:
            raise ValueError("rebudget needs a target, such as macs=0.6 or params='8M'")
        plan = copy.deepcopy(self)
        plan.latency = {}  # of other ratios
        for row in plan.rows:
            row.error = None
        meet_budget(plan.rows, {'macs': self.macs, 'params': self.params}, macs=macs, params=params)
        return plan

    @plain_forward()
    @torch.inference_mode(False)  # fits need gradients, and the new weights shall learn
    def apply(
        self,
        model: nn.Module,
        *,
        calibration: Iterable[Any] | None = None,
        reconstruct: str | None = None,
        steps: int = NUM_STEPS,
        inherit: bool = True,
        inplace: bool = False,
        optimizers: torch.optim.Optimizer | Iterable[torch.optim.Optimizer] | None = None,
    ) -> nn.Module:
        """Put Ghost convs into a model, with the weights of the convs that they replace.

        Args:
            model: The model that the plan was made for, or one of the same shape.
            calibration: Batches to call the model with; without them the kernels speak for the
                maps, as on white noise.
            reconstruct: ``'layer'`` or ``'block'`` adds gradient steps on the calibration batches,
                towards what the original gives there; labels are not needed.
            steps: Of each layer or block.
            inherit: Without it the Ghost convs are initialised anew from the plan's seed.
            inplace: Change ``model`` itself.
            optimizers: One or several, built before with parameters of ``model``; they get the
                new ones in the place of the old. Only with ``inplace``.

        Returns:
            The converted model. Rows hold the error of each conv's maps afterwards.

        Raises:
            ValueError: The model is another one, a row asks for what cannot be, or no conv can be
                converted at all; the model is untouched then.
            TypeError: The model is wrapped (DataParallel, compiled, scripted).
        """
        check_root(model)
        _check_options(reconstruct, steps, inherit, calibration is not None)
        given, optimizers = optimizers, _optimizers(optimizers or (), inplace, model)
        chosen = [row for row in self.rows if row.converts]
        if _converted(model, self.rows):
            _logger.warning('%s is converted by this plan already; nothing changes', self.model)
            return model
        self._check(model, chosen)
        self.check_conversions()
        model = model if inplace else _copied(model, chosen)
        settings = {row.name: row.settings for row in chosen}
        ghosts = build_ghosts(model, settings, self.seed)
        norms = {row.name: row.norm for row in self.rows}
        task, results = FitTask(model, ghosts, norms), FitResults()
        if inherit and calibration is not None:
            batches = _batches(model, calibration)
            results = _fitted(task, batches, reconstruct, steps, self.seed)
            if few_images(batches):
                plain = FitTask(model, build_ghosts(model, settings, self.seed), norms)
                without_images = fit_from_weights(plain)
                if misled(task, results, plain, batches):
                    _logger.warning(
                        'too few calibration images: fitted to them, the converted %s is hardly '
                        'nearer to the original, even on these very images, than without them; so '
                        'it was converted without. Give more images, 64 or so',
                        self.model,
                    )
                    task, results = plain, without_images
        elif inherit and not any(parameter.is_meta for parameter in model.parameters()):
            results = fit_from_weights(task)
        dense = [(task.conv(name), ghost) for name, ghost in task.ghosts.items()]
        model = replace_modules(model, task.ghosts)
        absorb_results(model, norms, results)
        update_optimizers(optimizers, dense)
        if inplace and given is None:
            _logger.warning(
                'optimizers built before hold dense weights: give them, or [], as optimizers='
            )
        for row in self.rows:
            row.error = results.errors.get(row.name)
        if inherit and getattr(model, 'is_init', None) is False:  # of MMEngine
            _logger.warning(
                'init_weights of this %s was not called yet: a Runner calls it when training '
                'begins and then replaces the inherited weights, unless load_from or resume brings '
                'them; call it before the conversion, or set is_init = True',
                self.model,
            )
        return model

    def check_conversions(self) -> None:
        """Raise where nothing can be converted; say so where all convs stay by choice.

        Raises:
            ValueError: No row converts, and neither patterns, a ratio of 1, a budget nor an edit
                of the plan wanted that; the error counts the reasons.
        """
        if any(row.converts for row in self.rows):
            return
        if not self.rows:
            raise ValueError(
                f'{self.model} has no convolution, so there is nothing to convert; leave it as it '
                'is, or give the part that has nn.Conv2d'
            )
        said = f'of the {len(self.rows)} convolutions of {self.model} none is converted: '
        if any(row.chosen for row in self.rows):
            _logger.warning('%s', said + kept(self.rows))
            return
        raise ValueError(
            f'{said}{kept(self.rows)}. Only an nn.Conv2d can become a Ghost conv: change what '
            'keeps these (keep_first=False, keep_last=False, another include, hooks and computed '
            'weights removed), or leave this network as it is; report() of gp.plan lists every conv'
        )

    def _check(self, model: nn.Module, chosen: list[LayerPlan]) -> None:
        for row in chosen:
            code = row.reason if row.reason in FINAL else ''
            code = code or ('' if row.shape.splits(row.settings) else 'groups')
            if code:
                raise ValueError(f'{row.name!r} cannot be converted ({code}): {REASONS[code]}')
        found = fingerprint(model)
        if found != self.fingerprint:
            names = dict(model.named_modules())
            lost = [row.name for row in self.rows if row.name not in names][:3]
            raise ValueError(
                f'this plan was made for another {self.model} (fingerprint {self.fingerprint}), '
                f'got {type(model).__name__} ({found})'
                + (f' without {lost}' if lost else '')
                + '; build it as the planned one was, with as many classes (--num-classes) and '
                'input channels, or make a plan for it with gp.plan'
            )
        names = {name for name, _ in model.named_modules(remove_duplicate=False)} | {''}
        lost = {row.name for row in self.rows} | {row.norm for row in self.rows}
        if lost := sorted(lost - names):
            raise ValueError(
                f'{type(model).__name__} has no module {lost[0]!r}; decision, ratio, dw_size and '
                'cheap of a row may be edited, not its name or norm'
            )


def _copied(model: nn.Module, rows: list[LayerPlan]) -> nn.Module:
    """A copy; convs that will be replaced are the original's own, as they are only read.

    Raises:
        ValueError: A module has a forward of its own that would go on calling the original, or
            the model holds something that cannot be copied.
    """
    check_forwards(model)
    convs = [model.get_submodule(row.name) for row in rows]
    return deepcopy_detached(
        model,
        {id(conv): conv for conv in convs},
        instead='use inplace=True, which copies nothing',
    )


def check_forwards(model: nn.Module) -> None:
    """Raise when a module has a forward of its own that would go on calling the original."""
    for name, module in model.named_modules():
        if _holds(vars(module).get('forward')):
            raise ValueError(
                f'{name!r} ({type(module).__name__}) has a forward of its own, which a copy would '
                'share with the original; use inplace=True, or give it the forward in a subclass'
            )


def _holds(function: Any) -> bool:
    """Whether a function holds what copies of it would go on holding."""
    if isinstance(function, functools.partial):
        return any(map(_holds, (function.func, *function.args, *function.keywords.values())))
    return bool(isinstance(function, weakref.ref) or getattr(function, '__closure__', None))


def _check_options(reconstruct: str | None, steps: int, inherit: bool, calibrated: bool) -> None:
    if reconstruct not in (None, *RECONSTRUCT):
        raise ValueError(f'reconstruct must be None or one of {RECONSTRUCT}, got {reconstruct!r}')
    if reconstruct and not inherit:
        raise ValueError(f'reconstruct={reconstruct!r} needs inherited weights to start from')
    if reconstruct and not calibrated:
        raise ValueError(f'reconstruct={reconstruct!r} needs calibration batches')
    if steps < 0:
        raise ValueError(f'steps must be 0 or more, got {steps!r}')


def _batches(model: nn.Module, calibration: Iterable[Any]) -> list[Any]:
    if any(parameter.is_meta for parameter in model.parameters()):
        raise ValueError('a model on the meta device has no weights to calibrate')
    return as_batches(calibration, model)


def _fitted(
    task: FitTask, batches: list[Any], reconstruct: str | None, steps: int, seed: int
) -> FitResults:
    """Fit the Ghosts of ``task`` to batches."""
    results = FitResults()
    if not can_concat(batches):
        if reconstruct:
            raise ValueError('reconstruct needs calibration batches of images of one size')
        _logger.warning('the calibration batches do not fit together; no refit on converted inputs')
    elif reconstruct:
        run = reconstruct_layers if reconstruct == 'layer' else reconstruct_blocks
        results = run(task, batches, steps, seed)
    else:
        results = fit_sequentially(task, batches)
    return initialize_others(task, results, batches)


def _optimizers(given: Any, inplace: bool, model: nn.Module) -> list[torch.optim.Optimizer]:
    found = [given] if isinstance(given, torch.optim.Optimizer) else list(given)
    own = {id(parameter) for parameter in model.parameters()}
    for optimizer in found:
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(f'optimizers= takes optimizers, got {type(optimizer).__name__}')
    if found and not inplace:
        raise ValueError('optimizers= needs inplace=True, a copy has no parameters in them')
    for optimizer in found:
        if not any(id(p) in own for group in optimizer.param_groups for p in group['params']):
            raise ValueError(
                f'optimizers= holds a {type(optimizer).__name__} with no parameter of this '
                f'{type(model).__name__}; give the ones that were built with its parameters'
            )
    return found


def _converted(model: nn.Module, rows: list[LayerPlan]) -> bool:
    """Whether a model is what a plan makes.

    Raises:
        ValueError: It is what another plan made.
    """
    modules = dict(model.named_modules())
    ghosts = {name: module for name, module in modules.items() if isinstance(module, GhostConv2d)}
    if not any(row.name in ghosts for row in rows):
        return False
    for row in rows:
        ghost = ghosts.get(row.name)
        if row.converts != (ghost is not None) or (ghost and not fits(ghost, row.settings)):
            raise ValueError(
                f'this {type(model).__name__} was converted by another plan, which differs at '
                f'{row.name!r}; apply this one to the original'
            )
    return True


def fingerprint(model: nn.Module) -> str:
    """Twelve digits that tell the names and shapes of a model's parameters."""
    shapes = [(name, tuple(p.shape)) for name, p in model.named_parameters()]
    return hashlib.sha256(repr(shapes).encode()).hexdigest()[:12]


def _share(totals: Mapping[str, int]) -> str:
    macs = totals['macs_after'] / max(1, totals['macs_before'])
    return f'{100 * macs:.1f} % of {totals["macs_before"] / 1e6:.1f} M multiply-adds'
