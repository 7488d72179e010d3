"""Load a converted model from its plan and its weights."""

import os

import torch
from torch import nn

from ..utils.checkpoint_io import read
from ..weights import find_weights
from .plan import ConversionPlan


def load_converted(
    model: nn.Module, plan: str | os.PathLike[str], weights: str | os.PathLike[str]
) -> nn.Module:
    """Build a converted copy of a model with the weights of a state dict.

    Args:
        model: The model that the plan was made for; it is not touched, and its own weights do not
            matter.
        plan: JSON file of a :class:`ghost_plugin.ConversionPlan`.
        weights: File of the converted model's state dict.

    Raises:
        FileNotFoundError: No such file.
        ValueError: The plan or the weights belong to another model.
    """
    copy = ConversionPlan.load(plan).apply(model, inherit=False)
    load_exactly(copy, weights)
    return copy.eval()


def load_exactly(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Load a state dict that has all of a model's tensors and no others, under any prefix.

    Args:
        model: Gets the weights.
        path: File of the state dict.

    Raises:
        FileNotFoundError: No such file.
        ValueError: The file has other tensors.
    """
    own = model.state_dict()
    found = find_weights(read(path), own).weights
    shapes = {name: t.shape for name, t in found.items() if isinstance(t, torch.Tensor)}
    lost = [name for name in own if shapes.get(name) != own[name].shape]
    more = [name for name in found if name not in own]
    if lost or more:
        raise ValueError(
            f'{os.fspath(path)!r} holds other weights: {len(lost)} of {len(own)} tensors are '
            f'missing or of another shape, {len(more)} are unknown, such as {(lost + more)[0]}; '
            'give what was made with this model and plan'
        )
    model.load_state_dict(found)
