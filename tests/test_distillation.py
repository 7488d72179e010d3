import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import ghost_plugin as gp


def net(width=8, classes=5):
    return nn.Sequential(
        nn.Conv2d(3, width, 3, 2, 1), nn.ReLU(), nn.Conv2d(width, 8, 3, 2, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes),
    )  # fmt: skip


def test_a_perfect_student_has_no_distance():
    teacher = net()
    distiller = gp.Distiller(copy.deepcopy(teacher), teacher, features=['0', 'before_pooling'])
    x = torch.randn(4, 3, 16, 16)
    output, distance = distiller(x)
    torch.testing.assert_close(output, teacher(x))
    assert distance.abs() < 1e-6


def test_distance_is_the_formula():
    student, teacher = net(4), net()
    distiller = gp.Distiller(
        student,
        teacher,
        logit_weight=0.5,
        features=['before_pooling'],
        feature_weight=2,
        temperature=3,
    )
    x = torch.randn(4, 3, 16, 16)
    _, distance = distiller(x)
    p, q = (F.softmax(logits / 3, 1) for logits in (student(x), teacher(x)))
    kl = (q * (q.log() - p.log())).sum(1).mean() * 9
    a, b = student[:3](x), teacher[:3](x)
    want = 0.5 * kl + 2 * (a - b).square().mean() / b.square().mean()
    torch.testing.assert_close(distance, want)


def test_only_the_student_learns_and_modes_stay():
    student, teacher = net(4), net()
    student.train()
    teacher.train()
    _, distance = gp.Distiller(student, teacher, features=['before_pooling'])(
        torch.randn(2, 3, 8, 8)
    )
    distance.backward()
    assert all(p.grad is not None for p in student[:3].parameters())
    assert all(p.grad is None for p in teacher.parameters())
    assert teacher.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in student.modules())


def test_training_closes_the_distance():
    student, teacher = net(), net().eval()
    distiller = gp.Distiller(student, teacher, features=['2'])
    optimizer = torch.optim.Adam(student.parameters(), 1e-2)
    x, first = torch.randn(16, 3, 16, 16), None
    for _ in range(60):
        _, distance = distiller(x)
        first = first or distance.item()
        optimizer.zero_grad()
        distance.backward()
        optimizer.step()
    assert distance.item() < 0.3 * first


@pytest.mark.parametrize(
    'options, said',
    [
        ({'features': ['before_poling']}, "no module 'before_poling'"),
        ({'logit_weight': 0}, 'nothing to compare'),
        ({'temperature': 0}, 'temperature'),
        ({'features': {'0': '0'}}, 'differ in shape'),
    ],
)
def test_bad_input_is_named(options, said):
    with pytest.raises(ValueError, match=said):
        gp.Distiller(net(4), net(), **options)(torch.randn(1, 3, 8, 8))
    with pytest.raises(ValueError, match='one shape'):
        gp.Distiller(net(), net(classes=3))(torch.randn(1, 3, 8, 8))


class Named(nn.Module):
    """Returns features by name; a part of it never runs."""

    def __init__(self):
        super().__init__()
        self.body, self.idle = nn.ModuleDict({'conv': nn.Conv2d(3, 4, 3)}), nn.Conv2d(3, 4, 3)
        self.body.forward = lambda x: {'features': self.body['conv'](x), 'size': x.shape}

    def forward(self, x):
        return self.body(x)['features']


def test_features_that_are_named_are_compared():
    student = Named()
    x = torch.randn(2, 3, 8, 8)
    _, distance = gp.Distiller(student, Named(), logit_weight=0, features=['body'])(x)
    assert distance > 0
    _, distance = gp.Distiller(student, student, logit_weight=0, features=['body'])(x)
    assert distance == 0


def test_a_module_that_did_not_run_is_named():
    distiller = gp.Distiller(Named(), Named(), logit_weight=0, features=['idle'])
    with pytest.raises(ValueError, match="'idle' of the student returned no tensor"):
        distiller(torch.randn(2, 3, 8, 8))


def test_the_old_name_of_the_logit_weight_warns():
    with pytest.warns(FutureWarning, match='logit_weight'):
        distiller = gp.Distiller(net(), net(), logits=0.5)
    assert distiller.logit_weight == 0.5
