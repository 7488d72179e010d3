"""Configs in and out: read by path or ``package::`` name, written as a base plus a difference."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ....utils import optional
from ..runner_setup import read_config

optional.require('mmengine', 'mmcv')

from mmengine.config import Config

_MADE = '# Made by '


def load_config(source: str | os.PathLike) -> Config:
    """A config file, or ``mmdet::...`` / ``mmpretrain::...`` out of an installed package.

    Raises:
        FileNotFoundError: No such config. ImportError: The package is not installed.
        ValueError: It cannot be read.
    """
    return read_config(resolve(os.fspath(source)))


def refuse_python_style(source: str | os.PathLike) -> None:
    """Raise for a config that is a Python module: mmengine lets no text config inherit it.

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
    """The path of a config, with ``package::`` looked up among the installed packages."""
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
    """Write a config that inherits ``bases`` and holds the difference; it replaces no file by half.

    Args:
        out: File to write; folders are made.
        bases: Config files or ``package::`` names, none of which may share a key.
        change: Top-level keys and values that differ.
        by: Who makes it, for the first line.
        accept: Called with the merged config before it is written; what it raises keeps the file
            from being written.

    Returns:
        The merged config, read back from what was written.

    Raises:
        ValueError, FileExistsError: As :func:`check_out`; nothing is written.
    """
    out = check_out(out, bases)
    out.parent.mkdir(parents=True, exist_ok=True)
    names = [base_name(base, out.parent) for base in bases]
    lines = [made_by(by, bases[0]), f'_base_ = {names if len(names) > 1 else names[0]!r}']
    lines.append(Config(change).pretty_text)
    # Beside it, as what it inherits is named from there; a config's name ends in .py.
    partial = out.with_name(f'.{out.stem}_{os.getpid()}.py')
    try:
        partial.write_text('\n'.join(lines))
        cfg = Config.fromfile(partial)
        if accept:
            accept(cfg)
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
    return Config.fromfile(out)


def made_by(tool: str, source: str) -> str:
    """First line of a config that a tool may write anew."""
    return f'{_MADE}{tool} from {source}'


def check_out(out: str | os.PathLike, bases: Sequence[str]) -> Path:
    """Where a config that inherits ``bases`` may go.

    Raises:
        ValueError: ``out`` is no name of a config, or one that it would inherit; one of ``bases``
            is no text. FileExistsError: It is there, and no tool of ours made it.
    """
    out = Path(out)
    if out.suffix != '.py':
        raise ValueError(f'a config ends in .py, got {str(out)!r}')
    for base in bases:
        if out.resolve() in _inherited(base):
            raise ValueError(f'{out} would inherit itself; give another file with -o')
        refuse_python_style(base)
    if out.exists() and not (out.is_file() and out.read_bytes().startswith(_MADE.encode())):
        raise FileExistsError(
            f'{out} is there, and not made by this tool; move it, or give another file with -o'
        )
    return out


def _inherited(base: str) -> set[Path]:
    """A config and all that it inherits; mmengine's text of it has their paths on lines of own."""
    lines = load_config(base).text.splitlines()
    return {Path(line).resolve() for line in lines if os.path.isabs(line)}


def base_name(base: str, folder: Path) -> str:
    """How a config in ``folder`` names another that it inherits."""
    if '::' in base:
        return base
    return Path(os.path.relpath(Path(base).resolve(), folder.resolve())).as_posix()
