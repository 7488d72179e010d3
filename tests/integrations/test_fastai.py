"""Our models in fastai's learners."""

import pytest
import torch

pytest.importorskip('timm')
pytest.importorskip('fastai.vision.learner')

from fastai.data.core import DataLoaders
from fastai.vision.learner import vision_learner

import ghost_plugin as gp

NAMES = ('ghostnet_plugin_050', 'ghostnet_plugin_v3_100', 'ghostnet_plugin_rep_050',
         'ghostnet_plugin_gghost_032')  # fmt: skip


def loaders():
    data = [(torch.randn(3, 64, 64), index % 2) for index in range(8)]
    both = [torch.utils.data.DataLoader(data, batch_size=4) for _ in range(2)]
    return DataLoaders(*both, device='cpu')


def learner(name):
    loss = torch.nn.CrossEntropyLoss()
    return vision_learner(
        loaders(), name, n_out=2, pretrained=False, normalize=False, loss_func=loss
    )


@pytest.mark.parametrize('name', NAMES)
def test_a_learner_trains_all_groups(name):
    learn = learner(name)
    before = {name: p.detach().clone() for name, p in learn.model.named_parameters()}
    learn.unfreeze()
    learn.fit(1, lr=1e-3)
    assert len(learn.opt.param_groups) == 2  # body and head
    same = [n for n, p in learn.model.named_parameters() if torch.equal(before[n], p)]
    # fastai's own head follows timm's features, which end in front of this conv.
    assert all('.conv_head.' in name for name in same)


def test_a_converted_model_trains():
    learn = learner('resnet18')
    converted, _ = gp.convert(learn.model.eval(), torch.randn(1, 3, 64, 64))
    learn.model = converted
    learn.unfreeze()
    learn.fit(1, lr=0.01)
    assert any(isinstance(module, gp.GhostConv2d) for module in learn.model.modules())
