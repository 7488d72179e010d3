"""Figures of a classifier: accuracy on images, parameters, multiply-adds, latency."""

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..profiling import count, time_together
from ..utils.modules import as_arguments, eval_mode, plain_forward, preserving_inputs, tensors_in
from .loader import ImageLoader, ProgressFn, no_progress


@dataclass(frozen=True)
class Accuracy:
    """Share of images whose class is the first, or among the first five, per cent.

    ``top5`` is None for five classes or fewer.
    """

    top1: float
    top5: float | None
    images: int


def accuracy(
    model: nn.Module, loader: ImageLoader, batch: int = 128, progress: ProgressFn = no_progress
) -> Accuracy:
    """Top-1 and top-5 on all images of a loader.

    Args:
        model: A classifier on the loader's device.
        loader: Images with class indices.
        batch: Images per forward pass.
        progress: Shows the batches.

    Raises:
        ValueError: The model gives no (N, classes) logits.
    """
    from timm.utils import AverageMeter
    from timm.utils import accuracy as accuracy_of_batch

    top1, top5 = AverageMeter(), AverageMeter()
    with eval_mode(model):
        for images, labels in loader.ordered(batch):
            logits = logits_of(model(images))
            shares = accuracy_of_batch(logits, labels, topk=(1, 5))
            for meter, share in zip((top1, top5), shares, strict=True):
                meter.update(share.item(), len(labels))
            progress('evaluating', top1.count, len(loader), f'top-1 {top1.avg:.2f} %')
    return Accuracy(top1.avg, top5.avg if logits.shape[1] > 5 else None, top1.count)


def top1(
    model: nn.Module, loader: ImageLoader, batch: int = 128, progress: ProgressFn = no_progress
) -> dict[str, float]:
    """:func:`accuracy` as ``{'top1': per cent}``, for ``validate`` of :func:`.trainer.finetune`.

    Args:
        model, loader, batch, progress: As in :func:`accuracy`.
    """
    return {'top1': accuracy(model, loader, batch, progress).top1}


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


def check_classes(model: nn.Module, loader: ImageLoader, mapped: bool = False) -> None:
    """Check with one forward pass that a model has an output for each class.

    Args:
        model: A classifier.
        loader: Images with class indices.
        mapped: The class indices were given, so that there may be fewer classes than outputs.

    Raises:
        ValueError: There are no classes, or their number differs from that of the outputs.
    """
    images = loader.images
    if images.labels is None:
        raise ValueError(f'{images.source} has no class folders, and labels are needed')
    example = torch.zeros(1, 3, *loader.preprocessing.size, device=loader.device)
    with eval_mode(model):
        outputs = logits_of(model(example)).shape[1]
    known = max(images.classes.values()) + 1
    if known > outputs or (known < outputs and not mapped):
        raise ValueError(
            f'{images.source} has {len(images.classes)} classes and the model {outputs} '
            f'outputs; --num-classes {known} builds one that fits, --labels says which class is '
            'which output'
        )


def costs(model: nn.Module, example_input: Any) -> dict[str, int]:
    """``params`` and ``macs`` of one forward pass.

    Args:
        model: Any module.
        example_input: Its input, as in :func:`ghost_plugin.count`.

    Raises:
        ValueError: The forward pass fails.
    """
    try:
        counted = count(model, example_input)
    except Exception as error:  # foreign code can raise anything
        reason = ' '.join(str(error).split())
        raise ValueError(
            f'the model does not run on such an image, --size gives another: {reason}'
        ) from error
    return {'params': counted.params, 'macs': counted.macs}


@plain_forward()
def costs_and_latency(model: nn.Module, example_input: Any, rounds: int = 30) -> dict[str, Any]:
    """Costs of one forward pass in eval mode on the model's device.

    Args:
        model: Any module.
        example_input: Its input, which holds an (N, C, H, W) tensor.
        rounds: Number of timed forward passes.

    Returns:
        ``params``, ``macs``, ``latency_ms`` (the median) with its quartiles ``latency_low`` and
        ``latency_high``, and ``setup``, a sentence about the measurement.
    """
    counted = costs(model, example_input)
    args, kwargs = as_arguments(example_input)
    forward = preserving_inputs(model)
    with eval_mode(model):
        timing = time_together({'model': lambda: forward(*args, **kwargs)}, rounds)[0]
    parameter = next(model.parameters())
    batch, _, *size = next(x.shape for x in tensors_in(example_input) if x.ndim == 4)
    return {
        **counted,
        'latency_ms': timing.median,
        'latency_low': timing.low,
        'latency_high': timing.high,
        'setup': f'{device_name(parameter.device)}, torch {torch.__version__}, eager, '
        f'{str(parameter.dtype).removeprefix("torch.")}, batch {batch}, {size[0]} x {size[1]} px, '
        f'median of {rounds}',
    }


def device_name(device: torch.device | str) -> str:
    """Name of the GPU, or of the processor with its number of threads."""
    if torch.device(device).type == 'cuda':
        return torch.cuda.get_device_name(device)
    processor = platform.processor() or platform.machine()
    return f'{processor}, {torch.get_num_threads()} threads'
