"""README and the pages beside the code: snippets run, files and links exist, options are known."""

import functools
import importlib
import re
import shlex
from pathlib import Path

import pytest

from ghost_plugin.cli.main import COMMANDS
from ghost_plugin.cli.options import Parser

ROOT = Path(__file__).parents[1]
README = ROOT / 'README.md'
PAGES = sorted(
    page
    for folder in ('.github', 'configs', 'ghost_plugin', 'tools')
    for page in (ROOT / folder).rglob('*.md')
    if page.name in ('README.md', 'RESULTS.md', 'CONTRIBUTING.md') and '.mim' not in page.parts
)
PAGES = [README, *PAGES]
BLOCK = re.compile(r'(<!-- not run: .+? -->\n+)?```(\w+)\n(.*?)```', re.DOTALL)
# What a comment behind a print says that it prints, where it begins like a value.
VALUE = re.compile(r'^(?:print\(.*)?\)  # ([\[({\d].*|[A-Z]\w+\(.*|torch\..*)$', re.MULTILINE)
# What configs of the pages inherit.
SWAPPED = """_base_ = 'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py'
model = dict(backbone=dict(_delete_=True, type='ghost_plugin.GhostNet', out_indices=(2, 3, 4)))
"""
OPTIONAL = ('timm', 'torchvision', 'mmdet', 'mmpretrain', 'segmentation_models_pytorch',
            'lightning', 'transformers', 'fastai', 'anomalib')  # fmt: skip


def page_id(page):
    return page.relative_to(ROOT).as_posix()


def blocks(language):
    """All blocks of a language that run, with the page that holds them."""
    return [
        pytest.param(page, code, id=f'{page_id(page)}-{number}')
        for page in PAGES
        for number, (skip, kind, code) in enumerate(BLOCK.findall(page.read_text()))
        if kind == language and not skip
    ]


def prose(page):
    return re.sub(r'```.*?```', '', page.read_text(), flags=re.DOTALL)


def anchors(page):
    """Anchors of headings, as GitHub makes them."""
    titles = re.findall(r'^#+ (.*)$', prose(page), re.MULTILINE)
    return {re.sub(r'[^\w\- ]', '', title.lower()).replace(' ', '-') for title in titles}


@pytest.mark.parametrize('page, code', blocks('python'))
def test_python_runs(page, code, tmp_path, monkeypatch, request, capsys):
    for package in OPTIONAL:
        if re.search(rf'\b{package}\b', code):
            pytest.importorskip(package)
    if 'onnx' in code:
        pytest.importorskip('onnxruntime')
    if 'ModelHub' in code:
        request.getfixturevalue('fresh_model_hub')
    if '_base_' in code:
        config = pytest.importorskip('mmengine.config').Config
        (tmp_path / 'mine.py').write_text(code)
        (tmp_path / 'swapped.py').write_text(SWAPPED)
        assert config.fromfile(tmp_path / 'mine.py').model.backbone.type.startswith('ghost_plugin.')
        return
    (tmp_path / 'configs').symlink_to(ROOT / 'configs')
    monkeypatch.chdir(tmp_path)
    exec(compile(code, page_id(page), 'exec'), {})
    printed = capsys.readouterr().out
    assert [value for value in VALUE.findall(code) if value not in printed] == []


@pytest.mark.parametrize('page', PAGES, ids=page_id)
def test_named_files_exist(page):
    named = re.findall(
        r'\b(?:tools|configs|tests)/[\w./{},-]+\.(?:py|sh|png|yml)', page.read_text()
    )
    for path in named:
        options = re.search(r'{(.*?)}', path)
        for option in options[1].split(',') if options else ['']:
            assert (ROOT / re.sub(r'{.*?}', option, path)).is_file(), path


@pytest.mark.parametrize('page', PAGES, ids=page_id)
def test_links_resolve(page):
    text = prose(page)
    links = re.findall(r'\]\(([^)\s]+)\)', text) + re.findall(
        r'^\[\S+\]: (\S+)$', text, re.MULTILINE
    )
    for link in links:
        if '://' in link:
            continue
        path, _, anchor = link.partition('#')
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@functools.cache
def options(command):
    """Option strings of a command; None for ``run``, which passes its arguments on."""
    if command == 'run':
        return None
    parser = Parser()
    module = importlib.import_module(f'ghost_plugin.cli.{COMMANDS[command][0]}')
    module.COMMANDS[command].add_options(parser)
    return {*parser._option_string_actions, '--debug'}


@pytest.mark.parametrize('page', PAGES, ids=page_id)
def test_commands_exist(page):
    text = page.read_text().replace('\\\n', ' ')
    shell = '\n'.join(code for _, kind, code in BLOCK.findall(text) if kind == 'bash')
    inline = '\n'.join(re.findall(r'`(ghost-plugin [^`\n]*)`', prose(page)))
    for line in f'{shell}\n{inline}'.splitlines():
        if not line.startswith('ghost-plugin '):
            continue
        command, *arguments = shlex.split(line, comments=True)[1:]
        if command.startswith('-') or command.isupper():
            continue
        assert command in COMMANDS, line
        known = options(command)
        used = [word.strip('[]') for word in arguments if re.match(r'\[?-', word)]
        assert known is None or set(used) <= known, line


@pytest.mark.parametrize('page', PAGES, ids=page_id)
def test_scripts_have_the_options(page):
    """Options of scripts are literals of the script, or of the one that it starts."""
    text = page.read_text().replace('\\\n', ' ')
    shell = '\n'.join(code for _, kind, code in BLOCK.findall(text) if kind == 'bash')
    inline = '\n'.join(re.findall(r'`([^`\n]*tools/[^`\n]*)`', prose(page)))
    for line in f'{shell}\n{inline}'.splitlines():
        found = re.search(r'(tools/[\w./-]+\.(?:py|sh))(.*)', line.split('  #')[0])
        if not found:
            continue
        source = (ROOT / found[1]).read_text()
        for name in ('quickstart', 'train'):  # what the shell script and torchrun's lines start
            started = {
                'quickstart': 'tools/studies/quickstart.py',
                'train': 'ghost_plugin/cli/train.py',
            }
            if Path(found[1]).stem == name:
                source += (ROOT / started[name]).read_text()
        for option in re.findall(r'(?<!\S)--[a-z][\w-]*', found[2]):
            assert f"'{option}'" in source or f' {option}' in source, line


def test_readme_is_short():
    lines = README.read_text().splitlines()
    assert len(lines) <= 200
    assert max(map(len, lines)) <= 120
    assert next(n for n, line in enumerate(lines, 1) if line.startswith('```')) <= 25
    assert len(re.findall(r'[0-9]+[.,]?[0-9]*', '\n'.join(lines))) <= 120


def test_messages_of_troubleshooting_exist():
    page = (ROOT / 'tools/README.md').read_text().split('## Troubleshooting')[1]
    files = (ROOT / 'ghost_plugin').rglob('*.py')
    code = re.sub(r"'\s*\n\s*f?'", '', '\n'.join(path.read_text() for path in files))
    quoted = re.findall(r'^\| `([^`]+)` \|', page, re.MULTILINE)
    assert len(quoted) > 5
    assert [message for message in quoted if message not in code] == []
