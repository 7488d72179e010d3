"""Differences between versions of torch from 2.1 on; the newest needs none of this."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

is_compiling = getattr(torch.compiler, 'is_compiling', None) or torch._utils.is_compiling
# True if a device type has autocast; older versions have it for these.
has_autocast = getattr(torch.amp, 'is_autocast_available', ('cpu', 'cuda').__contains__)
_AUTOCAST_DEVICES = ('cpu', 'cuda', 'xpu', 'mps', 'hpu', 'mtia')
GradScaler = getattr(torch.amp, 'GradScaler', None) or torch.cuda.amp.GradScaler
# True if FlopCounterMode sees convs in inference mode.
COUNTS_INFERENCE = torch.__version__ >= (2, 6)
# Argument that makes torch.onnx.export trace; True if torch.export takes axes of any size.
TRACED = {'dynamo': False} if torch.__version__ >= (2, 4) else {}
EXPORTS_FREE = torch.__version__ >= (2, 6)
# Whether torch.export programs can be compiled to packages of AOTInductor.
HAS_AOTINDUCTOR = torch.__version__ >= (2, 6)
# True if torch.onnx.export takes names of dynamic axes together with torch.export.
NAMES_AXES = torch.__version__ >= (2, 7)
# True if restricted loading lists unknown names and takes stand-ins for them.
LISTS_NAMES = hasattr(torch.serialization, 'get_unsafe_globals_in_checkpoint')


def autocasts() -> list[str]:
    """Types of the devices for which this thread has autocast on."""
    return [device for device in _AUTOCAST_DEVICES if _autocasts(device)]


@contextmanager
def full_precision() -> Iterator[None]:
    """Switch autocast off in this thread, for all devices."""
    with ExitStack() as stack:
        for device in autocasts():
            stack.enter_context(torch.autocast(device, enabled=False))
        yield


def _autocasts(device: str) -> bool:
    if not has_autocast(device):
        return False
    if torch.__version__ >= (2, 4):
        return torch.is_autocast_enabled(device)
    return torch.is_autocast_cpu_enabled() if device == 'cpu' else torch.is_autocast_enabled()
