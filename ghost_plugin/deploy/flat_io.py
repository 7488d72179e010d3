"""Nested inputs and outputs of a model as flat lists of tensors."""

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from ..utils.modules import as_arguments, call_model, clone_tensors, eval_mode
from ..utils.torch_compat import is_compiling

# Types that hold no tensor and that a call does not change.
CONSTANT_TYPES = (
    type(None), bool, int, float, complex, str, bytes, Enum, torch.dtype, torch.device,
)  # fmt: skip
_BY_POSITION = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def input_tensors(example_input: Any) -> list[torch.Tensor]:
    """Return the tensors among the arguments of a call.

    Raises:
        TypeError: There is none.
    """
    found = list(_tensor_arguments(example_input).values())
    if not found:
        raise TypeError(
            'example_input must be a tensor, a tuple of tensors or a mapping with tensors, got '
            f'{type(example_input).__name__} without any'
        )
    return found


def _tensor_arguments(example_input: Any) -> dict[Any, torch.Tensor]:
    args, kwargs = as_arguments(example_input)
    pairs = [*enumerate(args), *kwargs.items()]
    return {key: value for key, value in pairs if isinstance(value, torch.Tensor)}


class CallSignature:
    """The tensor arguments of an example call; it finds those of other calls in the same order.

    Args:
        model: Its forward names the positional arguments.
        example_input: A tensor, a tuple of arguments or a mapping of keyword arguments.

    Raises:
        TypeError: The example holds no tensor.
    """

    def __init__(self, model: nn.Module, example_input: Any) -> None:
        input_tensors(example_input)  # raises if there is none
        self.example = example_input
        self.keys = list(_tensor_arguments(example_input))
        parameters = _parameters(model)
        self.positional = [p.name for p in parameters if p.kind in _BY_POSITION]
        example = self._by_name(*as_arguments(example_input))
        self.names = [name for name, x in example.items() if isinstance(x, torch.Tensor)]
        defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
        self.constants = {n: x for n, x in (defaults | example).items() if n not in self.names}

    def bind(self, *args: Any, **kwargs: Any) -> list[torch.Tensor]:
        """Return the tensors of a call in the order of the example.

        Args:
            args: Positional arguments of the model.
            kwargs: Keyword arguments of the model.

        Raises:
            TypeError: A tensor of the example is missing, or an argument is unknown.
            ValueError: An argument that is not a tensor differs from the example's.
        """
        given = self._by_name(args, kwargs)
        found = [given.get(name) for name in self.names]
        if len(given) > len(found) or not all(isinstance(x, torch.Tensor) for x in found):
            self._check(given)
        return found

    def with_tensors(self, new: Iterable[torch.Tensor]) -> Any:
        """Return the example with other tensors and with copies of its lists and objects."""
        given = dict(zip(self.keys, new, strict=True))

        def _part(key: Any, value: Any) -> Any:
            if key in given:
                return given[key]
            constant = isinstance(value, CONSTANT_TYPES) or is_compiling()
            return value if constant else clone_tensors(value)

        if isinstance(self.example, Mapping):
            return {key: _part(key, value) for key, value in self.example.items()}
        if isinstance(self.example, tuple | list):
            return tuple(_part(index, value) for index, value in enumerate(self.example))
        return given[0]

    def _check(self, given: Mapping[Any, Any]) -> None:
        problems = list(self._problems(given))
        if problems:
            wanted = ', '.join(map(_label, self.names))
            raise TypeError(f'{"; ".join(problems)}; as in the example the tensors are: {wanted}')
        for name, value in self.constants.items():
            if name in given and not _equal(given[name], value):
                raise ValueError(
                    f'{_label(name)} is {value!r:.80} in the example and is fixed, got '
                    f'{given[name]!r:.80}; another value needs an example of its own'
                )

    def _problems(self, given: Mapping[Any, Any]) -> Iterator[str]:
        for name in self.names:
            if name not in given:
                yield f'{_label(name)} is missing'
            elif not isinstance(given[name], torch.Tensor):
                yield f'{_label(name)} must be a tensor, got {type(given[name]).__name__}'
        for name in given:
            if name not in self.names and name not in self.constants:
                yield f'{_label(name)} is not known'

    def _by_name(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[Any, Any]:
        """Map arguments by the names of forward, or by index where there is no name."""
        given = dict(zip(self.positional, args, strict=False))
        given |= {index: args[index] for index in range(len(self.positional), len(args))}
        twice = given.keys() & kwargs
        if twice:
            raise TypeError(f'{_label(min(twice))} is given twice, by position and by name')
        return {**given, **kwargs}


def _parameters(model: nn.Module) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(model.forward).parameters.values())
    except (TypeError, ValueError):  # compiled modules
        return []


def _label(name: str | int) -> str:
    return repr(name) if isinstance(name, str) else f'argument {name}'


def _equal(a: Any, b: Any) -> bool:
    try:
        return a is b or bool(a == b)
    except Exception:  # tensors and arrays compare element by element
        return False


def calibration_tensors(model: nn.Module, batches: Sequence[Any]) -> list[list[torch.Tensor]]:
    """Return the tensors of each calibration batch, in the order of the first batch.

    Args:
        model: It is called once for each combination of shapes and dtypes.
        batches: What the model is called with.

    Raises:
        ValueError: The model does not accept a batch, or it has other inputs than the first.
    """
    try:
        signature = CallSignature(model, batches[0])
    except Exception as error:
        raise _not_an_input(0, error) from error
    found, tried = bind_batches(signature, batches), set()
    for index, batch in enumerate(found):
        kind = tuple((x.shape, x.dtype) for x in batch)
        try:
            if kind not in tried:
                with eval_mode(model):
                    call_model(model, signature.with_tensors(batch))
        except Exception as error:  # models raise any kind
            raise _not_an_input(index, error) from error
        tried.add(kind)
    return found


def bind_batches(signature: CallSignature, batches: Iterable[Any]) -> list[list[torch.Tensor]]:
    """Return the tensors of each calibration batch, in the order of the example.

    Args:
        signature: Of the model.
        batches: What the model is called with.

    Raises:
        ValueError: A batch has other inputs than the example.
    """
    found = []
    for index, batch in enumerate(batches):
        args, kwargs = as_arguments(batch)
        try:
            found.append([x.detach() for x in signature.bind(*args, **kwargs)])
        except (TypeError, ValueError) as error:
            raise _not_an_input(index, error) from error
    return found


def _not_an_input(index: int, error: Exception) -> ValueError:
    said = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return ValueError(
        f'batch {index} of calibration is no input of the model: {said}; each batch holds what '
        'the model is called with, all alike, and nothing else, such as labels'
    )


def flatten(value: Any) -> list[Any]:
    """List the leaves of nested tuples, lists, mappings and dataclasses."""
    found = []
    for leaf in pytree.tree_flatten(value)[0]:
        parts = None if isinstance(leaf, torch.Tensor) else _parts(leaf)
        found += [leaf] if parts is None else flatten(list(parts.values()))
    return found


def tensors(value: Any) -> list[torch.Tensor]:
    """List the tensors among the leaves of :func:`flatten`."""
    return [leaf for leaf in flatten(value) if isinstance(leaf, torch.Tensor)]


def _parts(leaf: Any) -> dict[Any, Any] | None:
    """Return the parts of a dataclass or of a dict type unknown to pytree; None for others."""
    if isinstance(leaf, dict):
        return dict(leaf)
    if is_dataclass(leaf) and not isinstance(leaf, type):
        return {field.name: getattr(leaf, field.name) for field in fields(leaf)}
    return None


def unflatten_fn(value: Any) -> Callable[[Iterator[Any]], Any]:
    """Return a function that nests an iterator of leaves in the way ``value`` is nested."""
    known, spec = pytree.tree_flatten(value)
    builders = [_leaf_builder(leaf) for leaf in known]
    return lambda new: pytree.tree_unflatten([build(new) for build in builders], spec)


def _leaf_builder(leaf: Any) -> Callable[[Iterator[Any]], Any]:
    parts = _parts(leaf)
    if parts is None:
        return next
    names, build, kind = list(parts), unflatten_fn(list(parts.values())), type(leaf)
    make = kind if isinstance(leaf, dict) else functools.partial(_dataclass_of, kind)
    return lambda new: make(dict(zip(names, build(new), strict=True)))


def _dataclass_of(kind: type, values: Mapping[str, Any]) -> Any:
    """Make a dataclass without its constructor, which might require or change values."""
    made = object.__new__(kind)
    for name, value in values.items():
        object.__setattr__(made, name, value)
    return made


class TensorIO(nn.Module):
    """Wrap a model so that it takes tensors and returns a tuple of tensors.

    Arguments that are not tensors (modes, flags) are those of the example in every call; so are
    outputs that are not tensors (sizes, names).

    Args:
        model: Any module.
        example_input: A tensor, a tuple of arguments or a mapping of keyword arguments.

    Attributes:
        inputs: The tensor arguments of the model.
        names: Default names of the output tensors.

    Raises:
        TypeError: The example holds no tensor, or the outputs hold none or unsupported objects.
    """

    def __init__(self, model: nn.Module, example_input: Any) -> None:
        super().__init__()
        self.model = model
        self.inputs = CallSignature(model, example_input)
        with eval_mode(model):
            outputs = call_model(model, example_input)
        leaves, self._unflatten = flatten(outputs), unflatten_fn(outputs)
        strange = [x for x in leaves if not isinstance(x, (torch.Tensor, *CONSTANT_TYPES))]
        self._places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]
        if strange or not self._places:
            raise not_outputs(strange[0] if strange else outputs)
        self._constants = [None if isinstance(x, torch.Tensor) else x for x in leaves]
        number = len(self._places)
        self.names = ['output'] if number == 1 else [f'output_{i}' for i in range(number)]
        self.train(model.training)

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        # No copies here: they would become a part of every file. pytorch_fn preserves inputs.
        args, kwargs = as_arguments(self.inputs.with_tensors(inputs))
        leaves = flatten(self.model(*args, **kwargs))
        if len(leaves) != len(self._constants):
            raise ValueError(
                f'{type(self.model).__name__} returns {len(leaves)} outputs for inputs of shape '
                f'{[tuple(x.shape) for x in inputs]}, but {len(self._constants)} for the example; '
                'give an example of that shape'
            )
        # By place, because tracers turn sizes into tensors, too.
        return tuple(leaves[index] for index in self._places)

    def unflatten(self, outputs: Iterable[torch.Tensor]) -> Any:
        """Nest output tensors as the model itself does."""
        leaves = list(self._constants)
        for index, value in zip(self._places, outputs, strict=True):
            leaves[index] = value
        return self._unflatten(iter(leaves))


def not_outputs(found: Any) -> TypeError:
    """Make the error for outputs that cannot be compared."""
    return TypeError(
        'outputs must be tensors, tuples, mappings or dataclasses of these, with plain values '
        f'beside them at most; got {type(found).__name__}'
    )
