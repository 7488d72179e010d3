"""The quickstart's detector: a small RetinaNet with GhostNet 0.5x, our data, our schedule."""

from pathlib import Path

RETINANET = 'models/retinanet_small.py'
PARTS = ('datasets/digits_detection.py', 'schedules/adamw.py', 'runtime_detection.py')


def arguments(out: Path) -> list[object]:
    """What ``swap_backbone.py`` is called with to write the config ``out``."""
    source, *parts = [f'configs/_base_/{part}' for part in (RETINANET, *PARTS)]
    return [source, '--width', 0.5, '--with', *parts, '-o', out]
