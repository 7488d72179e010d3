"""Accuracy, the check of classes, and costs."""

import pytest
import torch
from torch import nn

pytest.importorskip('timm')

from ghost_plugin.training import evaluation
from ghost_plugin.training.image_folder import ImageFolder
from ghost_plugin.training.loader import ImageLoader
from ghost_plugin.training.preprocessing import Preprocessing


def net(classes=3):
    return nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(4, classes))  # fmt: skip


@pytest.fixture
def held(pictures):
    return ImageLoader(ImageFolder(pictures, 'val'), Preprocessing((32, 32), crop_pct=1.0))


class Fixed(nn.Module):
    """Scores that do not depend on the image."""

    def __init__(self, scores):
        super().__init__()
        self.register_buffer('scores', torch.tensor(scores))

    def forward(self, images):
        return {'logits': self.scores.expand(len(images), -1)}


def test_accuracy_is_the_share_of_all_images(held):
    model = Fixed([0.0, 9, 1, 2, 3, 4, 5]).train()  # best five of seven: 1, 6, 5, 4, 3
    shown = []
    found = evaluation.accuracy(model, held, 5, lambda *args: shown.append(args))
    assert found.top1 == pytest.approx(100 / 3) and found.top5 == pytest.approx(100 / 3)
    assert found.images == 12 and model.training
    assert [done for _, done, _, _ in shown] == [5, 10, 12] and shown[-1][3] == 'top-1 33.33 %'
    assert evaluation.accuracy(Fixed([0.0, 9, 1]), held).top5 is None
    assert evaluation.top1(Fixed([5.0, 9, 1]), held, 12) == {'top1': pytest.approx(100 / 3)}


@pytest.mark.parametrize('wrap', [lambda x: x, lambda x: (x, 1), lambda x: {'a': x}])
def test_logits_are_found(wrap):
    logits = torch.zeros(2, 3)
    assert evaluation.logits_of(wrap(logits)) is logits
    with pytest.raises(ValueError, match=r'no classifier: it gives \(2, 3, 1\)'):
        evaluation.logits_of(wrap(logits[..., None]))


def test_classes_that_do_not_fit(held):
    evaluation.check_classes(net(), held)
    evaluation.check_classes(net(5), held, mapped=True)
    with pytest.raises(ValueError, match=r'3 classes and the model 5 outputs; --num-classes 3'):
        evaluation.check_classes(net(5), held)
    with pytest.raises(ValueError, match='3 classes and the model 2 outputs'):
        evaluation.check_classes(net(2), held, mapped=True)
    with pytest.raises(ValueError, match='no classifier'):
        evaluation.check_classes(net()[:2], held)


def test_costs_and_latency():
    example = {'inputs': torch.zeros(1, 3, 32, 32)}
    model = net()
    model.forward = lambda inputs: nn.Sequential.forward(model, inputs)
    found = evaluation.costs_and_latency(model.eval(), example, rounds=3)
    assert found['params'] == sum(p.numel() for p in net().parameters())
    assert found['latency_low'] <= found['latency_ms'] <= found['latency_high']
    assert 'threads' in found['setup'] and 'float32, batch 1, 32 x 32 px' in found['setup']
    with pytest.raises(ValueError, match='--size'):
        evaluation.costs(net(), torch.zeros(1, 4, 32, 32))
