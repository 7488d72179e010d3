"""Curves are drawn from what a run logged."""

import json
from pathlib import Path

import pytest

pytest.importorskip('mmengine')
pytest.importorskip('matplotlib')

import torch

from ghost_plugin.integrations.openmmlab.plots import draw_curves, draw_detections
from ghost_plugin.integrations.openmmlab.runner_setup import build_model

ROOT = Path(__file__).parents[3]


def test_loss_and_metric_are_drawn(tmp_path):
    logs = tmp_path / 'run/20260101/vis_data'
    logs.mkdir(parents=True)
    rows = [{'step': step, 'loss': 1 / step} for step in (1, 2, 3, 4)]
    rows += [{'step': epoch, 'top1': 50.0} for epoch in (1, 2)]
    (logs / 'scalars.json').write_text('\n'.join(map(json.dumps, rows)))
    draw_curves({'mine': (tmp_path / 'run', 'top1')}, tmp_path / 'curves.png')
    assert (tmp_path / 'curves.png').read_bytes().startswith(b'\x89PNG')


CONFIG = """
_base_ = ['{root}/configs/_base_/models/retinanet_small.py',
          '{root}/configs/_base_/datasets/digits_detection.py']
default_scope = 'mmdet'
model = dict(
    backbone=dict(_delete_=True, type='ghost_plugin.GhostNet', width=0.5),
    neck=dict(in_channels=[12, 20, 56, 80]), test_cfg=dict(max_per_img=3, score_thr=0.0))
test_dataloader = dict(dataset=dict(data_root='{data}', pipeline=[
    dict(type='LoadImageFromFile'), dict(type='Resize', scale=(64, 64)),
    dict(type='LoadAnnotations', with_bbox=True), dict(type='PackDetInputs')]))
"""


def test_ground_truth_and_detections_are_drawn(tmp_path):
    pytest.importorskip('mmdet')
    image_module = pytest.importorskip('PIL.Image')
    (tmp_path / 'val').mkdir()
    image_module.new('RGB', (64, 64)).save(tmp_path / 'val/0.png')
    box = {'id': 1, 'image_id': 0, 'category_id': 1, 'bbox': [8, 8, 20, 30], 'area': 600,
           'iscrowd': 0}  # fmt: skip
    data = {
        'images': [{'id': 0, 'file_name': '0.png', 'height': 64, 'width': 64}],
        'annotations': [box],
        'categories': [{'id': index + 1, 'name': str(index)} for index in range(10)],
    }
    (tmp_path / 'val.json').write_text(json.dumps(data))
    config, weights = tmp_path / 'a.py', tmp_path / 'a.pth'
    config.write_text(CONFIG.format(root=ROOT, data=tmp_path))
    torch.save(build_model(config).state_dict(), weights)
    draw_detections(config, weights, tmp_path / 'found.png', num_images=1, score=0.0)
    assert (tmp_path / 'found.png').read_bytes().startswith(b'\x89PNG')
