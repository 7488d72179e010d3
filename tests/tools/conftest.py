"""Scripts run in this process."""

import importlib
import os
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / 'tools'
sys.path[:0] = [str(TOOLS / folder) for folder in ('', 'data', 'docs', 'studies')]


@pytest.fixture
def in_process(monkeypatch, capsys):
    """Run a script in this process: exit status, standard output, standard error."""
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
