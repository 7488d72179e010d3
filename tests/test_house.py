"""The house rules: who imports whom, what stands at the top level."""

import ast
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / 'ghost_plugin'
FILES = sorted(PACKAGE.rglob('*.py'))
# Packages and modules of the top level, and what each may import, itself besides.
ARROWS = {
    '_version': set(),
    'utils': set(),
    'specs': set(),
    'profiling': {'utils'},
    'layers': {'utils'},
    'graph': {'layers', 'utils'},
    'backbones': {'layers', 'specs', 'utils'},
    'weights': {'specs', 'utils'},
    'conversion': {'graph', 'layers', 'profiling', 'utils', 'weights', '_version'},
    'distillation': {'layers', 'profiling', 'utils'},
    'deploy': {'graph', 'layers', 'profiling', 'utils'},
    'training': {'conversion', 'distillation', 'deploy', 'layers', 'profiling', 'utils'},
    'registry': {'utils'},
}
# These import from everywhere.
OPEN = {'__init__', 'integrations', 'cli'}
FRAMEWORKS = {'timm', 'mmengine', 'mmcv', 'mmdet', 'mmpretrain'}


def imports(path):
    """(package-relative rooms, other top-level packages) that a file imports."""
    rooms, others = set(), set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            others |= {alias.name.split('.')[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            others.add(node.module.split('.')[0])
        elif isinstance(node, ast.ImportFrom):
            here = path.relative_to(PACKAGE).parts[: -node.level]
            target = (*here, *(node.module or '').split('.')) if node.module else here
            rooms |= {target[0]} if target else {alias.name for alias in node.names}
    return rooms, others


def room(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix('.py')


@pytest.mark.parametrize('path', FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_arrows(path):
    rooms, others = imports(path)
    assert 'ghost_plugin' not in others, 'imports inside the package are relative'
    if room(path) in OPEN:
        return
    assert rooms <= ARROWS[room(path)] | {room(path)}
    if room(path) not in ('registry', 'training'):
        assert not others & FRAMEWORKS


@pytest.mark.parametrize('path', FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_file_says_what_it_is_for(path):
    assert (
        ast.get_docstring(ast.parse(path.read_text()))
        or not path.read_text()
        or path.stem == '_version'
    )


def test_top_level_holds_six_entries():
    listed = subprocess.run(['git', 'ls-files'], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode or not listed.stdout:
        pytest.skip('not a git checkout')
    top = {line.split('/')[0] for line in listed.stdout.splitlines()}
    assert {name for name in top if not name.startswith('.')} == {
        'pyproject.toml', 'README.md', 'ghost_plugin', 'configs', 'tools', 'tests'
    }  # fmt: skip
