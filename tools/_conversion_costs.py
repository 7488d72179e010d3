"""What a conversion itself costs: seconds and memory of planning and fitting, on this machine."""

import multiprocessing
import resource
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import timm
import torch
from torch import nn

import ghost_plugin as gp
from ghost_plugin.cli.terminal import table

PICTURES, PART = 256, 32
CALIBRATED = f'conversion calibrated on {PICTURES} pictures'
# What is done to a model, with what it is called with and a plan; the pictures are made before.
STEPS: dict[str, Callable[[nn.Module, torch.Tensor, gp.ConversionPlan, list], Any]] = {
    'plan without data': lambda model, example, plan, batches: gp.plan(model, example),
    'conversion without data': lambda model, example, plan, batches: plan.apply(model),
    CALIBRATED: lambda model, example, plan, batches: plan.apply(model, calibration=batches),
}


def conversion_costs(name: str, side: int) -> list[dict[str, Any]]:
    """Print and return seconds and peak memory of each step, each in a process of its own.

    Args:
        name: A timm model; its weights do not matter for the time.
        side: Of the pictures, pixels; noise stands for them.
    """
    given = name, side, torch.get_num_threads()
    alone = {'mp_context': multiprocessing.get_context('spawn'), 'max_tasks_per_child': 1}
    with ProcessPoolExecutor(1, **alone) as pool:
        rows = [pool.submit(_measured, step, *given).result() for step in STEPS]
    print(f'\n{name}, {side} px, {torch.get_num_threads()} threads')
    cells = [[r['step'], f'{r["seconds"]:.1f}', f'{r["megabytes"]:.0f}'] for r in rows]
    print(table(['Step', 'Seconds', 'Memory above one batch of inference (MB)'], cells))
    return rows


def _measured(step: str, name: str, side: int, threads: int) -> dict[str, Any]:
    torch.set_num_threads(threads)
    model = timm.create_model(name).eval()
    example = torch.randn(1, 3, side, side)
    batches = [torch.randn(PART, 3, side, side) for _ in range(PICTURES // PART)]
    plan = gp.plan(model, example)
    with torch.no_grad():
        model(batches[0])
    before, start = _peak(), time.monotonic()
    STEPS[step](model, example, plan, batches)
    return {'step': step, 'seconds': time.monotonic() - start, 'megabytes': _peak() - before}


def _peak() -> float:
    """Largest resident memory of the process so far, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
