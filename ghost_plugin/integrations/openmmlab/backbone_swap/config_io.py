"""Read configs by path or ``package::`` name, and write them as bases plus a difference."""

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ....utils import optional
from ..runner_setup import FORKS, read_config

optional.require('mmengine', 'mmcv')

from mmengine.config import Config

_MADE = '# Made by '


def load_config(source: str | os.PathLike) -> Config:
    """Read a config file, or ``mmdet::...`` / ``mmpretrain::...`` of an installed package.

    Raises:
        FileNotFoundError: No such config.
        ImportError: The package is not installed.
        ValueError: It cannot be read.
    """
    return read_config(resolve(os.fspath(source)))


def refuse_python_style(source: str | os.PathLike) -> None:
    """Raise for a config in mmengine's Python style, which no text config can inherit.

    Raises:
        ValueError: The config uses ``read_base()`` or imports what it names.
    """
    path = resolve(os.fspath(source))
    if Config._is_lazy_import(path):
        raise ValueError(
            f'{os.fspath(source)} is written in the Python style, which no text config can '
            f"inherit; write it as text with Config.fromfile({path!r}).dump('plain.py') and "
            'give plain.py'
        )


def resolve(source: str) -> str:
    """Find the path of a config; ``package::`` is searched in the installed packages."""
    if '::' not in source:
        return source
    try:
        return Config._get_cfg_path(source, '')[0]
    except (ValueError, OSError, AssertionError) as error:
        raise FileNotFoundError(
            f'no config {source!r} in an installed package; a name such as '
            "'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py' is wanted"
        ) from error


def write_config(
    out: str | os.PathLike,
    bases: Sequence[str],
    change: dict[str, Any],
    by: str = 'ghost_plugin',
    accept: Callable[[Config], None] | None = None,
) -> Config:
    """Write a config that inherits ``bases`` and holds the difference, in one atomic step.

    Args:
        out: File to write; folders are made.
        bases: Config files or ``package::`` names, none of which may share a key.
        change: Top-level keys and values that differ.
        by: Name of the tool, for the first line.
        accept: Called with the merged config; nothing is written if it raises.

    Returns:
        The merged config, read back from what was written.

    Raises:
        ValueError, FileExistsError: As :func:`check_out`, or two bases set the same key; nothing
            is written.
    """
    out = check_out(out, bases)
    out.parent.mkdir(parents=True, exist_ok=True)
    names = [base_name(base, out.parent) for base in bases]
    lines = [made_by(by, bases[0]), f'_base_ = {names if len(names) > 1 else names[0]!r}']
    lines.append(Config(change).pretty_text)
    # In the same folder, since relative bases start there; mmengine wants the suffix .py.
    partial = out.with_name(f'.{out.stem}_{os.getpid()}.py')
    try:
        partial.write_text('\n'.join(lines))
        cfg = _read_merged(partial)
        if accept:
            accept(cfg)
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
    return Config.fromfile(out)


def _read_merged(path: Path) -> Config:
    try:
        return Config.fromfile(path)
    except KeyError as error:
        if 'Duplicate key' not in str(error):
            raise
        keys = ', '.join(sorted(re.findall("'([^']+)'", str(error))))
        raise ValueError(
            f'several of the configs to inherit set {keys}; change these in a config that '
            f'inherits the new one, or start from a config without them'
        ) from error


def made_by(tool: str, source: str) -> str:
    """First line of a config that a tool may overwrite.

    Args:
        tool: Name of the tool.
        source: Config that it started from.
    """
    return f'{_MADE}{tool} from {source}'


def check_out(out: str | os.PathLike, bases: Sequence[str]) -> Path:
    """Check that a config may be written to a path, and return the path.

    Args:
        out: File to write.
        bases: Config files or ``package::`` names that it inherits.

    Raises:
        ValueError: ``out`` does not end in .py or is among what it inherits; a base is in the
            Python style.
        FileExistsError: The file exists and no tool of this package wrote it.
    """
    out = Path(out)
    if out.suffix != '.py':
        raise ValueError(f'a config ends in .py, got {str(out)!r}')
    for base in bases:
        # mmengine's text of a config has the paths of all that it inherits on separate lines.
        lines = load_config(base).text.splitlines()
        if out.resolve() in {Path(line).resolve() for line in lines if os.path.isabs(line)}:
            raise ValueError(f'{out} would inherit itself; give another file with -o')
        refuse_python_style(base)
    if out.exists() and not (out.is_file() and out.read_bytes().startswith(_MADE.encode())):
        raise FileExistsError(
            f'{out} exists and was not made by this tool; move it, or give another file with -o'
        )
    return out


def base_name(base: str, folder: Path) -> str:
    """The name of a base as a config in ``folder`` has to write it.

    Args:
        base: File or ``package::`` name.
        folder: Folder of the config that inherits it.
    """
    if '::' in base and base.partition('::')[0] not in FORKS:
        return base
    base = resolve(base)  # MMEngine itself does not find the configs of forks by name
    return Path(os.path.relpath(Path(base).resolve(), folder.resolve())).as_posix()
