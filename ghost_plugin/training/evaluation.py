"""What a classifier is worth: accuracy on pictures, parameters, multiply-adds, latency."""

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..profiling import count, time_together
from ..utils.modules import as_arguments, eval_mode, plain_forward, preserving_inputs
from .loader import ImageLoader, ProgressFn, no_progress


@dataclass(frozen=True)
class Accuracy:
    """Share of pictures whose class is the first, or among the first five, per cent.

    ``top5`` is None for five classes or fewer.
    """

    top1: float
    top5: float | None
    pictures: int


def accuracy(
    model: nn.Module, feed: ImageLoader, batch: int = 128, tick: ProgressFn = no_progress
) -> Accuracy:
    """Top-1 and top-5 on all pictures of a feed.

    Raises:
        ValueError: The model gives no logits, or not for the classes of the pictures.
    """
    found, seen = torch.zeros(2, dtype=torch.long), 0
    with eval_mode(model):
        for images, labels in feed.ordered(batch):
            logits = logits_of(model(images))
            found += _hits(logits, labels)
            seen += len(labels)
            tick('evaluating', seen, len(feed), f'top-1 {100 * found[0] / seen:.2f} %')
    top1, top5 = (100 * found.double() / seen).tolist()
    return Accuracy(top1, top5 if logits.shape[1] > 5 else None, seen)


def top1(
    model: nn.Module, feed: ImageLoader, batch: int = 128, tick: ProgressFn = no_progress
) -> dict[str, float]:
    """Top-1 as a figure by name, for :func:`.finetuning.finetune`."""
    return {'top1': accuracy(model, feed, batch, tick).top1}


def _hits(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    best = logits.topk(min(5, logits.shape[1]), dim=1).indices
    right = best == labels[:, None]
    return torch.stack((right[:, 0].sum(), right.any(1).sum())).cpu()


def logits_of(output: Any) -> torch.Tensor:
    """The (N, classes) logits in what a classifier returns.

    Raises:
        ValueError: There are none.
    """
    if isinstance(output, Mapping):
        output = next(iter(output.values()), None)
    elif isinstance(output, tuple | list):
        output = output[0] if output else None
    if not isinstance(output, torch.Tensor) or output.ndim != 2:
        shape = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
        raise ValueError(f'the model is no classifier: it gives {shape}, not (N, classes)')
    return output


def check_classes(model: nn.Module, feed: ImageLoader, mapped: bool = False) -> None:
    """See that a model has an output for each class, with one forward pass.

    Args:
        model: A classifier.
        feed: Pictures with classes.
        mapped: The classes have indices of their own, so that there may be fewer than outputs.

    Raises:
        ValueError: There are no classes, or another number than outputs.
    """
    pictures = feed.pictures
    if pictures.labels is None:
        raise ValueError(f'{pictures.source} has no class folders, and labels are needed')
    image = torch.zeros(1, 3, *feed.look.size, device=feed.device)
    with eval_mode(model):
        outputs = logits_of(model(image)).shape[1]
    known = max(pictures.classes.values()) + 1
    if known > outputs or (known < outputs and not mapped):
        raise ValueError(
            f'{pictures.source} has {len(pictures.classes)} classes and the model {outputs} '
            f'outputs; --num-classes {known} builds one that fits, --labels says which class is '
            'which output'
        )


def costs(model: nn.Module, example_input: Any) -> dict[str, int]:
    """``params`` and ``macs`` of one call.

    Raises:
        ValueError: The model cannot be called so.
    """
    try:
        counted = count(model, example_input)
    except Exception as error:  # foreign code raises whatever it likes
        reason = ' '.join(str(error).split())
        raise ValueError(
            f'the model does not run on such a picture, --size gives another: {reason}'
        ) from error
    return {'params': counted.params, 'macs': counted.macs}


@plain_forward()
def expenses(model: nn.Module, example_input: Any, rounds: int = 30) -> dict[str, Any]:
    """What one call costs in eval mode on the model's device.

    Returns:
        ``params``, ``macs``, ``latency_ms`` (the median) with its quartiles ``latency_low`` and
        ``latency_high``, ``setup`` (how that was measured, in words).
    """
    counted = costs(model, example_input)
    args, kwargs = as_arguments(example_input)
    kept = preserving_inputs(model)
    with eval_mode(model):
        timing = time_together({'model': lambda: kept(*args, **kwargs)}, rounds)[0]
    parameter, (batch, _, *size) = next(model.parameters()), _pictures(example_input).shape
    return {
        **counted,
        'latency_ms': timing.median,
        'latency_low': timing.low,
        'latency_high': timing.high,
        'setup': f'{device_name(parameter.device)}, torch {torch.__version__}, eager, '
        f'{str(parameter.dtype).removeprefix("torch.")}, batch {batch}, {size[0]} x {size[1]} px, '
        f'median of {rounds}',
    }


def _pictures(example_input: Any) -> torch.Tensor:
    """The (N, C, H, W) in what a model is called with."""
    parts = example_input.values() if isinstance(example_input, Mapping) else example_input
    parts = [example_input] if isinstance(example_input, torch.Tensor) else parts
    return next(part for part in parts if isinstance(part, torch.Tensor) and part.ndim == 4)


def device_name(device: torch.device | str) -> str:
    """What a measurement was made on, in words."""
    if torch.device(device).type == 'cuda':
        return torch.cuda.get_device_name(device)
    processor = platform.processor() or platform.machine()
    return f'{processor}, {torch.get_num_threads()} threads'
