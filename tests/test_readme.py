"""What the README says: its Python runs, its commands name files that exist, its table is true."""

import re
from pathlib import Path

import pytest

from ghost_plugin.weights import PUBLISHED

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / 'README.md').read_text()
PYTHON = re.findall(r'```python\n(.*?)```', TEXT, re.DOTALL)


@pytest.mark.parametrize('code', PYTHON, ids=[code.splitlines()[0] for code in PYTHON])
def test_python_runs(code, tmp_path, monkeypatch):
    if '_base_' in code:
        config = pytest.importorskip('mmengine.config').Config
        pytest.importorskip('mmdet')
        (tmp_path / 'mine.py').write_text(code)
        assert config.fromfile(tmp_path / 'mine.py').model.backbone.type.startswith('ghost_plugin.')
        return
    for word, framework in (
        ('timm', 'timm'),
        ('torchvision', 'torchvision'),
        ('onnx', 'onnxruntime'),
    ):
        if word in code:
            pytest.importorskip(framework)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, 'README.md', 'exec'), {})


def test_files_that_it_names_exist():
    named = set(re.findall(r'\b(?:tools|configs|\.github)/[\w./{},-]+\.(?:py|sh|png)', TEXT))
    assert len(named) > 5
    for path in named:
        options = re.search(r'{(.*?)}', path)
        for option in options[1].split(',') if options else ['']:
            assert (ROOT / re.sub(r'{.*?}', option, path)).is_file(), path


def test_published_weights_stand_in_its_table():
    for name, row in PUBLISHED.items():
        line = next(line for line in TEXT.splitlines() if f'`{name}`' in line)
        assert str(row.top1) in line
        assert row.source.split('/')[-1] in line
