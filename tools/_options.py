"""Kinds of options, and a parser that says what is wrong in one line."""

import argparse
import math
import re
from typing import NoReturn

import torch
from _cli import fail

_UNITS = {'': 1, 'k': 1e3, 'm': 1e6, 'g': 1e9}


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, as every tool here does."""

    def error(self, message: str) -> NoReturn:
        fail(message)


def amount(text: str) -> float | int:
    """A share of the whole (0.6) or a number with or without a unit (240M)."""
    match = re.fullmatch(r'(\d+\.?\d*|\.\d+)([kmg]?)', text.strip().lower())
    value = float(match[1]) * _UNITS[match[2]] if match else math.nan
    if not value > 0 or (value > 1 and value != round(value)):
        raise argparse.ArgumentTypeError(f'{text!r} is neither a share (0.6) nor a number (240M)')
    return value if value <= 1 and not match[2] else round(value)


def milliseconds(text: str) -> float:
    """A share of the whole (0.6) or milliseconds (12, 12ms)."""
    try:
        value = float(text.strip().lower().removesuffix('ms'))
    except ValueError:
        value = math.nan
    if not value > 0:
        raise argparse.ArgumentTypeError(f'{text!r} is neither a share (0.6) nor a time (12ms)')
    return value


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


def device(name: str | None) -> str:
    """A device that is there; without a name a GPU where there is one."""
    known = 'cuda' if torch.cuda.is_available() else 'cpu'
    try:
        torch.empty(0, device=name or known)
    except (RuntimeError, AssertionError):  # the latter where torch was built without it
        fail(f'no device {name!r} here; there is {known}')
    return name or known
