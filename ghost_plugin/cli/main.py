"""The command ``ghost-plugin``: runs subcommands and turns user errors into one line.

``ghost-plugin run SCRIPT ARGS`` runs another program, such as timm's ``train.py``, after this
package has registered its models.
"""

import importlib
import os
import runpy
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from .._version import __version__
from ..utils import optional
from .errors import fail, tool

# Module and description of each command. Modules are imported when they are needed.
COMMANDS = {
    'plan': ('convert', 'choose the convolutions to convert, and show the savings'),
    'convert': ('convert', 'convert a model, with the weights of the original'),
    'finetune': ('convert', 'train a converted model with the original as teacher'),
    'evaluate': ('convert', 'measure accuracy, parameters, multiply-adds and latency'),
    'report': ('convert', 'show a plan as a table or a plot'),
    'export': ('export', 'write ONNX, OpenVINO, TorchScript or torch.export files'),
    'optimize': ('export', 'find the fastest backend for a model on this machine'),
    'benchmark': ('benchmark', 'time models and backends against each other'),
    'swap': ('swap', 'put a GhostNet into a config of OpenMMLab'),
    'train': ('train', 'train an OpenMMLab config'),
    'test': ('train', 'test a checkpoint of an OpenMMLab config'),
    'run': ('main', 'run a script with the models of this package registered'),
}
_FORMER = {'apply': 'convert', 'config': 'convert'}


def usage() -> str:
    """The help text of the command line."""
    lines = [f'  {name:<10} {text}' for name, (_, text) in COMMANDS.items()]
    return '\n'.join(
        [
            'usage: ghost-plugin COMMAND [ARGS]', '', *lines, '',
            'ghost-plugin COMMAND --help shows options and examples, --debug the traceback of an '
            'error, --version the version.',
        ]
    )  # fmt: skip


def main(argv: Sequence[str] | None = None, default: str = '') -> None:
    """Run a command.

    Args:
        argv: Arguments without the name of the program; those of the process if None.
        default: Command to run if the first argument names none.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if '--debug' in argv and argv[0] != 'run':
        argv.remove('--debug')
        os.environ['GHOST_DEBUG'] = '1'
    if not argv or argv[0] in ('-h', '--help'):
        print(usage())
    elif argv[0] == '--version':
        print(__version__)
    else:
        name, argv = _command(argv, default)
        if name == 'run':
            run_script(argv)
        else:
            tool(lambda: _run_command(name, argv))()


def _command(argv: list[str], default: str) -> tuple[str, list[str]]:
    name, *rest = argv
    if name in _FORMER:
        print(f'warning: the command {name} is called {_FORMER[name]} now', file=sys.stderr)
        return _FORMER[name], rest
    if name in COMMANDS:
        return name, rest
    if default:
        return default, argv
    near = get_close_matches(name, COMMANDS)
    fail(f'no command {name!r}; ' + (f'did you mean {near[0]}?' if near else 'see --help'))


def _run_command(name: str, argv: list[str]) -> None:
    from .options import Parser

    module, text = COMMANDS[name]
    command = importlib.import_module(f'.{module}', __package__).COMMANDS[name]
    examples = '\n'.join(f'  {line}' for line in command.examples.strip().splitlines())
    parser = Parser(prog=f'ghost-plugin {name}', description=text, epilog=f'examples:\n{examples}')
    command.add_options(parser)
    parser.add_argument('--debug', action='store_true', help='show the traceback of an error')
    command.run(parser.parse_intermixed_args(argv))


def run_script(argv: Sequence[str]) -> None:
    """Run a Python script as ``__main__`` after our models are registered.

    Args:
        argv: Path of the script and its arguments.
    """
    if not argv or argv[0] in ('-h', '--help'):
        print(
            'usage: ghost-plugin run SCRIPT [ARGS]\n\nexamples:\n'
            '  ghost-plugin run train.py --model ghostnet_plugin_050 --data-dir images\n'
            '  torchrun -m ghost_plugin.cli.main run train.py --model ghostnet_plugin'
        )
        return
    script = Path(argv[0])
    if not script.is_file():
        fail(f'no script at {argv[0]!r}')
    if optional.usable('mmengine', 'mmcv'):
        importlib.import_module('ghost_plugin.integrations.openmmlab')
    sys.argv = [str(script), *argv[1:]]
    sys.path.insert(0, str(script.resolve().parent))
    runpy.run_path(str(script), run_name='__main__')


if __name__ == '__main__':
    main()
