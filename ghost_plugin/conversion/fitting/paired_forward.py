"""Original and converted model in one forward pass: the batch holds every image twice.

The first half of a batch is the original's, the second the converted model's. At a *hooked* module
the first half runs through the module as it is, which gives the targets; the second half runs
through the module's replacement, which is fitted right there, on the inputs that the converted
model really gives it. Everything between hooked modules treats samples one by one, so it needs no
change. One forward pass fits all convs, stores no activations and works for any topology.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils import _pytree as pytree

from ...utils.modules import clone_tensors, eval_mode, removing_hooks, tensors_in
from ...utils.torch_compat import autocasts, full_precision
from .batches import Arguments, concat_nested, split_pair, take_samples

IMAGES_PER_CALL = 16  # images that a module runs on at a time when nothing is fitted

Forward = Callable[..., Any]


@dataclass(frozen=True)
class ActivationBatch:
    """Arguments of a module for many images, in parts that are concatenated only on demand.

    The module gets copies, because it may write into its arguments.

    Attributes:
        parts: Arguments of some images each.
        sizes: Images of each part.
        shortcuts: (N, C, H, W) what will be added to the module's output, of each part; None if
            that is not known.
    """

    parts: Sequence[Arguments]
    sizes: Sequence[int]
    shortcuts: Sequence[torch.Tensor] | None = None
    _written: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list, repr=False)

    @property
    def num_images(self) -> int:
        """Number of images of all parts."""
        return sum(self.sizes)

    def first(self, number: int) -> Arguments:
        """Arguments of the first images."""
        chosen = []
        for part, size in zip(self.parts, self.sizes, strict=True):
            if number > 0:
                chosen.append(take_samples(part, range(min(number, size)), size))
                number -= size
        arguments: Arguments = concat_nested(*chosen, min_ndim=2)
        return arguments

    def map(self, forward: Forward) -> Any:
        """Outputs of ``forward`` for all images, computed for a few at a time."""
        self._written.clear()
        outputs = []
        for part, size in zip(self.parts, self.sizes, strict=True):
            for start in range(0, size, IMAGES_PER_CALL):
                few = range(start, min(start + IMAGES_PER_CALL, size))
                outputs.append(self._call(forward, take_samples(part, few, size)))
        return concat_nested(*outputs)

    def _call(self, forward: Forward, piece: Arguments) -> Any:
        args, kwargs = copies = clone_tensors(piece)
        pairs = list(zip(tensors_in(piece), tensors_in(copies), strict=True))
        before = [copy._version for _, copy in pairs]
        output = forward(*args, **kwargs)
        self._written.extend(
            pair for pair, version in zip(pairs, before, strict=True) if pair[1]._version > version
        )
        return output

    def write_back(self) -> None:
        """Write into the caller's tensors what the last :meth:`map` wrote into their copies."""
        for original, copy in self._written:
            original.copy_(copy)


Result = TypeVar('Result')
# Takes the module's forward, the original's and the converted model's inputs, and the visitor's
# last result for this module, None at the first call. Returns the outputs of both, and a result.
ModuleVisitor = Callable[
    [Forward, ActivationBatch, ActivationBatch, Result | None], tuple[Any, Any, Result]
]


def paired_forward(
    model: nn.Module, inputs: Arguments, number: int, visitors: Mapping[str, ModuleVisitor[Result]]
) -> dict[str, Result]:
    """Run a model as the original and as the converted one.

    Args:
        model: The original model, or a block of it; it is left as it was.
        inputs: Arguments that hold every image twice.
        number: Images of each model.
        visitors: Called at each call of a module, by the module's name.

    Returns:
        The visitors' results by name, of those that were called.
    """
    results: dict[str, Result] = {}

    def _override(name: str, forward: Forward) -> Forward:
        def run(*args: Any, **kwargs: Any) -> Any:
            pair = split_pair((args, kwargs), number)
            if pair is None:
                return forward(*args, **kwargs)
            output, results[name] = visit_module(
                visitors[name], forward, pair, number, results.get(name)
            )
            return output

        return run

    args, kwargs = clone_tensors(inputs)
    with forward_overrides(model, visitors, _override), eval_mode(model):
        model(*args, **kwargs)
    return results


def visit_module(
    visitor: ModuleVisitor[Result],
    forward: Forward,
    pair: tuple[Arguments, Arguments],
    number: int,
    result: Result | None,
) -> tuple[Any, Result]:
    """Call a visitor on one part of the images.

    Args:
        visitor: Of the module.
        forward: The module's own.
        pair: Arguments of the original and of the converted model.
        number: Images of each.
        result: Of the visitor's last call, if any.

    Returns:
        Outputs of both models, concatenated, and the visitor's result.
    """
    old, new = (ActivationBatch([arguments], [number]) for arguments in pair)
    *outputs, result = visitor(forward, old, new, result)
    old.write_back()
    new.write_back()
    return concat_nested(*outputs), result


@contextmanager
def forward_overrides(
    model: nn.Module, names: Iterable[str], override: Callable[[str, Forward], Forward]
) -> Iterator[None]:
    """Replace the forwards of some modules while the block runs.

    Forward hooks cannot do this: the module must not run on the whole batch at once, but on a few
    images at a time, without the autocast of the network that calls it, and a pre-hook can neither
    skip the module's own forward nor hold a context around it. Hooks that others have registered
    see inputs and outputs of both models, as without the override.

    Args:
        model: It is left as it was.
        names: Of modules inside.
        override: Called with the name and the forward of each; returns the new forward.
    """
    modules = {name: model.get_submodule(name) for name in names}
    own = {name: vars(module).get('forward') for name, module in modules.items()}
    try:
        for name, module in modules.items():
            module.forward = _without_autocast(module, override(name, module.forward))
        yield
    finally:
        for name, module in modules.items():
            vars(module).pop('forward', None)
            if (forward := own[name]) is not None:
                module.forward = forward


def _without_autocast(module: nn.Module, forward: Forward) -> Forward:
    """Run a forward in the module's own dtype, whatever the network that calls it casts to."""
    dtype = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)

    def cast(leaf: Any) -> Any:
        floating = isinstance(leaf, torch.Tensor) and leaf.is_floating_point()
        return leaf.to(dtype) if floating else leaf

    def run(*args: Any, **kwargs: Any) -> Any:
        if not autocasts():
            return forward(*args, **kwargs)
        args, kwargs = pytree.tree_map(cast, (args, kwargs))
        with full_precision():
            return forward(*args, **kwargs)

    return run


@contextmanager
def observe_activations(model: nn.Module, observer: Callable[[int], Any]) -> Iterator[None]:
    """Watch the output sizes of the innermost modules while the block runs.

    Args:
        model: The model that runs.
        observer: Called with the bytes of each output tensor.
    """

    def _hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if isinstance(output, torch.Tensor):
            observer(output.numel() * output.element_size())

    leaves = [m for m in model.modules() if not list(m.children())]
    leaves = [leaf for leaf in leaves if not isinstance(leaf, torch.jit.ScriptModule)]  # no hooks
    with removing_hooks(*(leaf.register_forward_hook(_hook) for leaf in leaves)):
        yield
