import pytest
import torch
from helpers.divergences import divergence_of_images
from torch import nn

import ghost_plugin as gp
from ghost_plugin.conversion import judging
from ghost_plugin.conversion.judging import JudgingError, make_judge, standard_error

IMAGES = [torch.randn(20, 3, 8, 8, generator=torch.Generator().manual_seed(i)) for i in range(2)]


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5),
    ).eval()  # fmt: skip


def images_of(batches):
    return torch.cat(batches)


def test_the_last_images_judge_and_the_others_are_fitted_to(model):
    judge = make_judge(model, IMAGES)
    assert torch.equal(images_of([*judge.fitted, *judge.judging]), images_of(IMAGES))
    assert len(images_of(judge.judging)) == 12  # 30 %


def test_a_plan_diverges_as_the_converted_model_does(model):
    plan = gp.plan(model, IMAGES[0], ratio=2, keep_first=False)
    judge = make_judge(model, IMAGES)
    converted = plan.apply(model, calibration=judge.fitted)
    wanted = divergence_of_images(model, converted, judge.judging).double()
    torch.testing.assert_close(judge.of_images(plan), wanted, rtol=1e-3, atol=1e-7)
    error = wanted.std() / len(wanted) ** 0.5
    assert standard_error(wanted) == pytest.approx(float(error))
    assert judge.divergence(plan) == pytest.approx(float(wanted.mean() + 2 * error), rel=1e-3)


def test_large_outputs_leave_fewer_images_to_judge(model, monkeypatch):
    monkeypatch.setattr(judging, 'OUTPUT_BYTES', 7 * 5 * 4)  # seven images of five logits
    assert len(images_of(make_judge(model, IMAGES).judging)) == 7


def test_few_images_and_lists_are_refused(model):
    with pytest.raises(JudgingError, match='at least 32 calibration images'):
        make_judge(model, IMAGES[:1])
    with pytest.raises(JudgingError, match='one size'):
        make_judge(model, [IMAGES[0], IMAGES[1][..., :6]])

    class Lists(nn.Module):
        def forward(self, images):
            return [{'boxes': image} for image in images]

    with pytest.raises(JudgingError, match='Lists gives none'):
        make_judge(Lists(), IMAGES)
