"""Where the versions of torch from 2.1 on differ; the newest does all of it by itself."""

import torch

is_compiling = getattr(torch.compiler, 'is_compiling', None) or torch._utils.is_compiling
# Whether a device has autocast; older versions know it of these.
has_autocast = getattr(torch.amp, 'is_autocast_available', ('cpu', 'cuda').__contains__)
GradScaler = getattr(torch.amp, 'GradScaler', None) or torch.cuda.amp.GradScaler
# Whether the counter of multiply-adds sees convs in inference mode.
COUNTS_INFERENCE = torch.__version__ >= (2, 6)
# What tells torch.onnx.export to trace; whether torch.export takes axes of any size.
TRACED = {'dynamo': False} if torch.__version__ >= (2, 4) else {}
EXPORTS_FREE = torch.__version__ >= (2, 6)
# Whether torch.onnx.export takes names of free axes on its way through torch.export.
NAMES_AXES = torch.__version__ >= (2, 7)
# Whether its guarded loading lists the names that it does not know, and takes stand-ins for them.
LISTS_NAMES = hasattr(torch.serialization, 'get_unsafe_globals_in_checkpoint')
