"""Models are built from configs with their preprocessing and the form of their input."""

import pytest

pytest.importorskip('mmengine')
pytest.importorskip('mmcv')

import torch
from torch import nn

from ghost_plugin.integrations.openmmlab import model_from_config

CONFIG = """
default_scope = 'mmpretrain'
data_preprocessor = dict(mean=[127.5] * 3, std=[255.0] * 3, to_rgb=True)
model = dict(
    type='ImageClassifier',
    backbone=dict(type='ghost_plugin.GhostNet', width=0.5, out_indices=(5,)),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=4, in_channels=480),
)
val_dataloader = dict(dataset=dict(pipeline=[dict(type='CenterCrop', crop_size=64)]))
"""


def test_a_classifier(tmp_path):
    pytest.importorskip('mmpretrain')
    (tmp_path / 'a.py').write_text(CONFIG)
    model, preprocessing, as_input = model_from_config.build(str(tmp_path / 'a.py'), num_classes=7)
    assert preprocessing.size == (64, 64) and not preprocessing.bgr
    assert preprocessing.mean == (0.5,) * 3 and preprocessing.std == (1.0,) * 3
    images = torch.randn(2, 3, 64, 64)
    assert as_input(images) is images
    assert model.eval()(images).shape == (2, 7)
    assert model.head.fc.out_features == 7


@pytest.mark.parametrize(
    'text, said',
    [
        ('x = 1', 'has no model'),
        ('raise RuntimeError(3)', 'cannot read .*a.py:FUNCTION'),
        ("model = dict(type='Unheard')", 'cannot build .*Unheard'),
    ],
)
def test_configs_without_a_model(text, said, tmp_path):
    (tmp_path / 'a.py').write_text(text)
    with pytest.raises(ValueError, match=said):
        model_from_config.build(str(tmp_path / 'a.py'))


def test_no_head_with_classes(tmp_path):
    (tmp_path / 'a.py').write_text("model = dict(type='ghost_plugin.GhostNet')")
    with pytest.raises(ValueError, match='no head with num_classes'):
        model_from_config.build(str(tmp_path / 'a.py'), num_classes=3)


class BaseDetector(nn.Module):
    """Named like MMDetection's base class."""


class Pyramid(BaseDetector):
    """Has a level of stride 64, as P6 models of MMYOLO."""

    def forward(self, inputs, data_samples, mode):
        assert mode == 'tensor' and inputs.shape[-1] % 64 == 0


@pytest.mark.parametrize(
    ('kind', 'size'), [(Pyramid, 256), (BaseDetector, 224), (nn.Identity, 224)]
)
def test_the_second_size_is_taken_where_the_first_fails(kind, size):
    pytest.importorskip('mmdet')
    assert model_from_config.image_size(kind(), {}) == (size, size)


def test_detectors_need_image_sizes():
    pytest.importorskip('mmdet')
    detector = type('Detector', (BaseDetector,), {})()
    given = model_from_config.model_input(detector, torch.zeros(2, 3, 32, 48), 'predict')
    assert given['mode'] == 'predict' and len(given['data_samples']) == 2
    assert given['data_samples'][0].img_shape == (32, 48)
    assert model_from_config.raw_output_mode(detector, (32, 48)) == 'predict'
