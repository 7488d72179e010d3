"""House rules: import directions, no shadowed modules, plain words, six top-level entries."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / 'ghost_plugin'
FILES = sorted(PACKAGE.rglob('*.py'))
# Packages and modules of the top level, and those that each may import beside itself.
MAY_IMPORT = {
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
ANYTHING = {'__init__', 'integrations', 'cli'}  # these import from everywhere
# Modules inside a package, and what they must not import.
MUST_NOT_IMPORT = {
    'conversion/surgery.py': {
        'conversion.fitting',
        'conversion.plan',
        'conversion.dense_checkpoints',
    },
    'conversion/fitting': {'conversion.plan', 'conversion.apply', 'conversion.api'},
}
FRAMEWORKS = {'timm', 'mmengine', 'mmcv', 'mmdet', 'mmpretrain', 'mmseg'}
# Standard terms replace these: image, preprocessing, integration, module, ... Names of old command
# line options stay, as strings.
ODD_WORDS = re.compile(
    r'\b(pictures?|convoys?|travell?ers?|set out|stations?|tour|halves|stored orders?|hangs? on|'
    r'doors?|rooms?|looks?(?! (?:at|up|like|for))|families|settle[sd]?|told|tells?|turns? round)\b',
    re.IGNORECASE,
)
FRAGMENTS = re.compile(r'(Of|That one|What|Whether|Who|How)\b')


def name(path):
    return path.relative_to(PACKAGE).as_posix()


def imports(path):
    """Modules of this package, by dotted names without its own, and other packages."""
    own, others = set(), set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            others |= {alias.name.split('.')[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            others.add(node.module.split('.')[0])
        elif isinstance(node, ast.ImportFrom):
            here = path.relative_to(PACKAGE).parts[: -node.level]
            module = '.'.join((*here, *(node.module or '').split('.'))).strip('.')
            own |= {f'{module}.{alias.name}'.strip('.') for alias in node.names} | {module} - {''}
    return own, others


@pytest.mark.parametrize('path', FILES, ids=name)
def test_import_directions(path):
    own, others = imports(path)
    assert 'ghost_plugin' not in others, 'imports inside the package are relative'
    for part, targets in MUST_NOT_IMPORT.items():
        assert not (name(path).startswith(part) and own & targets)
    package = name(path).split('/')[0].removesuffix('.py')
    if package not in ANYTHING:
        assert {target.split('.')[0] for target in own} <= MAY_IMPORT[package] | {package}
        if package not in ('registry', 'training'):
            assert not others & FRAMEWORKS


@pytest.mark.parametrize('path', [p for p in FILES if p.name == '__init__.py'], ids=name)
def test_no_attribute_of_a_package_shadows_a_submodule(path):
    modules = {p.stem for p in path.parent.iterdir() if p.suffix == '.py' or p.is_dir()}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            assert not modules & {alias.asname or alias.name for alias in node.names}


@pytest.mark.parametrize('path', FILES, ids=name)
def test_docstrings(path):
    body = ast.parse(path.read_text())
    assert ast.get_docstring(body) or path.stem == '_version'
    for node in ast.walk(body):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            assert not FRAGMENTS.match(ast.get_docstring(node) or ''), node.name


@pytest.mark.parametrize('path', FILES, ids=name)
def test_words(path):
    text = re.sub(r"'--\w+'", '', path.read_text()).replace('_', ' ')
    assert not ODD_WORDS.findall(text)


def test_top_level_holds_six_entries():
    listed = subprocess.run(['git', 'ls-files'], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode or not listed.stdout:
        pytest.skip('not a git checkout')
    top = {line.split('/')[0] for line in listed.stdout.splitlines()}
    assert {entry for entry in top if not entry.startswith('.')} == {
        'pyproject.toml', 'README.md', 'ghost_plugin', 'configs', 'tools', 'tests'
    }  # fmt: skip
