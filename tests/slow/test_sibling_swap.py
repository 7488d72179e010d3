"""Every config of the installed siblings of MMDetection, swapped, trained a step, predicting.

How configs are counted and how a run goes on: :mod:`helpers.swap_sweep`.
"""

import importlib

import pytest

pytest.importorskip('mmdet')

from helpers.swap_sweep import chosen, folders, offline, print_failures, rate, sweep

from ghost_plugin.utils import optional

pytestmark = pytest.mark.slow

# Package, the kinds that count, and per cent of the distinct configs that swap and train.
SIBLINGS = (
    ('mmseg', ('segmentor',), 90),
    ('mmpose', ('pose estimator',), 85),
    ('mmrotate', ('rotated detector',), 90),
    ('mmyolo', ('YOLO',), 85),
)
INSTALLED = [importlib.import_module(name) for name, _, _ in SIBLINGS if optional.usable(name)]


@pytest.fixture(autouse=True, scope='module')
def no_downloads():
    with offline():
        yield


@pytest.mark.parametrize(
    'folder', chosen(folders(*INSTALLED)), ids=lambda f: f'{f.parents[2].name}-{f.name}'
)
def test_every_config_is_swapped_or_says_why_not(folder, limited):
    for path in sorted(folder.rglob('*.py')):
        sweep(path, limited)


@pytest.mark.parametrize(('package', 'kinds', 'least'), SIBLINGS)
def test_scoreboard(package, kinds, least):
    """Runs last, on all that ran before it."""
    if not optional.usable(package):
        pytest.skip(f'{package} is not installed')
    print_failures()
    assert rate(*kinds) >= least
