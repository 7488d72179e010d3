"""Tools run in this process, as their tests want it."""

import functools
import importlib
import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / 'tools'))


@pytest.fixture
def in_process(monkeypatch, capsys):
    """Run a tool in this process: exit status, standard output, standard error."""
    monkeypatch.setattr(os, 'dup2', lambda *args: None)  # the error stream is pytest's
    monkeypatch.setattr(sys, 'excepthook', sys.excepthook)

    def call(name, *args):
        tool = importlib.import_module(name)
        monkeypatch.setattr(sys, 'argv', [f'{name}.py', *map(str, args)])
        try:
            tool.main()
            status = 0
        except SystemExit as leaving:
            status = leaving.code or 0
        return status, *capsys.readouterr()

    return call


@pytest.fixture
def run(in_process):
    """convert.py run so."""
    return functools.partial(in_process, 'convert')


@pytest.fixture
def ok(run):
    def call(*args):
        status, out, err = run(*args)
        assert status == 0, err
        return out

    return call


@pytest.fixture
def refused(run):
    def call(*args):
        status, out, err = run(*args)
        lines = err.splitlines()
        assert (status, out, len(lines)) == (2, '', 1), (status, out, err)
        assert lines[0].startswith('error: ')
        return lines[0]

    return call
