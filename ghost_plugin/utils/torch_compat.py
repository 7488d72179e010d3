"""Where the versions of torch from 2.1 on differ; the newest does all of it by itself."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

is_compiling = getattr(torch.compiler, 'is_compiling', None) or torch._utils.is_compiling
# Whether a device has autocast; older versions know it of these.
has_autocast = getattr(torch.amp, 'is_autocast_available', ('cpu', 'cuda').__contains__)
_AUTOCAST_DEVICES = ('cpu', 'cuda', 'xpu', 'mps', 'hpu', 'mtia')
GradScaler = getattr(torch.amp, 'GradScaler', None) or torch.cuda.amp.GradScaler
# Whether the counter of multiply-adds sees convs in inference mode.
COUNTS_INFERENCE = torch.__version__ >= (2, 6)
# What tells torch.onnx.export to trace; whether torch.export takes axes of any size.
TRACED = {'dynamo': False} if torch.__version__ >= (2, 4) else {}
EXPORTS_FREE = torch.__version__ >= (2, 6)
# Whether torch.export programs can be compiled to packages of AOTInductor.
HAS_AOTINDUCTOR = torch.__version__ >= (2, 6)
# Whether torch.onnx.export takes names of free axes on its way through torch.export.
NAMES_AXES = torch.__version__ >= (2, 7)
# Whether its guarded loading lists the names that it does not know, and takes stand-ins for them.
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
