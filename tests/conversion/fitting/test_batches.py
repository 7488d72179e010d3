"""Batches: sizes, parts, regrouping without copies, pairs and nested outputs."""

import pytest
import torch
from torch import nn

from ghost_plugin.conversion.fitting.batches import (
    as_batches,
    batch_size,
    can_concat,
    concat_batches,
    concat_nested,
    rebatch,
    slice_batch,
    split_nested,
    split_pair,
    take_samples,
)


def numbered(*sizes):
    """Batches of (N, 1) samples that are counted through."""
    return list(torch.arange(float(sum(sizes)))[:, None].split(list(sizes)))


@pytest.mark.parametrize('size', [1, 2, 3, 5, 7, 20])
@pytest.mark.parametrize('sizes', [(4, 4, 4), (1,) * 12, (12,), (5, 7)])
def test_rebatching_keeps_the_order_and_loses_none(sizes, size):
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


@pytest.mark.parametrize(
    ('batch', 'size'),
    [
        (torch.zeros(3, 1, 2, 2), 3),
        ((torch.zeros(3, 1, 2, 2), torch.zeros(7, 5)), 3),  # a grid beside the images
        ({'x': torch.zeros(7, 5), 'scale': torch.tensor(1.0)}, 7),
        (([torch.zeros(1, 2, 2), torch.zeros(1, 4, 4)],), 2),
        ((True, 'text'), 1),
    ],
)
def test_size_of_a_batch(batch, size):
    assert batch_size(batch) == size


def test_what_is_not_per_image_is_not_sliced():
    images, grid = torch.arange(3.0).view(3, 1, 1, 1), torch.zeros(7, 5)
    sliced = slice_batch({'x': (images, grid), 'word': 'a'}, slice(1, 3))
    assert sliced['x'][0].flatten().tolist() == [1, 2]
    assert sliced['x'][1] is grid and sliced['word'] == 'a'


def test_batches_of_other_sizes_or_names_cannot_be_concatenated():
    small, large = torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 6, 6)
    assert concat_batches([small, small]).shape == (4, 3, 4, 4)
    assert concat_batches([small, large]) is None
    assert concat_batches([{'x': small}, {'y': small}]) is None
    assert can_concat([small, small]) and not can_concat([small, large])


def test_lists_of_images_need_one_size():
    small, large = torch.zeros(3, 4, 4), torch.zeros(3, 6, 6)
    assert can_concat([([small, small],), ([small],)])
    assert not can_concat([([small],), ([large],)])


@pytest.mark.parametrize('chosen', [range(1, 3), torch.tensor([1, 2])])
def test_samples_may_have_several_rows(chosen):
    rows = torch.arange(8.0)[:, None]  # two of each of four samples
    nested = {'rows': rows, 'scale': torch.ones(3), 'odd': torch.ones(5, 1)}
    taken = take_samples(nested, chosen, 4)
    assert taken['rows'].flatten().tolist() == [2, 3, 4, 5]
    assert taken['scale'] is nested['scale'] and taken['odd'] is nested['odd']
    assert take_samples(rows, chosen, 8).flatten().tolist() == [1, 2]


def test_a_pair_is_split_where_all_tensors_hold_both():
    first, second = split_pair((torch.arange(4.0)[:, None], 'word'), 2)
    assert first[0].flatten().tolist() == [0, 1] and second[0].flatten().tolist() == [2, 3]
    assert first[1] == second[1] == 'word'
    assert split_pair((torch.zeros(4, 1), torch.zeros(6, 1)), 2) is None
    assert split_pair(('word',), 2) is None


def test_nested_outputs_are_split_and_concatenated_again():
    output = {'maps': torch.arange(12.0).view(6, 2), 'scale': torch.ones(2)}
    parts = split_nested(output, [1, 2])  # two rows per sample
    assert [len(part['maps']) for part in parts] == [2, 4]
    assert torch.equal(concat_nested(*parts, min_ndim=2)['maps'], output['maps'])
    with pytest.raises(ValueError, match='of one structure'):
        concat_nested([torch.zeros(1)], {'x': torch.zeros(1)})


def test_calibration_batches_are_checked():
    model, x = nn.Linear(2, 2), torch.zeros(3, 2)
    assert as_batches(iter([[x]]), model) == [(x,)]
    with pytest.raises(ValueError, match='takes several batches'):
        as_batches(x, model)
    with pytest.raises(ValueError, match='holds no batch'):
        as_batches([], model)
    with pytest.raises(ValueError, match='without labels'):
        as_batches([(x, x)], model)
