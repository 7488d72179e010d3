"""Checkpoints that a killed run leaves whole, and those of other libraries."""

import os
from typing import Any

from torch import nn

from ...registry import HOOKS
from ...utils import optional
from ...utils.atomic_io import atomic_write
from ...weights import LoadReport, load_weights

optional.require('mmengine')

from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook
from mmengine.runner import CheckpointLoader

_NAME = 'ghost_plugin_whole_files'


class WholeFiles(LocalBackend):
    """Local files that stand under their names only when all of them is on the disk."""

    def put(self, obj: bytes, filepath: str | os.PathLike) -> None:
        """Write bytes; killed in the middle it leaves what was there before."""
        with atomic_write(filepath) as partial:
            partial.write_bytes(obj)


register_backend(_NAME, WholeFiles, force=True)


@HOOKS.register_module(force=True)
class WholeCheckpointHook(CheckpointHook):
    """MMEngine's CheckpointHook; a run that is killed while it saves leaves no half a file.

    Args:
        max_keep_ckpts: As in MMEngine, but never only one: the old one is removed before the new
            one is written.
        backend_args: Of another file backend, as in MMEngine, which then answers for its files.
        kwargs: As MMEngine's.
    """

    def __init__(
        self, *args: Any, max_keep_ckpts: int = -1, backend_args: dict | None = None, **kwargs: Any
    ) -> None:
        keep = 2 if max_keep_ckpts == 1 else max_keep_ckpts
        if backend_args is None and '://' not in str(kwargs.get('out_dir')):
            backend_args = {'backend': _NAME}
        super().__init__(*args, max_keep_ckpts=keep, backend_args=backend_args, **kwargs)


def load_fitting(model: nn.Module, source: str) -> LoadReport:
    """Load what fits of a checkpoint by :func:`ghost_plugin.load_weights`.

    Args:
        model: Any.
        source: File, or an address as everywhere in OpenMMLab.

    Raises:
        ValueError: As ``load_weights``.
    """
    local = os.path.isfile(source)
    content = source if local else CheckpointLoader.load_checkpoint(source, map_location='cpu')
    return load_weights(model, content, strict=False)
