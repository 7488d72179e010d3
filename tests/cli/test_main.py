"""The command line itself: help, commands by name, debugging, foreign scripts."""

import subprocess
import sys
from pathlib import Path

import pytest

from ghost_plugin import __version__
from ghost_plugin.cli.main import COMMANDS, usage

ROOT = Path(__file__).parents[2]
OPENMMLAB = {'swap', 'train', 'test'}


def test_usage_names_all_commands(ok):
    assert ok() == ok('--help') == usage() + '\n'
    assert all(f'  {name} ' in usage() for name in COMMANDS)
    assert ok('--version') == f'{__version__}\n'


@pytest.mark.parametrize('name', COMMANDS)
def test_help_has_examples(ok, name):
    if name in OPENMMLAB:
        pytest.importorskip('mmcv')
    if name == 'benchmark':
        pytest.importorskip('timm')
    out = ok(name, '--help')
    assert f'usage: ghost-plugin {name}' in out
    assert f'ghost-plugin {name} ' in out.split('examples:')[1]


def test_help_of_finetune_names_the_learning_rates(ok):
    out = ' '.join(ok('finetune', '--help').split())
    assert 'highest learning rate (sgd 0.05, adamw 0.001)' in out


def test_unknown_commands_are_refused_with_a_suggestion(refused):
    assert "no command 'plam'; did you mean plan?" in refused('plam')
    assert 'see --help' in refused('xyz')


def test_debug_shows_the_traceback(cli, tmp_path):
    with pytest.raises(FileNotFoundError):
        cli('report', tmp_path / 'none.json', '--debug')


def test_former_names_of_commands_warn(cli, tmp_path):
    status, _, err = cli('apply', 'timm:resnet18', tmp_path / 'none.json')
    assert status == 2 and err.startswith('warning: the command apply is called convert now\n')


def test_a_script_runs_with_our_models_registered(ok, tmp_path, monkeypatch):
    pytest.importorskip('timm')
    (tmp_path / 'script_helper.py').write_text('WORD = "beside"\n')
    script = tmp_path / 'script.py'
    script.write_text(
        'import sys, timm, script_helper\n'
        'if __name__ == "__main__":\n'
        '    model = timm.create_model(sys.argv[2], num_classes=7)\n'
        '    print(type(model).__name__, model.num_classes, sys.argv[1:], script_helper.WORD)\n'
    )
    monkeypatch.setattr(sys, 'argv', ['ghost-plugin'])
    monkeypatch.setattr(sys, 'path', list(sys.path))
    out = ok('run', script, '--model', 'ghostnet_plugin_050')
    assert "7 ['--model', 'ghostnet_plugin_050'] beside" in out


def test_a_script_that_is_not_there_is_named(refused, tmp_path):
    assert f"no script at '{tmp_path}/none.py'" in refused('run', tmp_path / 'none.py')


@pytest.mark.parametrize('command', [['-m', 'ghost_plugin.cli.main'], ['tools/convert.py']])
def test_errors_of_a_process_are_one_line(command, tmp_path):
    command = [sys.executable, *command, 'report', str(tmp_path / 'none.json')]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout) == (2, '')
    assert done.stderr.count('\n') == 1 and done.stderr.startswith('error: ')
