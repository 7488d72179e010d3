"""A config that inherits another and trains its model converted: written beside its plan."""

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

# Both files move together: mmengine puts the config's own folder in.
_HERE = '{{ fileDirname }}'


def write_converted(
    out: str | os.PathLike,
    source: str,
    plan: ConversionPlan,
    model: nn.Module | None = None,
) -> list[Path]:
    """Write ``OUT.py`` that inherits a config, and ``OUT.plan.json`` that it builds its model by.

    Args:
        out: Config to write, ends in ``.py``.
        source: The config that was planned: a file, or ``mmdet::...`` / ``mmpretrain::...``.
        plan: Made for its model.
        model: Converted, whose weights go into ``OUT.pth``, where the config loads them from.

    Returns:
        The files.

    Raises:
        ValueError, FileExistsError: ``out`` may not go there, see ``swap.files.check_out``.
    """
    out = check_out(out, [source])
    names = {'plan': out.with_suffix('.plan.json')}
    plan.save(names['plan'])
    if model is not None:
        names['weights'] = out.with_suffix('.pth')
        save({'state_dict': model.state_dict()}, names['weights'])
    with atomic_write(out) as partial:
        partial.write_text(_text(source, out, names))
    Config.fromfile(out)
    return [out, *names.values()]


def check_files(out: Path, source: str, checkpoint: str | os.PathLike | None) -> None:
    """Refuse names that :func:`write_converted` may not write to, before the work.

    Raises:
        ValueError, FileExistsError: As there; the weights would replace ``checkpoint``.
    """
    weights = check_out(out, [source]).with_suffix('.pth')
    if checkpoint and weights.resolve() == Path(checkpoint).resolve():
        raise ValueError(f'the weights would replace {checkpoint}; give another name with -o')


def _text(source: str, out: Path, names: dict[str, Path]) -> str:
    lines = [
        made_by('tools/convert.py', source),
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
    return '\n'.join([*lines, ''])
