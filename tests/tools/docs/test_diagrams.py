"""The diagrams in .github/images are those that the tool draws."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip('matplotlib')
ROOT = Path(__file__).parents[3]


def words(path):
    """Matplotlib writes each text of an SVG as outlines, with the words as a comment before."""
    return re.findall(r'<!-- (.+?) -->', path.read_text())


def test_current(tmp_path):
    done = subprocess.run([sys.executable, ROOT / 'tools/docs/diagrams.py', tmp_path], cwd=ROOT)
    assert done.returncode == 0
    drawn = sorted(path.name for path in tmp_path.iterdir())
    assert drawn == ['flow.svg', 'ghost_conv.svg']
    for name in drawn:
        assert len(words(tmp_path / name)) > 10
        assert words(tmp_path / name) == words(ROOT / '.github/images' / name), (
            'python tools/docs/diagrams.py draws them anew'
        )
