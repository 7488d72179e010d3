"""A swapped config as it is written to a file."""

from ghost_plugin.integrations.openmmlab.backbone_swap import (
    load_config,
    swap_backbone,
    write_config,
)

GHOST = 'ghost_plugin.GhostNet'


def swapped(source, folder, backbone=GHOST, backbone_args=None, **options):
    """The config of a swap as it was written, and the swap; GhostNet 0.5x by default."""
    args = {'width': 0.5} if backbone_args is None else backbone_args
    swap = swap_backbone(load_config(source), backbone, args, **options)
    return write_config(folder / 'mine.py', [source], swap.change), swap
