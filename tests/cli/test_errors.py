"""User errors become one line."""

import pickle

import pytest

from ghost_plugin.cli import errors


@pytest.mark.parametrize(
    'error, line',
    [
        (ValueError('wrapped\n\n  the cause \n'), 'the cause'),
        (KeyError(), 'KeyError'),
        (pickle.UnpicklingError('use weights_only=False'), 'a checkpoint is damaged, or holds'),
    ],
)
def test_one_line(error, line):
    assert errors.one_line(error).startswith(line)


def test_a_bare_assertion_is_shown_by_its_code():
    with pytest.raises(AssertionError) as caught:
        exec(compile('assert 1 == 2', __file__, 'exec'))
    assert errors.one_line(caught.value).startswith('AssertionError: ')


def test_a_run_keeps_the_traceback_in_its_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(errors.os, 'dup2', lambda *args: None)
    with pytest.raises(SystemExit):
        try:
            raise ValueError('odd')
        except ValueError as error:
            errors.fail_in(tmp_path / 'run', error)
    assert f'error: odd (details: {tmp_path}/run/error.txt)' in capsys.readouterr().err
    assert 'ValueError: odd' in (tmp_path / 'run/error.txt').read_text()
