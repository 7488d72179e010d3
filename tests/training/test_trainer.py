"""Training: learning, exact resume, averaging, states of other trainings."""

import copy
import math
import random
from dataclasses import replace

import pytest
import torch
from torch import nn

pytest.importorskip('timm')

import ghost_plugin as gp
from ghost_plugin.training import evaluation
from ghost_plugin.training.config import Recipe
from ghost_plugin.training.image_folder import ImageFolder
from ghost_plugin.training.loader import ImageLoader
from ghost_plugin.training.preprocessing import Preprocessing
from ghost_plugin.training.trainer import finetune

SMALL = Preprocessing((32, 32), crop_pct=1.0)


def net(classes=3):
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1),
        nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2),
        nn.Linear(16, classes),
    )  # fmt: skip


@pytest.fixture
def loader(pictures):
    return ImageLoader(ImageFolder(pictures), SMALL)


@pytest.fixture
def held(pictures):
    return ImageLoader(ImageFolder(pictures, 'val'), SMALL)


def test_plain_training_learns_the_colours(loader, held):
    model = net()
    history = finetune(model, loader, Recipe(epochs=8, batch=12, lr=0.1))
    assert [entry['epoch'] for entry in history] == list(range(1, 9))
    assert history[-1]['loss'] < history[0]['loss']
    found = evaluation.accuracy(model.eval(), held)
    assert found.top1 > 90 and found.top5 is None and found.images == 12


def test_a_converted_student_learns_from_its_teacher_without_labels(loader, held, pictures):
    teacher = net()
    finetune(teacher, loader, Recipe(epochs=8, batch=12, lr=0.1))
    teacher.zero_grad()
    student, _ = gp.convert(teacher.eval(), torch.zeros(1, 3, 32, 32), inherit=False,
                            keep_last=False, include=['3'])  # fmt: skip
    for path in (pictures / 'train').rglob('*.png'):
        path.rename(pictures / 'train' / f'{path.parent.name}{path.name}')
    for path in (pictures / 'train').iterdir():
        if path.is_dir():
            path.rmdir()
    flat = ImageLoader(ImageFolder(pictures), SMALL)
    with pytest.raises(ValueError, match='no class folders; with label_weight=0'):
        finetune(student, flat, Recipe(), teacher=teacher)
    before = copy.deepcopy(teacher.state_dict())
    recipe = Recipe(epochs=10, batch=12, label_weight=0, lr=0.1)
    finetune(student, flat, recipe, teacher=teacher, validate=None)
    assert evaluation.top1(student.eval(), held)['top1'] > 90
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in teacher.parameters())


class StopError(Exception):
    """Stands for the end of the process."""


def stopped_at(step):
    def progress(label, done, total, note=''):
        if label == 'training' and done >= step:
            raise StopError

    return progress


@pytest.mark.parametrize(
    'recipe, preprocessing, workers',
    [
        (Recipe(epochs=2.5, batch=8, ema=0.9, accumulate=3), SMALL, 0),
        (Recipe(epochs=3, batch=8, optimizer='adamw', amp=True), SMALL, 0),
        (Recipe(epochs=2, batch=12), Preprocessing((72, 72)), 2),
    ],
    ids=['ema', 'amp', 'workers'],
)
def test_an_interrupted_training_ends_like_any_other(
    pictures, tmp_path, recipe, preprocessing, workers
):
    loader = ImageLoader(ImageFolder(pictures), preprocessing, workers=workers)
    teacher, whole, cut, state = net(), net(), net(), tmp_path / 'state'
    history = finetune(whole, loader, recipe, teacher=teacher)
    steps = round(recipe.epochs * loader.steps(recipe.batch))
    with pytest.raises(StopError):
        finetune(cut, loader, recipe, teacher=teacher, state=state, progress=stopped_at(steps))
    again = net()
    resumed = finetune(again, loader, recipe, teacher=teacher, state=state, resume=True)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    assert [e['loss'] for e in history] == [e['loss'] for e in resumed]
    assert len(resumed) == math.ceil(recipe.epochs)
    done = net()
    assert finetune(done, loader, recipe, teacher=teacher, state=state, resume=True) == resumed
    assert torch.equal(done[0].weight, again[0].weight)


def test_the_global_generator_is_left_alone(loader):
    model = net()
    before = torch.get_rng_state(), random.getstate()
    finetune(model, loader, Recipe(epochs=1, batch=12))
    assert torch.equal(before[0], torch.get_rng_state()) and before[1] == random.getstate()


def test_the_average_follows_the_model(loader):
    plain, averaged, results = net(), net(), []
    recipe = Recipe(epochs=3, batch=12, lr=0.1)
    finetune(plain, loader, recipe)
    finetune(
        averaged, loader, replace(recipe, ema=0.999), validate=lambda m: results.append(m) or {}
    )
    assert plain[1].num_batches_tracked == averaged[1].num_batches_tracked == 9
    start = net()[0].weight
    whole, half = ((model[0].weight - start).norm() for model in (plain, averaged))
    assert 0.1 * whole < half < whole
    assert all(torch.equal(averaged[0].weight, m[0].weight) for m in results)  # one module


def test_another_state_is_refused(loader, tmp_path):
    state = tmp_path / 'state'
    finetune(net(), loader, Recipe(epochs=1, batch=12), state=state)
    with pytest.raises(ValueError, match=r'another training: lr None there, 0\.3 here'):
        finetune(net(), loader, Recipe(epochs=1, batch=12, lr=0.3), state=state, resume=True)
    with pytest.raises(ValueError, match='of another model'):
        finetune(net(4), loader, Recipe(epochs=1, batch=12), state=state, resume=True)
    state.write_text('x')
    with pytest.raises(ValueError, match='not the state of a training'):
        finetune(net(), loader, Recipe(epochs=1, batch=12), state=state, resume=True)


def test_a_loss_that_explodes_is_said(loader):
    with pytest.raises(ValueError, match='smaller lr'):
        finetune(net(), loader, Recipe(epochs=3, batch=12, lr=1e30, clip=0))
