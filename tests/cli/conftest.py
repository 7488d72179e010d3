"""Commands run in this process."""

import os
import sys

import pytest

from ghost_plugin.cli.main import main


@pytest.fixture
def cli(monkeypatch, capsys):
    """Run ``ghost-plugin`` in this process: exit status, standard output, standard error."""
    monkeypatch.setattr(os, 'dup2', lambda *args: None)  # the error stream is pytest's
    monkeypatch.setattr(sys, 'excepthook', sys.excepthook)
    monkeypatch.setenv('GHOST_DEBUG', '')

    def call(*args, **options):
        capsys.readouterr()
        try:
            main([str(arg) for arg in args], **options)
            status = 0
        except SystemExit as leaving:
            status = leaving.code or 0
        return status, *capsys.readouterr()

    return call


@pytest.fixture
def ok(cli):
    """Run a command that succeeds; its standard output."""

    def call(*args, **options):
        status, out, err = cli(*args, **options)
        assert status == 0, err
        return out

    return call


@pytest.fixture
def refused(cli):
    """Run a command that ends with one line on standard error; that line."""

    def call(*args, **options):
        status, out, err = cli(*args, **options)
        lines = err.splitlines()
        assert (status, out, len(lines)) == (2, '', 1), (status, out, err)
        assert lines[0].startswith('error: ')
        return lines[0]

    return call


@pytest.fixture
def environ(monkeypatch):
    """Variables that the commands set are removed again."""
    for name in ('LOCAL_RANK', 'TORCH_FORCE_WEIGHTS_ONLY_LOAD'):
        monkeypatch.setenv(name, os.environ.get(name, ''))
        monkeypatch.delenv(name)
