"""A wheel holds the package, the configs and the command line, without studies and set-up."""

import importlib.util
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOOLS = {'train.py', 'test.py', 'convert.py', 'export.py', 'benchmark.py', 'swap_backbone.py'}


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    """The wheel of the sources, as an open archive."""
    for name in ('pip', 'setuptools', 'wheel'):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f'{name} is not installed')
    folder = tmp_path_factory.mktemp('wheel')
    ignored = shutil.ignore_patterns('__pycache__', '*.egg-info')
    for name in ('ghost_plugin', 'configs', 'tools'):
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=ignored)
    for name in ('pyproject.toml', 'README.md'):
        shutil.copy(ROOT / name, folder)
    command = [sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps', '--no-build-isolation']
    done = subprocess.run([*command, '-w', folder, folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(next(folder.glob('*.whl'))) as archive:
        yield archive


def test_contents(wheel):
    names = [name for name in wheel.namelist() if '.dist-info/' not in name]
    package, mim = 'ghost_plugin/', 'ghost_plugin/.mim/'
    assert all(name.startswith(package) for name in names)
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / package).rglob('*.py')}
    configs = {
        f'{mim}{path.relative_to(ROOT).as_posix()}'
        for path in (ROOT / 'configs').rglob('*')
        if path.is_file() and '__pycache__' not in path.parts
    }
    modules = {name for name in modules if '/.mim/' not in name}
    others = set(names) - modules - configs
    assert modules | configs <= set(names)
    tools = {
        name.removeprefix(f'{mim}tools/') for name in others if name.startswith(f'{mim}tools/')
    }
    assert {name for name in tools if not name.startswith('data/')} == TOOLS
    assert {name for name in others if '/tools/' not in name} == {
        'ghost_plugin/py.typed', 'ghost_plugin/.mim/model-index.yml'
    }  # fmt: skip


def test_metadata(wheel):
    def read(name):
        (path,) = (path for path in wheel.namelist() if path.endswith(f'.dist-info/{name}'))
        return wheel.read(path).decode()

    assert 'ghost-plugin = ghost_plugin.cli.main:main' in read('entry_points.txt')
    assert 'License-Expression: Apache-2.0' in read('METADATA')
    assert 'Apache License' in read('licenses/ghost_plugin/LICENSE')
