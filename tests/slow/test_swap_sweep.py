"""Every config of the installed MMDetection and MMPretrain, swapped, trained a step, predicting.

How configs are counted and how a run goes on: :mod:`helpers.swap_sweep`.
"""

import pytest

mmdet = pytest.importorskip('mmdet')
mmpretrain = pytest.importorskip('mmpretrain')

from helpers.swap_sweep import chosen, folders, offline, print_failures, rate, sweep

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True, scope='module')
def no_downloads():
    with offline():
        yield


@pytest.mark.parametrize(
    'folder', chosen(folders(mmdet, mmpretrain)), ids=lambda f: f'{f.parents[2].name}-{f.name}'
)
def test_every_config_is_swapped_or_says_why_not(folder, limited):
    for path in sorted(folder.rglob('*.py')):
        sweep(path, limited)


def test_scoreboard():
    """Runs last, on all that ran before it."""
    rates = {
        'pyramid': rate('pyramid'),
        'detectors': rate('pyramid', 'other detector'),
        'classifiers': rate('classifier'),
    }
    for kind in ('token classifier', 'pretraining', 'unknown kind', 'no backbone', 'no config'):
        rate(kind)
    print(rates)
    print_failures()
    assert rates['pyramid'] >= 95
    assert rates['detectors'] >= 90
    assert rates['classifiers'] >= 95
