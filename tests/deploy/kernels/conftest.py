"""Triton kernels run in Triton's interpreter where there is no GPU."""

import os
from importlib.util import find_spec

import torch

# Triton reads the variable when the kernels are defined, so this comes before any other import of
# the module.
if find_spec('triton') and hasattr(torch.library, 'triton_op') and not torch.cuda.is_available():
    os.environ['TRITON_INTERPRET'] = '1'
    from ghost_plugin.deploy.kernels import triton_modules  # noqa: F401

    del os.environ['TRITON_INTERPRET']
