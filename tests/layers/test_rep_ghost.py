import pytest
import torch

from ghost_plugin.layers.rep_ghost import RepGhostModule


@pytest.mark.parametrize(
    'options',
    [
        {},
        {'dw_size': 5, 'relu': False},
        {'stride': 2},
        {'kernel_size': 3, 'dilation': 2, 'dw_dilation': 2},
    ],
)
def test_branches_merge_exactly(options, randomise_norms):
    module = randomise_norms(RepGhostModule(6, 8, **options).double())
    x = torch.randn(2, 6, 9, 7, dtype=torch.float64)
    want = module(x)
    step = options.get('stride', 1)
    assert want.shape == (2, 8, -(-9 // step), -(-7 // step))
    report = module.switch_to_deploy()
    assert (report.merged, module.branched) == (1, False)
    torch.testing.assert_close(module(x), want, rtol=1e-11, atol=1e-11)


def test_zero_norms_give_zeros_and_both_branches_learn():
    module = RepGhostModule(4, 4, relu=False)
    module.zero_init_norms()
    out = module(torch.randn(2, 4, 8, 8))
    assert not out.any()
    (out - 1).square().mean().backward()
    for branch in (module.cheap_operation, module.fusion_bn):
        assert branch[-1].weight.grad.abs().max() > 0


def test_wrong_sizes_are_refused():
    with pytest.raises(ValueError, match='dw_size'):
        RepGhostModule(4, 4, dw_size=2)
    with pytest.raises(ValueError, match='stride'):
        RepGhostModule(4, 4, stride=0)
