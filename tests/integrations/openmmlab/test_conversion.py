import pytest
import torch

pytest.importorskip('mmpretrain')

from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import load_checkpoint

import ghost_plugin as gp

CLASSIFIER = Config._get_cfg_path('mmpretrain::resnet/resnet18_8xb16_cifar10.py', '')[0]


@pytest.fixture
def images():
    return torch.randn(2, 3, 32, 32)


def narrow():
    """Config of a ResNet-18 with a quarter of its channels."""
    init_default_scope('mmpretrain')
    model = Config.fromfile(CLASSIFIER).model
    model.backbone.update(stem_channels=16, base_channels=16)
    model.head.in_channels = 128
    return model


def built(**options):
    model = MODELS.build(dict(type='ghost_plugin.Converted', model=narrow(), size=32, **options))
    return model.eval()


def dense():
    return MODELS.build(narrow()).eval()


@pytest.mark.parametrize('plan', [dict(ratio=2), dict(macs=0.7)])
def test_the_inner_model_itself_comes_back_with_ghost_convs(plan, images):
    model, plain = built(plan=plan), dense()
    assert type(model) is type(plain)
    assert any(isinstance(m, gp.GhostConv2d) for m in model.modules())
    assert model(images)[0].shape == plain(images)[0].shape
    model.train()
    labels = [torch.tensor([0]), torch.tensor([1])]
    samples = [_sample(label) for label in labels]
    sum(model.loss(images, samples).values()).backward()
    assert all(p.grad is not None for p in model.parameters())


def _sample(label):
    from mmpretrain.structures import DataSample

    return DataSample().set_gt_label(label)


def test_a_plan_file_of_the_same_model_is_taken(tmp_path, images):
    made = gp.plan(dense(), images[:1], ratio=4)
    made.save(tmp_path / 'plan.json')
    model = built(plan=str(tmp_path / 'plan.json'))
    assert gp.count(model, images).macs == 2 * made.totals['macs_after']
    other = gp.plan(torch.nn.Conv2d(3, 8, 3), images[:1])
    other.save(tmp_path / 'other.json')
    with pytest.raises(ValueError, match='made for another'):
        built(plan=str(tmp_path / 'other.json'))


def test_dense_and_converted_checkpoints_load(tmp_path, images):
    plain, model = dense(), built(plan=dict(ratio=2))
    torch.save(plain.state_dict(), tmp_path / 'dense.pth')
    load_checkpoint(model, str(tmp_path / 'dense.pth'), strict=True)
    expected = gp.plan(plain, images[:1], ratio=2).apply(plain)
    torch.testing.assert_close(model(images)[0], expected(images)[0], rtol=1e-3, atol=1e-3)
    torch.save(model.state_dict(), tmp_path / 'converted.pth')
    twin = built(plan=dict(ratio=2))
    load_checkpoint(twin, str(tmp_path / 'converted.pth'), strict=True)
    torch.testing.assert_close(twin(images)[0], model(images)[0], rtol=0, atol=0)


def test_detectors_are_converted_too():
    pytest.importorskip('mmdet')
    init_default_scope('mmdet')
    cfg = Config.fromfile(
        Config._get_cfg_path('mmdet::retinanet/retinanet_r18_fpn_1x_coco.py', '')[0]
    )
    cfg.model.backbone.init_cfg = None
    made = dict(ratio=2, include='backbone')
    model = MODELS.build(dict(type='ghost_plugin.Converted', model=cfg.model, plan=made, size=64))
    assert sum(isinstance(m, gp.GhostConv2d) for m in model.backbone.modules()) > 15
    assert not any(isinstance(m, gp.GhostConv2d) for m in model.bbox_head.modules())


class Late(BaseModel):
    """Runs only when its weights are initialised; they would come from a file that is not there."""

    def __init__(self):
        super().__init__(init_cfg=[dict(type='Pretrained', checkpoint='no/such/file.pth')])
        self.stem, self.body = torch.nn.Conv2d(3, 32, 3), torch.nn.Conv2d(32, 32, 3)
        self.head = torch.nn.Conv2d(32, 8, 1)
        self.ready = False

    def init_weights(self):
        super().init_weights()
        self.ready = True

    def forward(self, inputs, data_samples=None, mode='tensor'):
        assert self.ready
        return self.head(self.body(self.stem(inputs)))


def test_a_plan_is_made_on_initialised_weights_but_no_checkpoint_is_fetched_for_it(capsys):
    made = dict(type='ghost_plugin.Converted', model=dict(type=Late), plan=dict(ratio=2), size=32)
    model = MODELS.build(made)
    assert isinstance(model.body, gp.GhostConv2d)
    assert not model.ready and model.init_cfg[0]['checkpoint'] == 'no/such/file.pth'
    assert 'init_weights' not in capsys.readouterr().out
