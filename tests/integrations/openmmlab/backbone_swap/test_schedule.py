"""Learning rates, old weights and data preprocessors follow the new backbone."""

import pytest

pytest.importorskip('mmengine')
pytest.importorskip('mmcv')

from ghost_plugin.integrations.openmmlab.backbone_swap.schedule import (
    old_weights_change,
    preprocessor_change,
    training_change,
)

RGB = {'mean': [123.675, 116.28, 103.53], 'std': [58.395, 57.12, 57.375]}


@pytest.mark.parametrize(
    'old, new',
    [
        ({'type': 'DetDataPreprocessor', 'pad_size_divisor': 32}, {**RGB, 'bgr_to_rgb': True}),
        ({'type': 'mmdet.DetDataPreprocessor', **RGB}, {**RGB, 'bgr_to_rgb': True}),
        ({'type': 'DetDataPreprocessor', 'rgb_to_bgr': True},
         {**RGB, 'bgr_to_rgb': True, 'rgb_to_bgr': False}),
        ({'num_classes': 10}, {**RGB, 'to_rgb': True}),
        ({'mean': RGB['mean'], 'std': [1, 1, 1], 'to_rgb': True}, {**RGB, 'to_rgb': True}),
        ({**{key: tuple(value) for key, value in RGB.items()}, 'to_rgb': True}, None),
        ({'type': 'MultiBranchDataPreprocessor', 'data_preprocessor': {**RGB, 'bgr_to_rgb': False}},
         {'data_preprocessor': {**RGB, 'bgr_to_rgb': True}}),
    ],
)  # fmt: skip
def test_mean_std_and_colours_become_those_of_imagenet_weights(old, new):
    assert preprocessor_change(old) == (new or {})


def test_learning_rates_are_scaled():
    wrapper = {
        'optimizer': {'lr': 0.1},
        'constructor': 'LayerDecayOptimizerConstructor',
        'paramwise_cfg': {'decay_rate': 0.7, 'norm_decay_mult': 0.0},
    }
    change, remarks = training_change({'optim_wrapper': wrapper, 'load_from': 'old.pth'}, 2.0, 0.5)
    assert change == {
        'load_from': None,
        'optim_wrapper': {
            'optimizer': {'lr': 0.2},
            'constructor': 'DefaultOptimWrapperConstructor',
            'paramwise_cfg': {
                '_delete_': True,
                'norm_decay_mult': 0.0,
                'custom_keys': {'backbone': {'lr_mult': 0.5}},
            },
        },
    }
    assert len(remarks) == 2
    assert training_change({}, None, None) == ({}, [])


@pytest.mark.parametrize('factor, said', [(0, 'must be above 0'), (2, 'has no optim_wrapper')])
def test_rates_that_cannot_be_scaled(factor, said):
    with pytest.raises(ValueError, match=f'--lr-scale.*{said}'):
        training_change({}, factor, None)


def test_old_weights_are_dropped():
    row = {'type': 'Pretrained', 'checkpoint': 'old.pth'}
    part = {
        'pretrained': 'old.pth',
        'backbone': {},
        'head': {'init_cfg': [row, {'type': 'Normal'}]},
    }
    model = {'init_cfg': row, 'detector': part}
    outer, inner, remarks = old_weights_change(model, part, {'head': {'in_channels': 3}})
    assert outer == {'init_cfg': None}
    head = {'in_channels': 3, 'init_cfg': [{'type': 'Normal'}]}
    assert inner == {'pretrained': None, 'head': head}
    assert 'head.init_cfg' in remarks[0]
