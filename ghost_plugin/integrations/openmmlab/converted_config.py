"""Write a config that inherits another and builds its model converted, next to its plan."""

import os
from pathlib import Path

from ...conversion import ConversionPlan
from ...utils import optional
from ...utils.atomic_io import atomic_write
from ...utils.checkpoint_io import save
from .backbone_swap.config_io import base_name, check_out, made_by

optional.require('mmengine', 'mmcv')

from mmengine.config import Config
from torch import nn

# mmengine replaces this by the folder of the config, so both files can be moved together.
_HERE = '{{ fileDirname }}'


def write_converted(
    out: str | os.PathLike,
    source: str,
    plan: ConversionPlan,
    model: nn.Module | None = None,
) -> list[Path]:
    """Write ``OUT.py`` that inherits a config, and the ``OUT.plan.json`` that it refers to.

    Args:
        out: Config to write, ends in ``.py``.
        source: The config that was planned: a file, or ``mmdet::...`` / ``mmpretrain::...``.
        plan: Plan for its model.
        model: Converted model; its weights go into ``OUT.pth``, which the config loads.

    Returns:
        The files.

    Raises:
        ValueError, FileExistsError: As ``backbone_swap.config_io.check_out``.
    """
    out = check_out(out, [source])
    names = {'plan': out.with_suffix('.plan.json')}
    plan.save(names['plan'])
    if model is not None:
        names['weights'] = out.with_suffix('.pth')
        save({'state_dict': model.state_dict()}, names['weights'])
    lines = [
        made_by('ghost-plugin convert', source),
        f'_base_ = {base_name(source, out.parent)!r}',
        '',
        'model = dict(',
        '    _delete_=True,',
        "    type='ghost_plugin.Converted',",
        '    model={{_base_.model}},',
        f"    plan='{_HERE}/{names['plan'].name}',",
        ')',
    ]
    if 'weights' in names:
        lines.append(f"load_from = '{_HERE}/{names['weights'].name}'")
    with atomic_write(out) as partial:
        partial.write_text('\n'.join([*lines, '']))
    Config.fromfile(out)
    return [out, *names.values()]


def check_files(out: Path, source: str, checkpoint: str | os.PathLike | None) -> None:
    """Check early that :func:`write_converted` may write its files.

    Args:
        out: Config to write.
        source: Config that it inherits.
        checkpoint: File that must not be replaced.

    Raises:
        ValueError, FileExistsError: It may not; the weights would replace ``checkpoint``.
    """
    weights = check_out(out, [source]).with_suffix('.pth')
    if checkpoint and weights.resolve() == Path(checkpoint).resolve():
        raise ValueError(f'the weights would replace {checkpoint}; give another name with -o')
