"""A network that the user brings from ultralytics, where that is installed."""

import pytest
import torch

import ghost_plugin as gp

ultralytics = pytest.importorskip('ultralytics')


def test_a_detector_is_converted_and_comes_back_from_its_folder(tmp_path):
    model = ultralytics.YOLO('yolov8n.yaml').model.eval()
    images = torch.rand(1, 3, 96, 128)
    plan = gp.plan(model, images, macs=0.8)
    converted = plan.apply(model)
    assert plan.totals['macs_after'] <= 0.8 * plan.totals['macs_before']
    gp.save_pretrained(
        converted,
        tmp_path,
        plan=plan,
        builder='ultralytics.nn.tasks:DetectionModel',
        arguments={'cfg': 'yolov8n.yaml', 'verbose': False},
    )
    again = gp.from_pretrained(tmp_path, trusted=True)
    with torch.no_grad():
        want = converted(images)[0]
        assert want.shape == model(images)[0].shape
        assert torch.equal(again(images)[0], want)
