"""Tables that are read from the code: models, options, reason codes, backends, commands."""

import argparse
import importlib
import inspect
import re
from collections.abc import Callable
from typing import Any

import timm
import torch

import ghost_plugin as gp
from ghost_plugin.cli.main import COMMANDS
from ghost_plugin.cli.options import Parser
from ghost_plugin.cli.terminal import table
from ghost_plugin.conversion.reasons import FINAL, REASONS
from ghost_plugin.deploy.backends import ROWS
from ghost_plugin.deploy.profiles import PROFILES, REWRITES
from ghost_plugin.weights import ALL_PUBLISHED, PUBLISHED

_ARCHITECTURES = {
    '': 'GhostNet',
    'v2': 'GhostNetV2',
    'v3': 'GhostNetV3',
    'gghost': 'G-Ghost RegNet',
    'rep': 'RepGhostNet',
}
# The network that ours were compared with, from equal weights made by formula, by origin.
_CHECKS = {
    'timm': "timm's network",
    'the authors': "the authors' network",
    'PaddleClas': "timm's network",
    'pdparams': "PaddleClas's network",
}
# What to do about a reason, where there is something.
_REMEDIES = {
    'first': '`keep_first=False`, or name it in `include`',
    'last': '`keep_last=False`, or name it in `include`',
    'not_included': 'widen `include`',
    'excluded': 'narrow `exclude`',
    'no_gain': 'a smaller `dw_size` or a larger `ratio`',
    'groups': 'another ratio',
    'group_size': '`group_size=1`, also by `include`',
    'parametrized': 'remove the parametrization, `prune.remove`',
    'hooks': 'remove the hooks',
    'held': 'use `nn.ModuleList` or `nn.ModuleDict`',
    'budget': 'a smaller budget',
    'no_gradient': 'set its ratio by `include`',
    'slower': 'none: it is faster dense',
    'unused': 'an example input that reaches it',
}


def model_title(name: str) -> str:
    """Name a registered timm model in words.

    >>> model_title('ghostnet_plugin_v2_130')
    'GhostNetV2 1.3x'
    """
    kind, _, size = name.removeprefix('ghostnet_plugin').removeprefix('_').rpartition('_')
    if kind == 'gghost':
        return f'{_ARCHITECTURES[kind]} {size}'
    return f'{_ARCHITECTURES[kind]} {f"{int(size or 100) / 100:.2f}".removesuffix("0")}x'


def models() -> str:
    """All registered models: parameters, multiply-adds, accuracy and source of the weights."""
    rows = []
    order = list(_ARCHITECTURES)
    names = timm.list_models('ghostnet_plugin*')
    names.sort(key=lambda name: (order.index(_kind(name)), _size(name)))
    for name in names:
        model = timm.create_model(name).eval()
        image = torch.zeros(1, 3, 224, 224)
        costs = [gp.count(net, image) for net in (model, gp.fuse(model))]
        plain, fused = (f'{cost.params:,}, {cost.macs / 1e6:.2f}' for cost in costs)
        top1, top5, source = '', '', ''
        if name in PUBLISHED:
            row = PUBLISHED[name]
            top1, top5 = f'{row.top1:g}', '' if row.top5 is None else f'{row.top5:g}'
            source = f'`{row.source}`'
            if '://' in row.source:
                source = f"the authors' [`{row.source.split('/')[-1]}`]({row.source})"
        rows.append([model_title(name), plain, fused, top1, top5, f'`{name}`', source])
    head = ['Model', 'Params, MACs (M)', 'after `gp.fuse`', 'Top-1 (%)', 'Top-5 (%)', 'timm name',
            'Weights']  # fmt: skip
    return table(head, rows)


def weights() -> str:
    """All published sets of weights: source, accuracy, licence, and what was compared."""
    rows = []
    for name, row in ALL_PUBLISHED:
        source = row.source.rpartition('/')[2] if '://' in row.source else row.source
        link = f'[`{source}`]({row.source})' if '://' in row.source else f'`{source}`'
        top5 = '' if row.top5 is None else f'{row.top5:g}'
        checked = _CHECKS.get(row.measured, '')
        if 'pdparams' in row.source:
            checked = _CHECKS['pdparams']
        rows.append([f'`{name}.{row.tag}`', link, f'{row.top1:g}', top5, row.measured, row.license,
                     checked])  # fmt: skip
    head = ['timm name and tag', 'File', 'Top-1 (%)', 'Top-5 (%)', 'Measured by', 'Licence',
            'Outputs compared with']  # fmt: skip
    return table(head, rows)


def _kind(name: str) -> str:
    return name.removeprefix('ghostnet_plugin').removeprefix('_').rpartition('_')[0]


def _size(name: str) -> int:
    size = name.rpartition('_')[2]
    return int(size) if size.isdigit() else 100


def reasons() -> str:
    """Reason codes of kept convs."""
    rows = [
        [f'`{code}`', text, 'no' if code in FINAL else 'yes', _REMEDIES.get(code, '')]
        for code, text in REASONS.items()
    ]
    return table(['Code', 'Meaning', 'Editable', 'Remedy'], rows)


def backends() -> str:
    """Backends of ``gp.optimize``."""
    rows: dict[str, list[str]] = {}
    for row in ROWS:
        if row.split_concat:
            rows[row.name][-1] = 'yes'
        else:
            device = {'': 'any', 'cpu': 'CPU', 'cuda': 'GPU'}[row.device]
            packages = ', '.join(row.needs) or 'torch'
            rows[row.name] = [f'`{row.name}`', row.dtype, device, packages, '']
    head = ['Backend', 'dtype', 'Device', 'Needs', 'Also with `split_concat`']
    return table(head, list(rows.values()))


def profiles() -> str:
    """Profiles of ``gp.export``."""
    rows = [
        [f'`{row.name}`', f'[{row.compiler}]({row.source})', str(row.opset),
         ', '.join(f'`{name}`' for name in sorted(REWRITES) if name not in row.operators)]
        for row in PROFILES.values()
    ]  # fmt: skip
    return table(['Profile', 'Written for', 'Opset', 'Rewritten'], rows)


def options(function: Callable[..., Any]) -> str:
    """Arguments of a function with their defaults, from its signature and its docstring."""
    parameters = inspect.signature(function).parameters
    rows = []
    for names, text in _documented(function):
        defaults = [parameters[name].default for name in names]
        if inspect.Parameter.empty in defaults or text.startswith('Deprecated'):
            continue
        calls = ', '.join(
            f'`{name}={default!r}`' for name, default in zip(names, defaults, strict=True)
        )
        rows.append([calls, text])
    return table(['Option and default', 'Effect'], rows)


def _documented(function: Callable[..., Any]) -> list[tuple[list[str], str]]:
    """Names and description of each entry of a docstring's ``Args:``."""
    doc = inspect.cleandoc(function.__doc__ or '')
    section = re.search(r'^Args:\n(.*?)(?=^\w|\Z)', doc, re.DOTALL | re.MULTILINE)
    entries = re.findall(r'^ {4}(?! )(.*(?:\n {5,}.*|\n$)*)', section[1] if section else '', re.M)
    found = []
    for entry in entries:
        names, _, text = ' '.join(entry.split()).partition(': ')
        text = re.sub(r':\w+:`~?([^`]+)`', lambda m: f'`{m[1].split("ghost_plugin.")[-1]}`', text)
        text = text.replace('``', '`').replace('|', '\\|')
        found.append((names.split(', '), text[:1].upper() + text[1:]))
    return found


def commands() -> str:
    """One line for each command."""
    return table(
        ['Command', 'Use it to'],
        [[f'[`{name}`](#{name})', text] for name, (_, text) in COMMANDS.items()],
    )


def command_examples() -> str:
    """One line and one example for each command."""
    rows = []
    for name, (module, text) in COMMANDS.items():
        example = 'ghost-plugin run train.py --model ghostnet_plugin_050'
        if name != 'run':
            found = importlib.import_module(f'ghost_plugin.cli.{module}').COMMANDS[name].examples
            example = re.sub(r'\\\n\s*', '', found.strip()).splitlines()[0]
        rows.append([f'[`{name}`](../ghost_plugin/cli/README.md#{name})', text, f'`{example}`'])
    return table(['Command', 'Use it to', 'Example'], rows)


def command_options() -> str:
    """A section for each command: examples and options, as ``--help`` shows them."""
    return '\n\n'.join(
        _command_section(name, text) for name, (_, text) in COMMANDS.items() if name != 'run'
    )


def _command_section(name: str, text: str) -> str:
    module = importlib.import_module(f'ghost_plugin.cli.{COMMANDS[name][0]}')
    command = module.COMMANDS[name]
    parser = Parser(prog=f'ghost-plugin {name}')
    command.add_options(parser)
    rows = []
    for action in parser._actions:
        if action.help == argparse.SUPPRESS or isinstance(action, argparse._HelpAction):
            continue
        flags = ', '.join(f'`{flag}`' for flag in action.option_strings)
        shown = (action.help or '') % {'default': action.default, 'prog': parser.prog}
        if action.choices:
            shown += f': {", ".join(map(str, action.choices))}'
        rows.append([flags or f'`{action.metavar or action.dest}`', shown.replace('|', '\\|')])
    lines = [f'### {name}', '', f'{text[:1].upper()}{text[1:]}.', '']
    examples = command.examples.strip()
    return '\n'.join([*lines, '```bash', examples, '```', '', table(['Argument', 'Meaning'], rows)])


BLOCKS: dict[str, Callable[[], str]] = {
    'models': models,
    'weights': weights,
    'reasons': reasons,
    'backends': backends,
    'profiles': profiles,
    'commands': commands,
    'commands-example': command_examples,
    'command-options': command_options,
    'options-plan': lambda: options(gp.plan),
    'options-apply': lambda: options(gp.ConversionPlan.apply),
    'options-export': lambda: options(gp.export),
    'options-optimize': lambda: options(gp.optimize),
    'options-quantize': lambda: options(gp.quantize),
}
