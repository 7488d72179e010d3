"""The API reference builds without a warning from all public modules."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip('pdoc')
ROOT = Path(__file__).parents[3]
# One module only, with a name that does not exist.
FAULTY = """
import sys
import api_reference as tool, ghost_plugin.specs as specs
specs.__all__ = ['missing']
tool.public_modules = lambda: {'ghost_plugin.specs': tool.Module(specs)}
sys.exit(tool.main())
"""


def run(*arguments):
    """A process of its own, because pdoc and the tool change modules."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
        capture_output=True,
        text=True,
    )


def test_builds_without_warnings(tmp_path):
    done = run('tools/docs/api_reference.py', tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    top = (tmp_path / 'ghost_plugin.html').read_text()
    for name in ('GhostNet', 'GhostConv2d', 'plan', 'convert', 'fuse', 'export', 'optimize'):
        assert f'id="{name}"' in top
    assert 'href="ghost_plugin/conversion.html"' in top
    assert not (tmp_path / 'ghost_plugin/utils.html').exists()
    for page in tmp_path.rglob('*.html'):
        docstrings = re.findall(r'<div class="docstring">(.*?)</div>', page.read_text(), re.DOTALL)
        assert not re.findall(r':[a-z]+:<code>|:[a-z]+:`', ''.join(docstrings)), page


def test_warning_is_an_error(tmp_path):
    code = f'import sys; sys.path.insert(0, "tools/docs")\n{FAULTY}'
    done = run('-c', code, tmp_path)
    assert done.returncode == 1
    assert "Found 'missing' in ghost_plugin.specs.__all__" in done.stdout
