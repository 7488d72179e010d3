"""Checkpoints that a killed run leaves complete, and checkpoints of other libraries."""

import os
from typing import Any

from torch import nn

from ...registry import HOOKS, register_old_name
from ...utils import optional
from ...utils.atomic_io import atomic_write
from ...weights import LoadReport, load_weights

optional.require('mmengine')

from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook
from mmengine.runner import CheckpointLoader

BACKEND_NAME = 'ghost_plugin_whole_files'


class AtomicBackend(LocalBackend):
    """Local files that appear under their names only when they are complete on the disk."""

    def put(self, obj: bytes, filepath: str | os.PathLike) -> None:
        """Write a file; a process that is killed meanwhile leaves the file that was there before.

        Args:
            obj: Content.
            filepath: File to write.
        """
        with atomic_write(filepath) as partial:
            partial.write_bytes(obj)


register_backend(BACKEND_NAME, AtomicBackend, force=True)


@HOOKS.register_module(force=True)
class AtomicCheckpointHook(CheckpointHook):
    """MMEngine's CheckpointHook with atomic writes: a killed run leaves no incomplete file.

    Args:
        max_keep_ckpts: As in MMEngine, but at least 2: the old one is removed before the new one
            is written.
        backend_args: Another file backend, as in MMEngine; its writes are not made atomic.
        kwargs: As MMEngine's.
    """

    def __init__(
        self, *args: Any, max_keep_ckpts: int = -1, backend_args: dict | None = None, **kwargs: Any
    ) -> None:
        keep = 2 if max_keep_ckpts == 1 else max_keep_ckpts
        if backend_args is None and '://' not in str(kwargs.get('out_dir')):
            backend_args = {'backend': BACKEND_NAME}
        super().__init__(*args, max_keep_ckpts=keep, backend_args=backend_args, **kwargs)


register_old_name(HOOKS, 'WholeCheckpointHook', AtomicCheckpointHook)


def load_matching(model: nn.Module, source: str) -> LoadReport:
    """Load the matching tensors of a checkpoint by :func:`ghost_plugin.load_weights`.

    Args:
        model: Any model.
        source: File, or an address as everywhere in OpenMMLab.

    Raises:
        ValueError: As ``load_weights``.
    """
    local = os.path.isfile(source)
    content = source if local else CheckpointLoader.load_checkpoint(source, map_location='cpu')
    return load_weights(model, content, strict=False)
