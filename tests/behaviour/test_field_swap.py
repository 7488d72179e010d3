"""A swapped config runs or is refused: readers of levels, leftovers, kinds of model, strides."""

import copy
from pathlib import Path

import pytest

pytest.importorskip('mmengine')
pytest.importorskip('mmcv')

import torch
from mmengine.config import Config
from mmengine.model import BaseModel, BaseModule
from mmengine.registry import MODELS
from torch import nn

from ghost_plugin.integrations.openmmlab.backbone_swap import (
    consumers,
    load_config,
    swap_backbone,
    write_config,
)
from ghost_plugin.integrations.openmmlab.backbone_swap.kinds import find_kind
from ghost_plugin.integrations.openmmlab.backbone_swap.smoke_test import (
    build,
    smoke_test,
    train_and_predict,
    verify,
)

GHOST = 'ghost_plugin.GhostNet'
OLD, CHANNELS = [16, 32, 64, 128], [12, 20, 56, 80]  # the second: GhostNet 0.5x, strides 4 to 32


class BaseSegmentor(BaseModel):
    """Named like MMSegmentation's base class."""


class BaseDetector(BaseModel):
    """Named like MMDetection's base class."""


class BasePoseEstimator(BaseModel):
    """Named like MMPose's base class."""


class BaseRecognizer(BaseModel):
    """Named like MMAction2's base class."""


class Base3DDetector(BaseDetector):
    """Named like MMDetection3D's base class, which inherits MMDetection's."""


@MODELS.register_module(force=True)
class FieldBackbone(BaseModule):
    def __init__(self, channels=OLD, strides=(4, 8, 16, 32), dilations=None):
        super().__init__()
        self.levels = nn.ModuleList(
            nn.Conv2d(3, width, 1, stride=stride)
            for width, stride in zip(channels, strides, strict=True)
        )

    def forward(self, x):
        return tuple(level(x) for level in self.levels)


@MODELS.register_module(force=True)
class FieldHead(BaseModule):
    """Reads levels as MMSegmentation's heads do."""

    def __init__(self, in_channels, in_index=-1, c1_in_channels=0, inner=None, init_cfg=None):
        super().__init__(init_cfg)
        several = isinstance(in_channels, list | tuple)
        self.index = in_index if several else [in_index]
        widths = in_channels if several else [in_channels]
        self.convs = nn.ModuleList(nn.Conv2d(width, 4, 1) for width in widths)
        self.low = nn.Conv2d(c1_in_channels, 4, 1) if c1_in_channels else None
        self.inner = MODELS.build(inner) if inner else None

    def forward(self, maps):
        pairs = zip(self.convs, self.index, strict=True)
        total = sum(conv(maps[index]).mean() for conv, index in pairs)
        total = total + self.low(maps[0]).mean() if self.low else total
        return total + self.inner(maps) if self.inner else total


@MODELS.register_module(force=True)
class FieldNeck(BaseModule):
    """Hands its first levels on and makes one more, as MMSegmentation's JPU."""

    def __init__(self, in_channels, out_channels=24):
        super().__init__()
        assert isinstance(in_channels, tuple)
        self.conv = nn.Conv2d(in_channels[-1], out_channels, 1)

    def forward(self, maps):
        return (*maps[:-1], self.conv(maps[-1]))


class _Field(BaseModel):
    def __init__(self, backbone, neck=None, pretrained=None, init_cfg=None,
                 data_preprocessor=None, **heads):  # fmt: skip
        super().__init__(data_preprocessor, init_cfg)
        if pretrained is not None:
            backbone['pretrained'] = pretrained
        self.backbone = MODELS.build(backbone)
        self.neck = MODELS.build(neck) if neck else nn.Identity()
        parts = [one for head in heads.values() for one in (head if type(head) is list else [head])]
        self.heads = nn.ModuleList(MODELS.build(one) for one in parts)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        maps = self.neck(self.backbone(inputs))
        loss = sum(head(maps) for head in self.heads)
        return {'loss': loss} if mode == 'loss' else [loss]

    def predict(self):
        """Exists, so that it is tried."""


@MODELS.register_module(force=True)
class FieldSegmentor(_Field, BaseSegmentor):
    pass


@MODELS.register_module(force=True)
class FieldPose(_Field, BasePoseEstimator):
    pass


@MODELS.register_module(force=True)
class FieldRecognizer(_Field, BaseRecognizer):
    pass


@MODELS.register_module(force=True)
class Field3DDetector(_Field, Base3DDetector):
    pass


@MODELS.register_module(force=True)
class FieldNothing(_Field):
    pass


@MODELS.register_module(force=True)
class FieldMute(FieldSegmentor):
    """Learns and cannot predict."""

    def forward(self, inputs, data_samples=None, mode='tensor'):
        if mode == 'predict':
            raise AttributeError("'FieldMute' object has no attribute 'loss_cls'")
        return super().forward(inputs, data_samples, mode)


def head(channels=OLD[-1], index=-1, **more):
    return {'type': 'FieldHead', 'in_channels': channels, 'in_index': index, **more}


def config(kind='FieldSegmentor', strides=(4, 8, 16, 32), dilations=None, **parts):
    backbone = {'type': 'FieldBackbone', 'strides': list(strides), 'dilations': dilations}
    look = {'type': 'ImgDataPreprocessor', 'mean': [0.0] * 3, 'std': [255.0] * 3}
    parts = parts or {'decode_head': head()}
    model = {'type': kind, 'backbone': backbone, 'data_preprocessor': look, **parts}
    return Config({'default_scope': 'mmengine', 'model': model})


def swapped(cfg, **options):
    """The config after the swap, and the swap."""
    swap = swap_backbone(cfg, GHOST, {'width': 0.5, **options})
    merged = Config._merge_a_into_b(copy.deepcopy(swap.change), cfg.to_dict())
    return Config(merged), swap


def at(node, place):
    for key in place.split('.'):
        node = node[int(key)] if key.isdigit() else node[key]
    return node


READERS = {
    'one head that names no level': (
        {'decode_head': {'type': 'FieldHead', 'in_channels': 128}},
        {'decode_head.in_channels': 80},
    ),
    'one auxiliary head': (
        {'decode_head': head(), 'auxiliary_head': head(64, 2)},
        {'decode_head.in_channels': 80, 'auxiliary_head.in_channels': 56},
    ),
    'a list of auxiliary heads': (
        {'decode_head': head(), 'auxiliary_head': [head(64, 2), head(16, 0), head(32, -3)]},
        {'auxiliary_head.0.in_channels': 56, 'auxiliary_head.1.in_channels': 12,
         'auxiliary_head.2.in_channels': 20},
    ),
    'several levels and a sibling': (
        {'decode_head': head(OLD, [0, 1, 2, 3]), 'aux_head': head([32, 128], [1, 3])},
        {'decode_head.in_channels': CHANNELS, 'aux_head.in_channels': [20, 80]},
    ),
    'low-level channels': (
        {'decode_head': head(128, 3, c1_in_channels=16), 'auxiliary_head': head(64, 2)},
        {'decode_head.c1_in_channels': 12, 'decode_head.in_channels': 80},
    ),
    'a head within a head': (
        {'decode_head': head(128, 3, inner=head(OLD, [0, 1, 2, 3]))},
        {'decode_head.inner.in_channels': CHANNELS},
    ),
    'a list of heads': (
        {'decode_head': [head(OLD, [0, 1, 2, 3]), head(64, 2)]},
        {'decode_head.0.in_channels': CHANNELS, 'decode_head.1.in_channels': 56},
    ),
    'levels handed on by a neck': (
        {'neck': {'type': 'FieldNeck', 'in_channels': tuple(OLD)}, 'decode_head': head(24, 3),
         'auxiliary_head': head(64, 2)},
        {'neck.in_channels': tuple(CHANNELS), 'decode_head.in_channels': 24,
         'auxiliary_head.in_channels': 56},
    ),
}  # fmt: skip


@pytest.mark.parametrize('name', READERS)
def test_every_reader_of_levels_is_fitted_and_trains(name):
    parts, wanted = READERS[name]
    cfg = config(**parts)
    new, _ = swapped(cfg)
    assert {place: at(new.model, place) for place in wanted} == wanted
    train_and_predict(*build(new), 64)


@pytest.mark.parametrize(
    'parts',
    [
        {'decode_head': head(128, 3), 'auxiliary_head': head(64, 2)},
        {'decode_head': head(128, 3, c1_in_channels=16)},
        {'decode_head': head(128, 3), 'auxiliary_head': [head(32, 1), head(64, 2)]},
    ],
)
def test_dilated_segmentors_have_no_parameter_without_gradient(parts):
    cfg = config(strides=(4, 8, 8, 8), dilations=[1, 1, 2, 4], **parts)
    new, _ = swapped(cfg)
    assert verify(cfg, new) == []
    model, part = build(new)
    train_and_predict(model, part, 64)
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize('place', ['decode_head', 'auxiliary_head', 'aux_head'])
def test_channels_of_no_level_are_refused(place):
    parts = {'decode_head': head(), place: head(100, 2)}
    with pytest.raises(ValueError, match=rf'{place} \(FieldHead\) has in_channels=100 for level 2'):
        swap_backbone(config(**parts), GHOST)


def test_a_level_that_nobody_reads_is_named():
    cfg = config(decode_head=head(64, 2))
    remarks = verify(cfg, swapped(cfg)[0])
    assert len(remarks) == 1 and 'find_unused_parameters' in remarks[0]


@pytest.mark.parametrize(
    'strides, options, levels',
    [
        ((4, 8, 8, 8), {}, (1, 4)),
        ((4, 8, 8, 8), {'output_stride': 8}, (1, 4)),
        ((4, 8, 8, 8), {'output_stride': 16}, (1, 4)),
        ((4, 8, 8, 8), {'output_stride': 32}, (1, 4)),
        ((4, 8, 16, 16), {}, (1, 2, 4)),
        ((4, 8, 16, 16), {'output_stride': 16}, (1, 2, 4)),
        ((4, 8, 8, 8), {'output_stride': 8, 'out_indices': (1, 2, 3, 4)}, (1, 2, 3, 4)),
    ],
)
def test_the_deepest_level_of_a_stride_is_taken(strides, options, levels):
    cfg = config(strides=strides, dilations=[1, 1, 2, 4], decode_head=head(c1_in_channels=16))
    new, _ = swapped(cfg, **options)
    backbone = new.model.backbone
    assert tuple(backbone.get('backbone', backbone).out_indices) == levels
    assert new.model.decode_head.in_channels == 80
    assert verify(cfg, new) == []


@pytest.mark.parametrize('options', [{}, {'output_stride': 16}])
def test_a_dilated_detector_keeps_the_whole_backbone(options):
    pytest.importorskip('mmdet')
    source = 'mmdet::faster_rcnn/faster-rcnn_r50-caffe-dc5_1x_coco.py'
    backbone = swapped(load_config(source), **options)[0].model.backbone
    assert (backbone.out_indices, backbone.output_stride) == ((4,), 16)


def test_other_strides_than_before_are_named():
    _, swap = swapped(config(), output_stride=16)
    assert any('strides [4, 8, 16, 16] and had [4, 8, 16, 32]' in one for one in swap.remarks)
    _, swap = swapped(config(strides=(2, 4, 8, 16)))
    assert any('ends at level 3 of 4' in one for one in swap.remarks)


WEIGHTS = {'type': 'Pretrained', 'checkpoint': 'old.pth'}


@pytest.mark.parametrize(
    'leftover, left',
    [
        ({'pretrained': 'open-mmlab://resnet50_v1c'}, {'pretrained': None}),
        ({'init_cfg': WEIGHTS}, {'init_cfg': None}),
        ({'init_cfg': [WEIGHTS, {'type': 'Normal', 'std': 1.0}]},
         {'init_cfg': [{'type': 'Normal', 'std': 1.0}]}),
        ({'decode_head': head(init_cfg=WEIGHTS)}, {'decode_head.init_cfg': None}),
    ],
)  # fmt: skip
def test_weights_of_the_old_model_go(leftover, left):
    cfg = config(**{'decode_head': head(), **leftover})
    new, swap = swapped(cfg)
    assert {place: at(new.model, place) for place in left} == left
    assert any('dropped' in remark for remark in swap.remarks)
    assert verify(cfg, new) == []
    MODELS.build(copy.deepcopy(new.model)).init_weights()


@pytest.mark.parametrize('kind', ['FieldSegmentor', 'FieldPose'])
@pytest.mark.parametrize('key', ['head', 'decode_head', 'keypoint_head'])
def test_the_class_says_what_a_model_is_and_not_its_keys(kind, key):
    cfg = config(kind, **{key: {'type': 'FieldHead', 'in_channels': 128}})
    new, _ = swapped(cfg)
    assert 'neck' not in new.model and new.model[key].in_channels == 80
    assert new.model.backbone.out_indices == (1, 2, 3, 4)


@pytest.mark.parametrize(
    'kind, scope, said',
    [
        ('FieldRecognizer', 'mmengine', 'FieldRecognizer .* cannot be swapped: it reads clips'),
        ('Field3DDetector', 'mmengine', 'Field3DDetector .* cannot be swapped: it reads point'),
        ('FieldNothing', 'mmengine', 'it inherits none of BaseClassifier'),
        ('Recognizer2D', 'mmaction', 'Recognizer2D of mmaction cannot be swapped: its recog'),
        ('mmdet3d.CenterPoint', None, 'CenterPoint of mmdet3d cannot be swapped'),
        ('Recognizer2D', None, 'Recognizer2D is not registered here'),
        ('Unheard', 'mmengine', "Unheard is not registered here in the scope 'mmengine'"),
    ],
)
def test_an_unknown_kind_is_refused_by_name(kind, scope, said):
    cfg = config(kind, cls_head={'type': 'FieldHead', 'in_channels': 128})
    cfg.default_scope = scope
    with pytest.raises(ValueError, match=said) as caught:
        swap_backbone(cfg, GHOST)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
    'kind, name, package',
    [
        ('RetinaNet', 'detector', 'mmdet'),
        ('Mask2FormerVideo', 'detector', 'mmdet'),
        ('BaseReID', 'classifier', 'mmdet'),
        ('ImageClassifier', 'classifier', 'mmpretrain'),
        ('SimCLR', 'classifier', 'mmpretrain'),
        ('EncoderDecoder', 'segmentor', 'mmseg'),
        ('TopdownPoseEstimator', 'pose estimator', 'mmpose'),
    ],
)
def test_kinds_of_registered_models(kind, name, package):
    pytest.importorskip(f'{package}.models')
    pytest.importorskip('mmpretrain')
    assert find_kind({'type': kind}, package).name == name
    assert find_kind({'type': f'{package}.{kind}'}, None).name == name


@pytest.mark.parametrize(
    'broken, said',
    [
        ({'decode_head.in_channels': 7}, r'does not run: .*; the config as it was runs'),
        ({'decode_head.no_such': 1}, r'cannot build the model: .*; the config as it was runs'),
        ({'backbone.frozen_stages': 4}, r'freeze fewer stages; the config as it was runs'),
    ],
)
def test_a_config_that_does_not_run_is_not_written(broken, said, tmp_path):
    (tmp_path / 'base.py').write_text(config(decode_head=head()).pretty_text)
    cfg = load_config(tmp_path / 'base.py')
    swap = swap_backbone(cfg, GHOST, {'width': 0.5})
    change = Config(swap.change)
    change.merge_from_dict({f'model.{key}': value for key, value in broken.items()})
    bases = [str(tmp_path / 'base.py')]
    with pytest.raises(ValueError, match=said):
        write_config(tmp_path / 'mine.py', bases, change.to_dict(),
                     accept=lambda new: verify(cfg, new))  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ['base.py']


def test_what_cannot_be_verified_says_so():
    cfg = config(decode_head=head(), auxiliary_head={'type': 'FieldUnheard'})
    (remark,) = verify(cfg, swapped(cfg)[0])
    assert remark.startswith('NOT VERIFIED') and 'fails in the same way' in remark
    new = swapped(cfg)[0]
    new.model.auxiliary_head.type = 'FieldOther'
    with pytest.raises(ValueError, match=r'FieldOther.*for another reason.*FieldUnheard'):
        verify(cfg, new)


def test_a_check_recognises_the_fault_of_the_original():
    cfg = config('FieldMute')
    new = swapped(cfg)[0]
    assert verify(cfg, new) == []
    with pytest.raises(ValueError, match=r'loss_cls.*fails in the same way, so the swap is not'):
        smoke_test(cfg, new, 64)


def test_levels_that_a_neck_skips_are_found():
    pytest.importorskip('mmdet')
    neck = {'type': 'FPN', 'in_channels': OLD, 'out_channels': 8, 'start_level': 1, 'num_outs': 4}
    maps = list(zip(OLD, (4, 8, 16, 32), strict=True))
    assert consumers.levels_read({'neck': neck}, maps, 'mmdet') == [False, True, True, True]
    assert consumers.levels_read({}, maps, 'mmdet') == [True] * 4


def installed(package, name):
    """The path of a config of an installed package."""
    module = pytest.importorskip(f'{package}.models')
    path = Path(module.__file__).parents[1] / '.mim/configs' / name
    return path if path.is_file() else pytest.skip(f'{package} has no {name}')


SEGMENTORS = [
    'upernet/upernet_r50_4xb2-40k_cityscapes-512x1024.py',
    'fcn/fcn_r50-d8_4xb2-40k_cityscapes-512x1024.py',
    'pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py',
    'deeplabv3/deeplabv3_r18-d8_4xb2-80k_cityscapes-512x1024.py',
    'deeplabv3plus/deeplabv3plus_r18-d8_4xb2-80k_cityscapes-512x1024.py',
    'fastfcn/fastfcn_r50-d32_jpu_aspp_4xb2-80k_cityscapes-512x1024.py',
    'sem_fpn/fpn_r50_4xb2-80k_cityscapes-512x1024.py',
    'ocrnet/ocrnet_hr18_4xb2-40k_cityscapes-512x1024.py',
]
COCO = 'body_2d_keypoint/{}/coco/{}_8xb64-210e_coco-256x192.py'
POSES = [
    COCO.format('topdown_heatmap', 'td-hm_res50'),
    COCO.format('topdown_heatmap', 'td-hm_mobilenetv2'),
    COCO.format('topdown_regression', 'td-reg_res50'),
    COCO.format('simcc', 'simcc_res50'),
]


@pytest.mark.parametrize('name', SEGMENTORS)
def test_mmsegmentation(name):
    cfg = load_config(installed('mmseg', name))
    new, _ = swapped(cfg)
    assert new.model.pretrained is None
    assert verify(cfg, new) == []
    train_and_predict(*build(new), 128)


@pytest.mark.parametrize('name', POSES)
def test_mmpose(name):
    cfg = load_config(installed('mmpose', name))
    new, _ = swapped(cfg)
    assert (new.model.backbone.out_indices, new.model.head.in_channels) == ((4,), 80)
    assert new.model.get('neck') == cfg.model.get('neck')
    assert verify(cfg, new) == []
    train_and_predict(*build(new))


def test_fakes_train_before_the_swap():
    torch.manual_seed(0)
    for parts, _ in READERS.values():
        train_and_predict(*build(config(**parts)), 64)
