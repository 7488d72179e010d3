#!/usr/bin/env python3
"""Execute the tutorials, tools/tutorials/*.py, and write them as notebooks with their outputs."""

import argparse
import base64
import io
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from ghost_plugin.cli.errors import named, needs, tool
from ghost_plugin.utils.atomic_io import atomic_write

needs('jupytext', 'nbclient', 'ipykernel', 'PIL')

import jupytext
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode
from PIL import Image

ROOT = Path(__file__).parents[2]
SCRIPTS = {path.stem: path for path in sorted((ROOT / 'tools/tutorials').glob('*.py'))}
SECONDS = 900  # longest time of a cell
WIDTH = 1000  # largest width of an image, pixels
METADATA = {
    'kernelspec': {'display_name': 'Python 3', 'language': 'python', 'name': 'python3'},
    'language_info': {'name': 'python'},
}


def read_script(path: Path) -> NotebookNode:
    """Read a script in jupytext's percent format as a notebook without outputs."""
    notebook = jupytext.read(path, fmt='py:percent')
    notebook.metadata = nbformat.from_dict(METADATA)
    for number, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f'cell-{number}', NotebookNode()
    return notebook


def execute(notebook: NotebookNode, folder: Path) -> None:
    """Run all cells and keep the outputs that do not depend on the machine's set-up.

    Args:
        notebook: Gets the outputs.
        folder: Working directory of the cells.

    Raises:
        ValueError: A cell failed, or an output names a folder of this machine.
    """
    with tempfile.TemporaryDirectory(prefix='ghost_plugin-') as profile:
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get('PYTHONPATH'))))
        # The user's own IPython profile could change the outputs.
        env = {**os.environ, 'PYTHONPATH': path, 'IPYTHONDIR': profile, 'PYTHONWARNINGS': 'ignore'}
        client = NotebookClient(
            notebook,
            timeout=SECONDS,
            kernel_name='python3',
            resources={'metadata': {'path': str(folder)}},
            record_timing=False,
            coalesce_streams=True,
        )
        kernels = client.create_kernel_manager()
        kernels.transport = 'ipc'  # several runs at a time cannot take each other's ports
        kernels.connection_file = f'{profile}/kernel.json'
        try:
            client.execute(env=env, stdout=subprocess.DEVNULL)  # cells keep what they print
        except CellExecutionError as error:
            trace = re.sub(r'\x1b\[[0-9;]*m', '', error.traceback)
            print(trace, file=sys.stderr)
            raise ValueError(f'a cell failed: {error.ename}: {error.evalue}') from error
    notebook.metadata = nbformat.from_dict(METADATA)
    for cell in notebook.cells:
        if cell.cell_type == 'code':
            cell.metadata = NotebookNode()
            cell.outputs = [_stripped(output) for output in cell.outputs if not _is_noise(output)]
            _refuse_folders(cell, (folder, ROOT, Path(sys.prefix), Path.home()))


def _is_noise(output: NotebookNode) -> bool:
    """Warnings and progress on standard error."""
    return output.output_type == 'stream' and output.name == 'stderr'


def _stripped(output: NotebookNode) -> NotebookNode:
    """An output without metadata; images are reduced to 256 colours."""
    if 'data' in output:
        output.metadata = NotebookNode()
    if png := output.get('data', {}).get('image/png'):
        image = Image.open(io.BytesIO(base64.b64decode(png))).convert('RGB')
        image.thumbnail((WIDTH, image.height))
        small = io.BytesIO()
        image.quantize(dither=Image.Dither.NONE).save(small, 'png', optimize=True)
        output.data = NotebookNode({'image/png': base64.b64encode(small.getvalue()).decode()})
    return output


def _refuse_folders(cell: NotebookNode, folders: tuple[Path, ...]) -> None:
    texts = [output.get('text') or output.get('data', {}).get('text/plain', '')
             for output in cell.outputs]  # fmt: skip
    for folder in folders:
        if len(folder.parts) > 1 and str(folder) in '\n'.join(texts):
            raise ValueError(f'an output names {folder}; print no absolute paths:\n{cell.source}')


def difference(script: NotebookNode, notebook: NotebookNode) -> str:
    """Compare the cells of a script with those of a notebook.

    Args:
        script: From :func:`read_script`.
        notebook: As it was written.

    Returns:
        What differs in words, '' if nothing.
    """
    mine, theirs = ([(c.cell_type, c.source) for c in book.cells] for book in (script, notebook))
    for number, (a, b) in enumerate(zip(mine, theirs, strict=False), 1):
        if a != b:
            return f'cell {number} differs'
    return '' if len(mine) == len(theirs) else f'{len(theirs)} cells instead of {len(mine)}'


def write(path: Path) -> None:
    """Execute a script in an empty folder and write the notebook beside it, if all went well."""
    notebook = read_script(path)
    with tempfile.TemporaryDirectory(prefix='ghost_plugin-') as folder:
        execute(notebook, Path(folder))
    with atomic_write(path.with_suffix('.ipynb')) as partial:
        nbformat.write(notebook, partial)


@tool
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--only', default='', metavar='NAME', help='those whose name holds NAME')
    parser.add_argument('--check', action='store_true', help='compare the cells, execute nothing')
    args = parser.parse_args()
    for name, path in named(args.only, SCRIPTS).items():
        if not args.check:
            print(f'executing {name}')
            write(path)
            continue
        book = path.with_suffix('.ipynb')
        if not book.is_file():
            raise ValueError(f'{book.name} is missing; python tools/docs/notebooks.py writes it')
        found = difference(read_script(path), nbformat.read(book, as_version=4))
        if found:
            raise ValueError(f'{book.name} is not of {path.name}: {found}; run without --check')


if __name__ == '__main__':
    main()
