"""One HTML page that shows a run of the quickstart; it needs no other file."""

import base64
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import jinja2

from ghost_plugin.utils.atomic_io import atomic_write

ROOT = Path(__file__).resolve().parents[2]
TEMPLATE = Path(__file__).with_suffix('.html')


@dataclass(frozen=True)
class Report:
    """Values of the page; images are PNG files, tables are Markdown with notes below."""

    highlights: Sequence[tuple[str, str]]  # value, what it is
    results: str  # table of the tasks
    conversion: str  # table of original, converted and fine-tuned network
    plan: str  # table of the convs
    detections: Path
    curves: Mapping[str, Path]  # by the name of the task
    plan_image: Path
    paths: Mapping[str, str | Path | None]  # what the commands name
    made: str  # date, machine, versions


def parse_table(markdown: str) -> list[list[str]]:
    """Cells of a Markdown table, its head first."""
    lines = [line for line in markdown.splitlines() if line.startswith('|')]
    return [[cell.strip() for cell in line[1:-1].split(' |')] for line in [lines[0], *lines[2:]]]


def parse_notes(markdown: str) -> list[str]:
    """Lines of a text that are in no table."""
    return [line for line in markdown.splitlines() if line and not line.startswith('|')]


def embed(png: Path) -> str:
    """A PNG file as a URL that holds its content."""
    return f'data:image/png;base64,{base64.b64encode(png.read_bytes()).decode()}'


def render(report: Report, folder: str | os.PathLike[str]) -> str:
    """The page as HTML.

    Args:
        report: Its values.
        folder: Where the page will lie; links to pages of this repository start there.
    """
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        'cells': parse_table,
        'notes': parse_notes,
        'embed': embed,
        'link': lambda path: quote(os.path.relpath(ROOT / path, Path(folder).resolve())),
        'word': lambda path: shlex.quote(str(path)),
    }
    template = environment.from_string(TEMPLATE.read_text(encoding='utf-8'))
    return template.render(report=report)


def write(report: Report, path: Path) -> None:
    """Write the page to the HTML file ``path``."""
    with atomic_write(path) as partial:
        partial.write_text(render(report, path.parent), encoding='utf-8')
