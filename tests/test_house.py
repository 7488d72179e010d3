"""The house rules: who imports whom, what stands at the top level."""

import ast
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / 'ghost_plugin'
FILES = sorted(PACKAGE.rglob('*.py'))
# Rooms of the package and the rooms that each may import, itself besides.
ARROWS = {
    '_optional': set(),
    '_torch': set(),
    '_version': set(),
    '_files': set(),
    '_pickles': set(),
    '_reading': {'_pickles'},
    'specs': set(),
    'analysis': set(),
    'layers': set(),
    'backbones': {'layers', 'specs'},
    'weights': {'specs', '_reading'},
    'conversion': {'layers', 'analysis', '_files', '_version'},
    'distill': {'layers', 'analysis'},
    'deploy': {'layers', 'analysis', '_files'},
    'registry': set(),
}
# The front door and the doors to other frameworks import from everywhere.
OPEN = {'__init__', 'integrations'}
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
    assert rooms <= ARROWS[room(path)] | {room(path), '_optional', '_torch'}
    if room(path) != 'registry':
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
