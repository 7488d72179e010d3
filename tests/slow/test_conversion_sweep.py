"""Every architecture of timm and torchvision, converted without data and trained for a step.

The smallest name of each family stands for it. ``GHOST_SWEEP=variants`` tells families apart by
every word of their names but sizes, ``GHOST_SWEEP=all`` takes all names; ``1/4`` in it, as in
``all 1/4``, is every fourth name beginning with the second, so that parts can run side by side.
"""

import os
import re
from collections import Counter, defaultdict

import pytest
import torch
from torch.utils import _pytree as pytree

import ghost_plugin as gp

timm = pytest.importorskip('timm')
torchvision = pytest.importorskip('torchvision')
pytestmark = pytest.mark.slow

SECONDS, MILLIONS = 200, 120  # of one model, and of its parameters; what is bigger is skipped
FITTED = 12  # millions of parameters up to which weights are inherited; size alone changes no path
SIZES = (
    'zepto atto femto pico nano micro xxs xxt xxtiny xt xxxs xs xsmall t ti tiny mini n s small ms '
    'm medium b base l large xl xlarge xxl xxlarge h huge so g giant gigantic e enormous'
).split()
WHICH = os.environ.get('GHOST_SWEEP', '')
BOARD: dict[str, str] = {}
# Models that cannot be converted yet, with the reason.
KNOWN: dict[str, str] = {}


def size(name):
    """Rank of a name among those of its family: size words first, numbers second."""
    words = re.split(r'[_.]', name)
    return (
        max((SIZES.index(word) for word in words if word in SIZES), default=SIZES.index('base')),
        [int(number) for number in re.findall(r'\d+', name)],
        name,
    )


def family(name):
    """A name without its size words, numbers and tags."""
    words = [re.sub(r'\d+', '', word) for word in re.split(r'[_.]', name)]
    words = [word for word in words if word and word not in (*SIZES, 'x', 'w', 'r', 'k', 'tf')]
    return '_'.join(words if 'variants' in WHICH else words[:1])


def representatives(names, module=lambda name: ''):
    """The smallest of each family, or what the environment asks for."""
    families = defaultdict(list)
    for name in names:
        families[module(name), family(name)].append(name)
    chosen = sorted(names if 'all' in WHICH else (min(f, key=size) for f in families.values()))
    part = re.search(r'(\d+)/(\d+)', WHICH)
    return chosen[int(part[1]) :: int(part[2])] if part else chosen


def skip_big(build):
    """Skip a model by its parameters before it takes memory."""
    with torch.device('meta'):
        try:
            number = sum(p.numel() for p in build().parameters())
        except (RuntimeError, NotImplementedError, TypeError):  # computes with weights when built
            return
    if number > MILLIONS * 1e6:
        pytest.skip(f'{number / 1e6:.0f} M parameters')


def shapes(output, whole=True):
    """Shapes of all tensors; the number of boxes does not count."""
    leaves = [t for t in pytree.tree_flatten(output)[0] if isinstance(t, torch.Tensor)]
    return [tuple(t.shape) if whole else tuple(t.shape[1:]) for t in leaves]


def convert(name, model, x, boxes=False):
    """Convert all that can be; shapes stay, and the board gets what happened."""
    model.eval()
    plan = gp.plan(model, x, keep_first=False, keep_last=False)
    reasons = Counter(row.reason or 'converted' for row in plan.layers)
    dense = [row for row in plan.layers if row.shape.groups == 1 and row.reason != 'unused']
    with torch.no_grad():
        want = shapes(model(*x), not boxes)
    small = sum(p.numel() for p in model.parameters()) < FITTED * 1e6
    converted = plan.apply(model, inplace=True, inherit=small)
    with torch.no_grad():
        assert shapes(converted(*x), not boxes) == want
    ghosts = [m for m in converted.modules() if isinstance(m, gp.GhostConv2d)]
    assert len(ghosts) == reasons['converted']
    print(f'{name}: {dict(reasons)}', flush=True)
    return converted, ghosts, 'skipped' if dense else 'no dense conv'


def train(converted, ghosts, x):
    """One step: all parameters of the Ghost convs that took part get finite gradients."""
    ran = set()
    for ghost in ghosts:
        ghost.register_forward_hook(lambda module, *args: ran.add(id(module)))
    leaves = pytree.tree_flatten(converted.train()(*x))[0]
    losses = [t.float().square().mean() for t in leaves if isinstance(t, torch.Tensor)]
    sum(loss for loss in losses if loss.requires_grad).backward()
    taught = [p for g in ghosts if id(g) in ran for p in g.parameters() if p.requires_grad]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in taught)


def sweep(name, build, inputs, limited, **options):
    """One model from beginning to end; ``inputs`` gives arguments for eval and for training."""
    skip_big(build)
    torch.manual_seed(0)
    BOARD[name] = 'failed'
    with limited(SECONDS):
        model = build()
        evaluated, trained = inputs(model)
        converted, ghosts, state = convert(name, model, evaluated, **options)
        train(converted, ghosts, trained)
    BOARD[name] = 'converted' if ghosts else state


def known(name):
    return pytest.param(
        name, marks=[pytest.mark.xfail(reason=KNOWN[name])] if name in KNOWN else ()
    )


def runs(model, side, channels=3):
    try:
        with torch.no_grad():
            model.train()(torch.randn(2, channels, side, side))
            model.eval()(torch.randn(1, channels, side, side))
    except (RuntimeError, AssertionError, ValueError, IndexError, ZeroDivisionError):
        return False
    return True


def timm_inputs(model):
    channels, side, _ = model.default_cfg['input_size']
    if not model.default_cfg.get('fixed_input_size', False):
        side = next((small for small in (96, 128, 160) if runs(model, small, channels)), side)
    return tuple((torch.randn(number, channels, side, side),) for number in (1, 2))


def timm_module(name):
    return timm.models._registry._model_to_module[name]


TIMM = [name for name in timm.list_models() if '_plugin' not in name]


@pytest.mark.parametrize('name', map(known, representatives(TIMM, timm_module)))
def test_timm(name, limited):
    sweep(name, lambda: timm.create_model(name), timm_inputs, limited)


def names_of(module):
    return torchvision.models.list_models(module=module)


def pictures(model, side=96):
    side = next(s for s in (side, 224, 299) if runs(model, s))
    return (torch.randn(1, 3, side, side),), (torch.randn(2, 3, side, side),)


@pytest.mark.parametrize('name', map(known, representatives(names_of(torchvision.models))))
def test_torchvision_classification(name, limited):
    sweep(name, lambda: torchvision.models.get_model(name), pictures, limited)


@pytest.mark.parametrize('name', map(known, names_of(torchvision.models.segmentation)))
def test_torchvision_segmentation(name, limited):
    options = {'weights': None, 'weights_backbone': None}
    if 'lraspp' not in name:
        options.update(aux_loss=True)
    sweep(name, lambda: torchvision.models.get_model(name, **options), pictures, limited)


def scenes(model):
    images = [torch.rand(3, 128, 128) for _ in range(2)]
    target = {
        'boxes': torch.tensor([[10.0, 10, 60, 70], [30, 20, 120, 110]]),
        'labels': torch.tensor([1, 1]),
        'masks': torch.ones(2, 128, 128, dtype=torch.uint8),
        'keypoints': torch.ones(2, 17, 3) * 50,
    }
    return (images,), (images, [target, target])


@pytest.mark.parametrize('name', map(known, names_of(torchvision.models.detection)))
def test_torchvision_detection(name, limited):
    options = {'weights': None, 'weights_backbone': None}
    if 'ssd' not in name:
        options.update(min_size=128, max_size=160)
    build = lambda: torchvision.models.get_model(name, **options)  # noqa: E731
    sweep(name, build, scenes, limited, boxes=True)


def test_of_a_hundred_with_a_dense_conv_ninety_nine_convert():
    """Runs last, on all that ran before it."""
    tally = Counter(BOARD.values())
    print(f'\n{dict(tally)}', *(n for n, state in BOARD.items() if state in ('failed', 'skipped')))
    dense = tally['converted'] + tally['skipped'] + tally['failed']
    assert tally['failed'] <= 0.01 * dense
    assert {name for name, state in BOARD.items() if state == 'failed'} <= KNOWN.keys()
