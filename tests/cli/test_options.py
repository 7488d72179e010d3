"""Types of options, and former names of options."""

import pytest

from ghost_plugin.cli import options


@pytest.mark.parametrize(
    'kind, text, given',
    [
        ('amount', '0.6', 0.6),
        ('amount', '1', 1.0),
        ('amount', '1.5g', '1.5G'),
        ('amount', '.5k', '.5k'),
        ('amount', '30123456', '30123.456k'),
        ('milliseconds', '0.6', 0.6),
        ('milliseconds', '0.6ms', '0.6ms'),
        ('milliseconds', '12', '12ms'),
        ('ratio', '2.0', 2),
        ('ratio', '2.5', 2.5),
        ('group_size', '4', 4),
        ('group_size', 'all', 'all'),
    ],
)
def test_types(kind, text, given):
    value = getattr(options, kind)(text)
    assert (type(value), value) == (type(given), given)


@pytest.mark.parametrize('args', [['--free', 'batch'], ['--free=batch'], ['--dynamic', 'batch']])
def test_former_names_warn(args, capsys):
    parser = options.Parser()
    parser.add_argument('--dynamic')
    parser.rename('--free', '--dynamic')
    assert parser.parse_args(args).dynamic == 'batch'
    warned = 'warning: --free is called --dynamic now' in capsys.readouterr().err
    assert warned == args[0].startswith('--free')


def test_a_device_that_is_not_there_is_refused(capsys, monkeypatch):
    monkeypatch.setattr(options.fail.__globals__['os'], 'dup2', lambda *args: None)
    assert options.device('cpu') == 'cpu'
    with pytest.raises(SystemExit):
        options.device('abacus')
    assert "no device 'abacus' here" in capsys.readouterr().err
