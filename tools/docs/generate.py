#!/usr/bin/env python3
"""Write the generated parts of the pages: what stands between a mark and the next end mark.

A mark is a comment of Markdown, ``generated: NAME``, where NAME is a key of a BLOCKS table.
"""

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path

import results
import tables

from ghost_plugin.utils.atomic_io import atomic_write

ROOT = Path(__file__).parents[2]
BLOCKS: dict[str, Callable[[], str]] = {**tables.BLOCKS, **results.BLOCKS}
_MARK = re.compile(r'(<!-- generated: (\S+) -->\n).*?(<!-- end -->)', re.DOTALL)


def pages() -> list[Path]:
    """Pages that hold a mark."""
    found = [ROOT / 'README.md']
    for folder in ('.github', 'configs', 'ghost_plugin', 'tools'):
        found += (ROOT / folder).rglob('*.md')
    links = ('.mim',)  # lead back to configs/ and tools/
    return [
        page
        for page in sorted(found)
        if not set(links) & set(page.parts) and _MARK.search(page.read_text())
    ]


def render(text: str) -> str:
    """Return a page with all its generated parts made anew.

    Raises:
        KeyError: There is no such part.
    """
    return _MARK.sub(lambda found: f'{found[1]}{BLOCKS[found[2]]()}\n{found[3]}', text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--check', action='store_true', help='write nothing, fail where one is old')
    args = parser.parse_args()
    old = []
    for page in pages():
        text = page.read_text()
        new = render(text)
        if new != text:
            old.append(page.relative_to(ROOT).as_posix())
            if not args.check:
                with atomic_write(page) as partial_file:
                    partial_file.write_text(new)
    print('\n'.join(old) or 'all pages are current')
    sys.exit(1 if args.check and old else 0)


if __name__ == '__main__':
    main()
