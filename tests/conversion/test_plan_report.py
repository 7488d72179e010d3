"""Table and drawing of a plan."""

from dataclasses import replace

import pytest
from helpers.plans import images, net

import ghost_plugin as gp
from ghost_plugin.conversion.plan_report import draw, table


def test_the_table_has_a_line_per_conv_the_totals_and_the_reasons():
    text = gp.plan(net(), images()).report()
    assert '| 3 | 8 to 15, 3x3 | convert | 2 |' in text
    assert '| 0 | 3 to 8, 3x3 | keep (first) |' in text
    assert 'first: the first conv of the network' in text
    assert text.splitlines()[-4].startswith('| whole model |')
    text = gp.plan(net(), images(), dw_size=1, group_size='all').report()
    assert '| 3 | 8 to 15, 3x3 | convert | 2, dw_size 1, group_size all |' in text


def test_the_table_shows_errors_edits_and_costs_outside_of_the_layers():
    plan = gp.plan(net(), images()).replace_layer('5', decision='keep')
    layers = tuple(replace(layer, error=0.25) for layer in plan.layers)
    lines = table(replace(plan, layers=layers, macs=2 * plan.macs)).splitlines()
    assert any(line.startswith('| 5 ') and 'keep (edited)' in line for line in lines)
    assert lines[2].endswith('| 0.250 |')
    assert '% of the multiply-adds stand in no row' in lines[-1]


def test_the_drawing_is_a_png_and_leaves_the_backend_of_a_notebook(tmp_path, monkeypatch):
    matplotlib = pytest.importorskip('matplotlib')
    monkeypatch.setitem(matplotlib.rcParams, 'backend', 'svg')
    draw(gp.plan(net(), images()), tmp_path / 'plan.png')
    assert (tmp_path / 'plan.png').read_bytes().startswith(b'\x89PNG')
    assert matplotlib.get_backend() == 'svg'
