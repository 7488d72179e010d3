"""Many pictures through a network in step, each station reached by as many as memory can hold.

Early maps are large, so few pictures fit; late kernels have many weights and need many. Parts of
the pictures therefore run in threads of their own, one at a time, that wait for each other at every
station. Where maps have become smaller, further parts set out, pass the stations that have been
visited, and join.
"""

import ctypes
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from ...utils.modules import as_arguments, call_model, clone_tensors, eval_mode, removing_hooks
from .paired_forward import (
    ActivationBatch,
    Arguments,
    ModuleVisitor,
    as_single_batch,
    batch_size,
    concat_batches,
    concat_nested,
    forward_overrides,
    observe_activations,
    rebatch,
    split_pair,
    visited,
)

HELD = 6  # maps that are held at a time, of the largest that is still to come: three a stream
THREADS = 8  # at the least, where memory does not ask for more


def run_microbatches(
    model: nn.Module, batches: Sequence[Any], stations: Mapping[str, ModuleVisitor], memory: int
) -> None:
    """Visit all stations with all pictures; nobody sets out where there is no station."""
    if stations:
        MicrobatchScheduler(model, batches, stations, memory).run()


class MicrobatchScheduler:
    """Both streams of all pictures on their way through one network.

    Args:
        model: The original; it is left as it was.
        batches: All pictures, of one size.
        stations: What happens at each module, by name.
        memory: Bytes of maps that may be held at a time.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Sequence[Any],
        stations: Mapping[str, ModuleVisitor],
        memory: int,
    ) -> None:
        self.model, self.stations, self.memory = model, stations, memory
        self.ahead = peak_activation_bytes(model, stations, next(rebatch(batches, 2)))
        self.waiting = sum(map(batch_size, batches))
        self.size = max(1, min(-(-self.waiting // THREADS), self._room(max(self.ahead.values()))))
        self.parts = rebatch(batches, self.size)
        self.visited: set[str] = set()
        self.travellers: list[_ForwardThread] = []

    def run(self) -> None:
        """Visit all stations with all pictures."""
        with eval_mode(self.model), forward_overrides(self.model, self.stations, self._stop):
            try:
                while self.travellers or self.waiting:
                    self._visit() if self.travellers else self._set_out()
            finally:
                for traveller in self.travellers:
                    traveller.give_up()

    def _room(self, size: int) -> int:
        """Pictures whose maps of ``size`` bytes fit into memory."""
        return self.memory // max(1, HELD * size)

    def _set_out(self) -> None:
        traveller = _ForwardThread(self.model, next(self.parts))
        self.waiting -= traveller.number
        self.travellers.append(traveller)
        traveller.set_out()
        _malloc_trim()(0)
        self.travellers = [t for t in self.travellers if not t.arrived]

    def _visit(self) -> None:
        """Everybody is at one station: others catch up, it is visited, all go on to the next."""
        name = self.travellers[0].place
        room = self._room(self.ahead[name])
        while self.waiting and sum(t.number for t in self.travellers) + self.size <= room:
            self._set_out()
        here = [t for t in self.travellers if t.place == name]
        _malloc_trim()(0)
        outputs = self._outputs(name, here)
        self.visited.add(name)
        for traveller, share in zip(here, outputs, strict=True):
            traveller.go_on(concat_nested(*share))
        self.travellers = [t for t in self.travellers if not t.arrived]

    def _outputs(self, name: str, here: list['_ForwardThread']) -> Iterator[tuple[Any, Any]]:
        """Both streams' outputs of a station, for each traveller."""
        numbers = [t.number for t in here]
        forwards, *streams = zip(*(t.brought for t in here), strict=True)
        streams = [ActivationBatch(stream, numbers) for stream in streams]
        outputs = self.stations[name](forwards[0], *streams)
        for stream in streams:
            stream.write()
        return zip(*(_shared(stream, numbers) for stream in outputs), strict=True)

    def _stop(self, name: str, forward: Callable) -> Callable:
        def run(*args: Any, **kwargs: Any) -> Any:
            traveller = threading.current_thread()
            streams = split_pair((args, kwargs), traveller.number)
            if streams is None:  # not pictures of both, such as boxes of unequal number
                return forward(*args, **kwargs)
            if name in self.visited:
                return visited(
                    self.stations[name], forward, as_single_batch(streams, traveller.number)
                )
            return traveller.wait(name, (forward, *streams))

        return run


class _ForwardThread(threading.Thread):
    """One part of the pictures; runs only while the convoy waits for it."""

    def __init__(self, model: nn.Module, batch: Any) -> None:
        super().__init__(daemon=True)
        self.model, self.number = model, batch_size(batch)
        # Two copies, because the model may write into images that it gets in a list.
        self.streams: Arguments = as_arguments(
            concat_batches([clone_tensors(batch), clone_tensors(batch)])
        )
        self.place, self.brought, self.got = '', None, None
        self.arrived = self.over = False
        self.error: BaseException | None = None
        self.turn, self.back = threading.Semaphore(0), threading.Semaphore(0)

    def run(self) -> None:
        args, kwargs = self.streams
        try:
            with torch.no_grad():
                self.model(*args, **kwargs)
        except _GivenUp:
            pass
        except BaseException as error:  # told to the convoy's own thread
            self.error = error
        finally:
            self.arrived = True
            self.back.release()

    def set_out(self) -> None:
        """Run to the first station."""
        self.start()
        self._until_back()

    def go_on(self, got: Any) -> None:
        """Run on to the next station, with what the last one gave."""
        self.got = got
        self.turn.release()
        self._until_back()

    def give_up(self) -> None:
        """End at the station where it waits."""
        if not self.arrived:
            self.over = True
            self.turn.release()
            self.back.acquire()

    def wait(self, name: str, brought: tuple) -> Any:
        """In the thread itself: stop at a station until the convoy goes on."""
        self.place, self.brought = name, brought
        self.back.release()
        self.turn.acquire()
        if self.over:
            raise _GivenUp
        got, self.got, self.brought = self.got, None, None
        return got

    def _until_back(self) -> None:
        self.back.acquire()
        if self.error is not None:
            raise self.error


class _GivenUp(Exception):  # noqa: N818
    """Ends a thread whose convoy has stopped."""


@cache
def _malloc_trim() -> Callable[[int], Any]:
    """Gives freed memory back; glibc keeps it for each thread, with ResNet-50 1 GB in all."""
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # another system
        return lambda kept: None


def _shared(whole: Any, numbers: list[int]) -> list[Any]:
    """Outputs for all pictures back to parts of so many each."""
    leaves, spec = pytree.tree_flatten(whole)
    total = sum(numbers)

    def parts(leaf: Any) -> list[Any]:
        if not isinstance(leaf, torch.Tensor) or leaf.ndim < 2:
            return [leaf] * len(numbers)
        return list(leaf.split([n * (len(leaf) // total) for n in numbers]))

    columns = [parts(leaf) for leaf in leaves]
    return [
        pytree.tree_unflatten([column[i] for column in columns], spec) for i in range(len(numbers))
    ]


def peak_activation_bytes(
    model: nn.Module, stations: Mapping[str, ModuleVisitor], batch: Any
) -> dict[str, int]:
    """Bytes per picture of the largest map from each station on."""
    sizes: list[tuple[str, int]] = []
    number = batch_size(batch)

    def entered(name: str) -> Callable:
        return lambda module, args: sizes.append((name, 0))

    handles = [model.get_submodule(n).register_forward_pre_hook(entered(n)) for n in stations]
    with removing_hooks(*handles), eval_mode(model):
        with observe_activations(model, lambda size: sizes.append(('', size // number))):
            call_model(model, batch)
    ahead, largest = dict.fromkeys(stations, 1), 1
    for name, size in reversed(sizes):
        largest = max(largest, size)
        if name:
            ahead[name] = largest
    return ahead
