"""Generated parts of the pages are current, and each is used."""

import re
from pathlib import Path

import pytest

pytest.importorskip('timm')
pytest.importorskip('mmengine')

import generate
import tables

PAGES = generate.pages()


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.relative_to(generate.ROOT).as_posix())
def test_page_is_current(page):
    text = page.read_text()
    assert generate.render(text) == text, 'run python tools/docs/generate.py'


def test_every_part_is_used():
    text = '\n'.join(page.read_text() for page in PAGES)
    assert set(re.findall(r'<!-- generated: (\S+) -->', text)) == set(generate.BLOCKS)
    assert text.count('<!-- generated: ') == text.count('<!-- end -->')


def test_render_replaces_what_stands_between_the_marks(monkeypatch):
    monkeypatch.setattr(generate, 'BLOCKS', {'a': lambda: 'new'})
    old = 'x\n<!-- generated: a -->\nold\n<!-- end -->\ny\n'
    assert generate.render(old) == old.replace('old', 'new')
    with pytest.raises(KeyError):
        generate.render(old.replace('generated: a', 'generated: b'))


def test_check_writes_nothing(monkeypatch, tmp_path, in_process):
    page = Path(tmp_path / 'README.md')
    page.write_text('<!-- generated: a -->\nold\n<!-- end -->\n')
    monkeypatch.setattr(generate, 'BLOCKS', {'a': lambda: 'new'})
    monkeypatch.setattr(generate, 'ROOT', tmp_path)
    monkeypatch.setattr(generate, 'pages', lambda: [page])
    status, out, _ = in_process('generate', '--check')
    assert status == 1 and out == 'README.md\n' and 'old' in page.read_text()
    status, out, _ = in_process('generate')
    assert status == 0 and 'new' in page.read_text()


def test_options_come_from_signature_and_docstring():
    def function(model, *, ratio=2, size=3, name=None):
        """Do it.

        Args:
            model: A network.
            ratio, size: Of all :class:`~ghost_plugin.GhostConv2d`,
                on two lines.
            name: A | B.

        Returns:
            name: nothing
        """

    assert tables.options(function).splitlines()[2:] == [
        '| `ratio=2`, `size=3` | Of all `GhostConv2d`, on two lines. |',
        '| `name=None` | A \\| B. |',
    ]
