"""The smallest models of MMDetection's siblings, built as ``Converted``, trained, predicting.

Of each package, distinct models that swap are planned, half of them for a ratio and half for a
budget (a ratio where no plan meets the budget), converted, trained for a step with a gradient in
every parameter, and predict. A model whose original does not run here does not count.
``GHOST_BOARD`` keeps what happened, as in :mod:`helpers.swap_sweep`.
"""

import copy
import importlib
import re
import time
from pathlib import Path

import pytest

pytest.importorskip('mmdet')

import torch
from helpers.swap_sweep import (
    BOARD,
    exercise,
    keep,
    key_of,
    kind_of,
    lightened,
    offline,
    part_of,
    run,
)
from mmengine.registry import MODELS, init_default_scope

import ghost_plugin as gp
from ghost_plugin.integrations.openmmlab.backbone_swap import load_config, swap_backbone
from ghost_plugin.integrations.openmmlab.backbone_swap.config_tree import type_name
from ghost_plugin.integrations.openmmlab.backbone_swap.probing import quiet_logging
from ghost_plugin.integrations.openmmlab.backbone_swap.smoke_test import (
    build,
    light_config,
    train_and_predict,
)
from ghost_plugin.utils import optional

pytestmark = pytest.mark.slow

NUMBER, SECONDS = 20, 300
PLANS = ({'ratio': 2}, {'macs': 0.7})
# Package, the kind that counts, and per cent of the models that are converted and train.
SIBLINGS = (
    ('mmseg', 'segmentor', 90),
    ('mmpose', 'pose estimator', 85),
    ('mmrotate', 'rotated detector', 90),
    ('mmyolo', 'YOLO', 85),
)


@pytest.fixture(autouse=True, scope='module')
def no_downloads():
    with offline():
        yield


def smallest_first(package, kind):
    """Names and configs of the distinct models of a kind, by the number of their parameters."""
    root = Path(importlib.import_module(package).__file__).parent / '.mim/configs'
    found = {}
    for path in sorted(root.rglob('*.py')):
        try:
            cfg = load_config(path)
        except ValueError:
            continue
        part = part_of(cfg.get('model'))
        if '_base_' in path.parts or part is None:
            continue
        if kind_of(part, cfg.get('default_scope')) == kind:
            found.setdefault(architecture(part), (str(path.relative_to(root)), cfg))
    return sorted(found.values(), key=lambda pair: parameters(pair[1]))


def architecture(part):
    """What distinguishes models here: the backbone, and the types of what reads it."""
    readers = [type_name(part[key]) for key in sorted(part) if re.search('neck|head', key)]
    return key_of({'backbone': part['backbone']}) + str(readers)


def parameters(cfg):
    """Number of parameters, infinite where the model is not built on the meta device."""
    try:
        init_default_scope(cfg.default_scope)
        with torch.device('meta'):
            return sum(p.numel() for p in MODELS.build(light_config(cfg)).parameters())
    except Exception:  # constructors of other packages raise anything
        return float('inf')


def without_gradient(model):
    return {n for n, p in model.named_parameters() if p.requires_grad and p.grad is None}


def check_gradients(model, cfg, part, side):
    """Every parameter has a gradient, except where those of the dense model have none."""
    missing = without_gradient(model)
    if missing:
        dense, _ = build(cfg)
        train_and_predict(dense, part, side)
        unused = {name.rpartition('.')[0] for name in without_gradient(dense)}
        assert all(any(name.startswith(f'{owner}.') for owner in unused) for name in missing)


def convert_and_train(cfg, plan):
    part = light_config(cfg)
    init_default_scope(cfg.default_scope)
    with quiet_logging():
        made = dict(type='ghost_plugin.Converted', model=copy.deepcopy(part), plan=plan)
        model = MODELS.build(made)
        model.init_weights()
    ghosts = sum(isinstance(module, gp.GhostConv2d) for module in model.modules())
    assert ghosts
    check_gradients(model, cfg, part, side=exercise(model, part))
    return f'{ghosts} Ghost convs'


def outcome(cfg, plan):
    """State and reason of one model; None where its backbone cannot be swapped."""
    try:
        swap_backbone(cfg, 'ghost_plugin.GhostNet', {'width': 0.5})
    except ValueError as error:
        return 'refused', str(error)
    lightened(cfg.model)
    try:
        try:
            return 'converted', f'{plan} {convert_and_train(cfg, plan)}'
        except ValueError as error:
            if 'at the least' not in str(error):  # the budget cannot be met, and the error says so
                raise
            return 'converted', f'{PLANS[0]} {convert_and_train(cfg, PLANS[0])}'
    except TimeoutError:
        raise
    except Exception as error:  # models of other packages raise anything
        reason = f'{plan} {type(error).__name__}: {error}'
    try:
        run(cfg)
    except ValueError as error:
        return 'not here', str(error)
    return 'failed', reason


@pytest.mark.parametrize(('package', 'kind', 'least'), SIBLINGS)
def test_the_smallest_models_are_converted(package, kind, least, limited):
    if not optional.usable(package):
        pytest.skip(f'{package} is not installed')
    states = []
    for name, cfg in smallest_first(package, kind):
        row = f'{package} {name}'
        if row not in BOARD:
            start, plan = time.monotonic(), PLANS[len(states) % 2]
            torch.manual_seed(0)
            try:
                with limited(SECONDS):
                    state, reason = outcome(cfg, plan)
            except TimeoutError as error:
                state, reason = 'failed', str(error)
            keep(row, kind, state, reason, [], round(time.monotonic() - start, 1))
        if BOARD[row]['state'] in ('converted', 'failed'):
            states.append(BOARD[row]['state'])
        if len(states) == NUMBER:
            break
    print(f'\n{package}: {states.count("converted")} of {len(states)} converted')
    assert 100 * states.count('converted') >= least * len(states) > 0
