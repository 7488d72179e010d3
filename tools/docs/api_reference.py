"""Build the API reference with pdoc, as HTML, from the docstrings. A warning is an error.

python tools/docs/api_reference.py OUT
"""

import argparse
import importlib
import pkgutil
import sys
import warnings
from pathlib import Path

import pdoc
from torch import nn

import ghost_plugin

# Parts that users do not import.
INTERNAL = (
    'cli',
    'conversion.fitting',
    'deploy.concat_elimination',
    'deploy.kernels',
    'graph',
    'utils',
)


class Module(pdoc.doc.Module):
    """A module whose page lists all public submodules; pdoc lists those in ``__all__`` only."""

    submodules: list['Module'] = []


def public_modules() -> dict[str, Module]:
    """All public modules by name; prints and leaves out those whose packages are not installed."""
    modules = {'ghost_plugin': Module(ghost_plugin)}
    for found in pkgutil.walk_packages(ghost_plugin.__path__, 'ghost_plugin.'):
        inner = found.name.removeprefix('ghost_plugin.')
        if '._' in found.name or f'{inner}.'.startswith(tuple(f'{part}.' for part in INTERNAL)):
            continue
        try:
            modules[found.name] = Module(importlib.import_module(found.name))
        except ImportError as error:
            print(f'left out: {found.name} ({error})')
    for name, module in modules.items():
        module.submodules = [
            modules[inner] for inner in modules if inner.rpartition('.')[0] == name
        ]
    return modules


def build(out: Path) -> list[str]:
    """Write the pages.

    Args:
        out: Folder of ``index.html``; made where it does not exist.

    Returns:
        pdoc's warnings.
    """
    pdoc.render.configure(
        docformat='google',
        footer_text=f'ghost_plugin {ghost_plugin.__version__}',
        template_directory=Path(__file__).parent,  # custom.css
    )
    # Classes without docstrings of their own would show these, which say nothing about them.
    nn.Module.__init__.__doc__ = nn.Module.forward.__doc__ = None
    modules = public_modules()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        for name, module in modules.items():
            page = out / f'{name.replace(".", "/")}.html'
            page.parent.mkdir(parents=True, exist_ok=True)
            page.write_text(pdoc.render.html_module(module, modules))
        (out / 'index.html').write_text(pdoc.render.html_index(modules))
        (out / 'search.js').write_text(pdoc.render.search_index(modules))
    return [f'{warning.filename}: {warning.message}' for warning in caught]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('out', type=Path, help='folder of the pages')
    out = parser.parse_args().out
    problems = build(out)
    print(*problems, out / 'index.html', sep='\n')
    return bool(problems)


if __name__ == '__main__':
    sys.exit(main())
