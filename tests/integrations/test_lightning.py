"""Distillation in Lightning whose weight changes."""

import pytest
import torch
from torch import nn

lightning = pytest.importorskip('lightning')

import ghost_plugin as gp
from ghost_plugin.integrations.lightning import DistillationSchedule

pytestmark = pytest.mark.filterwarnings('ignore::UserWarning')
STEPS, EPOCHS = 5, 2  # per epoch, and epochs


def classifier():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


class Student(lightning.LightningModule):
    """Notes the weights of its distiller at every step, and fails at one if it shall."""

    def __init__(self, fails_at=None):
        super().__init__()
        self.net = classifier()
        self.distiller = gp.Distiller(
            self.net, classifier(), logit_weight=2.0, features=['0'], feature_weight=4.0
        )
        self.fails_at, self.seen = fails_at, []

    def training_step(self, batch, batch_idx):
        if len(self.seen) == self.fails_at:
            raise RuntimeError('as asked')
        self.seen.append((self.distiller.logit_weight, self.distiller.feature_weight))
        return self.distiller(batch)[1]

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(student, callback, path, checkpoint=None, **options):
    trainer = lightning.Trainer(
        **{'max_epochs': EPOCHS, **options},
        callbacks=[callback],
        default_root_dir=path,
        accelerator='cpu',
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loader = torch.utils.data.DataLoader(torch.randn(2 * STEPS, 3, 8, 8), batch_size=2)
    trainer.fit(student, loader, ckpt_path=checkpoint)
    return trainer


def test_the_weights_change_linearly_and_come_back(tmp_path):
    student = Student()
    schedule = DistillationSchedule(student.distiller, first=1, last=0.5, begin=0.2, end=0.6)
    fit(student, schedule, tmp_path)
    factors = [1, 1, 1, 0.875, 0.75, 0.625, 0.5, 0.5, 0.5, 0.5]
    assert [logit for logit, _ in student.seen] == pytest.approx([2 * f for f in factors])
    assert [feature for _, feature in student.seen] == pytest.approx([4 * f for f in factors])
    assert (student.distiller.logit_weight, student.distiller.feature_weight) == (2, 4)


def test_a_weight_of_zero_is_allowed_at_both_ends(tmp_path):
    student = Student()
    fit(student, DistillationSchedule(student.distiller, first=0, last=0), tmp_path)
    assert set(student.seen) == {(0, 0)}


def test_a_resumed_training_goes_on_with_the_schedule(tmp_path):
    whole, first, second = Student(), Student(), Student()
    fit(whole, DistillationSchedule(whole.distiller), tmp_path)
    trainer = fit(first, DistillationSchedule(first.distiller), tmp_path, max_epochs=1)
    trainer.save_checkpoint(tmp_path / 'half.ckpt')
    fit(second, DistillationSchedule(second.distiller), tmp_path, tmp_path / 'half.ckpt')
    assert second.seen == whole.seen[STEPS:]


def test_an_error_leaves_the_distiller_as_it_was(tmp_path):
    student = Student(fails_at=4)
    with pytest.raises(RuntimeError, match='as asked'):
        fit(student, DistillationSchedule(student.distiller), tmp_path)
    assert student.seen[-1] != (2, 4)
    assert (student.distiller.logit_weight, student.distiller.feature_weight) == (2, 4)


def test_training_without_an_end_is_refused(tmp_path):
    student = Student()
    with pytest.raises(ValueError, match='max_epochs= or max_steps='):
        fit(student, DistillationSchedule(student.distiller), tmp_path, max_epochs=-1)


@pytest.mark.parametrize(
    ('wrong', 'message'),
    [
        ({'first': -1}, '0 or more, got -1'),
        ({'last': float('nan')}, '0 or more'),
        ({'begin': 0.6, 'end': 0.5}, 'got 0.6 and 0.5'),
        ({'end': 1.5}, 'shares of the training'),
    ],
)
def test_wrong_arguments_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        DistillationSchedule(Student().distiller, **wrong)
