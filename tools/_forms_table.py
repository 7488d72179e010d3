"""The benchmark's table of forms: timm's networks, plain and compiled, against ours by backend."""

import argparse
import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

import timm
import torch
from _modes import inference

from ghost_plugin.cli.terminal import show, table
from ghost_plugin.deploy.backends import TIMED, Forms
from ghost_plugin.deploy.inference import of_graph, quiet
from ghost_plugin.profiling import MIN_ROUND_MS, Timing, time_together


def forms_table(
    args: argparse.Namespace,
    family: Mapping[str, str],
    dtype: torch.dtype,
    keep: Callable[[list[dict[str, Any]]], None],
) -> None:
    """Time both of each pair by batch, print a table per pair and keep the figures so far.

    timm's networks run in ``dtype``, ours by all backends that compute in it or in less.
    """
    found = []
    for mine, other in family.items():
        timings = {batch: dict(_timings(args, mine, other, dtype, batch)) for batch in args.batch}
        names = dict.fromkeys(name for by_name in timings.values() for name in by_name)
        rows = [[name, *(_cell(timings[b], name) for b in args.batch)] for name in names]
        show(table([f'{mine}, ms', *(f'batch {batch}' for batch in args.batch)], rows))
        found += [
            {'model': mine, 'batch': batch, **asdict(timing)}
            for batch, by_name in timings.items()
            for timing in by_name.values()
        ]
        keep(found)


def _cell(timings: Mapping[str, Timing], name: str) -> str:
    if name not in timings:
        return ''
    base = timings['timm, eager'].median
    return f'{timings[name].median:.3g} ({base / timings[name].median:.2f})'


def _timings(
    args: argparse.Namespace, mine: str, other: str, dtype: torch.dtype, batch: int
) -> Iterator[tuple[str, Timing]]:
    """All forms of one pair, in turns; the weights are timm's in both."""
    theirs, ours = (timm.create_model(name).eval() for name in (other, mine))
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(batch, 3, args.side, args.side, device=args.device)
    tasks = _of_timm(timm.utils.reparameterize_model(theirs), images, dtype)
    forms = Forms(ours.to(args.device), images)
    for row in TIMED.values():
        if getattr(torch, row.dtype).itemsize <= dtype.itemsize and row.runs_on(forms.device):
            run = row.attempt(forms, calls=2).run
            if run is not None:
                tasks[f'ours, {row.name}'] = lambda run=run: run([images])
    apart = forms.device == 'cpu'
    for timing in time_together(tasks, args.rounds, args.warmup, apart, MIN_ROUND_MS):
        yield timing.name, timing


def _of_timm(
    model: torch.nn.Module, images: torch.Tensor, dtype: torch.dtype
) -> dict[str, Callable[[], Any]]:
    """timm's network eager, channels-last, compiled, and on a GPU that one as a CUDA graph.

    In float32 the plain one is as timm makes it, in bfloat16, which is for speed, channels-last.
    """
    model, images = model.to(images.device, dtype), images.to(dtype)
    last, images_last = (
        x.to(memory_format=torch.channels_last) for x in (copy.deepcopy(model), images)
    )
    compiled = torch.compile(last)
    tasks = {
        'timm, eager': inference(model, images),
        'timm, channels-last': inference(last, images_last),
        'timm, compiled': inference(compiled, images_last),
    }
    if dtype != torch.float32:
        tasks['timm, eager'] = tasks.pop('timm, channels-last')
    with quiet():
        tasks['timm, compiled']()
    if images.is_cuda:
        graph = of_graph(lambda x: compiled(x), dtype)
        tasks['timm, compiled, CUDA graph'] = lambda: graph([images_last])
    return tasks
