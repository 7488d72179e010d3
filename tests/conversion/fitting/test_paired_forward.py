"""Pictures in parts: regrouped without copies, streams that are joined on demand."""

import pytest
import torch

from ghost_plugin.conversion.fitting.paired_forward import ActivationBatch, batch_size, rebatch


def numbered(*sizes):
    """Batches of (N, 1) pictures that are counted through."""
    return list(torch.arange(float(sum(sizes)))[:, None].split(list(sizes)))


@pytest.mark.parametrize('size', [1, 2, 3, 5, 7, 20])
@pytest.mark.parametrize('sizes', [(4, 4, 4), (1,) * 12, (12,), (5, 7)])
def test_regrouped_pictures_keep_their_order_and_lose_none(sizes, size):
    parts = list(rebatch(numbered(*sizes), size))
    assert torch.cat(parts).flatten().tolist() == [*range(12)]
    assert [len(p) for p in parts[:-1]] == [size] * (len(parts) - 1)


def test_only_parts_that_span_two_batches_are_copied():
    batches = numbered(4, 4)
    held = {batch.untyped_storage().data_ptr() for batch in batches}
    shared = [p.untyped_storage().data_ptr() in held for p in rebatch(batches, 3)]
    assert shared == [True, False, True]


def test_batches_of_every_form_are_regrouped():
    named = [{'x': part, 'flag': True, 'gain': torch.tensor(2.0)} for part in numbered(3, 3)]
    parts = list(rebatch(named, 4))
    assert [batch_size(part) for part in parts] == [4, 2]
    assert parts[0]['flag'] is True
    assert parts[0]['gain'] == 2
    pairs = list(rebatch([(part, [*part]) for part in numbered(3, 3)], 6))
    assert [len(part) for part in pairs[0]] == [6, 6]


def test_a_stream_gives_its_first_pictures_or_all_outputs():
    stream = ActivationBatch([((part, 'same'), {}) for part in numbered(20, 3)], [20, 3])
    assert stream.number == 23
    (x, word), _ = stream.first(21)
    assert (len(x), word) == (21, 'same')
    seen = []

    def run(x, word):
        seen.append(len(x))
        return 2 * x

    assert torch.equal(stream.through(run), 2 * torch.arange(23.0)[:, None])
    assert seen == [16, 4, 3]
