"""What the benchmark times: one call of a model, by mode."""

from collections.abc import Callable

import timm
import torch
from torch import nn

import ghost_plugin as gp


def inference(model: nn.Module, images: torch.Tensor) -> Callable[[], None]:
    """A forward pass in eval mode without gradients."""
    model.eval()

    def step() -> None:
        with torch.inference_mode():
            model(images)

    return step


def folded(model: nn.Module, images: torch.Tensor) -> Callable[[], None]:
    """As :func:`inference`, of the form for deployment: ours with gp.fuse, others with timm's."""
    ours = hasattr(model, 'switch_to_deploy')
    return inference((gp.fuse if ours else timm.utils.reparameterize_model)(model.eval()), images)


def training(model: nn.Module, images: torch.Tensor) -> Callable[[], None]:
    """Forward, cross-entropy, backward and an SGD step."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    labels = torch.randint(0, 1000, (len(images),), device=images.device)

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()

    return step


MODES = {'inference': inference, 'folded': folded, 'training': training}
