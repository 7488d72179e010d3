"""Kinds of options, and a parser that says what is wrong in one line."""

import argparse
import math
import re
from pathlib import Path
from typing import NoReturn

import torch

from ..utils.atomic_io import check_writable
from .errors import fail


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, as every tool here does."""

    def error(self, message: str) -> NoReturn:
        fail(message)


def amount(text: str) -> float | str:
    """A share of the whole (0.6) or a number, also with a unit (240M), as gp.plan takes it."""
    match = re.fullmatch(r'(\d+\.?\d*|\.\d+)([kmg]?)', text.strip().lower())
    value = float(match[1]) if match else math.nan
    if not value > 0 or (not match[2] and value > 1 and value != round(value)):
        raise argparse.ArgumentTypeError(f'{text!r} is neither a share (0.6) nor a number (240M)')
    if match[2]:
        return match[1] + {'k': 'k', 'm': 'M', 'g': 'G'}[match[2]]
    return value if value <= 1 else f'{value / 1000:.15g}k'


def milliseconds(text: str) -> float | str:
    """A share of the whole (0.6), or milliseconds (12, 12ms), as gp.plan takes it."""
    bare = text.strip().lower().removesuffix('ms')
    try:
        value = float(bare)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f'{text!r} is neither a share (0.6) nor a time (12ms)')
    return value if value <= 1 and bare == text.strip() else f'{value:.15g}ms'


def whole(text: str) -> int:
    """A whole number above 0."""
    if not text.isdigit() or int(text) < 1:
        hint = '' if text.lstrip('-').isdigit() else '; options of several values go last'
        raise argparse.ArgumentTypeError(f'{text!r} is not a whole number above 0{hint}')
    return int(text)


def above(text: str) -> float:
    """A number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f'{text!r} is not a number above 0')
    return value


def ratio(text: str) -> float | int:
    """A number above 0, whole where it is written so."""
    value = above(text)
    return int(value) if value == int(value) else value


def target(text: str) -> Path:
    """A file that can be written, now rather than after the work."""
    check_writable(text)
    return Path(text)


def device(name: str | None) -> str:
    """A device that is there; without a name a GPU where there is one."""
    known = 'cuda' if torch.cuda.is_available() else 'cpu'
    try:
        torch.empty(0, device=name or known)
    except (RuntimeError, AssertionError):  # the latter where torch was built without it
        fail(f'no device {name!r} here; there is {known}')
    return name or known
