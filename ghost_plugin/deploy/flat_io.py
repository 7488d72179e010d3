"""What a model is called with, as the tensors of an example in their order."""

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import Enum
from typing import Any

import torch
from torch import nn

from ..utils.modules import as_arguments, call_model, clone_tensors, eval_mode
from ..utils.torch_compat import is_compiling

# What cannot hold a tensor, and is not changed by a call.
PLAIN = (type(None), bool, int, float, complex, str, bytes, Enum, torch.dtype, torch.device)


def arguments(example_input: Any) -> list[torch.Tensor]:
    """The tensors that a model is called with: those of a tuple, or on top of a mapping.

    Raises:
        TypeError: There is none.
    """
    found = list(_slots(example_input).values())
    if not found:
        raise TypeError(
            'example_input must be a tensor, a tuple of tensors or a mapping with tensors, got '
            f'{type(example_input).__name__} without any'
        )
    return found


def _slots(example_input: Any) -> dict[Any, torch.Tensor]:
    args, kwargs = as_arguments(example_input)
    pairs = [*enumerate(args), *kwargs.items()]
    return {key: value for key, value in pairs if isinstance(value, torch.Tensor)}


class Inputs:
    """The tensors of an example, and those of any other call of the model in the same order.

    Args:
        model: Its forward tells the names of what is given by position.
        example_input: A tensor, a tuple of arguments or a mapping of keyword arguments.

    Raises:
        TypeError: The example holds no tensor.
    """

    def __init__(self, model: nn.Module, example_input: Any) -> None:
        arguments(example_input)  # refuses what holds none
        self.example = example_input
        self.slots = list(_slots(example_input))
        parameters = _parameters(model)
        self.order = [p.name for p in parameters if p.kind in _BY_POSITION]
        example = self._named(*as_arguments(example_input))
        self.names = [name for name, x in example.items() if isinstance(x, torch.Tensor)]
        defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
        self.fixed = {n: x for n, x in (defaults | example).items() if n not in self.names}

    def of(self, given: Any) -> list[torch.Tensor]:
        """The tensors of another input in the form of an example, see :meth:`of_call`."""
        args, kwargs = as_arguments(given)
        return self.of_call(*args, **kwargs)

    def of_call(self, *args: Any, **kwargs: Any) -> list[torch.Tensor]:
        """The tensors of a call, given by name or by position, in the order of the example.

        Raises:
            TypeError: A tensor of the example is missing, or something else is given.
            ValueError: What is no tensor in the example is given with another value.
        """
        given = self._named(args, kwargs)
        tensors = [given.get(name) for name in self.names]
        if len(given) > len(tensors) or not all(isinstance(x, torch.Tensor) for x in tensors):
            self._check(given)
        return tensors

    def _check(self, given: Mapping[Any, Any]) -> None:
        wrong = list(self._misfits(given))
        if wrong:
            wanted = ', '.join(map(_word, self.names))
            raise TypeError(f'{"; ".join(wrong)}; as in the example the tensors are: {wanted}')
        for name, value in self.fixed.items():
            if name in given and not _same(given[name], value):
                raise ValueError(
                    f'{_word(name)} is {value!r:.80} in the example and stays so, got '
                    f'{given[name]!r:.80}; another value needs an example of its own'
                )

    def _misfits(self, given: Mapping[Any, Any]) -> Iterator[str]:
        for name in self.names:
            if name not in given:
                yield f'{_word(name)} is missing'
            elif not isinstance(given[name], torch.Tensor):
                yield f'{_word(name)} must be a tensor, got {type(given[name]).__name__}'
        for name in given:
            if name not in self.names and name not in self.fixed:
                yield f'{_word(name)} is not known'

    def filled(self, tensors: Iterable[torch.Tensor]) -> Any:
        """The example with other tensors in it, and with copies of its lists and objects."""
        given = dict(zip(self.slots, tensors, strict=True))

        def part(key: Any, value: Any) -> Any:
            if key in given:
                return given[key]
            return value if isinstance(value, PLAIN) or is_compiling() else clone_tensors(value)

        if isinstance(self.example, Mapping):
            return {key: part(key, value) for key, value in self.example.items()}
        if isinstance(self.example, tuple | list):
            return tuple(part(index, value) for index, value in enumerate(self.example))
        return given[0]

    def _named(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[Any, Any]:
        """By the names of forward; by index what it gives no name."""
        given = dict(zip(self.order, args, strict=False))
        given |= {index: args[index] for index in range(len(self.order), len(args))}
        twice = given.keys() & kwargs
        if twice:
            raise TypeError(f'{_word(min(twice))} is given twice, by position and by name')
        return {**given, **kwargs}


def of_calibration(model: nn.Module, batches: Sequence[Any]) -> list[list[torch.Tensor]]:
    """The tensors of each batch, in the order of the first.

    Raises:
        ValueError: The model does not take a batch, or it has other inputs than the first.
    """
    try:
        inputs = Inputs(model, batches[0])
    except Exception as error:  # what tells nothing of inputs may be anything
        raise _not_an_input(0, error) from error
    found, tried = calibrating(inputs, batches), set()
    for number, tensors in enumerate(found):
        kind = tuple((x.shape, x.dtype) for x in tensors)
        try:
            if kind not in tried:
                with eval_mode(model):
                    call_model(model, inputs.filled(tensors))
        except Exception as error:  # models raise whatever they like
            raise _not_an_input(number, error) from error
        tried.add(kind)
    return found


def calibrating(inputs: Inputs, batches: Iterable[Any]) -> list[list[torch.Tensor]]:
    """The tensors of each batch, in the order of the example.

    Raises:
        ValueError: A batch has other inputs than the example.
    """
    found = []
    for number, batch in enumerate(batches):
        try:
            found.append([x.detach() for x in inputs.of(batch)])
        except (TypeError, ValueError) as error:
            raise _not_an_input(number, error) from error
    return found


def _not_an_input(number: int, error: Exception) -> ValueError:
    said = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return ValueError(
        f'batch {number} of calibration is no input of the model: {said}; each batch holds what '
        'the model is called with, all alike, and nothing else, such as labels'
    )


_BY_POSITION = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def _parameters(model: nn.Module) -> list[inspect.Parameter]:
    """Of its forward; none where that does not tell them."""
    try:
        return list(inspect.signature(model.forward).parameters.values())
    except (TypeError, ValueError):  # compiled ones
        return []


def _word(name: str | int) -> str:
    return repr(name) if isinstance(name, str) else f'argument {name}'


def _same(a: Any, b: Any) -> bool:
    try:
        return a is b or bool(a == b)
    except Exception:  # tensors and arrays inside compare value by value
        return False
