"""The quickstart's page: one file, values and images inside, commands that exist."""

import base64
import dataclasses
import importlib
import json
import re
import shlex
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

pytest.importorskip('jinja2')

import report_page
import torch

import ghost_plugin as gp
from ghost_plugin.cli.main import COMMANDS
from ghost_plugin.cli.options import Parser

ROOT = Path(__file__).parents[3]
PNG = base64.b64decode(  # 1 x 1 pixel
    'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=='
)
VOID = {'meta', 'img', 'input'}


class Page(HTMLParser):
    """Elements of a page; an element that is not closed in its order is an error."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.open, self.cells, self.commands, self.text = [], [], [], [], ''
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag in VOID:
            return
        self.open.append(tag)
        if tag in ('td', 'th'):
            self.cells.append('')
        elif tag == 'code' and 'pre' in self.open:
            self.commands.append('')

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if self.open and self.open[-1] in ('td', 'th'):
            self.cells[-1] += data
        elif 'pre' in self.open and 'code' in self.open:
            self.commands[-1] += data

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture
def report(tmp_path):
    """Made-up values, some of them with characters that HTML and shells know."""
    image = tmp_path / 'image.png'
    image.write_bytes(PNG)
    return report_page.Report(
        highlights=[('AP 0.714', 'detector <small> & "quick"')],
        results='| Task | Metric |\n| --- | --- |\n| <b>cars</b> & more | 12.5 % |\n\nin a<b.pth',
        conversion='| Model | Top-1 (%) |\n| --- | --- |\n| original | 97.40 |\n\nbatch 16 & 32 px',
        plan='| Conv | MACs (M) |\n| --- | --- |\n| layer1.0.conv1 | 2.36 to 1.20 |\nsmall: kept',
        detections=image,
        curves={'detection': image, 'classification': image},
        plan_image=image,
        paths={
            'activate': Path('.venv/bin/activate'),
            'config': tmp_path / 'my runs/net.py',
            'checkpoint': 'epoch_7.pth',
            'plan': 'plan.json',
        },
        made='Made with torch <2>',
    )


@pytest.fixture
def page(report, tmp_path):
    return Page(report_page.render(report, tmp_path))


def test_nothing_is_loaded_from_elsewhere(page, report, tmp_path):
    tags = {tag for tag, _ in page.elements}
    assert not tags & {'script', 'link', 'iframe', 'object', 'embed', 'source', 'base'}
    html = report_page.render(report, tmp_path)
    assert not re.search(r'https?:|url\(|@import|srcset|\bon\w+=', html)
    assert 'prefers-color-scheme: dark' in html


def test_images_are_embedded_and_described(page):
    images = page.all('img')
    assert len(images) == 4 and len({image['alt'] for image in images}) == 4
    for image in images:
        kind, content = image['src'].split(',')
        assert kind == 'data:image/png;base64' and base64.b64decode(content) == PNG
        assert len(image['alt']) > 20


def test_values_are_shown_with_their_characters(page):
    assert page.cells[:4] == ['Task', 'Metric', '<b>cars</b> & more', '12.5 %']
    assert page.cells[4:8] == ['Model', 'Top-1 (%)', 'original', '97.40']
    assert page.cells[8:] == ['Conv', 'MACs (M)', 'layer1.0.conv1', '2.36 to 1.20']
    for text in ('AP 0.714', 'detector <small> & "quick"', 'in a<b.pth', 'batch 16 & 32 px',
                 'small: kept', 'Made with torch <2>'):  # fmt: skip
        assert text in page.text
    assert not {'b', 'small'} & {tag for tag, _ in page.elements}


def test_tables_scroll_in_boxes_of_their_own(page):
    boxes = [e.get('class') for tag, e in page.elements if tag == 'div']
    assert boxes.count('scroll') == len(page.all('table')) == 3


def test_links_lead_to_pages_of_the_repository(report, tmp_path):
    for folder in (tmp_path, ROOT / 'work_dirs/quick start'):
        links = [link['href'] for link in Page(report_page.render(report, folder)).all('a')]
        assert len(links) >= 8
        for link in links:
            assert (folder.resolve() / unquote(link)).resolve().is_file(), link
            assert ROOT in (folder.resolve() / unquote(link)).resolve().parents


def test_commands_exist(page, report, monkeypatch):
    assert page.commands[0] == 'source .venv/bin/activate'
    used = set()
    for line in page.commands[1:]:
        program, command, *arguments = shlex.split(line)
        if program == 'python':
            assert (ROOT / command).is_file()
            continue
        assert program == 'ghost-plugin'
        parser = Parser()
        module = importlib.import_module(f'ghost_plugin.cli.{COMMANDS[command][0]}')
        module.COMMANDS[command].add_options(parser)
        options = parser.parse_args(arguments)
        used.add(command)
        if command == 'test':
            assert (options.config, options.checkpoint) == (
                str(report.paths['config']),
                'epoch_7.pth',
            )
    assert used >= {'test', 'export', 'plan', 'convert', 'finetune', 'swap', 'train', 'benchmark'}


def test_without_an_environment_nothing_is_activated(report, tmp_path):
    bare = dataclasses.replace(report, paths={**report.paths, 'activate': None})
    assert 'activate' not in report_page.render(bare, tmp_path)


def test_the_page_is_written_whole_or_not_at_all(report, tmp_path):
    out = tmp_path / 'index.html'
    report_page.write(report, out)
    before = out.read_text()
    assert before == report_page.render(report, tmp_path)
    with pytest.raises(FileNotFoundError):
        report_page.write(dataclasses.replace(report, plan_image=tmp_path / 'none.png'), out)
    assert out.read_text() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ['image.png', 'index.html']


def test_paths_below_the_working_directory_are_short(tmp_path, monkeypatch):
    pytest.importorskip('mmengine')
    pytest.importorskip('timm')
    short = importlib.import_module('quickstart').short
    monkeypatch.chdir(tmp_path)
    for path in ('run/a.pth', tmp_path / 'run/a.pth'):
        assert short(Path(path)) == Path('run/a.pth')
    assert short(tmp_path.parent / 'a.pth') == tmp_path.parent / 'a.pth'


def test_the_quickstart_prints_the_path_of_its_page_last(tmp_path, in_process, monkeypatch):
    pytest.importorskip('mmengine')
    pytest.importorskip('timm')
    tool = importlib.import_module('quickstart')
    rows = [
        {'model': name, 'top1': top1, 'params': 11e6, 'macs': macs}
        for name, top1, macs in (
            ('original', 97.5, 40e6), ('converted', 90.0, 26e6), ('fine-tuned', 96.5, 26e6),
        )
    ]  # fmt: skip

    def train(task, folder):
        metric = {'detection': 0.7141, 'classification': 97.31}[task.name]
        return {'params': 1.076e6, 'macs': 159.1e6, 'metric': metric, 'seconds': 279.5,
                'checkpoint': f'{folder}/epoch_7.pth'}  # fmt: skip

    def converted(out):
        out.mkdir()
        model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 8, 3))
        gp.plan(model.eval(), torch.zeros(1, 3, 8, 8), keep_last=False).save(out / 'plan.json')
        (out / 'plan.png').write_bytes(PNG)
        (out / 'result.json').write_text(json.dumps(rows))
        return ['| Model |', '| --- |', '| fine-tuned |', '', 'budget: macs=0.5']

    monkeypatch.setattr(tool, 'run', lambda *command: None)
    monkeypatch.setattr(tool, 'train', train)
    monkeypatch.setattr(tool, 'converted', converted)
    monkeypatch.setattr(tool, 'draw_detections', lambda config, file, out: out.write_bytes(PNG))
    monkeypatch.setattr(tool, 'draw_curves', lambda runs, out: out.write_bytes(PNG))
    status, out, err = in_process('quickstart', '--out', tmp_path / 'run')
    assert status == 0, err
    path = Path(out.splitlines()[-1].rsplit(': ')[-1])
    assert path == tmp_path / 'run/index.html'
    page = Page(path.read_text())
    assert {'AP 0.714', 'top-1 97.3 %', 'top-1 96.5 %', '159.1 at 160 px', '4:39'} <= {*page.cells}
    assert '65 %' in page.text and 'top-1 96.5\xa0%, before 97.5\xa0%' in page.text
    assert 'budget: macs=0.5' in page.text
    assert {*page.cells} >= {'0', '1', 'convert', 'fine-tuned'}
    table = (tmp_path / 'run/table.md').read_text()
    assert table in out and f'{tmp_path}/run/detection/epoch_7.pth' in table
