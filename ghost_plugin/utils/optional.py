"""Checks for optional packages by importing them, never by distribution name or version.

OpenMMLab's originals and its maintained forks share import names and differ in distribution
names, and an installed package may still be broken, so only an import is conclusive.
"""

import functools
import importlib

# Advice by import name.
PIP = {
    'timm': "pip install 'ghost_plugin[timm]'",
    'mmengine': "pip install 'ghost_plugin[openmmlab]'",
    'mmcv': "pip install 'ghost_plugin[openmmlab]' (mmcv-lite is enough for backbones)",
    'mmdet': "pip install 'ghost_plugin[openmmlab]'",
    'mmpretrain': "pip install 'ghost_plugin[openmmlab]'",
    'onnx': "pip install 'ghost_plugin[export]'",
    'onnxruntime': "pip install 'ghost_plugin[export]'",
    'onnxscript': "pip install 'ghost_plugin[export]'",
    'openvino': "pip install 'ghost_plugin[export]'",
    'ncnn': "pip install 'ghost_plugin[ncnn]'",
    'pnnx': "pip install 'ghost_plugin[ncnn]'",
    'litert_torch': "pip install 'ghost_plugin[litert]'",
    'ai_edge_litert': "pip install 'ghost_plugin[litert]'",
    'ai_edge_quantizer': "pip install 'ghost_plugin[litert]'",
    'executorch.exir': "pip install 'ghost_plugin[executorch]'",
    'executorch.runtime': "pip install 'ghost_plugin[executorch]'",
    'nncf': "pip install 'ghost_plugin[quantize]'",
    'torch_pruning': "pip install 'ghost_plugin[prune]'",
    'lightning': "pip install 'ghost_plugin[integrations]'",
    'torchvision': 'pip install torchvision',
    'matplotlib': 'pip install matplotlib',
    'PIL': 'pip install pillow',
    'sklearn': 'pip install scikit-learn',
}


@functools.cache
def failure(name: str) -> str:
    """Reason why ``import name`` fails, in one line; empty if it works."""
    try:
        importlib.import_module(name)
    except Exception as error:  # broken binaries raise RuntimeError, OSError, AttributeError, ...
        return f'{type(error).__name__}: {error}'.splitlines()[0]
    return ''


def usable(*names: str) -> bool:
    """True if all of ``names`` can be imported."""
    return not any(failure(name) for name in names)


def require(*names: str) -> None:
    """Raise an ImportError that says what is missing or broken, and what to install."""
    for name in names:
        reason = failure(name)
        if reason:
            hint = PIP.get(name, f'pip install {name}')
            raise ImportError(
                f'this needs {name}, which cannot be imported ({reason}); try: {hint}'
            )
