import copy
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip('mmengine')
pytest.importorskip('mmcv')
pytest.importorskip('mmpretrain')

from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import InstanceData
from mmpretrain.structures import DataSample

from ghost_plugin.integrations.openmmlab.backbone_swap import load_config
from ghost_plugin.integrations.openmmlab.distillation import renormalize


def classifier(width, mean):
    channels = {0.5: 480, 1.0: 960}[width]
    return dict(
        type='ImageClassifier',
        backbone=dict(type='ghost_plugin.GhostNet', width=width, out_indices=(5,)),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=4, in_channels=channels),
        data_preprocessor=dict(mean=[mean] * 3, std=[50] * 3),
    )


def step(model, data):
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), 0.01))
    return model.train_step(data, wrapper)


def test_classifier_learns_from_a_teacher_and_stays_itself():
    init_default_scope('mmpretrain')
    cfg = dict(type='ghost_plugin.Distilled', student=classifier(0.5, 100),
               teacher=classifier(1.0, 120), logits=['head.fc'])  # fmt: skip
    model = MODELS.build(cfg)
    plain = MODELS.build(classifier(0.5, 100))
    assert isinstance(model, type(plain))
    assert list(model.state_dict()) == list(plain.state_dict())
    assert len(list(model.parameters())) == len(list(plain.parameters()))
    seen = []
    teacher = model.teacher.content
    teacher.backbone.register_forward_pre_hook(lambda m, x: seen.append(x[0]))
    inputs = torch.randint(0, 255, (2, 3, 64, 64), dtype=torch.uint8)
    data = dict(inputs=inputs, data_samples=[DataSample().set_gt_label(i) for i in (0, 3)])
    before = copy.deepcopy(teacher.state_dict())
    log = step(model, data)
    assert log['loss_distill'] > 0
    assert log['loss'] > log['loss_distill']
    torch.testing.assert_close(seen[0], (inputs.float() - 120) / 50, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(dict(teacher.state_dict()), dict(before), rtol=0, atol=0)
    averaged = copy.deepcopy(model)
    assert averaged.teacher.content is teacher
    assert len(model.eval().test_step(data)) == 2


def distilled(**teacher):
    init_default_scope('mmpretrain')
    options = {key: teacher.pop(key) for key in ('teacher_checkpoint',) if key in teacher}
    return MODELS.build(
        dict(type='ghost_plugin.Distilled', student=classifier(0.5, 1), logits=['head.fc'],
             teacher={**classifier(0.5, 1), **teacher}, **options)
    )  # fmt: skip


@pytest.fixture
def master(tmp_path):
    """A teacher that somebody trained, and its file."""
    model = MODELS.build(classifier(0.5, 1))
    torch.save({'state_dict': model.state_dict()}, tmp_path / 'teacher.pth')
    return model.state_dict(), str(tmp_path / 'teacher.pth')


@pytest.mark.parametrize('where', ['init_cfg', 'teacher_checkpoint'])
def test_the_teachers_own_weights_are_loaded(where, master, caplog):
    state, path = master
    rows = {'init_cfg': dict(type='Pretrained', checkpoint=path), 'teacher_checkpoint': path}
    model = distilled(**{where: rows[where]})
    model.init_weights()
    got = model.teacher.content
    torch.testing.assert_close(dict(got.state_dict()), dict(state), rtol=0, atol=0)
    assert not any(p.requires_grad for p in got.parameters())
    assert 'random weights' not in caplog.text


def test_a_teacher_without_weights_is_named(master, caplog):
    distilled().init_weights()
    assert "teacher's backbone, head has random weights" in caplog.text
    caplog.clear()
    backbone = dict(classifier(0.5, 1)['backbone'])
    backbone['init_cfg'] = dict(type='Pretrained', checkpoint=master[1], prefix='backbone.')
    distilled(backbone=backbone).init_weights()
    assert "teacher's head has random weights" in caplog.text


def test_a_checkpoint_of_another_model_is_no_teachers(tmp_path):
    torch.save({'conv9.weight': torch.zeros(3)}, tmp_path / 'other.pth')
    with pytest.raises(ValueError, match=r'other\.pth.* does not load into the teacher'):
        distilled(teacher_checkpoint=str(tmp_path / 'other.pth'))


RGB = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
LOOKS = {
    'rgb': RGB,
    'caffe': dict(mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0]),
    'none': dict(),
    'rgb, no mean': dict(to_rgb=True),
    'detectors': dict(
        {k: v for k, v in RGB.items() if k != 'to_rgb'},
        type='mmengine.ImgDataPreprocessor', bgr_to_rgb=True,
    ),
}  # fmt: skip


@pytest.mark.parametrize('mine', LOOKS)
@pytest.mark.parametrize('theirs', LOOKS)
def test_the_teacher_sees_what_its_own_preprocessor_gives(mine, theirs):
    init_default_scope('mmpretrain')
    student, teacher = (
        MODELS.build({'type': 'ClsDataPreprocessor', **LOOKS[name]}) for name in (mine, theirs)
    )
    data = dict(inputs=torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8))
    got = renormalize(student(dict(data))['inputs'], student, teacher)
    torch.testing.assert_close(got, teacher(dict(data))['inputs'], rtol=1e-5, atol=1e-3)


def test_preprocessors_of_older_segmentors_say_otherwise_that_they_flip_colours():
    mine, theirs = SimpleNamespace(channel_conversion=True), SimpleNamespace()
    images = torch.randn(1, 3, 2, 2)
    torch.testing.assert_close(renormalize(images, mine, theirs), images.flip(1), rtol=0, atol=0)


def test_detector_learns_from_its_neck():
    pytest.importorskip('mmdet')
    init_default_scope('mmdet')
    detector = load_config('mmdet::_base_/models/retinanet_r50_fpn.py').model
    detector.backbone = dict(type='ghost_plugin.GhostNet', width=0.5)
    detector.neck.update(in_channels=[12, 20, 56, 80], out_channels=32)
    detector.bbox_head.update(in_channels=32, feat_channels=32, num_classes=3)
    model = MODELS.build(
        dict(type='ghost_plugin.Distilled', student=detector, teacher=detector, features=['neck'])
    )
    from mmdet.structures import DetDataSample

    sample = DetDataSample(metainfo=dict(img_shape=(64, 64), pad_shape=(64, 64), scale_factor=1.0))
    sample.gt_instances = InstanceData(
        bboxes=torch.tensor([[5.0, 5, 40, 40]]), labels=torch.tensor([1])
    )
    log = step(model, dict(inputs=[torch.randn(3, 64, 64)], data_samples=[sample]))
    assert log['loss_distill'] > 0
    assert {'loss_cls', 'loss_bbox'} <= set(log)


def test_nothing_to_compare_and_wrong_names():
    init_default_scope('mmpretrain')
    cfg = dict(
        type='ghost_plugin.Distilled', student=classifier(0.5, 1), teacher=classifier(0.5, 1)
    )
    with pytest.raises(ValueError, match='nothing to compare'):
        MODELS.build(cfg)
    with pytest.raises(ValueError, match=r"no module 'head\.f'; did you mean 'head\.fc'"):
        MODELS.build({**cfg, 'logits': ['head.f']})
