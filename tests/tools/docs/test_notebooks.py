"""The tutorials: the stored notebooks are those of the scripts, and the scripts execute."""

import re

import pytest

for package in ('jupytext', 'nbclient', 'ipykernel', 'PIL'):
    pytest.importorskip(package)

import nbformat
from notebooks import METADATA, ROOT, SCRIPTS, difference, execute, read_script, write

from ghost_plugin.cli.main import COMMANDS

NAMES = ('convert_timm_model', 'deploy', 'train_detector')
NEEDS = {
    'convert_timm_model': ('timm', 'sklearn', 'matplotlib'),
    'deploy': ('timm', 'sklearn', 'matplotlib', 'onnxruntime', 'onnx', 'openvino'),
    'train_detector': ('mmdet', 'sklearn', 'matplotlib'),
}
SCRIPT = '# %% [markdown]\n# # Title\n\n# %%\nprint(1 + 1)\n'


def printed(notebook):
    outputs = [output for cell in notebook.cells for output in cell.get('outputs', ())]
    return ''.join(output.get('text', '') for output in outputs)


def images(notebook):
    outputs = [output for cell in notebook.cells for output in cell.get('outputs', ())]
    return [output for output in outputs if 'image/png' in output.get('data', {})]


@pytest.fixture
def script(tmp_path):
    path = tmp_path / 'tutorial.py'
    path.write_text(SCRIPT)
    return path


def test_there_are_three_tutorials():
    assert tuple(SCRIPTS) == NAMES


@pytest.mark.parametrize('name', NAMES)
def test_a_stored_notebook_is_that_of_its_script_and_was_executed(name):
    path = SCRIPTS[name].with_suffix('.ipynb')
    stored = nbformat.read(path, as_version=4)
    assert difference(read_script(SCRIPTS[name]), stored) == ''
    cells = [cell for cell in stored.cells if cell.cell_type == 'code']
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    kinds = {(o.output_type, o.get('name')) for cell in cells for o in cell.outputs}
    assert kinds <= {('stream', 'stdout'), ('display_data', None), ('execute_result', None)}
    assert images(stored)
    assert stored.metadata == METADATA
    assert path.stat().st_size < 400_000


@pytest.mark.parametrize('name', NAMES)
def test_the_prose_has_working_links_commands_and_no_long_cells(name):
    cells = read_script(SCRIPTS[name]).cells
    prose = '\n'.join(cell.source for cell in cells if cell.cell_type == 'markdown')
    for link in re.findall(r'\]\(([^)#]+)\)', prose):
        assert (SCRIPTS[name].parent / link).exists(), link
    for path in re.findall(r'\btools/[\w./-]+\.(?:py|sh)', prose):
        assert (ROOT / path).is_file(), path
    for command in re.findall(r'ghost-plugin (\w+)', prose):
        assert command in COMMANDS
    assert max(len(cell.source.splitlines()) for cell in cells) <= 40


# What each tutorial is there to show, in what it prints.
def check_convert_timm_model(text):
    original, converted, tuned = (
        float(re.search(rf'\| {name} .*\| ([\d.]+) \|', text)[1])
        for name in ('original', 'converted', 'fine-tuned')
    )
    blind = float(re.search(r'without images +([\d.]+) %', text)[1])
    assert original > 90
    assert blind < converted - 20
    assert tuned > original - 3


def check_deploy(text):
    found = [float(value) for value in re.findall(r'difference ([\d.e+-]+) \(relative\)', text)]
    assert len(found) == 4
    assert max(found) < 1e-4
    tops = [float(value) for value in re.findall(r'top-1 ([\d.]+) %', text)]
    assert len(tops) >= 5
    assert min(tops) > 80
    assert len(re.findall('of the time of the original', text)) == 8


def check_train_detector(text):
    assert float(re.search(r'AP50 ([\d.]+)', text)[1]) > 0.5


@pytest.mark.parametrize('name', NAMES)
def test_a_tutorial_executes_in_an_empty_folder(name, tmp_path):
    for package in NEEDS[name]:
        pytest.importorskip(package)
    notebook = read_script(SCRIPTS[name])
    execute(notebook, tmp_path)
    assert images(notebook)
    globals()[f'check_{name}'](printed(notebook))


def test_a_notebook_is_written_beside_its_script(script):
    write(script)
    stored = nbformat.read(script.with_suffix('.ipynb'), as_version=4)
    assert printed(stored) == '2\n'
    assert difference(read_script(script), stored) == ''
    script.write_text(SCRIPT.replace('1 + 1', '1 + 2'))
    assert difference(read_script(script), stored) == 'cell 2 differs'


def test_a_failure_leaves_the_old_notebook(script, capsys):
    old = script.with_suffix('.ipynb')
    old.write_text('old')
    script.write_text(SCRIPT + '\n# %%\nraise ValueError("no such digit")\n')
    with pytest.raises(ValueError, match='no such digit'):
        write(script)
    assert 'no such digit' in capsys.readouterr().err
    assert old.read_text() == 'old'
    assert sorted(path.name for path in script.parent.iterdir()) == [old.name, script.name]


def test_absolute_paths_and_warnings_do_not_get_into_a_notebook(script):
    script.write_text('# %%\nimport sys, warnings\nwarnings.warn("old")\nsys.stderr.write("x")\n')
    notebook = read_script(script)
    execute(notebook, script.parent)
    assert printed(notebook) == ''
    script.write_text('# %%\nimport os\nprint(os.getcwd())\n')
    with pytest.raises(ValueError, match='print no absolute paths'):
        execute(read_script(script), script.parent)


def test_check_names_what_is_missing(script, in_process, monkeypatch):
    monkeypatch.setitem(SCRIPTS, 'tutorial', script)
    status, _, said = in_process('notebooks', '--check', '--only', 'tutorial')
    assert status == 2
    assert 'tutorial.ipynb is missing' in said
    status, _, _ = in_process('notebooks', '--check', '--only', 'deploy')
    assert status == 0
