"""What a conversion itself costs: seconds and memory of planning and fitting, on this machine."""

import resource
import time
from collections.abc import Callable
from typing import Any

import timm
import torch
from _terminal import table

import ghost_plugin as gp

PICTURES, PART = 256, 32


def conversion_costs(name: str, side: int) -> list[dict[str, Any]]:
    """Print and return seconds and peak memory of each step.

    Args:
        name: A timm model; its weights do not matter for the time.
        side: Of the pictures, pixels; noise stands for them.
    """
    model = timm.create_model(name).eval()
    example = torch.randn(1, 3, side, side)
    batches = [torch.randn(PART, 3, side, side) for _ in range(PICTURES // PART)]
    with torch.no_grad():
        model(batches[0])
    plan = gp.plan(model, example)
    steps = {
        'plan without data': lambda: gp.plan(model, example),
        'conversion without data': lambda: plan.apply(model),
        f'conversion calibrated on {PICTURES} pictures': lambda: plan.apply(
            model, calibration=batches
        ),
    }
    rows = [_measured(step, run) for step, run in steps.items()]
    print(f'\n{name}, {side} px, {torch.get_num_threads()} threads')
    cells = [[r['step'], f'{r["seconds"]:.1f}', f'{r["megabytes"]:.0f}'] for r in rows]
    print(table(['Step', 'Seconds', 'Memory above one batch of inference (MB)'], cells))
    return rows


def _measured(step: str, run: Callable[[], Any]) -> dict[str, Any]:
    before, start = _peak(), time.monotonic()
    run()
    return {'step': step, 'seconds': time.monotonic() - start, 'megabytes': _peak() - before}


def _peak() -> float:
    """Largest resident memory of the process so far, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
