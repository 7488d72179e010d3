"""Progress and tables: plain lines in files, drawn on a terminal."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[2] / 'tools'))

import ghost_plugin as gp
from ghost_plugin.cli import terminal
from ghost_plugin.cli.terminal import Meter, figures, show, table


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass when the test says so."""
    now = [100.0]
    monkeypatch.setattr(terminal.time, 'monotonic', lambda: now[0])
    return now


def pretend_terminal(monkeypatch):
    for stream in (sys.stderr, sys.stdout):
        monkeypatch.setattr(stream, 'isatty', lambda: True)


def steps(meter, clock, number, seconds):
    for done in range(1, number + 1):
        clock[0] += seconds
        meter('training', done, number, f'loss {done}')


def test_a_file_gets_a_line_now_and_then(clock, capsys):
    with Meter() as meter:
        steps(meter, clock, 10, 7)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == 'training: 40 %, loss 4, 0:31 left'
    assert len(lines) == 3 and lines[-1] == 'training: 100 %, loss 10, 0:00 left'


def test_what_is_quick_says_nothing(clock, capsys):
    with Meter() as meter:
        steps(meter, clock, 10, 0.1)
    assert capsys.readouterr().err == ''


def test_rich_has_one_bar_for_each_label(monkeypatch):
    pretend_terminal(monkeypatch)
    with Meter() as meter:
        for epoch in range(3):
            meter('training', epoch + 1, 3, 'loss 1')
            for done in (1, 2):
                meter('evaluating', done, 2)
        assert [task.description for task in meter.bars.tasks] == ['training', 'evaluating']
        assert [task.completed for task in meter.bars.tasks] == [3, 2]


def test_a_conversion_has_a_bar_for_each_stage(monkeypatch):
    pretend_terminal(monkeypatch)
    model, images = nn.Sequential(*(nn.Conv2d(8, 8, 3) for _ in range(3))), torch.randn(8, 8, 9, 9)
    with Meter() as meter:
        gp.plan(model, images, macs=0.9, calibration=[images], progress=meter.show)
        labels = [task.description for task in meter.bars.tasks]
        assert {'statistics', 'scores', 'output changes'} <= set(labels)
        assert all(task.completed == task.total for task in meter.bars.tasks)


def test_figures_that_all_rows_have():
    rows = [{'model': 'a', 'macs': 2_500_000, 'top5': None}, {'model': 'b', 'macs': 10, 'top1': 5}]
    assert figures(rows).splitlines() == [
        '| Model | MACs (M) |', '| --- | --- |', '| a | 2.50 |', '| b | 0.00 |'
    ]  # fmt: skip


def test_tables_are_drawn_and_names_stay_whole(capsys, monkeypatch):
    pretend_terminal(monkeypatch)
    monkeypatch.setenv('COLUMNS', '60')
    name = 'layer4.0.a_long_name_of_a_module'
    show(f'first\n\n{table(["Conv", "Kind", "Error"], [[name, "3 to 8, 3x3 [x]", ""]])}\nlast')
    out = capsys.readouterr().out
    assert out.startswith('first\n') and out.endswith('last\n')
    assert name in out and '|' not in out and '[x]' in out


def test_text_stays_as_it_is_in_a_file(capsys):
    show('a\n| b |')
    assert capsys.readouterr().out == 'a\n| b |\n'
