"""Both models in one forward pass, and modules whose forward is overridden meanwhile."""

import torch
from torch import nn

from ghost_plugin.conversion.fitting.paired_forward import (
    ActivationBatch,
    forward_overrides,
    observe_activations,
    paired_forward,
)


def test_a_batch_gives_its_first_images_or_all_outputs():
    parts = [((part, 'same'), {}) for part in torch.arange(23.0)[:, None].split([20, 3])]
    batch = ActivationBatch(parts, [20, 3])
    assert batch.num_images == 23
    (x, word), _ = batch.first(21)
    assert (len(x), word) == (21, 'same')
    calls = []

    def forward(x, word):
        calls.append(len(x))
        return 2 * x

    assert torch.equal(batch.map(forward), 2 * torch.arange(23.0)[:, None])
    assert calls == [16, 4, 3]


def test_writes_into_inputs_reach_the_caller_only_on_demand():
    x = torch.zeros(2, 1)
    batch = ActivationBatch([((x,), {})], [2])
    batch.map(lambda x: x.add_(1))
    assert not x.any()
    batch.write_back()
    assert x.eq(1).all()


def test_visitors_see_both_models_and_their_own_last_result():
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
    model[1] = model[0]  # called twice
    model[0].weight.data.fill_(2)
    seen = []

    def visitor(forward, old, new, result):
        seen.append((old.first(1)[0][0].item(), new.first(1)[0][0].item(), result))
        return old.map(forward), new.map(lambda x: 10 * x), (result or 0) + 1

    pair = torch.tensor([[1.0], [1.0]])
    results = paired_forward(model, ((pair,), {}), 1, {'0': visitor})
    assert results == {'0': 2}
    assert seen == [(1, 1, None), (2, 10, 1)]
    assert pair.eq(1).all() and 'forward' not in vars(model[0])


def test_a_module_that_sees_no_pair_runs_as_it_is():
    class Crops(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(1, 1)

        def forward(self, x):
            return self.head(torch.cat((x, x, x)))

    assert paired_forward(Crops(), ((torch.zeros(2, 1),), {}), 1, {'head': None}) == {}


def test_an_override_ends_with_the_block_and_keeps_an_own_forward():
    model = nn.Sequential(nn.Identity(), nn.Identity())

    def own(x):
        return x + 1

    model[1].forward = own
    with forward_overrides(model, ['0', '1'], lambda name, forward: lambda x: forward(x) * 10):
        assert model(torch.ones(())) == 110
    assert model(torch.ones(())) == 2
    assert model[1].forward is own and 'forward' not in vars(model[0])


def test_overrides_run_without_autocast():
    model = nn.Sequential(nn.Linear(2, 2))
    with forward_overrides(model, ['0'], lambda name, forward: forward):
        with torch.autocast('cpu', torch.bfloat16):
            assert model(torch.zeros(1, 2, dtype=torch.bfloat16)).dtype == torch.float32


def test_sizes_of_innermost_outputs_are_observed():
    model, sizes = nn.Sequential(nn.Sequential(nn.Linear(2, 3)), nn.Flatten()), []
    with observe_activations(model, sizes.append):
        model(torch.zeros(5, 2))
    assert sizes == [60, 60]
