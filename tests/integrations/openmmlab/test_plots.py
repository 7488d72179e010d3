"""Curves are drawn from what a run logged."""

import json

import pytest

pytest.importorskip('mmengine')
pytest.importorskip('matplotlib')

from ghost_plugin.integrations.openmmlab.plots import draw_curves


def test_loss_and_metric_are_drawn(tmp_path):
    logs = tmp_path / 'run/20260101/vis_data'
    logs.mkdir(parents=True)
    rows = [{'step': step, 'loss': 1 / step} for step in (1, 2, 3, 4)]
    rows += [{'step': epoch, 'top1': 50.0} for epoch in (1, 2)]
    (logs / 'scalars.json').write_text('\n'.join(map(json.dumps, rows)))
    draw_curves({'mine': (tmp_path / 'run', 'top1')}, tmp_path / 'curves.png')
    assert (tmp_path / 'curves.png').read_bytes().startswith(b'\x89PNG')
