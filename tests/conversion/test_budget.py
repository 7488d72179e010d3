"""Budgets, and the greedy choice that meets them, on layers made by hand."""

import pytest
from helpers.plans import layer, plan_of

from ghost_plugin.conversion.budget import (
    Choice,
    candidate_variants,
    choices,
    decide,
    greedy_select,
    keep_min_ratio,
    meet_budget,
    target,
    undecided_layers,
)
from ghost_plugin.conversion.variants import RATIOS, Variant


def scored(*weights, **options):
    """A plan of convs of which each loses its weight times the ratio."""
    return plan_of(
        *(
            layer(f'{i}', {f'{r:g}': weight * (r - 1) for r in RATIOS}, **options)
            for i, weight in enumerate(weights)
        )
    )


def options(**costs_and_scores):
    return {
        name: [Choice(Variant(ratio), cost, loss) for ratio, cost, loss in own]
        for name, own in costs_and_scores.items()
    }


@pytest.mark.parametrize(
    'given, before, wanted',
    [(0.6, 200, 120), ('0.6', 200, 120), ('240M', 1e9, 240e6), ('1.5G', 1e10, 1.5e9), (1, 7, 7)],
)
def test_budgets_are_shares_or_amounts(given, before, wanted):
    assert target(given, before, 'macs') == pytest.approx(wanted)


@pytest.mark.parametrize(
    'wrong', [0, -1, 1.5, 'lots', '240m', None, float('nan'), 'nanM', 'infG', '-5M']
)
def test_other_budgets_are_named(wrong):
    with pytest.raises(ValueError, match='macs must be a share'):
        target(wrong, 100, 'macs')


@pytest.mark.parametrize('budget', ['macs', 'params'])
@pytest.mark.parametrize('share', [0.9, 0.7, 0.5])
def test_budgets_are_met_and_not_by_far(budget, share):
    plan = meet_budget(scored(1, 2, 3, 4, 5), **{budget: share})
    before, after = (plan.totals[f'{budget}_{when}'] for when in ('before', 'after'))
    assert share - 0.05 < after / before <= share


def test_both_budgets_hold_together():
    plan = scored(1, 2, 3, 4, 5).rebudget(macs=0.8, params=0.6)
    assert plan.totals['macs_after'] <= 0.8 * plan.totals['macs_before']
    assert plan.totals['params_after'] <= 0.6 * plan.totals['params_before']


def test_layers_that_lose_less_get_the_higher_ratios():
    plan = scored(1, 100, 10)
    ratios = [r.ratio if r.converts else 1 for r in meet_budget(plan, macs=0.6).layers]
    assert ratios[0] > ratios[2] > ratios[1] == 1
    assert meet_budget(plan, macs=0.6).layers[1].reason == 'budget'
    assert all(r.scores and r.ratio == 2 for r in plan.layers)  # the plan itself stays


def test_impossible_budgets_say_what_is_possible():
    with pytest.raises(ValueError, match=r'macs can be brought to .* at the least'):
        scored(1, 2).rebudget(macs=0.05)
    with pytest.raises(ValueError, match='rebudget needs a target'):
        scored(1).rebudget()
    with pytest.raises(ValueError, match="'a' has no scores"):
        plan_of(layer('a')).rebudget(macs=0.8)


def test_layers_that_a_budget_may_decide_about():
    layers = [layer('a'), layer('b', reason='budget'), layer('c', reason='slower'),
              layer('d', reason='first')]  # fmt: skip
    assert [r.name for r in undecided_layers(layers)] == ['a', 'b', 'c']
    ratios = candidate_variants([*layers, layer('e', ratio=3.0)], frozenset('e'))
    assert [v.ratio for v in ratios['a']] == list(RATIOS)
    assert ratios['e'] == (Variant(3.0),) and 'd' not in ratios
    assert candidate_variants([layer('a', channels=1)], frozenset()) == {}


def test_choices_are_the_conv_and_every_ratio_with_a_score():
    found = choices(layer('a', {'4': 0.5, '2': 0.1}), lambda variant: 8 / variant.ratio)
    assert [(c.ratio, c.cost, c.loss_increase) for c in found] == [
        (1, 8.0, 0.0), (2, 4.0, 0.1), (4, 2.0, 0.5)
    ]  # fmt: skip
    assert [c.ratio for c in keep_min_ratio(found, layer('a'))] == [2, 4]
    assert keep_min_ratio(found, layer('a', reason='budget')) == found


def test_the_step_with_the_least_loss_for_what_it_saves_comes_first():
    given = options(cheap=[(1, 10, 0), (2, 5, 1)], costly=[(1, 10, 0), (2, 5, 9)])
    chosen = greedy_select(given, 15, 'macs')
    assert {name: choice.ratio for name, choice in chosen.items()} == {'cheap': 2, 'costly': 1}
    assert {c.ratio for c in greedy_select(given, 20, 'macs').values()} == {1}


def test_steps_that_were_not_needed_are_taken_back():
    given = options(small=[(1, 10, 0), (2, 8, 1)], large=[(1, 20, 0), (2, 0, 30)])
    chosen = greedy_select(given, 14, 'macs')  # small first, which large makes needless
    assert {name: choice.ratio for name, choice in chosen.items()} == {'small': 1, 'large': 2}


def test_decisions_are_new_layers():
    layers = (layer('a'), layer('b'), layer('c', reason='first'))
    chosen = {'a': Choice(Variant(1.0), 0, 0), 'b': Choice(Variant(4.0), 0, 0)}
    found = decide(layers, chosen)
    assert [(r.decision, r.reason, r.ratio) for r in found] == [
        ('keep', 'budget', 2), ('convert', '', 4), ('keep', 'first', 2)
    ]  # fmt: skip
    assert layers[0].converts
