"""Configs that MMDetection and MMPretrain ship, built as ``Converted``, trained and asked.

The smallest config of each family of detectors stands for it, and two of each of classifiers; all
are slow but for a few. ``GHOST_SWEEP=all`` takes every config; ``1/4`` in it, as in ``all 1/4``, is
every fourth beginning with the second, so that parts can run side by side.
"""

import copy
import os
import re
from collections import Counter
from pathlib import Path

import pytest
import torch

mmdet = pytest.importorskip('mmdet')
mmpretrain = pytest.importorskip('mmpretrain')

from mmdet.testing import demo_mm_inputs
from mmengine.config import Config, ConfigDict
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import MODELS, init_default_scope
from mmpretrain.structures import DataSample

import ghost_plugin as gp

SECONDS, MILLIONS = 240, 120  # of one model, and of its parameters; what is bigger is skipped
SIDES = (128, 384)  # pixels; the larger where a model cannot take the smaller
WHICH = os.environ.get('GHOST_SWEEP', '')
BOARD: dict[str, str] = {}
SMALL = (
    'nano',
    'tiny',
    'small',
    '_s_',
    '-s_',
    'r18',
    'resnet18',
    '_t_',
    '-t_',
    'b0',
    'r50',
    'base',
)
# Families that are no detectors or classifiers of single pictures, or need what is not installed.
OTHER = {
    'mmdet': {
        'bytetrack', 'deepsort', 'sort', 'ocsort', 'qdtrack', 'masktrack_rcnn', 'mask2former_vis',
        'strongsort', 'reid', 'glip', 'grounding_dino', 'mm_grounding_dino', 'common',
    },
    'mmpretrain': {
        'barlowtwins', 'beit', 'blip', 'blip2', 'byol', 'cae', 'chinese_clip', 'clip', 'densecl',
        'eva', 'flamingo', 'glip', 'itpn', 'llava', 'mae', 'maskfeat', 'mff', 'milan', 'minigpt4',
        'mixmim', 'mocov2', 'mocov3', 'ofa', 'otter', 'sam', 'simclr', 'simmim', 'simsiam', 'spark',
        'swav', 'arcface',
    },
}  # fmt: skip
NETWORKS = {'mmdet': 1, 'mmpretrain': 2}  # of a family
FEW = {
    'mmdet': ('retinanet', 'rpn', 'yolox'),
    'mmpretrain': ('resnet', 'mobilenet_v2', 'convnext'),
}


def rank(path):
    """Small models first, then short names."""
    words = [index for index, word in enumerate(SMALL) if word in path.stem]
    return min(words, default=len(SMALL)), len(path.stem), path.stem


def smallest(paths, number):
    """The first of each of some networks; a name begins with its network."""
    networks = {}
    for path in paths:
        networks.setdefault(path.stem.split('_')[0], path)
    return list(networks.values())[:number]


def configs(package):
    """Paths by ``family/name``."""
    root = Path(package.__file__).parent / '.mim/configs'
    chosen = []
    for folder in sorted(root.iterdir()):
        if folder.is_dir() and folder.name not in {'_base_', *OTHER[package.__name__]}:
            found = sorted(folder.glob('*.py'), key=rank)
            chosen += found if 'all' in WHICH else smallest(found, NETWORKS[package.__name__])
    part = re.search(r'(\d+)/(\d+)', WHICH)
    chosen = chosen[int(part[1]) :: int(part[2])] if part else chosen
    few = FEW[package.__name__]
    names = {f'{path.parent.name}/{path.stem}': path for path in chosen}
    first = {next((n for n in names if n.startswith(f'{name}/')), None) for name in few}
    return [
        pytest.param(path, id=name, marks=() if name in first else pytest.mark.slow)
        for name, path in names.items()
    ]


def model_of(path):
    """The model's config without files that would be fetched."""
    try:
        cfg = Config.fromfile(path)
    except RuntimeError as error:  # two kinds of config in one chain
        pytest.skip(f'MMEngine cannot read it: {error}')
    if 'model' not in cfg:
        pytest.skip('no model in it')
    init_default_scope(cfg.get('default_scope') or 'mmengine')
    model = cfg.model.to_dict()
    if cfg.get('data_preprocessor') and not model.get('data_preprocessor'):
        model['data_preprocessor'] = cfg.data_preprocessor.to_dict()
    return few_boxes(ConfigDict(bare(model)))


def few_boxes(model):
    """A two-stage detector whose second stage looks at few boxes: a thousand are slow, not more."""
    for stage in (model.get('test_cfg'), (model.get('train_cfg') or {}).get('rpn_proposal')):
        stage = (stage or {}).get('rpn', stage)
        if stage and stage.get('max_per_img', 0) >= 300:
            stage.max_per_img = 50
    return model


def bare(part):
    """A config without its checkpoints."""
    if isinstance(part, dict):
        return {
            key: None if key in ('teacher_ckpt', 'pretrained') else bare(value)
            for key, value in part.items()
            if not (key == 'init_cfg' and 'checkpoint' in str(value))
        }
    return type(part)(map(bare, part)) if isinstance(part, list | tuple) else part


def sides(model):
    """Of the pictures, pixels: what a backbone is built for; or a small one, and a larger."""
    backbone = model.get('backbone') or {}
    given = backbone.get('img_size') or backbone.get('resolution')
    fixed = given[0] if isinstance(given, list | tuple) else given
    return [fixed] if isinstance(fixed, int) else SIDES


def skip_big(model):
    with torch.device('meta'):
        try:
            number = sum(p.numel() for p in MODELS.build(copy.deepcopy(model)).parameters())
        except Exception:  # computes with weights when it is built, or needs what is missing
            return
    if number > MILLIONS * 1e6:
        pytest.skip(f'{number / 1e6:.0f} M parameters')


def boxes(side):
    return demo_mm_inputs(
        2, (3, side, side), num_items=[3, 2], num_classes=3, with_mask=True, with_semantic=True
    )


def labels(side):
    pictures = torch.randint(0, 255, (2, 3, side, side), dtype=torch.uint8)
    return {'inputs': pictures, 'data_samples': [DataSample().set_gt_label(i) for i in (0, 1)]}


def build(model):
    """As a Runner would: some convs hold what was in memory until they are initialised."""
    model = MODELS.build(copy.deepcopy(model))
    model.init_weights()
    return model


def trained(model, data):
    """One step: every parameter of the Ghost convs that took part gets a finite gradient."""
    ghosts = [m for m in model.modules() if isinstance(m, gp.GhostConv2d)]
    ran = set()
    for ghost in ghosts:
        ghost.register_forward_hook(lambda module, *args: ran.add(id(module)))
    model.train()
    batch = model.data_preprocessor(data, True)
    loss, _ = model.parse_losses(model(**batch, mode='loss'))
    loss.backward()
    assert loss.isfinite()
    taught = [p for g in ghosts if id(g) in ran for p in g.parameters() if p.requires_grad]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in taught)
    return ghosts


def answered(model, data):
    """A prediction for every picture."""
    model.eval()
    with torch.no_grad():
        assert len(model.test_step(data)) == 2


def works(model, data):
    """Whether the dense model does the same."""
    try:
        dense = build(model)
        trained(dense, data)
        answered(dense, data)
    except Exception:
        return False
    return True


def sweep(path, limited, inputs):
    """One config from beginning to end; one whose dense model does not work here is skipped."""
    name = f'{path.parent.name}/{path.stem}'
    MMLogger.get_current_instance().setLevel('ERROR')
    for what in ('iter', 'epoch'):  # as a Runner would
        MessageHub.get_current_instance().update_info(what, 0)
    inner = model_of(path)
    skip_big(inner)
    BOARD[name] = 'failed'
    for side in sides(inner):
        torch.manual_seed(0)
        options = dict(plan=dict(keep_first=False), size=side)
        try:
            with limited(SECONDS):
                model = build(dict(type='ghost_plugin.Converted', model=inner, **options))
                ghosts = trained(model, inputs(side))
                answered(model, inputs(side))
        except Exception as error:
            if isinstance(error, TimeoutError) or works(inner, inputs(side)):
                raise
            continue
        BOARD[name] = 'converted' if ghosts else 'no dense conv'
        return
    BOARD[name] = 'the dense model does not run here'
    pytest.skip(BOARD[name])


@pytest.mark.parametrize('path', configs(mmdet))
def test_detector(path, limited):
    sweep(path, limited, boxes)


@pytest.mark.parametrize('path', configs(mmpretrain))
def test_classifier(path, limited):
    sweep(path, limited, labels)


@pytest.mark.slow
def test_scoreboard():
    """Runs last, on all that ran before it."""
    tally = Counter(BOARD.values())
    print(f'\n{dict(tally)}')
    print(*(f'{name}: {state}' for name, state in BOARD.items() if state != 'converted'), sep='\n')
    assert tally['failed'] <= 0.05 * (tally['failed'] + tally['converted'])
