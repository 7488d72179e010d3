"""The train loop: learns, goes on where it was cut off, averages, saves whole files."""

import copy
import math

import pytest
import torch
from torch import nn

pytest.importorskip('PIL')

import ghost_plugin as gp
from ghost_plugin.conversion.restore import load_exactly
from ghost_plugin.training import evaluation
from ghost_plugin.training.config import Recipe, optimizer_of, scale
from ghost_plugin.training.image_folder import ImageFolder
from ghost_plugin.training.loader import ImageLoader
from ghost_plugin.training.preprocessing import Preprocessing
from ghost_plugin.training.trainer import finetune, follow, save

LOOK = Preprocessing((32, 32), crop=1.0)


def net(classes=3):
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1),
        nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2),
        nn.Linear(16, classes),
    )  # fmt: skip


@pytest.fixture
def feed(pictures):
    return ImageLoader(ImageFolder(pictures), LOOK)


@pytest.fixture
def held(pictures):
    return ImageLoader(ImageFolder(pictures, 'val'), LOOK)


def test_plain_training_learns_the_colours(feed, held):
    model = net()
    history = finetune(model, feed, Recipe(epochs=8, batch=12, lr=0.1))
    assert [entry['epoch'] for entry in history] == list(range(1, 9))
    assert history[-1]['loss'] < history[0]['loss']
    found = evaluation.accuracy(model.eval(), held)
    assert found.top1 > 90 and found.top5 is None and found.pictures == 12


def test_a_converted_student_learns_from_its_teacher_without_labels(feed, held, pictures):
    teacher = net()
    finetune(teacher, feed, Recipe(epochs=8, batch=12, lr=0.1))
    teacher.zero_grad()
    student, _ = gp.convert(teacher.eval(), torch.zeros(1, 3, 32, 32), inherit=False,
                            keep_last=False, include=['3'])  # fmt: skip
    for path in (pictures / 'train').rglob('*.png'):
        path.rename(pictures / 'train' / f'{path.parent.name}{path.name}')
    for path in (pictures / 'train').iterdir():
        if path.is_dir():
            path.rmdir()
    flat = ImageLoader(ImageFolder(pictures), LOOK)
    with pytest.raises(ValueError, match='no class folders; with hard=0'):
        finetune(student, flat, Recipe(), teacher=teacher)
    before = copy.deepcopy(teacher.state_dict())
    recipe = Recipe(epochs=10, batch=12, hard=0, lr=0.1)
    finetune(student, flat, recipe, teacher=teacher, validate=None)
    assert evaluation.top1(student.eval(), held)['top1'] > 90
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in teacher.parameters())


class StopError(Exception):
    """Stands for the end of the process."""


def stopped_at(step):
    def tick(label, done, total, note=''):
        if label == 'training' and done >= step:
            raise StopError

    return tick


@pytest.mark.parametrize(
    'recipe, look',
    [
        (Recipe(epochs=2.5, batch=8, ema=0.9, accumulate=3), LOOK),
        (Recipe(epochs=3, batch=8, optimizer='adamw', amp=True), LOOK),
        (Recipe(epochs=2, batch=12), Preprocessing((72, 72))),
    ],
    ids=['ema', 'amp', 'workers'],
)
def test_an_interrupted_training_ends_like_any_other(pictures, tmp_path, recipe, look):
    feed = ImageLoader(ImageFolder(pictures), look, workers=1)
    teacher, whole, cut, state = net(), net(), net(), tmp_path / 'state'
    history = finetune(whole, feed, recipe, teacher=teacher)
    steps = round(recipe.epochs * feed.batches(recipe.batch))
    with pytest.raises(StopError):
        finetune(cut, feed, recipe, teacher=teacher, state=state, tick=stopped_at(steps))
    again = net()
    resumed = finetune(again, feed, recipe, teacher=teacher, state=state, resume=True)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    assert [e['loss'] for e in history] == [e['loss'] for e in resumed]
    assert len(resumed) == math.ceil(recipe.epochs)
    done = net()
    assert finetune(done, feed, recipe, teacher=teacher, state=state, resume=True) == resumed
    assert torch.equal(done[0].weight, again[0].weight)


def test_the_global_generator_is_left_alone(feed):
    before = torch.get_rng_state()
    finetune(net_outside(), feed, Recipe(epochs=1, batch=12))
    assert torch.equal(before, torch.get_rng_state())


def net_outside():
    with torch.random.fork_rng():
        return net()


def test_another_state_is_refused(feed, tmp_path):
    state = tmp_path / 'state'
    finetune(net(), feed, Recipe(epochs=1, batch=12), state=state)
    with pytest.raises(ValueError, match=r'another training: lr None there, 0\.3 here'):
        finetune(net(), feed, Recipe(epochs=1, batch=12, lr=0.3), state=state, resume=True)
    with pytest.raises(ValueError, match='of another model'):
        finetune(net(4), feed, Recipe(epochs=1, batch=12), state=state, resume=True)
    state.write_text('x')
    with pytest.raises(ValueError, match='not the state of a training'):
        finetune(net(), feed, Recipe(epochs=1, batch=12), state=state, resume=True)


def test_a_loss_that_explodes_is_said(feed):
    with pytest.raises(ValueError, match='smaller lr'):
        finetune(net(), feed, Recipe(epochs=3, batch=12, lr=1e30, clip=0))


@pytest.mark.parametrize(
    'wrong', [{'epochs': 0}, {'optimizer': 'adam'}, {'ema': 1.0}, {'batch': 0}], ids=str
)
def test_bad_recipes(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Recipe(**wrong)


def test_rate_rises_and_falls():
    rates = [scale(step, 100, 0.1) for step in range(100)]
    assert rates.index(max(rates)) == 10 and max(rates) == 1
    assert rates[:10] == sorted(rates[:10]) and rates[10:] == sorted(rates[10:], reverse=True)
    assert 0 < rates[-1] < 0.01 and scale(0, 1, 0.05) == 1


def test_norms_and_biases_do_not_decay():
    groups = optimizer_of(net(), Recipe(weight_decay=0.3)).param_groups
    assert [group['weight_decay'] for group in groups] == [0.3, 0.0]
    assert all(p.ndim > 1 for p in groups[0]['params'])
    assert all(p.ndim == 1 for p in groups[1]['params'])


def test_averages_move_and_whole_numbers_are_copied():
    mean, model = net(), net()
    with torch.no_grad():
        model[0].weight.add_(1)
    model[1].num_batches_tracked.fill_(7)
    before = mean[0].weight.clone()
    follow(mean, model, 0.75)
    torch.testing.assert_close(mean[0].weight, before + 0.25)
    assert mean[1].num_batches_tracked == 7


def test_files_are_whole_or_not_there(tmp_path):
    path = tmp_path / 'deep/weights.pth'
    save(net().state_dict(), path)
    content = path.read_bytes()
    with pytest.raises(Exception, match='pickle'):
        save({'x': lambda: None}, path)
    assert path.read_bytes() == content and [p.name for p in path.parent.iterdir()] == [path.name]


def test_weights_of_another_model_are_refused(tmp_path):
    save(net(4).state_dict(), tmp_path / 'w.pth')
    model = net()
    with pytest.raises(ValueError, match='2 of 16 tensors are missing or of another shape'):
        load_exactly(model, tmp_path / 'w.pth')
    save({**net().state_dict(), 'more': torch.zeros(1)}, tmp_path / 'w.pth')
    with pytest.raises(ValueError, match='1 are unknown, such as more'):
        load_exactly(model, tmp_path / 'w.pth')


def test_classes_that_do_not_fit(feed, held):
    evaluation.check_classes(net(), held)
    evaluation.check_classes(net(5), held, mapped=True)
    with pytest.raises(ValueError, match=r'3 classes and the model 5 outputs; --num-classes 3'):
        evaluation.check_classes(net(5), held)
    with pytest.raises(ValueError, match='3 classes and the model 2 outputs'):
        evaluation.check_classes(net(2), held, mapped=True)
    with pytest.raises(ValueError, match='no classifier'):
        evaluation.check_classes(net()[:4], held)


def test_expenses():
    found = evaluation.expenses(net().eval(), torch.zeros(1, 3, 32, 32), rounds=3)
    assert found['params'] == sum(p.numel() for p in net().parameters())
    assert found['latency_low'] <= found['latency_ms'] <= found['latency_high']
    assert 'threads' in found['setup'] and 'float32, batch 1, 32 x 32 px' in found['setup']
    with pytest.raises(ValueError, match='--size'):
        evaluation.costs(net(), torch.zeros(1, 4, 32, 32))
