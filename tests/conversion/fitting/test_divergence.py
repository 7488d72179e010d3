import pytest
import torch
from torch import nn

from ghost_plugin.conversion.fitting.divergence import divergence, has_divergence


def test_logits_diverge_by_kullback_and_leibler():
    mine, theirs = torch.randn(2, 6, 10)
    wanted = torch.distributions.kl_divergence(
        torch.distributions.Categorical(logits=theirs), torch.distributions.Categorical(logits=mine)
    )
    torch.testing.assert_close(divergence([mine], [theirs]), wanted)


def test_feature_maps_diverge_by_their_relative_error():
    theirs = torch.randn(6, 4, 8, 8)
    mine = theirs + 0.1 * theirs.std() * torch.ones_like(theirs)
    torch.testing.assert_close(divergence([mine], [theirs]), torch.full((6,), 0.01))


def test_several_tensors_count_alike():
    logits, maps = torch.randn(6, 10), torch.randn(6, 4, 8, 8)
    both = divergence([logits, maps + 1], [logits, maps])
    torch.testing.assert_close(both, divergence([maps + 1], [maps]) / 2)


class Detections(nn.Module):
    """One row for each box that is found, as detectors give in eval mode."""

    def forward(self, x):
        return [{'boxes': x.new_zeros(3, 4)}] * len(x)


@pytest.mark.parametrize(
    ('model', 'expected'),
    [(nn.Conv2d(3, 4, 1), True), (nn.Flatten(), True), (Detections(), False)],
    ids=['maps', 'vectors', 'detections'],
)
def test_models_with_one_entry_for_each_image_are_known(model, expected):
    assert has_divergence(model, torch.randn(1, 3, 4, 4)) is expected
