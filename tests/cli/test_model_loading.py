"""Models by name: built with the right preprocessing, or refused with a remedy."""

import pytest
import torch
from torch import nn

pytest.importorskip('PIL')

from ghost_plugin.cli import model_loading
from ghost_plugin.training.evaluation import costs

FILE = """
from torch import nn
import beside

def net(num_classes=3):
    return nn.Sequential(nn.Conv2d(3, beside.WIDTH, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(beside.WIDTH, num_classes))

def number():
    return 3

def known():
    model = net()
    model.pretrained_cfg = {'input_size': (3, 40, 48), 'mean': (0.1, 0.2, 0.3)}
    return model

def failing():
    raise RuntimeError('out of\\nluck')

class Deep(nn.Module):
    pass
"""


@pytest.fixture
def file(tmp_path):
    (tmp_path / 'beside.py').write_text('WIDTH = 4\n')
    path = tmp_path / 'nets.py'
    path.write_text(FILE)
    return path


def test_function_in_a_file(file):
    source = model_loading.load(f'{file}:net')
    assert source.model[3].out_features == 3 and not source.model.training
    assert model_loading.load(f'{file}:net', num_classes=7).model[3].out_features == 7
    assert source.preprocessing.size == (224, 224)
    given = model_loading.load(f'{file}:known').preprocessing
    assert (given.size, given.mean) == ((40, 48), (0.1, 0.2, 0.3))


def test_two_files_of_one_name_are_two(file, tmp_path):
    model_loading.load(f'{file}:net')
    other = tmp_path / 'other/nets.py'
    other.parent.mkdir()
    other.write_text('from torch import nn\n\ndef net():\n    return nn.Conv2d(3, 8, 1)\n')
    assert isinstance(model_loading.load(f'{other}:net').model, nn.Conv2d)


@pytest.mark.parametrize(
    'name, said',
    [
        ('nets.py:nett', "no function 'nett'; it has net"),
        ('nets.py:number', 'returns a int, not a torch.nn.Module'),
        ('nets.py:failing', 'RuntimeError: out of luck'),
        ('none.py:net', 'no file at'),
        ('none.py', 'no config at'),
        ('resnet50', 'a model is timm:NAME'),
    ],
)
def test_what_a_name_lacks_is_said(file, name, said):
    if name == 'none.py':
        pytest.importorskip('mmengine')
    name = f'{file.parent}/{name}' if '.py' in name else name
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        model_loading.load(name)
    broken = file.with_name('broken.py')
    broken.write_text('def net(:\n')
    with pytest.raises(ValueError, match='SyntaxError'):
        model_loading.load(f'{broken}:net')


def test_a_checkpoint_is_loaded(file, tmp_path):
    model = model_loading.load(f'{file}:net').model
    torch.save({'state_dict': model.state_dict()}, tmp_path / 'w.pth')
    again = model_loading.load(f'{file}:net', checkpoint=tmp_path / 'w.pth').model
    assert torch.equal(model[0].weight, again[0].weight)
    with pytest.raises(FileNotFoundError, match='no checkpoint'):
        model_loading.load(f'{file}:net', checkpoint=tmp_path / 'none.pth')
    with pytest.raises(ValueError, match='no published weights'):
        model_loading.load(f'{file}:net', pretrained=True)


def test_a_failed_download_names_the_way_round_it(monkeypatch):
    timm = pytest.importorskip('timm')

    def offline(*_, **options):
        raise OSError('no route')

    monkeypatch.setattr(timm, 'create_model', offline)
    with pytest.raises(ValueError, match=r'no route; give a local file .*--checkpoint'):
        model_loading.load('timm:resnet18', pretrained=True)


def test_a_file_without_its_function_is_told(tmp_path):
    pytest.importorskip('mmengine')
    broken = tmp_path / 'net.py'
    broken.write_text('def net(:')
    with pytest.raises(ValueError, match=r'a function .* is .*net\.py:FUNCTION'):
        model_loading.load(str(broken))


def test_timm():
    pytest.importorskip('timm')
    source = model_loading.load('timm:tf_efficientnet_lite0', num_classes=5)
    assert source.preprocessing.mean == (0.5, 0.5, 0.5) and source.preprocessing.crop_pct == 0.875
    assert source.model(source.example()).shape == (1, 5)
    with pytest.raises(ValueError, match=r"no model 'resnet19'; did you mean resnet18"):
        model_loading.load('timm:resnet19')
    with pytest.raises(ValueError, match='timm:resnet18, torchvision:resnet18'):
        model_loading.load('resnet18')


@pytest.mark.parametrize(
    'name, size',
    [('squeezenet1_1', (224, 224)), ('lraspp_mobilenet_v3_large', (520, 520)),
     ('ssdlite320_mobilenet_v3_large', (224, 224))],
)  # fmt: skip
def test_torchvision(name, size):
    pytest.importorskip('torchvision')
    source = model_loading.load(f'torchvision:{name}')
    assert source.preprocessing.size == size
    assert costs(source.model, source.adjusted((64, 64)).example())['macs'] > 0


def test_torchvision_refuses():
    pytest.importorskip('torchvision')
    with pytest.raises(ValueError, match=r"torchvision has no model 'fcn_resnet_50'.*fcn_resnet50"):
        model_loading.load('torchvision:fcn_resnet_50')


def test_mmpretrain():
    pytest.importorskip('mmpretrain')
    source = model_loading.load('mmpretrain::resnet/resnet18_8xb32_in1k.py', num_classes=7)
    assert source.model(source.example()).shape == (1, 7)
    assert source.preprocessing.size == (224, 224) and not source.preprocessing.bgr
    assert source.preprocessing.mean == pytest.approx((0.485, 0.456, 0.406), abs=1e-3)


@pytest.mark.parametrize(
    'name, bgr',
    [('retinanet/retinanet_r50_fpn_1x_coco.py', False),
     ('faster_rcnn/faster-rcnn_r50-caffe_fpn_1x_coco.py', True)],
)  # fmt: skip
def test_mmdet_one_and_two_stages(name, bgr):
    pytest.importorskip('mmdet')
    source = model_loading.load(f'mmdet::{name}').adjusted((64, 64))
    assert source.preprocessing.bgr == bgr
    assert costs(source.model, source.example())['macs'] > 0


@pytest.mark.parametrize(
    'name, said',
    [('mmdet::retinanet/none.py', 'none.py'), ('mmdet::_base_/default_runtime.py', 'no model'),
     ('mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py', 'no head with num_classes'),
     ('mmfoo::a.py', 'mmfoo')],
)  # fmt: skip
def test_configs_that_hold_no_such_model(name, said):
    pytest.importorskip('mmdet')
    with pytest.raises((ValueError, OSError, ImportError), match=said):
        model_loading.load(name, num_classes=3)


def test_the_preprocessing_is_adjusted(file):
    source = model_loading.load(f'{file}:net')
    assert source.adjusted().preprocessing == source.preprocessing
    small = source.adjusted((32, 48), [0, 0, 0], [1, 1, 1])
    assert (small.preprocessing.crop_pct, small.preprocessing.mean, small.preprocessing.std) == (
        1.0,
        (0, 0, 0),
        (1, 1, 1),
    )
    assert source.adjusted((160, 160)).preprocessing.crop_pct == source.preprocessing.crop_pct
    assert small.example().shape == (1, 3, 32, 48)
