"""The preprocessing of timm and torchvision, and its checks."""

import pytest
import torch

Image = pytest.importorskip('PIL.Image')
timm = pytest.importorskip('timm')

from timm.data import create_transform, resolve_model_data_config

from ghost_plugin.training.preprocessing import Preprocessing, preprocessing_from_cfg


def noise(width, height):
    pixels = torch.randint(0, 256, (height * width * 3,), dtype=torch.uint8)
    return Image.frombytes('RGB', (width, height), bytes(pixels.tolist()))


@pytest.mark.parametrize('name', ['resnet18', 'vit_tiny_patch16_224', 'ghostnet_100'])
def test_timms_data_config_is_kept(name):
    model = timm.create_model(name)
    config = preprocessing_from_cfg(model.pretrained_cfg).data_config()
    assert config == resolve_model_data_config(model)


def test_what_a_config_lacks_has_timms_defaults():
    found = preprocessing_from_cfg({'mean': (0.5,), 'input_size': (3, 96, 64)})
    assert found == Preprocessing((96, 64), interpolation='bicubic')


@pytest.mark.parametrize('size', [(300, 200), (200, 301)])
def test_preprocessing_is_that_of_torchvision(size):
    models = pytest.importorskip('torchvision.models')
    from ghost_plugin.cli.model_loading import _torchvision_preprocessing

    weights, image = models.get_model_weights('resnet50'), noise(*size)
    mine = create_transform(**_torchvision_preprocessing(weights).data_config())
    torch.testing.assert_close(mine(image), weights.DEFAULT.transforms()(image))


def test_bgr_statistics_are_given_in_rgb():
    config = Preprocessing(mean=(0.1, 0.2, 0.3), std=(1, 2, 3), bgr=True).data_config()
    assert config['mean'] == (0.3, 0.2, 0.1) and config['std'] == (3, 2, 1)


@pytest.mark.parametrize(
    'wrong', [{'size': (0, 3)}, {'mean': (0.5,)}, {'std': (1, 1, 0)}], ids=['size', 'mean', 'std']
)
def test_bad_values(wrong):
    with pytest.raises(ValueError, match='must be'):
        Preprocessing(**wrong)
